"""Clocks side by side: everybody once a round, in an order that rotates; medians, and ratios within rounds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

Step = Callable[[], object]

WARM_UPS = 2
PAUSE_S = 0.05  # until the threads of whoever ran before have gone to sleep


def alternate(
    steps: Mapping[str, Step], rounds: int, clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], None] = time.sleep, say: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of every step in every round; the one that begins a round rotates."""
    names = list(steps)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(WARM_UPS):
        for step in steps.values():
            step()
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            first = done % len(names)
            for name in names[first:] + names[:first]:
                pause(PAUSE_S)
                began = clock()
                steps[name]()
                found[name].append(clock() - began)
            say(done + 1)
    finally:
        gc.enable()
    return found


def figures(seconds: Sequence[float], iterations: int = 1) -> dict[str, float]:
    """`ms` and `min_ms` of one iteration."""
    return {"ms": median(seconds) * 1e3 / iterations, "min_ms": min(seconds) * 1e3 / iterations}


def times_faster(seconds: Sequence[float], than: Sequence[float]) -> float:
    """The median of the ratios within rounds: what slows a whole round down cancels."""
    return median(other / own for own, other in zip(seconds, than, strict=True))

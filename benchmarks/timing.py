"""Clocks side by side: everybody once a round, each round in another drawn order; medians, and ratios within rounds.

A thread that wakes where the one that woke it runs waits for the scheduler's next look, some ms. Whether that happens
is luck, so it is taken out for everybody alike: the timing thread has one processor, all other threads of the process,
whoever's library made them, have the others.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

Step = Callable[[], object]

WARM_UPS = 2
SEED = 0
PAUSE_S = 0.05  # until the threads of whoever ran before have gone to sleep


def alternate(
    steps: Mapping[str, Step], rounds: int, clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], None] = time.sleep, say: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of every step in every round."""
    names, orders = list(steps), random.Random(SEED)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(WARM_UPS):
        for step in steps.values():
            step()
    gc.collect()
    gc.disable()
    try:
        with spread_out():
            for done in range(rounds):
                for name in orders.sample(names, len(names)):
                    pause(PAUSE_S)
                    began = clock()
                    steps[name]()
                    found[name].append(clock() - began)
                say(done + 1)
    finally:
        gc.enable()
    return found


@contextmanager
def spread_out() -> Iterator[None]:
    """The calling thread on one processor, every other thread of the process on the others, while this lasts."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        yield
        return
    before = {}
    for task in map(int, (entry.name for entry in Path("/proc/self/task").iterdir())):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            before[task] = os.sched_getaffinity(task)
            os.sched_setaffinity(task, allowed[:1] if task == threading.get_native_id() else allowed[1:])
    try:
        yield
    finally:
        for task, processors in before.items():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(task, processors)


def figures(seconds: Sequence[float], iterations: int = 1) -> dict[str, float]:
    """`ms` and `min_ms` of one iteration."""
    return {"ms": median(seconds) * 1e3 / iterations, "min_ms": min(seconds) * 1e3 / iterations}


def times_faster(seconds: Sequence[float], than: Sequence[float]) -> float:
    """The median of the ratios within rounds: what slows a whole round down cancels."""
    return median(other / own for own, other in zip(seconds, than, strict=True))

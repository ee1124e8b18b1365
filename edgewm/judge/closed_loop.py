"""Suite `closed-loop`: paired episodes, the full model and the compressed one from the same starts on the same noise.

The verdict is a non-inferiority test whose margin is the preset's, fixed beforehand. It is looked at after every pair
and stops as soon as it is decided; its error rate of 5 % holds however often one looks (`statistics.noninferiority`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import statistics
from ..options import Progress
from .gates import DEFAULT, Preset, decided

Outcome = tuple[int | None, int | None]  # periods to success, None without: the full model's, the compressed one's
Pair = Callable[[int], Outcome]  # of a start, by its seed
Figures = dict[str, Any]
Rows = list[dict[str, Any]]


def run(
    pair: Pair, episodes: int, seed: int, progress: Progress, preset: Preset = DEFAULT, gate: str = "closed_loop_loss",
    stage: str = "closed-loop",
) -> tuple[Figures, Rows]:  # fmt: skip
    """Up to `episodes` pairs; the figures of this suite and its gate."""
    pairs: list[Outcome] = []
    margin = preset.limits[gate]
    state = statistics.noninferiority([], margin)
    for start in starts_of(episodes, seed):
        pairs.append(pair(start))
        state = statistics.noninferiority([change(pair) for pair in pairs], margin)
        progress(stage, len(pairs) / episodes)
        if state.decision is not None:
            break
    note = None if state.decision is not None else f"not decided after {len(pairs)} episodes: allow more"
    figures = compared(pairs) | {"margin": margin, "error_rate": 0.05}
    loss = (figures["only_full"] - figures["only_compressed"]) / len(pairs) if pairs else math.nan
    return figures, [decided(gate, loss, state.decision, len(pairs), note, preset)]


def starts_of(episodes: int, seed: int) -> list[int]:
    return [int(s) for s in np.random.default_rng([0xC105ED, seed]).integers(0, 2**31, episodes)]


def change(pair: Outcome) -> float:
    """1 where only the compressed model succeeded, -1 where only the full one did."""
    full, compressed = (periods is not None for periods in pair)
    return float(compressed) - float(full)


def compared(pairs: Sequence[Outcome]) -> Figures:
    """Both success rates with their intervals, and the paired difference, compressed less full."""
    n = len(pairs)
    wins = np.array([[periods is not None for periods in pair] for pair in pairs], bool).reshape(n, 2)
    only_full, only_compressed = int((wins[:, 0] & ~wins[:, 1]).sum()), int((~wins[:, 0] & wins[:, 1]).sum())
    difference = (only_compressed - only_full) / n if n else None
    interval = statistics.bootstrap(wins[:, 1] * 1.0 - wins[:, 0], lambda d: float(d.mean())) if n else None
    return {
        "full": side([f for f, _ in pairs]),
        "compressed": side([c for _, c in pairs]),
        "only_full": only_full,
        "only_compressed": only_compressed,
        "mcnemar_p": statistics.mcnemar(only_full, only_compressed),
        "difference": difference,
        "difference_95": None if interval is None else list(interval),
    }


def side(periods: Sequence[int | None]) -> Figures:
    """One model's successes, and how long they took."""
    took = [p for p in periods if p is not None]
    return {
        "successes": len(took),
        "episodes": len(periods),
        "wilson_95": list(statistics.wilson(len(took), len(periods))),
        "median_periods": float(np.median(took)) if took else None,
    }

"""Suite `closed-loop`: paired episodes, the full model and the compressed one from the same starts.

The verdict is a non-inferiority test whose margin is fixed beforehand (gates.MARGIN). It is looked at after every pair
and stops as soon as it is decided; its error rate of 5 % holds however often one looks (`statistics.noninferiority`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import statistics
from .gates import MARGIN, decided

Episode = Callable[[int], bool]  # seed of a start -> did it succeed


def run(
    full: Episode, compressed: Episode, episodes: int, seed: int, progress: Callable[[str, float], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Up to `episodes` pairs; the figures of this suite and its gate."""
    pairs: list[tuple[bool, bool]] = []
    state = statistics.noninferiority([], MARGIN)
    for start in np.random.default_rng([0xC105ED, seed]).integers(0, 2**31, episodes):
        pairs.append((full(int(start)), compressed(int(start))))
        state = statistics.noninferiority([float(c) - float(f) for f, c in pairs], MARGIN)
        progress("closed-loop", len(pairs) / episodes)
        if state.decision is not None:
            break
    n = len(pairs)
    wins = np.array(pairs, bool).reshape(n, 2)
    only_full, only_compressed = int((wins[:, 0] & ~wins[:, 1]).sum()), int((~wins[:, 0] & wins[:, 1]).sum())

    def side(successes: int) -> dict[str, Any]:
        interval = statistics.wilson(successes, n)
        return {"successes": successes, "episodes": n, "wilson_95": list(interval)}

    figures = {
        "full": side(int(wins[:, 0].sum())),
        "compressed": side(int(wins[:, 1].sum())),
        "only_full": only_full,
        "only_compressed": only_compressed,
        "mcnemar_p": statistics.mcnemar(only_full, only_compressed),
        "margin": MARGIN,
        "error_rate": 0.05,
    }
    loss = (only_full - only_compressed) / n if n else float("nan")
    note = None if state.decision is not None else f"not decided after {n} episodes: allow more"
    return figures, [decided("closed_loop_loss", loss, state.decision, n, note)]

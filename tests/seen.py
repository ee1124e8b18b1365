"""The tiny LeWM with something to plan from: `edgewm build seen:lewm --precision w8a8`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tiny import SPEED, lewm

__all__ = ["contexts", "lewm"]


def contexts(count: int, seed: int) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Drawn pairs of observation and goal."""
    rng = np.random.default_rng([5, seed])
    for _ in range(count):
        yield observed(rng), observed(rng)


def observed(rng: np.random.Generator) -> dict[str, np.ndarray]:
    camera = lewm().ports_of("observation")[0]
    speed = rng.uniform(SPEED.low, SPEED.high, SPEED.shape).astype(np.float32)
    return {camera.name: rng.integers(0, 256, camera.shape, np.uint8), SPEED.name: speed}

"""A shift that any world takes: an action moves what acts less far than in training."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray

SPEED = 0.6  # of the one in training


class Slower:
    """Stands before a `World` among the bases; scripts act as they would at full speed."""

    def move(self: Any, states: Array, actions: Array) -> Array:
        return super().move(states, SPEED * np.clip(actions, -1, 1))

    def trajectories(self: Any, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array]:
        actions, states = super().trajectories(rng, n, steps)
        for t in range(steps):
            states[:, t + 1] = self.move(states[:, t], actions[:, t])
        return actions, states

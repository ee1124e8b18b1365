"""The noise of a bundle's own plans, for a model that is to meet them."""

from __future__ import annotations

import numpy as np

from .. import arithmetic
from .. import expr as e
from ..interp import run
from ..program import Graph, Planner

Array = np.ndarray
WORD = 1 << 32


def philox(planner: Planner, action_dim: int, seed: int, plan: int) -> Array:
    """What plan number `plan` after `ewm_reset(seed)` draws: (iterations, samples, horizon, action), float32."""
    return np.stack([of_round(planner, action_dim, seed, plan, i) for i in range(planner.iterations)])


def of_round(planner: Planner, action_dim: int, seed: int, plan: int, iteration: int) -> Array:
    """What one iteration of it draws: (samples, horizon, action)."""
    key = tuple(e.const(word, "u32") for word in (seed % WORD, seed // WORD))
    counter = (e.const(iteration, "u32"), e.const(plan, "u32"), e.const(0, "u32"))
    shape = (planner.samples, planner.horizon, action_dim)
    return run(Graph({"noise": arithmetic.normal(shape, counter, key)}), {}, {})["noise"]

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
    shape = (planner.samples, planner.horizon, action_dim)
    key = tuple(e.const(word, "u32") for word in (seed % WORD, seed // WORD))

    def of_iteration(i: int) -> Array:
        counter = (e.const(i, "u32"), e.const(plan, "u32"), e.const(0, "u32"))
        return run(Graph({"noise": arithmetic.normal(shape, counter, key)}), {}, {})["noise"]

    return np.stack([of_iteration(i) for i in range(planner.iterations)])

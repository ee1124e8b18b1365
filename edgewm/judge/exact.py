"""Does a bundle that holds everything in float32 give the full model's costs? Only rounding may lie between the two.

How much that is, is measured: the full model in float32 against itself in float64, on the same candidates. The bundle
adds each sum in one accumulator; whatever order another sum has, that errs by at most as many times more as the longest
sum has terms (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2). A fault in the compiler that
plans forgive, as they forgive eight bits, does not pass for rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..program import Planner
from .causality import candidates
from .gates import DEFAULT, Preset, decided, finite
from .sides import Side, upstream
from .sources import Pairs

Array = np.ndarray
CONTEXTS = 8
UNIT_ROUNDOFF = 2.0**-24  # of float32


def longest_sum(module: Any) -> int:
    """Terms of the longest sum over inputs that one of the module's weights takes part in."""
    return max((p[0].numel() for p in module.parameters() if p.dim() > 1), default=1)


def run(
    model: Any, planner: Planner, full: Side, compressed: Side, pairs: Pairs, seed: int, preset: Preset = DEFAULT
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rms errors of candidate costs against float64, of both sides, and the gate on their ratio."""
    rng = np.random.default_rng([0xE8AC7, seed])
    sides, costs = (upstream(model, planner, "float64"), full, compressed), []
    for observation, goal in pairs:
        drawn = candidates(planner, rng, (planner.samples, planner.horizon, model.action_dim)).astype(np.float32)
        costs.append([np.asarray(s.score(s.encode(observation), s.encode(goal), drawn), np.float64) for s in sides])
    if not costs:
        return {}, []
    exact, *found = np.array(costs).transpose(1, 0, 2)
    error = [float(np.sqrt(np.square(c - exact).mean())) for c in found]
    unit = max(error[0], UNIT_ROUNDOFF * float(np.sqrt(np.square(exact).mean())))
    ratio = error[1] / (unit * longest_sum(model.torch))
    row = decided("exact_costs", ratio, ratio <= preset.limits["exact_costs"], len(costs), preset=preset)
    return {"rounding": [finite(e) for e in error], "longest_sum": longest_sum(model.torch)}, [row]

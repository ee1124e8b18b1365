"""The cross-entropy method: refit mean and deviation to the elites.

Rubinstein, "The cross-entropy method for combinatorial and continuous optimization" (1999). Where implementations
differ, `Planner` says which is meant: `first_candidate_is_mean` and an unbiased standard deviation as in
stable-worldmodel's `CEMSolver`; bounds and no such candidate as in torch-world's `CEM`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import expr as e
from ..program import Node, Planner
from .sampling import bounded, chosen, drawn, first_carries, refit


def start(planner: Planner, mean: Node, std: Node | None = None) -> dict[str, Node]:
    """The carries before the first iteration, which draws around `mean` (horizon, action) with deviation `std`, or
    `var_scale`."""
    return first_carries(planner, mean, std)


def iterate(
    planner: Planner, carried: Mapping[str, Node], noise: Node, score: Callable[[Node], Node]
) -> dict[str, Node]:
    """The carries after one more iteration; `score` maps candidates (samples, horizon, action) to costs (samples,)."""
    candidates = bounded(planner, drawn(planner, carried["mean"], carried["std"], noise))
    elites, cost = chosen(planner, score(candidates))
    mean, std = refit(planner, e.take(candidates, elites))
    return {"mean": mean, "std": std, "cost": cost, "elites": elites}


def actions(planner: Planner, carried: Mapping[str, Node]) -> Node:
    """The plan (horizon, action)."""
    return carried["mean"]

"""Model predictive path integral: the mean of the elites, weighted by exp(-cost / temperature); the deviation stays.

Williams et al., "Information theoretic MPC for model-based reinforcement learning" (2017), as stable-worldmodel's
`MPPISolver` has it: the weights are a softmax over the `elites` cheapest candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import expr as e
from ..program import Node, Planner
from .sampling import bounded, chosen, drawn, first_carries


def start(planner: Planner, mean: Node, std: Node | None = None) -> dict[str, Node]:
    """The carries before the first iteration, which draws around `mean` (horizon, action) with deviation `std`, or
    `var_scale`."""
    return first_carries(planner, mean, std)


def iterate(
    planner: Planner, carried: Mapping[str, Node], noise: Node, score: Callable[[Node], Node]
) -> dict[str, Node]:
    """The carries after one more iteration; `score` maps candidates (samples, horizon, action) to costs (samples,)."""
    candidates = bounded(planner, drawn(planner, carried["mean"], carried["std"], noise))
    costs = score(candidates)
    elites, cost = chosen(planner, costs)
    of_elites = e.take(costs, elites)
    lowest = e.neg(e.reduce_max(e.neg(of_elites), 0))
    weights = e.softmax(e.div(e.sub(lowest, of_elites), planner.temperature), 0)
    weighted = e.mul(e.reshape(weights, (planner.elites, 1, 1)), e.take(candidates, elites))
    mean = e.reshape(e.reduce_sum(weighted, 0), carried["mean"].shape)
    return {"mean": mean, "std": carried["std"], "cost": cost, "elites": elites}


def actions(planner: Planner, carried: Mapping[str, Node]) -> Node:
    """The plan (horizon, action)."""
    return carried["mean"]

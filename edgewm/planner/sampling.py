"""What every kind of planner shares: noise, candidates, the refit, and where the next plan starts."""

from __future__ import annotations

from .. import arithmetic
from .. import expr as e
from ..program import Node, Planner
from .settings import committed_actions, has_mean_first


def counter() -> Node:
    """The iteration, inside the loop's body."""
    return e.input("counter", (), "u32")


def philox(planner: Planner, action_dim: int, plan: Node, seed: Node) -> Node:
    """Noise of one iteration (samples, horizon, action): Philox counter (element, iteration, plan, 0), key `seed`."""
    key = (e.narrow(seed, 0, 0, 1), e.narrow(seed, 0, 1, 2))
    return arithmetic.normal(
        (planner.samples, planner.horizon, action_dim), (counter(), plan, e.const(0, "u32")), key
    )  # fmt: skip


def injected(noise: Node) -> Node:
    """Noise of one iteration out of a port (iterations, samples, horizon, action)."""
    row = e.reshape(e.cast(counter(), "i32"), (1,))
    return e.reshape(e.take(noise, row), noise.shape[1:])


def drawn(planner: Planner, mean: Node, std: Node, noise: Node) -> Node:
    """Candidates (samples, horizon, action): mean + std * noise, the first one the mean itself where so wanted."""
    found = e.fma(noise, std, mean)
    if has_mean_first(planner):
        found = e.select(e.equal(e.iota((planner.samples, 1, 1), 0), 0), mean, found)
    return found


def bounded(planner: Planner, candidates: Node) -> Node:
    """The candidates within the planner's bounds."""
    candidates = candidates if planner.low is None else e.maximum(candidates, planner.low)
    return candidates if planner.high is None else e.minimum(candidates, planner.high)


def refit(planner: Planner, elites: Node) -> tuple[Node, Node]:
    """Mean and standard deviation (horizon, action) of the elites (k, horizon, action), summed in index order."""
    k, *shape = elites.shape
    mean = e.mean(elites, 0)
    centred = e.sub(elites, mean)
    variance = e.mul(e.reduce_sum(e.mul(centred, centred), 0), 1.0 / max(1, k - planner.unbiased_std))
    return e.reshape(mean, shape), e.reshape(e.sqrt(variance), shape)


def first_carries(planner: Planner, mean: Node, std: Node | None) -> dict[str, Node]:
    """What every kind carries from iteration to iteration, as it is before the first: `cost` and `elites` of none."""
    std = e.expand(e.const(planner.var_scale), mean.shape) if std is None else std
    return {
        "mean": mean, "std": std, "cost": e.expand(e.const(0.0), (1,)),
        "elites": e.iota((planner.elites,), 0),
    }  # fmt: skip


def chosen(planner: Planner, cost: Node) -> tuple[Node, Node]:
    """Indices of the elites (k,), ascending, and their mean cost (1,)."""
    elites = e.topk(cost, planner.elites)
    return elites, e.mul(e.reduce_sum(e.take(cost, elites), 0), 1.0 / planner.elites)


def next_warm_mean(planner: Planner, actions: Node) -> Node:
    """Where the next plan starts: what is left of this one, then zeros; all zeros without warm start."""
    played = committed_actions(planner) if planner.warm_start else planner.horizon
    zeros = e.expand(e.const(0.0), (played, actions.shape[1]))
    return zeros if played == planner.horizon else e.concat([e.narrow(actions, 0, played, planner.horizon), zeros], 0)

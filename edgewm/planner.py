"""The cross-entropy method in ops: encode, then sample, score, select and refit in one `repeat`.

Rubinstein, "The cross-entropy method for combinatorial and continuous optimization" (1999). Where implementations
differ, `Planner` says which is meant: `first_candidate_is_mean` and an unbiased standard deviation as in
stable-worldmodel's `CEMSolver`; bounds and no such candidate as in torch-world's `CEM`.
"""

from __future__ import annotations

import math

from . import arithmetic
from . import expr as e
from .errors import EdgewmError
from .program import Graph, Node, Planner

MAX_HORIZON = 64  # model steps a rollout is unrolled into: kernels and compile time grow with it
MAX_CANDIDATES_BYTES = 1 << 30  # of one iteration's candidates, float32


def check(planner: Planner, action_dim: int | None = None) -> None:
    """EdgewmError when the settings cannot make a plan; `action_dim` is a model action's, at least its block."""
    where = "planner settings"
    for name in ("samples", "iterations", "elites", "horizon", "action_block", "commit_steps", "history"):
        if getattr(planner, name) < 1:
            raise EdgewmError(f"{name} is {getattr(planner, name)}", where, f"give {name} of at least 1")
    if planner.horizon > MAX_HORIZON:
        raise EdgewmError(
            f"a horizon of {planner.horizon} model actions", where, f"plan at most {MAX_HORIZON}, and plan more often"
        )
    held = planner.samples * planner.horizon * (action_dim or planner.action_block) * 4
    if held > MAX_CANDIDATES_BYTES:
        raise EdgewmError(
            f"{planner.samples:,} samples are {held / 2**30:.1f} GiB of candidates", where,
            f"take fewer: they may fill {MAX_CANDIDATES_BYTES >> 30} GiB",
        )  # fmt: skip
    if planner.kind != "cem":
        raise EdgewmError(f"no planner of kind {planner.kind!r}", where, "use cem")
    if planner.elites > planner.samples:
        raise EdgewmError(
            f"{planner.elites} elites of {planner.samples} samples", where, "ask for at most as many elites as samples"
        )
    if planner.unbiased_std and planner.elites < 2:
        raise EdgewmError("an unbiased deviation of 1 elite", where, "take 2 elites or more")
    if not (math.isfinite(planner.var_scale) and planner.var_scale > 0):
        raise EdgewmError(f"var_scale is {planner.var_scale}", where, "give a positive number")
    if planner.low is not None and planner.high is not None and not planner.low < planner.high:
        raise EdgewmError(f"bounds are [{planner.low}, {planner.high}]", where, "give low below high")
    if committed_actions(planner) > planner.horizon:
        raise EdgewmError(
            f"{planner.commit_steps} committed periods exceed the plan of {planner.horizon * planner.action_block}",
            where, "commit at most horizon * action_block periods",
        )  # fmt: skip


def committed_actions(planner: Planner) -> int:
    """Model actions played of each plan; a block begun counts as played."""
    return -(-planner.commit_steps // planner.action_block)


def candidates_of(planner: Planner, mean: Node, std: Node, noise: Node) -> Node:
    """(samples, horizon, action): mean + std * noise, the first one the mean itself, all within the bounds."""
    found = e.fma(noise, std, mean)
    if planner.first_candidate_is_mean:
        found = e.select(e.equal(e.iota((planner.samples, 1, 1), 0), 0), mean, found)
    found = found if planner.low is None else e.maximum(found, planner.low)
    return found if planner.high is None else e.minimum(found, planner.high)


def refit(planner: Planner, elites: Node) -> tuple[Node, Node]:
    """Mean and standard deviation (horizon, action) of the elites (k, horizon, action), summed in index order."""
    k, *shape = elites.shape
    mean = e.mean(elites, 0)
    centred = e.sub(elites, mean)
    variance = e.mul(e.reduce_sum(e.mul(centred, centred), 0), 1.0 / (k - planner.unbiased_std))
    return e.reshape(mean, shape), e.reshape(e.sqrt(variance), shape)


def _philox(planner: Planner, action_dim: int, plan: Node, seed: Node) -> Node:
    """Noise of one iteration: Philox counter (element, iteration, plan, 0), key `seed`."""
    shape = (planner.samples, planner.horizon, action_dim)
    key = (e.narrow(seed, 0, 0, 1), e.narrow(seed, 0, 1, 2))
    return arithmetic.normal(shape, (e.input("counter", (), "u32"), plan, e.const(0, "u32")), key)


def _injected(noise: Node) -> Node:
    """Noise of one iteration out of a port (iterations, samples, horizon, action)."""
    row = e.reshape(e.cast(e.input("counter", (), "u32"), "i32"), (1,))
    return e.reshape(e.take(noise, row), noise.shape[1:])


def plan_graph(
    encode: Graph,
    score: Graph,
    planner: Planner,
    goals: dict[str, str] | None = None,
    injected_noise: bool = False,
) -> Graph:
    """The whole plan as one graph.

    `encode` maps observations to `z` (1, latent); `score` maps `z` (history, latent), `goal` (1, latent) and
    `candidates` (samples, horizon, action) to `cost` (samples,). `goals` names the goal input for each of `encode`'s
    inputs (default: `goal` for a single one). Further inputs: `warm_mean` (horizon, action); `plan_counter` (1,) u32
    and `seed` (2,) u32, or instead of these two, when `injected_noise`, `noise` (iterations, samples, horizon, action).

    Outputs: `actions` (horizon, action) to play, `mean` and `std` after the last refit, `cost` (1,), the mean cost of
    the last elites, `elites` (k,) i32, ascending; and what the next plan takes: `warm_mean`, `plan_counter`.
    Raises EdgewmError when the settings do not fit.
    """
    action_dim = score.inputs()["candidates"].shape[-1]
    check(planner, action_dim)
    observations = encode.inputs()
    goals = goals or {name: "goal" if len(observations) == 1 else f"goal_{name}" for name in observations}
    z = next(iter(encode.outputs.values()))
    wanted = {name: e.input(goals[name], leaf.shape, leaf.dtype) for name, leaf in observations.items()}
    target = e.inline(encode, wanted)
    samples, horizon, _ = score.inputs()["candidates"].shape
    if (samples, horizon) != (planner.samples, planner.horizon):
        raise EdgewmError(
            f"score takes {samples} candidates of {horizon} actions", "planner settings",
            f"capture it for {planner.samples} candidates of {planner.horizon} actions",
        )  # fmt: skip
    shape = (horizon, action_dim)
    outside = {"z": z, "goal": next(iter(target.values()))}
    if injected_noise:
        outside["noise"] = e.input("noise", (planner.iterations, samples, *shape))
    else:
        outside |= {"plan_counter": e.input("plan_counter", (1,), "u32"), "seed": e.input("seed", (2,), "u32")}
    inside = {name: e.input(name, node.shape, node.dtype) for name, node in outside.items()}
    mean, std = e.input("mean", shape), e.input("std", shape)
    noise = (
        _injected(inside["noise"]) if injected_noise
        else _philox(planner, action_dim, inside["plan_counter"], inside["seed"])
    )  # fmt: skip
    candidates = candidates_of(planner, mean, std, noise)
    cost = e.inline(score, {"z": inside["z"], "goal": inside["goal"], "candidates": candidates})["cost"]
    elites = e.topk(cost, planner.elites)
    new_mean, new_std = refit(planner, e.take(candidates, elites))
    elite_cost = e.mul(e.reduce_sum(e.take(cost, elites), 0), 1.0 / planner.elites)
    body = Graph({"mean": new_mean, "std": new_std, "cost": elite_cost, "elites": elites})
    warm = e.input("warm_mean", shape)
    found = e.repeat(
        planner.iterations, body, {"mean": warm, "std": e.expand(e.const(planner.var_scale), shape)}, outside
    )
    outputs = {"actions": found["mean"], **found, "warm_mean": next_warm_mean(planner, found["mean"])}
    if not injected_noise:
        outputs["plan_counter"] = e.add(outside["plan_counter"], 1)
    return Graph(outputs)


def next_warm_mean(planner: Planner, mean: Node) -> Node:
    """Where the next plan starts: what is left of this one, then zeros; all zeros without warm start."""
    played = committed_actions(planner) if planner.warm_start else planner.horizon
    zeros = e.expand(e.const(0.0), (played, mean.shape[1]))
    return zeros if played == planner.horizon else e.concat([e.narrow(mean, 0, played, planner.horizon), zeros], 0)

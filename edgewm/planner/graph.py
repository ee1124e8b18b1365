"""The whole plan as one graph: encode, look back, roll forward; then sample, score, select, refit in one `repeat`."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from .. import expr as e
from ..errors import EdgewmError
from ..program import Graph, Node, Planner, Port
from . import cem, context, icem, mppi
from .sampling import bounded, injected, next_warm_mean, philox
from .settings import WHERE, check

METHODS: Mapping[str, ModuleType] = {"cem": cem, "icem": icem, "mppi": mppi}


def plan_weights(planner: Planner) -> dict[str, np.ndarray]:
    """The weights that the plan's own graph reads, float32."""
    if planner.kind != "icem" or planner.horizon == 1:
        return {}
    matrix = icem.noise_colour(planner)
    # to whole steps of 2^-30 of the largest: the same everywhere, whatever a library leaves of zero
    step = np.ldexp(1.0, int(np.frexp(np.abs(matrix).max())[1]) - 30)
    return {icem.COLOUR: (np.rint(matrix / step) * step).astype(np.float32)}


def state_ports(planner: Planner, latent_dim: int, action_dim: int) -> tuple[Port, ...]:
    """What is kept between plans: state ports, all zeros after a reset (but `seed`, which the reset gives)."""
    warm = () if planner.proposal else (Port("warm_mean", "state", (planner.horizon, action_dim)),)
    return (
        *warm,
        *context.ports(planner, latent_dim, action_dim),
        Port("plan_counter", "state", (1,), "u32"), Port("seed", "state", (2,), "u32"),
    )  # fmt: skip


def noise_port(planner: Planner, action_dim: int) -> Port:
    """Standard normal, white: it stands in for what a plan draws itself."""
    return Port("noise", "noise", (planner.iterations, planner.samples, planner.horizon, action_dim))


def plan_graph(
    encode: Graph,
    score: Graph,
    planner: Planner,
    goals: Mapping[str, str] | None = None,
    injected_noise: bool = False,
    roll: Graph | None = None,
    propose: Graph | None = None,
) -> Graph:
    """The whole plan as one graph.

    `encode` maps observations to `z` (1, latent); `score` maps `z` (history, latent), `goal` (1, latent), `candidates`
    (samples, horizon, action) and, with a history, `past_actions` (history - 1, action) to `cost` (samples,); `roll`,
    which `roll_committed` needs, is that of `context.going_on`; `propose`, which `proposal` needs, maps `z` (1, latent)
    and `goal` (1, latent) to `mean` and `std` (horizon, action). `goals` names the goal input for each of `encode`'s
    inputs (default: `goal` for a single one). Further inputs: the state ports of `state_ports`, but in the place of
    `plan_counter` and `seed`, when `injected_noise`, `noise` (iterations, samples, horizon, action).

    Outputs: `actions` (horizon, action) to play, `mean` and `std` after the last refit, `cost` (1,), the mean cost of
    the last elites (0 before the first), `elites` (k,) i32, ascending; and what the next plan takes, under the names of
    its state ports. Raises EdgewmError when the settings do not fit.
    """
    leaves = score.inputs()
    action_dim = leaves["candidates"].shape[-1]
    check(planner, action_dim)
    samples, horizon, _ = leaves["candidates"].shape
    frames = leaves["z"].shape[0]
    if (samples, horizon, frames) != (planner.samples, planner.horizon, planner.history):
        raise EdgewmError(
            f"score takes {samples} candidates of {horizon} actions after {frames} frames", WHERE,
            f"capture it for {planner.samples} candidates of {planner.horizon} actions after {planner.history} frames",
        )  # fmt: skip
    observations = encode.inputs()
    goals = goals or {name: "goal" if len(observations) == 1 else f"goal_{name}" for name in observations}
    wanted = {name: e.input(goals[name], leaf.shape, leaf.dtype) for name, leaf in observations.items()}
    target = next(iter(e.inline(encode, wanted).values()))
    seen = context.observed(planner, next(iter(encode.outputs.values())), action_dim)
    coming = context.committed(planner, action_dim) if planner.roll_committed else None
    begin = seen if coming is None else context.going_on(planner, seen, roll, coming)
    outside = {"z": begin.latents, "goal": target}
    if begin.actions is not None:
        outside["past_actions"] = begin.actions
    if injected_noise:
        outside["noise"] = e.input("noise", noise_port(planner, action_dim).shape)
    else:
        outside |= {"plan_counter": e.input("plan_counter", (1,), "u32"), "seed": e.input("seed", (2,), "u32")}
    if planner.proposal:
        newest = e.narrow(begin.latents, 0, frames - 1, frames)
        proposed = e.inline(propose, {"z": newest, "goal": target})
        first = bounded(planner, proposed["mean"]), proposed["std"]
    else:
        first = e.input("warm_mean", (horizon, action_dim)), None
    found = _search(planner, score, outside, *first)
    actions = METHODS[planner.kind].actions(planner, found)
    outputs = {"actions": actions, **{name: found[name] for name in ("mean", "std", "cost", "elites")}}
    if not planner.proposal:
        outputs["warm_mean"] = next_warm_mean(planner, actions)
    outputs |= context.kept(planner, seen, actions, coming)
    if not injected_noise:
        outputs["plan_counter"] = e.add(outside["plan_counter"], 1)
    return Graph(outputs)


def _search(
    planner: Planner, score: Graph, outside: Mapping[str, Node], mean: Node, std: Node | None
) -> dict[str, Node]:  # fmt: skip
    """The loop over iterations, from `mean` and `std` (None: `var_scale`): its carries after the last."""
    method, action_dim = METHODS[planner.kind], mean.shape[-1]
    inside = {name: e.input(name, node.shape, node.dtype) for name, node in outside.items()}
    carries = method.start(planner, mean, std)
    carried = {name: e.input(name, node.shape, node.dtype) for name, node in carries.items()}
    noise = (
        injected(inside["noise"]) if "noise" in inside
        else philox(planner, action_dim, inside["plan_counter"], inside["seed"])
    )  # fmt: skip

    def cost_of(candidates: Node) -> Node:
        return e.inline(score, {**inside, "candidates": candidates})["cost"]

    body = Graph(method.iterate(planner, carried, noise, cost_of))
    return e.repeat(planner.iterations, body, carries, dict(outside))

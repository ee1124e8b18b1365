"""What tests of planners share: a model small enough to capture in every test, and upstream's search in torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fixtures_models as fixtures
import numpy as np
import torch
from torch import Tensor, nn

from edgewm import expr
from edgewm.interp import run
from edgewm.judge import sides
from edgewm.models import Model, capture_model, own
from edgewm.models.proposal import Proposal
from edgewm.ops import NUMPY, make
from edgewm.planner import kept_elites, state_ports
from edgewm.program import Graph, Node, Planner, Port, Program, rewrite

AXES, OBSERVATION, LATENT = 2, 4, 6
PLANNER = Planner(samples=10, iterations=3, elites=4, horizon=4, low=-1.0, high=1.0)
Arrays = dict[str, np.ndarray]


class Remembering(nn.Module):
    """A latent step that depends on the oldest and the newest frame of its window, and on the actions of both."""

    def __init__(self, window: int = 2, block: int = 1):
        super().__init__()
        self.history, self.planner = window, replace(PLANNER, action_block=block, commit_steps=block)
        self.ports = (
            Port("state", "observation", (1, OBSERVATION), max_age_ns=10**9), Port("goal", "goal", (1, OBSERVATION)),
            Port("action", "action", (AXES,), low=-1.0, high=1.0, safe=(0.0,) * AXES),
        )  # fmt: skip
        self.encoder = nn.Linear(OBSERVATION, LATENT)
        self.newest, self.oldest = (nn.Linear(LATENT + AXES * block, LATENT) for _ in range(2))

    def encode(self, state: Tensor) -> Tensor:
        return self.encoder(state)

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        x = torch.cat([z, actions], -1)
        return torch.tanh(self.newest(x[:, -1]) + self.oldest(x[:, 0]))

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        return (z - goal).square().sum(-1)


@functools.cache
def remembering(window: int = 2, block: int = 1) -> Model:
    return own.from_module(fixtures.seeded(Remembering(window, block), 3), "remembering")


@functools.cache
def proposing() -> Model:
    """The same with a proposal of seeded weights, where its planner begins."""
    model = remembering()
    found = fixtures.seeded(Proposal(LATENT, 8, PLANNER.horizon, AXES), 5)
    return replace(model, proposal=found, planner=replace(model.planner, proposal=True))


def program_of(window: int = 2, block: int = 1, **settings: Any) -> Program:
    """Captured at the model's own planner with these settings."""
    return _captured(expr.const, window, block, **settings)


@functools.cache
def _captured(constants: Callable[..., Node], window: int, block: int, **settings: Any) -> Program:
    """`constants` is how they are made meanwhile: the fixture `exact_constants` changes it."""
    model = remembering(window, block)
    return capture_model(model, replace(model.planner, **settings))


def drawn(ports: tuple[Port, ...], seed: int) -> Arrays:
    """Random values by port name, float32."""
    rng = np.random.default_rng(seed)
    return {p.name: rng.standard_normal(p.shape, np.float32) for p in ports}


def no_state(program: Program, model: Model) -> Arrays:
    """What the state ports hold after a reset with seed 0."""
    ports = state_ports(program.planner, model.latent_dim, model.action_dim)
    return {p.name: np.zeros(p.shape, NUMPY[p.dtype]) for p in ports}


def asked(program: Program, entry: str, given: Arrays) -> Arrays:
    """Those of the arrays that the entry reads."""
    return {name: given[name] for name in program.entries[entry].inputs()}


def noise_for(program: Program, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(program.port("noise").shape, np.float32)


def iterations_of(graph: Graph, weights: Arrays, inputs: Arrays, real: bool) -> list[Arrays]:
    """Every output of the body of the graph's loop, iteration by iteration."""
    loop = next(n for n in graph.order() if n.op == "repeat")
    names = loop["carries"] + loop["invariants"]
    state = run(Graph(dict(zip(names, loop.sources, strict=True))), inputs, weights, real)
    found = []
    for i in range(loop["count"]):
        found.append(run(loop["body"], {**state, "counter": np.uint32(i)}, weights, real))
        state |= {name: found[-1][name] for name in loop["carries"]}
    return found


def elites_by_iteration(program: Program, inputs: Arrays, real: bool) -> list[list[int]]:
    found = iterations_of(program.entries["plan_with_noise"], program.weights, inputs, real)
    return [out["elites"].tolist() for out in found]


def ended_after(graph: Graph, iterations: int) -> Graph:
    """The plan with fewer iterations: what it is when a deadline ends it."""

    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        attrs = dict(node.attrs)
        return make(node.op, *sources, **(attrs | {"count": iterations} if node.op == "repeat" else attrs))

    return Graph(rewrite(graph.outputs, rule))


def stable_worldmodel_cem(
    model: Model, planner: Planner, z: Tensor, goal: Tensor, noise: Tensor, past: Tensor | None = None
) -> tuple[Tensor, Tensor, list[list[int]], Tensor]:
    """`CEMSolver.solve` of stable-worldmodel 0.1.1 for one environment, and the planner's bounds: mean, deviation,
    elites of each iteration, mean cost of the last. z (history, latent), past (history - 1, action)."""
    mean = torch.zeros(noise.shape[2:], dtype=noise.dtype)
    deviation, elites, best = planner.var_scale * torch.ones_like(mean), [], None
    past = noise.new_zeros(len(z) - 1, noise.shape[-1]) if past is None else past
    for draw in noise:
        candidates = draw * deviation + mean
        candidates[0] = mean
        if planner.low is not None:
            candidates = candidates.clamp(planner.low, planner.high)
        actions = torch.cat([past.expand(len(candidates), -1, -1), candidates], 1)
        cost = model.scored(planner.objective)(model.torch, z, goal, actions)
        best, index = torch.topk(cost, planner.elites, largest=False)
        elites.append(sorted(index.tolist()))
        mean, deviation = candidates[index].mean(0), candidates[index].std(0)
    return mean, deviation, elites, best.mean()


def plan_rounding(planner: Planner, unit: float, largest_noise: float = 1.0) -> float:
    """Of a plan whose elites are given: each iteration rounds a candidate (2) and sums k elites twice, with a root
    (k + 4 each). Coloured noise is a product over the horizon and its deviation along it (3 horizon + 4), and enters
    as often as the noise is large; a refit with momentum rounds 3 more. Kept candidates add nothing."""
    units = 2 + 2 * (planner.elites + 4)
    if planner.kind == "icem":
        units += (3 * planner.horizon + 4) * largest_noise + 3
    return unit * planner.iterations * units


def mppi_tolerances(
    cost: Callable[[np.ndarray], np.ndarray], planner: Planner, noise: np.ndarray, warm: np.ndarray, rounding: float,
    unit: float,
) -> list[float]:  # fmt: skip
    """Of the mean after each iteration, absolute. A weight is off by twice its cost's relative error `rounding`, times
    the costs over the temperature, on either side; a weighted mean by twice that of its largest candidate. What is
    carried over grows by the largest row sum of the iteration's Jacobian, taken by differences."""
    one, found, error, mean = replace(planner, iterations=1), [], 0.0, np.asarray(warm, np.float64)
    for draw in noise:
        looked = sides.search(cost, one, draw[None], mean)
        of_cost = 2 * 2 * rounding * np.abs(looked.costs).max() / planner.temperature
        of_sums = unit * (fixtures.TRANSCENDENTAL_ULP + 2 * planner.elites + 4)
        added = 2 * (of_cost + of_sums) * np.abs(looked.candidates).max()
        step, columns = 2.0**-20, []
        for nudge in step * np.eye(mean.size).reshape(-1, *mean.shape):
            ends = [sides.search(cost, one, draw[None], mean + sign * nudge).mean for sign in (1, -1)]
            columns.append((ends[0] - ends[1]) / (2 * step))
        error = float(np.abs(np.stack(columns)).sum(0).max() * error + added)
        found.append(error)
        mean = looked.mean
    return found


def is_kept(planner: Planner) -> range:
    """Places of the candidates that were elites of the iteration before."""
    first = int(planner.first_candidate_is_mean)
    return range(first, first + kept_elites(planner))

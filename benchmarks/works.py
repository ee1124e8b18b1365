"""What is measured: one iteration of the planner, and one encoding, each as upstream's code and as graphs.

A `Work` is all that a peer is given. The iteration takes noise and the search's state and gives the next state and the
candidates' costs, `edgewm.iteration.split` of the plan; whoever runs it draws its own noise, as edgewm does. What a
plan does once (`prepare`) is done beforehand and handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from step import exact_program, step_program
from torch import Tensor

from edgewm import interp
from edgewm.capture import capture
from edgewm.iteration import NOISE, split
from edgewm.models import Model, example
from edgewm.program import Graph, Planner, Program

CALIBRATION = 300  # candidates at the least
SEARCHED = 2  # iterations at the least: a search narrows
FRAMES = 32  # that an encoder is calibrated on
STATE = {"mean": "next_mean", "std": "next_std"}

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Work:
    """`call` is upstream's torch module, from `inputs` to `outputs` in order; `graphs`, `weights`, `feeds` (one example
    of all inputs) and `calibration` are by graph, "upstream" and "exact". Peers may write into `folder`."""

    name: str
    call: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    graphs: Mapping[str, Graph]
    weights: Mapping[str, Mapping[str, np.ndarray]]
    feeds: Mapping[str, Feeds]
    calibration: Mapping[str, tuple[Feeds, ...]]
    threads: int
    folder: Path


class Called(torch.nn.Module):
    """A function of a module as a module: what compilers and exporters take."""

    def __init__(self, module: torch.nn.Module, call: Callable[..., tuple[Tensor, ...]]):
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.call(self.module, *tensors)


def iteration(
    model: Model, planner: Planner, module: torch.nn.Module, noise: Tensor, mean: Tensor, std: Tensor, z: Tensor,
    goal: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Mean and deviation (horizon, action) after one refit, as stable-worldmodel's CEMSolver does it, and the costs.

    `noise` (samples, horizon, action), `z` (history, latent), `goal` (1, latent).
    """
    found = mean + std * noise
    if planner.first_candidate_is_mean:
        found = torch.cat([mean.unsqueeze(0), found[1:]])
    if planner.low is not None or planner.high is not None:
        found = found.clamp(planner.low, planner.high)
    cost = model.score(module, z, goal, found)
    elites = found[cost.topk(planner.elites, largest=False).indices]
    return elites.mean(0), elites.std(0, correction=int(planner.unbiased_std)), cost


def iteration_work(model: Model, planner: Planner, inputs: Feeds, threads: int, folder: Path) -> Work:
    """One iteration from `inputs` (latent, goal, warm_mean), as a cross-entropy search refits."""
    programs = both(step_program(model, planner, injected_noise=True))
    outputs = (*STATE.values(), "costs")
    graphs, feeds = {}, {}
    for name, program in programs.items():
        prepare, iterate = split(program.entries["plan"])
        graphs[name] = Graph({key: iterate.outputs[key] for key in outputs})
        begin = interp.run(prepare, inputs, program.weights)
        drawn = np.random.default_rng(0).standard_normal((planner.samples, *begin["mean"].shape)).astype(np.float32)
        read = graphs[name].inputs()
        feeds[name] = {key: np.array(value) for key, value in {**begin, NOISE: drawn}.items() if key in read}
    call = Called(model.torch, lambda module, *tensors: iteration(model, planner, module, *tensors))
    names = (NOISE, *STATE, "z", "goal")
    return Work(
        "iteration", call, names, outputs, graphs, {k: p.weights for k, p in programs.items()}, feeds,
        searched(call, planner, feeds), threads, folder,
    )  # fmt: skip


def searched(call: torch.nn.Module, planner: Planner, feeds: Mapping[str, Feeds]) -> dict[str, tuple[Feeds, ...]]:
    """What the first iterations of a search are given: at least CALIBRATION candidates."""
    state = dict(feeds["upstream"])
    found: list[dict[str, np.ndarray]] = []
    rng = np.random.default_rng(1)
    while len(found) < max(SEARCHED, -(-CALIBRATION // planner.samples)):
        state[NOISE] = rng.standard_normal(state[NOISE].shape).astype(np.float32)
        found.append({key: state[key] for key in (NOISE, *STATE)})
        with torch.inference_mode():
            mean, std, _ = call(*(torch.from_numpy(state[key]) for key in (NOISE, *STATE, "z", "goal")))
        state |= {"mean": mean.numpy(), "std": std.numpy()}
    return {graph: tuple({**all_of, **each} for each in found) for graph, all_of in feeds.items()}


def encode_work(model: Model, threads: int, folder: Path) -> Work:
    """One encoding of one observation, drawn evenly over each port's range."""
    ports = model.ports_of("observation")
    tensors = [example(port) for port in ports]
    encode, weights = capture(model.torch, tensors, [p.name for p in ports], ["z"], call=model.encode)
    programs = both(Program(entries={"encode": encode}, weights=weights, ports=model.ports))
    rng = np.random.default_rng(0)
    drawn = tuple(
        {p.name: frame(rng, tuple(t.shape), t.numpy().dtype) for p, t in zip(ports, tensors, strict=True)}
        for _ in range(FRAMES)
    )
    return Work(
        "encode", Called(model.torch, lambda module, *seen: (model.encode(module, *seen),)),
        tuple(p.name for p in ports), ("z",), {k: p.entries["encode"] for k, p in programs.items()},
        {k: p.weights for k, p in programs.items()}, dict.fromkeys(programs, drawn[0]), dict.fromkeys(programs, drawn),
        threads, folder,
    )  # fmt: skip


def frame(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Pixels where whole numbers are wanted, else numbers of unit variance."""
    return rng.integers(0, 256, shape).astype(dtype) if dtype.kind == "u" else rng.standard_normal(shape).astype(dtype)


def both(program: Program) -> dict[str, Program]:
    return {"upstream": program, "exact": exact_program(program)}


def plan(planner: Planner, feeds: Feeds, run: Run) -> Callable[[], Feeds]:
    """All iterations of one plan, each with noise of its own; `run` does one iteration."""
    shape = feeds[NOISE].shape

    def step() -> Feeds:
        state = dict(feeds)
        for _ in range(planner.iterations):
            state[NOISE] = torch.randn(shape).numpy()
            found = run(state)
            state |= {key: found[after] for key, after in STATE.items()}
        return state

    return step

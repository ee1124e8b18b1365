"""The peers: upstream's own torch module, rolled out and refitted as upstream does it, each at its best settings.

All run one iteration of the cross-entropy method on latents: the same work as edgewm's step, sampling included.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgewm.models import Model
from edgewm.program import Planner

COMPILE_FLAGS = {"freezing": True}  # weights packed once; edgewm's are packed at build time too

Inputs = Mapping[str, np.ndarray]  # latent, goal, warm_mean
Step = Callable[[], object]


@dataclass(frozen=True)
class Peer:
    """`start` prepares it and returns the function that runs one plan; `lacks` says why it cannot run here."""

    name: str
    graph: str
    precision: str
    start: Callable[[Model, Planner, Inputs], Step]
    lacks: Callable[[], str | None] = lambda: None


def iteration(
    model: Model, planner: Planner, z: Tensor, goal: Tensor, mean: Tensor, std: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and deviation (horizon, action) after one refit, as stable-worldmodel's CEMSolver does it.

    `z` (history, latent), `goal` (1, latent), `noise` (samples, horizon, action).
    """
    found = mean + std * noise
    if planner.first_candidate_is_mean:
        found = torch.cat([mean.unsqueeze(0), found[1:]])
    if planner.low is not None or planner.high is not None:
        found = found.clamp(planner.low, planner.high)
    cost = model.score(model.torch, z, goal, found)
    elites = found[cost.topk(planner.elites, largest=False).indices]
    return elites.mean(0), elites.std(0, correction=int(planner.unbiased_std))


def plan(planner: Planner, inputs: Inputs, refit: Callable[..., tuple[Tensor, Tensor]]) -> Step:
    """All iterations of one plan, each with noise of its own; `refit` is `iteration` or what a compiler made of it."""
    z, goal, start = (torch.from_numpy(inputs[name]) for name in ("latent", "goal", "warm_mean"))
    shape = (planner.samples, *start.shape)
    spread = torch.full_like(start, planner.var_scale)

    def step() -> tuple[Tensor, Tensor]:
        mean, std = start, spread
        for _ in range(planner.iterations):
            mean, std = refit(z, goal, mean, std, torch.randn(shape))
        return mean, std

    return step


def torch_peer(compiled: bool, bf16: bool) -> Callable[[Model, Planner, Inputs], Step]:
    """torch.set_num_threads is the caller's."""

    def start(model: Model, planner: Planner, inputs: Inputs) -> Step:
        def refit(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return iteration(model, planner, *tensors)

        if compiled:
            torch.compiler.reset()
            refit = torch.compile(refit, fullgraph=True, dynamic=False, options=COMPILE_FLAGS)
        run = plan(planner, inputs, refit)

        def step() -> object:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return run()

        step()  # compiles
        return step

    return start


def no_compiler() -> str | None:
    """Why torch.compile cannot run here."""
    return None if shutil.which("g++") else "torch.compile needs g++, which is missing"


PEERS = (
    Peer("torch eager", "upstream", "fp32", torch_peer(False, False)),
    Peer("torch autocast", "upstream", "bf16", torch_peer(False, True)),
    Peer("torch.compile", "upstream", "fp32", torch_peer(True, False), no_compiler),
    Peer("torch.compile autocast", "upstream", "bf16", torch_peer(True, True), no_compiler),
)


def started(
    peers: Sequence[Peer], model: Model, planner: Planner, inputs: Inputs, say: Callable[[str], None]
) -> tuple[dict[Peer, Step], list[dict[str, str]]]:
    """The peers that run here, ready to be timed, and for each other one the reason."""
    ready: dict[Peer, Step] = {}
    skipped = []
    for peer in peers:
        reason = peer.lacks()
        if reason is None:
            began = time.perf_counter()
            try:
                ready[peer] = peer.start(model, planner, inputs)
            except (RuntimeError, ImportError, OSError) as fault:
                reason = f"{type(fault).__name__}: {str(fault).strip().splitlines()[0]}"
            say(f"{peer.name} {peer.precision}: {reason or f'ready after {time.perf_counter() - began:.0f} s'}")
        if reason is not None:
            skipped.append({"name": peer.name, "precision": peer.precision, "reason": reason})
    return ready, skipped

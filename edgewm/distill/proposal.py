"""A plan at a glance, trained for a model as it is: where its planner's search begins (`models/proposal.py`).

The network descends the cost of its own plans, as the model imagines them, in contexts and in what its plans lead to
from there. The planner's own plans say only how far candidates deviate around it, each number of a plan: many plans
cost the same, so to imitate those that searches happened to find is to learn their mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import EdgewmError
from ..models.proposal import FILE, Proposal
from ..options import Progress
from ..planner import committed_actions
from ..program import Planner
from .targets import write_bytes
from .teacher import CONTEXTS, HELD_OUT, Teacher, contexts, encoded, noise, searched

Array = np.ndarray
SEED = 1 << 19  # added to the first key of contexts: a search's are others
SMALLEST = float(torch.finfo(torch.float32).tiny)
RESTART = 0.25  # of contexts begin anew after each plan: an episode is four plans long on average


@dataclass(frozen=True)
class Settings:
    """What a proposal at the end is a function of, beside the model and its data: `contexts` to learn in, `steps` of
    `batch` plans, `width` of the network's two layers, held-out `searches` of the planner, a learning rate that falls
    to zero along half a cosine."""

    contexts: int = 4096
    steps: int = 1000
    batch: int = 64
    width: int = 256
    searches: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0


def latents(teacher: Teacher, n: int, seed: int) -> tuple[Array, Array]:
    """Of `n` observations and of their goals, (n, D) each."""
    drawn = contexts(teacher, n, seed)
    z, goal = (encoded(teacher.side, teacher.camera, drawn[key]) for key in ("observation", "goal"))
    return z, goal


def train(teacher: Teacher, settings: Settings, progress: Progress | None = None) -> tuple[Proposal, dict[str, Any]]:
    """The proposal for the teacher's model and planner, and what its plans cost beside the planner's, `regret`: the
    share that they lose of what planning gains. EdgewmError for too little data, and for losses that are no numbers."""
    say, model, planner = progress or (lambda stage, done: None), teacher.model, teacher.planner
    say("contexts", 0.0)
    starts, goals = map(torch.from_numpy, latents(teacher, settings.contexts, CONTEXTS + SEED + settings.seed * 4096))
    torch.manual_seed(settings.seed)
    found = Proposal(model.latent_dim, settings.width, planner.horizon, model.action_dim)
    found.centre.copy_(starts.mean(0))
    found.spread.fill_(max(float(starts.var(0).mean().sqrt()), SMALLEST))
    module, score = model.torch.requires_grad_(False), model.scored(planner.objective)
    costs = torch.vmap(lambda z, goal, plan: score(module, z[None], goal[None], plan[None])[0])
    optimizer = torch.optim.AdamW(found.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    rng, unit = np.random.default_rng([SEED, settings.seed]), None
    at = starts.clone()  # where each context's episode has come to
    for step in range(settings.steps):
        index = torch.from_numpy(rng.choice(len(at), min(settings.batch, len(at)), replace=False))
        here, there = at[index], goals[index]
        plans = found(here, there)
        inside = bounded(plans, planner)
        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
            cost = costs(here, there, inside).mean()
        unit = unit or max(cost.item(), SMALLEST)
        loss = cost / unit + (plans - inside).abs().mean()  # beyond the bounds a cost has no slope
        if not math.isfinite(loss.item()):
            raise EdgewmError(f"the loss is {loss.item()} at step {step}", teacher.name, "give a lower --learning-rate")
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        is_over = torch.from_numpy(rng.random((len(index), 1)) < RESTART)
        at[index] = torch.where(is_over, starts[index], played(teacher, here, inside.detach()))
        say(f"step {step + 1}/{settings.steps}", 0.1 + 0.8 * (step + 1) / settings.steps)
    found = found.eval().requires_grad_(False)
    say("searches", 0.9)
    return found, judged(teacher, found, settings)


def judged(teacher: Teacher, found: Proposal, settings: Settings) -> dict[str, Any]:
    """Searches of the planner in held-out contexts: gives the proposal its `std`, the root mean square of what lies
    between their plans and its own, and says what it is worth without any search."""
    planner, action, seed = teacher.planner, teacher.model.action_dim, HELD_OUT + SEED + settings.seed * 4096
    z, goal = latents(teacher, settings.searches, seed)
    own = bounded(found(torch.from_numpy(z), torch.from_numpy(goal)), planner).numpy()
    off, lost, gained = [], 0.0, 0.0
    for i in range(len(z)):
        looked = searched(teacher.side, planner, z[i], goal[i], noise(planner, action, seed, i))
        theirs, ours = teacher.side.score(z[i], goal[i], np.stack([looked.mean, own[i]]))
        lost, gained = lost + float(ours - theirs), gained + float(np.median(looked.costs[0]) - theirs)
        off.append(np.square(looked.mean - own[i]))
    found.std.copy_(torch.from_numpy(np.sqrt(np.mean(off, 0))).clamp_min(SMALLEST))
    return {"regret": lost / gained, "searches": len(z), "std": float(found.std.mean())}


def bounded(plans: Tensor, planner: Planner) -> Tensor:
    """The plans within the planner's bounds."""
    has_bounds = planner.low is not None or planner.high is not None
    return plans.clamp(planner.low, planner.high) if has_bounds else plans


@torch.no_grad()
def played(teacher: Teacher, z: Tensor, plans: Tensor) -> Tensor:
    """Latents (B, D) after what is played of plans (B, H, A) from `z` (B, D), as the model imagines it."""
    model, latents = teacher.model, [z]
    for t in range(1, committed_actions(teacher.planner) + 1):
        seen = slice(max(0, t - model.window), t)
        latents.append(model.predict(model.torch, torch.stack(latents[seen], 1), plans[:, seen]))
    return latents[-1]


def write(found: Proposal, folder: Path) -> None:
    """`proposal.safetensors` in a checkpoint's directory, whole or not at all."""
    weights: Mapping[str, Any] = {name: value.contiguous() for name, value in sorted(found.state_dict().items())}
    write_bytes(folder / FILE, save(weights))

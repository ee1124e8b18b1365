"""A plan at a glance, trained for a model as it is: where its planner's search begins (`models/proposal.py`).

A small network imitates the plans that the planner's own searches found, until held-out ones are met no better; what it
misses them by is what first candidates deviate by. Plans that descend the model's cost instead, through its gradients,
cost less than any search finds and reach fewer goals: they leave what the model has seen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import EdgewmError
from ..models.proposal import FILE, Proposal
from ..options import Progress
from ..program import Planner
from . import targets
from .teacher import CONTEXTS, Arrays, Teacher, check_gain, contexts, encoded, noise, searched

Array = np.ndarray
SEED = 1 << 19  # added to the first key of contexts: those of students are others
SHARD = 64  # searches
PLANS = "plans"  # where they are kept
HELD = 8  # one of so many contexts is held out
LOOK = 10  # steps
SMALLEST = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Settings:
    """What a proposal is a function of, beside the model and its data: `contexts` that the planner searches, at most
    `steps` of `batch` plans, `width` of the network's two layers."""

    contexts: int = 512
    steps: int = 400
    batch: int = 64
    width: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    seed: int = 0


def blind(planner: Planner) -> Planner:
    """The planner whose plans are imitated: it begins at nothing."""
    return replace(planner, proposal=False, warm_start=False)


def searches(teacher: Teacher, n: int, seed: int) -> Arrays:
    """The planner's plans in `n` contexts: `latent`, `goal_latent` (n, D), `plan` (n, H, A), `plan_cost` and
    `blind_cost` (n,), the median of blind candidates."""
    drawn, camera, action = contexts(teacher, n, seed), teacher.camera, teacher.model.action_dim
    z, goal = (encoded(teacher.side, camera, drawn[key]) for key in ("observation", "goal"))
    looked = [
        searched(teacher.side, teacher.planner, z[i], goal[i], noise(teacher.planner, action, seed, i))
        for i in range(n)
    ]
    plans = np.stack([found.mean for found in looked])
    return {
        "latent": z, "goal_latent": goal, "plan": plans.astype(np.float32), "plan_cost": costs(teacher, z, goal, plans),
        "blind_cost": np.array([np.median(found.costs[0]) for found in looked], np.float32),
    }  # fmt: skip


def costs(teacher: Teacher, z: Array, goal: Array, plans: Array) -> Array:
    """(n,), of a plan (n, H, A) in each context."""
    rows = zip(z, goal, plans, strict=True)
    return np.array([teacher.side.score(*pair, plan[None])[0] for *pair, plan in rows], np.float32)


def gathered(teacher: Teacher, settings: Settings, cache: Path | None, say: Progress) -> Arrays:
    """All searches, kept in a folder of `cache` where one is given."""
    if cache is not None:
        cache = cache / PLANS
        targets.open_folder(cache, {
            "teacher": dict(teacher.model.files) or teacher.name, "data": teacher.data, "version": 1,
            "planner": asdict(teacher.planner), "seed": settings.seed, "shard": SHARD,
        })  # fmt: skip
    found = []
    for i in range(0, settings.contexts, SHARD):
        say(f"searches {i}/{settings.contexts}", 0.9 * i / settings.contexts)
        n, seed = min(SHARD, settings.contexts - i), CONTEXTS + SEED + settings.seed * 4096 + i // SHARD
        made = lambda n=n, seed=seed: searches(teacher, n, seed)  # noqa: E731
        found.append(made() if cache is None else targets.shard(cache, f"plans-{i // SHARD:04d}-{n}", made))
    return {key: np.concatenate([shard[key] for shard in found]) for key in found[0]}


def train(
    teacher: Teacher, settings: Settings, cache: Path | None = None, progress: Progress | None = None
) -> tuple[Proposal, dict[str, Any]]:
    """The proposal for the teacher's model and planner, and what it is worth in held-out contexts: `regret`, the share
    of what planning gains that its plans lose without a search, and `missed`, of the variance of plans. EdgewmError for
    too little data, and for losses that are no numbers."""
    say = progress or (lambda stage, done: None)
    made = gathered(teacher, settings, cache, say)
    found, missed = learned(made, settings, say, teacher.name, teacher.model.device)
    held = {key: value[::HELD] for key, value in made.items()}
    z, goal = (torch.from_numpy(held[key]).to(teacher.model.device) for key in ("latent", "goal_latent"))
    own = np.clip(found(z, goal).cpu().numpy(), teacher.planner.low, teacher.planner.high)
    lost = costs(teacher, held["latent"], held["goal_latent"], own) - held["plan_cost"]
    gained = held["blind_cost"] - held["plan_cost"]
    check_gain(gained.sum(), teacher.name)
    return found, {"regret": float(lost.sum() / gained.sum()), "missed": missed, "held_out": len(own)}


def learned(
    made: Arrays, settings: Settings, say: Progress, where: str, device: torch.device
) -> tuple[Proposal, float]:  # fmt: skip
    """The network that imitates plans, from the latents that stand beside them, trained on the device, and what it
    misses of their variance where it was not trained."""
    z, goal, plans = (torch.from_numpy(made[key]).to(device) for key in ("latent", "goal_latent", "plan"))
    held = torch.arange(len(z), device=device) % HELD == 0
    seen = np.flatnonzero(np.arange(len(z)) % HELD)
    torch.manual_seed(settings.seed)
    found = Proposal(z.shape[1], settings.width, *plans.shape[1:]).to(device)
    found.centre.copy_(z.mean(0))
    found.spread.fill_(max(float(z.var(0).mean().sqrt()), SMALLEST))
    optimizer = torch.optim.AdamW(found.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    best, least = copy.deepcopy(found), math.inf
    for step in range(settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        index = torch.from_numpy(seen[rng.integers(len(seen), size=settings.batch)]).to(device)
        loss = (found(z[index], goal[index]) - plans[index]).square().mean()
        if not math.isfinite(loss.item()):
            raise EdgewmError(f"the loss is {loss.item()} at step {step}", where, "give a lower --learning-rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        is_look = (step + 1) % LOOK == 0 or step + 1 == settings.steps
        if is_look and (missed := float(_off(found, z, goal, plans)[held].mean())) < least:
            best, least = copy.deepcopy(found), missed
        say(f"step {step + 1}/{settings.steps}", 0.9 + 0.1 * (step + 1) / settings.steps)
    best = best.eval().requires_grad_(False)
    off = _off(best, z, goal, plans)[held]
    best.std.copy_(off.mean(0).sqrt().clamp_min(SMALLEST))
    return best, float(off.mean() / plans[held].var())


@torch.no_grad()
def _off(found: Proposal, z: Tensor, goal: Tensor, plans: Tensor) -> Tensor:
    """Squares of what plans are missed by."""
    return (found(z, goal) - plans).square()


def write(found: Proposal, folder: Path) -> None:
    """`proposal.safetensors` in a checkpoint's directory, whole or not at all."""
    weights: Mapping[str, Any] = {name: value.cpu().contiguous() for name, value in sorted(found.state_dict().items())}
    targets.write_bytes(folder / FILE, save(weights))

"""What a run is a function of: its settings, the teacher's answers on disk, and where the student's planner begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..models.proposal import Proposal
from ..options import Progress
from ..program import Planner
from . import losses, targets
from . import proposal as beginning
from .shapes import Shape
from .space import Space, space_of
from .teacher import CONTEXTS, FRAMES, GROUPS, HELD_OUT, Arrays, Teacher, bank, frames, held_out

Array = np.ndarray
SHARD_FRAMES, SHARD_CONTEXTS = 1024, 32
LEARNING, TUNING = (3e-3, 3e-5), (5e-4, 5e-6)  # of a fresh predictor, and of one that begins with its teacher's layers
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """Everything that the weights at the end are a function of, beside the teacher and its data.

    `contexts` are searched by the teacher's planner once, `round_contexts` by the student's in each round of
    `round_steps`; a step takes `step_contexts`, half of each, and `step_frames` pictures more. The learning rate goes
    from the first number to the second along half a cosine. `average` is what the running average of weights, which is
    the student, keeps of itself in a step. Without a better rank for `patience` rounds the run ends. `proposal` says
    how one is trained for the student, where its planner begins at one. `mixed`: the student's products are done in
    bf16 while it learns, its weights, losses and moments stay float32 (Micikevicius et al. 2018,
    https://arxiv.org/abs/1710.03740; bf16 needs no loss scaling).
    """

    shape: Shape
    planner: Planner
    precision: str = "fp32"
    weights: Mapping[str, float] = field(default_factory=lambda: losses.weighing(losses.DEFAULT))
    proposal: beginning.Settings | None = None
    start: str = "teacher"  # its encoder and a predictor begun from it; encoder: that alone; random: neither
    steps: int = 4000
    round_steps: int = 400
    learning_rate: tuple[float, float] = LEARNING
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0
    average: float = 0.995
    frames: int = 8192
    round_frames: int = 1024
    contexts: int = 256
    round_contexts: int = 64
    held_out: int = 24
    step_contexts: int = 16
    step_frames: int = 64
    patience: int = 3
    mixed: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """What a run learns from: shards of frames and banks on disk, held-out searches, the student's space; facts and
    where the student's planner begins, None for zero, on the teacher's device."""

    frames: list[Arrays]
    banks: list[Arrays]
    held: Arrays
    space: Space
    facts: losses.Facts
    proposal: Proposal | None = None


# ------------------------------------------------------------------------------------------------------- material


def bytes_of(settings: Settings, teacher: Teacher) -> int:
    """What the teacher's answers take on disk, nearly."""
    model, planner = teacher.model, settings.planner
    picture, dim, action = math.prod(model.ports_of("observation")[0].shape), model.latent_dim, model.action_dim
    group = min(planner.samples, 2 * planner.elites + max(planner.elites // 2, 4)) * GROUPS * planner.horizon
    searched = planner.iterations * planner.samples * planner.horizon * action * 4
    each = 2 * picture + group * (4 * action + 2 * dim)
    return settings.frames * (picture + 4 * dim) + settings.contexts * each + settings.held_out * searched


def material(settings: Settings, teacher: Teacher, cache: Path, progress: Progress, notice: Notice) -> Material:
    """The teacher's answers, made or read."""
    planner, shape = settings.planner, settings.shape
    begun = settings.proposal and {"settings": asdict(settings.proposal), "planner": asdict(teacher.model.planner)}
    targets.open_folder(cache, {
        "teacher": dict(teacher.model.files) or teacher.name, "data": teacher.data, "planner": asdict(planner),
        "seed": settings.seed, "shards": [SHARD_FRAMES, SHARD_CONTEXTS], "held_out": settings.held_out, "version": 1,
        "proposal": begun,
    })  # fmt: skip
    seed, done = settings.seed * 4096, 0
    whole = settings.frames // SHARD_FRAMES + settings.contexts // SHARD_CONTEXTS + 1

    def kept(name: str, make: Callable[[], Arrays]) -> Arrays:
        nonlocal done
        done += 1
        progress(f"teacher's answers {done}/{whole + 2}", min(done / (whole + 2), 1.0))
        return targets.shard(cache, name, make, notice)

    def sizes(n: int, each: int) -> list[int]:
        return [min(each, n - i) for i in range(0, n, each)]

    seen = [
        kept(f"frames-{i:04d}-{n}", lambda i=i, n=n: frames(teacher, n, FRAMES + seed + i))
        for i, n in enumerate(sizes(settings.frames, SHARD_FRAMES))
    ]
    banks = [
        kept(f"contexts-{i:04d}-{n}", lambda i=i, n=n: bank(teacher, n, CONTEXTS + seed + i))
        for i, n in enumerate(sizes(settings.contexts, SHARD_CONTEXTS))
    ]
    held = kept(f"held-out-{settings.held_out}", lambda: held_out(teacher, settings.held_out, HELD_OUT + seed))
    latents = np.concatenate([s["latents"] for s in seen])
    first = banks[0]
    space = space_of(latents, shape.width, first["goal_latent"], first["futures"], first["costs"])
    own = space.of(latents)
    probe = None
    if "states" in seen[0]:
        probe = _probe(own, np.concatenate([s["states"] for s in seen]))
    device = teacher.model.device
    variance = torch.tensor(float(own.var(0).sum()), device=device)
    known = None if probe is None else torch.from_numpy(probe).to(device)
    facts = losses.Facts(variance, planner.elites, known)
    proposal = None if settings.proposal is None else proposed(settings.proposal, teacher, space, cache, progress)
    return Material(seen, banks, held, space, facts, proposal)


def proposed(
    settings: beginning.Settings, teacher: Teacher, space: Space, cache: Path, progress: Progress
) -> Proposal:  # fmt: skip
    """The plans of the teacher's own searches, imitated from the student's latents."""
    searcher = replace(teacher, planner=beginning.blind(teacher.model.planner))
    made = beginning.gathered(searcher, settings, cache, progress)
    made |= {key: space.of(made[key]) for key in ("latent", "goal_latent")}
    return beginning.learned(made, settings, progress, teacher.name, teacher.model.device)[0]


def _probe(latents: Array, states: Array) -> Array:
    """Ridge regression (D, S) from latents to states in units of their spread, no intercept."""
    x = latents.astype(np.float64) - latents.mean(0)
    y = (states - states.mean(0)) / np.maximum(states.std(0), np.finfo(np.float32).eps)
    ridge = 1e-6 * np.trace(x.T @ x) / x.shape[1]
    return np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y).astype(np.float32)

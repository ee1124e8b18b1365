"""What a teacher answers: latents of frames, futures of candidates, searches of its planner; and whether it is fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..errors import EdgewmError
from ..judge.imagine import model_actions
from ..judge.sides import Search, Side, blind_cost, rollout, search, upstream
from ..judge.sources import Source
from ..models import Model
from ..ops import NUMPY
from ..program import Planner
from .devices import HOST

Array = np.ndarray
Arrays = dict[str, Array]
# First keys of streams. The judge's seeds are what a user gives, so these are far from any that one would.
FRAMES, CONTEXTS, HELD_OUT, FITNESS = (0x0D157000 + i * 2**20 for i in range(4))
LEAST_EXPLAINED = 0.5  # of the variance of real latents, at the horizon: what the judge's suite `horizon` counts to
FITNESS_ROLLOUTS = 48
GROUPS = 3  # iterations of a search that become groups of candidates


@dataclass(frozen=True)
class Teacher:
    """A model, run by torch where it is, with its planner and where its data come from. The planner is the student's:
    students are trained on the same device."""

    model: Model
    side: Side
    planner: Planner
    source: Source
    name: str
    data: str | None = None  # SHA-256 of recorded data

    @property
    def camera(self) -> str:
        return self.model.ports_of("observation")[0].name


def teacher_of(name: str, model: Model, planner: Planner, source: Source, data: str | None = None) -> Teacher:
    """EdgewmError for one without contexts or trajectories, or with a planner that looks at several frames."""
    if planner.history != 1:
        raise EdgewmError(
            f"the planner looks at {planner.history} frames", "planner settings", "distil for --history 1"
        )
    if planner.objective != "final":
        raise EdgewmError(f"the objective is {planner.objective}", "planner settings", "distil for --objective final")
    for kind in ("contexts", "rollouts"):
        if getattr(source, kind) is None:
            raise EdgewmError(
                f"nothing to learn from: the teacher brings no {kind}", name,
                "give --data DIRECTORY of recorded episodes, or FILE.safetensors with contexts and trajectories",
            )  # fmt: skip
    side = upstream(model, replace(planner, proposal=True))  # `searched` tells whether it is asked to propose
    if model.device != HOST:
        check_runs(side, model, planner, name)
    return Teacher(model, side, planner, source, name, data)


def check_runs(side: Side, model: Model, planner: Planner, where: str) -> None:
    """EdgewmError for a model that does not run where it is: one that makes tensors of its own somewhere else."""
    blank = {p.name: np.zeros(p.shape, NUMPY[p.dtype]) for p in model.ports_of("observation")}
    try:
        z = side.encode(blank)
        side.score(z, z, np.zeros((1, planner.horizon, model.action_dim), np.float32))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as fault:
        raise EdgewmError(
            f"the model does not run on {model.device}: {str(fault).splitlines()[0]}", where,
            "let it make its tensors on the device of those that it is given, or give --device cpu",
        ) from fault  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- data


def frames(teacher: Teacher, n: int, seed: int) -> Arrays:
    """`frames` (n, ...) of trajectories, one each model action, their `latents` (n, D) and, where known, `states`."""
    block, periods = teacher.planner.action_block, teacher.planner.horizon * teacher.planner.action_block
    each = teacher.planner.horizon + 1
    seen, shown = [], []
    for pixels, _, states in teacher.source.rollouts(-(-n // each), periods, seed):
        seen.append(pixels[::block])
        shown.append(None if states is None else states[::block])
    found = np.concatenate(seen)[:n] if seen else np.empty((0,))
    enough(len(found), n, "frames", teacher.name)
    out = {"frames": found, "latents": encoded(teacher.side, teacher.camera, found)}
    if all(s is not None for s in shown):
        out["states"] = np.concatenate(shown)[:n].astype(np.float32)
    return out


def contexts(teacher: Teacher, n: int, seed: int) -> Arrays:
    """`observation` and `goal` (n, ...), pictures."""
    pairs = list(teacher.source.contexts(n, seed))
    enough(len(pairs), n, "contexts", teacher.name)
    camera = teacher.camera
    return {
        "observation": np.stack([o[camera] for o, _ in pairs]), "goal": np.stack([g[camera] for _, g in pairs]),
    }  # fmt: skip


def enough(found: int, wanted: int, what: str, where: str) -> None:
    """EdgewmError that says how much is needed, where there is less."""
    if found < wanted:
        raise EdgewmError(
            f"too little data: {found} {what}, {wanted} are needed", where,
            f"record more, or ask for fewer: --{what} {found}" if found else "record some",
        )  # fmt: skip


def encoded(side: Side, camera: str, pictures: Array) -> Array:
    """Latents (N, D), float32."""
    return np.stack([side.encode({camera: np.array(picture)}) for picture in pictures]).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- searches


def noise(planner: Planner, action_dim: int, seed: int, i: int) -> Array:
    """(iterations, samples, horizon, action), of context `i` of a stream."""
    shape = (planner.iterations, planner.samples, planner.horizon, action_dim)
    return np.random.default_rng([seed, i]).standard_normal(shape, np.float32)


def searched(side: Side, planner: Planner, z: Array, goal: Array, white: Array) -> Search:
    """What the planner looks at, from a latent to a goal's, with costs of `side`; from the side's proposal where the
    planner begins at one."""
    begin = side.propose(z, goal) if planner.proposal else ()
    return search(lambda candidates: side.score(z, goal, candidates), planner, white, *begin)


def groups_of(found: Search, planner: Planner, rng: np.random.Generator) -> Array:
    """Candidates (G, K, H, A) of GROUPS iterations: the elites, those that just missed, and as many others."""
    iterations, samples = found.costs.shape
    k = planner.elites
    size = min(samples, 2 * k + max(k // 2, 4))
    picked = []
    for i in np.sort(rng.permutation(np.arange(max(iterations, GROUPS)) % iterations)[:GROUPS]):
        order = np.argsort(found.costs[i], kind="stable")
        near = order[: k + (size - k) // 2]
        far = rng.permutation(order[len(near) :])[: size - len(near)]
        picked.append(found.candidates[i, np.concatenate([near, far])])
    return np.stack(picked).astype(np.float32)


def labelled(teacher: Teacher, z: Array, goal: Array, candidates: Array) -> tuple[Array, Array]:
    """The teacher's futures (G, K, H, D) of candidates (G, K, H, A) from `z` (D,), float16, and their costs (G, K)."""
    flat = candidates.reshape(-1, *candidates.shape[2:])
    latents = rollout(teacher.side, z, flat)[:, 1:].astype(np.float16)
    costs = np.asarray(teacher.side.score(z, goal, flat), np.float32)
    return latents.reshape(*candidates.shape[:3], -1), costs.reshape(candidates.shape[:2])


def bank(teacher: Teacher, n: int, seed: int, searcher: Side | None = None) -> Arrays:
    """What planning in `n` contexts looks at, and what the teacher says of it; the searches are `searcher`'s, a
    student's, or the teacher's own.

    `observation`, `goal` pictures; `latent`, `goal_latent` (n, D) the teacher's; `candidates` (n, G, K, H, A),
    `futures` (n, G, K, H, D) float16, `costs` (n, G, K).
    """
    drawn = contexts(teacher, n, seed)
    camera, action = teacher.camera, teacher.model.action_dim
    z, goal = (encoded(teacher.side, camera, drawn[key]) for key in ("observation", "goal"))
    by = searcher or teacher.side
    own, own_goal = (z, goal) if searcher is None else (encoded(by, camera, drawn[k]) for k in ("observation", "goal"))
    picked, futures, costs = [], [], []
    for i in range(n):
        found = searched(by, teacher.planner, own[i], own_goal[i], noise(teacher.planner, action, seed, i))
        picked.append(groups_of(found, teacher.planner, np.random.default_rng([seed, i, 1])))
        future, cost = labelled(teacher, z[i], goal[i], picked[-1])
        futures.append(future)
        costs.append(cost)
    made = {"latent": z, "goal_latent": goal, "candidates": np.stack(picked), "futures": np.stack(futures)}
    return {**drawn, **made, "costs": np.stack(costs)}


def held_out(teacher: Teacher, n: int, seed: int) -> Arrays:
    """Whole searches of the teacher's planner in `n` contexts, to look at students with: `candidates` (n, I, S, H, A),
    `costs` (n, I, S), `plan_cost` (n,) of the teacher's plan, `blind_cost` (n,), the median of blind candidates."""
    drawn = contexts(teacher, n, seed)
    camera, action = teacher.camera, teacher.model.action_dim
    z, goal = (encoded(teacher.side, camera, drawn[key]) for key in ("observation", "goal"))
    kept: Mapping[str, list[Any]] = {"candidates": [], "costs": [], "plan_cost": [], "blind_cost": []}
    for i in range(n):
        white = noise(teacher.planner, action, seed, i)
        found = searched(teacher.side, teacher.planner, z[i], goal[i], white)
        kept["candidates"].append(found.candidates.astype(np.float32))
        kept["costs"].append(found.costs)
        kept["plan_cost"].append(float(teacher.side.score(z[i], goal[i], found.mean[None])[0]))
        kept["blind_cost"].append(blind_cost(teacher.side, teacher.planner, z[i], goal[i], white))
    made = {name: np.asarray(value, np.float32) for name, value in kept.items()}
    return {**drawn, "latent": z, "goal_latent": goal, **made}


# -------------------------------------------------------------------------------------------------------- fitness


def check_fit(teacher: Teacher) -> dict[str, float]:
    """What a student could learn of this teacher: the share of real futures that it foresees at the planner's horizon.

    EdgewmError for a teacher that foresees less than half, or whose planning gains nothing over blind candidates.
    """
    planner, port = teacher.planner, teacher.model.ports_of("action")[0]
    periods = planner.horizon * planner.action_block
    real, imagined = [], []
    for pixels, actions, _ in teacher.source.rollouts(FITNESS_ROLLOUTS, periods, FITNESS):
        ends = encoded(teacher.side, teacher.camera, pixels[[0, -1]])
        taken = model_actions(actions, port, planner)
        real.append(ends[1])
        imagined.append(rollout(teacher.side, ends[0], taken[None])[0, -1])
    enough(len(real), min(FITNESS_ROLLOUTS, 8), "trajectories", teacher.name)
    spread = np.var(real, 0).sum()
    missed = float(np.square(np.subtract(imagined, real)).sum(1).mean() / spread) if spread > 0 else np.inf
    if not missed <= 1 - LEAST_EXPLAINED:
        raise EdgewmError(
            f"the teacher foresees too little: at its planner's horizon it explains {max(1 - missed, -9.99):.2f} of "
            f"real latents' variance, {LEAST_EXPLAINED} are needed",
            teacher.name, "train it longer: a student can be no better",
        )  # fmt: skip
    seen = held_out(teacher, 4, FITNESS)
    check_gain(seen["blind_cost"] - seen["plan_cost"], teacher.name)
    return {"explained_at_horizon": 1 - missed}


def check_gain(gain: Array, where: str) -> None:
    """EdgewmError where plans cost no less than blind candidates, by `gain` in each context or on average."""
    if not np.all(np.asarray(gain) > 0):
        raise EdgewmError(
            "planning gains nothing: the teacher's plans cost no less than what is drawn blindly", where,
            "give the planner more samples or iterations, or train the teacher longer",
        )  # fmt: skip

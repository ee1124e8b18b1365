"""Suite `general`: scenes outside the training range. Does the compressed model follow the full one there, too?

In each shifted scene both models score what the full model's planner looks at, and the compressed one plans on the same
noise; recorded futures of the scene show how far each strays from what comes. What the full model itself cannot do
there is reported and judged by nobody: the gates are about what compression adds to it. Samples are pooled over shifts,
so none is looked at in two of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from .. import statistics
from ..options import Progress
from .gates import finite, judged, ratio_interval
from .imagine import Subjects, encoded, follow, model_actions
from .sides import elites_of, search, start_of
from .sources import Pairs, Rollouts, Shift, Source

Array = np.ndarray
Figures = dict[str, Any]
Rows = list[dict[str, Any]]

_NOISE, _TURN = 0x6E4E, 0x7095
PARTS = ("contexts", "rollouts")  # of a shift


def run(subjects: Subjects, source: Source, n: int, seed: int, progress: Progress) -> tuple[Figures, Rows, list[str]]:
    """Figures, gates, and what was left out. `n` contexts and as many trajectories, shared out among the shifts."""
    if source.shifts is None or not (shifts := dict(source.shifts())):
        return {}, [], ["no shifted scenes, and no contexts to make them of"]
    to_plan, to_follow = ([name for name, s in shifts.items() if getattr(s, part) is not None] for part in PARTS)
    share = -(-n // len(to_follow)) if to_follow else 0
    usual = _strays(subjects, source.rollouts(share, subjects.periods, seed)) if share and source.rollouts else None
    found, planned, strayed = {}, [], []
    for i, (name, shift) in enumerate(shifts.items()):
        contexts, error = [], None
        if name in to_plan:
            turn, turns = to_plan.index(name), len(to_plan)
            pairs = _dealt(shift, shift.contexts, n, seed, turn, turns)
            contexts = _planned(subjects, pairs, range(turn, n, turns), seed)
        if name in to_follow:
            draw = partial(_as_far, shift, subjects.periods)
            error = _strays(subjects, _dealt(shift, draw, n, seed, to_follow.index(name), len(to_follow)))
        found[name] = _figures(subjects, contexts, error)
        planned += contexts
        strayed += [] if error is None else list(error.T)
        progress(f"general: {name}", (i + 1) / len(shifts))
    rows, left_out = [], []
    if planned:
        rows += _plan_gates(planned)
    if strayed:
        error = np.array(strayed)
        added, *bounds = ratio_interval(error[:, 1] - error[:, 0], 1 + error[:, 0])
        rows.append(judged("shifted_error_added", added, len(error), bounds))
    else:
        left_out.append("no recorded futures of shifted scenes")
    figures = {"shifts": found, "usual_error": None if usual is None else [_root(e) for e in usual]}
    return figures, rows, left_out


def _dealt(shift: Shift, draw: Callable[[int, int], Iterable], n: int, seed: int, turn: int, turns: int) -> Iterable:
    """One shift's share of `n` draws (n, seed): every `turns`th of those that all shifts make of one seed, from its
    turn on; or as many of a seed of its own where that gives others."""
    if not shift.is_endless:
        return islice(draw(n, seed), turn, None, turns)
    own = int(np.random.default_rng([_TURN, seed, turn]).integers(2**31))
    return draw(len(range(turn, n, turns)), own)


def _as_far(shift: Shift, steps: int, n: int, seed: int) -> Rollouts:
    return shift.rollouts(n, steps, seed)


def _root(squared: Array) -> float | None:
    return finite(math.sqrt(squared.mean())) if np.isfinite(squared).all() else None


def _figures(subjects: Subjects, contexts: list[tuple], error: Array | None) -> Figures:
    """Of one shift; pairs are (full, compressed)."""
    figures: Figures = {"contexts": len(contexts)}
    if contexts:
        rank, shared, plans, blind = (np.array(column) for column in zip(*contexts, strict=True))
        gain = (blind - plans[:, 0]).sum()
        figures |= {
            "spearman_min": finite(rank.min()),
            "elite_overlap": finite(shared.mean()),
            "regret": finite((plans[:, 1] - plans[:, 0]).sum() / gain),
            # of a candidate drawn blindly: what planning leaves, as each model's plan is seen by the full one
            "cost_left": [finite(p.sum() / blind.sum()) for p in plans.T],
        }
    if error is not None:
        figures["error"] = [_root(e) for e in error]
    return figures


def _planned(subjects: Subjects, pairs: Pairs, places: Iterable[int], seed: int) -> list[tuple]:
    """For each context, on noise of its place among all: Spearman, elite overlap, costs under the full model of both
    plans, cost of a blind draw."""
    full, compressed, planner = subjects.full, subjects.compressed, subjects.planner
    width = planner.action_block * int(np.prod(subjects.action.shape))
    shape = (planner.iterations, planner.samples, planner.horizon, width)
    found = []
    for i, (observation, goal) in zip(places, pairs, strict=False):  # there may be fewer
        noise = np.random.default_rng([_NOISE, seed, i]).standard_normal(shape, np.float32)
        z, target = full.encode(observation), full.encode(goal)
        own, own_target = compressed.encode(observation), compressed.encode(goal)
        looked = search(lambda c: full.score(z, target, c), planner, noise, *start_of(full, z, target))  # noqa: B023
        scored = np.stack([compressed.score(own, own_target, c) for c in looked.candidates])
        plans = np.stack([looked.mean, np.asarray(compressed.plan(observation, goal, noise), np.float64)])
        k = planner.elites
        shared = [len(np.intersect1d(e, elites_of(c, k))) / k for e, c in zip(looked.elites, scored, strict=True)]
        rank = statistics.spearman(looked.costs.ravel(), scored.ravel())
        costs = np.asarray(full.score(z, target, plans), np.float64)
        found.append((rank, float(np.mean(shared)), costs, float(np.median(looked.costs[0]))))
    return found


def _plan_gates(planned: list[tuple]) -> Rows:
    rank, _, plans, blind = (np.array(column) for column in zip(*planned, strict=True))
    regret, *bounds = ratio_interval(plans[:, 1] - plans[:, 0], blind - plans[:, 0])
    return [
        judged("shifted_rank", float(rank.min()), len(rank)), judged("shifted_regret", regret, len(rank), bounds),
    ]  # fmt: skip


def _strays(subjects: Subjects, rollouts: Rollouts) -> Array | None:
    """Squared errors (2, N) at the planner's horizon against what came, over the variance of latents there."""
    drawn = list(rollouts)
    if not drawn:
        return None
    actions = np.stack([model_actions(a, subjects.action, subjects.planner) for _, a, _ in drawn])
    first, last = (np.stack([frames[at] for frames, _, _ in drawn]) for at in (0, -1))
    starts = [encoded(side, subjects.camera, first) for side in subjects.both]
    came = encoded(subjects.full, subjects.camera, last)
    variance = np.concatenate([starts[0], came]).var(0).sum()
    ends = [follow(side, z[:, None], actions)[:, -1] for side, z in zip(subjects.both, starts, strict=True)]
    return np.stack([np.square(end - came).sum(-1) for end in ends]) / variance

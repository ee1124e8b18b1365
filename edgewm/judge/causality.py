"""Suite `causality`: do actions, and only actions already taken, change what is imagined?

Counterfactuals: from one start two sequences of actions lead apart; what the second changes is compared with what it
changes in the full model and, where a simulator can go both ways, in the world (`counterfactual_divergence` of
worldproof, in latents). Recoverability: how much of an action a ridge regression reads from the latents before and
after it, out of fold. Prefix causality: two sets of candidates share their first actions in every other row; until the
paths part, the latents of these rows may not differ in a single bit, whatever stands in the rows between and whatever
comes later.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..options import Progress
from ..program import Planner
from .gates import finite, judged, ratio_interval
from .imagine import Subjects, encoded, follow, model_actions
from .sides import Side, within_bounds
from .sources import Source

Array = np.ndarray
Figures = dict[str, Any]
Rows = list[dict[str, Any]]

FOLDS = 5
RIDGE = 1e-3  # of the features' variance, as torch_world's probes have it
ROWS_PER_FEATURE = 8  # transitions that the regression needs for each number of two latents


def run(subjects: Subjects, source: Source, n: int, seed: int, progress: Progress) -> tuple[Figures, Rows, list[str]]:
    """Figures, gates, and what was left out for want of evidence."""
    rng = np.random.default_rng([0xCA5E, seed])
    drawn = list(source.rollouts(n, subjects.periods, seed + 2))
    if not drawn:
        return {}, [judged("action_effect", math.nan, 0)], []
    first = np.stack([frames[0] for frames, _, _ in drawn])
    starts = [encoded(side, subjects.camera, first) for side in subjects.both]
    progress("causality", 0.2)
    figures, rows = counterfactual(subjects, starts, drawn)
    progress("causality", 0.3)
    for part in (recoverable(subjects, starts, rng), prefix(subjects, starts, rng)):
        figures, rows = figures | part[0], rows + part[1]
    progress("causality", 0.7)
    left_out = []
    if source.branches is None:
        left_out.append("no two real futures from one start")
    else:
        found, judgements = real(subjects, source, n, seed)
        figures, rows = figures | found, rows + judgements
    progress("causality", 1.0)
    return figures, rows, left_out


def counterfactual(subjects: Subjects, starts: list[Array], drawn: list) -> tuple[Figures, Rows]:
    """What another trajectory's actions change, against what they change in the full model."""
    actions = np.stack([model_actions(a, subjects.action, subjects.planner) for _, a, _ in drawn])
    apart = [_divergence(side, z, actions, np.roll(actions, 1, 0))
             for side, z in zip(subjects.both, starts, strict=True)]  # fmt: skip
    error = np.square(apart[1] - apart[0])[:, -1].sum(-1)
    size = np.square(apart[0])[:, -1].sum(-1)
    ratio = [math.sqrt(v) if v >= 0 else math.nan for v in ratio_interval(error, size)]
    return {"starts": len(actions)}, [judged("action_effect", ratio[0], len(actions), ratio[1:])]


def _divergence(side: Side, start: Array, a: Array, b: Array) -> Array:
    """Latents (N, H + 1, D) under `b` less those under `a`, both (N, H, A), from `start` (N, D)."""
    return follow(side, start[:, None], b) - follow(side, start[:, None], a)


def real(subjects: Subjects, source: Source, n: int, seed: int) -> tuple[Figures, Rows]:
    """The same against two real futures, by step."""
    branches = list(source.branches(n, subjects.periods, seed))
    blocks = np.stack([[model_actions(a, subjects.action, subjects.planner) for a in b.actions] for b in branches])
    frames = np.stack([b.frames[:, :: subjects.block] for b in branches])  # (N, 2, H + 1, ...)
    flat = encoded(subjects.full, subjects.camera, frames.reshape(-1, *frames.shape[3:]))
    futures = flat.reshape(*frames.shape[:3], -1)
    truth = futures[:, 1] - futures[:, 0]
    own = encoded(subjects.compressed, subjects.camera, frames[:, 0, 0])
    apart = [
        _divergence(side, start, blocks[:, 0], blocks[:, 1])
        for side, start in zip(subjects.both, (futures[:, 0, 0], own), strict=True)
    ]
    error = np.stack([np.square(x - truth).sum(-1) for x in apart])  # (2, N, H + 1)
    size = np.square(truth).sum(-1)
    added, *bounds = ratio_interval(error[1, :, -1] - error[0, :, -1], size[:, -1])
    variance = futures.reshape(-1, futures.shape[-1]).var(0).sum()

    def by_step(squared: Array) -> list[float | None]:
        return [finite(v) for v in np.sqrt(squared.mean(0) / variance)]

    figures = {
        "branches": len(branches),
        "divergence_by_step": {
            "real": by_step(size), "full": by_step(np.square(apart[0]).sum(-1)),
            "compressed": by_step(np.square(apart[1]).sum(-1)),
        },
        "divergence_error": [finite(math.sqrt(e[:, -1].sum() / size[:, -1].sum())) for e in error],
    }  # fmt: skip
    return figures, [judged("counterfactual_added", added, len(branches), bounds)]


def recoverable(subjects: Subjects, starts: list[Array], rng: np.random.Generator) -> tuple[Figures, Rows]:
    """Out-of-fold R2 of the second action from the latents before and after it; a start is one unit.

    A model action is a block of periods, of which the latents show the outcome: so the gate is on the block's sum.
    """
    n, width = starts[0].shape
    if n < FOLDS:
        return {}, [judged("recoverability_loss", math.nan, n)]
    each = max(1, -(-ROWS_PER_FEATURE * 2 * width // n))
    actions = candidates(subjects.planner, rng, (n * each, 2, action_dim(subjects)))
    unit = np.repeat(np.arange(n), each)
    left = []
    for side, start in zip(subjects.both, starts, strict=True):
        latents = follow(side, np.repeat(start, each, 0)[:, None], actions)
        left.append(_out_of_fold(latents[:, 1:].reshape(len(actions), -1), actions[:, 1], unit % FOLDS))
    drawn = actions[:, 1] - actions[:, 1].mean(0)

    def of_units(rows: Array) -> Array:
        return np.array([np.square(rows[unit == i]).sum() for i in range(n)])

    def net(rows: Array) -> Array:
        """What a block of periods commands altogether: the regression is linear, and so are its residuals."""
        return rows.reshape(len(rows), subjects.block, -1).sum(1)

    squared, whole = [of_units(net(e)) for e in left], of_units(net(drawn))
    loss, *bounds = ratio_interval(squared[1] - squared[0], whole)
    figures = {
        "action_r2": [finite(1 - s.sum() / whole.sum()) for s in squared],
        "action_r2_by_period": [finite(1 - of_units(e).sum() / of_units(drawn).sum()) for e in left],
    }
    return figures, [judged("recoverability_loss", loss, n, bounds)]


def _out_of_fold(x: Array, y: Array, fold: Array) -> Array:
    """Residuals (M, A) of ridge regressions of y (M, A) on x (M, F), each row by one that never saw its fold."""
    residual = np.full_like(y, np.nan)
    if not np.isfinite(x).all():
        return residual
    spread = x.std(0)
    x = np.concatenate([(x - x.mean(0)) / np.where(spread > 0, spread, 1), np.ones((len(x), 1))], 1)
    for k in np.unique(fold):
        fit, test = fold != k, fold == k
        gram = x[fit].T @ x[fit] + RIDGE * fit.sum() * np.eye(x.shape[1])
        residual[test] = y[test] - x[test] @ np.linalg.solve(gram, x[fit].T @ y[fit])
    return residual


def action_dim(subjects: Subjects) -> int:
    """Numbers in a model action."""
    return subjects.block * int(np.prod(subjects.action.shape))


def candidates(planner: Planner, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Model actions as the planner first draws them."""
    return within_bounds(planner, planner.var_scale * rng.standard_normal(shape))


def prefix(subjects: Subjects, starts: list[Array], rng: np.random.Generator) -> tuple[Figures, Rows]:
    """Largest difference of latents that have the same past, for both sides; the gate is on the compressed one's."""
    planner, n = subjects.planner, len(starts[0])
    a, b = candidates(planner, rng, (2, n, planner.horizon, action_dim(subjects)))
    parts = rng.integers(1, planner.horizon + 1, n)  # the first action that differs; in odd rows all do
    parts[1::2] = 0
    same = np.arange(planner.horizon) < parts[:, None]
    b = np.where(same[..., None], a, b)
    largest = []
    for side, start in zip(subjects.both, starts, strict=True):
        difference = np.abs(follow(side, start[:, None], a) - follow(side, start[:, None], b)).max(-1)
        largest.append(float(np.where(np.arange(planner.horizon + 1) <= parts[:, None], difference, 0.0).max()))
    return {"prefix_change": [finite(v) for v in largest]}, [judged("prefix_causality", largest[1], n)]

"""Suite `horizon`: how far do imagined futures stray from real ones, and do the ways of imagining agree?

Recorded trajectories are followed under the robot's own actions, as far as they go (at most LOOKS times the planner's
horizon). Error at step k is between the latent a model imagines and the full model's encoding of what really came.
The horizon is where it passes HALF: from there on an imagined latent explains less than half of what comes.

    self-consistency     `score`, asked for the latent that `predict` reached step by step, should find it reached
    prefix               imagining in one go, or going on from the latent imagined at 2/5 of the way, should agree
    blackout             the camera was on for as long as the model remembers, then goes dark for k steps while the
                         world goes on; what the model expects when it comes back is compared with its own view then
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import statistics
from ..options import Progress
from .gates import finite, judged, ratio_interval
from .imagine import Subjects, encoded, follow, model_actions
from .sources import Source

Array = np.ndarray
Figures = dict[str, Any]
Rows = list[dict[str, Any]]

LOOKS = 3
HALF = math.sqrt(0.5)  # of the spread of latents: half of the variance
RESTART = 2 / 5  # of the way: 25 steps against 10 and 15


def run(subjects: Subjects, source: Source, n: int, seed: int, progress: Progress) -> tuple[Figures, Rows, list[str]]:
    """Figures, gates, and what was left out."""
    looks = LOOKS if source.longest is None else max(1, min(LOOKS, source.longest // subjects.periods))
    drawn = list(source.rollouts(n, looks * subjects.periods, seed))
    if not drawn:
        return {}, [judged("future_error_added", math.nan, 0)], []
    frames = np.stack([f[:: subjects.block] for f, _, _ in drawn])
    actions = np.stack([model_actions(a, subjects.action, subjects.planner) for _, a, _ in drawn])
    seen = [_encoded(subjects, side, frames) for side in (0, 1)]
    progress("horizon", 0.4)
    imagined = [follow(side, z[:, :1], actions) for side, z in zip(subjects.both, seen, strict=True)]
    variance = seen[0].reshape(-1, seen[0].shape[-1]).var(0).sum()
    error = np.stack([np.square(x - seen[0]).sum(-1) for x in imagined]) / variance  # (2, N, T + 1)
    progress("horizon", 0.6)
    figures, rows = growth(subjects, error)
    own, own_rows, left_out = _own(subjects, imagined[1], actions)
    figures, rows = figures | own, rows + own_rows
    for found, judgements in (
        _restarted(subjects, imagined, actions, variance), _blackout(subjects, seen, actions, variance),
    ):  # fmt: skip
        figures, rows = figures | found, rows + judgements
    progress("horizon", 1.0)
    return figures, rows, left_out


def _encoded(subjects: Subjects, side: int, frames: Array) -> Array:
    """Latents (N, T, D) of frames (N, T, ...)."""
    n, t = frames.shape[:2]
    flat = encoded(subjects.both[side], subjects.camera, frames.reshape(n * t, *frames.shape[2:]))
    return flat.reshape(n, t, -1)


def _by_step(squared: Array) -> list[float | None]:
    return [finite(v) for v in np.sqrt(squared.mean(0))]


def growth(subjects: Subjects, error: Array) -> tuple[Figures, Rows]:
    """Error by step, (2 sides, N, T + 1) in shares of the variance of latents, and how long it stays below HALF."""
    n, at = error.shape[1], subjects.planner.horizon
    added, *bounds = ratio_interval(error[1, :, at] - error[0, :, at], np.ones(n))
    reach = [crossing(np.sqrt(e.mean(0)), HALF) for e in error]

    def kept(rows: Array) -> float:
        full, compressed = (crossing(np.sqrt(rows[:, i].mean(0)), HALF) for i in (0, 1))
        return compressed / full

    by_trajectory = error.transpose(1, 0, 2)
    low, high = statistics.bootstrap(by_trajectory, kept, confidence=0.90, resamples=500)
    last = error.shape[2] - 1
    figures = {
        "trajectories": n,
        "full_error_by_step": _by_step(error[0]),
        "compressed_error_by_step": _by_step(error[1]),
        "threshold": HALF,
        "steps_to_threshold": [finite(r) for r in reach],
        "reached_threshold": [r < last for r in reach],
    }
    return figures, [
        judged("future_error_added", added, n, bounds),
        judged("horizon_kept", kept(by_trajectory), n, (low, high)),
    ]


def crossing(curve: Array, threshold: float) -> float:
    """Steps, between whole ones too, until a curve first passes the threshold; its last step where it never does."""
    above = np.flatnonzero(~(curve <= threshold))
    if not len(above):
        return float(len(curve) - 1)
    k = int(above[0])
    if k == 0 or not math.isfinite(curve[k]):
        return float(k)
    return k - 1 + float((threshold - curve[k - 1]) / (curve[k] - curve[k - 1]))


def _own(subjects: Subjects, imagined: Array, actions: Array) -> tuple[Figures, Rows, list[str]]:
    """What `score` asks for the latents that `predict` ended in, against those it began with."""
    planner, score = subjects.planner, subjects.compressed.score
    last = planner.history - 1 + planner.horizon
    if last > actions.shape[1]:
        return {}, [], [f"trajectories of {actions.shape[1]} model actions, {last} needed to ask `score` about its own"]
    frames = slice(0, planner.history) if planner.history > 1 else 0
    cost = np.array([
        [float(score(z[frames], goal, a[None, :last])[0]) for goal in (z[last], z[0])]
        for z, a in zip(imagined, actions, strict=True)
    ])  # fmt: skip
    own = float(np.median(cost[:, 0]) / np.median(cost[:, 1]))
    return {"self_consistency": finite(own)}, [judged("self_consistency", own, len(cost))], []


def _restarted(subjects: Subjects, imagined: list[Array], actions: Array, variance: float) -> tuple[Figures, Rows]:
    """In one go against going on, at the end of the way."""
    last = actions.shape[1]
    middle = max(1, round(RESTART * last))
    gaps = []
    for side, z in zip(subjects.both, imagined, strict=True):
        went_on = follow(side, z[:, middle : middle + 1], actions[:, middle:])
        gaps.append(np.square(went_on[:, -1] - z[:, -1]).sum(-1) / variance)
    added, *bounds = ratio_interval(gaps[1] - gaps[0], np.ones(len(actions)))
    figures = {"prefix_steps": [last, middle], "prefix_gap": [finite(math.sqrt(g.mean())) for g in gaps]}
    return figures, [judged("prefix_gap_added", added, len(actions), bounds)]


def _blackout(subjects: Subjects, seen: list[Array], actions: Array, variance: float) -> tuple[Figures, Rows]:
    """Error of what is expected after k dark steps, against the model's own view of what is there."""
    on = min(subjects.full.window, actions.shape[1])
    error = []
    for side, z in zip(subjects.both, seen, strict=True):
        expected = follow(side, z[:, :on], actions)
        error.append(np.square(expected[:, on:] - z[:, on:]).sum(-1) / variance)
    added, *bounds = ratio_interval(error[1][:, -1] - error[0][:, -1], np.ones(len(actions)))
    figures = {
        "blackout_steps": list(range(1, error[0].shape[1] + 1)),
        "blackout_frames_before": on,
        "full_blackout_error": _by_step(error[0]),
        "compressed_blackout_error": _by_step(error[1]),
    }
    return figures, [judged("blackout_added", added, len(actions), bounds)]

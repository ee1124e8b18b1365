"""Suite `physics`: is the world's state still in the latents, and does what cannot be still surprise?

State probes: a linear probe for each model reads what a picture shows, from latents of frames out of fold and from
imagined ones; the frames of one trajectory are one sample. Violation of expectation: clips with a planted impossibility
against the same clips without; surprise is the distance between the latent predicted from what was seen and the latent
of what came, the largest of a clip; how well it tells the two kinds apart is an AUROC, which needs no threshold. One
clip pair is one sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import statistics
from ..options import Progress
from .gates import finite, judged, ratio_interval
from .imagine import Subjects, encoded, follow, model_actions, one_ahead
from .sides import Side
from .sources import Source

Array = np.ndarray
Figures = dict[str, Any]
Rows = list[dict[str, Any]]

FIT_ROWS = 4  # of a probe, for each dimension of a latent
FOLDS = 5


def run(subjects: Subjects, source: Source, n: int, seed: int, progress: Progress) -> tuple[Figures, Rows, list[str]]:
    """Figures, gates, and what was left out for want of evidence."""
    figures, rows, left_out = {}, [], []
    if source.states is None or source.rollouts is None or (drawn := _drawn(subjects, source, n, seed)) is None:
        left_out.append("no states beside frames, so nothing to probe for")
    else:
        progress("physics: probes", 0.3)
        found, judgements, still = _probed(subjects, drawn, source, n, seed)
        figures, rows = figures | found, rows + judgements
        left_out += [f"{name} is the same in every frame, so nothing to probe for" for name in still]
    progress("physics: surprise", 0.5)
    if source.impossible is None:
        left_out.append("no impossible clips, and no trajectories to make them of")
    else:
        found, judgements = surprised(subjects, source, n, seed)
        figures, rows = figures | found, rows + judgements
    progress("physics", 1.0)
    return figures, rows, left_out


# ------------------------------------------------------------------------------------------------------------ probes


class Shown(NamedTuple):
    """Frames as probes see them: latents (N, D) of both sides, states (N, K), and the trajectory of each (N,)."""

    latents: list[Array]
    states: Array
    unit: Array

    def read(self, side: int, latents: Array, rows: Array | slice = slice(None)) -> Array:
        """States (M, K) that the probe of one side, fitted on some rows, reads from other latents."""
        import torch
        from torch_world.metrics import linear_probe

        fit, wanted = self.latents[side][rows], self.states[rows]
        given = (fit, wanted, latents, np.zeros((len(latents), wanted.shape[1])))
        return linear_probe(*(torch.from_numpy(np.asarray(x, np.float32)) for x in given)).predictions.numpy()

    def out_of_fold(self, side: int, of: int) -> Array:
        """States (N, K) that the probe of one side reads from the latents of one, none of a trajectory it has seen."""
        fold, found = self.unit % FOLDS, np.full(self.states.shape, np.nan)
        for k in np.unique(fold):
            found[fold == k] = self.read(side, self.latents[of][fold == k], fold != k)
        return found


def _drawn(subjects: Subjects, source: Source, n: int, seed: int) -> Shown | None:
    width = len(subjects.full.encode({subjects.camera: next(iter(source.rollouts(1, 1, seed)))[0][0]}))
    found = source.states(max(n, -(-FIT_ROWS * width * FOLDS // (FOLDS - 1))), seed)
    if found is None:
        return None
    frames, states, *units = found
    unit = np.unique(units[0], return_inverse=True)[1] if units else np.arange(len(frames))
    return Shown([encoded(side, subjects.camera, frames) for side in subjects.both], np.asarray(states), unit)


def _probed(subjects: Subjects, shown: Shown, source: Source, n: int, seed: int) -> tuple[Figures, Rows, list[str]]:
    """R2 on frames, on imagined latents by step, and of the full model's probe on the compressed one's latents; and
    the states that are left out as they never change."""
    names = np.array(list(source.names) or [f"state {i}" for i in range(shown.states.shape[1])])
    moves = np.ptp(shown.states, axis=0) != 0
    names, still, shown = names[moves], names[~moves].tolist(), shown._replace(states=shown.states[:, moves])
    units = int(shown.unit.max()) + 1
    if not moves.any():
        return {}, [], still
    if units < FOLDS:
        return {}, [judged("probe_loss", math.nan, units)], still
    states, scale = shown.states, shown.states.var(0)
    seen = np.stack([_residuals(shown.out_of_fold(i, i), states, scale) for i in (0, 1)])
    transferred = _residuals(shown.out_of_fold(0, 1), states, scale)
    ahead, ahead_states = _imagined(subjects, source, n, seed)
    ahead_states = ahead_states[..., moves]
    steps = range(ahead_states.shape[1])
    read = [[_residuals(shown.read(i, z[:, t]), ahead_states[:, t], scale) for t in steps] for i, z in enumerate(ahead)]
    by_step = np.array(read)  # (2, H + 1, n, K), of the spread of states at large
    spread = np.square(states - states.mean(0)) / scale
    lost, whole = (np.bincount(shown.unit, rows.mean(1)) for rows in (seen[1] - seen[0], spread))
    loss, *bounds = ratio_interval(lost, whole)
    later = by_step[:, -1].mean(-1)
    later_loss, *later_bounds = ratio_interval(later[1] - later[0], np.ones(later.shape[1]))
    figures = {
        "probe_names": names.tolist(),
        "probe_frames": len(states),
        "probe_r2": [_r2(seen[0]), _r2(seen[1])],
        "probe_r2_by_state": [[finite(1 - v) for v in rows.mean(0)] for rows in seen],
        "probe_r2_transferred": _r2(transferred),
        "imagined_probe_r2_by_step": [[_r2(rows) for rows in side] for side in by_step],
        "imagined_probe_r2_by_state": [[finite(1 - v) for v in side[-1].mean(0)] for side in by_step],
    }
    return figures, [
        judged("probe_loss", loss, units, bounds),
        judged("imagined_probe_loss", later_loss, later.shape[1], later_bounds),
    ], still  # fmt: skip


def _imagined(subjects: Subjects, source: Source, n: int, seed: int) -> tuple[list[Array], Array]:
    """Latents (n, H + 1, D) of both sides imagined from the first frame of trajectories, and states (n, H + 1, K)."""
    drawn = list(source.rollouts(n, subjects.periods, seed + 1))
    actions = np.stack([model_actions(a, subjects.action, subjects.planner) for _, a, _ in drawn])
    first = np.stack([frames[0] for frames, _, _ in drawn])
    states = np.stack([states[:: subjects.block] for _, _, states in drawn])
    return [follow(side, encoded(side, subjects.camera, first)[:, None], actions) for side in subjects.both], states


def _residuals(read: Array, states: Array, scale: Array) -> Array:
    """Squared errors (N, K) over the variance of each state."""
    return np.square(read - states) / scale


def _r2(residuals: Array) -> float | None:
    return finite(1 - float(residuals.mean()))


# --------------------------------------------------------------------------------------------- violation of expectation


def surprised(subjects: Subjects, source: Source, n: int, seed: int) -> tuple[Figures, Rows]:
    """AUROC of surprise by kind of impossibility, of both sides."""
    kinds, scores = [], []  # scores: (2 sides, possible and impossible)
    clips = list(source.impossible(n, subjects.periods, seed))
    if not clips:
        return {}, [judged("surprise_loss", math.nan, 0)]
    actions = np.stack([model_actions(c.actions, subjects.action, subjects.planner) for c in clips])
    for side in subjects.both:
        pair = []
        for frames in ([c.possible for c in clips], [c.impossible for c in clips]):
            kept = np.stack([f[:: subjects.block] for f in frames])
            flat = _encoded_once(side, subjects.camera, kept)
            pair.append(np.square(one_ahead(side, flat, actions) - flat[:, 1:]).sum(-1).max(1))
        scores.append(pair)
    found = np.array(scores)  # (2, 2, n)
    kinds = np.array([c.kind for c in clips])
    by_kind = {kind: [auroc(*side[:, kinds == kind]) for side in found] for kind in dict.fromkeys(kinds.tolist())}
    whole = [auroc(*side) for side in found]

    def lost(rows: Array) -> float:
        return auroc(rows[:, 0], rows[:, 1]) - auroc(rows[:, 2], rows[:, 3])

    paired = found.reshape(4, -1).T  # one row a clip pair
    bounds = statistics.bootstrap(paired, lost, confidence=0.90)
    figures = {
        "clips": len(clips),
        "surprise_auroc": [finite(v) for v in whole],
        "surprise_auroc_by_kind": {kind: [finite(v) for v in pair] for kind, pair in by_kind.items()},
    }
    return figures, [judged("surprise_loss", lost(paired), len(clips), bounds)]


def _encoded_once(side: Side, camera: str, frames: Array) -> Array:
    """Latents (N, T, D) of frames (N, T, ...)."""
    n, t = frames.shape[:2]
    return encoded(side, camera, frames.reshape(n * t, *frames.shape[2:])).reshape(n, t, -1)


def auroc(possible: Sequence[float] | Array, impossible: Sequence[float] | Array) -> float:
    """Chance that an impossible clip surprises more than a possible one, ties counting half; nan where one is not
    finite (Mann & Whitney 1947)."""
    possible, impossible = np.asarray(possible, float), np.asarray(impossible, float)
    both = np.concatenate([possible, impossible])
    if not len(possible) or not len(impossible) or not np.isfinite(both).all():
        return math.nan
    ranks = statistics.ranks(both)[len(possible) :]
    return float((ranks.sum() - len(impossible) * (len(impossible) - 1) / 2) / (len(possible) * len(impossible)))

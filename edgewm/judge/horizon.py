"""Suite `horizon`: how far do imagined futures stray from real ones, and do both ways of imagining agree?

Recorded trajectories are followed under the robot's own actions. Error at step k is between the latent a model imagines
and the full model's encoding of what really came; both models' curves lie side by side. Then the latent that `predict`
reached step by step is given to `score` as the goal of the same actions: it should be found reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..program import Planner, Port
from .gates import finite, judged, ratio_interval
from .sides import Side, rollout
from .sources import Rollouts

Array = np.ndarray


def model_actions(actions: Array, port: Port, planner: Planner) -> Array:
    """Robot actions (T, axes) as model actions (T / action_block, action_block * axes): undoes the port's scale."""
    scale = np.asarray(port.scale or (1.0,) * actions.shape[1])
    offset = np.asarray(port.offset or (0.0,) * actions.shape[1])
    return ((actions - offset) / scale).reshape(len(actions) // planner.action_block, -1)


def run(
    full: Side, compressed: Side, planner: Planner, observation: str, action: Port, trajectories: Rollouts, total: int,
    progress: Callable[[str, float], None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """The figures of this suite and its gates. Needs a model with one observation port, named `observation`."""
    errors, spread, own_cost = [], [], []
    for i, (frames, actions, _) in enumerate(trajectories):
        kept = frames[:: planner.action_block]
        blocks = model_actions(actions, action, planner)[None]
        real = np.stack([full.encode({observation: frame}) for frame in kept]).astype(np.float64)
        start = compressed.encode({observation: kept[0]})
        imagined = rollout(full, real[0], blocks)[0], rollout(compressed, start, blocks)[0]
        errors.append([np.square(x - real).sum(-1) for x in imagined])
        spread.append(real)
        own_cost.append([float(compressed.score(start, goal, blocks)[0]) for goal in (imagined[1][-1], imagined[1][0])])
        progress("horizon", (i + 1) / total)
    n = len(errors)
    if n == 0:
        return {}, [judged("future_error_added", float("nan"), 0)]
    squared = np.array(errors)  # (n, 2, H + 1)
    variance = np.concatenate(spread).var(0).sum()
    by_step = np.sqrt(squared.mean(0) / variance)
    added, *bounds = ratio_interval(squared[:, 1, -1] - squared[:, 0, -1], np.full(n, variance))
    own = float(np.median(np.array(own_cost)[:, 0]) / np.median(np.array(own_cost)[:, 1]))
    figures = {
        "trajectories": n,
        "full_error_by_step": [finite(v) for v in by_step[0]],
        "compressed_error_by_step": [finite(v) for v in by_step[1]],
        "self_consistency": finite(own),
    }
    return figures, [judged("future_error_added", added, n, bounds), judged("self_consistency", own, n)]

"""Imagined futures beside real ones, for people.

A latent without a decoder is shown as the frame, out of a gallery, whose latent lies nearest. The gallery is encoded by
the full model for both sides, so that both are seen with the same eyes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .imagine import Subjects, encoded, follow, model_actions
from .sides import Side

Array = np.ndarray


class Futures(NamedTuple):
    """Frames (H + 1, h, w, 3) uint8: what came, what the full model imagined, what the compressed one did."""

    real: Array
    full: Array
    compressed: Array
    seconds: Array  # (H + 1,)


def futures(
    subjects: Subjects, gallery: Callable[[int, int], tuple[Array, Array, Array]], rate_hz: float, seed: int
) -> Futures:
    """One held-out trajectory of the planner's horizon, really and as both models imagine it from its first frame."""
    frames, actions, shown = gallery(subjects.periods, seed)
    blocks = model_actions(actions, subjects.action, subjects.planner)[None]
    known = encoded(subjects.full, subjects.camera, shown)

    def imagine(side: Side) -> Array:
        latents = follow(side, encoded(side, subjects.camera, frames[:1])[:, None], blocks)[0]
        return shown[np.square(latents[:, None] - known).sum(-1).argmin(1)]

    seconds = np.arange(len(blocks[0]) + 1) * subjects.block / rate_hz
    return Futures(frames[:: subjects.block], *map(imagine, subjects.both), seconds)


def as_json(found: Futures) -> dict[str, Any]:
    """The frames as base64 PNG."""
    from ..charts import png

    rows = {name: [png(frame) for frame in getattr(found, name)] for name in ("real", "full", "compressed")}
    return {**rows, "seconds": [round(float(s), 3) for s in found.seconds]}

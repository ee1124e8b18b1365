"""Imagined futures beside real ones, for people.

A latent without a decoder is shown as the frame, out of a gallery, whose latent lies nearest. The gallery is encoded by
the full model for both sides, so that both are seen with the same eyes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..program import Planner, Port
from .horizon import model_actions
from .sides import Side, rollout

Array = np.ndarray


class Futures(NamedTuple):
    """Frames (H + 1, h, w, 3) uint8: what came, what the full model imagined, what the compressed one did."""

    real: Array
    full: Array
    compressed: Array
    seconds: Array  # (H + 1,)


def futures(
    full: Side, compressed: Side, planner: Planner, observation: str, action: Port,
    gallery: Callable[[int, int], tuple[Array, Array, Array]], rate_hz: float, seed: int,
) -> Futures:  # fmt: skip
    """One held-out trajectory of the planner's horizon, really and as both models imagine it from its first frame."""
    frames, actions, shown = gallery(planner.horizon * planner.action_block, seed)
    blocks = model_actions(actions, action, planner)[None]
    known = np.stack([full.encode({observation: frame}) for frame in shown])
    first = {observation: frames[0]}

    def imagine(side: Side) -> Array:
        latents = rollout(side, side.encode(first), blocks)[0]
        return shown[np.square(latents[:, None] - known).sum(-1).argmin(1)]

    seconds = np.arange(planner.horizon + 1) * planner.action_block / rate_hz
    return Futures(frames[:: planner.action_block], imagine(full), imagine(compressed), seconds)


def as_json(found: Futures) -> dict[str, Any]:
    """The frames as base64 PNG."""
    from ..charts import png

    rows = {name: [png(frame) for frame in getattr(found, name)] for name in ("real", "full", "compressed")}
    return {**rows, "seconds": [round(float(s), 3) for s in found.seconds]}

"""What both models are made to imagine: many futures at once, from real latents, under the robot's own actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..program import Planner, Port
from .sides import Side

Array = np.ndarray


@dataclass(frozen=True)
class Subjects:
    """The two models under judgement, the planner both serve, and the camera and the action port they have. `whole` is
    the same planner with as large a search as the full model plans with, where the bundle's is another."""

    full: Side
    compressed: Side
    planner: Planner
    camera: str
    action: Port
    whole: Planner | None = None

    @property
    def both(self) -> tuple[Side, Side]:
        return self.full, self.compressed

    @property
    def block(self) -> int:
        """Control periods in a model action."""
        return self.planner.action_block

    @property
    def periods(self) -> int:
        """Control periods that a plan looks ahead."""
        return self.planner.horizon * self.block


def model_actions(actions: Array, port: Port, planner: Planner) -> Array:
    """Robot actions (T, axes) as model actions (T / action_block, action_block * axes): undoes the port's scale."""
    scale = np.asarray(port.scale or (1.0,) * actions.shape[1])
    offset = np.asarray(port.offset or (0.0,) * actions.shape[1])
    return ((actions - offset) / scale).reshape(len(actions) // planner.action_block, -1)


def encoded(side: Side, camera: str, frames: Array) -> Array:
    """Latents (N, D) of frames (N, ...)."""
    return np.stack([side.encode({camera: frame}) for frame in frames]).astype(np.float64)


def follow(side: Side, seen: Array, actions: Array) -> Array:
    """Latents (N, H + K, D): those seen (N, H, D), then those imagined, under actions (N, H - 1 + K, A)."""
    n, h, d = seen.shape
    latents = np.empty((n, actions.shape[1] + 1, d))
    latents[:, :h] = seen
    for t in range(h, latents.shape[1]):
        last = slice(max(0, t - side.window), t)
        latents[:, t] = side.predict(latents[:, last], actions[:, last])
    return latents


def one_ahead(side: Side, seen: Array, actions: Array) -> Array:
    """Predictions (N, T, D) of the latents after the first of `seen` (N, T + 1, D), each from the real ones before."""
    found = np.empty((len(seen), seen.shape[1] - 1, seen.shape[2]))
    for t in range(1, seen.shape[1]):
        last = slice(max(0, t - side.window), t)
        found[:, t - 1] = side.predict(seen[:, last], actions[:, last])
    return found

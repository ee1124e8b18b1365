"""The student's latents: the teacher's own, or, where the student's are fewer, the directions that hold most variance.

Costs are mean squared distances of latents, so a rotation keeps them, and what the directions left out vary by is all
that is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Space:
    """A teacher's latent z (..., D) is `(z - mean) @ axes * scale` (..., width) to the student; `kept` is the share of
    the variance that is still there."""

    mean: Array
    axes: Array
    scale: float
    kept: float

    def of(self, z: Array) -> Array:
        return ((np.asarray(z, np.float32) - self.mean) @ self.axes * np.float32(self.scale)).astype(np.float32)


def space_of(latents: Array, width: int, goal: Array, futures: Array, costs: Array) -> Space:
    """Of latents (N, D); `goal` (n, D), `futures` (n, G, K, H, D) and `costs` (n, G, K) say what a teacher's cost is in
    units of the mean squared distance, which is the student's."""
    z = np.asarray(latents, np.float64)
    dim = z.shape[1]
    ends = np.asarray(futures[:, :, :, -1], np.float64)
    square = np.square(ends - np.asarray(goal, np.float64)[:, None, None]).mean(-1)
    unit = float(np.median(costs / np.maximum(square, np.finfo(np.float32).tiny)))
    unit = unit if np.isfinite(unit) and unit > 0 else 1.0
    if abs(unit - 1.0) <= dim * np.finfo(np.float32).eps:  # what a sum of that many may be off by
        unit = 1.0
    if width == dim:
        return Space(np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32), unit**0.5, 1.0)
    mean = z.mean(0)
    power, axes = np.linalg.eigh(np.cov((z - mean).T))
    order = np.argsort(-power, kind="stable")[:width]
    kept = float(power[order].sum() / power.sum())
    scale = (unit * width / dim) ** 0.5
    return Space(mean.astype(np.float32), axes[:, order].astype(np.float32), scale, kept)

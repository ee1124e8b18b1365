"""A student with fewer latents than its full model, seen in the full model's space.

A planner's cost is a distance, so what two latent spaces share is fixed but for a rigid map and a unit. The one that
brings the student's latents of the same pictures closest (orthogonal Procrustes, Schoenemann 1966) lets the judge
compare futures, too; costs, ranks, elites and plans do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from .sides import Observation, Side

Array = np.ndarray
PICTURES = 256


def in_space_of(full: Side, compressed: Side, pictures: Iterable[Observation]) -> Side:
    """`compressed` with latents of as many numbers as those of `full`; itself where they are as many already."""
    pairs = []
    for picture in pictures:
        pairs.append((np.asarray(full.encode(picture), np.float64), np.asarray(compressed.encode(picture), np.float64)))
        if pairs[0][0].shape == pairs[0][1].shape:
            return compressed
    theirs, ours = (np.stack(side) for side in zip(*pairs, strict=True))
    mean, own_mean = theirs.mean(0), ours.mean(0)
    left, power, right = np.linalg.svd((ours - own_mean).T @ (theirs - mean), full_matrices=False)
    axes = left @ right  # (own, full), orthonormal rows
    unit = float(power.sum() / np.square(ours - own_mean).sum())

    def up(z: Array) -> Array:
        return unit * ((np.asarray(z, np.float64) - own_mean) @ axes) + mean

    def down(z: Array) -> Array:
        return (np.asarray(z, np.float64) - mean) @ axes.T / unit + own_mean

    return replace(
        compressed,
        encode=lambda observation: up(compressed.encode(observation)),
        predict=lambda z, actions: up(compressed.predict(down(z), actions)),
        score=lambda z, goal, candidates: compressed.score(down(z), down(goal), candidates),
        propose=compressed.propose and (lambda z, goal: compressed.propose(down(z), down(goal))),
    )

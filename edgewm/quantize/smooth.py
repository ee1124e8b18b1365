"""Channels of activations that fill their steps alike: centred, and divided by a power of how far they stray.

One step holds a whole row of activations, so a channel far from the others, by its mean or by its spread, takes
resolution from them. Its mean goes to the bias, exactly; its spread to the weights, which a step for each output and
the compensation of `compensate.py` hold well. Shift: Wei et al., "Outlier Suppression+", EMNLP 2023,
https://arxiv.org/abs/2304.09145. Scale: Xiao et al., "SmoothQuant", ICML 2023, https://arxiv.org/abs/2211.10438; its
power is searched for by what the products then lose, as AWQ does (Lin et al., MLSys 2024,
https://arxiv.org/abs/2306.00978).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .. import expr as e
from ..kernel import load
from ..layout import dtype_of
from ..program import Graph
from .fast import values_of

POWERS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)  # of the deviation of a channel
TRIED_ROWS = 1024  # that powers are compared on
SMALLEST = 2.0**-6  # of the largest deviation, for each: what stood still while calibrating may move later

Array = np.ndarray


class Smooth(NamedTuple):
    """x goes into a product as x * inverse + offset, both f32 (1, K); `moments` (K, K) is the sum of x^T x of that."""

    inverse: Array
    offset: Array
    moments: Array


def smoothed(rows: Array, weights: Sequence[Array], powers: Sequence[float] = POWERS) -> Smooth:
    """For all products of one value, since they read it once: `rows` (R, K) of it, `weights` (K, N) of each."""
    middle, deviation = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    deviation = np.maximum(deviation, SMALLEST * deviation.max() or 1.0)
    w = np.concatenate(weights, 1).astype(np.float64)
    few = (rows[:: -(-len(rows) // TRIED_ROWS)] - middle).astype(np.float64)

    def scale_of(power: float) -> Array:
        found = deviation**power
        return found / np.exp(np.log(found).mean())

    best = min(powers, key=lambda p: _lost(_f32(few / scale_of(p)), _f32(w * scale_of(p)[:, None])))
    inverse = (1 / scale_of(best)).astype(np.float32)[None]
    offset = (-middle * inverse).astype(np.float32)
    read = rows * inverse.astype(np.float64) + offset
    return Smooth(inverse, offset, read.T @ read)


def _lost(x: Array, w: Array) -> float:
    """Variance of the error of an int8 product of x (R, K) and w (K, N), both f32: an error that all rows share tells
    no candidate from another."""
    from ..passes.quantize_products import quantize_weight

    leaves = dict(zip("wtc", quantize_weight(w), strict=True))
    held = (e.weight(name, value.shape, dtype_of(value)) for name, value in leaves.items())
    graph = Graph({"y": load("product_i8").reference(e.input("x", x.shape), *held)})
    found = values_of(graph, {"x": x}, leaves)[graph.outputs["y"]]
    return float((found - x @ w).var(0, dtype=np.float64).mean())


def _f32(x: Array) -> Array:
    return x.astype(np.float32)

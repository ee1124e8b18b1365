"""Hold the products a recipe names in fewer bits.

`w8a8`: int8, weights by output channel, activations by row at run time, in steps of its own range. `bf16`: both rounded
as they are. `w4a8`: as w8a8, but weights have 16 levels. `w4a16_g64`: as bf16, but weights first have 16 levels, with a
step for each group of 64 inputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import expr as e
from ..kernel import load
from ..layout import dtype_of
from ..ops import NUMPY, make
from ..program import Graph, Node, Program, rewrite
from ..quantize.compensate import compensated, rounded

SMALLEST_STEP = 2.0**-100  # of a column of zeros


def quantize_products(program: Program) -> Program:
    """Rewrites `matmul(x, weight)` as the recipe says; a product of two activations is left alone.

    `program.recipe` maps a weight's name to one of `HOLD`; a name that is absent stays in float32.
    """
    if not program.recipe:
        return program
    weights = dict(program.weights)

    def held(name: str, kind: str) -> list[Node]:
        """The leaves that stand for a weight."""
        names = [f"{name}/{part}" for part in HOLD[kind].parts]
        if names[0] not in weights:  # calibration may have held it already
            weights.update(zip(names, HOLD[kind].hold(program.weights[name], None), strict=True))
        return [e.weight(n, weights[n].shape, dtype_of(weights[n])) for n in names]

    def quantized(graph: Graph) -> Graph:
        def rule(node: Node, sources: tuple[Node, ...]) -> Node:
            attrs = {k: quantized(v) if isinstance(v, Graph) else v for k, v in node.attrs}
            new = make(node.op, *sources, **attrs)
            kind = program.recipe.get(sources[1]["name"]) if new.op == "matmul" and sources[1].op == "weight" else None
            if kind is None:
                return new
            return load(HOLD[kind].family).reference(sources[0], *held(sources[1]["name"], kind))

        return Graph(rewrite(graph.outputs, rule))

    entries = {name: quantized(graph) for name, graph in program.entries.items()}
    return program.with_(entries=entries, weights=weights)


def quantize_weight(
    w: np.ndarray, moments: np.ndarray | None = None, bits: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int8 by output channel: `w` (..., in, out) f32 to int8 of that shape, f32 scale (..., 1, out), and the sum of
    each column as it is held, scale included (..., 1, out). `moments` as `compensated` takes them; None rounds."""
    held, scale = levels_of(w, moments, bits, w.shape[-2])
    return held, scale, held.sum(axis=-2, keepdims=True, dtype=np.int32).astype(np.float32) * scale


def quantize_groups(w: np.ndarray, moments: np.ndarray | None = None, size: int = 64) -> tuple[np.ndarray]:
    """16 levels for each `size` neighbours of the inputs, to bf16: `w` (..., in, out) f32; alone in a tuple. Where
    `size` does not divide the inputs, groups of what divides both."""
    held, step = levels_of(w, moments, 4, math.gcd(size, w.shape[-2]))
    return round_weight(held.astype(np.float32) * step)


def levels_of(w: np.ndarray, moments: np.ndarray | None, bits: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels int8 of the shape of `w` (..., in, out), and their steps f32, one for each group of `size` inputs: as many
    rows as `w` has, or one where the group is all of them.

    8 bits are symmetric, -127 to 127. Of 16 levels, -8 to 7, the largest weight takes the one that has no opposite.
    """
    *lead, depth, width = w.shape
    groups = w.reshape(*lead, depth // size, size, width)
    index = np.abs(groups).argmax(-2, keepdims=True)
    largest = np.take_along_axis(groups, index, -2)
    top = 2 ** (bits - 1) - 1
    step = np.abs(largest) / np.float32(top) if bits == 8 else largest / np.float32(-top - 1)
    step = np.where(np.abs(step) < SMALLEST_STEP, np.float32(SMALLEST_STEP), step).astype(np.float32)
    if size == depth:
        step = step[..., 0, :, :]
    else:
        step = np.broadcast_to(step, groups.shape).reshape(w.shape)
    low = -top if bits == 8 else -top - 1
    held = rounded(w, step, low, top) if moments is None else compensated(w, step, low, top, moments)
    return held, step


def round_weight(w: np.ndarray, moments: np.ndarray | None = None) -> tuple[np.ndarray]:
    """`w` f32 to bf16 of that shape, as `kernels/product_bf16.py` rounds activations; alone in a tuple."""
    kept = np.where(np.abs(w) < load("product_bf16").ROUNDS_TO_SMALLEST, np.float32(0), w)
    return (kept.astype(NUMPY["bf16"]),)


class Form(NamedTuple):
    """How a recipe's format holds a weight: the family of its product, what the leaves are called beside the weight,
    and how they are made of it and, where it is calibrated, of second moments of what it meets."""

    family: str
    parts: tuple[str, ...]
    hold: Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, ...]]
    is_calibrated: bool = False


HOLD: dict[str, Form] = {
    "w8a8": Form("product_i8", ("i8", "scale", "sum"), quantize_weight),
    "bf16": Form("product_bf16", ("bf16",), round_weight),
    "w4a8": Form("product_i8", ("i8", "scale", "sum"), functools.partial(quantize_weight, bits=4), True),
    **{
        f"w4a16_g{size}": Form("product_bf16", ("bf16",), functools.partial(quantize_groups, size=size), True)
        for size in (32, 64, 128)
    },
}

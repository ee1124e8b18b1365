"""Hold the products a recipe names in fewer bits.

`w8a8`: int8, weights by output channel, activations by row at run time, in steps of its own range. `bf16`: both rounded
as they are. `w4a8`: as w8a8, but weights have 16 levels. `w4a16_g64`: as bf16, but weights first have 16 levels, with a
step for each group of 64 inputs. `w8a16`: likewise in 255 levels, with a step an output channel. `w8a8_static`: as
w8a8, but activations are in constant steps of one range, which calibration found. `fp16`: as bf16, to IEEE half.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import expr as e
from ..errors import EdgewmError
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
            weights.update(zip(names, hold(name, kind, program.weights[name]), strict=True))
        return [leaf(n, weights[n]) for n in names]

    def leaf(name: str, value: np.ndarray) -> Node:
        if value.size == 1 and value.dtype == np.float32:  # one leaf for all products of a tensor: they can be merged
            name = f"constant {value.item().hex()}"
            weights[name] = value
        return e.weight(name, value.shape, dtype_of(value))

    def quantized(graph: Graph) -> Graph:
        def rule(node: Node, sources: tuple[Node, ...]) -> Node:
            attrs = {k: quantized(v) if isinstance(v, Graph) else v for k, v in node.attrs}
            new = make(node.op, *sources, **attrs)
            kind = program.recipe.get(sources[1]["name"]) if new.op == "matmul" and sources[1].op == "weight" else None
            if kind is None:
                return new
            return HOLD[kind].product(sources[0], *held(sources[1]["name"], kind))

        return Graph(rewrite(graph.outputs, rule))

    entries = {name: quantized(graph) for name, graph in program.entries.items()}
    return program.with_(entries=entries, weights=weights)


def hold(name: str, kind: str, w: np.ndarray, seen: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """A weight's leaves. EdgewmError where the format cannot hold it; `seen` as `Form` says."""
    try:
        return HOLD[kind].hold(w, seen)
    except ValueError as fault:
        raise EdgewmError(
            f"{name} cannot be held in {kind}: {fault}", "--precision",
            f'give a recipe of your own that holds it otherwise: {{"{name}": "bf16", ...}}',
        ) from fault  # fmt: skip


def quantize_weight(
    w: np.ndarray, moments: np.ndarray | None = None, bits: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int8 by output channel: `w` (..., in, out) f32 to int8 of that shape, f32 scale (..., 1, out), and the sum of
    each column as it is held, scale included (..., 1, out). `moments` as `compensated` takes them; None rounds."""
    held, scale = levels_of(w, moments, bits, w.shape[-2])
    return held, scale, held.sum(axis=-2, keepdims=True, dtype=np.int32).astype(np.float32) * scale


def quantize_constant(w: np.ndarray, seen: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """int8 by output channel, for activations in 254 constant steps of the range `seen` (least and greatest) and 0.

    int8 of the shape of `w` (..., in, out); f32 scale and shift (..., 1, out) of the integer product; f32 (1, 1) what
    an activation is multiplied by and what is added, to be in steps. No range is clipped: what candidates that lie
    close together differ by is lost at its ends. Without `seen` it is -1 to 1: such a program is good for times alone.
    """
    held, step, _ = quantize_weight(w)
    low, high = (-1.0, 1.0) if seen is None else (min(float(seen[0]), 0.0), max(float(seen[1]), 0.0))
    inverse = np.float32(127 / max((high - low) / 2, SMALLEST_STEP))
    offset = np.float32(-(low + high) / 2 * np.float64(inverse))
    scale = step / np.float64(inverse)
    shift = held.sum(axis=-2, keepdims=True, dtype=np.int32) * scale * -np.float64(offset)
    return held, scale.astype(np.float32), shift.astype(np.float32), *(np.full((1, 1), v) for v in (inverse, offset))


def _in_constant_steps(x: Node, w: Node, scale: Node, shift: Node, inverse: Node, offset: Node) -> Node:
    return e.fma(load("product_rounded").reference(e.fma(x, inverse, offset), w), scale, shift)


def _of(family: str) -> Callable[..., Node]:
    """The family's own product."""
    return lambda x, *held: load(family).reference(x, *held)


def quantize_groups(
    w: np.ndarray, moments: np.ndarray | None = None, size: int = 0, bits: int = 4
) -> tuple[np.ndarray]:
    """Levels for each `size` neighbours of the inputs (0: for all of them), to bf16: `w` (..., in, out) f32; alone in a
    tuple. Where `size` does not divide the inputs, groups of what divides both."""
    held, step = levels_of(w, moments, bits, math.gcd(size, w.shape[-2]))
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


def halve_weight(w: np.ndarray, moments: np.ndarray | None = None) -> tuple[np.ndarray]:
    """`w` f32 to f16 of that shape; alone in a tuple. EdgewmError beyond the largest half."""
    most, largest = float(np.abs(w).max(initial=0.0)), load("product_fp16").LARGEST
    if not most <= largest:
        raise ValueError(f"it reaches {most:.4g}, and the largest half is {largest:g}")
    return (w.astype(NUMPY["f16"]),)


def value_of(parts: tuple[np.ndarray, ...]) -> np.ndarray:
    """The weight that these leaves stand for, f32: levels times their steps, or the numbers as they are rounded."""
    held = parts[0].astype(np.float32)
    return held * parts[1] if parts[0].dtype == np.int8 else held


def is_on_levels(w: np.ndarray, kind: str) -> bool:
    """Whether a weight is held in the format as it is, but for rounding of f32: trained so, it needs no calibration."""
    return w.ndim == 2 and np.allclose(value_of(HOLD[kind].hold(w, None)), w, rtol=4 * np.finfo(np.float32).eps, atol=0)


class Form(NamedTuple):
    """How a recipe's format holds a weight: its product, of an activation and of leaves; what these are called beside
    the weight; how they are made of it (ValueError where that cannot be) and, where it is calibrated, of what it meets:
    second moments, or a range."""

    product: Callable[..., Node]
    parts: tuple[str, ...]
    hold: Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, ...]]
    by: str = ""  # "moments" or "range"


HOLD: dict[str, Form] = {
    "w8a8": Form(_of("product_i8"), ("i8", "scale", "sum"), quantize_weight),
    "bf16": Form(_of("product_bf16"), ("bf16",), round_weight),
    "fp16": Form(_of("product_fp16"), ("f16",), halve_weight),
    "w8a16": Form(_of("product_bf16"), ("bf16",), functools.partial(quantize_groups, bits=8)),
    "w8a8_static": Form(
        _in_constant_steps, ("i8", "scale", "shift", "inverse", "offset"), quantize_constant, by="range"
    ),
    "w4a8": Form(_of("product_i8"), ("i8", "scale", "sum"), functools.partial(quantize_weight, bits=4), by="moments"),
    **{
        f"w4a16_g{size}": Form(
            _of("product_bf16"), ("bf16",), functools.partial(quantize_groups, size=size), by="moments"
        )
        for size in (32, 64, 128)
    },
}

"""Hold the products a recipe names in fewer bits.

`w8a8`: int8, weights by output channel, activations by row at run time, in steps of its own range. `bf16`: both rounded
as they are. `w4a8`: as w8a8, but weights have 16 levels. `w4a16_g64`: as bf16, but weights first have 16 levels, with a
step for each group of 64 inputs. `w8a16`: likewise in 255 levels, with a step an output channel. `w8a8_static`: as
w8a8, but activations are in constant steps of one range, which calibration found. `w8a8_smooth`: as w8a8, but channels
of activations are shifted and scaled first, as calibration found. `fp16`: as bf16, to IEEE half. `fp8`: both rounded to
E4M3, with a scale an output channel and a scale a row, found at run time.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import numpy as np

from .. import expr as e
from .. import interp
from ..arithmetic import E4M3_LARGEST
from ..errors import EdgewmError
from ..kernel import load
from ..layout import dtype_of
from ..ops import NUMPY, remade
from ..program import Graph, Node, Program, order, rewrite
from ..quantize.compensate import compensated, rounded
from ..quantize.smooth import Smooth
from .fold_constants import fold_constants

SMALLEST_STEP = 2.0**-100  # of a column of zeros
OF_INPUT = ("inverse", "offset")  # parts that make of an activation what a product reads


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
        if name.endswith(tuple(f"/{part}" for part in OF_INPUT)):  # one leaf for all products of one value: they merge
            name = f"constant {value.item().hex()}" if value.size == 1 else f"constant {_digest(value)}"
            weights[name] = value
        return e.weight(name, value.shape, dtype_of(value))

    def quantized(graph: Graph) -> Graph:
        def rule(node: Node, sources: tuple[Node, ...]) -> Node:
            new = remade(node, sources, quantized)
            kind = program.recipe.get(sources[1]["name"]) if new.op == "matmul" and sources[1].op == "weight" else None
            if kind is None:
                return _one_bias(new, shifted)
            new = HOLD[kind].product(sources[0], *held(sources[1]["name"], kind))
            if "bias" in HOLD[kind].parts:
                shifted.add(new)
            return new

        return Graph(rewrite(graph.outputs, rule))

    shifted: set[Node] = set()
    entries = {name: quantized(graph) for name, graph in program.entries.items()}
    done = program.with_(entries=entries, weights=weights)
    return fold_constants(done) if shifted else done


def hold(name: str, kind: str, w: np.ndarray, seen: Any = None) -> tuple[np.ndarray, ...]:
    """A weight's leaves. EdgewmError where the format cannot hold it; `seen` as `Form` says."""
    try:
        return HOLD[kind].hold(w, seen)
    except ValueError as fault:
        raise EdgewmError(
            f"{name} cannot be held in {kind}: {fault}", "--precision",
            f'give a recipe of your own that holds it otherwise: {{"{name}": "bf16", ...}}',
        ) from fault  # fmt: skip


class Moments(NamedTuple):
    """Of what a product reads: mean (K,), sum of x^T x about it (K, K), and of how many rows."""

    mean: np.ndarray
    about: np.ndarray
    count: float


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


def quantize_smooth(w: np.ndarray, seen: Smooth | None = None) -> tuple[np.ndarray, ...]:
    """int8 by output channel, for activations x * inverse + offset in steps of each row's own range.

    int8 of the shape of `w` (..., in, out), its f32 scale and sums (..., 1, out) as `quantize_weight` gives them; what
    the shift takes off the product, f32 (..., 1, out); f32 (1, in) inverse and offset. Without `seen` they are 1 and 0:
    such a program is good for times alone.
    """
    one = np.ones((1, w.shape[-2]), np.float32)
    inverse, offset, moments = (one, 0 * one, None) if seen is None else seen
    scale = 1 / inverse.astype(np.float64)
    held = quantize_weight((w * scale.T).astype(np.float32), moments)
    return *held, ((-offset * scale) @ w).astype(np.float32), inverse, offset


def _one_bias(node: Node, shifted: Set[Node]) -> Node:
    """y + (b + c) in the place of (y + b) + c, where y + b is one of `shifted` and c is constant."""
    if node.op == "add":
        for sum_, other in (node.sources, node.sources[::-1]):
            if sum_ in shifted and all(n.op != "input" for n in order([other])):
                y, b = sorted(sum_.sources, key=lambda n: n.op == "weight")
                return e.add(y, e.add(b, other))
    return node


def _smooth(x: Node, w: Node, scale: Node, total: Node, bias: Node, inverse: Node, offset: Node) -> Node:
    return e.add(load("product_i8").reference(e.fma(x, inverse, offset), w, scale, total), bias)


def _corrected(family: str) -> Callable[..., Node]:
    """The family's own product, and a bias."""
    return lambda x, *held: e.add(load(family).reference(x, *held[:-1]), held[-1])


def _digest(value: np.ndarray) -> str:
    return hashlib.sha256(value.tobytes()).hexdigest()[:16]


def _in_e4m3(x: Node, w: Node, scale: Node) -> Node:
    """Each row is multiplied by what takes its largest magnitude to the largest of E4M3. Products of two such numbers
    are exact in f32, and bf16 holds each of them: so the family of bf16 multiplies them."""
    largest = e.maximum(SMALLEST_STEP, e.reduce_max(e.absolute(x), -1))
    inverse = e.div(E4M3_LARGEST, largest)
    product = load("product_bf16").reference(e.e4m3(e.mul(x, inverse)), w)
    return e.mul(product, e.div(scale, inverse))


def _in_constant_steps(x: Node, w: Node, scale: Node, shift: Node, inverse: Node, offset: Node) -> Node:
    return e.fma(load("product_rounded").reference(e.fma(x, inverse, offset), w), scale, shift)


def _of(family: str) -> Callable[..., Node]:
    """The family's own product."""
    return lambda x, *held: load(family).reference(x, *held)


def quantize_groups(w: np.ndarray, seen: Moments | None = None, size: int = 0, bits: int = 4) -> tuple[np.ndarray]:
    """Levels for each `size` neighbours of the inputs (0: for all of them), to bf16: `w` (..., in, out) f32; alone in a
    tuple. Where `size` does not divide the inputs, groups of what divides both."""
    held, step = levels_of(w, seen and seen.about, bits, math.gcd(size, w.shape[-2]))
    return round_weight(held.astype(np.float32) * step)


def corrected(
    w: np.ndarray, seen: Moments | None = None, *, hold: Callable[..., tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, ...]:
    """What `hold` makes of a weight (the weight as a product multiplies it first, then a step of each column or none),
    and what the mean of all inputs loses by it, f32 (..., 1, out), to be added (Nagel et al., "Data-Free Quantization",
    ICCV 2019, https://arxiv.org/abs/1906.04721). Then only what differs between inputs is left to lose."""
    levels, *steps = hold(w, seen)
    lost = w.astype(np.float64) - levels.astype(np.float64) * (steps[0] if steps else 1.0)
    mean = np.zeros((1, w.shape[-2])) if seen is None else seen.mean[None]
    return levels, *steps, (mean @ lost).astype(np.float32)


def _few(w: np.ndarray, seen: Moments | None) -> tuple[np.ndarray, ...]:
    return quantize_weight(w, seen and seen.about, bits=4)


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
    """`w` f32 to f16 of that shape; alone in a tuple. ValueError beyond the largest half."""
    most, largest = float(np.abs(w).max(initial=0.0)), load("product_fp16").LARGEST
    if not most <= largest:
        raise ValueError(f"it reaches {most:.4g}, and the largest half is {largest:g}")
    return (w.astype(NUMPY["f16"]),)


def quantize_e4m3(w: np.ndarray, seen: None = None) -> tuple[np.ndarray, np.ndarray]:
    """`w` (..., in, out) f32 in E4M3 by output channel: bf16 of that shape, which holds each of its numbers, and f32
    scale (..., 1, out). The largest of a channel takes the largest number."""
    largest = np.abs(w).max(-2, keepdims=True)
    scale = np.maximum(largest / np.float32(E4M3_LARGEST), np.float32(SMALLEST_STEP))
    graph = Graph({"y": e.e4m3(e.input("x", w.shape))})
    return interp.run(graph, {"x": w / scale}, {})["y"].astype(NUMPY["bf16"]), scale


def value_of(parts: tuple[np.ndarray, ...], kind: str) -> np.ndarray:
    """The weight that these leaves stand for, f32: levels times their steps, or the numbers as they are rounded."""
    scale = dict(zip(HOLD[kind].parts, parts, strict=True)).get("scale")
    held = parts[0].astype(np.float32)
    return held if scale is None else held * scale


def is_on_levels(w: np.ndarray, kind: str) -> bool:
    """Whether a weight is held in the format as it is, but for rounding of f32: trained so, it needs no calibration."""
    held = value_of(HOLD[kind].hold(w, None), kind)
    return w.ndim == 2 and np.allclose(held, w, rtol=4 * np.finfo(np.float32).eps, atol=0)


class Form(NamedTuple):
    """How a recipe's format holds a weight: its product, of an activation and of leaves; what these are called beside
    the weight; how they are made of it (ValueError where that cannot be) and, where it is calibrated, of what it meets:
    second moments, a range, or rows, of which `smooth.smoothed` makes what it takes."""

    product: Callable[..., Node]
    parts: tuple[str, ...]
    hold: Callable[[np.ndarray, Any], tuple[np.ndarray, ...]]
    by: str = ""  # "moments", "range" or "rows"


HOLD: dict[str, Form] = {
    "w8a8": Form(_of("product_i8"), ("i8", "scale", "sum"), quantize_weight),
    "bf16": Form(_of("product_bf16"), ("bf16",), round_weight),
    "fp16": Form(_of("product_fp16"), ("f16",), halve_weight),
    "fp8": Form(_in_e4m3, ("bf16", "scale"), quantize_e4m3),
    "w8a16": Form(_of("product_bf16"), ("bf16",), functools.partial(quantize_groups, bits=8)),
    "w8a8_static": Form(
        _in_constant_steps, ("i8", "scale", "shift", "inverse", "offset"), quantize_constant, by="range"
    ),
    "w8a8_smooth": Form(_smooth, ("i8", "scale", "sum", "bias", "inverse", "offset"), quantize_smooth, by="rows"),
    "w4a8": Form(
        _corrected("product_i8"), ("i8", "scale", "sum", "bias"), functools.partial(corrected, hold=_few), by="moments"
    ),
    **{
        f"w4a16_g{size}": Form(
            _corrected("product_bf16"),
            ("bf16", "bias"),
            functools.partial(corrected, hold=functools.partial(quantize_groups, size=size)),
            by="moments",
        )
        for size in (32, 64, 128)
    },
}

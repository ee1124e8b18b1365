"""The op table: for each op its shape rule, its meaning, and its cost. The arithmetic of edgewm is fixed here.

Two meanings share one row. The *canonical* one is float32 with a fixed order: every reduction and every product runs in
index order in one accumulator, products by fused multiply-add (of bf16: neighbours in pairs, the later one first, as
the instruction for it does); transcendentals are the polynomials of `arithmetic.py`, themselves written in ops of this
table. It is what every target computes, bit for bit. The *real* one is the same formula in float64 and serves to
compute tolerances and to meet upstream frameworks.

Why one accumulator in index order: kernels put candidates (or tokens) into vector lanes, so each lane is a scalar
program of its own. Vector width, tile size and thread count cannot change a bit then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from .errors import EdgewmError
from .program import Graph, Node, intern

NUMPY = {
    "f32": np.float32,
    "f64": np.float64,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "i32": np.int32,
    "u32": np.uint32,
    "i8": np.int8,
    "u8": np.uint8,
    "bool": np.bool_,
}
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "i32": 4, "u32": 4, "i8": 1, "u8": 1, "bool": 4}
FLOATS = ("f32",)

Shape = tuple[int, ...]
Typed = tuple[Shape, str]


@dataclass(frozen=True)
class Op:
    """One row of the table.

    `rule(attrs, *sources)` gives shape and dtype; `meaning(attrs, *arrays)` the canonical value; `real` the float64 one
    where it differs; `expand(*nodes)` builds the canonical value from other ops; `flops` counts for one output element.
    """

    name: str
    kind: str  # leaf, elementwise, view, reduction, product, planner, control
    rule: Callable[..., Typed]
    meaning: Callable[..., np.ndarray] | None = None
    real: Callable[..., np.ndarray] | None = None
    expand: Callable[..., Node] | None = None
    flops: int = 0


TABLE: dict[str, Op] = {}


def make(op: str, *sources: Node, **attrs: Any) -> Node:
    """The interned node of `op` on `sources`; EdgewmError when shapes or dtypes do not fit the op's rule."""
    row = TABLE.get(op)
    if row is None:
        raise EdgewmError(
            f"no op named {op!r}", "the op table", "write it with the ops of edgewm/ops.py or add a row there"
        )
    frozen = tuple(sorted(attrs.items())) if attrs else ()
    try:
        shape, dtype = row.rule(attrs, *sources)
    except (ValueError, IndexError, TypeError) as fault:
        raise EdgewmError(
            f"{op} does not accept {', '.join(map(repr, sources)) or 'no source'} with {attrs}",
            f"rule of {op}: {fault}",
            "make shapes and dtypes agree before this op",
        ) from fault
    return intern(op, sources, frozen, tuple(map(int, shape)), dtype)


def remade(node: Node, sources: tuple[Node, ...], inner: Callable[[Graph], Graph] | None = None) -> Node:
    """`node` on other sources, and with `inner` of the graphs in its attributes; itself where these are its own."""
    attrs = node.attrs
    if inner is not None:
        attrs = tuple((name, inner(value) if isinstance(value, Graph) else value) for name, value in attrs)
    same = sources == node.sources and attrs == node.attrs
    return node if same else make(node.op, *sources, **dict(attrs))


# ---------------------------------------------------------------------------------------------- exact arithmetic


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 fused multiply-add, correctly rounded: the float64 sum is right unless it falls on a float32 midpoint."""
    with np.errstate(all="ignore"):
        product = np.multiply(a, b, dtype=np.float64)
        wide = product + np.asarray(c, np.float64)
        doubtful = ((wide.view(np.int64) & 0x1FFFFFFF) == 0x10000000) | ((np.abs(wide) < 2.0**-125) & (wide != 0))
        narrow = wide.astype(np.float32)
        if not doubtful.any():
            return narrow
        addend = np.broadcast_to(np.asarray(c, np.float64), wide.shape)
        p, s, t = (
            product[doubtful] if product.shape == wide.shape else np.broadcast_to(product, wide.shape)[doubtful],
            wide[doubtful],
            addend[doubtful],
        )
        # round to odd in float64, then to nearest even in float32: innocuous double rounding (Boldo & Melquiond, 2008)
        bv = s - p
        error = (p - (s - bv)) + (t - bv)
        even = (s.view(np.int64) & 1) == 0
        odd = np.where((error != 0) & even & np.isfinite(s), np.nextafter(s, np.where(error > 0, np.inf, -np.inf)), s)
        narrow = np.array(narrow)
        narrow[doubtful] = odd.astype(np.float32)
        return narrow


def _matmul_canonical(attrs: dict, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype == np.int8:  # exact: |sum| < 2^53, and BLAS is fast only in floating point
        return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int32)
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    out = np.zeros(shape, np.float32)
    ks = list(range(a.shape[-1]))
    if a.dtype == NUMPY["bf16"]:
        a, b = a.astype(np.float32), b.astype(np.float32)
        ks.sort(key=lambda k: (k // 2, -k))
    for k in ks:
        out = fma32(a[..., :, k, None], b[..., k, None, :], out)
    return out


def _matmul_real(attrs: dict, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype == np.int8:
        return _matmul_canonical(attrs, a, b)
    return np.matmul(np.asarray(a, np.float64), np.asarray(b, np.float64))


def _sum_canonical(attrs: dict, x: np.ndarray) -> np.ndarray:
    axis = attrs["axis"]
    x = np.moveaxis(x, axis, 0)
    out = np.zeros(x.shape[1:], x.dtype)
    with np.errstate(all="ignore"):
        for row in x:
            out = out + row
    return np.expand_dims(out, axis)


def _max_canonical(attrs: dict, x: np.ndarray) -> np.ndarray:
    axis = attrs["axis"]
    x = np.moveaxis(x, axis, 0)
    out = x[0]
    for row in x[1:]:
        out = np.where(row > out, row, out)
    return np.expand_dims(out, axis)


def _topk(attrs: dict, cost: np.ndarray) -> np.ndarray:
    """Indices of the k smallest of a vector, ties by index, in ascending index order; NaN ranks last."""
    key = np.where(np.isnan(cost), np.inf, cost)
    best = np.lexsort((np.arange(len(key)), np.isnan(cost), key))[: attrs["k"]]
    return np.sort(best).astype(np.int32)


def _cast(attrs: dict, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return x.astype(NUMPY[attrs["dtype"]])


def _mulhi(attrs: dict, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a.astype(np.uint64) * b.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)


# ---------------------------------------------------------------------------------------------- shape rules


def _broadcast(*sources: Node) -> Shape:
    return _broadcast_shapes(*(s.shape for s in sources))


def _broadcast_shapes(*shapes: Shape) -> Shape:
    """numpy's, which takes longer to say that shapes are alike than everything else about a node."""
    distinct = {shape for shape in shapes if shape}
    return next(iter(distinct), ()) if len(distinct) < 2 else np.broadcast_shapes(*distinct)


def _same(attrs: dict, *sources: Node) -> Typed:
    if len({s.dtype for s in sources}) != 1:
        raise ValueError("dtypes differ: " + ", ".join(s.dtype for s in sources))
    return _broadcast(*sources), sources[0].dtype


def _float_only(attrs: dict, *sources: Node) -> Typed:
    if any(s.dtype not in FLOATS for s in sources):
        raise ValueError("needs f32")
    return _same(attrs, *sources)


def _unsigned_only(attrs: dict, *sources: Node) -> Typed:
    if any(s.dtype != "u32" for s in sources):
        raise ValueError("needs u32")
    return _same(attrs, *sources)


def _compare(attrs: dict, a: Node, b: Node) -> Typed:
    return _same(attrs, a, b)[0], "bool"


def _where(attrs: dict, c: Node, a: Node, b: Node) -> Typed:
    if c.dtype != "bool" or a.dtype != b.dtype:
        raise ValueError("needs a bool and two values of one dtype")
    return _broadcast(c, a, b), a.dtype


def _reduced(attrs: dict, x: Node) -> Typed:
    axis = attrs["axis"]
    if not 0 <= axis < len(x.shape):
        raise ValueError(f"axis {axis} of {len(x.shape)}")
    return (*x.shape[:axis], 1, *x.shape[axis + 1:]), x.dtype


def _matmul_rule(attrs: dict, a: Node, b: Node) -> Typed:
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[-1] != b.shape[-2] or a.dtype != b.dtype:
        raise ValueError("needs (..., m, k) and (..., k, n) of one dtype")
    if a.dtype not in ("f32", "bf16", "f16", "i8"):
        raise ValueError("needs f32, bf16, f16 or i8")
    shape = (*_broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    return shape, "i32" if a.dtype == "i8" else "f32"


def _reshape_rule(attrs: dict, x: Node) -> Typed:
    if prod(attrs["shape"]) != x.size:
        raise ValueError("number of elements differs")
    return attrs["shape"], x.dtype


def _permute_rule(attrs: dict, x: Node) -> Typed:
    if sorted(attrs["axes"]) != list(range(len(x.shape))):
        raise ValueError("axes are not a permutation")
    return tuple(x.shape[a] for a in attrs["axes"]), x.dtype


def _expand_rule(attrs: dict, x: Node) -> Typed:
    if _broadcast_shapes(x.shape, attrs["shape"]) != tuple(attrs["shape"]):
        raise ValueError("shape is not a broadcast of the source")
    return attrs["shape"], x.dtype


def _slice_rule(attrs: dict, x: Node) -> Typed:
    axis, start, stop = attrs["axis"], attrs["start"], attrs["stop"]
    if not 0 <= start < stop <= x.shape[axis]:
        raise ValueError("range outside the axis")
    return (*x.shape[:axis], stop - start, *x.shape[axis + 1:]), x.dtype


def _concat_rule(attrs: dict, *xs: Node) -> Typed:
    axis = attrs["axis"]
    rest = {(x.shape[:axis], x.shape[axis + 1 :], x.dtype) for x in xs}
    if len(rest) != 1:
        raise ValueError("shapes differ beside the axis, or dtypes differ")
    return (*xs[0].shape[:axis], sum(x.shape[axis] for x in xs), *xs[0].shape[axis + 1:]), xs[0].dtype


def _take_rule(attrs: dict, x: Node, index: Node) -> Typed:
    if len(index.shape) != 1 or index.dtype != "i32":
        raise ValueError("index must be a vector of i32")
    return index.shape + x.shape[1:], x.dtype


def _topk_rule(attrs: dict, cost: Node) -> Typed:
    if len(cost.shape) != 1 or cost.dtype != "f32" or not 0 < attrs["k"] <= cost.shape[0]:
        raise ValueError("needs a vector of f32 at least k long")
    return (attrs["k"],), "i32"


def _repeat_rule(attrs: dict, *sources: Node) -> Typed:
    body: Graph = attrs["body"]
    names = attrs["carries"] + attrs["invariants"]
    if len(names) != len(sources):
        raise ValueError("one source for each carry and each invariant")
    inputs = body.inputs()
    for name, source in zip(names, sources, strict=True):
        leaf = inputs.get(name)
        if leaf is not None and (leaf.shape, leaf.dtype) != (source.shape, source.dtype):
            raise ValueError(f"{name} enters as {source!r} but the body reads {leaf!r}")
    for name, source in zip(attrs["carries"], sources, strict=False):
        out = body.outputs[name]
        if (out.shape, out.dtype) != (source.shape, source.dtype):
            raise ValueError(f"carry {name} enters as {source!r} and leaves as {out!r}")
    if set(inputs) - set(names) - {"counter"}:
        raise ValueError(f"body reads unbound inputs {sorted(set(inputs) - set(names) - {'counter'})}")
    return (), "tuple"


def _get_rule(attrs: dict, loop: Node) -> Typed:
    out = loop["body"].outputs[attrs["name"]]
    return out.shape, out.dtype


def _kernel_rule(attrs: dict, *sources: Node) -> Typed:
    inputs = attrs["body"].inputs()
    for i, source in enumerate(sources):
        leaf = inputs.get(f"p{i}")
        if leaf is not None and (leaf.shape, leaf.dtype) != (source.shape, source.dtype):
            raise ValueError(f"p{i} is bound to {source!r} but the body reads {leaf!r}")
    out = attrs["body"].outputs["y"]
    return out.shape, out.dtype


def _leaf(attrs: dict) -> Typed:
    return attrs["shape"], attrs["dtype"]


def _view(function: Callable[[dict, np.ndarray], np.ndarray]) -> Callable:
    return lambda attrs, x: function(attrs, x)


def _slice(attrs: dict, x: np.ndarray) -> np.ndarray:
    index = [slice(None)] * x.ndim
    index[attrs["axis"]] = slice(attrs["start"], attrs["stop"])
    return x[tuple(index)]


def _iota(attrs: dict) -> np.ndarray:
    shape, axis = attrs["shape"], attrs["axis"]
    line = np.arange(shape[axis], dtype=NUMPY[attrs["dtype"]])
    return np.broadcast_to(line.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)


def _row(name: str, kind: str, rule: Callable, meaning: Callable | None = None, **rest: Any) -> None:
    TABLE[name] = Op(name, kind, rule, meaning, **rest)


def _elementwise(name: str, function: Callable, rule: Callable = _same, flops: int = 1) -> None:
    def meaning(attrs: dict, *xs: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(function(*xs))

    _row(name, "elementwise", rule, meaning, flops=flops)


# leaves: `const` is a float or integer written as its hexadecimal text, so that attributes stay exact and hashable
_row("input", "leaf", _leaf)
_row("weight", "leaf", _leaf)
_row("const", "leaf", lambda a: ((), a["dtype"]), lambda a: np.asarray(const_value(a), NUMPY[a["dtype"]]))
_row("iota", "leaf", _leaf, _iota)

_elementwise("neg", np.negative, _float_only)
_elementwise("abs", np.abs)
_elementwise("sqrt", np.sqrt, _float_only)
_elementwise("rint", np.rint, _float_only)
_elementwise("floor", np.floor, _float_only)
_elementwise("add", np.add)
_elementwise("sub", np.subtract)
_elementwise("mul", np.multiply)
_elementwise("div", np.divide, _float_only)
_elementwise("max", lambda a, b: np.where(a > b, a, b))  # the second operand where unordered, as x86 does
_elementwise("min", lambda a, b: np.where(a < b, a, b))
_elementwise("lt", np.less, _compare)
_elementwise("le", np.less_equal, _compare)
_elementwise("eq", np.equal, _compare)
_elementwise("and", np.bitwise_and)
_elementwise("or", np.bitwise_or)
_elementwise("xor", np.bitwise_xor)
_elementwise("shl", np.left_shift, _unsigned_only)
_elementwise("shr", np.right_shift, _unsigned_only)
_elementwise("where", np.where, _where)
_row("fma", "elementwise", _float_only, lambda a, x, y, z: fma32(x, y, z), real=lambda a, x, y, z: x * y + z, flops=2)
_row("mulhi", "elementwise", _unsigned_only, _mulhi, flops=1)
_row("cast", "elementwise", lambda a, x: (x.shape, a["dtype"]), _cast, flops=1)
_row(
    "bitcast",
    "elementwise",
    lambda a, x: (x.shape, a["dtype"]),
    lambda a, x: np.asarray(x, order="C").view(NUMPY[a["dtype"]]),
)

_row("reshape", "view", _reshape_rule, _view(lambda a, x: x.reshape(a["shape"])))
_row("permute", "view", _permute_rule, _view(lambda a, x: x.transpose(a["axes"])))
_row("expand", "view", _expand_rule, _view(lambda a, x: np.broadcast_to(x, a["shape"])))
_row("slice", "view", _slice_rule, _slice)
_row("concat", "concat", _concat_rule, lambda a, *xs: np.concatenate(xs, a["axis"]))
_row("take", "planner", _take_rule, lambda a, x, i: x[i])

_row("sum", "reduction", _reduced, _sum_canonical, real=lambda a, x: x.sum(a["axis"], keepdims=True))
_row("reduce_max", "reduction", _reduced, _max_canonical)
_row("matmul", "product", _matmul_rule, _matmul_canonical, real=_matmul_real)

_row("topk", "planner", _topk_rule, _topk)
_row("repeat", "control", _repeat_rule)
_row("get", "control", _get_rule)
_row("kernel", "control", _kernel_rule)


def const_value(attrs: dict | Node) -> float | int:
    """The number a `const` node holds."""
    text = attrs["value"]
    return float.fromhex(text) if attrs["dtype"] == "f32" else int(text, 16)


def flops(node: Node) -> int:
    """Floating-point (or integer) operations of one node; a product counts two for each multiply-add."""
    if node.op == "matmul":
        return 2 * node.size * node.sources[0].shape[-1]
    if TABLE[node.op].kind == "reduction":
        return node.sources[0].size
    if node.op == "repeat":
        return node["count"] * graph_flops(node["body"])
    if node.op == "kernel":
        return graph_flops(node["body"])
    return node.size * TABLE[node.op].flops


def graph_flops(graph: Graph) -> int:
    """Operations of one evaluation of the graph, loops multiplied out."""
    return sum(flops(n) for n in graph.order())

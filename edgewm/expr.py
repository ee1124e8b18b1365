"""Short names to build graphs with: one function an op, numbers become constants of the other operand's dtype."""

from __future__ import annotations

from collections.abc import Sequence

from .ops import make, remade
from .program import Graph, Node

Value = Node | float | int


def const(value: float, dtype: str = "f32") -> Node:
    """A scalar; f32 constants are rounded to float32 first, so that what is stored is what is used."""
    if dtype == "f32":
        import struct

        return make("const", dtype=dtype, value=struct.unpack("<f", struct.pack("<f", value))[0].hex())
    return make("const", dtype=dtype, value=hex(int(value)))


def lift(value: Value, like: Node) -> Node:
    """`value` as a node: numbers take the dtype of `like`."""
    return value if isinstance(value, Node) else const(value, like.dtype)


def input(name: str, shape: Sequence[int], dtype: str = "f32") -> Node:
    return make("input", name=name, shape=tuple(shape), dtype=dtype)


def weight(name: str, shape: Sequence[int], dtype: str = "f32") -> Node:
    return make("weight", name=name, shape=tuple(shape), dtype=dtype)


def iota(shape: Sequence[int], axis: int, dtype: str = "i32") -> Node:
    return make("iota", shape=tuple(shape), axis=axis, dtype=dtype)


def _binary(op: str):
    def build(a: Value, b: Value) -> Node:
        first = a if isinstance(a, Node) else b
        return make(op, lift(a, first), lift(b, first))

    build.__name__ = op
    return build


def _unary(op: str):
    def build(x: Node) -> Node:
        return make(op, x)

    build.__name__ = op
    return build


add, sub, mul, div = _binary("add"), _binary("sub"), _binary("mul"), _binary("div")
maximum, minimum = _binary("max"), _binary("min")
less, less_equal, equal = _binary("lt"), _binary("le"), _binary("eq")
bit_and, bit_or, xor, shl, shr, mulhi = (_binary(op) for op in ("and", "or", "xor", "shl", "shr", "mulhi"))
neg, absolute, sqrt, rint, floor = (_unary(op) for op in ("neg", "abs", "sqrt", "rint", "floor"))
exp, log, erf, tanh, gelu = (_unary(op) for op in ("exp", "log", "erf", "tanh", "gelu"))
sin2pi, cos2pi, e4m3 = _unary("sin2pi"), _unary("cos2pi"), _unary("e4m3")


def fma(a: Node, b: Value, c: Value) -> Node:
    return make("fma", a, lift(b, a), lift(c, a))


def select(condition: Node, a: Value, b: Value) -> Node:
    like = a if isinstance(a, Node) else b
    return make("where", condition, lift(a, like), lift(b, like))


def cast(x: Node, dtype: str) -> Node:
    return x if x.dtype == dtype else make("cast", x, dtype=dtype)


def bitcast(x: Node, dtype: str) -> Node:
    return x if x.dtype == dtype else make("bitcast", x, dtype=dtype)


def reshape(x: Node, shape: Sequence[int]) -> Node:
    return x if tuple(shape) == x.shape else make("reshape", x, shape=tuple(int(d) for d in shape))


def permute(x: Node, axes: Sequence[int]) -> Node:
    return x if list(axes) == list(range(len(x.shape))) else make("permute", x, axes=tuple(axes))


def expand(x: Node, shape: Sequence[int]) -> Node:
    return x if tuple(shape) == x.shape else make("expand", x, shape=tuple(shape))


def narrow(x: Node, axis: int, start: int, stop: int) -> Node:
    """`x[start:stop]` along one axis."""
    axis %= len(x.shape)
    if (start, stop) == (0, x.shape[axis]):
        return x
    return make("slice", x, axis=axis, start=start, stop=stop)


def concat(xs: Sequence[Node], axis: int) -> Node:
    return xs[0] if len(xs) == 1 else make("concat", *xs, axis=axis % len(xs[0].shape))


def matmul(a: Node, b: Node) -> Node:
    return make("matmul", a, b)


def reduce_sum(x: Node, axis: int) -> Node:
    """Sum along one axis, which stays with length 1."""
    return make("sum", x, axis=axis % len(x.shape))


def reduce_max(x: Node, axis: int) -> Node:
    """Maximum along one axis, which stays with length 1."""
    return make("reduce_max", x, axis=axis % len(x.shape))


def mean(x: Node, axis: int) -> Node:
    return mul(reduce_sum(x, axis), 1.0 / x.shape[axis])


def softmax(x: Node, axis: int) -> Node:
    """exp(x - max) times the reciprocal of its sum: one division a row."""
    e = exp(sub(x, reduce_max(x, axis)))
    return mul(e, div(1.0, reduce_sum(e, axis)))


def normalised(x: Node, eps: float, axis: int) -> Node:
    """(x - mean) / sqrt(variance + eps) along one axis: two passes, one division."""
    centred = sub(x, mean(x, axis))
    variance = mean(mul(centred, centred), axis)
    return mul(centred, div(1.0, sqrt(add(variance, eps))))


def sigmoid(x: Node) -> Node:
    return div(1.0, add(exp(neg(x)), 1.0))


def silu(x: Node) -> Node:
    return mul(x, sigmoid(x))


def softplus(x: Node) -> Node:
    """log(1 + e^x), with e^-|x| so that nothing overflows."""
    return add(maximum(x, 0.0), log(add(exp(neg(absolute(x))), 1.0)))


LEVELS = -128.0, 127.0  # of eight bits


def fake_quantized(x: Node, step: float) -> Node:
    """`x` as int8 in whole steps would give it back, zero as zero; halves go to the even level."""
    low, high = LEVELS
    return mul(minimum(maximum(rint(div(x, step)), low), high), step)


def dequantized(levels: Node, step: Node) -> Node:
    """Levels i8 (in, out) times the step of each column (1, out)."""
    return mul(cast(levels, "f32"), step)


def topk(cost: Node, k: int) -> Node:
    return make("topk", cost, k=k)


def take(x: Node, index: Node) -> Node:
    return make("take", x, index)


def repeat(
    count: int, body: Graph, carries: dict[str, Node], invariants: dict[str, Node] | None = None
) -> dict[str, Node]:
    """Run `body` `count` times; its outputs of the carries' names feed the next round. Returns every output by name.

    Inside, `input` leaves of those names are the carries and invariants, and `counter` (u32 scalar) is the round.
    """
    invariants = invariants or {}
    loop = make(
        "repeat", *carries.values(), *invariants.values(),
        count=count, body=body, carries=tuple(carries), invariants=tuple(invariants),
    )
    return {name: make("get", loop, name=name) for name in body.outputs}


def inline(graph: Graph, bindings: dict[str, Node]) -> dict[str, Node]:
    """The graph's outputs with its inputs replaced by `bindings`."""
    from .program import rewrite

    return rewrite(
        graph.outputs,
        lambda node, sources: bindings.get(node["name"], node) if node.op == "input"
        else remade(node, sources),
    )

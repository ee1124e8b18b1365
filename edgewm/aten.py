"""What each aten operator means in ops: one table, aten name -> function that builds the expression.

A function takes the operator's arguments by their schema names (`self` and `input` are called `x`). Tensors arrive as
nodes; rows marked `raw` get `Constant`s as they are, because they choose how a weight is laid out. `Refused` says why
not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from . import expr as e
from .program import Node

Number = float | int
Axes = int | Sequence[int] | None


class Refused(Exception):
    """An argument of a known operator that the table does not cover."""


TABLE: dict[str, Callable] = {}
RAW: set[str] = set()
DTYPES = {
    torch.float16: "f32",
    torch.bfloat16: "f32",
    torch.float32: "f32",
    torch.float64: "f32",
    torch.int64: "i32",
    torch.int32: "i32",
    torch.int16: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def row(*names: str, raw: bool = False) -> Callable[[Callable], Callable]:
    def enter(function: Callable) -> Callable:
        for name in names:
            TABLE[name] = function
            if raw:
                RAW.add(name)
        return function

    return enter


# ------------------------------------------------------------------------------------------------------ axes and types


def axis_of(x: Node, dim: int, extra: int = 0) -> int:
    return dim % (len(x.shape) + extra)


def axes_of(x: Node, dim: Axes) -> list[int]:
    """Axes in ascending order; none given means all."""
    dims = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return sorted({axis_of(x, d) for d in dims}) if dims else list(range(len(x.shape)))


def drop(x: Node, axes: Sequence[int]) -> Node:
    return e.reshape(x, [d for a, d in enumerate(x.shape) if a not in axes])


def real(x: Node | Number) -> Node | Number:
    return e.cast(x, "f32") if isinstance(x, Node) else float(x)


def promoted(*xs: Node | Number) -> list[Node | Number]:
    """torch's type promotion, between floats, integers and truth values."""
    kinds = [x.dtype if isinstance(x, Node) else "f32" if isinstance(x, float) else "" for x in xs]
    found = {k for k in kinds if k}
    common = next(k for k in ("f32", "i32", "u8", "i8", "bool") if k in found)
    return [e.cast(x, common) if isinstance(x, Node) else x for x in xs]


def swap(x: Node, a: int, b: int) -> Node:
    axes = list(range(len(x.shape)))
    axes[a], axes[b] = axes[b], axes[a]
    return e.permute(x, axes)


# ---------------------------------------------------------------------------------------------------------- elementwise


def _binary(name: str, build: Callable[[Node, Node], Node], floats: bool = False) -> None:
    def function(x, other):
        return build(*(map(real, (x, other)) if floats else promoted(x, other)))

    row(name)(function)


for _name, _build in {
    "maximum": e.maximum, "minimum": e.minimum, "lt": e.less, "le": e.less_equal, "eq": e.equal,
    "gt": lambda a, b: e.less(b, a), "ge": lambda a, b: e.less_equal(b, a), "mul": e.mul,
    "ne": lambda a, b: negate(e.equal(a, b)), "bitwise_and": e.bit_and, "bitwise_or": e.bit_or, "bitwise_xor": e.xor,
    "logical_and": e.bit_and, "logical_or": e.bit_or, "logical_xor": e.xor,
}.items():  # fmt: skip
    _binary(_name, _build)


def negate(x: Node) -> Node:
    if x.dtype != "bool":
        raise Refused(f"negation of {x.dtype}")
    return e.equal(x, e.const(0, "bool"))


@row("add")
def add(x, other, alpha=1):
    x, other = promoted(x, other)
    return e.add(x, other if alpha == 1 else e.mul(e.lift(other, x), alpha))


@row("sub")
def sub(x, other, alpha=1):
    x, other = promoted(x, other)
    return e.sub(x, other if alpha == 1 else e.mul(e.lift(other, x), alpha))


@row("rsub")
def rsub(x, other, alpha=1):
    return sub(other, x, alpha)


@row("div", "true_divide")
def div(x, other, rounding_mode=None):
    if rounding_mode is not None:
        raise Refused(f"rounding_mode={rounding_mode!r}")
    return e.div(real(x), real(other))


@row("pow")
def power(x, exponent):
    if isinstance(exponent, Node) or not isinstance(x, Node):
        raise Refused("an exponent that is a tensor")
    if exponent in (0.5, -0.5):
        root = e.sqrt(real(x))
        return root if exponent > 0 else e.div(1.0, root)
    n = abs(int(exponent))
    if n != abs(exponent) or not 0 < n <= 8:
        raise Refused(f"exponent {exponent}")
    value = x
    for _ in range(n - 1):
        value = e.mul(value, x)
    return value if exponent > 0 else e.div(1.0, value)


def _turns(x: Node) -> Node:
    """An angle in radians as a fraction of a turn in [0, 1]."""
    turns = e.mul(real(x), 1 / (2 * math.pi))
    return e.sub(turns, e.floor(turns))


def mish(x: Node) -> Node:
    return e.mul(x, e.tanh(e.softplus(x)))


for _name, _build in {
    "neg": e.neg, "abs": e.absolute, "square": lambda x: e.mul(x, x), "sqrt": e.sqrt, "exp": e.exp, "log": e.log,
    "rsqrt": lambda x: e.div(1.0, e.sqrt(x)), "reciprocal": lambda x: e.div(1.0, x), "erf": e.erf, "tanh": e.tanh,
    "log1p": lambda x: e.log(e.add(x, 1.0)), "expm1": lambda x: e.sub(e.exp(x), 1.0), "sigmoid": e.sigmoid,
    "sin": lambda x: e.sin2pi(_turns(x)), "cos": lambda x: e.cos2pi(_turns(x)), "floor": e.floor, "round": e.rint,
    "ceil": lambda x: e.neg(e.floor(e.neg(x))), "relu": lambda x: e.maximum(x, 0.0), "silu": e.silu, "mish": mish,
    "relu6": lambda x: e.minimum(e.maximum(x, 0.0), 6.0), "log_sigmoid": lambda x: e.neg(e.softplus(e.neg(x))),
    "sign": lambda x: e.select(e.less(0.0, x), 1.0, e.select(e.less(x, 0.0), e.const(-1.0), 0.0)),
    "hardsigmoid": lambda x: e.mul(e.minimum(e.maximum(e.add(x, 3.0), 0.0), 6.0), 1 / 6),
    "hardswish": lambda x: e.mul(x, e.mul(e.minimum(e.maximum(e.add(x, 3.0), 0.0), 6.0), 1 / 6)),
}.items():  # fmt: skip
    row(_name)(_build)
row("logical_not", "bitwise_not")(negate)


@row("gelu")
def gelu(x, approximate="none"):
    if approximate == "none":
        return e.gelu(x)
    inner = e.mul(e.add(e.mul(e.mul(e.mul(x, x), x), 0.044715), x), math.sqrt(2 / math.pi))
    return e.mul(e.mul(x, 0.5), e.add(e.tanh(inner), 1.0))


@row("softplus")
def softplus(x, beta=1, threshold=20):
    return e.softplus(x) if beta == 1 else e.mul(e.softplus(e.mul(x, beta)), 1.0 / beta)


@row("leaky_relu")
def leaky_relu(x, negative_slope=0.01):
    return e.select(e.less(0.0, x), x, e.mul(x, negative_slope))


@row("elu")
def elu(x, alpha=1, scale=1, input_scale=1):
    below = e.mul(e.sub(e.exp(e.mul(e.minimum(x, 0.0), input_scale)), 1.0), alpha * scale)
    return e.select(e.less(0.0, x), e.mul(x, scale), below)


@row("clamp", "hardtanh", "clamp_min", "clamp_max")
def clamp(x, min=None, max=None, min_val=None, max_val=None):
    low, high = (min if min is not None else min_val), (max if max is not None else max_val)
    x = x if low is None else e.maximum(*promoted(x, low))
    return x if high is None else e.minimum(*promoted(x, high))


@row("where")
def where(condition, x, other):
    like = next((v for v in (x, other) if isinstance(v, Node)), e.const(0.0))
    return e.select(condition, *promoted(e.lift(x, like), e.lift(other, like)))


@row("masked_fill")
def masked_fill(x, mask, value):
    return e.select(mask, *reversed(promoted(x, value)))


@row("lerp")
def lerp(x, end, weight):
    return e.add(x, e.mul(e.sub(end, x), weight))


@row("addcmul")
def addcmul(x, tensor1, tensor2, value=1):
    product = e.mul(tensor1, tensor2)
    return e.add(x, product if value == 1 else e.mul(product, value))


@row("_to_copy", "to", "type_as")
def to(x, dtype=None, other=None):
    return e.cast(x, other.dtype if other is not None else x.dtype if dtype is None else DTYPES[dtype])


@row("clone", "contiguous", "detach", "detach_", "alias", "lift_fresh_copy", "dropout", "dropout_", "alpha_dropout")
def identity(x, p=0.0, train=False):
    if train:
        raise Refused("dropout while training")
    return x


@row("full_like", "new_full")
def full_like(x, fill_value, size=None, dtype=None):
    return e.expand(e.const(fill_value, x.dtype if dtype is None else DTYPES[dtype]), x.shape if size is None else size)


@row("zeros_like", "new_zeros")
def zeros_like(x, size=None, dtype=None):
    return full_like(x, 0, size, dtype)


@row("ones_like", "new_ones")
def ones_like(x, size=None, dtype=None):
    return full_like(x, 1, size, dtype)


# ----------------------------------------------------------------------------------------------------------- reductions


def _reduce(x: Node, dim: Axes, keepdim: bool, build: Callable[[Node, int], Node]) -> Node:
    axes = axes_of(x, dim)
    for a in axes:
        x = build(x, a)
    return x if keepdim else drop(x, axes)


def _count(x: Node, dim: Axes) -> int:
    return math.prod(x.shape[a] for a in axes_of(x, dim))


def negative_max(x: Node, axis: int) -> Node:
    return e.neg(e.reduce_max(e.neg(x), axis))


@row("sum")
def sum_(x, dim=None, keepdim=False, dtype=None):
    return _reduce(x if x.dtype == "i32" else real(x), dim, keepdim, e.reduce_sum)


@row("mean")
def mean(x, dim=None, keepdim=False, dtype=None):
    return e.mul(_reduce(x, dim, keepdim, e.reduce_sum), 1.0 / _count(x, dim))


@row("amax")
def amax(x, dim=(), keepdim=False):
    return _reduce(x, dim, keepdim, e.reduce_max)


@row("amin")
def amin(x, dim=(), keepdim=False):
    return _reduce(x, dim, keepdim, negative_max)


@row("max")
def max_(x, dim=None, other=None, keepdim=False):
    if other is not None:
        return e.maximum(*promoted(x, other))
    return amax(x) if dim is None else (amax(x, dim, keepdim), None)


@row("min")
def min_(x, dim=None, other=None, keepdim=False):
    if other is not None:
        return e.minimum(*promoted(x, other))
    return amin(x) if dim is None else (amin(x, dim, keepdim), None)


@row("var")
def var(x, dim=None, correction=None, unbiased=True, keepdim=False):
    correction = (1 if unbiased else 0) if correction is None else correction
    centred = e.sub(x, mean(x, dim, True))
    return e.mul(_reduce(e.mul(centred, centred), dim, keepdim, e.reduce_sum), 1.0 / (_count(x, dim) - correction))


@row("std")
def std(x, dim=None, correction=None, unbiased=True, keepdim=False):
    return e.sqrt(var(x, dim, correction, unbiased, keepdim))


@row("linalg_vector_norm", "norm")
def vector_norm(x, ord=None, p=None, dim=None, keepdim=False, dtype=None):
    order = next((v for v in (ord, p) if v is not None), 2)
    if order == 2:
        return e.sqrt(_reduce(e.mul(x, x), dim, keepdim, e.reduce_sum))
    if order == 1:
        return _reduce(e.absolute(x), dim, keepdim, e.reduce_sum)
    if order == math.inf:
        return _reduce(e.absolute(x), dim, keepdim, e.reduce_max)
    raise Refused(f"a norm of order {order}")


@row("softmax", "_softmax")
def softmax(x, dim, dtype=None, half_to_float=False):
    return e.softmax(x, dim)


@row("logsumexp")
def logsumexp(x, dim, keepdim=False):
    top = amax(x, dim, True)
    total = e.add(e.log(_reduce(e.exp(e.sub(x, top)), dim, True, e.reduce_sum)), top)
    return total if keepdim else drop(total, axes_of(x, dim))


@row("log_softmax", "_log_softmax")
def log_softmax(x, dim, dtype=None, half_to_float=False):
    return e.sub(x, logsumexp(x, dim, True))

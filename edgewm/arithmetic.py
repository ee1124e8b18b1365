"""Transcendentals, a rounding, random numbers, written in ops: the same bits on every target, as every step is an op.

Polynomial coefficients were fitted in float64 (Lawson-weighted least squares on Chebyshev nodes); the bounds stated are
tested against float64. Philox is Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), 4x32-10. E4M3 is
the format of OCP's 8-bit Floating Point Specification (2023): no infinities, one NaN.
"""

from __future__ import annotations

import math

import numpy as np

from . import expr as e
from .ops import TABLE, Op, _float_only
from .program import Node

E4M3_LARGEST = 448.0
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # Cody-Waite split of ln 2

EXP = (
    0.001383684342727065,
    0.008374817669391632,
    0.04166822507977486,
    0.16666419804096222,
    0.49999991059303284,
    1.0,
    1.0,
)
LOG = (
    0.08722349256277084, -0.14366839826107025, 0.14952267706394196, -0.16562393307685852, 0.19956833124160767,
    -0.25002074241638184, 0.3333418667316437, -0.49999988079071045, 1.0,
)
SIN = (41.46989059448242, -76.6977767944336, 81.6052017211914, -41.34170150756836, 6.2831854820251465)
COS = (59.20280075073242, -85.44229888916016, 64.9393081665039, -19.739208221435547, 1.0)
ERF_ABOVE = (
    2.0503864561760565e-06, 0.00028745795134454966, 0.003836897434666753, 0.05296698212623596, 0.19194146990776062,
    1.128378987312317,
)
ERF_BELOW = (
    3.823076986009255e-05, 0.0011817400809377432, 0.015109246596693993, 0.11475839465856552, 0.503435492515564, 1.0,
)
TANH_ABOVE = (
    1.5061718983133687e-08,
    2.177317946916446e-05,
    0.003564152168110013,
    0.13438187539577484,
    0.9999999403953552,
)
GELU = (
    6.589158601855161e-06, 4.344104672782123e-05, 6.156805466162041e-05, 0.0033945119939744473, 0.0220929067581892,
    0.05207221955060959, 1.0442737340927124,
)
TANH_BELOW = (8.453624218418554e-07, 0.00033991728560067713, 0.026135999709367752, 0.4677150845527649, 1.0)


def horner(x: Node, coefficients: tuple[float, ...]) -> Node:
    """Polynomial, highest power first, by fused multiply-add."""
    value = e.fma(x, coefficients[0], coefficients[1])
    for c in coefficients[2:]:
        value = e.fma(value, x, c)
    return value


def exp(x: Node) -> Node:
    """e^x, relative error below 3e-7; 0 below -87, e^88 above 88."""
    held = e.minimum(e.maximum(x, -87.0), 88.0)
    n = e.rint(e.mul(held, math.log2(math.e)))
    r = e.fma(n, -LN2_LOW, e.fma(n, -LN2_HIGH, held))
    power = e.bitcast(e.shl(e.bitcast(e.add(e.cast(n, "i32"), 127), "u32"), 23), "f32")
    return e.select(e.less(x, -87.0), 0.0, e.mul(horner(r, EXP), power))


def log(x: Node) -> Node:
    """ln x of a normal positive number, absolute error below 3e-7 of max(1, |ln x|)."""
    bits = e.bitcast(x, "u32")
    # the exponent that leaves the mantissa in [sqrt 1/2, sqrt 2): 0x3f3504f3 is sqrt 1/2
    shifted = e.sub(e.bitcast(bits, "i32"), 0x3F3504F3)
    n = e.cast(e.floor(e.mul(e.cast(shifted, "f32"), 2.0**-23)), "i32")
    mantissa = e.bitcast(e.sub(bits, e.shl(e.bitcast(n, "u32"), 23)), "f32")
    f = e.sub(mantissa, 1.0)
    nf = e.cast(n, "f32")
    return e.fma(nf, LN2_HIGH, e.fma(f, horner(f, LOG), e.mul(nf, LN2_LOW)))


def _odd_rational(x: Node, bound: float, above: tuple[float, ...], below: tuple[float, ...]) -> Node:
    held = e.minimum(e.maximum(x, -bound), bound)
    t = e.mul(held, held)
    return e.div(e.mul(held, horner(t, above)), horner(t, below))


def erf(x: Node) -> Node:
    """The error function, absolute error below 4e-7."""
    return _odd_rational(x, 3.9, ERF_ABOVE, ERF_BELOW)


def tanh(x: Node) -> Node:
    """Hyperbolic tangent, absolute error below 4e-7."""
    return _odd_rational(x, 8.0, TANH_ABOVE, TANH_BELOW)


def gelu(x: Node) -> Node:
    """x Phi(x), the exact form, absolute error below 6e-7; NaN for infinities.

    x Phi(x) = max(x, 0) - |x| Phi(-|x|), and Phi(-a) = 1 / p(a)^16 with p(0)^16 = 2: the form of Hastings for the error
    function, "Approximations for digital computers" (1955), Abramowitz and Stegun 7.1.28.
    """
    a = e.absolute(x)
    power = horner(a, GELU)
    for _ in range(4):
        power = e.mul(power, power)
    return e.sub(e.maximum(x, 0.0), e.div(a, power))


def _quarter(u: Node) -> tuple[Node, Node, Node]:
    """Quadrant of a turn u in [0, 1], and sine and cosine of what is left (within an eighth of a turn)."""
    q = e.rint(e.mul(u, 4.0))
    t = e.fma(q, -0.25, u)
    s = e.mul(t, t)
    return e.cast(q, "i32"), e.mul(t, horner(s, SIN)), horner(s, COS)


def sin2pi(u: Node) -> Node:
    """sin(2 pi u) for u in [0, 1], absolute error below 2e-7."""
    q, s, c = _quarter(u)
    value = e.select(e.equal(e.bit_and(q, 1), 1), c, s)
    return e.select(e.equal(e.bit_and(q, 2), 2), e.neg(value), value)


def cos2pi(u: Node) -> Node:
    """cos(2 pi u) for u in [0, 1], absolute error below 2e-7."""
    q, s, c = _quarter(u)
    value = e.select(e.equal(e.bit_and(q, 1), 1), s, c)
    return e.select(e.equal(e.bit_and(e.add(q, 1), 2), 2), e.neg(value), value)


def e4m3(x: Node) -> Node:
    """The number of E4M3 nearest to x, as f32: four significant bits, multiples of 2^-9 below 2^-6. Ties go to even,
    beyond 448 is 448, and NaN stays."""
    held = e.minimum(E4M3_LARGEST, e.absolute(x))  # of two numbers the second where one is NaN
    power = e.bitcast(e.bit_and(e.bitcast(held, "u32"), 0x7F800000), "f32")
    room = e.mul(e.maximum(power, 2.0**-6), 2.0**20)  # a float32 next to it has no bits below the fourth one of x
    rounded = e.sub(e.add(held, room), room)
    sign = e.bit_and(e.bitcast(x, "u32"), 0x80000000)
    return e.bitcast(e.bit_or(e.bitcast(rounded, "u32"), sign), "f32")


def _real_e4m3(x: np.ndarray) -> np.ndarray:
    held = np.minimum(np.abs(x), E4M3_LARGEST)
    last = np.maximum(np.frexp(held)[1] - 1, -6) - 3  # the exponent of the last bit
    return np.copysign(np.ldexp(np.rint(np.ldexp(held, -last)), last), x)


def philox(counter: tuple[Node, Node, Node, Node], key: tuple[Node, Node]) -> tuple[Node, Node, Node, Node]:
    """Four words of Philox 4x32-10 for four counter words and two key words (all u32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    m0, m1 = e.const(0xD2511F53, "u32"), e.const(0xCD9E8D57, "u32")
    for _ in range(10):
        high0, low0 = e.mulhi(c0, m0), e.mul(c0, m0)
        high1, low1 = e.mulhi(c2, m1), e.mul(c2, m1)
        c0, c1, c2, c3 = e.xor(e.xor(high1, c1), k0), low1, e.xor(e.xor(high0, c3), k1), low0
        k0, k1 = e.add(k0, 0x9E3779B9), e.add(k1, 0xBB67AE85)
    return c0, c1, c2, c3


def normal(shape: tuple[int, ...], counter: tuple[Node, Node, Node], key: tuple[Node, Node]) -> Node:
    """Standard normal numbers: element i uses Philox counter (i, *counter) and Box-Muller's cosine branch."""
    strides = [int(np.prod(shape[a + 1 :], dtype=np.int64)) for a in range(len(shape))]
    index = e.const(0, "u32")
    for axis, stride in enumerate(strides):
        index = e.add(e.mul(e.iota(shape, axis, "u32"), stride), index)
    w0, w1, _, _ = philox((index, *counter), key)
    unit = [e.mul(e.add(e.cast(e.bitcast(e.shr(w, 9), "i32"), "f32"), 0.5), 2.0**-23) for w in (w0, w1)]
    return e.mul(e.sqrt(e.mul(log(unit[0]), -2.0)), cos2pi(unit[1]))


def _register() -> None:
    real_erf = np.vectorize(math.erf, otypes=[np.float64])
    real = {
        "exp": np.exp, "log": np.log, "tanh": np.tanh, "erf": real_erf,
        "gelu": lambda x: 0.5 * x * (1.0 + real_erf(x * math.sqrt(0.5))),
        "sin2pi": lambda u: np.sin(2 * np.pi * u), "cos2pi": lambda u: np.cos(2 * np.pi * u), "e4m3": _real_e4m3,
    }
    cost = {"exp": 14, "log": 16, "tanh": 14, "erf": 15, "gelu": 20, "sin2pi": 20, "cos2pi": 20, "e4m3": 9}
    for expand in (exp, log, erf, tanh, gelu, sin2pi, cos2pi, e4m3):
        name = expand.__name__
        TABLE[name] = Op(
            name, "elementwise", _float_only, expand=expand, flops=cost[name],
            real=lambda attrs, x, f=real[name]: np.asarray(f(np.asarray(x, np.float64))),
        )


_register()

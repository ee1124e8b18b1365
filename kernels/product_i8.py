"""W8A8 product: y[m, n] = z[m] c[n] + (sum_k q[m, k] w[k, n]) * (s[m] * t[n]), q = round((x - z) * 127 / h), s = h / 127.

Weights are int8 for each output channel with scale t; c is what each column of weights adds up to, t included.
Activations are quantized for each row at run time, so nothing has to be calibrated: z is the middle and h half the width
of the range of a row and 0. A range that is not symmetric (behind a GELU, say) so fills all 255 steps. The sum over k is
an exact integer on every target. A row with a NaN in it has a scale, and so a result, of NaN.
"""

from edgewm import expr as e
from edgewm.program import Node

SMALLEST = 2.0**-100  # a row of zeros keeps a finite reciprocal
MINUS_ZERO = 1 << 31  # its bits


def reference(x: Node, w: Node, t: Node, c: Node) -> Node:
    """`x` (..., m, k) f32, `w` (..., k, n) i8, `t` and `c` (..., 1, n) f32 to (..., m, n) f32."""
    # As signed integers, bits of positive numbers are ordered as they are, above all negative ones; as unsigned ones,
    # those of negative numbers by their magnitude, above all positive ones. NaN is above all in one of the two.
    high = e.bitcast(e.maximum(e.reduce_max(e.bitcast(x, "i32"), -1), 0), "f32")
    low = e.bitcast(e.maximum(e.reduce_max(e.bitcast(x, "u32"), -1), MINUS_ZERO), "f32")
    middle = e.add(e.mul(high, 0.5), e.mul(low, 0.5))
    half = e.maximum(SMALLEST, e.sub(e.mul(high, 0.5), e.mul(low, 0.5)))  # NaN stays
    inverse = e.div(127.0, half)
    q = e.rint(e.minimum(e.fma(x, inverse, e.neg(e.mul(middle, inverse))), 127.0))  # 127 for NaN
    total = e.cast(e.matmul(e.cast(q, "i8"), w), "f32")
    return e.fma(middle, c, e.mul(total, e.mul(e.div(half, 127.0), t)))


def placeholders(rank: int) -> tuple[Node, Node, Node, Node]:
    """Leaves of the reference for a result of `rank` dimensions."""
    lead = (2,) * (rank - 2)
    x, w = e.input("x", (*lead, 3, 5)), e.input("w", (5, 7), "i8")
    return x, w, e.input("t", (1, 7)), e.input("c", (1, 7))

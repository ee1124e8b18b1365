"""W8A8 product: y[m, n] = (sum_k q[m, k] w[k, n]) * (s[m] * t[n]), q = round(x * 127 / max|x|), s = max|x| / 127.

Weights are int8 for each output channel with scale t; activations are quantized for each row at run time, so nothing has
to be calibrated. The sum is an exact integer on every target. A row with a NaN in it has a scale, and so a result, of NaN.
"""

from edgewm import expr as e
from edgewm.program import Node

SMALLEST = (127 - 100) << 23  # bits of 2^-100: a row of zeros keeps a finite reciprocal


def reference(x: Node, w: Node, t: Node) -> Node:
    """`x` (..., m, k) f32, `w` (..., k, n) i8, `t` (..., 1, n) f32 to (..., m, n) f32."""
    bits = e.reduce_max(e.bitcast(e.absolute(x), "i32"), -1)  # of magnitudes: ordered as they are, NaN above all
    largest = e.bitcast(e.maximum(bits, SMALLEST), "f32")
    q = e.rint(e.minimum(e.mul(x, e.div(127.0, largest)), 127.0))  # 127 for NaN
    total = e.cast(e.matmul(e.cast(q, "i8"), w), "f32")
    return e.mul(total, e.mul(e.div(largest, 127.0), t))


def placeholders(rank: int) -> tuple[Node, Node, Node]:
    """Leaves of the reference for a result of `rank` dimensions."""
    lead = (2,) * (rank - 2)
    return e.input("x", (*lead, 3, 5)), e.input("w", (5, 7), "i8"), e.input("t", (1, 7))

"""Integer product: y[m, n] = sum over k of q(x[m, k]) w[k, n], q to the nearest integer (ties to even), -127 to 127.

What W8A8 in constant steps multiplies: `x` is an activation in steps of its tensor (a scale and a shift, known when the
bundle is built), and y goes on with the step of each output channel. Both are element-wise, a neighbour's work: no row
is looked at before it is rounded. What is beyond the range counts as its end, and NaN as -127.

Weights are int8, packed as those of `product_i8`. The sum over k is an exact integer on every target.
"""

from edgewm import expr as e
from edgewm.program import Node

LEVELS = 127.0  # to either side of 0


def reference(x: Node, w: Node) -> Node:
    """`x` (..., m, k) f32, `w` (..., k, n) i8 to (..., m, n) f32."""
    held = e.minimum(e.maximum(x, -LEVELS), LEVELS)
    return e.cast(e.matmul(e.cast(e.rint(held), "i8"), w), "f32")


def placeholders(rank: int) -> tuple[Node, Node]:
    """Leaves of the reference for a result of `rank` dimensions."""
    return e.input("x", (*(2,) * (rank - 2), 3, 5)), e.input("w", (5, 7), "i8")

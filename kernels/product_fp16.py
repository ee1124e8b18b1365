"""fp16 product: y[m, n] = sum over k of h(x[m, k]) w[k, n], h to IEEE half (nearest even), the sum in f32.

Weights are held as half; activations are rounded as they are read, and saturate at 65504: a robot has no use for an
infinity. NaN stays. (A weight beyond 65504 is refused when a bundle is built.) One accumulator a result, from 0, k
ascending, every step one fused multiply-add: the product of two halves is exact in f32.

A CPU has no instruction that multiplies halves and adds float32, so there halves are stored and multiplied as the
float32 they are: no byte and no time is saved. A GPU's tensor cores do it at the rate of bf16, in an order of their own.
Of eleven bits fp16 loses an eighth of what bf16 does with its eight.
"""

from edgewm import expr as e
from edgewm.program import Node

LARGEST = 65504.0


def reference(x: Node, w: Node) -> Node:
    """`x` (..., m, k) f32, `w` (..., k, n) f16 to (..., m, n) f32."""
    held = e.maximum(-LARGEST, e.minimum(LARGEST, x))  # of two numbers the second where one is NaN
    return e.matmul(e.cast(held, "f16"), w)


def placeholders(rank: int) -> tuple[Node, Node]:
    """Leaves of the reference for a result of `rank` dimensions."""
    return e.input("x", (*(2,) * (rank - 2), 3, 5)), e.input("w", (5, 7), "f16")

"""bf16 product: y[m, n] = sum over k of b(x[m, k]) w[k, n], b to bf16 (nearest even), the sum in f32.

Weights are held as bf16; activations are rounded as they are read. One accumulator a result, from 0, neighbours of k
taken in pairs, the later one first (1, 0, 3, 2, ...; a last one without a neighbour alone), every step one fused
multiply-add. That is `vdpbf16ps` of AVX512-BF16 to the bit (Intel SDM, volume 2), and a chain of plain multiply-adds
elsewhere: bf16 halves the bytes of weights everywhere, the time only where the CPU has that instruction.

The instruction also flushes denormals, which plain multiply-adds do not. So none may arise: what would round to less
than SMALLEST is 0, in weights and activations alike. Each product then is a multiple of 2^-126, the smallest normal
number (two factors from 2^-56 on, of 8 bits each: 2 * (-56 - 7) = -126), and so is every sum of products.
"""

from edgewm import expr as e
from edgewm.program import Node

FEATURES = ("avx512bf16",)  # used where a CPU has them
SMALLEST = 2.0**-56
ROUNDS_TO_SMALLEST = SMALLEST * (1 - 2.0**-9)  # from here on


def reference(x: Node, w: Node) -> Node:
    """`x` (..., m, k) f32, `w` (..., k, n) bf16 to (..., m, n) f32."""
    kept = e.select(e.less(e.absolute(x), ROUNDS_TO_SMALLEST), 0.0, x)
    return e.matmul(e.cast(kept, "bf16"), w)


def placeholders(rank: int) -> tuple[Node, Node]:
    """Leaves of the reference for a result of `rank` dimensions."""
    return e.input("x", (*(2,) * (rank - 2), 3, 5)), e.input("w", (5, 7), "bf16")

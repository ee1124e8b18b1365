"""Attention: o = softmax(s) v, with scores s = (an element-wise expression of) q k^T.

The scores of one query never leave the tile: they are made, normalised and used in one call.
"""

from edgewm import expr as e
from edgewm.program import Node

QUERIES = 3  # computed at once in attention.cc, so that what is read of keys and values serves them all


def reference(scores: Node, v: Node) -> Node:
    """`scores` (..., i, j), `v` (..., j, d) to (..., i, d)."""
    return e.matmul(e.softmax(scores, -1), v)


def placeholders(rank: int) -> tuple[Node, Node]:
    """Leaves of the reference for a result of `rank` dimensions."""
    lead = (2,) * (rank - 2)
    return e.input("scores", (*lead, 3, 5)), e.input("v", (*lead, 5, 7))


def workspace_bytes(keys: int, depth: int, tile: int, direct: bool = False) -> int:
    """SCRATCH of `attention.cc` for one tile: for each of QUERIES queries its scores [keys][tile] f32 and, unless it is
    `direct` (read where it lies), the query itself, [depth][tile].

    `keys` is the extent of j, `depth` that of q and k; `tile` is that of `product.TILING`.
    """
    return 4 * QUERIES * (keys + (0 if direct else depth)) * tile

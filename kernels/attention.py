"""Attention: o = softmax(s) v, with scores s = (an element-wise expression of) q k^T.

The scores of one query never leave the tile: they are made, normalised and used in one call.
"""

from edgewm import expr as e
from edgewm.program import Node


def reference(scores: Node, v: Node) -> Node:
    """`scores` (..., i, j), `v` (..., j, d) to (..., i, d)."""
    return e.matmul(e.softmax(scores, -1), v)


def placeholders(rank: int) -> tuple[Node, Node]:
    """Leaves of the reference for a result of `rank` dimensions."""
    lead = (2,) * (rank - 2)
    return e.input("scores", (*lead, 3, 5)), e.input("v", (*lead, 5, 7))


def workspace_bytes(
    keys: int, depth: int, width: int, tile: int, n_block: int, keys_shared: bool, values_shared: bool
) -> int:
    """SCRATCH of `attention.cc` for one tile: a query [depth][tile] and its scores [keys][tile] f32, then the keys and
    the values packed as a product's weights, [ceil(N / n_block)][K][n_block] f32, where the tile's lanes share them.

    `keys` is the extent of j, `depth` that of q and k, `width` that of v; `tile` and `n_block` are those of
    `product.TILING`.
    """
    packed_keys = -(-keys // n_block) * n_block * depth if keys_shared else 0
    packed_values = -(-width // n_block) * n_block * keys if values_shared else 0
    return 4 * ((depth + keys) * tile + packed_keys + packed_values)

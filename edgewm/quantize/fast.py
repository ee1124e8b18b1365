"""Values of a graph at the speed of BLAS: the formulas of the op table in float32, but not in its order.

For comparing thousands of costs under many recipes, where the order of a sum does not matter: what it changes is far
below what any format rounds away. The oracle, bit for bit, is `interp.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import arithmetic  # noqa: F401  (fills the table's transcendental rows)
from ..expr import input as leaf
from ..ops import NUMPY, TABLE
from ..program import Graph, Node, order

Array = np.ndarray
EXACT_IN_F32 = 2**24  # integers up to there
_LEAVES = ("input", "weight")


def values_of(
    graph: Graph, inputs: Mapping[str, Array], weights: Mapping[str, Array], known: Mapping[Node, Array] | None = None
) -> dict[Node, Array]:
    """Values of all nodes under the graph's outputs, but of those `known` and of what only these need.

    Graphs without loops, such as an entry `score`."""
    known = {} if known is None else known
    found: dict[Node, Array] = {}
    for node in order(graph.outputs.values(), known):
        if node.op in _LEAVES:
            given = inputs if node.op == "input" else weights
            found[node] = np.asarray(given[node["name"]], NUMPY[node.dtype])
        else:
            found[node] = _value(node, [found[s] if s in found else known[s] for s in node.sources])
    return found


def _value(node: Node, sources: list[Array]) -> Array:
    row, attrs = TABLE[node.op], dict(node.attrs)
    if node.op == "matmul":
        return _product(*sources)
    if node.op == "kernel":
        body = node["body"]
        return values_of(body, {f"p{i}": s for i, s in enumerate(sources)}, {})[body.outputs["y"]]
    if node.op == "reduce_max":
        return sources[0].max(attrs["axis"], keepdims=True)
    if row.expand is not None:
        leaves = [leaf(f"x{i}", s.shape, n.dtype) for i, (s, n) in enumerate(zip(sources, node.sources, strict=True))]
        body = Graph({"y": row.expand(*leaves)})
        return values_of(body, {f"x{i}": s for i, s in enumerate(sources)}, {})[body.outputs["y"]]
    if row.real is not None:  # of float32: the same formula, rounded as numpy goes
        return row.real(attrs, *sources)
    return row.meaning(attrs, *sources)


def _product(a: Array, b: Array) -> Array:
    """(..., m, k) x (..., k, n); rows of all leading dimensions at once where these share the second operand."""
    is_integer, depth = a.dtype == np.int8, a.shape[-1]
    kind = np.float64 if is_integer and 127 * 127 * depth >= EXACT_IN_F32 else np.float32
    left, right = a.astype(kind, copy=False), b.astype(kind, copy=False)
    if b.ndim == 2:
        found = (left.reshape(-1, depth) @ right).reshape(*a.shape[:-1], b.shape[-1])
    else:
        found = left @ right
    return found.astype(np.int32) if is_integer else found

"""How far rounding can take a graph's outputs: counted in its ops, not chosen."""

from __future__ import annotations

from typing import Any

import numpy as np

from .ops import TABLE
from .program import Graph

UNIT_ROUNDOFF = float(np.finfo(np.float32).eps) / 2
TRANSCENDENTAL_ULP = 8  # of one evaluation of an op that stands for a polynomial, as bounded in arithmetic.py


def rounding_steps(graph: Graph) -> int:
    """Roundings on the longest path of a graph: one an op, 8 a transcendental, the length for products and sums.

    Each output is a chain of products, and rounding in a chain of n terms is within n units of the sum of magnitudes.
    """
    steps: dict[Any, int] = {}
    for node in graph.order():
        kind = TABLE[node.op].kind
        own = 0 if kind in ("leaf", "view", "concat") else 1
        if node.op == "repeat":
            own = node["count"] * rounding_steps(node["body"])
        elif node.op == "matmul":
            own = node.sources[0].shape[-1]
        elif TABLE[node.op].expand is not None:
            own = TRANSCENDENTAL_ULP
        elif kind == "reduction":
            own = node.sources[0].shape[node["axis"]]
        steps[node] = own + max((steps[s] for s in node.sources), default=0)
    return max(steps[n] for n in graph.outputs.values())

"""How far rounding can take a graph's outputs, and how far apart two answers are: nothing here is chosen by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgewm.ops import TABLE
from edgewm.program import Graph

UNIT_ROUNDOFF = float(np.finfo(np.float32).eps) / 2
TRANSCENDENTAL_ULP = 8  # of one evaluation of an op that stands for a polynomial, as bounded in edgewm/arithmetic.py
DEVIATIONS = 3  # of the rank correlation of unrelated numbers


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


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The greatest difference, over the largest magnitude."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, of two vectors; None for fewer than two numbers."""
    if a.size < 2:
        return None
    ranks = [np.argsort(np.argsort(x.ravel())).astype(np.float64) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def unrelated(count: int) -> float:
    """The rank correlation that unrelated vectors of that length hardly reach."""
    return DEVIATIONS / max(count - 1, 1) ** 0.5

"""Operations of a graph by what computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..ops import flops
from ..program import Graph, Node


def operations(graph: Graph) -> Counter[str]:
    """Operations of one evaluation: products by dtype of their operands ("f32", "i8"), all else as "vector"."""
    found: Counter[str] = Counter()
    for node, times in _computing(graph, 1):
        found[node.sources[0].dtype if node.op == "matmul" else "vector"] += times * flops(node)
    return found


def _computing(graph: Graph, times: int) -> Iterator[tuple[Node, int]]:
    """Every node that computes, and how often it does."""
    for node in graph.order():
        if node.op in ("repeat", "kernel"):
            yield from _computing(node["body"], times * (node["count"] if node.op == "repeat" else 1))
        else:
            yield node, times

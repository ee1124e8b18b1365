"""One product in the place of several of one value: their weights side by side, and what follows alike as well.

Queries, keys and values of one row; what modulates each layer. The row is read, normalised and rounded once then, not
once for each product. Columns of a product know nothing of each other, so no bit changes.
"""

from __future__ import annotations

import numpy as np

from .. import expr as e
from ..ops import TABLE, make, remade
from ..program import Graph, Node, Program, rewrite, users


def merge_products(program: Program) -> Program:
    """Merges `matmul(x, weight)` of one x. What all of them go on with element by element, each with weights of its
    own, is merged too; the parts are slices of the whole."""
    weights = dict(program.weights)
    entries = {name: _merged(graph, weights) for name, graph in program.entries.items()}
    return program.with_(entries=entries, weights=weights)


def _merged(graph: Graph, weights: dict[str, np.ndarray]) -> Graph:
    whole: dict[tuple[Node, ...], Node] = {}  # what stands for these roots together
    group_of = {root: roots for roots in _groups(graph) for root in roots}
    new_of: dict[Node, Node] = {}

    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        if node in group_of:
            roots = group_of[node]
            if roots not in whole:
                whole[roots] = _beside(roots, tuple(r.shape[-1] for r in roots), new_of, weights)
            axis, before = len(node.shape) - 1, roots[: roots.index(node)]
            start = sum(r.shape[-1] for r in before)
            new = e.narrow(whole[roots], axis, start, start + node.shape[-1])
        else:
            new = remade(node, sources, lambda inner: _merged(inner, weights))
        new_of[node] = new
        return new

    return Graph(rewrite(graph.outputs, rule))


def _groups(graph: Graph) -> list[tuple[Node, ...]]:
    """The roots to merge: products of one value, or what they have become where that is still alike."""
    readers, outputs = users(graph.outputs.values()), set(graph.outputs.values())
    products: dict[Node, list[Node]] = {}
    for node in graph.order():
        if node.op == "matmul" and node.sources[1].op == "weight":
            products.setdefault(node.sources[0], []).append(node)
    found = []
    for group in products.values():
        roots, widths = tuple(group), tuple(n.shape[-1] for n in group)
        if len(roots) < 2 or not _alike(roots, widths):
            continue
        while all(len(readers[r]) == 1 and r not in outputs for r in roots):
            after = tuple(readers[r][0] for r in roots)
            if len(set(after)) < len(after) or not _alike(after, widths):
                break
            roots = after
        found.append(roots)
    return found


def _alike(nodes: tuple[Node, ...], widths: tuple[int, ...]) -> bool:
    """Whether these can stand side by side: one value for all columns, or weights of their own, under the same ops."""
    first = nodes[0]
    if len(set(nodes)) == 1:
        return first.shape[-1:] in ((), (1,))
    if len({(n.op, n.attrs if n.op != "weight" else (), len(n.sources), n.dtype, n.shape[:-1]) for n in nodes}) > 1:
        return False
    if first.op == "weight":
        return tuple(n.shape[-1:] for n in nodes) == tuple((w,) for w in widths)
    parts = list(zip(*(n.sources for n in nodes), strict=True))
    if first.op == "matmul":
        return len(set(parts[0])) == 1 and all(w.op == "weight" for w in parts[1]) and _alike(parts[1], widths)
    return TABLE[first.op].kind == "elementwise" and all(_alike(part, widths) for part in parts)


def _beside(
    nodes: tuple[Node, ...], widths: tuple[int, ...], new_of: dict[Node, Node], weights: dict[str, np.ndarray]
) -> Node:
    """What `_alike` nodes are side by side. Their leaves are common to all, so they were rewritten before any root."""
    first = nodes[0]
    if len(set(nodes)) == 1:
        return new_of[first]
    if first.op == "weight":
        name = "+".join(n["name"] for n in nodes)
        if name not in weights:
            weights[name] = np.concatenate([weights[n["name"]] for n in nodes], -1)
        return e.weight(name, weights[name].shape, first.dtype)
    parts = list(zip(*(n.sources for n in nodes), strict=True))
    if first.op == "matmul":
        return make("matmul", new_of[parts[0][0]], _beside(parts[1], widths, new_of, weights))
    return make(first.op, *(_beside(part, widths, new_of, weights) for part in parts), **dict(first.attrs))

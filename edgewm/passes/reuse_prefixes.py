"""Compute a causal prefix once: while a rollout's window grows, the rows it had before are what they were.

A window of T tokens begins with the window of T - 1 tokens, at the same positions, under the same actions. A row-wise op
of a concatenation is the concatenation of the op of its pieces; a causal attention row reads only keys up to its own.
So each value of the longer window is split into its pieces, and a piece that an earlier window already computed is the
very same node. Nothing is assumed: a piece is reused only when building it gives a node that exists. Once the window
slides, positions shift, no piece is found, and the window stays whole, in one product over all its rows.
"""

from __future__ import annotations

import functools

import numpy as np

from .. import expr as e
from ..kernel import match
from ..ops import TABLE, make
from ..program import Graph, Node, Program, order
from .fuse_kernels import score_dot
from .prune_rows import same_axis


def reuse_prefixes(program: Program) -> Program:
    entries = {name: _Reuse(graph, program.weights).build() for name, graph in program.entries.items()}
    cut.cache_clear()  # it holds every node it saw
    return program.with_(entries=entries)


class _Reuse:
    def __init__(self, graph: Graph, weights: dict[str, np.ndarray]):
        self.graph, self.weights = graph, weights
        self.built: set[Node] = set()
        self.new: dict[Node, Node] = {}

    def build(self) -> Graph:
        for node in self.graph.order():
            attrs = {k: _Reuse(v, self.weights).build() if isinstance(v, Graph) else v for k, v in node.attrs}
            made = self.rebuilt(node.op, [self.new[s] for s in node.sources], attrs)
            self.new[node] = made
            self.built.update(order(made) if made.op == "concat" else (made,))
        return Graph({name: self.new[node] for name, node in self.graph.outputs.items()})

    def rebuilt(self, op: str, sources: list[Node], attrs: dict) -> Node:
        if op == "concat":
            return concat(sources, attrs["axis"])
        if op == "slice":
            return cut(sources[0], attrs["axis"], attrs["start"], attrs["stop"])
        node = make(op, *sources, **attrs)
        if op == "where" and self.all_true(sources[0]) and sources[1].shape == node.shape:
            return sources[1]
        bound = match("attention", node)
        if bound:
            return self.attention(node, bound) or node
        return self.split(node, attrs) or node

    def split(self, node: Node, attrs: dict) -> Node | None:
        """The op piece by piece, if the first piece is known already; known pieces first, the rest in one."""
        found = next(((i, s) for i, s in enumerate(node.sources) if s.op == "concat"), None)
        axis = found and _result_axis(node, *found)
        if axis is None:
            return None
        start, pieces = 0, []
        lengths = [p.shape[found[1]["axis"]] for p in found[1].sources]
        while start < node.shape[axis]:
            stop = start + lengths[len(pieces)]
            piece = _rows_of(node, axis, start, stop)
            if piece not in self.built:
                if not pieces:
                    return None
                pieces.append(_rows_of(node, axis, start, node.shape[axis]))
                break
            pieces.append(piece)
            start = stop
        return concat(pieces, axis)

    def attention(self, node: Node, bound: dict[str, Node]) -> Node | None:
        """Rows of queries with the keys they may see; masked keys add exact zeros, so leaving them out changes nothing."""
        dot = score_dot(bound["scores"])
        if dot is None or dot.sources[0].op != "concat":
            return None
        queries, keys, values = *dot.sources, bound["v"]
        axis = len(node.shape) - 2
        if queries["axis"] != axis or len(queries.shape) != len(node.shape):
            return None
        seen = self.visible(bound["scores"])
        if seen is None:
            return None
        start, pieces = 0, []
        lengths = [p.shape[axis] for p in queries.sources]
        while start < node.shape[axis]:
            stop = start + lengths[len(pieces)]
            piece = self.query_rows(node, bound, dot, seen, start, stop)
            if piece is None or piece not in self.built:
                if not pieces:
                    return None
                rest = self.query_rows(node, bound, dot, seen, start, node.shape[axis])
                pieces.append(rest if rest is not None else cut(node, axis, start, node.shape[axis]))
                break
            pieces.append(piece)
            start = stop
        return concat(pieces, axis)

    def visible(self, scores: Node) -> np.ndarray | None:
        """(queries, keys) bool of `where(mask, s, -inf-like)`; None for any other shape of scores."""
        if scores.op != "where" or scores.sources[2].op != "const":
            return None
        mask = self.constant(scores.sources[0])
        if mask is None or float.fromhex(scores.sources[2]["value"]) > -1e30:
            return None
        return np.broadcast_to(mask, scores.shape)[(0,) * (len(scores.shape) - 2)]

    def query_rows(self, node: Node, bound: dict, dot: Node, seen: np.ndarray, start: int, stop: int) -> Node | None:
        """Attention of queries [start, stop) over the keys any of them sees, if those are the first ones."""
        rows = seen[start:stop]
        keys = int(rows.any(0).sum())
        if not rows[:, :keys].any(0).all() or keys == 0:
            return None
        axis = len(node.shape) - 2
        scores = bound["scores"].sources[1]
        scores = cut(cut(scores, axis, start, stop), axis + 1, 0, keys)
        if not rows[:, :keys].all():
            mask = cut(cut(e.expand(bound["scores"].sources[0], node.shape[:-1] + seen.shape[1:]), axis, start, stop), axis + 1, 0, keys)
            scores = make("where", mask, scores, bound["scores"].sources[2])
        if score_dot(scores) is None:
            return None
        return e.matmul(e.softmax(scores, -1), cut(bound["v"], axis, 0, keys))

    def all_true(self, mask: Node) -> bool:
        value = self.constant(mask)
        return value is not None and bool(value.all())

    def constant(self, node: Node) -> np.ndarray | None:
        """The value of an expression of weights and constants, if it is one."""
        from ..interp import run

        nodes = order(node)
        if any(n.op == "input" or TABLE[n.op].kind == "control" for n in nodes):
            return None
        return run(Graph({"y": node}), {}, self.weights)["y"]


def concat(pieces: list[Node], axis: int) -> Node:
    """Flat: a concatenation inside a concatenation of the same axis is part of it."""
    flat = [p for piece in pieces for p in (piece.sources if piece.op == "concat" and piece["axis"] == axis else (piece,))]
    return e.concat(flat, axis)


@functools.lru_cache(maxsize=None)
def cut(x: Node, axis: int, start: int, stop: int) -> Node:
    """x[start:stop] along an axis, taken as near to the leaves as it goes, so that equal rows are equal nodes."""
    if (start, stop) == (0, x.shape[axis]):
        return x
    if x.op == "slice" and x["axis"] == axis:
        return cut(x.sources[0], axis, x["start"] + start, x["start"] + stop)
    if x.op == "slice" and x["axis"] > axis:
        return e.narrow(cut(x.sources[0], axis, start, stop), x["axis"], x["start"], x["stop"])
    if x.op == "concat" and x["axis"] == axis:
        pieces, at = [], 0
        for piece in x.sources:
            low, high = max(start, at), min(stop, at + piece.shape[axis])
            if low < high:
                pieces.append(cut(piece, axis, low - at, high - at))
            at += piece.shape[axis]
        return concat(pieces, axis)
    kind = TABLE[x.op].kind
    if kind == "elementwise" or (x.op == "matmul" and axis >= len(x.shape) - 2) or x.op in ("permute", "expand"):
        return _rows_of(x, axis, start, stop)
    if kind == "reduction" and axis != x["axis"]:
        return _rows_of(x, axis, start, stop)
    if x.op == "reshape" and same_axis(x, axis) is not None:
        return _rows_of(x, axis, start, stop)
    return e.narrow(x, axis, start, stop)


def _rows_of(node: Node, axis: int, start: int, stop: int) -> Node:
    """The op on those rows of its sources that make rows [start, stop) of its axis."""
    attrs, rank = dict(node.attrs), len(node.shape)
    if node.op == "permute":
        return e.permute(cut(node.sources[0], node["axes"][axis], start, stop), node["axes"])
    if node.op in ("reshape", "expand"):
        shape = list(node.shape)
        shape[axis] = stop - start
        if node.op == "reshape":
            return e.reshape(cut(node.sources[0], same_axis(node, axis), start, stop), shape)
        return e.expand(_aligned(node.sources[0], node, axis, start, stop), shape)
    if node.op == "matmul":
        a, b = node.sources
        if axis == rank - 1:
            return e.matmul(a, cut(b, len(b.shape) - 1, start, stop))
        return e.matmul(cut(a, len(a.shape) - 2, start, stop), b)
    if node.op == "slice":
        return e.narrow(cut(node.sources[0], axis, start, stop), node["axis"], node["start"], node["stop"])
    return make(node.op, *(_aligned(s, node, axis, start, stop) for s in node.sources), **attrs)


def _aligned(source: Node, node: Node, axis: int, start: int, stop: int) -> Node:
    """The rows of a broadcast source; all of it where it has one row for all."""
    own = axis - (len(node.shape) - len(source.shape))
    if own < 0 or source.shape[own] != node.shape[axis]:
        return source
    return cut(source, own, start, stop)


def _result_axis(node: Node, i: int, source: Node) -> int | None:
    """The axis of the result along which the op of a concatenation is a concatenation of ops; None where it is not."""
    axis, kind, rank = source["axis"], TABLE[node.op].kind, len(node.shape)
    if kind == "elementwise":
        return axis + rank - len(source.shape) if source.shape[axis] == node.shape[axis + rank - len(source.shape)] else None
    if kind == "reduction":
        return axis if axis != node["axis"] else None
    if node.op == "matmul":
        return axis if i == 0 and axis == rank - 2 and len(source.shape) == rank and len(node.sources[1].shape) == 2 else None
    if node.op == "permute":
        return node["axes"].index(axis)
    if node.op == "slice":
        return axis if axis != node["axis"] else None
    if node.op == "reshape":
        found = [a for a in range(rank) if same_axis(node, a) == axis]
        return found[0] if found else None
    return None

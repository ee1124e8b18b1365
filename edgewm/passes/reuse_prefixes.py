"""Compute a causal prefix once: while a rollout's window grows, the rows it had before are what they were.

A window of T tokens begins with the window of T - 1 tokens, at the same positions, under the same actions. A row-wise
op of a concatenation is the concatenation of the op of its pieces; a causal attention row reads only keys up to its
own. So each value of the longer window is split into its pieces, and a piece that an earlier window already computed is
the very same node. Nothing is assumed: a piece is reused only when building it gives a node that exists. Once the
window slides, positions shift, no piece is found, and the window stays whole, in one product over all its rows.

A window that begins with frames that were seen, under actions that were played, begins alike for every candidate: such
a piece is one row's work for all of them (`delay_expands`), and is split off in every window that has it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

import numpy as np

from .. import expr as e
from ..kernel import match
from ..ops import TABLE, make
from ..program import Graph, Node, Program, order
from .delay_expands import Delay, spread_last
from .fuse_kernels import score_dot
from .prune_rows import same_axis

VIEWS, CHEAP, PRODUCTS = range(3)  # how far a cut goes
SMALL = 1 << 14  # elements of a weight that is compared by content


def reuse_prefixes(program: Program) -> Program:
    store = _Constants(dict(program.weights))
    entries = {name: _Reuse(graph, store).build() for name, graph in program.entries.items()}
    return program.with_(entries=entries, weights=store.weights)


class _Constants:
    """Small weights by content: rows of a position table are one node however they were cut out of it."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self.names = {self.content(w): name for name, w in reversed(weights.items()) if w.size <= SMALL}

    def content(self, value: np.ndarray) -> tuple:
        return value.shape, str(value.dtype), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()

    def leaf(self, value: np.ndarray, dtype: str) -> Node:
        key = self.content(value)
        if key not in self.names:
            self.names[key] = f"constant/{key[2][:16]}"
            self.weights[self.names[key]] = np.ascontiguousarray(value)
        return e.weight(self.names[key], value.shape, dtype)


class _Reuse:
    def __init__(self, graph: Graph, store: _Constants):
        self.graph, self.store = graph, store
        self.built: set[Node] = set()
        self.whole: set[Node] = set()  # of these, the ones that were added with all that they need
        self.new: dict[Node, Node] = {}
        self.cuts: dict[tuple, Node] = {}
        self.delay = Delay()

    def build(self) -> Graph:
        for node in self.graph.order():
            attrs = {k: _Reuse(v, self.store).build() if isinstance(v, Graph) else v for k, v in node.attrs}
            made = self.delay(self.rebuilt(node.op, [self.new[s] for s in node.sources], attrs))
            self.new[node] = made
            self.built.add(made)
            if made.op == "concat":
                needed = order(made, self.whole)
                self.built.update(needed)
                self.whole.update(needed)
        return Graph({name: self.new[node] for name, node in self.graph.outputs.items()})

    def rebuilt(self, op: str, sources: list[Node], attrs: dict) -> Node:
        if op == "concat":
            return concat(sources, attrs["axis"])
        if op == "slice":
            node = self.cut(sources[0], attrs["axis"], attrs["start"], attrs["stop"], VIEWS)
            return (self.split(node) if node.op == "slice" else None) or node
        node = make(op, *sources, **attrs)
        if op == "weight" and node.size <= SMALL:
            return self.store.leaf(self.store.weights[attrs["name"]], node.dtype)
        if op == "where" and self.all_true(sources[0]) and sources[1].shape == node.shape:
            return sources[1]
        bound = match("attention", node)
        if bound:
            return self.attention(node, bound) or node
        return self.split(node) or node

    def split(self, node: Node) -> Node | None:
        """The op piece by piece, if the first piece is known already; known pieces first, the rest in one."""
        pieces = [(_result_axis(node, i, s), s) for i, s in enumerate(node.sources) if s.op == "concat"]
        axis = pieces[0][0] if pieces else None
        if axis is None:
            return None
        ends = sorted({end for along, source in pieces if along == axis for end in _ends(source)})
        return self.known_first(ends, axis, lambda start, stop: self.rows_of(node, axis, start, stop))

    def known_first(self, ends: list[int], axis: int, rows: Callable[[int, int], Node | None]) -> Node | None:
        """Pieces with these ends as long as they are known, and the rest in one; None where not even the first is.

        A window that began with several frames knows them together: the first piece may hold several of `ends`.
        """
        end = ends[-1]
        start, pieces = self.shared(ends, rows)
        for stop in [stop for stop in ends[:-1] or ends if stop > start]:
            piece = self.delayed(rows(start, stop))
            if piece in self.built:
                pieces.append(piece)
                start = stop
            elif pieces:
                break
        rest = rows(start, end) if pieces and start < end else None
        if not pieces or (start < end and rest is None):
            return None
        return concat(pieces if rest is None else [*pieces, rest], axis)

    def shared(self, ends: list[int], rows: Callable[[int, int], Node | None]) -> tuple[int, list[Node]]:
        """Where the rows end that are alike for all candidates, and these in one piece; 0 where there are none."""
        if not self.is_spread(rows(0, ends[0])):
            return 0, []
        longest = max(stop for stop in ends if stop == ends[0] or self.is_spread(rows(0, stop)))
        return longest, [self.delayed(rows(0, longest))]

    def is_spread(self, piece: Node | None) -> bool:
        made = self.delayed(piece)
        return made is not None and made.op == "expand"

    def delayed(self, piece: Node | None) -> Node | None:
        return None if piece is None else self.delay(piece)

    def attention(self, node: Node, bound: dict[str, Node]) -> Node | None:
        """Rows of queries with the keys they may see; masked keys add exact zeros: leaving them out changes nothing."""
        dot = score_dot(bound["scores"])
        if dot is None or dot.sources[0].op != "concat":
            return None
        queries = dot.sources[0]
        axis = len(node.shape) - 2
        if queries["axis"] != axis or len(queries.shape) != len(node.shape):
            return None
        seen = self.visible(bound["scores"])
        if seen is None:
            return None
        ends = _ends(queries)
        return self.known_first(ends, axis, lambda start, stop: self.query_rows(node, bound, seen, start, stop))

    def visible(self, scores: Node) -> np.ndarray | None:
        """(queries, keys) bool of `where(mask, s, -inf-like)`; None for any other shape of scores."""
        if scores.op != "where" or scores.sources[2].op != "const":
            return None
        mask = self.constant(scores.sources[0])
        if mask is None or float.fromhex(scores.sources[2]["value"]) > -1e30:
            return None
        return np.broadcast_to(mask, scores.shape)[(0,) * (len(scores.shape) - 2)]

    def query_rows(self, node: Node, bound: dict, seen: np.ndarray, start: int, stop: int) -> Node | None:
        """Attention of queries [start, stop) over the keys any of them sees, if those are the first ones."""
        rows = seen[start:stop]
        keys = int(rows.any(0).sum())
        # keys seen must be the first ones; a query that sees none takes the mean of all values, masked or not
        if not rows[:, :keys].any(0).all() or not rows.any(1).all():
            return None
        axis = len(node.shape) - 2
        scores = bound["scores"].sources[1]
        scores = self.cut(self.cut(scores, axis, start, stop, PRODUCTS), axis + 1, 0, keys, PRODUCTS)
        if not rows[:, :keys].all():
            mask = self.aligned(bound["scores"].sources[0], bound["scores"], axis, start, stop)
            mask = self.aligned(mask, bound["scores"], axis + 1, 0, keys)
            scores = make("where", mask, scores, bound["scores"].sources[2])
        if score_dot(scores) is None:
            return None
        return e.matmul(e.softmax(scores, -1), self.cut(bound["v"], axis, 0, keys))

    def all_true(self, mask: Node) -> bool:
        value = self.constant(mask)
        return value is not None and bool(value.all())

    def constant(self, node: Node) -> np.ndarray | None:
        """The value of an expression of weights and constants, if it is one."""
        from ..interp import run

        nodes = order(node)
        if any(n.op == "input" or TABLE[n.op].kind == "control" for n in nodes):
            return None
        return run(Graph({"y": node}), {}, self.store.weights)["y"]

    def cut(self, x: Node, axis: int, start: int, stop: int, through: int = 1) -> Node:
        """x[start:stop] along an axis, taken towards the leaves, so that equal rows are equal nodes.

        `through` says how far: VIEWS only tidies slices and concatenations, CHEAP goes through element-wise ops too,
        PRODUCTS also through products and reductions.
        """
        key = (x, axis, start, stop, through)
        if key not in self.cuts:
            self.cuts[key] = x if (start, stop) == (0, x.shape[axis]) else self.made_cut(*key)
        return self.cuts[key]

    def made_cut(self, x: Node, axis: int, start: int, stop: int, through: int) -> Node:
        if x.op == "weight" and x.size <= SMALL:
            return self.store.leaf(np.take(self.store.weights[x["name"]], range(start, stop), axis), x.dtype)
        if x.op == "slice" and x["axis"] == axis:
            return self.cut(x.sources[0], axis, x["start"] + start, x["start"] + stop, through)
        if x.op == "expand":
            return self.delay(self.rows_of(x, axis, start, stop, through))
        if x.op == "slice" and x["axis"] > axis:
            return e.narrow(self.cut(x.sources[0], axis, start, stop, through), x["axis"], x["start"], x["stop"])
        if x.op == "concat" and x["axis"] == axis:
            pieces, at = [], 0
            for piece in x.sources:
                low, high = max(start, at), min(stop, at + piece.shape[axis])
                if low < high:
                    pieces.append(self.cut(piece, axis, low - at, high - at, through))
                at += piece.shape[axis]
            return concat(pieces, axis)
        kind = TABLE[x.op].kind
        cheap = (
            kind == "elementwise"
            or x.op in ("permute", "expand")
            or (x.op == "reshape" and same_axis(x, axis) is not None)
        )
        dear = (x.op == "matmul" and axis >= len(x.shape) - 2) or (kind == "reduction" and axis != x["axis"])
        if (cheap and through == CHEAP and self.made_of_cuts(x)) or ((cheap or dear) and through == PRODUCTS):
            return self.rows_of(x, axis, start, stop, through)
        return e.narrow(x, axis, start, stop)

    def made_of_cuts(self, x: Node) -> bool:
        """Whether an element-wise value comes from slices and concats alone: cutting it computes nothing twice."""
        if x.op in ("slice", "concat", "const") or (x.op == "weight" and x.size <= SMALL):
            return True
        cheap = TABLE[x.op].kind in ("elementwise", "view")
        return cheap and all(s.shape == () or len(s.shape) < len(x.shape) or self.made_of_cuts(s) for s in x.sources)

    def rows_of(self, node: Node, axis: int, start: int, stop: int, through: int = 1) -> Node:
        """The op on those rows of its sources that make rows [start, stop) of its axis."""
        attrs, rank = dict(node.attrs), len(node.shape)
        if node.op == "permute":
            return e.permute(self.cut(node.sources[0], node["axes"][axis], start, stop, through), node["axes"])
        if node.op in ("reshape", "expand"):
            shape = list(node.shape)
            shape[axis] = stop - start
            if node.op == "reshape":
                return e.reshape(self.cut(node.sources[0], same_axis(node, axis), start, stop, through), shape)
            return e.expand(self.aligned(node.sources[0], node, axis, start, stop, through), shape)
        if node.op == "matmul":
            a, b = node.sources
            if axis == rank - 1:
                return e.matmul(a, self.cut(b, len(b.shape) - 1, start, stop, through))
            return e.matmul(self.cut(a, len(a.shape) - 2, start, stop, through), b)
        if node.op == "slice":
            return e.narrow(
                self.cut(node.sources[0], axis, start, stop, through), node["axis"], node["start"], node["stop"]
            )
        return make(node.op, *(self.aligned(s, node, axis, start, stop, through) for s in node.sources), **attrs)

    def aligned(self, source: Node, node: Node, axis: int, start: int, stop: int, through: int = 1) -> Node:
        """The rows of a broadcast source; all of it where it has one row for all."""
        own = axis - (len(node.shape) - len(source.shape))
        if own < 0 or source.shape[own] != node.shape[axis]:
            return source
        return self.cut(source, own, start, stop, through)


def concat(pieces: list[Node], axis: int) -> Node:
    """Flat: a concatenation inside a concatenation of the same axis is part of it; neighbours that were expanded alike
    are expanded together."""
    runs: list[list[Node]] = []
    for piece in pieces:
        for part in piece.sources if piece.op == "concat" and piece["axis"] == axis else (piece,):
            if runs and spread_last(e.concat([*runs[-1], part], axis)).op == "expand":
                runs[-1].append(part)
            else:
                runs.append([part])
    return e.concat([spread_last(e.concat(run, axis)) for run in runs], axis)


def _ends(concatenation: Node) -> list[int]:
    """Where the pieces end."""
    return list(itertools.accumulate(piece.shape[concatenation["axis"]] for piece in concatenation.sources))


def _result_axis(node: Node, i: int, source: Node) -> int | None:
    """The axis of the result along which the op of a concatenation is a concatenation of ops; None where it is not."""
    axis, kind, rank = source["axis"], TABLE[node.op].kind, len(node.shape)
    if kind == "elementwise":
        return (
            axis + rank - len(source.shape)
            if source.shape[axis] == node.shape[axis + rank - len(source.shape)]
            else None
        )
    if kind == "reduction":
        return axis if axis != node["axis"] else None
    if node.op == "matmul":
        return (
            axis
            if i == 0 and axis == rank - 2 and len(source.shape) == rank and len(node.sources[1].shape) == 2
            else None
        )
    if node.op == "permute":
        return node["axes"].index(axis)
    if node.op == "slice":
        return axis if axis != node["axis"] else None
    if node.op == "reshape":
        found = [a for a in range(rank) if same_axis(node, a) == axis]
        return found[0] if found else None
    return None

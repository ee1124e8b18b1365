"""Compute only the rows that somebody reads: a slice moves towards the leaves until rows are made.

A predictor returns a latent for every token of its window and the planner reads the last; an encoder's last block
serves one CLS token. Demand flows from the outputs to the leaves: where all readers of a value want no more than a
range of one axis, and the op makes those rows from the same rows of its sources, only they are computed. Keys and
values of an attention are read by every query, so their demand is whole; its queries, projections and MLP shrink.
Columns of a product are columns of its weight: where only some are read, the rest of the weight is left out.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from math import prod

import numpy as np

from .. import expr as e
from ..ops import TABLE, remade
from ..program import Graph, Node, Program, rewrite


@dataclass(frozen=True)
class Rows:
    """A range of one axis."""

    axis: int
    start: int
    stop: int


Demand = Rows | None  # None: all of it


def prune_rows(program: Program) -> Program:
    weights = dict(program.weights)
    pruned = {name: prune(graph) for name, graph in program.entries.items()}
    return program.with_(
        entries={name: _with_narrow_weights(graph, weights) for name, graph in pruned.items()}, weights=weights
    )


def _with_narrow_weights(graph: Graph, weights: dict[str, np.ndarray]) -> Graph:
    """Columns that a product reads of a weight as a weight of their own, which can be quantized and packed."""

    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        if node.op == "matmul" and sources[1].op == "slice" and sources[1].sources[0].op == "weight":
            cut, whole = sources[1], sources[1].sources[0]
            if len(cut.shape) == 2 and cut["axis"] == 1:
                name = f"{whole['name']}[{cut['start']}:{cut['stop']}]"
                weights[name] = np.ascontiguousarray(weights[whole["name"]][:, cut["start"] : cut["stop"]])
                sources = (sources[0], e.weight(name, cut.shape, cut.dtype))
        return remade(node, sources, lambda inner: _with_narrow_weights(inner, weights))

    return Graph(rewrite(graph.outputs, rule))


def prune(graph: Graph) -> Graph:
    nodes = graph.order()
    demands = _demands(nodes, set(graph.outputs.values()))
    new: dict[Node, Node] = {}

    def read(source: Node, rows: Demand) -> Node:
        """`source` (whose new node holds what it was asked for) cut to `rows`."""
        held = demands[source]
        if rows == held:
            return new[source]
        if held is None:
            return e.narrow(new[source], rows.axis, rows.start, rows.stop)
        if rows is None or rows.axis != held.axis or rows.start < held.start or rows.stop > held.stop:
            raise AssertionError("a reader wants rows that its source was not asked for")
        return e.narrow(new[source], rows.axis, rows.start - held.start, rows.stop - held.start)

    for node in nodes:
        rows = demands[node]
        wanted = [_wanted(node, i, rows) for i in range(len(node.sources))] if _makes(node, rows) else None
        if wanted is None:  # made whole, then cut
            whole = _rebuilt(node, [read(s, _wanted(node, i, None)) for i, s in enumerate(node.sources)], None)
            new[node] = whole if rows is None else e.narrow(whole, rows.axis, rows.start, rows.stop)
        else:
            sources = [read(s, w) for s, w in zip(node.sources, wanted, strict=True)]
            new[node] = _rebuilt(node, sources, rows)
    return Graph({name: new[node] for name, node in graph.outputs.items()})


def _demands(nodes: list[Node], outputs: set[Node]) -> dict[Node, Demand]:
    """What is asked of each node: the range that holds what all its readers want of one axis, else all of it."""
    asked: dict[Node, set[Demand]] = {node: set() for node in nodes}
    demands: dict[Node, Demand] = {}
    for node in reversed(nodes):
        demands[node] = rows = None if node in outputs else _hull(node, asked[node])
        passed = rows if _makes(node, rows) else None
        for i, source in enumerate(node.sources):
            asked[source].add(_wanted(node, i, passed))
    return demands


def _hull(node: Node, wanted: set[Demand]) -> Demand:
    if None in wanted or len({rows.axis for rows in wanted if rows}) != 1:
        return None
    axis = next(rows.axis for rows in wanted if rows)
    start, stop = (f(getattr(rows, end) for rows in wanted if rows) for f, end in ((min, "start"), (max, "stop")))
    return Rows(axis, start, stop) if stop - start < node.shape[axis] else None


def _makes(node: Node, rows: Demand) -> bool:
    """Whether the op makes just these rows from rows of its sources."""
    if rows is None:
        return True
    kind = TABLE[node.op].kind
    if kind == "elementwise" or node.op in ("permute", "expand"):
        return True
    if kind == "reduction":
        return rows.axis != node["axis"]
    if node.op == "matmul":
        return rows.axis < len(node.shape) - 1 or _holds_columns(node.sources[1])
    if node.op == "slice":
        return rows.axis == node["axis"]
    if node.op == "concat":
        return rows.axis != node["axis"]
    if node.op == "reshape":
        return _before_reshape(node, rows) is not None
    return False


def _holds_columns(operand: Node) -> bool:
    return operand.op == "weight" and len(operand.shape) == 2


def _wanted(node: Node, i: int, rows: Demand) -> Demand:
    """What the op reads of its source i to make `rows` of its value."""
    source = node.sources[i]
    if node.op == "slice":
        start, stop = (
            (node["start"], node["stop"]) if rows is None else (node["start"] + rows.start, node["start"] + rows.stop)
        )
        return Rows(node["axis"], start, stop) if (start, stop) != (0, source.shape[node["axis"]]) else None
    if rows is None:
        return None
    if node.op == "permute":
        return Rows(node["axes"][rows.axis], rows.start, rows.stop)
    if node.op == "reshape":
        return _before_reshape(node, rows)
    if node.op == "matmul" and rows.axis == len(node.shape) - 1 - i:  # rows are the left operand's, columns the right's
        return None
    axis = rows.axis - (len(node.shape) - len(source.shape))  # broadcast sources have fewer axes, or axes of length 1
    if axis < 0 or source.shape[axis] != node.shape[rows.axis]:
        return None
    return Rows(axis, rows.start, rows.stop)


def _before_reshape(node: Node, rows: Rows) -> Rows | None:
    """The source's rows that a reshape makes these of; an axis may be the first of several that one axis became."""
    before, ahead = prod(node.shape[: rows.axis]), 1
    for i, d in enumerate(node.sources[0].shape):
        each, left = divmod(d, node.shape[rows.axis])
        parts = itertools.accumulate(node.shape[rows.axis + 1 :], operator.mul, initial=1)
        if ahead == before and d > 1 and left == 0 and each in parts:
            return Rows(i, rows.start * each, rows.stop * each)
        ahead *= d
    return None


def same_axis(node: Node, axis: int) -> int | None:
    """The source's axis that this axis of a reshape is, with the same length and the same elements before it."""
    before = 1
    for d in node.shape[:axis]:
        before *= d
    ahead = 1
    for i, d in enumerate(node.sources[0].shape):
        if ahead == before and d == node.shape[axis] and d > 1:
            return i
        ahead *= d
    return None


def _rebuilt(node: Node, sources: list[Node], rows: Demand) -> Node:
    if node.op == "slice":  # the source was cut to what this slice wants
        return sources[0]
    if rows is not None and node.op in ("reshape", "expand"):
        shape = list(node.shape)
        shape[rows.axis] = rows.stop - rows.start
        return e.reshape(sources[0], shape) if node.op == "reshape" else e.expand(sources[0], shape)
    return remade(node, tuple(sources), prune)

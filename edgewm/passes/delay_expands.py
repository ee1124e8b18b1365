"""Broadcast results, not operands: op(expand(x)) = expand(op(x)).

All candidates start from the same frames under the same past actions. What follows from these alone is the same for
every candidate, so it is computed for one and its result is spread. Nothing changes but how often a value is computed.
"""

from __future__ import annotations

from math import prod

from .. import expr as e
from ..ops import TABLE, make, remade
from ..program import Graph, Node, Program, order
from .prune_rows import same_axis


def delay_expands(program: Program) -> Program:
    return program.with_(entries={name: _graph(graph) for name, graph in program.entries.items()})


def _graph(graph: Graph) -> Graph:
    delay = Delay()
    return Graph({name: delay(node) for name, node in graph.outputs.items()})


class Delay:
    """Rewrites what is under a node, remembering what it rewrote."""

    def __init__(self) -> None:
        self.new: dict[Node, Node] = {}

    def __call__(self, root: Node) -> Node:
        for node in order(root, self.new):
            sources = tuple(self.new[s] for s in node.sources)
            self.new[node] = made = spread_last(remade(node, sources, _graph))
            self.new[made] = made
        return self.new[root]


def spread_last(node: Node) -> Node:
    """op(expand(x)) as expand(op(x)); the node itself where that is no less work."""
    if node.op == "expand" and node.sources[0].op == "expand":
        return e.expand(node.sources[0].sources[0], node.shape)
    if all(s.op != "expand" for s in node.sources):  # nothing was: see `is_spread`
        return node
    axes = [a for a, length in enumerate(node.shape) if length > 1 and is_spread(node, a)]
    if not axes:
        return node
    sources = [
        _gathered(s, {own for a in axes if (own := _axis_of(node, i, a)) is not None})
        for i, s in enumerate(node.sources)
    ]
    attrs = dict(node.attrs)
    if node.op == "reshape":
        attrs["shape"] = tuple(1 if a in axes else length for a, length in enumerate(node.shape))
    return e.expand(make(node.op, *sources, **attrs), node.shape)


def is_spread(node: Node, axis: int) -> bool:
    """Whether an op's result is the same all along an axis, because every operand that has it was expanded there."""
    if node.op == "expand" or TABLE[node.op].kind not in ("elementwise", "reduction", "product", "view", "concat"):
        return False
    owns = [_axis_of(node, i, axis) for i in range(len(node.sources))]
    having = [(s, own) for s, own in zip(node.sources, owns, strict=True) if own is not None and s.shape[own] > 1]
    return bool(having) and all(_expanded(s, own) for s, own in having)


def _axis_of(node: Node, i: int, axis: int) -> int | None:
    """The axis of source `i` that an axis of the result comes from; None where the source has none or it is mixed."""
    source, rank = node.sources[i], len(node.shape)
    own = axis - rank + len(source.shape)
    kind = TABLE[node.op].kind
    if kind == "elementwise":
        return own if own >= 0 else None
    if kind == "reduction" or node.op in ("slice", "concat"):
        return axis if axis != node["axis"] else None
    if node.op == "matmul":
        is_other = axis == (rank - 2 if i == 1 else rank - 1)  # an axis of the other operand alone
        return None if own < 0 or is_other else own
    if node.op == "permute":
        return node["axes"][axis]
    if node.op == "reshape":
        return same_axis(node, axis)
    return None


def _expanded(node: Node, axis: int) -> bool:
    if node.op != "expand":
        return False
    inner = node.sources[0]
    own = axis - len(node.shape) + len(inner.shape)
    return own < 0 or inner.shape[own] == 1


def _gathered(node: Node, axes: set[int]) -> Node:
    """The node with length 1 along these axes, along which it was expanded."""
    shape = [1 if a in axes else length for a, length in enumerate(node.shape)]
    if tuple(shape) == node.shape:
        return node
    inner = node.sources[0]
    return e.reshape(inner, shape) if inner.size == prod(shape) else e.expand(inner, shape)

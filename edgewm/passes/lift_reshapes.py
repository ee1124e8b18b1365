"""Move reshapes of the leading dimensions behind row-wise ops, where they meet their inverse and vanish.

Upstream code flattens batch and time before a row-wise module (BatchNorm, an MLP) and unflattens after it. A row-wise
op does not care how its rows are arranged: op(reshape(x)) = reshape(op(x)). Values keep the shape they were born with,
so that one axis (candidates, tokens) can stay in vector lanes all the way.
"""

from __future__ import annotations

from .. import expr as e
from ..ops import TABLE, make, remade
from ..program import Graph, Node, Program, rewrite


def lift_reshapes(program: Program) -> Program:
    return program.with_(entries={name: _lift(graph) for name, graph in program.entries.items()})


def _lift(graph: Graph) -> Graph:
    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        if node.op == "reshape":
            return _reshape(sources[0], node.shape)
        lifted = _row_wise(node, sources)
        return lifted if lifted is not None else remade(node, sources, _lift)

    return Graph(rewrite(graph.outputs, rule))


def _reshape(x: Node, shape: tuple[int, ...]) -> Node:
    while x.op == "reshape":
        x = x.sources[0]
    return e.reshape(x, shape)


def _row_wise(node: Node, sources: tuple[Node, ...]) -> Node | None:
    """The op before the reshape of its sources' leading dimensions, or None where it is not row-wise."""
    rank = len(node.shape)
    kind = TABLE[node.op].kind
    if kind == "reduction":
        if node["axis"] != rank - 1:
            return None
    elif node.op == "matmul":
        if len(sources[1].shape) != 2:
            return None
    elif kind != "elementwise":
        return None
    moved = next((_lead_reshape(s) for s in sources if _lead_reshape(s)), None)
    if moved is None or rank < 1 or moved[1] != node.shape[:-1]:
        return None
    born = moved[0]
    rows = []
    for i, source in enumerate(sources):
        if node.op == "matmul" and i == 1:
            rows.append(source)
        elif _lead_reshape(source) == moved:
            rows.append(source.sources[0])
        elif all(d == 1 for d in source.shape[:-1]):
            rows.append(e.reshape(source, source.shape[-1:]))
        else:
            return None
    attrs = {**dict(node.attrs), "axis": len(born)} if kind == "reduction" else dict(node.attrs)
    return e.reshape(make(node.op, *rows, **attrs), node.shape)


def _lead_reshape(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(leading dimensions before, after) where `node` is a reshape that keeps the last one, else None."""
    if node.op != "reshape" or not node.shape or not node.sources[0].shape:
        return None
    before, after = node.sources[0].shape, node.shape
    if before[-1] != after[-1] or len(before) < 2:
        return None
    return before[:-1], after[:-1]

"""Do row-wise work once for each row, where several overlapping slices of one value each asked for it.

A planner's windows slide over the actions of a candidate: each action token stands in up to `history` windows, and its
embedding and its modulation of every layer depend on that token alone. Where the slices of a value add up to more rows
than the value has, a row-wise op is done on the whole value and its result is sliced: op(x[a:b]) = op(x)[a:b].
"""

from __future__ import annotations

from .. import expr as e
from ..ops import TABLE, graph_flops, make, remade
from ..program import Graph, Node, Program, rewrite


def share_rows(program: Program) -> Program:
    """Entries in which that saves operations; the others stay: slices that go to different ops share nothing."""
    return program.with_(entries={name: _cheaper(graph, share(graph)) for name, graph in program.entries.items()})


def _cheaper(before: Graph, after: Graph) -> Graph:
    return after if graph_flops(after) <= graph_flops(before) else before


def share(graph: Graph) -> Graph:
    worth = _overlapping(graph)

    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        new = remade(node, sources, share)
        if new.op == "slice" and (node.sources[0], node["axis"]) in worth:
            worth.add((new.sources[0], new["axis"]))
        lifted = _lifted(new, worth)
        return lifted if lifted is not None else new

    return Graph(rewrite(graph.outputs, rule))


def _overlapping(graph: Graph) -> set[tuple[Node, int]]:
    """(value, axis) whose distinct slices, and the whole where it is read too, add up to more than the axis."""
    length: dict[tuple[Node, int], int] = {}
    whole: set[Node] = set(graph.outputs.values())
    for node in graph.order():
        if node.op == "slice":
            key = (node.sources[0], node["axis"])
            length[key] = length.get(key, 0) + node.shape[node["axis"]]
        else:
            whole.update(node.sources)
    return {
        (x, axis) for (x, axis), rows in length.items() if rows + (x.shape[axis] if x in whole else 0) > x.shape[axis]
    }


def _lifted(node: Node, worth: set[tuple[Node, int]]) -> Node | None:
    """slice(op(x)) for a row-wise op(slice(x), constants), or None."""
    kind = TABLE[node.op].kind
    cut = next((s for s in node.sources if s.op == "slice" and (s.sources[0], s["axis"]) in worth), None)
    if cut is None:
        return None
    axis, start, stop = cut["axis"], cut["start"], cut["stop"]
    rank = len(node.shape)
    if len(cut.shape) != rank or not (
        kind == "elementwise"
        or (kind == "reduction" and node["axis"] != axis)
        or (node.op == "matmul" and axis < rank - 1 and node.sources[0] is cut and len(node.sources[1].shape) == 2)
    ):
        return None
    whole = []
    for i, source in enumerate(node.sources):
        if source.op == "slice" and (source["axis"], source["start"], source["stop"]) == (axis, start, stop) and (
            (source.sources[0], axis) in worth
        ):
            whole.append(source.sources[0])
        elif (
            (node.op == "matmul" and i == 1)
            or len(source.shape) < rank - axis
            or (source.shape[axis - rank] == 1 and node.shape[axis] != 1)  # the same for all rows
        ):
            whole.append(source)
        else:
            return None
    made = make(node.op, *whole, **dict(node.attrs))
    worth.add((made, axis))
    return e.narrow(made, axis, start, stop)

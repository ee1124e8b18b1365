"""Take out of a loop what is the same in every round: computed before it, read inside."""

from __future__ import annotations

import itertools

from .. import expr as e
from ..ops import TABLE, make, remade
from ..program import Graph, Node, Program, rewrite


def hoist_invariants(program: Program) -> Program:
    """Every largest part of a loop's body that depends on the loop's invariants, and on nothing that changes."""
    return program.with_(entries={name: _hoist(graph) for name, graph in program.entries.items()})


def _hoist(graph: Graph) -> Graph:
    loops: dict[Node, Node] = {}

    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        new = remade(node, sources, _hoist)
        if new.op == "repeat" and new not in loops:
            loops[new] = _lifted(new)
        return loops.get(new, new)

    return Graph(rewrite(graph.outputs, rule))


def _lifted(loop: Node) -> Node:
    names = loop["carries"] + loop["invariants"]
    bindings = dict(zip(names, loop.sources, strict=True))
    carries = {name: bindings[name] for name in loop["carries"]}
    invariants = {name: bindings[name] for name in loop["invariants"]}
    leaves = _computed_once(loop["body"], set(invariants), {*names, *loop["body"].inputs()})
    body = Graph(rewrite(loop["body"].outputs, lambda node, sources: leaves.get(node) or remade(node, sources)))
    named = {leaf["name"]: node for node, leaf in leaves.items()}
    for name in body.inputs():
        if name in named:
            invariants[name] = e.inline(Graph({"y": named[name]}), bindings)["y"]
    kept = body.inputs()
    invariants = {name: node for name, node in invariants.items() if name in kept}
    return make(
        "repeat", *carries.values(), *invariants.values(),
        count=loop["count"], body=body, carries=tuple(carries), invariants=tuple(invariants),
    )  # fmt: skip


def _computed_once(body: Graph, invariants: set[str], taken: set[str]) -> dict[Node, Node]:
    """Nodes that compute something from invariants alone, each with the input that can stand for it, of no name taken.

    Views stay inside: what they make costs nothing, and a kernel may want to see them.
    """
    from_inputs: dict[Node, bool] = {}  # of those that depend on nothing that changes: whether on an input at all
    leaves: dict[Node, Node] = {}
    names = (name for i in itertools.count() if (name := f"once_{i}") not in taken)
    for node in body.order():
        kind = TABLE[node.op].kind
        if kind == "control" or (node.op == "input" and node["name"] not in invariants):
            continue
        if all(s in from_inputs for s in node.sources):
            from_inputs[node] = node.op == "input" or any(from_inputs[s] for s in node.sources)
            if from_inputs[node] and kind not in ("leaf", "view", "concat"):
                leaves[node] = e.input(next(names), node.shape, node.dtype)
    return leaves

"""Attention to one key is its value: softmax over one score is 1, whatever the query asked.

The first step of a rollout from one frame sees one key. Its queries and keys are read by nobody then, and `prune_rows`
leaves their columns of the product out. (A score that is not finite would have made the result so; x + 0 is x.)
"""

from __future__ import annotations

from .. import expr as e
from ..kernel import match
from ..ops import remade
from ..program import Graph, Node, Program, rewrite


def drop_single_keys(program: Program) -> Program:
    return program.with_(entries={name: _drop(graph) for name, graph in program.entries.items()})


def _drop(graph: Graph) -> Graph:
    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        new = remade(node, sources, _drop)
        if new.op != "matmul" or new.sources[0].shape[-1] != 1:
            return new
        bound = match("attention", new)
        return e.expand(bound["v"], new.shape) if bound else new

    return Graph(rewrite(graph.outputs, rule))

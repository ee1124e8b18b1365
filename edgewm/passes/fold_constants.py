"""Evaluate at build time what depends on no input: masks, positions, scales, random-number counters."""

from __future__ import annotations

import hashlib

import numpy as np

from .. import expr as e
from ..interp import run
from ..ops import TABLE, remade
from ..program import Graph, Node, Program, rewrite

FOLDABLE = ("elementwise", "reduction", "product", "concat")


def fold_constants(program: Program) -> Program:
    """Every largest subgraph without inputs becomes a weight named by its content; views of weights stay views."""
    weights = dict(program.weights)

    def fold(graph: Graph) -> Graph:
        constant: dict[Node, bool] = {}

        def rule(node: Node, sources: tuple[Node, ...]) -> Node:
            new = remade(node, sources, fold)
            row = TABLE[new.op]
            constant[new] = new.op in ("weight", "const", "iota") or (
                row.kind in (*FOLDABLE, "view") and all(constant.get(s, False) for s in sources)
            )
            return new

        outputs = rewrite(graph.outputs, rule)
        replaced: dict[Node, Node] = {}

        def replace(node: Node, sources: tuple[Node, ...]) -> Node:
            worth = (constant.get(node) and TABLE[node.op].kind in FOLDABLE) or node.op == "iota"
            if worth:
                if node not in replaced:
                    replaced[node] = _as_weight(node, program.weights, weights)
                return replaced[node]
            return remade(node, sources)

        return Graph(rewrite(outputs, replace))

    entries = {name: fold(graph) for name, graph in program.entries.items()}
    return program.with_(entries=entries, weights=weights)


def _as_weight(node: Node, known: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> Node:
    value = np.asarray(run(Graph({"y": node}), {}, known)["y"], order="C")  # a scalar stays one
    if value.shape == () and node.dtype in ("f32", "i32", "u32"):
        return e.const(value.item(), node.dtype)
    if value.dtype == np.bool_:
        value = value.astype(np.int32)
    name = "constant/" + hashlib.sha256(str((value.dtype, value.shape)).encode() + value.tobytes()).hexdigest()[:16]
    weights[name] = value
    leaf = e.weight(name, value.shape, "i32" if node.dtype == "bool" else node.dtype)
    return e.equal(leaf, 1) if node.dtype == "bool" else leaf

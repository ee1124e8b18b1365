"""Hold the products a recipe names in eight bits: weights per output channel, activations per row at run time."""

from __future__ import annotations

import numpy as np

from .. import expr as e
from ..kernel import load
from ..ops import make
from ..program import Graph, Node, Program, rewrite


def quantize_products(program: Program) -> Program:
    """Rewrites `matmul(x, weight)` as the recipe says; a product of two activations is left alone.

    `program.recipe` maps a weight's name to "w8a8"; a name that is absent stays in float32.
    """
    if not program.recipe:
        return program
    weights = dict(program.weights)
    reference = load("product_i8").reference

    def quantized(graph: Graph) -> Graph:
        def rule(node: Node, sources: tuple[Node, ...]) -> Node:
            attrs = {k: quantized(v) if isinstance(v, Graph) else v for k, v in node.attrs}
            new = make(node.op, *sources, **attrs)
            if new.op != "matmul" or sources[1].op != "weight" or program.recipe.get(sources[1]["name"]) != "w8a8":
                return new
            name = sources[1]["name"]
            if name + "/i8" not in weights:
                weights[name + "/i8"], weights[name + "/scale"] = quantize_weight(program.weights[name])
            q, scale = weights[name + "/i8"], weights[name + "/scale"]
            return reference(
                sources[0], e.weight(name + "/i8", q.shape, "i8"), e.weight(name + "/scale", scale.shape, "f32")
            )

        return Graph(rewrite(graph.outputs, rule))

    entries = {name: quantized(graph) for name, graph in program.entries.items()}
    return program.with_(entries=entries, weights=weights)


def quantize_weight(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 by output channel: `w` (..., in, out) f32 to (int8 of that shape, f32 scale (..., 1, out))."""
    scale = (np.abs(w).max(axis=-2, keepdims=True) / np.float32(127)).astype(np.float32)
    scale = np.maximum(scale, np.float32(2.0**-100))
    return np.clip(np.rint(w / scale), -127, 127).astype(np.int8), scale

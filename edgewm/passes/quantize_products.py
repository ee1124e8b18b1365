"""Hold the products a recipe names in fewer bits.

`w8a8`: int8, weights by output channel, activations by row at run time. `bf16`: both rounded as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import expr as e
from ..kernel import load
from ..layout import dtype_of
from ..ops import NUMPY, make
from ..program import Graph, Node, Program, rewrite


def quantize_products(program: Program) -> Program:
    """Rewrites `matmul(x, weight)` as the recipe says; a product of two activations is left alone.

    `program.recipe` maps a weight's name to "w8a8" or "bf16"; a name that is absent stays in float32.
    """
    if not program.recipe:
        return program
    weights = dict(program.weights)

    def held(name: str, kind: str) -> list[Node]:
        """The leaves that stand for a weight."""
        _, parts, hold = HOLD[kind]
        names = [f"{name}/{part}" for part in parts]
        if names[0] not in weights:
            weights.update(zip(names, hold(program.weights[name]), strict=True))
        return [e.weight(n, weights[n].shape, dtype_of(weights[n])) for n in names]

    def quantized(graph: Graph) -> Graph:
        def rule(node: Node, sources: tuple[Node, ...]) -> Node:
            attrs = {k: quantized(v) if isinstance(v, Graph) else v for k, v in node.attrs}
            new = make(node.op, *sources, **attrs)
            kind = program.recipe.get(sources[1]["name"]) if new.op == "matmul" and sources[1].op == "weight" else None
            if kind is None:
                return new
            return load(HOLD[kind][0]).reference(sources[0], *held(sources[1]["name"], kind))

        return Graph(rewrite(graph.outputs, rule))

    entries = {name: quantized(graph) for name, graph in program.entries.items()}
    return program.with_(entries=entries, weights=weights)


def quantize_weight(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 by output channel: `w` (..., in, out) f32 to (int8 of that shape, f32 scale (..., 1, out))."""
    scale = (np.abs(w).max(axis=-2, keepdims=True) / np.float32(127)).astype(np.float32)
    scale = np.maximum(scale, np.float32(2.0**-100))
    return np.clip(np.rint(w / scale), -127, 127).astype(np.int8), scale


def round_weight(w: np.ndarray) -> tuple[np.ndarray]:
    """`w` f32 to bf16 of that shape, as `kernels/product_bf16.py` rounds activations; alone in a tuple."""
    kept = np.where(np.abs(w) < load("product_bf16").ROUNDS_TO_SMALLEST, np.float32(0), w)
    return (kept.astype(NUMPY["bf16"]),)


Hold = Callable[[np.ndarray], tuple[np.ndarray, ...]]
# What a recipe calls it: the family of the product, what its leaves are called beside the weight, how they are made.
HOLD: dict[str, tuple[str, tuple[str, ...], Hold]] = {
    "w8a8": ("product_i8", ("i8", "scale"), quantize_weight),
    "bf16": ("product_bf16", ("bf16",), round_weight),
}

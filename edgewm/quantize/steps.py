"""Int8 as runtimes for ONNX know it: constant steps for activations, one step an output channel for weights.

Such a product is a formula of the op table (`expr.fake_quantized`), so the oracle runs what the exporter writes as
QuantizeLinear and DequantizeLinear. Zero is level zero everywhere: TensorRT takes no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from .. import expr as e
from .. import interp
from ..ops import make
from ..passes.quantize_products import SMALLEST_STEP, quantize_weight
from ..program import Graph, Node, Program, rewrite
from . import weight_of

FORM = "w8a8"  # what a recipe calls it
TOP = 127

Array = np.ndarray


def activation_steps(
    graph: Graph, weights: Mapping[str, Array], names: Iterable[str], inputs: Iterable[Mapping[str, Array]]
) -> dict[str, float]:
    """The largest magnitude that the product with each named weight reads, over 127; names without one are left out."""
    wanted, largest = set(names), {}

    def watch(node: Node, sources: list[Array]) -> None:
        name = weight_of(node)
        if name in wanted:
            largest[name] = max(largest.get(name, 0.0), float(np.abs(sources[0]).max()))

    for given in inputs:
        interp.run(graph, given, weights, real=True, watch=watch)
    return {name: max(found / TOP, SMALLEST_STEP) for name, found in largest.items()}


def hold_in_steps(program: Program, steps: Mapping[str, float]) -> Program:
    """Every product with a matrix that `steps` names, on its inputs in those steps and on weights in eight bits."""
    weights = dict(program.weights)
    for name in steps:
        levels, size, _ = quantize_weight(program.weights[name])
        weights |= {f"{name}/i8": levels, f"{name}/scale": size}

    def held(graph: Graph) -> Graph:
        def rule(node: Node, sources: tuple[Node, ...]) -> Node:
            name = weight_of(node)
            if name in steps and len(node.sources[1].shape) == 2:
                levels = e.weight(f"{name}/i8", weights[f"{name}/i8"].shape, "i8")
                size = e.weight(f"{name}/scale", weights[f"{name}/scale"].shape)
                return e.matmul(e.fake_quantized(sources[0], steps[name]), e.dequantized(levels, size))
            attrs = {k: held(v) if isinstance(v, Graph) else v for k, v in node.attrs}
            return make(node.op, *sources, **attrs)

        return Graph(rewrite(graph.outputs, rule))

    return program.with_(entries={name: held(graph) for name, graph in program.entries.items()}, weights=weights)

"""How far rounding can take a graph's outputs: from formats and lengths, nothing chosen by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from ml_dtypes import finfo

from .ops import NUMPY, TABLE
from .program import Graph, Node

UNIT_ROUNDOFF = float(np.finfo(np.float32).eps) / 2
# A number's change, relative to itself, where its rounding turns over.
BF16_STEP, FP16_STEP = (float(finfo(NUMPY[name]).eps) for name in ("bf16", "f16"))
TENSOR_STEPS = {"product_bf16": BF16_STEP, "product_fp16": FP16_STEP}  # where a GPU adds in an order of its own
E4M3_STEP = 2.0**-3  # beside what follows such a product, as bf16 and half do
TRANSCENDENTAL_ULP = 8  # of one evaluation of an op that stands for a polynomial, as bounded in edgewm/arithmetic.py


def rounding_steps(graph: Graph) -> int:
    """Roundings on the longest path of a graph: one an op, 8 a transcendental, the length for products and sums.

    Each output is a chain of products, and rounding in a chain of n terms is within n units of the sum of magnitudes.
    """
    return int(_longest(graph, _roundings))


def tensor_rounding(graph: Graph) -> float:
    """How far apart two evaluations may be, as a fraction of the largest magnitude, that add the products of bf16 and
    half in different orders; 0 where there are none.

    Sums differ by their roundings, and what a product reads, or a call leaves in bf16, may be rounded to the
    neighbouring number then.
    """

    def turned(node: Node) -> float:
        if node.op == "kernel":
            return TENSOR_STEPS.get(node["family"], 0.0)
        return E4M3_STEP if node.op == "e4m3" else 0.0

    def left(node: Node) -> float:
        return BF16_STEP if node.op == "kernel" and node.dtype == "bf16" else 0.0

    if not _longest(graph, turned):
        return 0.0
    return _longest(graph, lambda node: turned(node) + left(node)) + rounding_steps(graph) * UNIT_ROUNDOFF


def nodes_of(graph: Graph) -> Iterator[Node]:
    """Every node of a graph, those of bodies included."""
    for node in graph.order():
        yield node
        if node.op in ("repeat", "kernel"):
            yield from nodes_of(node["body"])


def _longest(graph: Graph, own: Callable[[Node], float]) -> float:
    """The greatest sum of `own` along any path, bodies of loops as often as they run."""
    found: dict[Node, float] = {}
    for node in graph.order():
        here = own(node)
        if node.op == "repeat":
            here = node["count"] * _longest(node["body"], own)
        elif node.op == "kernel":
            here += _longest(node["body"], own)
        found[node] = here + max((found[s] for s in node.sources), default=0)
    return max(found[n] for n in graph.outputs.values())


def _roundings(node: Node) -> int:
    kind = TABLE[node.op].kind
    if node.op in ("repeat", "kernel") or kind in ("leaf", "view", "concat"):
        return 0
    if node.op == "matmul":
        return node.sources[0].shape[-1]
    if TABLE[node.op].expand is not None:
        return TRANSCENDENTAL_ULP
    return node.sources[0].shape[node["axis"]] if kind == "reduction" else 1

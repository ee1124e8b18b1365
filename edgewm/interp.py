"""The oracle: run any graph, at any stage, with the meaning the op table gives it.

`run(graph, inputs, weights)` computes canonical float32 (what every target computes, bit for bit); with `real=True` the
same formulas in float64, which is what tolerances are computed from and what upstream frameworks are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from . import arithmetic  # noqa: F401  (fills the table's transcendental rows)
from .errors import EdgewmError
from .expr import input as input_leaf
from .ops import NUMPY, TABLE
from .program import Graph, Node

Arrays = Mapping[str, np.ndarray]
Watch = Callable[[Node, list], None]


def run(
    graph: Graph, inputs: Arrays, weights: Arrays, real: bool = False, watch: Watch | None = None
) -> dict[str, np.ndarray]:
    """Outputs of `graph` by name; `watch` is called with each of its own nodes and the values of the node's sources.

    Raises EdgewmError when an input is missing or has another shape.
    """
    values: dict[Node, object] = {}
    order = graph.order()
    last = {s: node for node in order for s in node.sources}  # who reads it last: then it is let go
    kept = set(graph.outputs.values())
    for node in order:
        if watch is not None:
            watch(node, [values[s] for s in node.sources])
        values[node] = _evaluate(node, values, inputs, weights, real)
        for source in set(node.sources):
            if last[source] is node and source not in kept:
                del values[source]
    return {name: values[node] for name, node in graph.outputs.items()}


def _evaluate(node: Node, values: Mapping[Node, object], inputs: Arrays, weights: Arrays, real: bool) -> object:
    attrs = dict(node.attrs)
    if node.op in ("input", "weight"):
        return _leaf(node, inputs if node.op == "input" else weights, real)
    sources = [values[s] for s in node.sources]
    if node.op == "repeat":
        return _repeat(attrs, sources, weights, real)
    if node.op == "get":
        return sources[0][attrs["name"]]
    if node.op == "kernel":
        return run(attrs["body"], {f"p{i}": s for i, s in enumerate(sources)}, weights, real)["y"]
    row = TABLE[node.op]
    if real and node.dtype == "f32" and node.op == "cast":
        return np.asarray(sources[0], np.float64)
    if real and row.real is not None:
        return row.real(attrs, *sources)
    if row.expand is not None:
        return _expanded(node, sources)
    value = row.meaning(attrs, *sources)
    return value.astype(np.float64) if real and node.op == "const" and node.dtype == "f32" else value


def _leaf(node: Node, given: Arrays, real: bool) -> np.ndarray:
    name = node["name"]
    if name not in given:
        raise EdgewmError(
            f"no {node.op} named {name!r} was given", f"interp, {node!r}", f"pass an array of shape {node.shape}"
        )
    value = np.asarray(given[name])
    if value.shape != node.shape:
        raise EdgewmError(
            f"{node.op} {name!r} has shape {value.shape}", f"interp, {node!r}", f"pass an array of shape {node.shape}"
        )
    return value.astype(np.float64 if real and node.dtype == "f32" else NUMPY[node.dtype])


def _expanded(node: Node, sources: list) -> np.ndarray:
    leaves = [input_leaf(f"x{i}", s.shape, n.dtype) for i, (s, n) in enumerate(zip(sources, node.sources, strict=True))]
    body = Graph({"y": TABLE[node.op].expand(*leaves)})
    return run(body, {f"x{i}": s for i, s in enumerate(sources)}, {})["y"]


def _repeat(attrs: dict, sources: list, weights: Arrays, real: bool) -> dict[str, np.ndarray]:
    names = attrs["carries"] + attrs["invariants"]
    state = dict(zip(names, sources, strict=True))
    out: dict[str, np.ndarray] = {}
    for counter in range(attrs["count"]):
        out = run(attrs["body"], {**state, "counter": np.asarray(counter, np.uint32)}, weights, real)
        state.update({name: out[name] for name in attrs["carries"]})
    return out

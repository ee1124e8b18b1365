"""A graph as the operations other runtimes have: softmax, layer norm, attention and so on, whole, and the table's ops.

The op table spells such formulas out. Here each is recognised as kernels are: the leaf is guessed by walking down from
the root, the formula of `expr` is built on it again, and since nodes are hash-consed the guess is right exactly when
the result is the root. What an exact pass has taken apart stays in the table's ops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import expr as e
from .ops import const_value
from .program import Graph, Node

HIDDEN = -1e30  # a score at most this is a masked one


@dataclass(frozen=True)
class Step:
    """One operation: an op of the table or the name of an idiom, what it reads, and the node whose value it gives."""

    op: str
    out: Node
    sources: tuple[Node, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


Found = tuple[tuple[Node, ...], dict[str, Any]]  # sources, attributes
Idiom = Callable[[Node], Found | None]


def back(node: Node, *path: tuple[str, int]) -> Node | None:
    """The node reached by going through ops of these names, each time to the source of that index; None if not so."""
    for op, index in path:
        if node.op != op:
            return None
        node = node.sources[index]
    return node


def softmax(root: Node) -> Found | None:
    x, total = back(root, ("mul", 0), ("exp", 0), ("sub", 0)), back(root, ("mul", 1), ("div", 1))
    if x is None or total is None or total.op != "sum" or e.softmax(x, total["axis"]) is not root:
        return None
    return (x,), {"axis": total["axis"]}


def mean(root: Node) -> Found | None:
    total = back(root, ("mul", 0))
    if total is None or total.op != "sum" or e.mean(total.sources[0], total["axis"]) is not root:
        return None
    return total.sources, {"axis": total["axis"]}


def normalised(root: Node) -> Found | None:
    """`e.normalised` along the last axis."""
    x = back(root, ("mul", 0), ("sub", 0))
    eps = back(root, ("mul", 1), ("div", 1), ("sqrt", 0), ("add", 1))
    if x is None or eps is None or eps.op != "const" or e.normalised(x, const_value(eps), -1) is not root:
        return None
    return (x,), {"eps": const_value(eps)}


def layer_norm(root: Node) -> Found | None:
    """`normalised` times a weight plus a weight, both as long as the last axis."""
    product, shift = (back(root, ("add", i)) for i in (0, 1))
    inner, scale = (back(root, ("add", 0), ("mul", i)) for i in (0, 1))
    found = None if inner is None else normalised(inner)
    if found is None or e.add(e.mul(inner, scale), shift) is not root or product.shape != root.shape:
        return None
    if any(w.op != "weight" or w.shape != root.shape[-1:] for w in (scale, shift)):
        return None
    return (*found[0], scale, shift), found[1]


def linear(root: Node) -> Found | None:
    """x times a matrix of weights, plus a weight for each column."""
    x, w = (back(root, ("add", 0), ("matmul", i)) for i in (0, 1))
    b = back(root, ("add", 1))
    if x is None or w.op != "weight" or b.op != "weight" or len(w.shape) != 2 or b.shape != w.shape[-1:]:
        return None
    return ((x, w, b), {}) if root.shape[:-1] == x.shape[:-1] else None


def attention(root: Node) -> Found | None:
    """softmax(q k * scale, where shown) v, from q, k (keys in columns), v and the mask, if any (true: shown)."""
    weights, v = (back(root, ("matmul", i)) for i in (0, 1))
    found = None if weights is None else softmax(weights)
    if found is None or found[1]["axis"] != len(weights.shape) - 1:
        return None
    scores, mask = found[0][0], ()
    if scores.op == "where" and scores.sources[2].op == "const" and const_value(scores.sources[2]) <= HIDDEN:
        mask, scores = (scores.sources[0],), scores.sources[1]
    products, scale = (back(scores, ("mul", i)) for i in (0, 1))
    if products is None or products.op != "matmul" or scale.op != "const" or len(v.shape) != len(root.shape):
        return None
    return (*products.sources, v, *mask), {"scale": const_value(scale)}


def fake_quantized(root: Node) -> Found | None:
    x = back(root, ("mul", 0), ("min", 0), ("max", 0), ("rint", 0), ("div", 0))
    step = back(root, ("mul", 1))
    if x is None or step.op != "const" or e.fake_quantized(x, const_value(step)) is not root:
        return None
    return (x,), {"step": const_value(step)}


def dequantized(root: Node) -> Found | None:
    """A matrix of weights in levels; the name of its steps is an attribute."""
    levels, step = back(root, ("mul", 0), ("cast", 0)), back(root, ("mul", 1))
    if levels is None or (levels.op, levels.dtype, step.op) != ("weight", "i8", "weight"):
        return None
    if step.shape != (1, *levels.shape[1:]) or e.dequantized(levels, step) is not root:
        return None
    return (levels,), {"step": step["name"]}


def _of_one(build: Callable[[Node], Node], *path: tuple[str, int]) -> Idiom:
    """A formula of one value, which lies at the end of `path`."""

    def recognise(root: Node) -> Found | None:
        x = back(root, *path)
        return ((x,), {}) if x is not None and build(x) is root else None

    return recognise


SIGMOID = (("div", 1), ("add", 0), ("exp", 0), ("neg", 0))
IDIOMS: dict[str, Idiom] = {  # larger ones first
    "attention": attention,
    "layer_norm": layer_norm,
    "normalised": normalised,
    "linear": linear,
    "softmax": softmax,
    "mean": mean,
    "silu": _of_one(e.silu, ("mul", 1), *SIGMOID),
    "sigmoid": _of_one(e.sigmoid, *SIGMOID),
    "fake_quantized": fake_quantized,
    "dequantized": dequantized,
    "softplus": _of_one(e.softplus, ("add", 1), ("log", 0), ("add", 0), ("exp", 0), ("neg", 0), ("abs", 0)),
}


def steps(graph: Graph, without: tuple[str, ...] = ()) -> list[Step]:
    """What has to be computed for the graph's outputs, each value once, sources before users; `without` these idioms.

    Leaves (`input`, `weight`, `const`, `iota`) are steps without sources. A loop is one step: its body is among its
    attributes.
    """
    known = [(name, idiom) for name, idiom in IDIOMS.items() if name not in without]
    found: dict[Node, Step] = {}
    done: dict[Node, None] = {}
    stack = [(node, False) for node in reversed(graph.outputs.values())]
    while stack:
        node, expanded = stack.pop()
        if node in done:
            continue
        if expanded:
            done[node] = None
            continue
        step = found[node] = _recognised(node, known) or Step(node.op, node, node.sources, dict(node.attrs))
        stack.append((node, True))
        stack.extend((source, False) for source in reversed(step.sources) if source not in done)
    return [found[node] for node in done]


def _recognised(node: Node, known: list[tuple[str, Idiom]]) -> Step | None:
    for name, idiom in known:
        if match := idiom(node):
            return Step(name, node, *match)
    return None

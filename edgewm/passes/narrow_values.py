"""Hold what candidates leave between calls in fewer bits, as a recipe's classes of values say.

A value is rounded once, by the call that writes it, and widened by whoever reads it: the arithmetic on both sides stays
that of float32. What is rounded is what products and attention write, in a program whose calls are known. Costs, sums,
statistics of norms, sampled actions, what a loop carries and what an entry hands over stay as they are, and so does all
that is the same for every candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .. import expr as e
from ..ops import TABLE, make
from ..options import WITH
from ..program import Graph, Node, Program, order, rewrite, users
from ..quantize import ONCE

PARTS = ("left", "right", "score", "epilogue")  # of a kernel, each reading operands
CANDIDATES = "candidates"


def narrow_values(program: Program) -> Program:
    """`program` is fused. In its recipe `+CLASS`, one of `options.VALUES`, names what a class is held in."""
    held = {name[1:]: form for name, form in (program.recipe or {}).items() if name.startswith(WITH)}
    if not held:
        return program
    entries = {n: g if n in ONCE else _narrowed(g, held, _varying(n, g)) for n, g in program.entries.items()}
    return program.with_(entries=entries)


def _varying(name: str, graph: Graph) -> set[Node]:
    """The leaves that differ from candidate to candidate: of a plan none, but in its loop."""
    inputs = graph.inputs()
    if name == "plan":
        return set()
    return {inputs[CANDIDATES]} if CANDIDATES in inputs else set(inputs.values())


def _narrowed(graph: Graph, held: Mapping[str, str], varying: set[Node]) -> Graph:
    nodes = graph.order()
    varies = set(varying)
    for node in nodes:
        if not varies.isdisjoint(node.sources):
            varies.add(node)
    form_of = _held(graph, held, varies)

    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        attrs = dict(node.attrs)
        if node.op == "repeat":
            names = attrs["carries"] + attrs["invariants"]
            changes = {n for n, s in zip(names, node.sources, strict=True) if n in attrs["carries"] or s in varies}
            leaves = {leaf for n, leaf in attrs["body"].inputs().items() if n in changes or n == "counter"}
            attrs["body"] = _narrowed(attrs["body"], held, leaves)
        if node.op == "kernel":
            attrs |= _kernel(attrs, sources, form_of.get(node))
        return make(node.op, *sources, **attrs)

    return Graph(rewrite(graph.outputs, rule))


def _kernel(attrs: Mapping[str, object], sources: tuple[Node, ...], form: str | None) -> dict[str, Graph]:
    """The graphs of a kernel that reads what these sources are held in, and whose result is held in `form`."""

    def rule(node: Node, own: tuple[Node, ...]) -> Node:
        if node.op == "input" and node["name"].startswith("p"):
            source = sources[int(node["name"][1:])]
            if source.dtype != node.dtype:
                return e.cast(e.input(node["name"], node.shape, source.dtype), node.dtype)
        return make(node.op, *own, **dict(node.attrs))

    made = {}
    for part, graph in attrs.items():
        if isinstance(graph, Graph):
            outputs = rewrite(graph.outputs, rule)
            made[part] = Graph({"y": e.cast(outputs["y"], form)} if form and part in ("body", "epilogue") else outputs)
    return made


def _held(graph: Graph, held: Mapping[str, str], varies: set[Node]) -> dict[Node, str]:
    """The kernels whose results are held in fewer bits. Values that views and concats bring together are held alike."""
    home: dict[Node, Node] = {}

    def find(node: Node) -> Node:
        while (up := home.setdefault(node, node)) is not node:
            node = up
        return node

    nodes = graph.order()
    for node in nodes:
        if _is_joint(node):
            for source in node.sources:
                home[find(source)] = find(node)
    members: dict[Node, list[Node]] = {}
    for node in nodes:
        members.setdefault(find(node), []).append(node)
    readers, outputs = users(graph.outputs.values()), set(graph.outputs.values())
    found: dict[Node, str] = {}
    for values in members.values():
        made = [v for v in values if not _is_joint(v)]
        read = {(u, v) for v in values for u in readers[v] if not _is_joint(u)}
        inner = outputs.isdisjoint(values) and all(u.op == "kernel" for u, _ in read)
        if inner and varies.issuperset(made) and all(map(_is_core, made)):
            found.update(dict.fromkeys(made, held.get(_class(read))))
    return {node: form for node, form in found.items() if form}


def _is_joint(node: Node) -> bool:
    return TABLE[node.op].kind in ("view", "concat")


def _is_core(node: Node) -> bool:
    """Whether a product or an attention wrote it."""
    return node.op == "kernel" and node.dtype == "f32" and node["family"].startswith(("product", "attention"))


def _class(read: Iterable[tuple[Node, Node]]) -> str:
    """Which of `VALUES` is read so: by kernels, each with the source that it reads."""
    ways = {way for kernel, value in read for way in _ways(kernel, value)}
    if "attention" in ways:
        return "attention"
    return "hidden" if ways == {"hidden"} else "latents"


def _ways(kernel: Node, value: Node) -> set[str]:
    attrs = dict(kernel.attrs)
    names = {f"p{i}" for i, source in enumerate(kernel.sources) if source is value}
    found = {"attention"} if names.intersection(attrs.get("packed", ())) else set()
    for part in PARTS:
        inputs = {n["name"] for n in order(attrs[part].outputs.values()) if n.op == "input"} if part in attrs else set()
        if names & inputs:
            alone = part == "left" and kernel["family"].startswith("product") and inputs <= names
            queries = part == "left" and kernel["family"] == "attention"
            found.add("hidden" if alone else "attention" if queries else "other")
    return found

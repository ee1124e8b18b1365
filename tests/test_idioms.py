"""Formulas are found where the table's own builders wrote them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from programs import drawn, inputs_of, program_of

from edgewm import expr as e
from edgewm.idioms import IDIOMS, Step, back, steps
from edgewm.interp import run
from edgewm.ops import make
from edgewm.program import Graph, Node

X = e.input("x", (2, 3, 8))
W, B = e.weight("w", (8,)), e.weight("b", (8,))


def attention(mask: bool = False) -> Node:
    q, k, v = (e.input(name, (2, 3, 8)) for name in "qkv")
    scores = e.mul(e.matmul(q, e.permute(k, (0, 2, 1))), 0.5)
    shown = e.less_equal(e.iota((3, 3), 1), e.iota((3, 3), 0))
    scores = e.select(shown, scores, float("-inf")) if mask else scores
    return e.matmul(e.softmax(scores, -1), v)


FORMULAS: dict[str, tuple[Callable[[], Node], dict]] = {
    "softmax": (lambda: e.softmax(X, 1), {"axis": 1}),
    "mean": (lambda: e.mean(X, 0), {"axis": 0}),
    "normalised": (lambda: e.normalised(X, 1e-5, -1), {"eps": pytest.approx(1e-5)}),
    "layer_norm": (lambda: e.add(e.mul(e.normalised(X, 1e-6, -1), W), B), {"eps": pytest.approx(1e-6)}),
    "linear": (lambda: e.add(e.matmul(X, e.weight("m", (8, 4))), e.weight("c", (4,))), {}),
    "attention": (attention, {"scale": 0.5}),
    "silu": (lambda: e.silu(X), {}),
    "sigmoid": (lambda: e.sigmoid(X), {}),
    "softplus": (lambda: e.softplus(X), {}),
    "fake_quantized": (lambda: e.fake_quantized(X, 0.5), {"step": 0.5}),
    "dequantized": (lambda: e.dequantized(e.weight("l", (8, 4), "i8"), e.weight("s", (1, 4))), {"step": "s"}),
}


def computing(root: Node, without: tuple[str, ...] = ()) -> list[Step]:
    beside = ("input", "weight", "const", "iota", "permute")
    return [s for s in steps(Graph({"y": root}), without) if s.op not in beside]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_one_step(name: str) -> None:
    build, attrs = FORMULAS[name]
    (step,) = computing(build())
    assert (step.op, dict(step.attrs)) == (name, attrs) and step.out is build()


def test_every_idiom_has_a_formula_here() -> None:
    assert IDIOMS.keys() == FORMULAS.keys()


def test_a_mask_is_the_last_source_of_attention() -> None:
    (step,) = [s for s in computing(attention(mask=True)) if s.op == "attention"]
    assert [s.dtype for s in step.sources] == ["f32", "f32", "f32", "bool"]


@pytest.mark.parametrize("name", FORMULAS)
def test_what_is_left_out_is_put_together_from_the_rest(name: str) -> None:
    assert name not in {s.op for s in computing(FORMULAS[name][0](), without=(name,))}


NEAR = {
    "another axis in the sum": e.mul(e.exp(e.sub(X, e.reduce_max(X, 1))), e.div(1.0, e.reduce_sum(e.exp(
        e.sub(X, e.reduce_max(X, 1))), 2))),
    "another length in the mean": e.mul(e.reduce_sum(X, 0), 1.0 / 3),
    "another value in the silu": e.mul(e.neg(X), e.sigmoid(X)),
    "a bias of every row": e.add(e.matmul(X, e.weight("m", (8, 4))), e.weight("c", (2, 3, 4))),
    "a scale of another axis": e.add(e.mul(e.normalised(X, 1e-6, -1), e.weight("s", (3, 1))), B),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_what_is_nearly_a_formula_is_none(name: str) -> None:
    found = {s.op for s in computing(NEAR[name])}
    assert found.isdisjoint({"softmax", "mean", "silu", "linear", "layer_norm"}), found


def test_paths_end_where_the_ops_do() -> None:
    root = e.mul(e.exp(X), 2.0)
    assert back(root, ("mul", 0), ("exp", 0)) is X
    assert back(root, ("mul", 0), ("exp", 0), ("sub", 0)) is None and back(root, ("add", 0)) is None


@pytest.mark.parametrize("graph", drawn(15, 11), ids=lambda graph: f"{len(graph.order())} nodes")
def test_steps_are_in_order_and_lead_to_every_output(graph: Graph) -> None:
    found = steps(graph)
    seen: set[Node] = set()
    for step in found:
        assert seen.issuperset(step.sources)
        seen.add(step.out)
    assert len(seen) == len(found) and seen.issuperset(graph.outputs.values())


def test_each_steps_value_follows_from_its_sources() -> None:
    """Cutting the graph at a step's sources and computing the step anew changes nothing."""
    for graph in drawn(10, 12):
        program = program_of({"g": graph})
        found = [s for s in steps(graph) if s.op in IDIOMS]
        values = run(Graph({str(i): n for i, n in enumerate(graph.order())}), inputs_of(graph), program.weights)
        value = {node: values[str(i)] for i, node in enumerate(graph.order())}
        for step in found:
            leaves = {s: e.input(f"s{i}", s.shape, s.dtype) for i, s in enumerate(step.sources) if s.op != "weight"}
            again = run(
                Graph({"y": replaced(step.out, leaves)}),
                {leaf["name"]: value[source] for source, leaf in leaves.items()}, program.weights,
            )["y"]  # fmt: skip
            assert np.array_equal(again, value[step.out], equal_nan=True)


def replaced(root: Node, leaves: dict[Node, Node]) -> Node:
    """The root with some nodes replaced by leaves."""
    done: dict[Node, Node] = dict(leaves)

    def build(node: Node) -> Node:
        if node not in done:
            done[node] = make(node.op, *map(build, node.sources), **dict(node.attrs)) if node.sources else node
        return done[node]

    return build(root)

"""Kernel families are recognised by their rebuilt reference, and only then; what is fused computes the same bits."""

from __future__ import annotations

import inspect

import numpy as np
import programs
import pytest

from edgewm import expr as e
from edgewm import interp
from edgewm.errors import EdgewmError
from edgewm.kernel import load, match
from edgewm.passes import EXACT, run
from edgewm.passes.fuse_kernels import fuse
from edgewm.program import Graph, Node

LAYERS = 98  # of a transformer that has 5,000 nodes after the exact passes


def families(graph: Graph) -> list[str]:
    return sorted(n["family"] for n in graph.order() if n.op == "kernel")


def fused(outputs: dict[str, Node]) -> Graph:
    """The fused graph, after comparing it with the graph as it was, bit for bit."""
    graph = Graph(outputs)
    program = programs.program_of({"f": graph})
    weights = {
        name: programs.numbers(name, leaf.shape, leaf.dtype)
        for leaf in graph.order() if leaf.op == "weight" for name in [leaf["name"]]
    }  # fmt: skip
    found, inputs = fuse(graph), programs.inputs_of(graph)
    wanted = interp.run(graph, inputs, weights)
    assert programs.differing(interp.run(found, inputs, program.weights), wanted) == []
    return found


# ---------------------------------------------------------------------------------------------- attention

Q, K, V = e.input("q", (2, 5, 3)), e.input("k", (2, 7, 3)), e.input("v", (2, 7, 4))
DOT = e.matmul(Q, e.permute(K, (0, 2, 1)))


def test_the_reference_matches_itself() -> None:
    for family, leaves in (("attention", (DOT, V)), ("product_i8", quantized_leaves())):
        root = load(family).reference(*leaves)
        bound = match(family, root)
        names = inspect.signature(load(family).reference).parameters
        assert bound is not None and tuple(bound[name] for name in names) == leaves


SCORES = {
    "plain": DOT,
    "scaled": e.mul(DOT, 0.5),
    "causal": e.select(e.less_equal(e.iota((5, 7), 1), e.iota((5, 7), 0)), e.mul(DOT, 0.5), -1e30),
    "bias of the head": e.add(DOT, e.input("bias", (2, 1, 7))),
    "product of scores": e.mul(DOT, e.tanh(DOT)),
}


@pytest.mark.parametrize("scores", SCORES)
def test_attention_is_one_kernel_whatever_is_done_to_its_scores(scores: str) -> None:
    found = fused({"y": e.add(e.matmul(e.softmax(SCORES[scores], -1), V), 1.0)})
    assert families(found) == ["attention"]


@pytest.mark.parametrize("rank", (2, 4))
def test_attention_of_any_rank(rank: int) -> None:
    lead = (2, 3)[: rank - 2]
    q, k, v = (e.input(n, (*lead, r, c)) for n, r, c in (("q", 5, 3), ("k", 7, 3), ("v", 7, 4)))
    dot = e.matmul(q, e.permute(k, (*range(rank - 2), rank - 1, rank - 2)))
    assert families(fused({"y": e.matmul(e.softmax(dot, -1), v)})) == ["attention"]


def softmax_with(axis: int = -1, numerator: float = 1.0, shift: bool = True, norm=e.reduce_sum) -> Node:
    """A softmax with one thing changed."""
    x = e.sub(DOT, e.reduce_max(DOT, axis)) if shift else DOT
    row = e.exp(x)
    return e.mul(row, e.div(numerator, norm(row, axis)))


SHIFTED = e.exp(e.sub(DOT, e.reduce_max(DOT, -1)))
NOT_SOFTMAX = {
    "another axis": softmax_with(axis=1),
    "another constant": softmax_with(numerator=2.0),
    "no shift": softmax_with(shift=False),
    "another norm": softmax_with(norm=e.reduce_max),
    "a division": e.div(SHIFTED, e.reduce_sum(SHIFTED, -1)),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_SOFTMAX)
def test_what_is_no_softmax_is_no_attention(case: str) -> None:
    root = e.matmul(NOT_SOFTMAX[case], V)
    assert match("attention", root) is None
    assert "attention" not in families(fused({"y": root}))


def test_the_unchanged_softmax_is_one() -> None:
    assert match("attention", e.matmul(softmax_with(), V)) == {"scores": DOT, "v": V}


def test_probabilities_read_outside_keep_attention_from_swallowing_them() -> None:
    p = e.softmax(DOT, -1)
    found = fused({"y": e.matmul(p, V), "p": p})
    assert "attention" not in families(found)
    found = fused({"y": e.matmul(p, V), "z": e.matmul(p, e.tanh(V))})
    assert "attention" not in families(found)


def test_scores_without_one_product_are_no_attention() -> None:
    for scores in (e.input("s", (2, 5, 7)), e.add(DOT, e.matmul(e.tanh(Q), e.permute(K, (0, 2, 1))))):
        assert "attention" not in families(fused({"y": e.matmul(e.softmax(scores, -1), V)}))


def test_the_scores_of_one_attention_may_be_the_answer_of_another() -> None:
    x = e.input("x", (5, 5))
    first = e.matmul(e.softmax(e.matmul(x, e.permute(x, (1, 0))), -1), e.tanh(x))
    found = fused({"y": e.matmul(e.softmax(first, -1), x)})
    assert families(found).count("attention") == 1


def test_keys_and_values_are_stored_not_computed_again() -> None:
    k = e.add(e.exp(K), 1.0)
    found = fused({"y": e.matmul(e.softmax(e.matmul(Q, e.permute(k, (0, 2, 1))), -1), e.tanh(V))})
    assert families(found) == ["attention", "map", "map"]


# ---------------------------------------------------------------------------------------------- eight bits


def quantized_leaves(name: str = "w") -> tuple[Node, Node, Node, Node]:
    scale, total = e.weight(f"{name}/scale", (1, 7)), e.weight(f"{name}/sum", (1, 7))
    return e.input("x", (3, 5)), e.weight(f"{name}/i8", (5, 7), "i8"), scale, total


SMALLEST = load("product_i8").SMALLEST


def half_range(x: Node, axis: int = -1, smallest: float = SMALLEST) -> tuple[Node, Node]:
    """Of each row: its middle and half its width."""
    high = e.bitcast(e.maximum(e.reduce_max(e.bitcast(x, "i32"), axis), 0), "f32")
    low = e.bitcast(e.maximum(e.reduce_max(e.bitcast(x, "u32"), axis), 1 << 31), "f32")
    high, low = e.mul(high, 0.5), e.mul(low, 0.5)
    return e.add(high, low), e.maximum(smallest, e.sub(high, low))


def quantized_product(steps: float = 127.0, smallest: float = SMALLEST, axis: int = -1) -> Node:
    """The reference of `product_i8` with one constant or axis changed."""
    x, w, t, c = quantized_leaves()
    middle, half = half_range(x, axis, smallest)
    inverse = e.div(steps, half)
    q = e.rint(e.minimum(e.fma(x, inverse, e.neg(e.mul(middle, inverse))), 127.0))
    total = e.cast(e.matmul(e.cast(q, "i8"), w), "f32")
    if axis != -1:
        middle, half = e.reduce_max(middle, 1), e.reduce_max(half, 1)
    return e.fma(middle, c, e.mul(total, e.mul(e.div(half, 127.0), t)))


def test_an_integer_product_is_one_kernel_with_its_neighbours() -> None:
    x, *held = quantized_leaves()
    y = e.gelu(e.add(load("product_i8").reference(e.mul(x, 0.5), *held), e.weight("b", (7,))))
    assert families(fused({"y": y})) == ["product_i8"]


def test_an_integer_product_with_one_thing_changed_is_none() -> None:
    assert match("product_i8", quantized_product()) is not None
    others = ({"steps": 126.0}, {"smallest": 2 * SMALLEST}, {"axis": 0})
    for changed in (quantized_product(**other) for other in others):
        assert match("product_i8", changed) is None


def test_rows_that_two_integer_products_share_are_quantized_in_both() -> None:
    reference = load("product_i8").reference
    x, *held = quantized_leaves()
    _, *others = quantized_leaves("w2")
    found = fused({"a": reference(x, *held), "b": reference(x, *others)})
    assert families(found) == ["product_i8", "product_i8"]


def test_a_rows_scale_that_is_also_a_result_is_computed_for_itself() -> None:
    x, *held = quantized_leaves()
    root = load("product_i8").reference(x, *held)
    found = fused({"y": root, "scale": e.div(half_range(x)[1], 127.0)})
    assert families(found) == ["map", "product_i8", "reduce", "reduce"]


# ---------------------------------------------------------------------------------------------- neighbours


def test_element_wise_neighbours_join_their_product() -> None:
    x, w = e.input("x", (3, 5)), e.weight("w", (5, 7))
    y = e.gelu(e.add(e.matmul(e.mul(x, 2.0), w), e.weight("b", (7,))))
    (kernel,) = (n for n in fused({"y": y}).order() if n.op == "kernel")
    assert kernel["family"] == "product" and len(kernel.sources) == 3


def test_what_is_dear_and_read_twice_is_stored() -> None:
    x = e.tanh(e.input("x", (3, 5)))
    found = fused({"a": e.matmul(x, e.weight("w", (5, 7))), "b": e.matmul(x, e.weight("v", (5, 2)))})
    assert families(found) == ["map", "product", "product"]


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(EdgewmError, match="no kernel family 'convolution'"):
        load("convolution")


# ---------------------------------------------------------------------------------------------- size


def test_five_thousand_nodes_are_matched() -> None:
    program = run(programs.transformer(4, 3, 8, 2, 4, LAYERS), EXACT)
    (graph,) = program.entries.values()
    assert len(graph.order()) >= 5000
    found = fuse(graph)
    assert families(found).count("attention") == LAYERS


def test_matching_finds_every_layer_and_nothing_more() -> None:
    (graph,) = run(programs.transformer(4, 3, 8, 2, 4, 3), EXACT).entries.values()
    found = families(fuse(graph))
    assert found.count("attention") == 3 and found.count("product") == 3 * 4
    assert np.all([n.op != "matmul" for n in fuse(graph).order()])

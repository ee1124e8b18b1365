"""What is the same for all candidates, or in every round, is computed once: same bits, fewer operations."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewm import expr as e
from edgewm.interp import run as interp
from edgewm.ops import graph_flops
from edgewm.passes.delay_expands import delay_expands
from edgewm.passes.hoist_invariants import hoist_invariants
from edgewm.program import Graph, Node, Program
from edgewm.spec import verify

MANY = 6
WEIGHT = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)


def weight() -> Node:
    return e.weight("w", WEIGHT.shape)


def spread(name: str, *shape: int) -> Node:
    return e.expand(e.input(name, (1, *shape)), (MANY, *shape))


# Of a value (MANY, 3, 4) that is alike for all; each ends in an operation that counts.
ALIKE = {
    "elementwise": lambda x: e.tanh(x),
    "of two": lambda x: e.mul(x, spread("other", 3, 4)),
    "of one row": lambda x: e.add(x, spread("row", 1, 4)),
    "with a constant": lambda x: e.maximum(x, 0.5),
    "reduction": lambda x: e.reduce_sum(x, -1),
    "softmax": lambda x: e.softmax(x, 1),
    "product with a weight": lambda x: e.matmul(x, weight()),
    "product of two": lambda x: e.matmul(x, e.permute(x, (0, 2, 1))),
    "permuted": lambda x: e.exp(e.permute(x, (1, 2, 0))),
    "reshaped": lambda x: e.exp(e.reshape(x, (MANY, 2, 6))),
    "a slice": lambda x: e.exp(e.narrow(x, 1, 1, 3)),
    "a concatenation": lambda x: e.exp(e.concat([x, spread("two", 2, 4)], 1)),
    "without the axis": lambda x: e.exp(e.add(e.expand(e.input("flat", (3, 4)), (MANY, 3, 4)), x)),
}
# Each needs every candidate, or mixes candidates with rows.
DIFFERENT = {
    "a sum over candidates": lambda x: e.reduce_sum(x, 0),
    "another operand for each": lambda x: e.mul(x, e.input("own", (MANY, 3, 4))),
    "candidates among rows": lambda x: e.exp(e.reshape(x, (MANY * 3, 4))),
    "candidates one after another": lambda x: e.exp(e.concat([x, x], 0)),
}


def program(build) -> Program:
    return Program({"f": Graph({"y": build(spread("x", 3, 4))})}, {"w": WEIGHT})


def inputs(graph: Graph) -> dict[str, np.ndarray]:
    return {
        name: np.random.default_rng(list(name.encode())).standard_normal(leaf.shape).astype(np.float32)
        for name, leaf in graph.inputs().items()
    }


def same(before: Program, after: Program) -> bool:
    verify(after, "test")
    given_ = inputs(before.entries["f"])
    results = []
    for p in (before, after):
        graph = p.entries["f"]
        results.append(interp(graph, {n: given_[n] for n in graph.inputs()}, p.weights)["y"])
    return np.array_equal(*results)


@pytest.mark.parametrize("what", ALIKE)
def test_what_is_alike_is_computed_for_one(what: str) -> None:
    before = program(ALIKE[what])
    after = delay_expands(before)
    assert same(before, after)
    assert graph_flops(before.entries["f"]) == MANY * graph_flops(after.entries["f"])
    assert delay_expands(after).entries == after.entries


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_is_not_alike_is_left_as_it_is(what: str) -> None:
    before = program(DIFFERENT[what])
    after = delay_expands(before)
    assert same(before, after) and graph_flops(after.entries["f"]) == graph_flops(before.entries["f"])


@given(st.lists(st.sampled_from(["elementwise", "with a constant", "softmax", "of two", "of one row"]), max_size=5),
       st.sampled_from(sorted(DIFFERENT)))  # fmt: skip
def test_chains_change_no_bit_and_never_cost_more(alike: list[str], last: str) -> None:
    def chain(x: Node) -> Node:
        for what in alike:
            x = ALIKE[what](x)
        return DIFFERENT[last](x)

    before = program(chain)
    after = delay_expands(before)
    assert same(before, after) and graph_flops(after.entries["f"]) <= graph_flops(before.entries["f"])


# ------------------------------------------------------------------------------------------------------------- rounds

ROUNDS = 3


def loop(alike) -> Program:
    """x -> x * alike(held), ROUNDS times."""
    x, held = e.input("x", (3, 5)), e.input("held", (3, 4))
    body = Graph({"x": e.mul(e.input("x", (3, 5)), alike(e.input("held", (3, 4))))})
    return Program({"f": Graph({"y": e.repeat(ROUNDS, body, {"x": x}, {"held": held})["x"]})}, {"w": WEIGHT})


def inside(p: Program) -> Graph:
    (found,) = (node for node in p.entries["f"].order() if node.op == "repeat")
    return found["body"]


def test_what_every_round_would_compute_is_computed_before_the_first() -> None:
    before = loop(lambda held: e.gelu(e.matmul(e.tanh(held), weight())))
    after = hoist_invariants(before)
    assert same(before, after)
    assert graph_flops(inside(after)) == 3 * 5  # the product with x alone
    assert "held" not in inside(after).inputs() and hoist_invariants(after).entries == after.entries


def test_what_changes_stays() -> None:
    before = loop(lambda held: e.matmul(e.mul(held, e.cast(e.input("counter", (), "u32"), "f32")), weight()))
    assert hoist_invariants(before).entries == before.entries
    before = loop(lambda held: e.tanh(e.add(e.input("x", (3, 5)), e.matmul(held, weight()))))
    after = hoist_invariants(before)
    assert same(before, after) and graph_flops(inside(after)) == graph_flops(inside(before)) - 2 * 3 * 4 * 5


def test_views_and_constants_stay_where_kernels_see_them() -> None:
    before = loop(lambda held: e.matmul(e.permute(e.reshape(held, (4, 3)), (1, 0)), e.mul(weight(), 2.0)))
    after = hoist_invariants(before)
    assert same(before, after)
    before = loop(lambda held: e.reshape(e.concat([held, e.narrow(held, 1, 0, 1)], 1), (3, 5)))
    assert hoist_invariants(before).entries == before.entries


def test_what_is_taken_out_never_takes_the_name_of_an_input() -> None:
    """An invariant of that very name, as an earlier run leaves one: read as it is, and through something computed."""
    x, held = e.input("x", (3, 5)), e.input("once_0", (3, 5))
    inner = e.input("x", (3, 5)), e.input("once_0", (3, 5))
    body = Graph({"x": e.add(e.mul(*inner), e.tanh(inner[1]))})
    graph = Graph({"y": e.repeat(ROUNDS, body, {"x": x}, {"once_0": held})["x"]})
    before = Program({"f": graph}, {"w": WEIGHT})
    after = hoist_invariants(before)
    assert same(before, after) and len(inside(after).inputs()) == 3


def test_a_carry_taken_for_the_same_in_every_round_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(hoist_invariants.__module__)
    found = module._computed_once
    monkeypatch.setattr(module, "_computed_once", lambda body, names, taken: found(body, {*names, "x"}, taken))
    before = loop(lambda held: e.tanh(e.add(e.input("x", (3, 5)), e.matmul(held, weight()))))
    assert not same(before, hoist_invariants(before))

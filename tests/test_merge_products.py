"""Products of one value become one; where they are not alike they stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import programs
import pytest

from edgewm import expr as e
from edgewm import interp
from edgewm.passes import run
from edgewm.passes.fuse_kernels import fuse_kernels
from edgewm.passes.merge_products import merge_products
from edgewm.passes.quantize_products import quantize_products
from edgewm.program import Graph, Node, Program, walk_graphs

X = e.input("x", (5, 8))


def linear(name: str, x: Node = X, width: int = 3) -> Node:
    return e.add(e.matmul(x, e.weight(f"w{name}", (x.shape[-1], width))), e.weight(f"b{name}", (width,)))


def count(program: Program, op: str = "matmul") -> int:
    return sum(n.op == op for entry in program.entries.values() for g in walk_graphs(entry) for n in g.order())


def merged(outputs: dict[str, Node], kind: str | None = None) -> tuple[Program, Program]:
    """The program as it enters the step and as it leaves, after its answers were compared."""
    program = programs.program_of({"f": Graph(outputs)})
    if kind:
        matrices = {n.sources[1]["name"]: kind for n in program.entries["f"].order() if n.op == "matmul"}
        program = run(program.with_(recipe=matrices), (quantize_products,))
    after = run(program, (merge_products,))
    inputs = programs.inputs_of(program.entries["f"])
    wanted, found = (interp.run(p.entries["f"], inputs, p.weights) for p in (program, after))
    assert programs.differing(found, wanted) == []
    return program, after


@pytest.mark.parametrize("kind", [None, "w8a8", "bf16", "fp8"])
def test_products_of_one_row_are_one_with_their_biases(kind: str | None) -> None:
    x = e.normalised(X, 1e-5, -1)
    _, after = merged({n: linear(n, x, width) for n, width in (("q", 3), ("k", 4), ("v", 5))}, kind)
    (product,) = (n for n in after.entries["f"].order() if n.op == "matmul")
    assert product.shape == (5, 12)
    (kernel,) = (n for n in run(after, (fuse_kernels,)).entries["f"].order() if n.op == "kernel" and n.shape == (5, 12))
    families = {None: "product", "w8a8": "product_i8", "bf16": "product_bf16", "fp8": "product_bf16"}
    assert kernel["family"] == families[kind]
    assert kernel in {n.sources[0] for n in run(after, (fuse_kernels,)).entries["f"].outputs.values()}  # slices of it


def test_products_in_a_loop_are_merged_there() -> None:
    x = e.input("x", (5, 3))
    body = Graph({"x": e.mul(e.tanh(linear("a", x)), linear("b", x))})
    before, after = merged({"y": e.repeat(2, body, {"x": e.input("x", (5, 3))})["x"]})
    assert (count(before), count(after)) == (2, 1)


def test_what_one_part_is_read_by_beside_ends_the_likeness() -> None:
    a, b = e.matmul(X, e.weight("wa", (8, 3))), e.matmul(X, e.weight("wb", (8, 3)))
    _, after = merged({"a": e.add(a, e.weight("ba", (3,))), "b": e.add(b, e.weight("bb", (3,))), "too": e.tanh(a)})
    assert (count(after), count(after, "add")) == (1, 2)


def test_an_activation_of_each_is_one_of_the_whole() -> None:
    before, after = merged({"a": e.gelu(linear("a")), "b": e.gelu(linear("b", width=7))})
    assert (count(before, "gelu"), count(after, "gelu")) == (2, 1)


UNLIKE: dict[str, Callable[[], dict[str, Node]]] = {
    "another value": lambda: {"a": linear("a"), "b": linear("b", e.tanh(X))},
    "another number of batches": lambda: {
        "a": e.matmul(X, e.weight("wa", (8, 3))), "b": e.matmul(X, e.weight("wb", (2, 8, 3))),
    },
    "a product of two activations": lambda: {
        "a": linear("a"), "b": e.matmul(X, e.input("y", (8, 3))),
    },
    "one alone": lambda: {"a": linear("a")},
}  # fmt: skip


@pytest.mark.parametrize("case", UNLIKE)
def test_what_is_not_alike_stays(case: str) -> None:
    before, after = merged(UNLIKE[case]())
    assert dict(after.entries) == dict(before.entries) and set(after.weights) == set(before.weights)


def test_weights_stand_side_by_side() -> None:
    before, after = merged({"a": linear("a"), "b": linear("b", width=2)})
    np.testing.assert_array_equal(
        after.weights["wa+wb"], np.concatenate([before.weights["wa"], before.weights["wb"]], 1)
    )

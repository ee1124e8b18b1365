"""What eight bits leave in bf16: products that every way from a candidate to its cost passes, while they are few."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from edgewm import expr as e
from edgewm.program import Graph, Node, Program
from edgewm.quantize import recipe_of, straits


def stack(width: int, layers: int, hidden: int, residual: bool) -> Program:
    """candidates -> first -> layers of two products -> last -> cost; with or without a way around each layer."""
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, rows: int, columns: int) -> Node:
        weights[name] = np.ones((rows, columns), np.float32)
        return e.weight(name, (rows, columns))

    x = e.matmul(e.input("candidates", (7, 4)), weight("first", 4, width))
    for i in range(layers):
        inner = e.matmul(e.tanh(x), weight(f"up{i}", width, hidden))
        outer = e.matmul(e.tanh(inner), weight(f"down{i}", hidden, width))
        x = e.add(x, outer) if residual else outer
    goal = e.matmul(e.input("goal", (7, width)), weight("goal", width, width))
    found = e.sub(e.matmul(x, weight("last", width, width)), goal)
    return Program({"score": Graph({"cost": e.reduce_sum(e.mul(found, found), -1)})}, weights)


def test_what_no_residual_goes_around_is_a_strait() -> None:
    assert straits(stack(64, 6, 256, residual=True)) == {"last"}  # too few go into the first to round them at all


def test_a_tenth_of_the_work_is_the_most() -> None:
    assert not straits(stack(64, 1, 128, residual=True))  # the last is more than a tenth of so few
    assert straits(stack(64, 6, 256, residual=False)) == {"last", "down0"}  # all products are: what there is room for


def test_without_scores_there_are_none() -> None:
    program = stack(64, 6, 256, residual=True)
    assert not straits(program.with_(entries={"f": program.entries["score"]}))


@pytest.mark.parametrize("precision", ["w8a8", "w8a8_all"])
def test_eight_bits_hold_them_in_bf16_and_nothing_else(precision: str) -> None:
    recipe, narrow = recipe_of(tiny.exact(), precision), straits(tiny.exact())
    assert {name for name, form in recipe.items() if form == "bf16"} == narrow & recipe.keys()
    assert set(recipe_of(stack(64, 6, 256, residual=True), "w8a8").items()) > {("last", "bf16"), ("up0", "w8a8")}

"""What is kept is named by all that it came from; and what a build does once, it need not do again."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

from edgewm import expr as e
from edgewm.garbage import uncollected
from edgewm.identity import code_identity, program_identity
from edgewm.ops import make, remade
from edgewm.program import Graph, Node, Planner, Port, Program
from edgewm.spec import BrokenProgram, verify


def body(step: float) -> Graph:
    return Graph({"a": e.add(e.input("a", (2,)), e.const(step))})


def program(weight: float = 1.0, step: float = 0.5, axis: int = 0, swapped: bool = False, name: str = "f") -> Program:
    """Two entries: a loop in one, a product, a reduction and a leaf read twice in the other."""
    x, w = e.input("x", (2, 3)), e.weight("w", (3, 2))
    y = make("sum", e.matmul(x, w), axis=axis)
    pair = (e.reshape(y, (2,)), e.input("u", (2,)))
    loop = e.repeat(2, body(step), {"a": e.input("a", (2,))})["a"]
    outputs = {"y": e.sub(*(pair[::-1] if swapped else pair)), "x": x}
    ports = (Port("x", "observation", (2, 3)),)
    weights = {"w": np.full((3, 2), weight, np.float32)}
    return Program({name: Graph(outputs), "loop": Graph({"a": loop})}, weights, ports, Planner(horizon=3))


CHANGED = {
    "a weight's value": lambda: program(weight=np.nextafter(np.float32(1), np.float32(2))),
    "a constant inside a loop": lambda: program(step=0.25),
    "an attribute": lambda: program(axis=1),
    "sources in another order": lambda: program(swapped=True),
    "an entry's name": lambda: program(name="g"),
    "a weight's shape": lambda: program().with_(weights={"w": np.ones((2, 3), np.float32)}),
    "a weight's dtype": lambda: program().with_(weights={"w": np.ones((3, 2), np.int32)}),
    "a port's bounds": lambda: program().with_(ports=(Port("x", "observation", (2, 3), low=0.0),)),
    "the planner": lambda: program().with_(planner=replace(program().planner, horizon=4)),
    "an output's name": lambda: program().with_(
        entries={**program().entries, "f": Graph({"z": program().entries["f"].outputs["y"]})}
    ),
}


def test_a_program_is_the_same_however_often_it_is_built() -> None:
    unread = program().with_(weights={"v": np.ones(2, np.float32), **program().weights})
    assert program_identity(program()) == program_identity(program()) == program_identity(unread)
    assert code_identity() == code_identity.__wrapped__()


@pytest.mark.parametrize("what", CHANGED)
def test_whatever_changes_a_program_changes_its_identity(what: str) -> None:
    assert program_identity(CHANGED[what]()) != program_identity(program())


def test_a_node_of_the_same_sources_is_itself_and_of_others_another() -> None:
    a, b = e.input("a", (2,)), e.input("b", (2,))
    node = e.add(a, b)
    assert remade(node, (a, b)) is node and remade(node, (b, a)) is e.add(b, a)
    loop = e.repeat(2, body(0.5), {"a": a})["a"].sources[0]
    changed = remade(loop, loop.sources, lambda inner: body(0.25))
    assert remade(loop, loop.sources, lambda inner: inner) is loop and changed["body"] == body(0.25)


def test_a_graph_that_was_sound_is_still_held_to_its_weights() -> None:
    found = program()
    verify(found, "capture")
    for weights, rule in (({}, "is in the program's weights"), ({"w": np.ones((2, 3), np.float32)}, "is float32")):
        with pytest.raises(BrokenProgram, match=rule):
            verify(found.with_(weights=weights), "a step")


@pytest.mark.parametrize("before", (True, False))
def test_the_search_for_cycles_goes_on_as_before(before: bool) -> None:
    searched = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with pytest.raises(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == before
    finally:
        (gc.enable if searched else gc.disable)()


def test_leaves_and_nested_graphs_come_in_the_order_of_first_use() -> None:
    graph = program().entries["loop"]
    nodes: list[Node] = [n for n in graph.order() if not n.sources]
    assert list(graph.leaves) == nodes and graph.nested == (body(0.5),)

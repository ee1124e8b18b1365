"""What a GPU's launches have in common: which calls are joined, and which may not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import programs
import pytest
import test_cuda_kernels as cases

from edgewm import expr as e
from edgewm.cuda.launches import MOST_BYTES, Facts, attended_bytes, rows_bytes, takes_rows
from edgewm.cuda.schedule import Launched, _is_own, launched, schedule_gpu
from edgewm.cuda.source import OWN, launch_rows
from edgewm.emit import emit
from edgewm.layout import LANE, ZERO, Buffer
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Graph, Node
from edgewm.schedule import Call, Operand


def scheduled(graph: Graph, precision: str = "w8a8") -> list[Launched]:
    """A graph's regions."""
    graph = programs.salted(graph, "s")
    recipe = {w["name"]: precision for w in cases.weights_of(graph)} if precision != "fp32" else {}
    program = run(run(programs.program_of({"g": graph}), EXACT).with_(recipe=recipe), LOWERING)
    return launched(schedule_gpu(program).entries["g"].steps)


def joined(graph: Graph, precision: str = "w8a8") -> list[tuple[str, ...]]:
    """Families of the regions that a graph's attentions are in."""
    regions = scheduled(graph, precision)
    return [tuple(c.family for c in r.calls) for r in regions if r.calls[-1].family == "attention"]


SHAPE = (33, 3, 70, 2, 24)  # samples, tokens, numbers, heads, depth
TOGETHER = [("product_i8", "attention")]


def test_an_attention_joins_the_product_of_its_queries_keys_and_values() -> None:
    assert joined(cases.attended(*SHAPE)) == TOGETHER
    assert joined(cases.attended(*SHAPE), "bf16") == [("product_bf16", "attention")]
    assert [joined(cases.attended(*SHAPE, queries)) for queries in (1, 2)] == [TOGETHER, TOGETHER]


def test_one_token_or_one_number_stands_alone() -> None:
    assert joined(beyond(1, 8)) == []  # its weight is 1: there is no attention
    assert joined(cases.attended(33, 3, 70, 1, 1)) == [("attention",)]


def beyond(tokens: int, depth: int) -> Graph:
    return cases.attended(33, tokens, 70, 2, depth)


def results_of(graph: Graph) -> Node:
    """What its product makes."""
    return next(n for n in graph.order() if n.op == "add" and n.sources[0].op == "matmul")


def read_again() -> Graph:
    """What the product makes is an answer, too."""
    graph = cases.attended(*SHAPE)
    made = results_of(graph)
    return Graph({**graph.outputs, "made": e.mul(made, 2.0)})


def keys_of_another() -> Graph:
    """Queries of one product, keys and values of another."""
    graph = cases.attended(*SHAPE)
    made = results_of(graph)
    x = e.input("other", made.shape)
    samples, tokens, _, heads, depth = SHAPE
    lead = (samples, tokens, 3, heads, depth)
    q = e.reshape(e.narrow(e.reshape(made, lead), 2, 0, 1), (samples, tokens, heads, depth))
    k, v = (e.reshape(e.narrow(e.reshape(x, lead), 2, i, i + 1), (samples, tokens, heads, depth)) for i in (1, 2))
    q, k, v = (e.permute(y, (0, 2, 1, 3)) for y in (q, k, v))
    return Graph({"y": e.matmul(e.softmax(e.matmul(q, e.permute(k, (0, 1, 3, 2))), -1), v)})


APART = {
    "more tokens than a block has queries": lambda: beyond(5, 8), "results that are read again": read_again,
    "more numbers than a block holds": lambda: beyond(4, 64), "keys of another value": keys_of_another,
}  # fmt: skip


@pytest.mark.parametrize("case", APART)
def test_others_stand_alone(case: str) -> None:
    assert joined(APART[case]()) == [("attention",)]


def test_a_product_in_float_stands_alone() -> None:
    assert joined(cases.attended(*SHAPE), "fp32") == [("attention",)]


ROWS = (330, 70, 33, 1)  # numbers, columns, lanes, outer


def chained(graph: Graph, precision: str = "w8a8") -> list[tuple[str, ...]]:
    """Families of the regions that a graph's products are in."""
    found = [tuple(c.family for c in r.calls) for r in scheduled(graph, precision)]
    return [families for families in found if any(f.startswith("product") for f in families)]


def test_what_reads_rows_alone_joins_the_product_that_made_them() -> None:
    for family, precision in (("product_i8", "w8a8"), ("product_bf16", "bf16")):
        assert chained(cases.followed(*ROWS), precision) == [(family, "reduce", family, "reduce")]
        assert chained(cases.attended(*SHAPE, 0, 66), precision) == [(family, "reduce", family, "attention")]


def folded_across() -> Graph:
    """A norm over the lanes of each number, not over a lane's numbers."""
    graph = cases.followed(*ROWS)
    y = next(n for n in graph.order() if n.op == "add" and n.sources[0].op == "matmul")
    return Graph({"y": e.reduce_max(y, 1)})


def wide(columns: int) -> Graph:
    return cases.followed(64, columns, 33, 1)


ROWS_APART = {"a norm across lanes": folded_across, "more columns than barriers are worth": lambda: wide(5000)}


@pytest.mark.parametrize("case", ROWS_APART)
def test_other_rows_are_of_another_launch(case: str) -> None:
    assert chained(ROWS_APART[case]())[0] == ("product_i8",)


def test_a_product_in_float_has_no_whole_rows() -> None:
    assert chained(cases.followed(*ROWS), "fp32")[0] == ("product",)


def test_whole_rows_are_taken_where_barriers_take_longer() -> None:
    """By what the busiest multiprocessor brings meanwhile: few columns, not too few lanes."""
    free, few, many = 1 << 17, Facts((1, 192, 2048), 1, (False,)), Facts((1, 192, 2048), 300, (False,))
    assert takes_rows(many, 1, free) and not takes_rows(few, 1, free) and not takes_rows(many, 1, 0)
    assert rows_bytes((1, 192, 2048), 1) == 3 * (32 + 64) * 2048
    assert not takes_rows(Facts((1, 2048, 192), 300, (False,)), 1, free)


def test_a_row_is_what_the_block_itself_has_written() -> None:
    buffer = Buffer("b", "f32", 600, 40)

    def product(**changed: object) -> Call:
        """It writes 2 rows of 300 numbers, 2 apart; it reads what it is told to."""
        given: dict[str, Any] = {"offset": ZERO, "strides": [(1, 0), (2, 0), ZERO], "dims": [2, 300, 7], **changed}
        operand = Operand(buffer, given["offset"], given.get("lane_stride", LANE), given["strides"])
        return Call("product_i8", None, given["dims"], 40, {}, operand)

    def is_own(**changed: object) -> bool:
        call = product(**changed)
        return _is_own(call.out, call, product())

    assert is_own() and is_own(dims=[2, 200, 7]) and is_own(strides=[(1, 0), ZERO, ZERO])
    assert not is_own(offset=(2, 0))
    assert not is_own(strides=[(2, 0), (2, 0), ZERO])
    assert not is_own(strides=[(1, 0), (1, 0), ZERO])
    assert not is_own(strides=[(1, 0), (2, 0), (1, 0)])
    assert not is_own(dims=[2, 301, 7])
    assert not is_own(lane_stride=ZERO)


def test_a_regions_workspaces_lie_apart() -> None:
    (region,) = (r for r in scheduled(cases.followed(*ROWS)) if r.calls[0].family == "product_i8")
    first, second = (c.workspace for c in region.calls if c.workspace is not None)
    assert first.offset_bytes == 0 and second.offset_bytes >= first.elements


def test_a_block_holds_what_it_is_said_to() -> None:
    """The most that fits: 3 tokens of 64 numbers in heads of 64, all of what two blocks of an SM share."""
    assert attended_bytes(3, 64, 64) == MOST_BYTES
    held = [(t, d) for t, d in np.ndindex(8, 129) if t and d and attended_bytes(t, d, d) is not None]
    assert max(t for t, _ in held) == 4 and max(d for t, d in held if t == 3) == 64


def test_what_is_held_is_not_counted_as_memory() -> None:
    graph = programs.salted(cases.attended(*SHAPE), "s")
    recipe = {w["name"]: "w8a8" for w in cases.weights_of(graph)}
    program = run(run(programs.program_of({"g": graph}), EXACT).with_(recipe=recipe), LOWERING)
    schedule = schedule_gpu(program)
    buffers = [b for b in schedule.buffers.values() if b.held]
    samples, tokens, _, heads, depth = SHAPE
    assert [(b.elements, b.lanes) for b in buffers] == [(tokens * 3 * heads * depth, samples)]


def stored(x: Node, how: str, scale: float) -> Graph:
    """A product of rows, and a neighbour that is read for each lane, or once for all."""
    rows, width = x.shape[0], 4
    beside = {"V": e.input("u", (rows, width)), "B": e.input("u", (1, width))}
    return Graph({"y": e.add(e.mul(e.matmul(x, e.weight("w", (x.shape[1], width))), e.const(scale)), beside[how])})


def test_a_function_does_for_calls_that_differ_in_how_lanes_lie() -> None:
    x = e.input("x", (33, 5))

    def functions(*graphs: Graph) -> tuple[int, int]:
        """Kernels on a CPU and functions on a GPU."""
        whole = programs.program_of({f"g{i}": g for i, g in enumerate(graphs)})
        whole = run(run(whole, EXACT), LOWERING)
        sections, source = emit(whole, schedule_gpu(whole), {})
        names, rows = launch_rows(sections, source)
        assert set(rows["function"]) == set(range(len(OWN), len(names)))
        return len(source.kernels), len(names) - len(OWN)

    kernels, one = functions(stored(x, "V", 2.0))
    assert functions(stored(x, "V", 2.0), stored(x, "B", 2.0)) == (kernels + 1, one)
    assert functions(stored(x, "V", 2.0), stored(x, "B", 3.0))[1] == one + 1  # another constant is another function

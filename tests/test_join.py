"""Concatenations of values that lie side by side: views on a GPU, copies where that cannot be."""

from __future__ import annotations

from pathlib import Path

import cuda_cpu
import programs
import pytest
from cuda_cpu import Bundle

from edgewm import expr as e
from edgewm import interp
from edgewm.cuda import schedule as gpu_schedule
from edgewm.join import Ties
from edgewm.layout import LANE, Buffer, Layout
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Graph, Program

LANES, WIDTH, TOKENS = 70, 6, 3


def part(x, which: int):
    """One of a token's values of WIDTH, as the only index of an axis of tokens."""
    return e.reshape(e.narrow(x, 1, which * WIDTH, (which + 1) * WIDTH), (LANES, 1, WIDTH))


def windows() -> Program:
    """Keys and values of tokens, of which the first has no query, in windows that end at the second and the third."""
    tokens = [
        e.matmul(e.input(f"x{t}", (LANES, 9)), e.weight(f"w{t}", (9, (3 if t else 2) * WIDTH))) for t in range(TOKENS)
    ]
    outputs = {}
    for last in range(1, TOKENS):
        keys, values = (
            e.concat([part(y, which - (t == 0)) for t, y in enumerate(tokens[: last + 1])], 1) for which in (1, 2)
        )
        score = e.softmax(e.mul(keys, part(tokens[last], 0)), 1)
        outputs[f"y{last}"] = e.reduce_sum(e.mul(score, values), 1)
    return run(run(programs.program_of({"windows": Graph(outputs)}), EXACT), LOWERING)


def copies(program: Program) -> int:
    """Calls that copy anything but results to their ports."""
    entry = gpu_schedule.schedule_gpu(program).entries["windows"]
    ports = {layout.buffer for layout in entry.outputs.values()}
    return sum(c.family == "copy" and c.out.buffer not in ports for c in gpu_schedule.calls_of(entry.steps))


def test_windows_over_keys_and_values_are_views_with_the_oracles_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = windows()
    assert copies(program) == 0
    inputs = programs.inputs_of(program.entries["windows"])
    expected = interp.run(program.entries["windows"], inputs, program.weights)
    right = Bundle(program, tmp_path)
    assert programs.differing(right.run("windows", **inputs), expected) == []
    resolve = Ties.resolve

    def shifted(ties: Ties, *given: object) -> None:
        places = next(iter(ties.places.values()))
        places[max(places, key=places.__getitem__)] += 1
        resolve(ties, *given)

    monkeypatch.setattr(Ties, "resolve", shifted)
    monkeypatch.setattr(cuda_cpu, "Device", lambda *given: right.device)  # the same kernels
    wrong = Bundle(program, tmp_path)
    assert [said[:3] for said in programs.differing(wrong.run("windows", **inputs), expected)] == ["y2:"]


def value(name: str, elements: int = 4, **given: object) -> Layout:
    """(LANES, 1, elements) with lanes as neighbours."""
    buffer = Buffer(name, "f32", elements, LANES, **given)
    return Layout(buffer, (LANES, 1, elements), (LANE, (elements, 0), (1, 0)))


def test_what_is_tied_stays_so() -> None:
    ties, (a, b, c) = Ties(), map(value, "abc")
    assert ties.joined([a, b], 1) == Layout(a.buffer, (LANES, 2, 4), (LANE, (4, 0), (1, 0)))
    assert ties.joined([a, b, c], 1) == Layout(a.buffer, (LANES, 3, 4), (LANE, (4, 0), (1, 0)))
    assert ties.joined([b, a], 1) is None and ties.joined([a, c, b], 1) is None and ties.joined([c, c], 1) is None
    behind = ties.joined([a, value("d")], 1)
    assert behind is not None and behind.strides[1] == (12, 0)  # c lies where 8 would be


@pytest.mark.parametrize(
    "other",
    [
        value("b", pinned=True), value("b", space="weights"),
        Layout(Buffer("b", "f32", 4, LANES + 1), (LANES, 1, 4), (LANE, (4, 0), (1, 0))),
        Layout(Buffer("b", "i32", 4, LANES), (LANES, 1, 4), (LANE, (4, 0), (1, 0))),
        Layout(Buffer("b", "f32", 4, LANES), (LANES, 1, 4), (LANE, (4, 0), (1, 0)), (0, 1)),
        Layout(Buffer("b", "f32", 4 * LANES, 0), (LANES, 1, 4), ((0, 1), (0, LANES), (0, LANES))),
    ],
)  # fmt: skip
def test_what_lies_otherwise_is_not_tied(other: Layout) -> None:
    ties = Ties()
    assert ties.joined([value("a"), other], 1) is None and not ties.places

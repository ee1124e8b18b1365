"""Where the time goes: every call of a plan is in a row, with the work the program says, and limits that follow."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console

from edgewm import format as ewm
from edgewm import profile as verb
from edgewm.call_work import call_work, touched_bytes
from edgewm.console import profile_table
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.estimate import operations
from edgewm.host import host
from edgewm.kernel_times import BUDGET_S, RUNS, calls_of, grouped, kernel_lines, kernel_rows, rates
from edgewm.schedule import Region, Repeat

PEAKS = {"fp32_gflops": 100.0, "bf16_gflops": 200.0, "int8_gops": 400.0, "dram_gbps": 10.0}


@pytest.fixture(scope="module")
def bundle() -> Path:
    return tiny.bundle("host", "w8a8")


def fake_tick(indices: list[int], spent: list[int]):
    """A runner whose calls take `spent[i]` ns in the i-th run, all alike."""
    runs = iter(spent)

    def run(*words: object) -> dict:
        ns = next(runs)
        return {"plans": 1, "calls": [{"call": i, "kernel": "k", "ns": ns} for i in indices]}

    return run


# ------------------------------------------------------------------------------------------------------ what calls do


@pytest.mark.parametrize("precision", ["fp32", "bf16", "w8a8"])
def test_the_calls_of_a_plan_do_what_its_program_says(precision: str) -> None:
    program = tiny.lowered(precision)
    schedule = schedule_program(program, host().isa)
    found: dict[str, int] = {}

    def walk(steps: list, times: int) -> None:
        for step in steps:
            if isinstance(step, Repeat):
                walk(step.body, times * step.count)
                continue
            for call in step.calls:
                for kind, count in call_work(call, schedule).items():
                    if kind != "does":
                        found[kind] = found.get(kind, 0) + times * count

    walk(schedule.entries["plan"].steps, 1)
    wanted = operations(program.entries["plan"])
    products = {kind: count for kind, count in wanted.items() if kind != "vector" and count}
    assert {kind: found[kind] for kind in products} == products
    assert found["vector"] == wanted["vector"] and found["weights"] > 0 and found["scratch"] > 0


def test_bytes_are_of_what_the_loops_reach() -> None:
    schedule = schedule_program(tiny.lowered(), host().isa)
    regions = [s for s in schedule.entries["plan"].steps if isinstance(s, Region)]
    assert regions
    for call in (c for region in regions for c in region.calls):
        reached = {id(o): touched_bytes(o, call, schedule) for o in call.operands()}
        whole = int(np.prod(call.dims, dtype=np.int64)) * call.lanes * 4
        for operand in call.operands():
            if operand.buffer.space != "weights":
                assert 0 < reached[id(operand)] <= whole


# ----------------------------------------------------------------------------------------------------------- the rows


def test_a_row_is_one_kernel_on_one_shape_and_times_are_the_least(bundle: Path) -> None:
    calls = calls_of(bundle)
    assert {call["times"] for call in calls} == {1, tiny.PLANNER.iterations}
    run = fake_tick([call["call"] for call in calls], [5000, 3000, *[4000] * RUNS])
    rows = kernel_rows(bundle, run, peaks=lambda threads: PEAKS)
    assert sum(row["ms"] for row in rows) == pytest.approx(len(calls) * 0.003)
    assert sum(row["calls"] for row in rows) == sum(call["times"] for call in calls)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    keys = [(row["kernel"], *row["dims"], row["lanes"]) for row in rows]
    assert len(set(keys)) == len(keys) and rows == sorted(rows, key=lambda row: -row["ms"])
    assert any(row["family"] == "product_i8" and row["limit_ms"]["tensor"] > 0 for row in rows)
    json.dumps(rows, allow_nan=False)


def test_a_long_plan_is_timed_at_least_twice(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, int(BUDGET_S) + 1))
    monkeypatch.setattr("edgewm.kernel_times.time.monotonic", lambda: next(clock))
    rows = kernel_rows(bundle, fake_tick([calls_of(bundle)[0]["call"]], [7000, 6000]), peaks=lambda threads: PEAKS)
    assert sum(row["ms"] for row in rows) == pytest.approx(0.006)


def test_rates_and_limits() -> None:
    work = {"f32": 10**8, "i8": 8 * 10**8, "vector": 10**7, "weights": 10**6, "arena": 10**6, "scratch": 8 * 10**6}
    found = rates(work, 5.0, PEAKS)
    assert found["limit_ms"] == pytest.approx({"tensor": 3.0, "vector": 0.1, "bytes": 0.2})
    assert found["gflops"] == pytest.approx(910 / 5) and found["gbps"] == pytest.approx(2.0)
    assert found["bound"] == "tensor" and found["of_limit"] == pytest.approx(3.3 / 5)
    assert found["peak_fraction"] == pytest.approx(0.6)
    assert rates({"scratch": 4}, 1.0, PEAKS)["bound"] is None


def test_elsewhere_the_peaks_are_not_known(bundle: Path) -> None:
    calls = calls_of(bundle)
    run = fake_tick([call["call"] for call in calls], [1000] * RUNS)
    rows = kernel_rows(bundle, run, is_here=False)
    assert all(row["limit_ms"] is None and row["of_limit"] is None for row in rows)
    assert any(row["gflops"] for row in rows) and "together" in kernel_lines(rows)[-1]


def test_a_call_that_was_not_timed_took_no_time(bundle: Path) -> None:
    rows = grouped(calls_of(bundle), {}, PEAKS)
    assert all(row["ms"] == 0 and row["gflops"] is None and row["of_limit"] is None for row in rows)
    kernel_lines(rows)


def test_a_bundle_without_its_calls_work_is_refused(bundle: Path, tmp_path: Path) -> None:
    sections = ewm.unpack((bundle / "model.ewm").read_bytes())
    manifest = json.loads(sections["manifest"])
    del manifest["calls"]
    sections["manifest"] = json.dumps(manifest).encode()
    (tmp_path / "model.ewm").write_bytes(ewm.pack(sections, "t", bytes(32)))
    with pytest.raises(EdgewmError, match="does not say what its calls do") as fault:
        calls_of(tmp_path)
    assert fault.value.fix == "build the bundle again"


# ------------------------------------------------------------------------------------------------------------ the verb


def test_the_clock_shows_its_kernels(bundle: Path) -> None:
    found = verb.profile(bundle, ticks=10, threads=2, kernels=True)
    rows = found["kernels"]
    assert all(row["ms"] > 0 for row in rows) and {"product_i8", "topk"} <= {row["family"] for row in rows}
    assert max(rows, key=lambda row: row["flops"])["limit_ms"]["tensor"] > 0
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(profile_table(found))
    text = console.export_text()
    assert "the kernels of a plan on 1 thread" in text and "of limit" in text and "together" in text
    page = (bundle / "report.html").read_text()
    assert "<summary>The kernels of a plan on one thread</summary>" in page and "topk" in page
    assert json.loads((bundle / "report.json").read_text())["profile"]["kernels"] == json.loads(json.dumps(rows))

"""The logic of benchmarks/plan.py: the same work for everybody, honest ratios, figures that reach README; no timing."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from edgewm import expr as e
from edgewm import interp
from edgewm.models import Model, capture_model, synthetic
from edgewm.ops import graph_flops
from edgewm.passes import EXACT, LOWERING, run
from edgewm.passes.quantize_products import quantize_products
from edgewm.program import Graph, Program

ROOT = Path(__file__).resolve().parent.parent
UNIT_ROUNDOFF = 2.0**-24
MACHINE = {"fp32_gflops": 100.0, "bf16_gflops": None, "int8_gops": 400.0, "dram_gbps": 10.0}
PUBLISHED = {"samples": 300, "horizon": 5, "iterations": 1, "threads": 2}


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The scripts as modules; they find each other as they do when run."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    names = ("plan", "step", "peers", "tables")
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def small(bench: SimpleNamespace) -> tuple[Model, Program]:
    """A LeWM of a few thousand weights and its planning step, 8 candidates of 2 actions."""
    model = synthetic.lewm(0, **bench.plan.SMALL)
    planner = bench.step.planner_of(model, samples=8, horizon=2, iterations=2)
    return model, bench.step.step_program(model, planner)


def loop_body(program: Program) -> Graph:
    (loop,) = (node for node in program.entries["plan"].order() if node.op == "repeat")
    return loop["body"]


# ------------------------------------------------------------------------------------------------------- the same work


def test_what_is_timed_is_the_loop_body_of_the_robots_plan(small: tuple[Model, Program]) -> None:
    model, step = small
    assert loop_body(capture_model(model, step.planner)) == loop_body(step)


def test_peers_do_the_same_iteration_on_the_same_noise(bench: SimpleNamespace, small: tuple[Model, Program]) -> None:
    model, step = small
    planner, inputs = step.planner, bench.plan.example_inputs(model, step.planner)
    seed = np.array([3, 4], np.uint32)
    ours = interp.run(
        step.entries["plan"], {**inputs, "seed": seed, "plan_counter": np.array([5], np.uint32)}, step.weights
    )
    z, goal, mean = (torch.from_numpy(inputs[k]) for k in ("latent", "goal", "warm_mean"))
    std, largest = torch.full_like(mean, planner.var_scale), 0.0
    for i in range(planner.iterations):
        drawn = bench.step.noise(planner, model.action_dim, seed, plan=5, iteration=i)
        largest = max(largest, float((mean + std * torch.from_numpy(drawn)).abs().max()))
        mean, std = bench.peers.iteration(model, planner, z, goal, mean, std, torch.from_numpy(drawn))
    # the same elites, so what is left is the rounding of a few sums of `elites` candidates each
    bound = planner.iterations * 8 * (planner.elites + 2) * UNIT_ROUNDOFF * largest
    assert np.abs(ours["mean"] - mean.numpy()).max() <= bound


def test_a_plan_of_a_peer_refits_as_often_as_asked(bench: SimpleNamespace, small: tuple[Model, Program]) -> None:
    model, step = small
    inputs = bench.plan.example_inputs(model, step.planner)
    seen = []

    def refit(z: torch.Tensor, goal: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor):
        seen.append((mean.clone(), noise))
        return mean + 1, std

    bench.peers.plan(step.planner, inputs, refit)()
    assert [float(mean.max()) for mean, _ in seen] == [0.0, 1.0]
    assert seen[0][1].shape == (8, 2, model.action_dim) and not torch.equal(seen[0][1], seen[1][1])


def test_a_peer_that_cannot_run_is_named_with_its_reason(bench: SimpleNamespace) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such backend\nlong trace")

    peers = (
        bench.peers.Peer("a", "upstream", "fp32", lambda *_: None, lambda: "a needs a tool"),
        bench.peers.Peer("b", "upstream", "fp32", fails),
        bench.peers.Peer("c", "upstream", "fp32", lambda *_: len),
    )
    ready, skipped = bench.peers.started(peers, None, None, {}, lambda text: None)
    assert [p.name for p in ready] == ["c"]
    assert [(s["name"], s["reason"]) for s in skipped] == [
        ("a", "a needs a tool"), ("b", "RuntimeError: no such backend"),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- work, limits


def test_operations_are_counted_by_dtype_and_loops_multiplied_out(bench: SimpleNamespace) -> None:
    x, w = e.input("x", (3, 4)), e.weight("w", (4, 4))
    body = Graph({"x": e.add(e.matmul(e.input("x", (3, 4)), e.weight("w", (4, 4))), 1.0)})
    graph = Graph(e.repeat(5, body, {"x": e.matmul(x, w)}))
    assert bench.step.operations(graph) == {"f32": 6 * 2 * 3 * 4 * 4, "vector": 5 * 3 * 4}
    narrow = e.matmul(e.input("q", (3, 4), "i8"), e.weight("v", (4, 2), "i8"))
    assert +bench.step.operations(Graph({"y": narrow})) == {"i8": 2 * 3 * 4 * 2}


def test_work_is_one_iterations_and_quantizing_moves_products_to_int8(
    bench: SimpleNamespace, small: tuple[Model, Program]
) -> None:
    _, step = small
    work = bench.step.work(step)
    assert sum(work.values()) == graph_flops(loop_body(step))
    exact = bench.step.exact_program(step)
    named = exact.with_(recipe=bench.step.recipe_of(exact, "w8a8"))
    before, after = bench.step.work(exact), bench.step.work(quantize_products(named))
    assert after["i8"] + after["f32"] == before["f32"] and after["i8"] > 0
    assert bench.step.needed_bytes(quantize_products(named)) < bench.step.needed_bytes(exact)
    peer, read = bench.plan.peer_work(step, "bf16")
    assert peer["bf16"] == work["f32"] and "f32" not in peer
    assert 2 * read == bench.step.needed_bytes(step)


def test_fused_kernels_hold_all_products_of_the_step(bench: SimpleNamespace, small: tuple[Model, Program]) -> None:
    exact = run(small[1], EXACT)
    fused = run(exact, LOWERING)
    assert bench.step.work(fused)["f32"] == bench.step.work(exact)["f32"]


def test_limits_are_work_over_peaks_and_withheld_without_one(bench: SimpleNamespace) -> None:
    limits = bench.step.limits_ms({"f32": 10**8, "i8": 8 * 10**8, "vector": 10**7}, 10**6, MACHINE)
    assert limits == {"tensor": pytest.approx(3.0), "vector": pytest.approx(0.1), "bytes": pytest.approx(0.1)}
    assert bench.step.limits_ms({"bf16": 1, "vector": 0}, 0, MACHINE)["tensor"] is None


# -------------------------------------------------------------------------------------------------------------- timing


def test_every_round_runs_everybody_once_and_begins_with_another(bench: SimpleNamespace) -> None:
    ran: list[str] = []
    ticks = iter(range(1000))
    steps = {name: lambda name=name: ran.append(name) for name in "abc"}
    seconds = bench.plan.alternate(steps, 3, clock=lambda: next(ticks), pause=lambda s: None)
    warm = 3 * bench.plan.WARM_UPS
    assert ["".join(ran[i : i + 3]) for i in range(warm, len(ran), 3)] == ["abc", "bca", "cab"]
    assert seconds == {name: [1, 1, 1] for name in "abc"}


def test_a_ratio_is_the_median_of_ratios_within_rounds(bench: SimpleNamespace) -> None:
    """Drift between rounds cancels: the second round was slow for both."""
    found = bench.plan.figures([0.1, 1.0, 0.2], [0.3, 4.0, 0.4], iterations=2)
    assert found == {"ms": pytest.approx(100.0), "min_ms": pytest.approx(50.0), "vs_eager": pytest.approx(3.0)}
    assert bench.plan.figures([0.1], None, 1)["vs_eager"] is None


# ------------------------------------------------------------------------------------------------------------- results


def report(bench: SimpleNamespace, **settings: int) -> dict:
    figure = {"ms": 2.0, "min_ms": 1.5, "vs_eager": 4.0}
    rows = [
        bench.plan.row("edgewm", "exact", "fp32", figure, {"f32": 10**8, "vector": 10**6}, 10**5, MACHINE),
        bench.plan.row("torch autocast", "upstream", "bf16", figure, {"bf16": 10**8, "vector": 0}, 10**5, MACHINE),
    ]
    return {**PUBLISHED, **settings, "model": "m", "machine": MACHINE, "rows": rows, "skipped": []}


def test_rows_have_the_fields_of_the_interface(bench: SimpleNamespace) -> None:
    exact, peer = report(bench)["rows"]
    assert {"name", "graph", "precision", "ms", "flops", "limit_ms"} <= exact.keys()
    assert exact["limit_ms"].keys() == {"tensor", "vector", "bytes"}
    assert exact["flops"] == 101_000_000 and exact["of_limit"] == pytest.approx((1.0 + 0.01 + 0.01) / 2)
    assert peer["limit_ms"]["tensor"] is None and peer["of_limit"] is None


def test_results_are_appended_and_the_table_shows_the_newest(bench: SimpleNamespace, tmp_path: Path) -> None:
    old, new = report(bench), report(bench)
    new["rows"][0]["ms"] = 1.25
    for each in (old, new):
        file = bench.plan.record(each, tmp_path)
    assert len(file.read_text().splitlines()) == 4
    kept = bench.tables.rows(tmp_path)
    assert {r["name"]: r["ms_an_iteration"] for r in kept} == {"edgewm fp32": 1.25, "torch autocast bf16": 2.0}
    text = bench.tables.generated("<!-- table: plan -->\n<!-- end -->", kept)
    assert "| edgewm fp32 | exact |" in text and "`python benchmarks/plan.py`" in text


def test_other_settings_never_replace_the_published_figures(bench: SimpleNamespace, tmp_path: Path) -> None:
    bench.plan.record(report(bench), tmp_path)
    bench.plan.record(report(bench, samples=32, threads=1), tmp_path)
    kept = bench.tables.rows(tmp_path)
    assert sorted({r["table"] for r in kept}) == ["plan", "plan-series"] and len(kept) == 4
    assert any(r["name"] == "edgewm fp32 32xH5 x1 1t" for r in kept)


def test_results_are_filed_under_the_processor(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = SimpleNamespace(name="AMD EPYC(TM) 9B14 96-Core Processor", cores=2)
    monkeypatch.setattr(bench.step, "host", lambda: SimpleNamespace(cpu=cpu))
    assert bench.step.machine_name() == "amd-epyc-9b14-96-core-processor-2c"


def test_the_report_reads_well_and_is_json(bench: SimpleNamespace) -> None:
    whole = report(bench)
    whole["skipped"] = [{"name": "torch.compile", "precision": "fp32", "reason": "torch.compile needs g++"}]
    json.dumps(whole)
    text = bench.plan.show(whole)
    assert "torch.compile fp32: not measured, torch.compile needs g++" in text
    assert "edgewm fp32" in text and "51%" in text


def test_kernels_are_grouped_by_instantiation_and_shape(bench: SimpleNamespace, small: tuple[Model, Program]) -> None:
    built_calls = calls_of(bench.step, small[1])
    names = [f"k{i % 2}" if c.family == "product" else "" for i, c in enumerate(built_calls)]
    rows = bench.step.grouped(built_calls, names, np.full(len(built_calls), 1e6), MACHINE)
    assert sum(r["calls"] for r in rows) == len(built_calls)
    assert sum(r["ms"] for r in rows) == pytest.approx(len(built_calls))
    assert sum(r["share"] for r in rows) == pytest.approx(1.0)
    assert len({(r["kernel"], *r["dims"], r["lanes"]) for r in rows}) == len(rows)
    assert rows[0]["ms"] == max(r["ms"] for r in rows)
    text = "\n".join(bench.plan.kernel_lines(rows))
    assert "together" in text and "product" in text


def calls_of(step: ModuleType, program: Program) -> list:
    schedule = step.schedule_program(run(program, EXACT + LOWERING), "avx2")
    return [call for region in step.regions(schedule.entries["plan"].steps) for call in region.calls]


# -------------------------------------------------------------------------------------------------------- command line


def test_flags(bench: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    plain = bench.plan.parse([])
    assert {k: getattr(plain, k) for k in PUBLISHED} == PUBLISHED and plain.record and plain.compile
    assert not bench.plan.parse(["--no-record"]).record
    for wrong in (["--samples", "0"], ["--rounds", "x"]):
        with pytest.raises(SystemExit) as ended:
            bench.plan.parse(wrong)
        assert ended.value.code == 2
    assert "0 is less than 1" in capsys.readouterr().err
    with pytest.raises(argparse.ArgumentTypeError):
        bench.plan.positive("-3")

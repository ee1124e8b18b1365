"""The logic of benchmarks/: the same work for everybody, honest ratios, figures that reach README; no timing."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures_models import rounding
from programs import drawn, inputs_of, program_of, transformer

from edgewm import expr as e
from edgewm import interp, statistics
from edgewm.distill.shapes import Shape
from edgewm.distill.train import Settings
from edgewm.errors import EdgewmError
from edgewm.models import Model, capture_model, synthetic
from edgewm.ops import graph_flops
from edgewm.passes import EXACT, LOWERING, run
from edgewm.passes.quantize_products import quantize_products
from edgewm.program import Graph, Planner, Program

ROOT = Path(__file__).resolve().parent.parent
UNIT_ROUNDOFF = 2.0**-24
MACHINE = {"fp32_gflops": 100.0, "bf16_gflops": None, "int8_gops": 400.0, "dram_gbps": 10.0}
PUBLISHED = {"samples": 300, "horizon": 5, "iterations": 1, "threads": 2}
SAMPLES, HORIZON = 40, 2


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The scripts as modules; they find each other as they do when run."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    names = (
        "agreement", "closed_loop", "contest", "growth", "losses", "onnx_peers", "peers", "plan", "plan_report",
        "rounding", "step", "students", "tables", "timing", "torch_graph", "works",
    )  # fmt: skip
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def small(bench: SimpleNamespace) -> tuple[Model, Program]:
    """A LeWM of a few thousand weights and its planning step, 40 candidates of 2 actions."""
    model = synthetic.lewm(0, **bench.plan.SMALL)
    planner = bench.step.planner_of(model, samples=SAMPLES, horizon=HORIZON, iterations=2)
    return model, bench.step.step_program(model, planner)


@pytest.fixture(scope="module")
def work(bench: SimpleNamespace, small: tuple[Model, Program], tmp_path_factory: pytest.TempPathFactory):
    """One iteration as peers are given it."""
    model, step = small
    inputs = bench.plan.example_inputs(model, step.planner)
    return bench.works.iteration_work(model, step.planner, inputs, 1, tmp_path_factory.mktemp("work"))


def body_of(program: Program) -> Graph:
    (loop,) = (node for node in program.entries["plan"].order() if node.op == "repeat")
    return loop["body"]


# ------------------------------------------------------------------------------------------------------- the same work


@pytest.fixture(scope="module")
def whole(small: tuple[Model, Program]) -> Program:
    """The robot's program, pixels to actions."""
    return capture_model(small[0], small[1].planner)


def test_what_is_timed_is_the_loop_body_of_the_robots_plan(
    bench: SimpleNamespace, small: tuple[Model, Program], whole: Program
) -> None:
    assert body_of(whole) == body_of(small[1]) == bench.step.loop_body(small[1])


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
        noise = torch.from_numpy(bench.step.noise(planner, model.action_dim, seed, plan=5, iteration=i))
        largest = max(largest, float((mean + std * noise).abs().max()))
        mean, std, _ = bench.works.iteration(model, planner, model.torch, noise, mean, std, z, goal)
    # the same elites, so what is left is the rounding of a few sums of `elites` candidates each
    bound = planner.iterations * 8 * (planner.elites + 2) * UNIT_ROUNDOFF * largest
    assert np.abs(ours["mean"] - mean.numpy()).max() <= bound


def test_a_plan_of_a_peer_refits_as_often_as_asked(bench: SimpleNamespace, small: tuple[Model, Program], work) -> None:
    seen = []

    def once(feeds: dict) -> dict:
        seen.append((feeds["mean"], feeds["noise"]))
        return {"next_mean": feeds["mean"] + 1, "next_std": feeds["std"]}

    bench.works.plan(small[1].planner, work.feeds["upstream"], once)()
    assert [float(mean.max()) for mean, _ in seen] == [0.0, 1.0]
    assert seen[0][1].shape == (SAMPLES, HORIZON, 10) and not np.array_equal(seen[0][1], seen[1][1])


def test_both_graphs_are_fed_what_they_read(work) -> None:
    for name, graph in work.graphs.items():
        assert work.feeds[name].keys() == graph.inputs().keys()
        assert all(feeds.keys() >= graph.inputs().keys() for feeds in work.calibration[name])
        assert graph.outputs.keys() == {"next_mean", "next_std", "costs"}


def test_calibration_sees_enough_candidates_of_a_search_that_narrows(bench: SimpleNamespace, work) -> None:
    seen = work.calibration["exact"]
    assert len(seen) * SAMPLES >= bench.works.CALIBRATION
    assert not any(np.array_equal(a["noise"], b["noise"]) for a, b in itertools.pairwise(seen))
    assert seen[-1]["std"].mean() < seen[0]["std"].mean()


def test_an_encoder_is_calibrated_on_frames_over_its_range(bench: SimpleNamespace, small, tmp_path: Path) -> None:
    found = bench.works.encode_work(small[0], 1, tmp_path)
    frames = [feeds["pixels"] for feeds in found.calibration["exact"]]
    assert len(frames) == bench.works.FRAMES and frames[0].dtype == np.uint8
    assert min(f.min() for f in frames) < 16 and max(f.max() for f in frames) > 240
    assert found.graphs["exact"].outputs.keys() == {"z"}


# ---------------------------------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize("apart", [(), ("attention",)], ids=["whole", "apart"])
def test_torch_computes_what_the_graph_says(bench: SimpleNamespace, work, apart: tuple[str, ...]) -> None:
    wanted = bench.agreement.reference(work)
    for name, graph in work.graphs.items():
        module = bench.torch_graph.module_of(graph, work.weights[name], apart)
        found = module(*(torch.from_numpy(work.feeds[name][key]) for key in graph.inputs()))
        costs = dict(zip(graph.outputs, found, strict=True))["costs"].numpy()
        tolerance = bench.rounding.rounding_steps(graph) * UNIT_ROUNDOFF
        assert bench.rounding.relative_error(costs, wanted) <= tolerance
    assert any("attention" in str(n.target) for n in module.graph.nodes) == (apart == ())


def test_torch_computes_drawn_programs(bench: SimpleNamespace) -> None:
    """In float64, within the rounding of the table's own float32 constants; random numbers are refused."""
    graphs = [*drawn(20, 31), transformer(5, 3, 16, 2, 8, 2).entries["score"]]
    done = 0
    for graph in graphs:
        program = program_of({"g": graph})
        try:
            module = bench.torch_graph.module_of(graph, program.weights).double()
        except EdgewmError as fault:
            assert "has no call in torch" in fault.what
            continue
        given = inputs_of(graph)
        if any(step.op in ("floor", "rint", "cast") for step in graph.order()):
            continue  # a last bit becomes a whole one
        found = module(*(torch.from_numpy(given[key]).double() for key in graph.inputs()))
        real = interp.run(graph, given, program.weights, real=True)
        for name, tensor in zip(graph.outputs, found, strict=True):
            bound = rounding(Graph({name: graph.outputs[name]}), np.float32) * max(1.0, np.nanmax(np.abs(real[name])))
            assert np.array_equal(np.isnan(tensor.numpy()), np.isnan(real[name]))
            assert not np.any(np.abs(tensor.numpy() - real[name]) > bound)
        done += 1
    assert done >= 5


def test_torch_unrolls_a_loop(bench: SimpleNamespace) -> None:
    x = e.input("x", (3,))
    body = Graph({"x": e.add(e.mul(x, 2.0), e.cast(e.cast(e.input("counter", (), "u32"), "i32"), "f32"))})
    graph = Graph({"y": e.repeat(4, body, {"x": e.input("x", (3,))})["x"]})
    (found,) = bench.torch_graph.module_of(graph, {})(torch.ones(3))
    assert np.array_equal(found.numpy(), interp.run(graph, {"x": np.ones(3, np.float32)}, {})["y"])


# ---------------------------------------------------------------------------------------------------------------- peers


def test_a_peer_that_cannot_run_is_named_with_its_reason(bench: SimpleNamespace) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such backend\nlong trace")

    peers = (
        bench.peers.Peer("a", "fp32", lambda *_: None, lambda: "a needs a tool"),
        bench.peers.Peer("b", "int8", fails),
        bench.peers.Peer("c", "fp32", lambda work, graph: (len, "its way")),
    )
    ready, skipped = bench.peers.started(peers, SimpleNamespace(name="w"), ("exact",), lambda text: None)
    assert [(c.name, c.graph, c.settings) for c in ready] == [("c", "exact", "its way")]
    assert [(s["name"], s["graph"], s["reason"]) for s in skipped] == [
        ("a", "exact", "a needs a tool"), ("b", "exact", "RuntimeError: no such backend"),
    ]  # fmt: skip


def test_what_is_not_installed_is_named_with_the_line_that_installs_it(bench: SimpleNamespace) -> None:
    assert bench.onnx_peers.lacking("numpy")() is None
    said = bench.onnx_peers.lacking("numpy", "no_such_module")()
    assert said == "no_such_module not installed: pip install 'edgewm[bench]'"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_runtimes_compute_the_exact_graph(bench: SimpleNamespace, work, name: str, precision: str) -> None:
    found = [p for p in bench.peers.PEERS if (p.name, p.precision) == (name, precision)]
    if not found:
        return  # ONNX Runtime has no bf16 on this kind of processor
    if reason := found[0].lacks():
        pytest.skip(reason)
    ready, skipped = bench.peers.started(found, work, ("exact",), lambda text: None)
    kept, refused = bench.agreement.agreeing(work, ready)
    assert len(kept) == 1 and not skipped and not refused


def test_torch_runs_both_graphs_and_agrees(bench: SimpleNamespace, work) -> None:
    """torch.compile takes minutes and is left to the benchmark."""
    quick = [p for p in bench.peers.PEERS if p.name.startswith("torch") and "compile" not in p.name]
    ready, skipped = bench.peers.started(quick, work, bench.peers.GRAPHS, lambda text: None)
    kept, refused = bench.agreement.agreeing(work, ready)
    assert len(kept) == 2 * len(quick) and not skipped and not refused
    for contestant, figures in kept:
        assert ("tolerance" in figures) == (contestant.precision == "fp32") and figures["rank_correlation"] > 0.9


def test_a_peer_that_computes_something_else_is_not_timed(bench: SimpleNamespace, work) -> None:
    wanted = bench.agreement.reference(work)
    rng = np.random.default_rng(0)

    def answering(name: str, precision: str, costs: np.ndarray):
        run = lambda feeds: {"costs": costs.astype(np.float32)}  # noqa: E731
        return bench.peers.Contestant(name, "exact", precision, run)

    liars = [
        answering("a little off", "fp32", wanted * 1.01), answering("shuffled", "int8", rng.permutation(wanted)),
        answering("right", "fp32", wanted), answering("coarse", "int8", np.round(wanted, 1)),
    ]  # fmt: skip
    kept, refused = bench.agreement.agreeing(work, liars)
    assert [c.name for c, _ in kept] == ["right", "coarse"]
    said = {r["name"]: r["reason"] for r in refused}
    assert "is off by 0.01, rounding explains" in said["a little off"]
    assert "ranks unlike upstream" in said["shuffled"]


def test_the_fastest_of_a_peers_ways_is_kept(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(bench.onnx_peers.time, "perf_counter", lambda: next(clock))
    slow = lambda feeds: [next(clock) for _ in range(5)]  # noqa: E731
    run, name = bench.onnx_peers.fastest({"slow": slow, "fast": len}, {})
    assert (run, name) == (len, "fast")


# -------------------------------------------------------------------------------------------------------- work, limits


def test_operations_are_counted_by_dtype_and_loops_multiplied_out(bench: SimpleNamespace) -> None:
    x, w = e.input("x", (3, 4)), e.weight("w", (4, 4))
    body = Graph({"x": e.add(e.matmul(e.input("x", (3, 4)), e.weight("w", (4, 4))), 1.0)})
    graph = Graph(e.repeat(5, body, {"x": e.matmul(x, w)}))
    assert bench.step.operations(graph) == {"f32": 6 * 2 * 3 * 4 * 4, "vector": 5 * 3 * 4}
    narrow = e.matmul(e.input("q", (3, 4), "i8"), e.weight("v", (4, 2), "i8"))
    assert +bench.step.operations(Graph({"y": narrow})) == {"i8": 2 * 3 * 4 * 2}


def test_a_peers_precision_moves_its_products(bench: SimpleNamespace) -> None:
    """int8 moves products with weights, as often as a loop does them; bf16 moves all; bytes shrink with the weights."""
    x = e.input("x", (4, 4))
    body = Graph({"x": e.matmul(e.matmul(x, e.weight("w", (4, 4))), x)})
    graph = Graph(e.repeat(3, body, {"x": e.input("x", (4, 4))}))
    weights = {"w": np.zeros((4, 4), np.float32)}
    one = 3 * 2 * 4 * 4 * 4
    done, read = bench.step.peer_work(graph, weights, "fp32")
    assert (+done, read) == ({"f32": 2 * one}, 64.0)
    assert +bench.step.peer_work(graph, weights, "int8")[0] == {"f32": one, "i8": one}
    assert +bench.step.peer_work(graph, weights, "bf16")[0] == {"bf16": 2 * one}
    assert [bench.step.peer_work(graph, weights, p)[1] for p in ("bf16", "int8")] == [32.0, 16.0]


def test_work_is_one_iterations_and_quantizing_moves_products_to_int8(
    bench: SimpleNamespace, small: tuple[Model, Program]
) -> None:
    _, step = small
    whole = bench.step.operations(body_of(step))
    assert sum(whole.values()) == graph_flops(body_of(step))
    exact = bench.step.exact_program(step)
    named = exact.with_(recipe=bench.step.recipe_of(exact, "w8a8"))
    before, after = (bench.step.operations(body_of(p)) for p in (exact, quantize_products(named)))
    assert after["i8"] + after["bf16"] + after["f32"] == before["f32"] and after["i8"] > after["bf16"] >= 0


def test_everywhere_means_the_encoder_too(bench: SimpleNamespace, whole: Program) -> None:
    recipe = bench.step.recipe_everywhere(whole, "w8a8")
    assert any(name.startswith("encoder.") for name in recipe)
    assert not any(name.startswith("encoder.") for name in bench.step.recipe_of(whole, "w8a8"))
    assert bench.step.recipe_everywhere(whole, "fp32") == {}


def test_fused_kernels_hold_all_products_of_the_step(bench: SimpleNamespace, small: tuple[Model, Program]) -> None:
    exact = run(small[1], EXACT)
    fused = run(exact, LOWERING)
    assert bench.step.operations(body_of(fused))["f32"] == bench.step.operations(body_of(exact))["f32"]


def test_limits_are_work_over_peaks_and_withheld_without_one(bench: SimpleNamespace) -> None:
    limits = bench.step.limits_ms({"f32": 10**8, "i8": 8 * 10**8, "vector": 10**7}, 10**6, MACHINE)
    assert limits == {"tensor": pytest.approx(3.0), "vector": pytest.approx(0.1), "bytes": pytest.approx(0.1)}
    assert bench.step.limits_ms({"bf16": 1, "vector": 0}, 0, MACHINE)["tensor"] is None


def test_the_highest_peaks_seen_count(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([{"fp32_gflops": 5.0, "dram_gbps": 2.0}, {"fp32_gflops": 4.0, "dram_gbps": 3.0}])
    monkeypatch.setattr(bench.plan, "measure_peaks", lambda threads: next(found))
    peaks = bench.plan.peaks_so_far(2)
    assert peaks()["fp32_gflops"] == 5.0
    assert {k: peaks()[k] for k in ("threads",)} == {"threads": 2}


def test_one_candidate_is_its_own_elite(bench: SimpleNamespace, small: tuple[Model, Program]) -> None:
    planner = bench.step.planner_of(small[0], 1, 5, 1)
    assert (planner.samples, planner.elites, planner.unbiased_std) == (1, 1, False)
    assert bench.step.planner_of(small[0], 300, 5, 1).elites == 30


# -------------------------------------------------------------------------------------------------------------- timing


def test_every_round_runs_everybody_once_in_a_drawn_order(bench: SimpleNamespace) -> None:
    ran: list[str] = []
    ticks = iter(range(1000))
    steps = {name: lambda name=name: ran.append(name) for name in "abc"}
    seconds = bench.timing.alternate(steps, 20, clock=lambda: next(ticks), pause=lambda s: None)
    warm = 3 * bench.timing.WARM_UPS
    orders = ["".join(ran[i : i + 3]) for i in range(warm, len(ran), 3)]
    assert all(sorted(order) == list("abc") for order in orders) and len(set(orders)) == 6
    assert seconds == {name: [1] * 20 for name in "abc"}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_everybodys_threads_have_processors_beside_the_clocks(bench: SimpleNamespace) -> None:
    """Whichever library made them; and afterwards all is as it was."""
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    before = [os.sched_getaffinity(tid) for tid in (0, other.native_id)]
    try:
        with bench.timing.spread_out():
            here, there = (os.sched_getaffinity(tid) for tid in (0, other.native_id))
        assert len(here) == 1 and not here & there and here | there == before[0]
        assert [os.sched_getaffinity(tid) for tid in (0, other.native_id)] == before
    finally:
        end.set()
        other.join()


def test_a_ratio_is_the_median_of_ratios_within_rounds(bench: SimpleNamespace) -> None:
    """Drift between rounds cancels: the second round was slow for both."""
    own, other = [0.1, 1.0, 0.2], [0.3, 4.0, 0.4]
    assert bench.timing.figures(own, iterations=2) == {"ms": pytest.approx(100.0), "min_ms": pytest.approx(50.0)}
    assert bench.timing.times_faster(own, other) == pytest.approx(3.0)


def test_a_contest_times_everybody_and_names_the_best_peer(bench: SimpleNamespace) -> None:
    """Each entrant's step moves a clock by its own time; a wider precision that is faster is the one to beat."""
    took = {("edgewm", "fp32"): 4.0, ("edgewm", "w8a8"): 1.0, ("p", "fp32"): 6.0, ("q", "int8"): 8.0}
    now = [0.0]

    def step(seconds: float):
        def run() -> None:
            now[0] += seconds

        return run

    entrants = [
        bench.contest.Entrant(name, "exact", precision, step(s), {"f32": 10**8}, 0.0)
        for (name, precision), s in took.items()
    ] + [bench.contest.Entrant(*bench.contest.REFERENCE, step(20.0), {"f32": 10**8}, 0.0)]  # fmt: skip
    plain = bench.timing.alternate
    clocked = lambda steps, rounds, say: plain(steps, rounds, lambda: now[0], lambda s: None, say)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.contest, "alternate", clocked)
        found = bench.contest.contest(entrants, 3, lambda: MACHINE)
    assert {bench.contest.key_of(r)[::2]: r["ms"] for r in found["rows"]}["edgewm", "w8a8"] == pytest.approx(1000.0)
    assert {r["name"]: r["vs_eager"] for r in found["rows"] if r["precision"] == "int8"} == {"q": pytest.approx(2.5)}
    said = {(r["precision"], r["graph"]): (r["peer"], r["times_faster"]) for r in found["ratios"]}
    assert said == {
        ("fp32", "exact"): ("p fp32", pytest.approx(1.5)), ("w8a8", "exact"): ("p fp32", pytest.approx(6.0)),
        ("fp32", "upstream"): ("torch eager fp32", pytest.approx(5.0)),
        ("w8a8", "upstream"): ("torch eager fp32", pytest.approx(20.0)),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- results


def report(bench: SimpleNamespace, **settings: int) -> dict:
    keys = [("edgewm", "exact", "fp32"), bench.contest.REFERENCE, ("torch autocast", "exact", "bf16")]
    done = [{"f32": 10**8, "vector": 10**6}] * 2 + [{"bf16": 10**8, "vector": 0}]
    entrants = [bench.contest.Entrant(*key, len, work, 10**5) for key, work in zip(keys, done, strict=True)]
    seconds = {key: [s] * 3 for key, s in zip(keys, (0.002, 0.008, 0.004), strict=True)}
    rows = [bench.contest.row(each, seconds[each.key], seconds[keys[1]], MACHINE, 1) for each in entrants]
    ratios = bench.contest.ratios(rows, seconds)
    encode = {"rows": rows[:2], "ratios": [], "skipped": []}
    return {**PUBLISHED, **settings, "model": "m", "machine": MACHINE, "rows": rows, "ratios": ratios, "skipped": [],
            "encode": encode, "whole_plan": {"rows": rows[:2], "ratios": ratios}}  # fmt: skip


def test_rows_have_the_fields_of_the_interface(bench: SimpleNamespace) -> None:
    exact, eager, peer = report(bench)["rows"]
    assert {"name", "graph", "precision", "ms", "flops", "limit_ms"} <= exact.keys()
    assert exact["limit_ms"].keys() == {"tensor", "vector", "bytes"}
    assert exact["flops"] == 101_000_000 and exact["of_limit"] == pytest.approx((1.0 + 0.01 + 0.01) / 2)
    assert exact["vs_eager"] == pytest.approx(4.0) and eager["vs_eager"] == pytest.approx(1.0)
    assert peer["limit_ms"]["tensor"] is None and peer["of_limit"] is None


def test_results_are_appended_and_the_tables_show_the_newest(bench: SimpleNamespace, tmp_path: Path) -> None:
    old, new = report(bench), report(bench)
    new["rows"][0]["ms"] = 1.25
    for each in (old, new):
        file = bench.plan_report.record(each, tmp_path)
    assert len(file.read_text().splitlines()) == 2 * (3 + 1 + 2 + 2 + 1 + 1)
    kept = bench.tables.rows(tmp_path)
    assert {r["name"]: r["ms_an_iteration"] for r in kept if r["table"] == "plan"} == {
        "edgewm fp32": 1.25, "torch eager fp32": 8.0, "torch autocast bf16, exact graph": 4.0,
    }  # fmt: skip
    (ratio,) = [r for r in kept if r["table"] == "plan-ratios"]
    assert ratio["best_peer_on_upstream's_graph"] == "torch eager fp32, 8 ms"
    assert ratio["times_as_fast_as_on_upstream's_graph"] == pytest.approx(4.0)
    assert ratio["best_peer_on_the_exact_graph"] is None  # bf16 is no peer of fp32
    (machine,) = [r for r in kept if r["table"] == "plan-machine"]
    assert machine["fp32_gflops"] == 100.0 and machine["run"] == ratio["run"]
    text = bench.tables.generated("<!-- table: plan -->\n<!-- end -->", kept)
    assert "| edgewm fp32 | exact |" in text and "`python benchmarks/plan.py`" in text


def test_a_table_holds_lines_of_its_newest_run_alone(bench: SimpleNamespace, tmp_path: Path) -> None:
    """One that was measured before beside others does not stand between these."""
    rows = [{"table": "plan", "name": n, "ms": 1.0, "run": r} for n, r in (("a", "1"), ("b", "1"), ("a", "2"))]
    rows += [{"table": "loop", "name": n, "ms": 1.0} for n in "ab"]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = bench.tables.rows(tmp_path)
    assert [(r["table"], r["name"]) for r in kept] == [("plan", "a"), ("loop", "a"), ("loop", "b")]


def test_other_settings_never_replace_the_published_figures(bench: SimpleNamespace, tmp_path: Path) -> None:
    bench.plan_report.record(report(bench), tmp_path)
    bench.plan_report.record(report(bench, samples=32, threads=1), tmp_path)
    kept = bench.tables.rows(tmp_path)
    assert {r["table"] for r in kept if r["name"].startswith("edgewm fp32 32xH5 x1 1t")} == {
        "plan-series", "plan-series-ratios", "encode-series", "whole-plan-series", "whole-plan-series-ratios",
    }  # fmt: skip
    assert all("32xH5" in r["name"] for r in kept if "series" in r["table"])


def test_results_are_filed_under_the_processor(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = SimpleNamespace(name="AMD EPYC(TM) 9B14 96-Core Processor", cores=2)
    monkeypatch.setattr(bench.step, "host", lambda: SimpleNamespace(cpu=cpu))
    assert bench.step.machine_name() == "amd-epyc-9b14-96-core-processor-2c"


def test_the_report_reads_well_and_is_json(bench: SimpleNamespace) -> None:
    whole = report(bench)
    whole["skipped"] = [
        {"name": "torch.compile", "graph": "exact", "precision": "fp32", "reason": "torch.compile needs g++"}
    ]
    json.dumps(whole)
    text = bench.plan_report.show(whole)
    assert "torch.compile fp32, exact graph: not measured, torch.compile needs g++" in text
    assert "edgewm fp32" in text and "51%" in text and "ms an encoding" in text and "ms a plan" in text
    assert "4.00 times as fast as the best peer on the upstream graph, torch eager fp32 (8.00 ms)" in text


def test_a_line_of_the_growth_table(bench: SimpleNamespace) -> None:
    points = bench.growth.settings([1, 300], [5, 16])
    assert points == [(1, 5), (300, 5), (300, 16)]
    found = bench.growth.line(32, 5, 2, report(bench))
    assert found["name"] == "32 x H5, 2 threads" and found["edgewm_fp32_ms"] == pytest.approx(2.0)
    assert found["torch_eager_ms"] == pytest.approx(8.0) and found["best_peer_on_the_exact_graph"] is None


# ------------------------------------------------------------------------------------------------------------ students


def test_an_interval_of_the_ablation_holds_the_difference_as_often_as_it_says(bench: SimpleNamespace) -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        truth = rng.normal(size=(8, 1))
        means = truth + rng.normal(size=(1, 2)) + 0.3 * rng.normal(size=(8, 2))
        held += abs((means[1] - means[0]).mean() - (truth[1] - truth[0])[0]) <= bench.losses.luck(means)
    low, high = statistics.wilson(held, 400, 0.999)
    assert low <= bench.losses.LEVEL <= high
    assert bench.losses.luck(rng.normal(size=(8, 1))) is None


def test_rows_of_the_ablation_lie_beside_the_default(bench: SimpleNamespace) -> None:
    def one(rank: float, wins: list[float]) -> dict:
        return {"rank": [rank] * 3, "elites": [0.5] * 3, "success": wins, "lost": [0.1], "gained": [1.0]}

    found = {
        bench.losses.FIRST: [one(0.8, [1.0, 1.0]), one(0.9, [1.0, 0.0])],
        "without rank": [one(0.7, [1.0, 0.0]), one(0.8, [0.0, 0.0])],
    }
    first, other = bench.losses.table(found, "command")
    assert first["success"] == "3 of 4" and first["regret"] == pytest.approx(0.1) and "rank_to_first" not in first
    assert other["rank_to_first"] == "-0.100 to -0.100" and other["points_to_first"] == "-50.0 to -50.0"


def test_a_student_is_said_by_what_differs(bench: SimpleNamespace) -> None:
    shape = Shape(16, 1, 2, 8, 32, 32, 1, 16, 2, 2, 2.0, 32, 4)
    usual = Settings(shape, Planner(), "w8a8")
    assert bench.students.settings_of("depth=1", usual) == (usual, "w8a8")
    found, precision = bench.students.settings_of("depth=3,jump=5,precision=w4a8,trained=fp32,learning_rate=0.1", usual)
    assert (found.shape.depth, found.shape.jump, found.precision, precision) == (3, 5, "fp32", "w4a8")
    assert found.learning_rate == (0.1, pytest.approx(0.001)) and found.shape.width == 16


# -------------------------------------------------------------------------------------------------------- command line


def test_flags(bench: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    plain = bench.plan.parse([])
    assert {k: getattr(plain, k) for k in PUBLISHED} == PUBLISHED and plain.record and plain.compile
    assert plain.parts == ["iteration", "encode", "whole"] and "openvino" in plain.peers
    assert not bench.plan.parse(["--no-record"]).record
    some = bench.plan.parse(["--parts", "encode", "--peers", "openvino,torch eager"])
    assert (some.parts, some.peers) == (["encode"], ["openvino", "torch eager"])
    for wrong in (["--samples", "0"], ["--rounds", "x"], ["--parts", "all"]):
        with pytest.raises(SystemExit) as ended:
            bench.plan.parse(wrong)
        assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "0 is less than 1" in said and "'all' is not one of iteration, encode, whole" in said
    with pytest.raises(argparse.ArgumentTypeError):
        bench.plan.positive("-3")


def test_every_bundle_plays_a_start_once_and_a_decided_one_no_more(bench: SimpleNamespace) -> None:
    played: dict[str, list[int]] = {"fp32": [], "same": [], "broken": []}

    def player(name: str, wins) -> object:
        return lambda start: (played[name].append(start), 7 if wins(start) else None)[1]

    players = {name: player(name, wins) for name, wins in
               (("fp32", lambda s: s % 10), ("same", lambda s: s % 10), ("broken", lambda s: s % 2))}  # fmt: skip
    kept: list[dict] = []
    starts = list(range(1, 1001))
    last = bench.closed_loop.played(players, starts, 0.05, {"1": {"fp32": 7, "same": 7, "broken": 7}}, kept.append)
    assert played["fp32"] == starts[1 : len(last["same"])] and len(last["same"]) < len(starts)  # start 1 was known
    assert len(last["broken"]) < len(last["same"]) and len(played["broken"]) == len(last["broken"]) - 1
    assert [row["start"] for row in kept] == played["fp32"] and "broken" not in kept[-1]
    given = argparse.Namespace(model="m", precisions="same,broken", margin=0.05, episodes=1000)
    same, broken = (bench.closed_loop.row_of(name, last[name], given) for name in ("same", "broken"))
    assert same["a loss of 5 points"] == "excluded" and same["discordance"] == 0
    assert broken["a loss of 5 points"] == "certain" and broken["only fp32"] > 0

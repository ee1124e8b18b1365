"""Estimates: counts that a hand can check, prices that come back, monotony, units, refusals, and what each rests on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgewm import expr as e
from edgewm.build import build
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.estimate import calibration, machine, probe
from edgewm.estimate.counts import COUNTS, plan_counts
from edgewm.estimate.cpu import Machine, interval, price_plan, turns_of
from edgewm.estimate.fit import Timed, fit_costs, non_negative
from edgewm.estimate.gpu import PRECISIONS, estimate_network, precision_of, tensor_clocks
from edgewm.estimate.network import Kernel, Network
from edgewm.estimate.shapes import network_of, shapes
from edgewm.estimate.specimens import specimens
from edgewm.estimate.table import estimate_table
from edgewm.estimate.verb import estimate
from edgewm.kernel import load
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Graph, Program
from edgewm.target import CONFIDENCE, resolve, targets

MODEL = "tiny_models:tiny"
LIMITS = {limit for limit, _ in COUNTS.values()} | {"memory", "sync"}
TILE = load("product").TILING["avx2"]

Facts = dict


COVERED, UNCHECKED = "(90 % of what is measured)", "(nobody has checked this interval on this board)"


def told(found: dict) -> str:
    return "\n".join(map(str, estimate_table(found).renderables))


@pytest.fixture
def no_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody has probed any machine."""
    monkeypatch.setattr(probe, "facts_file", lambda board, mode: tmp_path / f"{board.name}-{mode}-{board.isa}.json")
    return tmp_path


@pytest.fixture
def facts(no_facts: Path) -> Facts:
    """The reference's facts, as if this machine had been probed."""
    host, mode = resolve("host")
    made = {**machine.reference()["facts"]["avx2"], "kernels_sha256": probe.kernels_sha256()}
    made |= {"target": "host", "mode": mode.name, "machine": {**made["machine"], "isa": host.isa}}
    probe.facts_file(host, mode.name).write_text(json.dumps(made))
    return made


def counted(graph: Graph, weights: dict[str, np.ndarray], isa: str = "avx2") -> dict:
    program = run(Program(entries={"f": graph}, weights=weights), (*EXACT, *LOWERING))
    return plan_counts(schedule_program(program, isa), isa)


def plain(**costs: float) -> Machine:
    """A machine that charges 1 ns for each of these, nothing else."""
    return Machine({**dict.fromkeys(COUNTS, 0.0), **costs}, 0.0, 0.0, 0.0, math.inf, 1 << 30, 0.1, "a test")


# ---------------------------------------------------------------------------------------------- counts


def test_counts_of_a_product_are_its_tiles() -> None:
    lanes, depth, width = 3 * TILE.tile, 10, 20
    graph = Graph({"y": e.add(e.matmul(e.input("x", (lanes, depth)), e.weight("w", (depth, width))), 1.0)})
    found = counted(graph, {"w": np.ones((depth, width), np.float32)})
    (call,) = [c for region in found["regions"] for c in region["calls"] if "fma_f32" in c["work"]]
    blocks = -(-width // TILE.n_block)
    assert call["work"]["block_f32"] == blocks
    assert call["work"]["fma_f32"] == blocks * TILE.n_block * depth * TILE.vectors
    assert call["work"]["op_out"] == width * TILE.vectors and call["work"]["call"] == 1
    assert call["weight_bytes"] == blocks * TILE.n_block * depth * 4
    assert [region["tiles"] for region in found["regions"]] == [3] * len(found["regions"])
    assert json.loads(json.dumps(found)) == found


def test_a_last_tile_that_fills_one_vector_multiplies_half() -> None:
    tiling = load("product").TILING["avx512"]
    graph = Graph({"y": e.matmul(e.input("x", (2 * tiling.tile + 8, 12)), e.weight("w", (12, 24)))})
    found = counted(graph, {"w": np.ones((12, 24), np.float32)}, "avx512")
    (call,) = [c for region in found["regions"] for c in region["calls"] if "fma_f32" in c["work"]]
    assert call["work"]["fma_f32"] == tiling.vectors * call["last"]["fma_f32"]
    assert turns_of(3, 1, True) == {"work": 2, "last": 1} and turns_of(3, 2, True) == {"work": 1, "last": 1}
    assert turns_of(4, 2, True) == {"work": 2} and turns_of(3, 1, False) == {"work": 3}


def test_loops_multiply_and_alike_calls_are_one_row() -> None:
    x = e.input("x", (TILE.tile, 6))
    graph = Graph({"y": e.repeat(7, Graph({"x": e.tanh(x)}), {"x": x})["x"]})
    found = counted(graph, {})
    inside = [region for region in found["regions"] if region["times"] == 7]
    assert inside and found["steps"] >= 2 * 7
    assert {name for region in found["regions"] for call in region["calls"] for name in call["work"]} <= COUNTS.keys()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "w8a8"])
def test_specimens_show_every_count_of_their_precision(precision: str) -> None:
    program = specimens(precision)
    exact = run(program.with_(recipe=None), EXACT).with_(recipe=program.recipe)
    schedule = schedule_program(run(exact, LOWERING), "avx2")
    held = [plan_counts(schedule, "avx2", name) for name in schedule.entries]
    seen = {name for found in held for region in found["regions"] for call in region["calls"] for name in call["work"]}
    own = {"fp32": "f32", "bf16": "bf16", "w8a8": "i8"}[precision]
    assert {f"fma_{own}", f"block_{own}", f"panel_{own}"} <= seen
    assert precision != "fp32" or {n for n in COUNTS if not n.endswith(("bf16", "i8"))} <= seen


# ---------------------------------------------------------------------------------------------- prices


def test_prices_come_back_from_timings() -> None:
    random = np.random.default_rng(0)
    prices = {"fma_f32": 0.3, "block_f32": 25.0, "call": 0.0, "op": 0.1}
    work = [{name: float(random.integers(1, 5000)) for name in prices} for _ in range(60)]
    timed = [Timed("g", row, sum(prices[n] * count for n, count in row.items())) for row in work]
    found, sigma = fit_costs(timed)
    assert found == pytest.approx(prices, abs=1e-6) and sigma < 1e-6
    slow = [replace(row, ns=10 * row.ns) if i % 10 == 0 else row for i, row in enumerate(timed)]  # nothing counted
    assert fit_costs(slow)[0]["fma_f32"] == pytest.approx(0.3, rel=0.05)
    assert fit_costs(timed, {"fma_f32": 0.4})[0]["fma_f32"] >= 0.4


def test_non_negative_least_squares() -> None:
    random = np.random.default_rng(1)
    a, x = random.standard_normal((40, 6)), np.array([1.0, 0.0, 2.0, 0.0, 0.5, 3.0])
    assert non_negative(a, a @ x) == pytest.approx(x, abs=1e-9)
    held = non_negative(a, a @ np.array([1.0, -2.0, 2.0, -1.0, 0.5, 3.0]))
    assert (held >= 0).all() and held[1] == held[3] == 0.0


def test_a_plan_is_the_sum_of_its_kernels() -> None:
    call = {"family": "map", "dims": [3], "lanes": 80, "count": 2, "weight_bytes": 0, "work": {"op": 100, "call": 1}}
    region = {"times": 4, "tiles": 5, "weight_bytes": 0, "calls": [call]}
    counts = {"regions": [region], "steps": 9, "weight_bytes": 0, "port_bytes": 0}
    one = price_plan(counts, plain(op=1.0, call=50.0), 1)
    assert one["plan_ms"]["point"] == pytest.approx(4 * 5 * 2 * 150e-6)
    assert one["kernels"] == [{"name": "map 3, 80 lanes", "ms": pytest.approx(6e-3), "bound": "vector", "calls": 8}]
    assert one["shares"] == pytest.approx({"vector": 2 / 3, "launch": 1 / 3})
    stepping = price_plan(counts, replace(plain(), step_ns=7.0), 1)
    assert stepping["plan_ms"]["point"] == pytest.approx(9 * 7e-6) and stepping["bound"] == "launch"
    team = replace(plain(op=1.0), step_ns=1.0, meet_ns=10.0, wake_ns=5.0, late_ns=20.0, slowdown={3: 1.5})
    three = price_plan(counts, team, 3)
    assert three["plan_ms"]["point"] == pytest.approx((4 * 2 * 2 * 100 * 1.5 + 4 * 10 + 5 * 1 + 5 + 20) / 1e6)
    slow = price_plan(counts, replace(team, late_ns=1e9), 3)  # one thread is done before the others are awake
    assert slow["plan_ms"]["point"] == pytest.approx((4 * 5 * 2 * 100 + 9 * 1 + 5) / 1e6)


def test_weights_out_of_memory_bind_where_they_take_longer() -> None:
    call = {"family": "product", "dims": [1], "lanes": 1, "count": 1, "weight_bytes": 1 << 20, "work": {"call": 1.0}}
    counts = {"regions": [{"times": 1, "tiles": 2, "weight_bytes": 1 << 20, "calls": [call]}], "steps": 0,
              "weight_bytes": 1 << 20, "port_bytes": 0}  # fmt: skip
    slow = replace(plain(call=1.0), dram_gbps=10.0, cache_bytes=1 << 20)
    found = price_plan(counts, slow, 1)
    assert found["bound"] == "memory" and found["plan_ms"]["point"] == pytest.approx(2 * (1 << 20) / 10e6)
    assert price_plan(counts, replace(slow, cache_bytes=1 << 21), 1)["bound"] == "launch"


def test_an_interval_holds_its_point() -> None:
    found = interval(3.0, 0.2)
    assert found["low"] < found["point"] == 3.0 < found["high"]
    assert found["low"] * found["high"] == pytest.approx(9.0)


# ---------------------------------------------------------------------------------------------- plans on a CPU


def test_more_work_never_takes_less(facts: Facts) -> None:
    def plan_ms(**settings: int) -> float:
        return estimate(MODEL, threads=1, planner=settings)["plan_ms"]["point"]

    samples = [plan_ms(samples=n, elites=3) for n in (8, 33, 64, 200)]
    iterations = [plan_ms(iterations=n) for n in (1, 2, 5)]
    horizons = [plan_ms(horizon=n) for n in (1, 2, 4)]
    assert all(x == sorted(x) and x[0] < x[-1] for x in (samples, iterations, horizons))


def test_a_faster_clock_and_more_cores_never_take_longer(no_facts: Path) -> None:
    board = resolve("orin")[0]
    modes = sorted((m for m in board.mode), key=lambda m: m.cpu_mhz)
    found = [estimate(MODEL, target="orin", mode=m.name, threads=1)["plan_ms"]["point"] for m in modes]
    assert found == sorted(found, reverse=True)
    threads = [
        estimate(MODEL, target="orin", mode="MAXN", threads=n, planner={"samples": 4096})["plan_ms"]["point"]
        for n in (1, 2, 4)
    ]
    assert threads == sorted(threads, reverse=True)


def test_a_plan_says_what_it_rests_on(facts: Facts, no_facts: Path) -> None:
    here = estimate(MODEL)
    assert here["provenance"] == [facts["source"]] and here["notes"] == [] and here["place"] == "cpu"
    assert here["source"] == "estimated" and here["kernels"] and here["bound"] in LIMITS
    assert {row["bound"] for row in here["kernels"]} <= LIMITS
    assert sum(here["shares"].values()) == pytest.approx(1)
    assert here["coverage"] == 0.9 and COVERED in told(here)
    orin = estimate(MODEL, target="orin")
    assert orin["coverage"] is None and UNCHECKED in told(orin)
    assert "advertised figures in 30W" in orin["provenance"][0] and "kernels reach on" in orin["provenance"][0]
    wide, narrow = (found["plan_ms"]["high"] / found["plan_ms"]["low"] for found in (orin, here))
    assert wide > narrow
    host, mode = resolve("host")
    probe.facts_file(host, mode.name).write_text(json.dumps({**facts, "kernels_sha256": "of others"}))
    assert "run `edgewm targets probe` again" in estimate(MODEL)["notes"][0]


def test_a_bundle_is_estimated_as_its_build_was(facts: Facts, tmp_path: Path) -> None:
    made = build(MODEL, precision="w8a8", threads=2, out=tmp_path / "out")
    found = estimate(str(tmp_path / "out"))
    assert found["plan_ms"] == {k: made["estimate_ms"][k] for k in ("low", "point", "high")}
    assert (found["threads"], found["precision"], found["target"]) == (2, "w8a8", "host")
    assert made["estimate_ms"]["source"] == f"estimated: {facts['source']}"
    for options, message in (
        ({"precision": "fp32"}, "the bundle is in w8a8"),
        ({"target": "orin"}, "kernels, jetson_agx_orin_64gb runs neon"),
        ({"planner": {"samples": 9}}, "--samples is for a MODEL, this is a bundle"),
    ):
        with pytest.raises(EdgewmError, match=message):
            estimate(str(tmp_path / "out"), **options)


def test_facts_of_another_machine(facts: Facts, tmp_path: Path) -> None:
    file = tmp_path / "board.json"
    file.write_text(json.dumps({**facts, "machine": {**facts["machine"], "isa": "neon"}, "source": "measured there"}))
    assert estimate(MODEL, target="orin", measured=file)["provenance"] == ["measured there"]
    for text, message in (("{}", "these are no measured facts"), ("no JSON", "cannot read measured facts")):
        file.write_text(text)
        with pytest.raises(EdgewmError, match=message) as caught:
            estimate(MODEL, target="orin", measured=file)
        assert "edgewm targets probe --out FILE" in caught.value.fix
    file.write_text(json.dumps({**facts, "machine": {**facts["machine"], "isa": "avx2"}}))
    with pytest.raises(EdgewmError, match="the facts are of avx2 kernels, jetson_agx_orin_64gb runs neon"):
        estimate(MODEL, target="orin", measured=file)
    file.write_text(json.dumps({**facts, "schema_version": 0}))
    with pytest.raises(EdgewmError, match="the facts are of version 0, this reads"):
        estimate(MODEL, target="orin", measured=file)


def test_nothing_known_is_nothing_said(no_facts: Path) -> None:
    with pytest.raises(EdgewmError, match="nothing is known of how fast host is") as caught:
        estimate(MODEL)
    assert caught.value.fix == "run `edgewm targets probe` once"
    with pytest.raises(EdgewmError, match="nothing is known of how fast jetson_agx_thor_t5000 is in 90W"):
        estimate(MODEL, target="thor", mode="90W")
    assert build(MODEL, dry_run=True)["estimate_ms"] is None


def test_a_probed_machine_shows_what_was_measured(facts: Facts) -> None:
    host = resolve("host")[0]
    rows = {row.what: row for row in machine.with_measured(host).measured}
    assert rows["CPU: products in f32, 1 thread"].value == pytest.approx(facts["peaks"]["1"]["fp32_gflops"], abs=0.1)
    assert rows["a sleeper wakes late, median"].unit == "us" and "CPU: 2 threads meet" in rows
    assert all((row.source, row.mode) == (facts["source"], facts["mode"]) for row in rows.values())
    assert machine.with_measured(resolve("orin")[0]) == resolve("orin")[0]


def test_a_probed_board_is_estimated_by_what_was_measured_in_that_mode(facts: Facts) -> None:
    orin, maxn = resolve("orin", "MAXN")
    own = {**facts, "target": orin.name, "mode": maxn.name, "machine": {**facts["machine"], "isa": orin.isa}}
    probe.keep({**own, "source": "measured there"})
    assert estimate(MODEL, target="orin", mode="MAXN")["provenance"] == ["measured there"]
    assert "advertised figures" in estimate(MODEL, target="orin", mode="30W")["provenance"][0]
    added = machine.with_measured(orin).measured[len(orin.measured) :]
    assert added and {row.mode for row in added} == {"MAXN"}


def test_the_reference_has_a_price_for_every_count() -> None:
    for facts in machine.reference()["facts"].values():
        assert facts["costs_ns"].keys() == COUNTS.keys()


def test_prices_are_carried_by_peaks() -> None:
    there, here = {"fma_f32": 0.25, "fma_i8": 0.5}, {"fma_f32": 1.0, "fma_i8": 0.5}
    found = machine.carried({"fma_f32": 0.3, "fma_i8": 0.6, "op": 0.1}, there, here)
    assert found == pytest.approx({"fma_f32": 1.2, "fma_i8": 0.6, "op": 0.4})


@pytest.mark.parametrize("name", sorted(targets()))
def test_every_board_with_known_clocks_has_prices(name: str) -> None:
    board = targets()[name]
    for mode in board.mode:
        found = machine.advertised(board, mode, 1)
        known = mode.cpu_mhz and mode.cpu_cores and mode.dram_gbps and board.cpu.flop_per_clock.fp32
        assert (found is not None) == bool(known)
        assert found is None or all(0 <= ns < 1e5 for ns in found.costs_ns.values())


# ---------------------------------------------------------------------------------------------- networks on a GPU


def gpu_ms(spec: str, target: str = "orin", mode: str = "MAXN", precision: str = "fp16") -> float:
    return estimate(f"shape:{spec}", target=target, mode=mode, precision=precision)["plan_ms"]["point"]


@pytest.mark.parametrize("name", sorted(shapes()))
def test_every_shape_is_estimated(name: str) -> None:
    found = estimate(f"shape:{name}", target="orin", mode="MAXN", precision="int8", anyway=True)
    plan = found["plan_ms"]
    assert 0 < plan["low"] < plan["point"] < plan["high"] < 1e4
    assert plan["point"] == pytest.approx(sum(row["ms"] for row in found["kernels"]))
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["provenance"][0] == shapes()[name]["source"] and "calibration.csv" in found["provenance"][1]
    assert found["bound"] in {"tensor", "vector", "memory", "L2", "launch"}


@pytest.mark.parametrize(
    ("name", "gflops", "parameters"),
    [  # as their papers and model cards give them; embeddings, norms and biases are no products
        ("vit-b-16", 35.1, 86e6), ("vit-b-32", 8.8, 88e6), ("vit-l-16", 123.1, 304e6), ("resnet-50", 8.2, 25.5e6),
        ("bert-large,tokens=128", 79.5, 302e6), ("qwen3-0.6b-decode", None, 596e6), ("qwen3-8b-decode", None, 7.57e9),
    ],
)  # fmt: skip
def test_shapes_have_the_published_sizes(name: str, gflops: float | None, parameters: float) -> None:
    network = network_of(name)
    assert sum(kernel.weights for kernel in network.kernels) == pytest.approx(parameters, rel=0.01)
    assert gflops is None or network.flops / 1e9 == pytest.approx(gflops, rel=0.01)


def test_names_people_use() -> None:
    for spelling in ("vit-b-16", "ViT-B/16", "vit_b_16", "vit-base-16"):
        assert network_of(spelling).name == "vit-b-16"
    assert network_of("vit-b-16,batch=8").flops == 8 * network_of("vit-b-16").flops
    (kernel,) = network_of("product,m=522,n=2048,k=2048").kernels
    assert (kernel.m, kernel.n, kernel.k, kernel.flops) == (522, 2048, 2048, 2 * 522 * 2048 * 2048)


def test_a_larger_network_never_takes_less() -> None:
    for spec, key, values in (
        ("vit-b-16", "batch", (1, 2, 3, 8)), ("vit-b-16", "tokens", (50, 197, 198, 577)),
        ("qwen3-1.7b-decode", "past", (1, 512, 4096)), ("qwen3-1.7b-prefill", "tokens", (64, 65, 512)),
        ("product,m=1,n=512,k=512", "m", (1, 16, 17, 64, 65, 1000)),
    ):  # fmt: skip
        head = ",".join(part for part in spec.split(",") if not part.startswith(f"{key}="))
        found = [gpu_ms(f"{head},{key}={value}") for value in values]
        assert found == sorted(found), (spec, key)


def test_a_faster_mode_never_takes_longer() -> None:
    for name in ("orin", "orin-nano", "orin-nx", "xavier"):
        board = resolve(name)[0]
        modes = [m for m in board.mode if m.sm and m.gpu_mhz and m.dram_gbps]
        took = {m.name: gpu_ms("vit-b-16", name, m.name) for m in modes}
        for slow in modes:
            for fast in modes:
                figures = [[getattr(m, f) for f in ("sm", "gpu_mhz", "dram_gbps")] for m in (slow, fast)]
                if all(a <= b for a, b in zip(*figures, strict=True)):
                    assert took[fast.name] <= took[slow.name], (slow.name, fast.name)


def test_nothing_is_faster_than_its_roofline() -> None:
    board, mode = resolve("orin", "MAXN")
    for name in ("bert-large", "qwen3-4b-decode"):
        network, held = network_of(name), PRECISIONS["fp16"]
        found = estimate(f"shape:{name}", target="orin", mode="MAXN")["plan_ms"]
        peak = board.gpu.flop_per_sm_clock.fp16 * mode.sm * mode.gpu_mhz * 1e6
        weights = sum(kernel.weights for kernel in network.kernels) * held.weight_bytes
        assert found["low"] >= 1e3 * max(network.flops / peak, weights / (mode.dram_gbps * 1e9))


def test_narrower_weights_are_read_sooner() -> None:
    took = [gpu_ms("qwen3-4b-decode", precision=precision) for precision in ("fp32", "fp16", "int8", "int4")]
    assert took == sorted(took, reverse=True)
    assert precision_of("w8a8", resolve("orin")[0]) == PRECISIONS["int8"]


def test_tiles_go_in_whole_waves() -> None:
    rate = 2048
    one = tensor_clocks(Kernel("p", "product", 128, 128, 512), rate, 16)
    assert tensor_clocks(Kernel("p", "product", 128, 128 * 16, 512), rate, 16) >= one
    assert tensor_clocks(Kernel("p", "product", 65, 64, 64), rate, 1) == 2 * 64 * 64 * 64 * 2 / rate


def test_a_frameworks_graph_takes_longer_than_fused_kernels() -> None:
    took = {r: estimate("shape:qwen3-0.6b-decode", target="orin", mode="MAXN", runtime=r)["plan_ms"]["point"]
            for r in ("fused", "graph")}  # fmt: skip
    assert took["graph"] > took["fused"]


@pytest.mark.parametrize(
    ("subject", "options", "what", "fix"),
    [
        ("shape:efficientvit-sam", {}, "60 % of efficientvit-sam-l0 is convolutions", "--anyway"),
        ("shape:vit-b-16", {"runtime": "eager"}, "run eager, a stack is bound by launches", "fused or graph"),
        ("shape:vit-b-16", {"mode": "60W"}, "has no power mode '60W'", "MAXN"),
        ("shape:vit-b-16", {"target": "thor", "mode": None}, "clocks in 120W are not known", "use MAXN"),
        ("shape:vit-b-16", {"target": "host", "mode": None}, "host has no GPU", "for example --target orin"),
        ("shape:vit-b-16", {"threads": 2}, "--threads is for a plan on a CPU", "leave --threads out"),
        ("shape:vit-b-16", {"place": "gpu"}, "--place is for a plan on a CPU", "leave --place out"),
        (MODEL, {"place": "gpu", "threads": 2}, "--threads is for a plan on a CPU, this is one on a GPU", "leave"),
        (MODEL, {"place": "gpu", "target": "host", "mode": None}, "host has no GPU", "for example --target orin"),
        ("shape:vit-b-16", {"planner": {"samples": 9}}, "--samples is for a plan on a CPU", "leave --samples out"),
        (MODEL, {"runtime": "graph"}, "--runtime is for a network on a GPU", "leave --runtime out"),
        ("shape:vit-b-16", {"precision": "fp8"}, "jetson_agx_orin_64gb has no fp8", "fp32, fp16, bf16, int8, int4"),
        ("shape:vit-b-16", {"precision": "fp7"}, "no estimate in precision 'fp7'", "fp32, fp16"),
        ("shape:vit-b-61", {}, "no shape is named 'vit-b-61'", "did you mean vit-b-16"),
        ("shape:vit-b-16,rows=4", {}, "vit-b-16 has no rows", "batch, channels"),
        ("shape:vit-b-16,batch=0", {}, "'batch=0' is no size", "shape:vit-b-16,batch=8"),
        ("shape:product,m=4", {}, "a product has m, n and k", "shape:product,m=197,n=768,k=768"),
        ("nothing.onnx", {}, "no such file", "give an ONNX file"),
    ],
)  # fmt: skip
def test_what_is_refused(subject: str, options: dict, what: str, fix: str) -> None:
    with pytest.raises(EdgewmError) as caught:
        estimate(subject, **{"target": "orin", "mode": "MAXN", **options})
    assert what in caught.value.what and fix in caught.value.fix


def test_a_models_plan_on_a_gpu_is_its_kernels_and_its_launches() -> None:
    found = estimate(MODEL, target="orin", mode="MAXN", place="gpu", precision="w8a8")
    assert (found["place"], found["runtime"], found["bound"]) == ("gpu", "edgewm", "sync")
    assert found["persistent"] and "launches that follow on each other run as one" in found["notes"][-1]
    assert sum(row["ms"] for row in found["kernels"]) == pytest.approx(found["plan_ms"]["point"])
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert any("CUDA graph node" in source for source in found["provenance"])
    slow = estimate(MODEL, target="orin", mode="15W", place="gpu", precision="w8a8")
    assert slow["plan_ms"]["point"] > found["plan_ms"]["point"]


def test_outside_is_said_where_a_figure_is_asked_for_anyway() -> None:
    found = estimate("shape:efficientvit-sam", target="orin", mode="MAXN", anyway=True)
    assert "convolutions, and no row is of one" in found["outside"][0] and found["coverage"] is None
    assert estimate("shape:vit-b-16", target="orin", mode="MAXN", anyway=True)["outside"] == []


def test_products_that_stand_for_convolutions_are_outside_too() -> None:
    found = estimate("shape:resnet-50", target="orin", mode="MAXN")
    assert found["coverage"] is None and COVERED not in told(found) and UNCHECKED in told(found)
    assert "of resnet-50-products is convolutions" in found["outside"][0]
    dense = estimate("shape:dinov2-b", target="orin", mode="MAXN")
    assert dense["outside"] == [] and COVERED in told(dense)  # its patches do not overlap


def test_a_format_that_nobody_published_is_said() -> None:
    def notes(target: str, precision: str) -> list[str]:
        return [n for n in estimate("shape:vit-b-16", target=target, mode="MAXN", precision=precision)["notes"]
                if "is published" in n]  # fmt: skip

    assert "no product in fp4 is published of Blackwell iGPU" in notes("thor", "fp4")[0]
    assert "as bf16 and int8 do" in notes("orin", "fp32")[0]
    assert notes("orin", "fp16") == notes("orin", "int8") == notes("thor", "fp8") == []


# --------------------------------------------------------------------------------------- where fractions are from


def test_every_row_is_read_or_left_out_with_a_reason() -> None:
    lines = len(calibration.FILE.read_text().splitlines()) - 1
    assert len(calibration.rows()) + len(calibration.skipped()) == lines
    assert any("eager" in why for why in calibration.skipped().values())


def test_rows_left_out_are_estimated_from_the_others() -> None:
    found = calibration.left_out()
    assert len(found) == len(calibration.rows()) and all(math.isfinite(row["error"]) for row in found)
    assert all(row["estimated_ms"] > 0 for row in found) and sum(row["inside"] for row in found) > len(found) / 2
    board, mode = resolve(calibration.BOARD, calibration.MODE)
    largest = max(calibration.rows(), key=lambda row: row.ms)
    slow = [replace(row, ms=3 * row.ms) if row != largest else row for row in calibration.rows()]
    assert calibration.coefficients(board, mode, slow).stream < calibration.coefficients(board, mode).stream
    with pytest.raises(EdgewmError, match="no row shows stream, stream_int4"):
        calibration.coefficients(board, mode, [row for row in calibration.rows() if " M=1 " not in row.network.name])


def test_an_interval_is_as_wide_as_the_errors_it_is_from() -> None:
    assert calibration.reach([0.1] * 18 + [0.7, 0.2]) == 0.2
    assert calibration.reach([0.1, 0.3]) == 0.3


def test_fractions_are_of_the_boards_own_architecture() -> None:
    made = {name: calibration.coefficients(*resolve(name, "MAXN")) for name in ("orin", "orin-nx", "thor", "xavier")}
    assert made["orin"].tensor == made["orin-nx"].tensor != made["thor"].tensor
    assert all(0 < fraction < 1 for found in made.values() for fraction in (*found.tensor.values(), found.stream))
    assert made["xavier"].sigma > made["orin"].sigma and "stands for it" in " ".join(made["xavier"].sources)
    assert "FP8 product" in " ".join(made["thor"].sources) and "J0145" in made["orin"].sources[0]


def test_a_published_whole_model_lies_inside() -> None:
    """Rows of a 28-layer model replayed as a graph, on which nothing is fitted."""
    board, mode = resolve(calibration.BOARD, calibration.MODE)
    made = calibration.coefficients(board, mode)
    for row in calibration.rows():
        if len(row.network.kernels) > 1:
            plan = estimate_network(row.network, board, mode, PRECISIONS[row.precision], made, row.runtime)["plan_ms"]
            assert plan["low"] < row.ms < plan["high"]


def test_facts_of_boards_say_how_sure_they_are() -> None:
    assert all(mode.confidence in CONFIDENCE for board in targets().values() for mode in board.mode)
    assert all(m.source for board in targets().values() for m in board.measured)


# ---------------------------------------------------------------------------------------------- ONNX


def test_without_onnx_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewm.estimate import onnx_network

    monkeypatch.setattr(onnx_network.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "net.onnx").touch()
    with pytest.raises(EdgewmError, match="reading ONNX needs the onnx package") as caught:
        estimate(str(tmp_path / "net.onnx"), target="orin", mode="MAXN")
    assert caught.value.fix == "pip install onnx"


def onnx_file(folder: Path, nodes: list, inputs: dict, weights: dict[str, tuple[int, ...]], output: str) -> Path:
    onnx = pytest.importorskip("onnx", reason="pip install onnx")
    info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in inputs.items()]
    held = [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), n) for n, shape in weights.items()]
    made = [onnx.helper.make_node(op, ins, outs, name=outs[0], **attrs) for op, ins, outs, attrs in nodes]
    out = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(made, "net", info, [out], held)
    file = folder / "net.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    file.write_bytes(model.SerializeToString())
    return file


def test_an_onnx_file_is_its_products(tmp_path: Path) -> None:
    from edgewm.estimate.onnx_network import read_network

    nodes = [
        ("LayerNormalization", ["x", "g"], ["a"], {}), ("MatMul", ["a", "w"], ["b"], {}), ("Gelu", ["b"], ["c"], {}),
        ("MatMul", ["c", "v"], ["d"], {}), ("Transpose", ["d"], ["t"], {"perm": [0, 2, 1]}),
        ("MatMul", ["d", "t"], ["s"], {}), ("Softmax", ["s"], ["p"], {}), ("MatMul", ["p", "d"], ["y"], {}),
    ]  # fmt: skip
    weights = {"g": (64,), "w": (64, 256), "v": (256, 64)}
    network = read_network(onnx_file(tmp_path, nodes, {"x": (2, 50, 64)}, weights, "y"))
    found = [(k.kind, k.m, k.n, k.k, k.batch, k.is_weight) for k in network.kernels]
    assert found == [
        ("rows", 100, 1, 64, 1, True), ("product", 100, 256, 64, 1, True), ("product", 100, 64, 256, 1, True),
        ("product", 50, 50, 64, 2, False), ("rows", 100, 1, 50, 1, True), ("product", 50, 64, 50, 2, False),
    ]  # fmt: skip
    assert estimate(str(tmp_path / "net.onnx"), target="orin", mode="MAXN")["plan_ms"]["point"] > 0


def test_convolutions_of_an_onnx_file_are_told_apart(tmp_path: Path) -> None:
    patches = [("Conv", ["x", "w"], ["y"], {"strides": [14, 14]})]
    file = onnx_file(tmp_path, patches, {"x": (1, 3, 224, 224)}, {"w": (192, 3, 14, 14)}, "y")
    assert estimate(str(file), target="orin", mode="MAXN")["flops"] == 2 * 256 * 192 * 588
    windows = [("Conv", ["x", "w"], ["y"], {"pads": [1, 1, 1, 1]})]
    file = onnx_file(tmp_path, windows, {"x": (1, 8, 32, 32)}, {"w": (16, 8, 3, 3)}, "y")
    with pytest.raises(EdgewmError, match=r"100 % of net\.onnx is convolutions"):
        estimate(str(file), target="orin", mode="MAXN")


def test_an_onnx_file_without_sizes_or_products(tmp_path: Path) -> None:
    nodes = [("MatMul", ["x", "w"], ["y"], {})]
    file = onnx_file(tmp_path, nodes, {"x": ("batch", 64)}, {"w": (64, 8)}, "y")
    with pytest.raises(EdgewmError, match="the shape of 'x' is not fixed"):
        estimate(str(file), target="orin", mode="MAXN")
    file = onnx_file(tmp_path, [("Relu", ["x"], ["y"], {})], {"x": (4, 4)}, {}, "y")
    with pytest.raises(EdgewmError, match="no product in the graph"):
        estimate(str(file), target="orin", mode="MAXN")
    file.write_bytes(b"no model")
    with pytest.raises(EdgewmError, match="cannot read ONNX"):
        estimate(str(file), target="orin", mode="MAXN")


def test_a_network_of_nothing_known() -> None:
    assert Network("n", (Kernel("r", "rows", 4, 1, 4),), "s").flops == 0

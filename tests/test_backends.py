"""The program by ONNX Runtime: the native plan within what rounding can do, golden answers, refusals by message."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seen
import tiny

from edgewm import console, interp
from edgewm.binding import Runtime
from edgewm.build import build, capture
from edgewm.errors import EdgewmError
from edgewm.judge.noise import philox
from edgewm.judge.sides import named
from edgewm.manifest import read_manifest
from edgewm.passes import EXACT, run
from edgewm.profile import profile
from edgewm.rounding import UNIT_ROUNDOFF, rounding_steps
from edgewm.show import show
from edgewm.validate import validate

MISSING = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} missing; pip install 'edgewm[onnx]'")
if not MISSING:
    import onnx
    from backend_bundles import PERIOD_NS, bundle, copy_of, spoiled
    from onnx import numpy_helper

    from edgewm.backends import backend, files, golden, opened
    from edgewm.backends.host import GIVEN, ITERATE

SEED = 3
SMALL = "tiny_models:tiny"
Arrays = Mapping[str, np.ndarray]


def loop(folder: Path | None = None, **options: Any) -> Any:
    folder = folder or bundle()
    return opened(folder, read_manifest(folder), 1, PERIOD_NS, **options)


def situation(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What is seen and what is wanted, by port."""
    ((observation, goal),) = seen.contexts(1, seed)
    model = seen.lewm()
    observations = model.ports_of("observation")
    return named(observations, observation, observations), named(model.ports_of("goal"), goal, observations)


def tolerance(name: str, scale: float) -> float:
    """Of an output of the whole plan, by the longest path to it."""
    return rounding_steps(tiny.exact().entries[GIVEN]) * UNIT_ROUNDOFF * max(scale, 1.0)


# ----------------------------------------------------------------------------------------------------- the native plan


def test_plans_and_acts_as_the_native_bundle_does() -> None:
    """From reset to the latched stop: chunks, hold, ramp; the actions differ by rounding alone."""
    observation, goal = situation()
    played: list[list[tuple[np.ndarray, str, int]]] = []
    for kind in ("native", "onnxruntime"):
        clock = [PERIOD_NS]
        with (
            Runtime(tiny.bundle("host", "fp32"), period_ns=PERIOD_NS, clock=lambda: clock[0])  # noqa: B023
            if kind == "native"
            else loop(clock=lambda: clock[0])  # noqa: B023
        ) as robot:
            robot.reset(SEED)
            robot.set_goal(**goal)
            rows = []
            for period in range(2 * tiny.PLANNER.horizon * tiny.PLANNER.action_block + 16):
                clock[0] = (period + 1) * PERIOD_NS
                if period in (0, 2):
                    robot.observe(clock[0], **observation)
                    info = robot.plan()
                    assert (info.iterations, info.of, info.late) == (2, 2, False)
                action, told = robot.act(clock[0])
                rows.append((action.copy(), told.state, told.generation))
            played.append(rows)
            assert robot.stats()["plans"] == 2
    states = [[state for _, state, _ in rows] for rows in played]
    assert states[0] == states[1] and set(states[0]) == {"fresh", "hold", "ramp", "stopped"}
    assert [g for _, _, g in played[0]] == [g for _, _, g in played[1]]
    apart = np.abs(np.stack([a for a, *_ in played[0]]) - np.stack([a for a, *_ in played[1]]))
    assert 0 < apart.max() <= tolerance("actions", 1.0)


def test_a_plan_on_given_noise_is_the_oracles() -> None:
    observation, goal = situation(1)
    planner, shape = tiny.PLANNER, (tiny.PLANNER.horizon, 4)
    noise = philox(planner, shape[1], SEED, 2)
    given = {**observation, **goal, "warm_mean": np.zeros(shape, np.float32), "noise": noise}
    program = tiny.exact()
    wanted = interp.run(program.entries[GIVEN], given, program.weights, real=True)
    with loop() as robot:
        found = robot.run_entry(GIVEN, **given)
        own = robot.run_entry(
            "plan", **{k: v for k, v in given.items() if k != "noise"}, seed=np.array([SEED, 0], np.uint32),
            plan_counter=np.array([2], np.uint32),
        )  # fmt: skip
    assert found.keys() == wanted.keys() and np.array_equal(found["elites"], wanted["elites"])
    for name in ("actions", "mean", "std", "cost", "warm_mean"):
        assert np.abs(found[name] - wanted[name]).max() <= tolerance(name, np.abs(wanted[name]).max()), name
        assert np.array_equal(found[name], own[name])
    assert own["plan_counter"].tolist() == [3]


def test_no_round_begins_that_would_end_after_the_deadline() -> None:
    clock = itertools.count(10, 10)  # every look at it takes 10 ns
    observation, goal = situation()
    with loop(clock=lambda: next(clock)) as robot:
        robot.set_goal(**goal)
        robot.observe(**observation)
        robot.warm_start(np.full((3, 4), 0.25, np.float32))
        none = robot.plan(deadline_ns=1)
        assert (none.late, none.iterations) == (True, 0)
        assert np.array_equal(robot.act(0)[0], np.float32([0.25, 0.25]))  # the warm start
        begin = next(clock)
        one = robot.plan(deadline_ns=begin + 40)
        assert (one.late, one.iterations, one.of) == (True, 1, 2)
        assert robot.plan().iterations == 2 and robot.stats()["late"] == 2


@pytest.mark.parametrize("kind", ("icem", "mppi"))
def test_other_methods_plan_as_the_oracle(kind: str, tmp_path: Path) -> None:
    settings = {"kind": kind, "warm_start": True, "n_elite_keep": 2} if kind == "icem" else {"kind": kind}
    out = tmp_path / "out"
    build(SMALL, backend="onnxruntime", planner=settings, out=out)
    program = run(capture(SMALL, settings, None, None)[0], EXACT)
    graph = program.entries[GIVEN]
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal(leaf.shape).astype(np.float32) for name, leaf in graph.inputs().items()}
    wanted = interp.run(graph, given, program.weights, real=True)
    with loop(out) as robot:
        found = robot.run_entry(GIVEN, **given)
    for name in ("actions", "mean", "warm_mean"):
        allowed = rounding_steps(graph) * UNIT_ROUNDOFF * max(np.abs(wanted[name]).max(), 1.0)
        assert np.abs(found[name] - wanted[name]).max() <= allowed, name


# ------------------------------------------------------------------------------------------------------------ the files


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = tmp_path / "a", tmp_path / "b" / "c"
    result = build(SMALL, backend="onnxruntime", out=first)
    build(SMALL, backend="onnxruntime", out=again)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in first.iterdir()}
    assert result["sha256"] == read_manifest(again).sha256 and result["backend"] == "onnxruntime"
    assert result["bytes"] == sum(p.stat().st_size for p in again.iterdir())
    rows = dict(zip(*(column.cells for column in console.build_table(result).columns), strict=True))
    assert rows["backend"] == f"onnxruntime; golden answers met in ONNX Runtime {result['checked_by']['onnxruntime']}"
    met = {"onnxruntime": "1.0", "tensorrt_rtx": "2.0", "built_for": "SM86"}
    told = console.build_table({**result, "backend": "tensorrt", "checked_by": met})
    assert "tensorrt; golden answers met in ONNX Runtime 1.0; tensorrt-rtx 2.0 builds it for SM86, as a stand-in" in [
        *told.columns[1].cells
    ]
    assert build(SMALL, backend="onnxruntime", out=tmp_path / "none", dry_run=True)["checked_by"] is None
    build(SMALL, backend="onnxruntime", out=again)  # an old bundle may be replaced
    (again / "notes.txt").write_text("mine")
    with pytest.raises(EdgewmError, match=r"holds other files: notes\.txt"):
        build(SMALL, backend="onnxruntime", out=again)


def test_the_files_are_whole_models_that_name_no_place() -> None:
    folder = bundle()
    for file in folder.glob("*.onnx"):
        onnx.checker.check_model(str(file), full_check=True)
    assert {"encode.onnx", "iterate.onnx", "entry-score.onnx", "weights.bin", "golden.npz"} <= {
        p.name for p in folder.iterdir()
    }
    assert not any(str(folder.parent).encode() in p.read_bytes() for p in folder.iterdir())
    text = show(str(folder))
    assert "iterate.onnx" in text and "next_mean: f32[3, 4]" in text


def test_eight_bits_are_symmetric_constant_and_by_output_channel() -> None:
    found = set()
    model = onnx.load(bundle(precision="w8a8") / "iterate.onnx")
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            values, scale, zero = node.input
            assert np.all(arrays[scale] > 0) and arrays[zero].dtype == np.int8 and not arrays[zero].any()
            found.add((node.op_type, arrays[scale].ndim, values in arrays))
            if values in arrays:
                assert arrays[values].dtype == np.int8 and arrays[scale].shape == arrays[values].shape[1:]
    assert found == {("QuantizeLinear", 0, False), ("DequantizeLinear", 0, False), ("DequantizeLinear", 1, True)}
    small, large = (bundle(precision=p) / "weights.bin" for p in ("w8a8", "fp32"))
    assert small.stat().st_size < large.stat().st_size


# ------------------------------------------------------------------------------------------------------- golden answers


@pytest.mark.parametrize("precision", ("fp32", "w8a8"))
def test_every_graph_gives_its_golden_answers(precision: str) -> None:
    folder = bundle(precision=precision)
    manifest = read_manifest(folder)
    answers = golden.read((folder / files.GOLDEN).read_bytes())
    checked = []
    graph = backend("onnxruntime").open_graphs(folder, manifest, 1, lambda name, call: checked.append(name))
    for name in manifest.raw["graphs"]:
        shares = golden.verify(name, graph(name), answers, manifest.planner, name)
        assert shares and all(0 <= share <= 1 for share in shares.values())
    assert checked == list(manifest.raw["graphs"])


FAULTS = {
    "costs": ("costs", lambda v: v * np.float32(1.5), "costs is off by"),
    "nan": ("costs", lambda v: v + np.float32(np.nan), "costs is off by nan"),
    "elites": ("next_elites", lambda v: np.roll(v, 1), "next_elites is off by"),
    "deviation": ("next_std", lambda v: v * np.float32(1.01), "next_std is off by"),
    "mean": ("next_mean", np.negative, "next_mean is off by"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_graph_that_answers_otherwise_is_refused(fault: str) -> None:
    folder = bundle(precision="w8a8")
    manifest = read_manifest(folder)
    answers = golden.read((folder / files.GOLDEN).read_bytes())
    call = backend("onnxruntime").open_graphs(folder, manifest, 1, lambda name, call: None)(ITERATE)
    output, spoil, words = FAULTS[fault]

    def wrong(inputs: Arrays) -> dict[str, np.ndarray]:
        found = call(inputs)
        return {**found, output: spoil(found[output])}

    with pytest.raises(EdgewmError, match=words):
        golden.verify(ITERATE, wrong, answers, manifest.planner, "x")


@pytest.mark.parametrize("precision", ("fp32", "w8a8"))
def test_a_weight_that_is_another_is_seen_when_the_graph_is_first_used(precision: str, tmp_path: Path) -> None:
    observation, goal = situation()
    with loop(spoiled(copy_of(bundle(precision=precision), tmp_path))) as robot:
        robot.set_goal(**goal)
        robot.observe(**observation)
        with pytest.raises(EdgewmError, match=r"off by .* from its golden answer") as fault:
            robot.plan()
    assert "iterate.onnx by onnxruntime" in fault.value.where


def test_a_file_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    folder = copy_of(bundle(), tmp_path)
    data = bytearray((folder / "weights.bin").read_bytes())
    data[100] ^= 1
    (folder / "weights.bin").write_bytes(data)
    with pytest.raises(EdgewmError, match=r"weights\.bin has SHA-256 .*, the manifest says"):
        loop(folder)
    (folder / "weights.bin").unlink()
    with pytest.raises(EdgewmError, match=r"no weights\.bin"):
        loop(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(EdgewmError, match="names no backend of this edgewm"):
        read_manifest(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(EdgewmError, match="not JSON"):
        read_manifest(folder)


# ------------------------------------------------------------------------------------------------------------ the verbs


def test_a_backend_is_judged_itself(tmp_path: Path) -> None:
    folder = copy_of(bundle(precision="w8a8"), tmp_path)
    found = validate(folder, against="seen:lewm", suite=["plan"], contexts=2, threads=1)
    assert found["bundle_sha256"] == read_manifest(folder).sha256
    assert {row["name"]: row["passed"] for row in found["gates"]}["own_plans"] is True
    assert 0 < found["plan"]["cost_error"] < 1 and found["plan"]["spearman_min"] > 0.5
    assert found["left_out"]["plan"] == ["which layer costs what: onnxruntime does not tell"]
    assert "manifest.json" in (folder / "report.html").read_text()
    exact = validate(copy_of(bundle(), tmp_path / "exact"), against="seen:lewm", suite=["plan"], contexts=2, threads=1)
    assert exact["plan"]["cost_error"] < found["plan"]["cost_error"]


def test_a_profile_says_what_a_loop_in_python_can(tmp_path: Path) -> None:
    folder = copy_of(bundle(), tmp_path)
    found = profile(folder, rate_hz=1000.0, ticks=12, threads=1, slo="max=1000s")
    assert found["plans"] == 6 and found["plan_ms"]["max"] > 0 and found["slo_met"] is True
    assert set(found["act_late_ms"].values()) == {None} and found["misses"] is None
    assert found["stages"].keys() == {"encode", "iterate", "host"} and sum(found["stages"].values()) == pytest.approx(1)
    assert json.loads(json.dumps(found, allow_nan=False))["backend"] == "onnxruntime"
    assert "6 plans by onnxruntime" in (folder / "report.html").read_text()
    for option, value in (("load", "cpu"), ("kernels", True), ("device", "ssh://a@b"), ("pin", "0"), ("mlock", True)):
        with pytest.raises(EdgewmError, match=f"--{option} is of native bundles"):
            profile(folder, **{option: value})


def test_ports_are_checked() -> None:
    with loop() as robot:
        assert "score" in robot.entries
        with pytest.raises(EdgewmError, match="nothing was given on port"):
            robot.plan()
        with pytest.raises(EdgewmError, match="no input port 'depth'"):
            robot.observe(depth=np.zeros(1))
        with pytest.raises(EdgewmError, match=r"port 'speed' was given float64\[2\]"):
            robot.observe(speed=np.zeros(2))
        with pytest.raises(EdgewmError, match="no entry 'draw'"):
            robot.run_entry("draw")
        assert robot.act(0)[1].state == "waiting"


def test_limits_slew_and_no_safe_value() -> None:
    """As `ewm_act`: within limits first, then not further from the last action than the port's slew."""
    folder = bundle()
    manifest = read_manifest(folder)
    (action,) = manifest.ports_of("action")
    ports = [p for p in manifest.ports if p is not action]
    observation, goal = situation()
    slow = replace(manifest, ports=(*ports, replace(action, slew=0.125, scale=(100.0, 100.0), offset=(0.0, 0.0))))
    with opened(folder, slow, 1, PERIOD_NS, clock=lambda: PERIOD_NS) as robot:
        robot.set_goal(**goal)
        robot.observe(**observation)
        first, _ = robot.act(PERIOD_NS)
        robot.plan()
        played = [first, *(robot.act((2 + i) * PERIOD_NS)[0] for i in range(6))]
    steps = np.abs(np.diff(np.stack(played), axis=0))
    assert np.all(first == 0) and steps.max() == 0.125 and np.abs(played).max() <= 1.0
    lost = replace(manifest, ports=(*ports, replace(action, control="position", safe=())))
    with (
        opened(folder, lost, 1, PERIOD_NS, clock=lambda: 0) as robot,
        pytest.raises(EdgewmError, match="no action yet: nothing is planned"),
    ):
        robot.act(0)


REFUSED = {
    "a precision": ({"precision": "bf16"}, "onnxruntime does not take bf16"),
    "the encoder in eight bits": ({"precision": "w8a8_all"}, "onnxruntime does not take w8a8_all"),
    "calibration of nothing": ({"calibration": Path("x")}, "nothing of fp32 is calibrated"),
    "our kernels": ({"isa": "avx2"}, "onnxruntime runs its own kernels"),
    "our places": ({"place": "cpu"}, "onnxruntime runs its own kernels"),
    "what is committed": ({"planner": {"roll_committed": True}}, "plans from the newest frame alone"),
    "a backend": ({"backend": "tvm"}, "no backend 'tvm'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, tmp_path: Path) -> None:
    options, words = REFUSED[case]
    with pytest.raises(EdgewmError, match=words) as fault:
        build(SMALL, **{"backend": "onnxruntime", "out": tmp_path / "out", **options})
    assert fault.value.fix and not (tmp_path / "out").exists()


def test_a_history_is_refused() -> None:
    program = tiny.exact()
    with pytest.raises(EdgewmError, match="plans from the newest frame alone") as fault:
        files.graphs_of(program.with_(planner=replace(program.planner, history=2)))
    assert fault.value.fix.startswith("build with --history 1")


def test_nothing_to_calibrate_on_is_said() -> None:
    with pytest.raises(EdgewmError, match="nothing to plan from"):
        build(SMALL, backend="onnxruntime", precision="w8a8", out=Path("never"))


def test_without_onnx_runtime_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EdgewmError, match="onnxruntime is not installed") as fault:
        loop()
    assert fault.value.fix == "pip install 'edgewm[onnx]'"

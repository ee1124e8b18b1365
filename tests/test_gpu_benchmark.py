"""`benchmarks/gpu.py` from end to end on a driver that stands in, kernels as fibers: what it checks, times, refuses."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cuda_standin
import numpy as np
import pytest
import runtime_fixture as fixture
import tiny
from cuda_cpu import Device
from hypothesis import given
from hypothesis import strategies as st
from test_cuda_bundle import board, uncompiled

from edgewm import target as target_module
from edgewm.cuda import bound
from edgewm.errors import EdgewmError
from edgewm.estimate import verb as estimate_verb
from edgewm.estimate.table import estimate_table
from edgewm.show import bundle_text
from edgewm.target import resolve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import gpu
import gpu_build
import gpu_cases
import gpu_driver
import gpu_measure
import gpu_torch

EFFORT = gpu_measure.Effort(rounds=1, repeats=2, ceiling_rounds=2, ceiling_mib=1, nodes=2, l2_bytes=1 << 12)
PLAN = "tiny-w8a8-1-sm_87"
PROBED = {
    "name": "a GPU", "sm": 87, "dram_gbps": 150.0, "graph_node_us": 50.0, "barrier_us": 1.5, "fp32_gflops": 5e3,
    "bf16_gflops": 4e4, "int8_gops": 6e4,
}  # fmt: skip


def cases() -> list[gpu_cases.Case]:
    """A product, in the precisions whose bits are promised and in the other, and an attention."""
    found = {case.name: case for case in gpu_cases.cases(small=True)}
    return [found["lewm up"], found["lewm attention"]]


@functools.cache
def folder() -> Path:
    """What `--build` makes of tiny LeWM, with its kernels as fibers beside."""
    made = Path(tempfile.mkdtemp(prefix="edgewm-gpu-"))
    subject = gpu_build.Subject("tiny", tiny.exact(), (1,), ("w8a8",))
    gpu_build.build(made, [subject], cases(), [board()[0]], lambda text: None, uncompiled)
    assert gpu_build.index_of(made)["refused"] == {}
    for bundle in made.glob("*-sm_87"):
        Device((bundle / "kernels.cu").read_text(), bundle, watched=False)
    (made / "ceilings").mkdir()
    Device(gpu_build.ceilings_text(), made / "ceilings", watched=False)
    return made


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[cuda_standin.StandIn]:
    found = cuda_standin.standin()
    monkeypatch.setattr(gpu, "resolve", lambda name: board())
    yield found
    assert found.faults == []


def run(driver: cuda_standin.StandIn, at: Path, **more: object) -> dict:
    def opening(name: str) -> None:
        driver.configure(folder() / name / "kernels.so")

    file = more.pop("json_file", None)
    return gpu.run(at, file, effort=EFFORT, opening=opening, peers={}, cases=cases(), isolated=gpu.inline, **more)


def test_everything_is_checked_and_timed(driver: cuda_standin.StandIn, tmp_path: Path) -> None:
    report = run(driver, folder(), json_file=tmp_path / "rows.json")
    assert report["wrong"] == [] and [s["name"] for s in report["skipped"]] == ["TensorRT"]
    rows = {row["name"]: row for row in report["rows"]}
    assert {name: row["answer"] for name, row in rows.items() if row["table"] == "gpu-cases"} == {
        "lewm up fp32 sm_87": "same bits", "lewm up w8a8 sm_87": "same bits", "lewm up bf16 sm_87": "within rounding",
        "lewm attention fp32 sm_87": "same bits",
    }  # fmt: skip
    ceilings, plan = rows["Stand-in 0"], rows[f"{PLAN} plan"]
    assert all(ceilings[key] > 0 for key in gpu.SHOWN["gpu-ceilings"])
    kernels = [row for row in report["rows"] if row["table"] == "gpu-kernels"]
    assert sum(row["launches"] for row in kernels) == plan["launches"]
    assert all(row["bound_ms"] <= row["estimated_ms"] for row in kernels)
    assert plan["estimated_ms"] == pytest.approx(sum(row["estimated_ms"] for row in kernels))
    shown = gpu.show(report).splitlines()
    assert shown[-1].startswith("Stand-in 0: 0 wrong") and any(line.split()[:1] == [PLAN] for line in shown[-8:])
    with pytest.raises(EdgewmError, match="rows are of 'Stand-in 0', which is no GPU"):
        gpu.record(report, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]
    where = gpu.record({**report, "gpu": "NVIDIA H100 80GB HBM3"}, tmp_path)
    assert where.name == "nvidia-h100-80gb-hbm3.jsonl" and len(where.read_text().splitlines()) == len(report["rows"])


def test_answers_that_are_not_the_oracles_are_found_and_not_recorded(
    driver: cuda_standin.StandIn, tmp_path: Path
) -> None:
    """Every stored answer is changed by a little more than is allowed."""
    at = tmp_path / "folder"
    shutil.copytree(folder(), at)
    stored = dict(np.load(at / "answers.npz"))
    for name in stored:
        if name.endswith("/y"):
            stored[name] = stored[name] + 1.01 * np.maximum(stored[name.replace("/y", "/rounding")], 1e-6)
        if name.endswith("/encode/out/z"):
            stored[name] = np.nextafter(stored[name], np.float32(9))
        if name.endswith("/plan/out/mean"):
            stored[name] = stored[name] + np.float32(1.01)  # deviations
    np.savez(at / "answers.npz", **stored)
    index = (at / "index.json").read_text()
    for line in index.splitlines():
        if '"sha256": "' in line:
            index = index.replace(line, line.replace('"sha256": "', '"sha256": "0'))
    (at / "index.json").write_text(index)
    wrong = run(driver, at)["wrong"]
    assert len(wrong) == 6 and sum("bits were promised" in line for line in wrong) >= 4
    assert any("1.01 times the rounding" in line for line in wrong)
    with pytest.raises(EdgewmError, match="6 answers were wrong"):
        gpu.record({"gpu": "a GPU", "wrong": wrong, "rows": []}, tmp_path)


def test_what_there_is_no_time_for_is_told(driver: cuda_standin.StandIn) -> None:
    report = run(driver, folder(), limit_s=0.0)
    assert {row["table"] for row in report["rows"]} == {"gpu-ceilings"}
    assert {s["reason"] for s in report["skipped"][:-1]} == {"0 s were over"} and len(report["skipped"]) == 5


def test_a_part_that_dies_or_does_not_end_is_told_and_ends_alone() -> None:
    assert gpu.apart(lambda: [{"table": "t"}], 60.0) == ([{"table": "t"}], None)
    assert gpu.apart(lambda: os.kill(os.getpid(), signal.SIGKILL), 60.0) == ([], "its process ended by itself with -9")
    assert gpu.apart(lambda: time.sleep(60), 0.2) == ([], "not done after 0 s")
    rows, reason = gpu.apart(lambda: 1 // 0, 60.0)
    assert rows == [] and "ZeroDivisionError" in reason


def test_no_driver_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_driver, "LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(EdgewmError, match="no NVIDIA driver"):
        gpu_driver.Gpu()


def test_a_peer_that_takes_too_long_or_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gpu_torch.py").write_text(
        "import sys, time\nopen(sys.argv[3], 'a').write('{\"table\": \"t\"}\\n')\n"
        "time.sleep(60) if sys.argv[1] == 'slow' else sys.exit('no such mode')\n"
    )
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    assert gpu.peer("slow", 2.0) == ([{"table": "t"}], "not done after 2 s")
    assert gpu.peer("bad", 60.0) == ([{"table": "t"}], "no such mode")


@pytest.mark.parametrize("part", ["ceilings", "eager", "products", "attention"])
def test_torchs_parts_run(part: str) -> None:
    rows = list(gpu_torch.rows_of(part, gpu_torch.Clock("cpu", 1), "cpu", small=True))
    assert rows and all(row.get("us", row.get("ms", row.get("dram_gbps"))) > 0 for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)


@given(st.binary(max_size=70))
def test_pieces_come_back_as_they_were(data: bytes) -> None:
    assert gpu_build.words(gpu_build.planes(data)) == data


def test_a_bundle_shows_its_kernels_facts_and_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_build.opened(folder(), PLAN, gpu_build.index_of(folder()), tmp_path)
    monkeypatch.setattr(target_module, "resolve", lambda name, mode: board())
    text = bundle_text(tmp_path, kernels=True)
    assert "static bound on" in text and "an estimate" in text
    rows = bound.bundle_rows(tmp_path, *board())
    told = bound.whole(rows, *board())
    assert told["launches"] == gpu_measure.launches_of(tmp_path, "plan")
    assert told["bound_ms"] <= told["estimate_ms"]["low"] <= told["estimate_ms"]["point"]
    assert f"{told['launches']} launches" in text and all(f["name"] in text for r in rows for f in r["functions"])
    with pytest.raises(EdgewmError, match="holds no GPU kernels"):
        bound.bundle_rows(fixture.bundle(), *board())


def test_a_bundles_plan_is_estimated_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_build.opened(folder(), PLAN, gpu_build.index_of(folder()), tmp_path)
    monkeypatch.setattr(estimate_verb, "resolve", lambda name, mode: board())
    rows = bound.bundle_rows(tmp_path, *board())
    found = estimate_verb.estimate(str(tmp_path))
    assert (found["place"], found["runtime"], found["bound"]) == ("gpu", "edgewm", "launch")
    assert found["plan_ms"] == bound.whole(rows, *board())["estimate_ms"]
    assert sum(row["ms"] for row in found["kernels"]) == pytest.approx(found["plan_ms"]["point"])
    assert sum(found["shares"].values()) == pytest.approx(1) and "launch" in found["shares"]
    estimate_table(found)
    launches = bound.whole(rows, *board())["launches"]
    monkeypatch.setattr(estimate_verb, "gpu_of", lambda board, mode, measured: PROBED)
    slower = estimate_verb.estimate(str(tmp_path))
    assert slower["shares"]["launch"] * slower["plan_ms"]["point"] == pytest.approx(launches * 50 / 1e3)
    monkeypatch.setattr(bound, "is_persistent", lambda sections: True)
    nodes = bound.whole(bound.bundle_rows(tmp_path, *board()), *board())["nodes"]
    kept = estimate_verb.estimate(str(tmp_path))
    assert 0 < nodes < launches and kept["persistent"] and not slower["persistent"]
    assert kept["shares"]["launch"] * kept["plan_ms"]["point"] == pytest.approx(nodes * 50 / 1e3)
    assert kept["shares"]["sync"] * kept["plan_ms"]["point"] == pytest.approx((launches - nodes) * 1.5 / 1e3)
    assert kept["notes"][-1].endswith("between: as measured")
    monkeypatch.setattr(estimate_verb, "gpu_of", lambda board, mode, measured: None)
    assert "four trips to the L2" in estimate_verb.estimate(str(tmp_path))["notes"][-1]
    with pytest.raises(EdgewmError, match="--threads is for a plan on a CPU, this is one on a GPU"):
        estimate_verb.estimate(str(tmp_path), threads=2)
    monkeypatch.setattr(estimate_verb, "resolve", lambda name, mode: (resolve("host")[0], board()[1]))
    with pytest.raises(EdgewmError, match="the bundle holds kernels for sm_87, host has no GPU"):
        estimate_verb.estimate(str(tmp_path))

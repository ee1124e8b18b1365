"""Probing: prices of this machine and of a device without Python, what is refused, what is left behind."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import loopback
import pytest

from edgewm.abi import elf_machine
from edgewm.environment import record
from edgewm.errors import EdgewmError
from edgewm.estimate import machine, probe
from edgewm.estimate.site import site
from edgewm.estimate.specimens import meetings, specimens
from edgewm.target import resolve

PEAKS = {"fp32_gflops": 100.0, "bf16_gflops": 200.0, "int8_gops": 400.0, "dram_gbps": 20.0}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few specimens, looked at once, and peaks as given: whether prices are good is for benchmarks/estimate.py."""
    folds = specimens()
    folds = folds.with_(entries={"folds": folds.entries["folds"]})
    monkeypatch.setattr(probe, "specimens", lambda precision: folds)
    monkeypatch.setattr(probe, "NAMED", ("fp32",))
    monkeypatch.setattr(probe, "ENTRY_S", 0.0)
    monkeypatch.setattr(probe, "MEETINGS", 2)
    monkeypatch.setattr(probe, "WAKE_UPS", 3)
    monkeypatch.setattr(probe, "measure_ceilings", lambda board, there, folder, threads: (
        {str(n): {name: n * rate for name, rate in PEAKS.items()} for n in {1, threads}}, {"l2_gbps": 50.0},
    ))  # fmt: skip


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback.Device]:
    with ExitStack() as devices:
        made = devices.enter_context(loopback.device(tmp_path / "device"))
        monkeypatch.setenv("PATH", f"{made.folder}/client{os.pathsep}{os.environ['PATH']}")
        yield made


def check(found: dict) -> None:
    assert json.loads(json.dumps(found)) == found and "edgewm targets probe" in found["source"]
    assert found["costs_ns"] and all(math.isfinite(ns) and ns >= 0 for ns in found["costs_ns"].values())
    assert found["costs_ns"]["fma_f32"] >= 2 * probe.LANES / PEAKS["fp32_gflops"]
    assert all(found["threads"][name] >= 0 for name in machine.BESIDE_CALLS)
    assert found["wake_up_us"]["max"] >= found["wake_up_us"]["p50"] >= 0
    assert found["gpu"].get("why") or found["gpu"]["graph_node_us"] > 0


def test_a_probe_finds_prices(few: None, tmp_path: Path) -> None:
    stages = []
    found = probe.probe(threads=2, progress=lambda stage, done: stages.append((stage, done)))
    check(found)
    assert (found["target"], found["mode"]) == ("host", "AS_IS") and found["threads"]["slowdown"] == {"2": 1.0}
    assert [done for _, done in stages] == sorted(done for _, done in stages) and stages[-1] == ("done", 1.0)
    kept = probe.keep(found, tmp_path / "new" / "facts.json")
    assert machine.of_facts(machine.read_facts(kept, resolve("host")[0])).notes == ()
    with pytest.raises(EdgewmError, match="cannot write measured facts"):
        probe.keep(found, tmp_path / "new")


@pytest.mark.needs("sshd")
def test_a_device_is_probed_without_python(few: None, device: loopback.Device) -> None:
    found = probe.probe(threads=1, device=device.address, target="host")
    check(found)
    assert found["threads"]["meet_ns"] == 0.0 and found["environment"]["kernel"]
    assert device.left == []


@pytest.mark.needs("sshd")
def test_a_device_that_is_no_such_board(few: None, device: loopback.Device) -> None:
    other = "orin" if resolve("host")[0].machine != "aarch64" else "thor"
    with pytest.raises(EdgewmError, match=r"is aarch64, the device is|the device has no") as caught:
        probe.probe(device=device.address, target=other, mode="MAXN")
    assert "--target" in caught.value.fix and device.left == []


def test_what_is_refused() -> None:
    with pytest.raises(EdgewmError, match="the device's board is not said") as caught:
        probe.probe(device="ssh://nobody@nowhere")
    assert caught.value.where == "--target"
    with pytest.raises(EdgewmError, match="is no device"):
        probe.probe(device="nowhere", target="orin")


def test_facts_are_of_a_mode() -> None:
    orin = resolve("orin")[0]
    told = record("== $ nvpmodel -q\nNV Power Mode: MODE_50W\n3\n")
    assert probe.power_mode(orin, None, told).name == "50W" == probe.power_mode(orin, "50w", told).name
    assert probe.power_mode(orin, "maxn", {"power_mode": None}).name == "MAXN"
    for wanted in ("maxn", "30W"):
        with pytest.raises(EdgewmError, match=f"the device is in power mode 50W, not in {wanted}") as caught:
            probe.power_mode(orin, wanted, told)
        assert caught.value.where == f"--mode {wanted}" and "nvpmodel" in caught.value.fix
    with pytest.raises(EdgewmError, match="has no power mode '70W'"):
        probe.power_mode(orin, None, {"power_mode": {"name": "70W", "number": 9}})
    assert probe.power_mode(resolve("host")[0], None, {"power_mode": None}).name == "AS_IS"
    with pytest.raises(EdgewmError, match="does not say which power mode") as caught:
        probe.power_mode(orin, None, {"power_mode": None})
    assert caught.value.fix == "give one of MAXN, 15W, 30W, 50W"
    assert probe.facts_file(orin, "MAXN") != probe.facts_file(orin, "30W")


def test_facts_are_of_the_board_that_the_device_is() -> None:
    told = record("== /proc/device-tree/compatible\nnvidia,p3768-0000+p3767-0005 nvidia,p3767-0005\n")
    assert probe.check_board(resolve("jetson_orin_nano_8gb")[0], told) is None
    assert (
        probe.check_board(resolve("host")[0], told) is None
        and probe.check_board(resolve("orin")[0], record("")) is None
    )
    with pytest.raises(EdgewmError, match="is a jetson_orin_nano_8gb, not a jetson_agx_orin_64gb") as caught:
        probe.check_board(resolve("orin")[0], told)
    assert caught.value.fix == "give --target jetson_orin_nano_8gb"


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    board = resolve("host")[0]
    with site("local", board) as there:
        probe.compiled(meetings(2), board, tmp_path / "meetings")
        found = there.run(tmp_path / "meetings", probe.PROBE, "runs", "model.ewm", "1", "3")
        assert found.keys() == {"once", "often", "much"} and all(ran["any"] > 0 for ran in found.values())
        assert all(ran["together"] is None or ran["together"] > 0 for ran in found.values())
        (tmp_path / "meetings" / "model.ewm").write_bytes(b"no model")
        with pytest.raises(EdgewmError) as caught:
            there.run(tmp_path / "meetings", probe.PROBE, "runs", "model.ewm", "1", "3")
        assert caught.value.fix == "run `edgewm targets probe` again"
        with pytest.raises(EdgewmError, match="not so"):
            there.run(tmp_path / "meetings", probe.PROBE, "runs")


def test_ceilings_are_of_loops_that_run(tmp_path: Path) -> None:
    board = resolve("host")[0]
    with site("local", board) as there:
        peaks, caches = probe.measure_ceilings(board, there, tmp_path / "ceilings", 2)
    assert peaks.keys() == {"1", "2"} and all(found.keys() == PEAKS.keys() for found in peaks.values())
    assert all(0 < rate < 1e5 for found in (*peaks.values(), caches) for rate in found.values())


def test_programs_of_a_probe_are_compiled_for_a_board(tmp_path: Path) -> None:
    orin = resolve("orin")[0]
    probe.compiled(meetings(2), orin, tmp_path / "meetings")
    assert elf_machine(tmp_path / "meetings" / probe.PROBE) == "aarch64"

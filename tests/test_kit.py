"""The board kit: what a bundle's kit.sh prints where there is no Python, and which of it counts."""

from __future__ import annotations

import atexit
import copy
import functools
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import runtime_fixture as fixture
from test_device import RATE_HZ, with_manifest
from test_environment import orin

from edgewm import kit
from edgewm.build import MADE
from edgewm.errors import EdgewmError
from edgewm.target import targets

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # whose scripts find each other
TICKS = 60


def script(name: str) -> ModuleType:
    """A module of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_kit(bundle: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    (bundle / "kit.sh").write_text(kit.text(RATE_HZ, 1))
    return subprocess.run(["sh", bundle / "kit.sh", *flags], cwd="/", capture_output=True, text=True)


@functools.cache
def made() -> tuple[Path, dict[str, Any]]:
    """A bundle with its kit, and what the kit printed on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="edgewm-kit-"))
    atexit.register(shutil.rmtree, folder)
    bundle = with_manifest(folder / "bundle")
    before = {p.name for p in bundle.iterdir()}
    done = run_kit(bundle, "--ticks", str(TICKS))
    assert done.returncode == 0, done.stderr
    assert {p.name for p in bundle.iterdir()} == {*before, "kit.sh"}  # it leaves nothing there
    return bundle, json.loads(done.stdout)


def written(folder: Path, given: Any) -> Path:
    file = folder / "board.json"
    file.write_text(given if isinstance(given, str) else json.dumps(given))
    return file


def test_a_kit_is_read_as_a_profile_is(tmp_path: Path) -> None:
    bundle, given = made()
    found = kit.read(written(tmp_path, given), bundle)
    assert found["source"] == "measured-on-device" and found["golden"] == {"identical": True, "answers": 2}
    assert (found["ticks"], found["rate_hz"], found["threads"]) == (TICKS, RATE_HZ, 1)
    assert found["environment"]["machine"] == platform.machine() and found["environment"]["samples"] >= 1
    assert sum(n for _, n in found["histograms"]["act_late_ms"]) == TICKS
    json.dumps(found, allow_nan=False)


def test_flags_go_to_the_runner_and_what_it_refuses_comes_back(tmp_path: Path) -> None:
    bundle = with_manifest(tmp_path / "bundle")
    done = run_kit(bundle, "--ticks", "5", "--rate-hz", "200", "--pin", "1000")
    found = kit.read(written(tmp_path, done.stdout), bundle)
    assert found["rate_hz"] == 200.0
    assert {"what": "--pin", "why": "Invalid argument"} in found["environment"]["degraded"]
    done = run_kit(bundle, "--bogus")
    assert (done.returncode, done.stdout) == (2, "") and "error: unknown argument" in done.stderr


Change = Callable[[dict[str, Any]], Any]


def at(*path: str, value: Any) -> Change:
    """Replaces one field."""

    def change(given: dict[str, Any]) -> None:
        for key in path[:-1]:
            given = given[key]
        given[path[-1]] = value

    return change


def without(*path: str) -> Change:
    def change(given: dict[str, Any]) -> None:
        for key in path[:-1]:
            given = given[key]
        del given[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (at("schema_version", value=2), "it is not what this version's kit prints"),
        (without("tick", "scheduler"), "it lacks scheduler"),
        (without("golden"), "it lacks golden"),
        (at("environment", value="fine"), "it lacks before, during, after"),
        (at("sha256", "model.ewm", value="0" * 64), "it timed another bundle: model.ewm there has SHA-256 00000000"),
        (at("sha256", "libedgewm.so", value="0" * 64), "it timed another bundle: libedgewm.so"),
        (without("sha256", "edgewm-tick"), "it timed another bundle: edgewm-tick there has SHA-256 None"),
        (at("golden", value={"status": 1, "said": "golden 1: entry plan, port mean differs\n"}),
         "the board does not give the bundle's golden answers: golden 1: entry plan, port mean differs"),
        (at("golden", value={"status": 1, "said": ""}), "golden answers: nothing"),
        (at("tick", "ticks", value=3000), "3000 ticks, but 60 actions accounted for"),
        (at("tick", "misses", value=61), "61 misses, but only"),
        (at("tick", "elapsed_ns", value=1000), "60 periods at 500 Hz do not fit into 1e-06 s"),
        (at("tick", "plans", value=10**6), "1000000 plans, "),
        (at("tick", "plan_error", value=400), "error 400"),
        (at("tick", "plan_ns", "count", value=7), "plan_ns counts 7 samples, its buckets hold "),
        (at("tick", "plan_ns", "max", value=10**12), "plan_ns's buckets are not in order"),
        (at("tick", "act_late_ns", "series", value=[1, 2]), "act_late_ns's series is not that of its buckets"),
        (at("tick", "rate_hz", value="fast"), "a field is not of its kind"),
        (at("tick", "act_late_ns", value=[]), "a field is not of its kind"),
        (at("sha256", value=["model.ewm"]), "a field is not of its kind: sha256 is ['model.ewm']"),
        (at("golden", "said", value=None), "a field is not of its kind: golden.said is None"),
        (at("golden", "status", value="0"), "a field is not of its kind: golden.status is '0'"),
        (at("environment", "during", value=3), "a field is not of its kind: environment.during is 3"),
        (at("tick", "threads", value=[1]), "a field is not of its kind: tick.threads is [1]"),
        (at("tick", "plans_per_s", value=None), "a field is not of its kind: tick.plans_per_s is None"),
        (at("tick", "scheduler", "refused", value=[1]), "a field is not of its kind"),
        (at("tick", "spans", value=7), "a field is not of its kind"),
        (at("tick", "rate_hz", value=float("nan")), "it ran at nan Hz"),
        (at("tick", "rate_hz", value=0), "it ran at 0 Hz"),
        (lambda given: given["environment"].update(before=given["environment"]["before"].replace(
            f"== $ uname -m\n{platform.machine()}", "== $ uname -m\nriscv64")), "the board is riscv64"),
    ],
)  # fmt: skip
def test_what_does_not_count(tmp_path: Path, change: Change, what: str) -> None:
    bundle, given = made()
    given = copy.deepcopy(given)
    change(given)
    with pytest.raises(EdgewmError) as fault:
        kit.read(written(tmp_path, given), bundle)
    assert what in fault.value.what and fault.value.fix and str(tmp_path) in fault.value.where


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 1, "kit"', "\x00"])
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    with pytest.raises(EdgewmError, match="no JSON can be read there") as fault:
        kit.read(written(tmp_path, text), made()[0])
    assert "sh kit.sh" in fault.value.fix


def test_a_wrong_answer_is_told_in_the_json_and_does_not_count(tmp_path: Path) -> None:
    wrong = bytearray(fixture.golden())
    wrong[-1] ^= 1
    bundle = with_manifest(tmp_path / "bundle", golden=bytes(wrong))
    done = run_kit(bundle, "--ticks", "5")
    assert done.returncode == 0 and json.loads(done.stdout)["golden"]["status"] == 1
    with pytest.raises(EdgewmError, match="does not give the bundle's golden answers: golden 1: entry plan"):
        kit.read(written(tmp_path, done.stdout), bundle)


def test_a_machine_without_sha256sum_is_told(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("uname", "sh"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    done = subprocess.run(["sh", kit.SCRIPT], env={"PATH": f"{tmp_path}/bin"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: no sha256sum\n  where: ")


def test_a_bundle_carries_its_own_kit() -> None:
    assert "kit.sh" in MADE
    text = kit.text(20.0, 12)
    assert "rate_hz=20.0 threads=12 # of this bundle" in text and text == kit.text(20.0, 12)
    assert kit.text(20.0, 12).replace("rate_hz=20.0 threads=12", "rate_hz=50 threads=1") == kit.SCRIPT.read_text()


# --------------------------------------------------------------------------------------------------------- the results


def on_an_orin(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The kit's figures with the environment of a made-up AGX Orin (on this machine's architecture)."""
    bundle, given = made()
    text = orin(folder / "orin", {}, {"uname": f"#!/bin/sh\necho {platform.machine()}\n"})
    return bundle, {**given, "environment": {"before": text, "during": f"== sample\n{text}", "after": text}}


def test_a_row_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    take_kit, tables = script("take_kit"), script("tables")
    monkeypatch.setattr(take_kit, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    bundle, given = on_an_orin(tmp_path)
    assert take_kit.main([str(written(tmp_path, given)), "--bundle", str(bundle), "--name", "fixture"]) == 0
    (row,) = [row for row in tables.rows(tmp_path / "results") if row["table"] == take_kit.TABLE]
    assert row["machine"] == "jetson_agx_orin_64gb" and row["board"] == "Jetson AGX Orin 64GB"
    assert (row["power_mode"], row["jetpack"], row["clocks"], row["bundle"]) == ("30W", "6.2", "free", "fixture fp32")
    assert row["source"] == "measured-on-device" and row["misses"].endswith(f" of {TICKS}")
    assert take_kit.main([str(written(tmp_path, "")), "--bundle", str(bundle)]) == 2
    assert capsys.readouterr().err.startswith("error: no JSON can be read there")


def test_measured_columns_stay_empty_until_someone_sends_one(tmp_path: Path) -> None:
    take_kit, tables = script("take_kit"), script("tables")
    empty = take_kit.table_rows([{"table": "plan", "name": "x", "machine": "m"}])
    assert [row["board"] for row in empty] == [board.title for board in targets().values()]
    assert all(row[column] is None for row in empty for column in take_kit.COLUMNS)
    bundle, given = on_an_orin(tmp_path)
    _, sent = take_kit.row_of(kit.read(written(tmp_path, given), bundle), "fixture")
    filled = take_kit.table_rows([{**sent, "machine": "jetson_agx_orin_64gb"}])
    assert [row["board"] for row in filled if row["rate_hz"]] == ["Jetson AGX Orin 64GB"]
    assert len(filled) == len(empty)
    text = tables.markdown(filled)
    assert "| Jetson AGX Orin 64GB | 6.2 | 30W | free | fixture fp32 | 500 |" in text
    assert "| Jetson Xavier NX | - | - | - |" in text and "machine" not in text
    block = f"<!-- table: {take_kit.TABLE} -->\n<!-- end -->"
    assert text in tables.generated(block, [{**sent, "machine": "jetson_agx_orin_64gb"}])


def test_another_machine_has_a_row_of_its_own(tmp_path: Path) -> None:
    take_kit = script("take_kit")
    bundle, given = made()
    machine, row = take_kit.row_of(kit.read(written(tmp_path, given), bundle), "fixture")
    assert row["board"] in {found["board"] for found in take_kit.table_rows([row])}
    assert machine and machine == machine.lower().replace(" ", "-")


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("nvidia,p3737-0000+p3701-0005", "jetson_agx_orin_64gb"),
        ("nvidia,p3701-0000", "jetson_agx_orin_64gb"),
        ("nvidia,p3701-0004", "jetson_agx_orin_32gb"),
        ("nvidia,p3768-0000+p3767-0005", "jetson_orin_nano_8gb"),
        ("nvidia,p3834-0008", "jetson_agx_thor_t5000"),
        ("nvidia,p2822-0000+p2888-0004", "jetson_agx_xavier"),
        ("raspberrypi,5-model-b", None),
    ],
)
def test_boards_are_known_by_their_device_tree(shown: str, name: str | None) -> None:
    found = kit.board_of({"board_ids": [shown]})
    assert (found and found.name) == name


def test_identities() -> None:
    assert kit.identities("p3767-0003; devkit 0005") == {"p3767-0003", "p3767-0005"}
    assert kit.identities("p2888") == {"p2888"} and kit.identities("") == set()

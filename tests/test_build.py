"""The build: the same bytes twice, nothing half, refusals before anything is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import programs
import pytest

from edgewm import build as driver
from edgewm import expr as e
from edgewm import format as ewm
from edgewm.build import build, write
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.golden import example_inputs
from edgewm.passes import PIPELINE, run
from edgewm.program import Graph, Program
from edgewm.quantize import recipe_of
from edgewm.target import resolve

HERE = Path(__file__).resolve().parent
MODEL, CARELESS = "tiny_models:tiny", "tiny_models:careless"
FILES = ["edgewm-tick", "edgewm.h", "kit.sh", "libedgewm.so", "model.ewm"]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def refused(what: str, where: str | None = None, **options: object) -> EdgewmError:
    """A build that must be refused, by its message."""
    with pytest.raises(EdgewmError) as fault:
        build(**{"model": MODEL, **options})
    assert what in fault.value.what and (where is None or where in fault.value.where) and fault.value.fix
    return fault.value


# ---------------------------------------------------------------------------------------------- the same bytes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A tiny bundle for this machine, and what its build returned."""
    out = tmp_path_factory.mktemp("built") / "out"
    return out, build(MODEL, out=out)


def test_a_bundle_is_five_files_and_its_result_says_what_they_are(bundle: tuple[Path, dict]) -> None:
    out, result = bundle
    assert sorted(p.name for p in out.iterdir()) == FILES
    data = (out / "model.ewm").read_bytes()
    assert result["sha256"] == hashlib.sha256(data).hexdigest() and result["bytes"] == len(data)
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_two_builds_give_the_same_bytes(bundle: tuple[Path, dict], tmp_path: Path) -> None:
    """From another process, folder, hash seed and umask."""
    out = tmp_path / "elsewhere" / "b"
    code = f"from edgewm.build import build; build({MODEL!r}, out=__import__('pathlib').Path({str(out)!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(HERE.parent)}
    subprocess.run([sys.executable, "-c", code], cwd=HERE, env=environment, check=True)
    assert digests(out) == digests(bundle[0])


def test_a_bundle_names_no_path_host_or_time(bundle: tuple[Path, dict]) -> None:
    out, _ = bundle
    for file in FILES:
        data = (out / file).read_bytes()
        for secret in (str(Path.home()), str(HERE), str(out.parent), os.uname().nodename):
            assert len(secret) < 4 or secret.encode() not in data, (file, secret)
    manifest = json.loads(ewm.unpack((out / "model.ewm").read_bytes())["manifest"])
    assert not {"seconds", "time", "host", "path"} & manifest.keys()
    assert {line["seconds"] for line in manifest["log"]} == {0.0}


def test_golden_answers_are_the_oracles(bundle: tuple[Path, dict]) -> None:
    from edgewm.binding import Runtime
    from edgewm.interp import run as answer

    program = driver.capture(MODEL, {}, None, None)[0]
    fused = run(program, PIPELINE)
    with Runtime(bundle[0]) as runtime:
        for name, graph in fused.entries.items():
            inputs = example_inputs(fused, name, seed=0)
            assert programs.differing(runtime.run_entry(name, **inputs), answer(graph, inputs, fused.weights)) == []


def test_a_second_build_replaces_the_first(bundle: tuple[Path, dict], tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = small_write(out, seed=1)
    assert small_write(out, seed=2)["sha256"] != small["sha256"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and sorted(p.name for p in out.iterdir()) == FILES


# ---------------------------------------------------------------------------------------------- nothing half


def small_program() -> Program:
    x = e.input("x", (5, 3))
    return run(programs.program_of({"score": Graph({"y": e.tanh(e.matmul(x, e.weight("w", (3, 2))))})}), PIPELINE)


def small_write(out: Path, seed: int) -> dict:
    """The last steps of a build, of a program that needs no torch."""
    board, _ = resolve("host")
    program = small_program()
    manifest = {"seed": seed, "rate_hz": 20.0, "threads": 1}
    return write(program, schedule_program(program, board.isa), manifest, {}, board, out, seed, lambda done: None)


def kill_at(point: str) -> None:
    """From now on this process dies, as by a power cut, when it reaches `point` of a build."""

    def die(*_: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("SIGKILL did not kill")

    name, _, moment = point.partition(" ")
    real = getattr(driver, name)

    def then_die(*arguments: object) -> None:
        real(*arguments)
        die()

    setattr(driver, name, die if moment == "before" else then_die)


POINTS = (
    "compile_bundle before", "compile_bundle after", "record after", "pack after", "_sync after", "_exchange before",
)  # fmt: skip


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    out = tmp_path_factory.mktemp("killed") / "out"
    small_write(out, seed=1)
    return out, digests(out)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_build_leaves_the_earlier_bundle(point: str, earlier: tuple[Path, dict[str, str]]) -> None:
    out, before = earlier
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path; import test_build as t; "
        f"t.kill_at({point!r}); t.small_write(Path({str(out)!r}), 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert digests(out) == before
    ewm.unpack((out / "model.ewm").read_bytes())
    left = {p.name for p in out.parent.iterdir()} - {"out"}
    assert all(name.startswith(".out.building-") for name in left)


def test_a_build_killed_after_the_swap_has_taken_its_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small_write(out, seed=1)
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path; import test_build as t; "
        f"t.kill_at('_exchange after'); t.small_write(Path({str(out)!r}), 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(digests(out)) == FILES
    assert json.loads(ewm.unpack((out / "model.ewm").read_bytes())["manifest"])["seed"] == 2
    small_write(out, seed=3)  # and the next build sweeps what the dead one left
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_where_the_file_system_cannot_swap_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    small_write(out, seed=1)
    monkeypatch.setattr(driver, "_exchange", lambda a, b: False)
    found = small_write(out, seed=2)
    assert digests(out)["model.ewm"] == found["sha256"] and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a disk that is all but full: a tiny tmpfs where one may be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    if not mounted:
        real = Path.write_bytes

        def write_bytes(path: Path, data: bytes) -> int:
            if path.is_relative_to(tmp_path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return real(path, data)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
    yield tmp_path
    if mounted:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_told_and_nothing_is_left(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = full_disk / "out"
    out.mkdir()
    (out / "model.ewm").write_text("an earlier bundle")
    before = digests(out)
    (full_disk / "other").touch()
    if os.path.ismount(full_disk):
        monkeypatch.setattr(driver, "record", lambda *_: {"golden": bytes(10**6)})  # a file that does not fit
    with pytest.raises(EdgewmError) as fault:
        small_write(out, seed=1)
    assert "No space left on device" in fault.value.what and "nothing was changed" in fault.value.fix
    assert digests(out) == before and sorted(p.name for p in full_disk.iterdir()) == ["other", "out"]


# ---------------------------------------------------------------------------------------------- refusals


def test_a_dry_run_writes_nothing(tmp_path: Path, bundle: tuple[Path, dict]) -> None:
    result = build(MODEL, out=tmp_path / "out", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert result["bundle"] is None and result["sha256"] is None
    assert result["bytes"] == result["weight_bytes"] < bundle[1]["bytes"]
    for key in ("arena_bytes", "calls", "flops", "weight_bytes", "threads", "planner"):
        assert result[key] == bundle[1][key], key


def test_a_dry_run_estimates_where_the_boards_peaks_are_known() -> None:
    result = build(MODEL, target="orin", dry_run=True, threads=2)
    found = result["estimate_ms"]
    assert found["source"].startswith("estimated: ") and 0 < found["low"] <= found["point"] <= found["high"]
    slower = build(MODEL, target="orin", mode="15W", dry_run=True, threads=2)["estimate_ms"]
    assert slower["point"] > found["point"]


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    refused("cannot write there", where="/proc/none/out", out=Path("/proc/none/out"))
    file = tmp_path / "file"
    file.touch()
    refused("the output is a file", where=str(file), out=file)


def test_an_output_that_holds_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    refused("the output directory holds other files", where=str(tmp_path), out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    for name in sorted(driver.MADE):
        (tmp_path / name).touch()
    refused("the output directory holds other files: thesis.tex", where=str(tmp_path), out=tmp_path)
    (tmp_path / "thesis.tex").unlink()
    driver.check_out(tmp_path)
    (tmp_path / "model.ewm").unlink()
    refused("the output directory holds other files", out=tmp_path)


def test_a_robot_needs_a_safe_action(tmp_path: Path) -> None:
    what = "the action port 'action' declares no safe action"
    fault = refused(what, model=CARELESS, target="orin", out=tmp_path / "o")
    assert "robot target" in fault.where and "safe=(...) of 2 numbers" in fault.fix
    assert list(tmp_path.iterdir()) == []
    assert build(CARELESS, target="host", dry_run=True)["target"] == "host"


def test_words_nobody_knows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("no target is named 'moon'", where="--target", target="moon", out=out)
    refused("has no power mode 'WARP'", where="--mode", target="orin", mode="WARP", out=out)
    other = "neon" if os.uname().machine == "x86_64" else "avx2"
    refused(f"host cannot run {other!r} kernels", where="--isa", isa=other, out=out)
    refused("no precision 'w3a3'", where="--precision", precision="w3a3", out=out)
    refused("the model has no head sound", where="--heads", heads=["sound"], out=out)
    refused("host has no GPU that kernels can be compiled for", where="--place", place="gpu", out=out)
    refused("no model 'nothing'", where="MODEL", model="nothing", out=out)
    refused("no module named", model="no_such_module:f", out=out)
    refused("tiny_models has no 'huge'", model="tiny_models:huge", out=out)
    refused("5 elites of 4 samples", planner={"samples": 4, "elites": 5}, out=out)
    assert list(tmp_path.iterdir()) == []


RECIPES = {
    '{"encoder.weight": "w2"}': "weight 'encoder.weight' is to be 'w2'",
    '{"nobody.weight": "w8a8"}': "no product has a weight 'nobody.weight'",
    "w8a8": "not JSON",
    '["w8a8"]': "the recipe is a list",
}


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_that_do_not_fit(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(text)
    refused(RECIPES[text], where=str(file), precision=str(file), out=tmp_path / "out")


def test_a_recipe_of_ones_own_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    program = driver.capture(MODEL, {}, None, None)[0]
    names = [n for n, a in program.weights.items() if a.ndim == 2]
    file.write_text(json.dumps({names[0]: "w8a8", names[1]: "fp32"}))
    assert recipe_of(program, str(file)) == {names[0]: "w8a8"}
    assert build(MODEL, precision=str(file), dry_run=True)["precision"] == "recipe"
    assert recipe_of(program, "fp32") == {} == recipe_of(program, "w8a8")  # each of its products is too small to gain


def test_a_bundle_holds_its_recipe_and_what_it_was_calibrated_on(tmp_path: Path, monkeypatch) -> None:
    file, data, told = tmp_path / "recipe.json", tmp_path / "rec.safetensors", []
    name = next(n for n, a in driver.capture(MODEL, {}, None, None)[0].weights.items() if a.ndim == 2)
    file.write_text(json.dumps({name: "w4a8"}))
    data.write_bytes(b"recorded")
    monkeypatch.setattr(driver, "write", lambda program, schedule, manifest, *rest: told.append(manifest) or {})
    monkeypatch.setattr(driver, "calibrated", lambda program, *rest: program)
    for calibration in (data, None):
        build(MODEL, precision=str(file), calibration=calibration, out=tmp_path / "out")
    assert [manifest["recipe"] for manifest in told] == [{name: "w4a8"}] * 2
    assert told[0]["calibration_sha256"] == hashlib.sha256(b"recorded").hexdigest()
    assert "calibration_sha256" not in told[1]


def test_a_weight_that_is_named_is_named_with_its_slices(tmp_path: Path) -> None:
    names = ("w", "w[0:2]", "w[2:4]", "w2[0:2]", "v[0:2]")
    x = e.input("x", (3, 2))
    graph = Graph({name: e.matmul(x, e.weight(name, (2, 5))) for name in names})
    weights, file = {name: np.ones((2, 5), np.float32) for name in names}, tmp_path / "r.json"
    program = Program({"score": graph}, weights)
    for recipe, held in (
        ({"w": "w8a8"}, {"w": "w8a8", "w[0:2]": "w8a8", "w[2:4]": "w8a8"}),
        ({"w[2:4]": "fp32", "w": "bf16"}, {"w": "bf16", "w[0:2]": "bf16"}),
        ({"w": "bf16", "w[0:2]": "w8a8"}, {"w": "bf16", "w[0:2]": "w8a8", "w[2:4]": "bf16"}),
        ({"v": "w8a8"}, {"v[0:2]": "w8a8"}),
    ):
        file.write_text(json.dumps(recipe))
        assert recipe_of(program, str(file)) == held
    file.write_text('{"v[0": "w8a8"}')
    with pytest.raises(EdgewmError, match="no product has a weight") as fault:
        recipe_of(program, str(file))
    assert fault.value.fix == "`edgewm show --stage exact` lists them"


def test_fewer_samples_pull_elites_and_commitment_along() -> None:
    from edgewm.program import Planner

    planner = Planner(samples=300, elites=30, horizon=5, commit_steps=5)
    merged = driver.with_overrides(planner, {"samples": 16, "horizon": 2})
    assert (merged.samples, merged.elites, merged.horizon, merged.commit_steps) == (16, 2, 2, 2)
    kept = driver.with_overrides(Planner(), {"samples": 16, "elites": 9, "iterations": None})
    assert (kept.elites, kept.iterations) == (9, 30)


def test_drawn_inputs_fit_their_ports() -> None:
    y = e.add(e.input("a", (2,)), e.cast(e.input("b", (2,), "u8"), "f32"))
    graph = Graph({"y": y, "n": e.input("c", (1,), "u32")})
    drawn = example_inputs(Program({"f": graph}, {}), "f", seed=0)
    assert {n: (a.dtype, a.shape) for n, a in drawn.items()} == {
        "a": (np.float32, (2,)), "b": (np.uint8, (2,)), "c": (np.uint32, (1,)),
    }  # fmt: skip

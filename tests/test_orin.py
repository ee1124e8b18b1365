"""A bundle for Orin: what its files are, and that they answer with the bits of every other bundle of the model."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_build import FILES
from test_toolchain import LIBRARY_LIMIT_BYTES, elf

from edgewm import format as ewm
from edgewm.binding import Runtime
from edgewm.bundle import compile_bundle, pack
from edgewm.doctor import qemu_command
from edgewm.emit import schedule_program
from edgewm.golden import example_inputs
from edgewm.host import host
from edgewm.manifest import read_manifest
from edgewm.target import ISAS, resolve

OLDEST_GLIBC = (2, 31)  # of JetPack 5
PRECISIONS = ("fp32", "bf16", "w8a8")
LEVELS = ISAS[host().machine][ISAS[host().machine].index(host().isa) :]


def tick(qemu: list[str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*qemu, folder / "edgewm-tick", folder, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_its_files_are_for_aarch64_small_and_need_an_old_libc_alone(precision: str) -> None:
    folder = tiny.bundle("orin", precision)
    assert sorted(f.name for f in folder.iterdir()) == FILES
    for name, allowed in (("libedgewm.so", set()), ("edgewm-tick", {"libedgewm.so", "libpthread.so.0"})):
        machine, needed, data = elf(folder / name)
        assert machine == "aarch64" and set(needed) <= {"libc.so.6", "libm.so.6"} | allowed
        versions = {tuple(map(int, found)) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", data)}
        assert versions and max(versions) <= OLDEST_GLIBC
    assert (folder / "libedgewm.so").stat().st_size <= LIBRARY_LIMIT_BYTES


@pytest.mark.parametrize("precision", PRECISIONS)
def test_its_manifest_says_what_runs_where(precision: str) -> None:
    manifest = read_manifest(tiny.bundle("orin", precision))
    assert (manifest.target, manifest.mode, manifest.precision) == ("jetson_agx_orin_64gb", "30W", precision)
    assert manifest.raw["isa"] == "neon" and manifest.raw["triple"] == "aarch64-linux-gnu.2.31"
    assert set(manifest.raw["runs"].values()) == {"cpu"} and "plan" in manifest.raw["runs"]


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_its_board_answers_with_the_bits_of_this_machine(qemu_orin: list[str], precision: str, threads: str) -> None:
    done = tick(qemu_orin, tiny.bundle("orin", precision), "--golden", "--threads", threads)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[3] for line in lines] == ["encode,", "predict,", "score,", "plan,"]
    assert all(line.endswith("bit-identical") for line in lines)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_its_board_keeps_a_pace(qemu_orin: list[str], threads: str) -> None:
    """20 periods of planning and acting under an emulator: times mean nothing, counts and exit status do."""
    folder = tiny.bundle("orin", "w8a8")
    done = tick(
        qemu_orin, folder, "--ticks", "20", "--rate-hz", "10", "--warmup", "1", "--threads", threads, "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["target"], found["ticks"], found["plan_error"]) == ("aarch64-neon", 20, 0)
    assert found["plans"] > 0


def test_a_processor_without_dot_products_is_refused_by_its_reason(qemu_orin: list[str]) -> None:
    """Cortex-A57 has none of ARMv8.2; without the refusal the first kernel would die of SIGILL."""
    for what in (("--golden",), ("--ticks", "1")):
        done = tick(qemu_command("cortex-a57"), tiny.bundle("orin", "fp32"), *what)
        what_line, where, fix = done.stderr.splitlines()
        assert done.returncode == 2 and done.stdout == ""
        assert what_line == (
            "error: this processor lacks instructions the model was built for: found no asimdhp; expected asimdhp"
        )
        assert where == "  where: this processor" and fix == "  fix: run it on a machine that has what it needs"


# ---------------------------------------------------------------------------------------- every instruction set


def golden(folder: Path) -> dict[str, dict[str, bytes]]:
    """Entry -> port -> data of a bundle's golden section (see `format.golden_record`)."""
    sections = ewm.unpack((folder / "model.ewm").read_bytes())
    ports, data, at = np.frombuffer(sections["ports"], ewm.PORT), sections["golden"], 0
    found: dict[str, dict[str, bytes]] = {}
    while at < len(data):
        entry, count = data[at : at + 24].rstrip(b"\0").decode(), int.from_bytes(data[at + 24 : at + 28], "little")
        at += 28
        for _ in range(count):
            index, size = np.frombuffer(data, "<u4", 2, at)
            row = ports[index]
            side = "result" if row["kind"] in (ewm.KINDS["result"], ewm.KINDS["action"]) else "input"
            found.setdefault(entry, {})[f"{side} {row['name'].decode()}"] = data[at + 8 : at + 8 + size]
            at += 8 + int(size)
    return found


def for_level(isa: str, precision: str, folder: Path) -> Path:
    """The model's bundle for this machine held to the kernels of `isa`; only the plan where that has to be compiled."""
    if isa == host().isa:
        return tiny.bundle("host", precision)
    program = tiny.lowered(precision)
    program = program.with_(entries={"plan": program.entries["plan"]})
    board, _ = resolve("host", isa=isa)
    sections, paths = compile_bundle(program, schedule_program(program, isa), {}, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", LEVELS)
def test_every_level_of_this_machine_plans_with_the_bits_that_orin_carries(
    isa: str, precision: str, tmp_path: Path
) -> None:
    inputs = example_inputs(tiny.lowered(precision), "plan", seed=0)
    recorded = golden(tiny.bundle("orin", precision))["plan"]
    assert {k: v for k, v in recorded.items() if k.startswith("input")} == {
        f"input {k}": v.tobytes() for k, v in inputs.items()
    }
    wanted = {k.removeprefix("result "): v for k, v in recorded.items() if k.startswith("result")}
    folder = for_level(isa, precision, tmp_path)
    for threads in (1, 2):
        with Runtime(folder, threads) as runtime:
            results = runtime.run_entry("plan", **inputs)
        assert {name: a.tobytes() for name, a in results.items()} == wanted


def test_every_precision_is_really_another_plan() -> None:
    costs = {golden(tiny.bundle("orin", precision))["plan"]["result cost"] for precision in PRECISIONS}
    assert len(costs) == len(PRECISIONS)

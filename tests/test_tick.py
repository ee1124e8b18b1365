"""edgewm-tick, and what planning costs the operating system, counted natively."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import runtime_fixture as fixture

from edgewm import format as ewm
from edgewm import toolchain


def tick(*arguments: object, bundle: Path | None = None) -> subprocess.CompletedProcess[str]:
    folder = bundle or fixture.bundle()
    command = [folder / "edgewm-tick", folder, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# ------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("threads", [1, 2])
def test_golden_answers_are_bit_identical(threads: int) -> None:
    done = tick("--golden", "--threads", threads)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "golden 0: entry affine, 1 results, bit-identical",
        "golden 1: entry plan, 2 results, bit-identical",
    ]


def with_golden(folder: Path, golden: bytes | None) -> Path:
    shutil.copytree(fixture.bundle(), folder)
    sections = {k: v for k, v in fixture.tables().items() if k != "golden"}
    if golden is not None:
        sections["golden"] = golden
    (folder / "model.ewm").write_bytes(ewm.pack(sections, fixture.TARGET, fixture.KERNELS_SHA256))
    return folder


def test_golden_tells_a_wrong_bit_from_a_malformed_record_and_from_none(tmp_path: Path) -> None:
    wrong = bytearray(fixture.golden())
    wrong[-1] ^= 1
    done = tick("--golden", bundle=with_golden(tmp_path / "wrong", bytes(wrong)))
    assert done.returncode == 1
    assert "golden 1: entry plan, port mean differs in 1 of 24 bytes, first at byte 23" in done.stderr
    done = tick("--golden", bundle=with_golden(tmp_path / "short", fixture.golden()[:-1]))
    assert done.returncode == 2 and "record 1 is malformed" in done.stderr
    done = tick("--golden", bundle=with_golden(tmp_path / "none", None))
    assert done.returncode == 2 and "nothing to replay" in done.stderr


# -------------------------------------------------------------------------------------------------------- pacing


@pytest.mark.parametrize("mode", ["--inline", "--async"])
def test_a_paced_run_accounts_for_every_period(mode: str) -> None:
    done = tick("--rate-hz", 500, "--ticks", 200, "--threads", 2, mode, "--kernels", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["schema_version"] == 1 and report["target"] == fixture.TARGET
    late = report["act_late_ns"]
    assert late["count"] == sum(n for _, n in late["buckets"]) == 200
    assert late["min"] <= late["buckets"][0][0] and late["buckets"][-1][0] >= late["max"] >= late["min"]
    assert len(late["series"]) == 200 and max(late["series"]) == late["max"]
    played = sum(report["stats"][state] for state in ("waiting", "fresh", "hold", "ramp", "stopped"))
    acts = report["act_ns"]["count"]
    warmup = 3 + 1
    assert played == acts + warmup and acts == 200 - report["skipped"] == report["tick_ns"]["count"]
    assert report["misses_in_a_row"] <= report["misses"] and report["cold_ns"] > report["first_plan_ns"] > 0
    assert report["clock"]["looks"] == acts and report["observe_ns"] > 0
    spans = report["spans"]
    assert sum(s["ticks"] for s in spans) == 200 and sum(s["misses"] for s in spans) == report["misses"]
    assert max(s["late_max_ns"] for s in spans) == late["max"]
    for key in ("end_ns", "plans", "plan_ns", "minor_faults", "peak_kb"):
        assert [s[key] for s in spans] == sorted(s[key] for s in spans)
    assert report["plans"] == report["plan_ns"]["count"] > 0
    assert {s["step"] for s in report["steps"]} == {1, 3, 4, 5, 7}
    assert {c["kernel"] for c in report["calls"]} == {"add", "mul", "tally"}


@pytest.mark.parametrize("mode", ["--inline", "--async"])
def test_plans_come_as_often_as_the_file_commits_to_or_in_every_period(mode: str) -> None:
    ticks, commit, plans = 100, fixture.COMMIT, {}
    for replan in ("commit", "free"):
        report = json.loads(tick("--ticks", ticks, "--rate-hz", 100, mode, "--replan", replan, "--json", "-").stdout)
        assert (report["replan"], report["commit_steps"]) == (replan, commit if replan == "commit" else 0)
        plans[replan], acts = report["plans"], report["act_ns"]["count"]
        if mode == "--inline":  # a stalled machine skips periods, so there may be fewer actions than ticks
            assert plans[replan] == acts if replan == "free" else acts // commit <= plans[replan]
    assert 0 < plans["commit"] <= ticks // commit + 1 and plans["commit"] < plans["free"] <= ticks + 1


def test_a_deadline_in_the_past_plans_nothing_but_still_publishes() -> None:
    report = json.loads(tick("--ticks", 50, "--rate-hz", 500, "--plan-deadline-ms", 1e-6, "--json", "-").stdout)
    assert report["plan_iterations"]["max"] == 0
    assert report["late_plans"] == report["plans"] > 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--fast"], "unknown argument"),
        (["--rate-hz", "0"], "a flag needs a value in its range"),
        (["--rate-hz", "20x"], "a flag needs a value in its range"),
        (["--threads", "65"], "a flag needs a value in its range"),
        (["--replan", "often"], "a flag needs a value in its range"),
        (["--ticks"], "a flag needs a value in its range"),
        (["--ticks", "1", "--json", "/nowhere/at/all.json"], "No such file or directory"),
    ],
)
def test_bad_flags_are_refused_in_three_lines(arguments: list[str], what: str) -> None:
    done = tick(*arguments)
    first, where, fix = done.stderr.splitlines()
    assert done.returncode == 2 and not done.stdout
    assert first == f"error: {what}" and where.startswith("  where: ") and fix.startswith("  fix: ")


def test_a_damaged_file_is_refused_in_three_lines(tmp_path: Path) -> None:
    folder = with_golden(tmp_path / "bundle", None)
    data = bytearray((folder / "model.ewm").read_bytes())
    data[-1] ^= 1
    (folder / "model.ewm").write_bytes(data)
    done = tick(bundle=folder)
    first, where, fix = done.stderr.splitlines()
    assert done.returncode == 2
    assert first.startswith("error: model.ewm is damaged: found SHA-256 ") and where == "  where: section weights"
    assert "build the bundle again" in fix


# ---------------------------------------------------------------------------------- the cost to the operating system


def counted(folder: Path, threads: int, spin: bool, plans: int, pause_us: int = 0) -> dict[str, int]:
    program = folder / "count_calls"
    if not program.exists():
        text = Path(__file__).with_name("count_calls.cc").read_text()
        toolchain.compile_program(
            {"count_calls.cc": text},
            [toolchain.RUNTIME],
            flags=fixture.FLAGS,
            libraries=[folder / "libedgewm.so"],
            out=program,
        )
    command = [program, folder / "model.ewm", str(threads), str(plans), str(int(spin)), str(pause_us)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == 77:
        pytest.skip(f"this kernel does not let a program trap its own system calls ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("threads", "spin"), [(1, False), (2, True)])
def test_ten_thousand_plans_never_enter_the_kernel(threads: int, spin: bool) -> None:
    found = counted(fixture.bundle(), threads, spin, 10_000)
    found.pop("held_up")  # the machine's business
    assert found == {
        "plans": 10_000, "errors": 0, "futexes": 0, "other_calls": 0, "first_other": -1, "allocations": 0,
        "page_faults": 0, "futex_calls": 0, "placements": 0, "moved": 0,
    }  # fmt: skip


def test_ten_thousand_plans_with_sleeping_workers_make_two_futex_calls_each() -> None:
    found = counted(fixture.bundle(), 2, False, 10_000)
    clean = {"errors": 0, "other_calls": 0, "allocations": 0, "page_faults": 0}
    assert {key: found[key] for key in clean} == clean
    # The runtime's own counts are the truth.
    assert (found["futexes"], found["placements"]) == (found["futex_calls"], found["moved"])
    # One wake a plan; one wait, unless the worker saw the next plan before it slept. However busy the machine is.
    assert 10_000 <= found["futexes"] <= 2 * 10_000 + 1


@pytest.mark.parametrize(
    ("flag", "threads", "caught", "other"),
    [
        ("-DEWM_PLANT_CALL", 2, "other_calls", "allocations"),
        # one thread: malloc calls the system for the memory of a second one, should that one get a tile at all
        ("-DEWM_PLANT_ALLOCATION", 1, "allocations", "other_calls"),
    ],
)
def test_the_counters_catch_what_a_kernel_does(
    tmp_path: Path, flag: str, threads: int, caught: str, other: str
) -> None:
    adds = 1 + 3 * fixture.ROUNDS  # calls of the planted kernel in one plan
    found = counted(fixture.write(tmp_path, flags=[*fixture.FLAGS, flag]), threads, True, 100)
    assert (found[caught], found[other]) == (100 * adds, 0)

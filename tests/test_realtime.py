"""--pin, --fifo and --mlock of edgewm-tick: taken where permitted, told where refused, read back either way."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import runtime_fixture as fixture

from edgewm.environment import gather, record

CPU = min(os.sched_getaffinity(0))


def scheduler(*flags: str, before: tuple[str, ...] = (), mode: str = "--async") -> dict:
    folder = fixture.bundle()
    words = [folder / "edgewm-tick", folder, "--ticks", "40", "--rate-hz", "400", mode, *flags, "--json", "-"]
    done = subprocess.run([*before, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["act_late_ns"]["count"] == 40
    return report["scheduler"]


def test_nothing_is_asked_for_by_itself() -> None:
    found = scheduler()
    assert found.pop("cpus") == sorted(os.sched_getaffinity(0))
    assert found == {"policy": "other", "priority": 0, "memory_locked": False, "refused": []}


@pytest.mark.parametrize("text", [f"{CPU}", f"{CPU}-{CPU}", f"{CPU},{CPU}"])
def test_cpus_are_taken(text: str) -> None:
    assert scheduler("--pin", text)["cpus"] == [CPU]


@pytest.mark.parametrize("mode", ["--async", "--inline"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_everything_at_once_on_one_cpu(mode: str, threads: str) -> None:
    """The control loop goes before the threads that plan: on one CPU none of them keeps it from its actions."""
    found = scheduler("--pin", str(CPU), "--fifo", "20", "--mlock", "--threads", threads, mode=mode)
    here = record(gather())
    if here["rtprio"] == here["memlock_bytes"] == "unlimited":
        assert (found["policy"], found["priority"], found["memory_locked"]) == ("fifo", 20, True)
    assert found["cpus"] == [CPU] and len(found["refused"]) <= 2


def dropped() -> tuple[str, ...]:
    """The words that run a program without the right to any of it."""
    limits = ("prlimit", "--rtprio=0", "--memlock=0")
    return ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *limits)


def test_what_is_refused_is_told_and_the_run_goes_on() -> None:
    if subprocess.run([*dropped(), "true"], capture_output=True).returncode != 0:
        pytest.skip("setpriv and prlimit of util-linux cannot drop rights here")
    found = scheduler("--pin", "1000", "--fifo", "20", "--mlock", before=dropped())
    assert (found["policy"], found["priority"], found["memory_locked"]) == ("other", 0, False)
    told = {text.partition(": ")[0]: text.partition(": ")[2] for text in found["refused"]}
    assert told["--pin"] == "Invalid argument" and told["--fifo 20"] == "Operation not permitted"
    assert told["--mlock"] in ("Operation not permitted", "Cannot allocate memory")


def test_a_lock_too_small_for_another_stack_is_given_up_and_told() -> None:
    """The limit holds what there is, but not the stack of the thread that plans."""
    without = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "prlimit")
    if subprocess.run([*without, "--memlock=1", "true"], capture_output=True).returncode != 0:
        pytest.skip("setpriv and prlimit of util-linux cannot drop rights here")
    for mebibytes in (1, 4, 8):
        found = scheduler("--mlock", before=(*without, f"--memlock={mebibytes << 20}"))
        assert found["memory_locked"] != bool(found["refused"])
        assert all(text.startswith("--mlock: ") for text in found["refused"])


@pytest.mark.parametrize(
    "flags", [("--pin", "x"), ("--pin", ""), ("--pin", "1,"), ("--pin", "3-1"), ("--pin", "1-"), ("--pin", "99999"),
              ("--fifo", "1"), ("--fifo", "100"), ("--fifo",), ("--pin",)],
)  # fmt: skip
def test_what_cannot_be_asked_for(flags: tuple[str, ...]) -> None:
    done = subprocess.run([fixture.bundle() / "edgewm-tick", fixture.bundle(), *flags], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: a flag needs a value in its range")

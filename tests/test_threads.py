"""The team of threads: every tile once, offers in turn, and no more futex calls than one for each thread and run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import runtime_fixture as fixture

from edgewm import toolchain

RUNS = {1: 1000, 2: 500, 5: 5}  # by threads: more of them than processors wait for whole time slices
HANGS_S = 5
PROCESSORS = len(os.sched_getaffinity(0))
SOURCE = Path(__file__).parent / "threads_run.cc"
# what is changed in threads.cc, and how
PLANTED = {
    "a tile taken in two steps": (
        "now = __atomic_fetch_add(&team.offer, 1, __ATOMIC_ACQ_REL);",
        "sched_yield(); __atomic_store_n(&team.offer, now + 1, __ATOMIC_RELEASE);",
    ),
    "an offer that ends with its first tile": (
        "return __atomic_sub_fetch(&team.left, 1, __ATOMIC_ACQ_REL) == 0;",
        "return __atomic_exchange_n(&team.left, 0, __ATOMIC_ACQ_REL) != 0;",
    ),
}  # fmt: skip


def told(
    folder: Path, threads: int, spin: bool, runs: int, old: str = "", new: str = "", *, follows: bool = False
) -> dict[str, Any]:
    """What `threads_run.cc` says of threads.cc, `old` in it replaced by `new`."""
    sources = {"threads_run.cc": SOURCE.read_text(), "threads.cc": (toolchain.RUNTIME / "threads.cc").read_text()}
    if old:
        assert sources["threads.cc"].count(old) == 1
        sources["threads.cc"] = sources["threads.cc"].replace(old, new)
    program = toolchain.compile_program(sources, [toolchain.RUNTIME], flags=fixture.FLAGS, out=folder / "threads_run")
    arguments = [program, str(threads), str(runs), str(int(spin)), str(int(follows))]
    done = subprocess.run(arguments, capture_output=True, timeout=HANGS_S if old else None)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("spin", [False, True], ids=["sleeping", "spinning"])
@pytest.mark.parametrize("threads", RUNS)
def test_every_tile_is_done_once_and_in_turn(tmp_path: Path, threads: int, spin: bool) -> None:
    found = told(tmp_path, threads, spin, runs := RUNS[threads])
    calls, beside, home = (found.pop(key) for key in ("futex_calls", "beside", "home"))
    assert found.pop("moved") <= runs * (threads - 1)
    assert beside == (0 if threads <= PROCESSORS else threads - 1) and (home >= 0) == (1 < threads <= PROCESSORS)
    assert found == {"threads": threads, "wrong": 0, "unfinished": 0}
    sleeps = 0 if spin or threads == 1 else runs + 1  # the last one is dismissal
    assert calls <= threads * sleeps


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_caught(tmp_path: Path, fault: str) -> None:
    try:
        found = told(tmp_path, 2, True, 500, *PLANTED[fault])
    except (subprocess.TimeoutExpired, AssertionError):
        return  # it hangs or crashes
    assert found["wrong"] or found["unfinished"]


needs_two = pytest.mark.skipif(PROCESSORS < 2, reason="one processor: nobody can make way")


@needs_two
def test_workers_are_kept_off_the_planning_threads_processor(tmp_path: Path) -> None:
    found = told(tmp_path, 2, False, 100, follows=True)
    assert (found["beside"], found["wrong"]) == (0, 0) and found["moved"] >= 1


@needs_two
def test_a_worker_that_stays_is_seen(tmp_path: Path) -> None:
    stays = "if (!team.spin) make_way(team);"
    found = told(tmp_path, 2, False, 100, stays, "team.home = sched_getcpu();", follows=True)
    assert found["beside"] == 1 and found["moved"] == 0


def test_a_kernel_that_refuses_changes_nothing_else(tmp_path: Path) -> None:
    call = "sched_setaffinity(team.seats[i].tid, sizeof(others), &others);"
    found = told(tmp_path, 2, False, 100, call, ";")
    assert (found["wrong"], found["unfinished"]) == (0, 0)

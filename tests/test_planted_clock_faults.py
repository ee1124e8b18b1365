"""Faults of a clock and of a loop, planted under the real runner: each is seen and named, and a sound run is clean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from virtual_clock import virtual_run

from edgewm import phases
from edgewm.clock import summarise

RATE_HZ, TICKS = 1000.0, 10_000


def seen(**fault: Any) -> tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]:
    found = summarise(virtual_run(RATE_HZ, TICKS, **fault))
    return found, {each["name"]: each for each in found["findings"]}


def test_a_sound_run_is_clean_and_the_same_every_time() -> None:
    found, names = seen()
    assert names == {} and found["misses"] == found["misses_in_a_row"] == found["periods_without_action"] == 0
    assert set(found["steady"].values()) == {True} and found["effective_ticks"] == TICKS
    assert found["miss_rate_upper"] == pytest.approx(3 / TICKS, rel=0.01)  # the rule of three
    again = seen()[0]
    assert {k: again[k] for k in again if k != "spans"} == {k: found[k] for k in found if k != "spans"}  # real memory


def test_a_stall_counts_for_every_period_that_it_swallows() -> None:
    found, names = seen(fault="stall", at=5000, size=100_000_000)
    stall = names["stall"]
    assert found["misses"] == found["misses_in_a_row"] == stall["misses_in_a_row"] == 100
    assert stall["longest_ms"] == pytest.approx(100, abs=0.5) and stall["late_p999_seen_ms"] > 85
    assert stall["from_when_work_began_p999_ms"] < 0.2  # what a naive clock says
    assert "100 periods in a row" in stall["words"] and "would have said 0.1" in stall["words"]
    # One event says little about how often it comes: both claims are withheld.
    assert found["act_late_ms"]["p999"] is None and found["withheld"]["act_late_ms.p999"]["needs"] > TICKS
    assert found["miss_rate_upper"] is None


def test_a_slow_drift() -> None:
    found, names = seen(fault="drift", at=TICKS, size=20_000)  # 2 % over the run, within noise of 5 %
    assert found["steady"] == {"act_late_ms": True, "plan_ms": False}
    assert names["drift"]["of"] == "plan_ms" and names["drift"]["change"] == pytest.approx(0.02, abs=0.004)
    assert "drifted by +1.9 %" in names["drift"]["words"]


def test_two_speeds() -> None:
    _, names = seen(fault="bimodal", at=200_000, size=400_000)  # a fifth of the plans take 1.4 times as long
    speeds = names["two speeds"]
    assert speeds["slow_share"] == pytest.approx(0.2, abs=0.02)
    assert speeds["slow_ms"] / speeds["fast_ms"] == pytest.approx(1.4, rel=0.02)


def test_a_runner_that_skips_periods() -> None:
    found, names = seen(fault="skip", at=500, size=2_500_000)
    assert names["skipped periods"]["periods"] == found["periods_without_action"] == found["misses"] > 30
    assert names["stall"]["stalls"] == 19 and found["misses_in_a_row"] == 2


def test_a_runner_that_leaves_periods_out_of_its_account() -> None:
    run = dict(virtual_run(RATE_HZ, 400))
    fewer = summarise({**run, "ticks": 500})["findings"]
    assert [f["name"] for f in fewer] == ["unaccounted periods"]
    assert "500 periods were asked for, 400 are accounted for" in fewer[0]["words"]
    faster = summarise({**run, "elapsed_ns": 10_000_000})["findings"]
    assert "400 periods do not fit into 0.01 s: no figure of this run counts" in faster[0]["words"]


@pytest.mark.parametrize(("fault", "size"), [("jump", 3_000_000_000), ("back", 30_000_000)])
def test_a_clock_that_jumps(fault: str, size: int) -> None:
    found, names = seen(fault=fault, at=4000, size=size)
    assert names["clock jump"]["steps"] == 1 and names["clock jump"]["largest_ms"] == pytest.approx(size / 1e6)
    assert found["findings"][0]["name"] == "clock jump"  # before what follows from it
    assert found["ticks"] == TICKS and found["act_late_ms"]["max"] < 1.01 * size / 1e6 + 1


def test_an_idle_gap_costs_and_is_told_from_none() -> None:
    for size in (5_000_000, 0):
        steady = virtual_run(RATE_HZ, 2000, fault="idle", size=size)
        idle = phases.idle_run(
            lambda rate_hz, ticks, threads, *flags: virtual_run(rate_hz, ticks, *flags, fault="idle", size=size),  # noqa: B023
            20_000, RATE_HZ, 1, (),
        )  # fmt: skip
        found = phases.phases(steady, idle, [])
        penalty = phases.gap_penalty(found)
        assert found["after_idle"]["plans"] == phases.MOST_GAPS
        assert (penalty is None) if size == 0 else (4.9 < penalty[1] <= penalty[0] <= penalty[2] < 5.1)


def test_a_rate_that_cannot_be_kept() -> None:
    found = summarise(virtual_run(RATE_HZ, 500, plan_ns=1_600_000))
    assert found["findings"][0]["name"] == "overload"


def test_plans_that_a_stall_left_without_a_fresh_observation() -> None:
    run = virtual_run(RATE_HZ, 400)
    stale = summarise({**run, "stats": {**run["stats"], "stale": 2}})["findings"]
    assert [f["name"] for f in stale] == ["stale observations"]
    assert stale[0]["words"].startswith("2 plans could not be made")


def test_memory_that_grows_is_told_from_memory_that_stays() -> None:
    run = virtual_run(RATE_HZ, 6000)
    assert len(run["spans"]) == 60 and sum(s["ticks"] for s in run["spans"]) == 6000
    for leak_kb in (0, 4):
        spans = [{**s, "peak_kb": 2000 + leak_kb * i} for i, s in enumerate(run["spans"])]
        late = summarise({**run, "spans": spans})
        names = {f["name"]: f for f in late["findings"]}
        assert ("memory growth" in names) == bool(leak_kb)
    assert names["memory growth"]["bytes"] == 54 * 4 * 1024 and names["memory growth"]["rises"] == 54

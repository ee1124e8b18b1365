"""A bundle's first moments apart from its steady state: a cold start, a first plan, first periods, after a gap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import statistics
from .clock import CONFIDENCE, quantiles_ms, sample_of
from .series import Series, tail_worth

Tick = Callable[..., Mapping[str, Any]]

GAP_S = 1.0  # clocks and caches cool down within it
MOST_GAPS = 12
FIRST_PERIODS = 10


def idle_run(run: Tick, ticks: int, rate_hz: float, threads: int, flags: Sequence[str]) -> Mapping[str, Any] | None:
    """One plan after each of some gaps, for no longer than the steady run; None where that is shorter than a gap.

    `run(rate_hz, ticks, threads, *flags)` runs edgewm-tick. Its slowest rate is a gap before each period.
    """
    gaps = min(MOST_GAPS, int(ticks / rate_hz / GAP_S))
    return run(1 / GAP_S, gaps, threads, "--inline", "--replan", "free", *flags) if gaps else None


def phases(
    steady: Mapping[str, Any], idle: Mapping[str, Any] | None, others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:  # fmt: skip
    """What each phase took. `others`: runs of the same bundle, each a start of its own.

    Starts are of the process: the file is likely in memory. What a run is too short for is None.
    """
    starts = [run for run in (steady, idle, *others) if run is not None]
    late = steady["act_late_ns"].get("series") or []
    return {
        "cold_start": _starts(starts, "cold_ns"),
        "first_plan": _starts(starts, "first_plan_ns"),
        "first_periods": {
            "late_ms": [ns / 1e6 for ns in late[:FIRST_PERIODS]], "misses": _missed(late[:FIRST_PERIODS], steady),
        } if late else None,
        "after_idle": None if idle is None else after_idle(steady, idle),
    }  # fmt: skip


def _starts(runs: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    each = [run[key] / 1e6 for run in runs if key in run]
    return {"each_ms": each, "max_ms": max(each)} if each else None


def _missed(late_ns: Sequence[float], run: Mapping[str, Any]) -> int | None:
    return sum(ns >= 1e9 / run["rate_hz"] for ns in late_ns) if "rate_hz" in run else None


def after_idle(steady: Mapping[str, Any], idle: Mapping[str, Any]) -> dict[str, Any]:
    """Plans after a gap beside the steady ones; `penalty_ms` (by how much the median is longer) with its interval."""
    plans = sample_of(idle["plan_ns"])
    withheld: dict[str, Any] = {}
    late = sample_of(idle["act_late_ns"])
    found = {
        "gap_s": GAP_S, "plans": plans.n, "plan_ms": quantiles_ms(plans, withheld, "plan_ms"),
        "act_late_ms": quantiles_ms(late, withheld, "act_late_ms"), "withheld": withheld,
        "penalty_ms": None, "penalty_interval_ms": None,
    }  # fmt: skip
    usual = sample_of(steady["plan_ns"])
    pair = [None if s.series is None else median_interval(s.series) for s in (usual, plans)]
    if pair[0] is None or pair[1] is None:
        return found
    (usual_low, usual_high), (low, high) = pair
    middle = float(np.median(plans.series.x) - np.median(usual.series.x))
    return found | {
        "penalty_ms": middle / 1e6, "penalty_interval_ms": [(low - usual_high) / 1e6, (high - usual_low) / 1e6],
    }  # fmt: skip


def median_interval(series: Series) -> tuple[float, float] | None:
    """Order statistics about the median; two of them, each left by half the risk, make an interval of a difference.

    Samples count as what they are worth; None where that is too little, or not known.
    """
    n, level = len(series), (3 + CONFIDENCE) / 4
    worth, _ = tail_worth(series, series.above(0.5), 0.5, statistics.samples_needed(0.5, level))
    rank = None if worth is None else statistics.quantile_upper_rank(int(worth), 0.5, level)
    if rank is None or worth is None:
        return None
    above = int((int(worth) - rank) * n / int(worth))
    return float(series.ordered[above]), float(series.ordered[n - 1 - above])


def gap_penalty(found: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    """(ms, low, high) where a plan takes longer after a gap beyond chance; else None."""
    after = (found or {}).get("after_idle")
    if not after or after["penalty_interval_ms"] is None or after["penalty_interval_ms"][0] <= 0:
        return None
    return after["penalty_ms"], *after["penalty_interval_ms"]

"""What one run of edgewm-tick says, as figures: bounds of quantiles, misses, and what stands out.

Every time counts from the intended release. A quantile is printed as an upper 95 % bound, by order statistics, and
withheld (null) where the sample cannot carry it; `withheld` then says how many samples it would take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import statistics
from .findings import findings
from .series import Bound, Series, course, quantile_upper, rate_upper, tail_worth

Array = np.ndarray

CONFIDENCE = 0.95
QUANTILES = {"p50": 0.50, "p99": 0.99, "p999": 0.999}
SAMPLES = {"act_late_ms": "act_late_ns", "plan_ms": "plan_ns", "plan_age_ms": "plan_age_ns"}
LONGEST_KEPT = 1 << 20  # LONGEST_SERIES of runtime/tick.cc
KEPT_SERIES = ("act_late_ms", "plan_ms")
LONGEST_SERIES = 100_000  # of the JSON, from the first sample on


@dataclass(frozen=True)
class Sample:
    """Durations in ns: distinct upper bounds, ascending, with counts; the largest; the samples in order where kept, of
    a long run the first ones."""

    upper_ns: Array
    counts: Array
    max_ns: int
    series: Series | None = None

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def is_whole(self) -> bool:
        """Whether all samples are in the series."""
        return self.series is not None and len(self.series) == self.n


def sample_of(histogram: Mapping[str, Any]) -> Sample:
    """A histogram of edgewm-tick's JSON: `buckets` of [greatest value, count], `max`, and the `series` where kept."""
    buckets = np.asarray(histogram["buckets"], np.int64).reshape(-1, 2)
    largest = int(histogram["max"]) if len(buckets) else 0
    series = histogram.get("series")
    return Sample(
        np.minimum(buckets[:, 0], largest), buckets[:, 1], largest, None if not series else Series(np.asarray(series))
    )


def ranked_ns(sample: Sample, rank: int) -> int:
    """Upper bound of the rank-th smallest (from 1)."""
    return int(sample.upper_ns[np.searchsorted(np.cumsum(sample.counts), rank)])


def bound_ns(sample: Sample, p: float, confidence: float = CONFIDENCE) -> Bound:
    """Upper bound of the p-quantile. Of a run longer than its series, what a sample is worth is judged on that part;
    withheld where no order was kept, so that it cannot be judged."""
    least = statistics.samples_needed(p, confidence)
    if sample.series is None:
        return Bound(None, 0.0, least)
    known = quantile_upper(sample.series, p, confidence)
    if sample.is_whole:
        return known
    worth, needs = tail_worth(sample.series, sample.series.above(p), p, least)
    if worth is None:
        return known
    worth *= sample.n / len(sample.series)
    above = statistics.allowed_above(int(worth), p, confidence)
    value = None if above is None else float(ranked_ns(sample, sample.n - int(above * sample.n / int(worth))))
    return Bound(value, worth, needs)


def quantiles_ms(sample: Sample, withheld: dict[str, Any], name: str) -> dict[str, float | None]:
    """Upper 95 % bounds of the quantiles, and the largest value seen; what is withheld is noted under `name`."""
    found: dict[str, float | None] = {}
    for key, p in QUANTILES.items():
        bound = bound_ns(sample, p)
        found[key] = None if bound.value is None else bound.value / 1e6
        if bound.value is None:
            withheld[f"{name}.{key}"] = {
                "samples": sample.n, "worth": round(bound.worth, 1), "needs": bound.needs,
            }  # fmt: skip
    lowest = None
    for key in reversed(QUANTILES):  # what bounds a quantile bounds every lower one
        if found[key] is not None:
            lowest = found[key] if lowest is None else min(lowest, found[key])
            found[key] = lowest
    found["max"] = sample.max_ns / 1e6 if sample.n else None
    return found


def misses_of(tick: Mapping[str, Any], late: Sample) -> dict[str, Any]:
    """Periods whose action came a period late or later: how many, in a row, and how often at most."""
    ticks, misses = int(tick["ticks"]), int(tick["misses"])
    upper, worth = None, None
    if late.series is not None:
        events = late.series.x >= 1e9 / tick["rate_hz"] if "rate_hz" in tick else late.series.above(1 - misses / ticks)
        upper, worth, _ = rate_upper(late.series, events, CONFIDENCE, None if late.is_whole else (misses, ticks))
    return {
        "misses": misses,
        "misses_in_a_row": tick.get("misses_in_a_row"),
        "periods_without_action": tick.get("skipped"),
        "miss_rate_upper": upper,
        "effective_ticks": None if worth is None else round(worth, 1),
    }


NO_RATE = "a bound of their rate is withheld, too little is known of how they cluster"


def judged_words(timed: Mapping[str, Any]) -> str:
    """Where it was not the whole run: on what dependence between samples was judged."""
    if timed.get("independence") == "unknown":
        return "The order of samples was not kept, so bounds are withheld"
    if timed.get("independence") == "measured on a part":
        return f"What samples are worth, and what stands out, was judged on the first {timed['judged_ticks']:,} periods"
    return ""


def summarise(tick: Mapping[str, Any]) -> dict[str, Any]:
    """What one run of edgewm-tick says, in the fields of the JSON interface."""
    withheld: dict[str, Any] = {}
    samples = {key: sample_of(tick[name]) for key, name in SAMPLES.items()}
    courses = {key: course(s.series.x) for key, s in samples.items() if s.series is not None and key in KEPT_SERIES}
    late = samples["act_late_ms"]
    jitter, period_error_ppm = spacing(tick, late)
    return {
        **{key: quantiles_ms(s, withheld, key) for key, s in samples.items()},
        "jitter_ms": None if jitter is None else quantiles_ms(jitter, withheld, "jitter_ms"),
        "period_error_ppm": period_error_ppm,
        "ticks": int(tick["ticks"]),
        "plans": int(tick["plans"]),
        "plans_per_s": float(tick["plans_per_s"]),
        "first_plan_ms": tick["first_plan_ns"] / 1e6,
        **misses_of(tick, late),
        "confidence": CONFIDENCE,
        "independence": "unknown" if late.series is None else "measured" if late.is_whole else "measured on a part",
        "judged_ticks": 0 if late.series is None else len(late.series),
        "steady": {key: found.is_steady for key, found in courses.items()},
        "withheld": withheld,
        "findings": findings(tick, samples, courses, sample_of(tick["tick_ns"]) if "tick_ns" in tick else None),
        "histograms": {key: histogram(s) for key, s in samples.items()},
        "series": {key: series_ms(samples[key]) for key in KEPT_SERIES},
        "spans": spans(tick),
        "states": tick["stats"],
        "scheduler": tick["scheduler"],
        "plan_and_act": tick["mode"],
    }


def spacing(tick: Mapping[str, Any], late: Sample) -> tuple[Sample | None, float | None]:
    """Jitter, how far the time from one action to the next is off the period, either way (ns); and the error of the
    mean such time against the nominal period (ppm). Of the actions whose order was kept; None where there are none."""
    if late.series is None or "rate_hz" not in tick:
        return None, None
    period_ns = 1e9 / tick["rate_hz"]
    between = np.diff(np.arange(len(late.series)) * int(period_ns) + late.series.x)
    between = between[between > 0]  # periods that share an action lie at the same time
    if not len(between):
        return None, None
    off = np.abs(between - period_ns)
    values, counts = np.unique(off, return_counts=True)
    return Sample(values, counts, int(values[-1]), Series(off)), float(1e6 * (between.mean() / period_ns - 1))


def series_ms(sample: Sample) -> list[float] | None:
    """The first samples in order, as many as a JSON keeps; None where none were."""
    if sample.series is None:
        return None
    return [round(v, 6) for v in (sample.series.x[:LONGEST_SERIES] / 1e6).tolist()]


def spans(tick: Mapping[str, Any]) -> list[dict[str, float]]:
    """The run in equal parts: when each ended, misses, greatest lateness, plans' mean, memory's peak."""
    found, plans, plan_ns = [], 0, 0
    for each in tick.get("spans", ()):
        made, took = each["plans"] - plans, each["plan_ns"] - plan_ns
        plans, plan_ns = each["plans"], each["plan_ns"]
        found.append({
            "s": each["end_ns"] / 1e9, "ticks": each["ticks"], "misses": each["misses"],
            "late_max_ms": each["late_max_ns"] / 1e6, "plan_ms": took / made / 1e6 if made > 0 else None,
            "peak_bytes": each["peak_kb"] * 1024, "faults": each["minor_faults"] + each["major_faults"],
        })  # fmt: skip
    return found


def histogram(sample: Sample) -> list[list[float]]:
    """[upper bound in ms, count], for the report."""
    return [[float(u) / 1e6, int(c)] for u, c in zip(sample.upper_ns, sample.counts, strict=True) if c]


def kernel_shares(tick: Mapping[str, Any]) -> dict[str, float]:
    """Share of the planning thread's time by kernel family, largest first; `barriers` is what steps took beyond."""
    spent: dict[str, float] = {}
    for call in tick["calls"]:
        family = call["kernel"].partition("<")[0]
        spent[family] = spent.get(family, 0.0) + call["ns"]
    steps = sum(step["ns"] for step in tick["steps"])
    if steps > sum(spent.values()):
        spent["barriers"] = steps - sum(spent.values())
    whole = sum(spent.values())
    return {k: v / whole for k, v in sorted(spent.items(), key=lambda kv: -kv[1])} if whole else {}

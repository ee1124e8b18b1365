"""What stands out in a run beside its quantiles, each named and said in a sentence.

A stall, a drift, a step, two speeds, periods without an action, a clock that jumped, memory that grows: all read off
what edgewm-tick kept, none assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .series import Course, Modes, two_modes

Array = np.ndarray
NAMES = {"act_late_ms": "the lateness of actions", "plan_ms": "the time of a plan"}
OVERLOAD = 0.5  # share of periods missed from which it is no accident
STALL_PERIODS = 2
WARM_SPANS = 6  # of MOST_SPANS in runtime/spans.h: memory is still taken up


def findings(
    tick: Mapping[str, Any], samples: Mapping[str, Any], courses: Mapping[str, Course], work: Any | None = None
) -> list[dict[str, Any]]:
    """[{name, words, ...figures}], gravest first. `samples` by the names of `clock.SAMPLES`.

    `work`: what the periods took from when their work began, which misses every stall that comes before.
    """
    period_ns = 1e9 / tick["rate_hz"] if "rate_hz" in tick else None
    late = samples["act_late_ms"]
    found = [clock_jump(tick), overload(tick)]
    found.append(None if found[1] else stall(tick, late, work, period_ns))
    found += [skipped(tick), stale(tick), unaccounted(tick, late), memory(tick.get("spans", ()))]
    found += [of_part(change(key, each), samples[key]) for key, each in courses.items()]
    plans = samples["plan_ms"]
    found.append(None if plans.series is None else of_part(speeds(two_modes(plans.series.x)), plans))
    return [each for each in found if each is not None]


def of_part(found: dict[str, Any] | None, sample: Any) -> dict[str, Any] | None:
    """The same, said to be of the samples whose order was kept, where those are not all."""
    if found is None or sample.is_whole:
        return found
    return {**found, "words": f"{found['words']} (seen in the first {len(sample.series):,} of {sample.n:,})"}


def clock_jump(tick: Mapping[str, Any]) -> dict[str, Any] | None:
    clock = tick.get("clock") or {}
    if not clock.get("steps"):
        return None
    largest_ms = clock["largest_step_ns"] / 1e6
    return {
        "name": "clock jump", "steps": clock["steps"], "largest_ms": largest_ms,
        "words": f"the clock that paces jumped {_count(clock['steps'], 'time')} against the raw one, by up to "
        f"{_ms(largest_ms)}: latencies across a jump are not real",
    }  # fmt: skip


def overload(tick: Mapping[str, Any]) -> dict[str, Any] | None:
    share = tick["misses"] / max(1, tick["ticks"])
    if share < OVERLOAD:
        return None
    return {
        "name": "overload", "share": share,
        "words": f"{100 * share:.0f} % of periods were missed: this rate cannot be kept",
    }  # fmt: skip


def stall(
    tick: Mapping[str, Any], late: Any, work: Any | None, period_ns: float | None
) -> dict[str, Any] | None:  # fmt: skip
    """The longest time without an action; beside it what a clock that starts with the work would have said."""
    row = tick.get("misses_in_a_row")
    if period_ns is None or not late.n or late.max_ns < STALL_PERIODS * period_ns:
        return None
    if late.is_whole:
        missed = late.series.x >= period_ns
    else:  # parts of the run that follow one another count as one stall
        missed = np.asarray([each["misses"] > 0 for each in tick.get("spans", ())], bool)
    stalls = int((missed & ~np.concatenate([[False], missed[:-1]])[: len(missed)]).sum()) or 1
    found = {
        "name": "stall", "stalls": stalls, "longest_ms": late.max_ns / 1e6, "misses_in_a_row": row,
        "late_p999_seen_ms": seen_ms(late, 0.999),
    }  # fmt: skip
    words = f"{'' if late.is_whole else 'at least '}{_count(stalls, 'stall')}, the longest {_ms(found['longest_ms'])}"
    words += f", {row} periods in a row without an action in time" if row else ""
    if work is not None:
        found["from_when_work_began_p999_ms"] = seen_ms(work, 0.999)
        words += (
            f"; p99.9 of the lateness seen is {_ms(found['late_p999_seen_ms'])}, where timing from when work began "
            f"would have said {_ms(found['from_when_work_began_p999_ms'])}"
        )
    return {**found, "words": words}


def seen_ms(sample: Any, p: float) -> float:
    """The p-quantile of what was seen: no bound on anything."""
    rank = max(1, int(np.ceil(p * sample.n)))
    return float(sample.upper_ns[np.searchsorted(np.cumsum(sample.counts), rank)]) / 1e6


def skipped(tick: Mapping[str, Any]) -> dict[str, Any] | None:
    if not tick.get("skipped"):
        return None
    return {
        "name": "skipped periods", "periods": tick["skipped"],
        "words": f"{_count(tick['skipped'], 'period')} had no action of their own: the runner woke after their end; "
        "each counts as late until the next action",
    }  # fmt: skip


def stale(tick: Mapping[str, Any]) -> dict[str, Any] | None:
    plans = (tick.get("stats") or {}).get("stale")
    if not plans:
        return None
    return {
        "name": "stale observations", "plans": plans,
        "words": f"{_count(plans, 'plan')} could not be made: what was last seen was older than its port allows",
    }  # fmt: skip


def unaccounted(tick: Mapping[str, Any], late: Any) -> dict[str, Any] | None:
    """A runner that leaves periods out of its account."""
    expected_ns = (tick["ticks"] - 1) * 1e9 / tick["rate_hz"] if "rate_hz" in tick else 0
    lacking, fast = tick["ticks"] - late.n, tick.get("elapsed_ns", expected_ns) < expected_ns
    if not lacking and not fast:
        return None
    words = f"{tick['ticks']} periods were asked for, {late.n} are accounted for" if lacking else (
        f"{tick['ticks']} periods do not fit into {tick['elapsed_ns'] / 1e9:.3g} s"
    )  # fmt: skip
    return {"name": "unaccounted periods", "periods": lacking, "words": f"{words}: no figure of this run counts"}


def memory(spans: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Growth of the most memory held, after a tenth of the run."""
    if len(spans) <= WARM_SPANS:
        return None
    grown = [each["peak_kb"] for each in spans[WARM_SPANS - 1 :]]
    by_bytes, rises = (grown[-1] - grown[0]) * 1024, sum(b > a for a, b in pairwise(grown))
    if by_bytes <= 0:
        return None
    return {
        "name": "memory growth", "bytes": by_bytes, "rises": rises,
        "words": f"the runner's memory grew by {by_bytes:,} bytes in {_count(rises, 'step')} after it had warmed up",
    }  # fmt: skip


def change(key: str, course: Course) -> dict[str, Any] | None:
    if course.is_steady is not False:
        return None
    verb, more = "drifted", "over the run"
    if course.kind == "step":
        verb, more = "stepped", f"at {course.at:.0%} of the run"
    return {
        "name": course.kind, "of": key, "change": course.change,
        "words": f"{NAMES[key]} {verb} by {100 * course.change:+.1f} % {more}: "
        "the figures mix what it was and what it became",
    }  # fmt: skip


def speeds(modes: Modes | None) -> dict[str, Any] | None:
    if modes is None:
        return None
    fast_ms, slow_ms = modes.fast / 1e6, modes.slow / 1e6
    return {
        "name": "two speeds", "fast_ms": fast_ms, "slow_ms": slow_ms, "slow_share": modes.slow_share,
        "words": f"plans run at two speeds: {_ms(fast_ms)}, and {_ms(slow_ms)} in {100 * modes.slow_share:.0f} % "
        "of them (a clock that changes, or cores that differ)",
    }  # fmt: skip


def idle_gap(gap_s: float, penalty: tuple[float, float, float]) -> dict[str, Any]:
    """`penalty`: ms, with its interval, that a plan takes longer after `gap_s` of nothing."""
    by, low, high = penalty
    return {
        "name": "idle gap", "gap_s": gap_s, "penalty_ms": by, "interval_ms": [low, high],
        "words": f"after {gap_s:g} s of nothing a plan takes {_ms(by)} longer ({_ms(low)} to {_ms(high)})",
    }  # fmt: skip


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"

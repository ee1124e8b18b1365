"""Two runs of a clock, the second against the first, each difference with its confidence interval.

Blocks of neighbours are drawn together, so that what clusters counts once. Where both runs have the same rate and
length, they are drawn at the same places: what a machine does in every run at the same time cancels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .clock import CONFIDENCE, KEPT_SERIES, LONGEST_SERIES, QUANTILES
from .errors import EdgewmError
from .series import Series, difference
from .statistics import samples_needed

LEAST = 20  # samples of a run, for a spread that means anything
EXCEEDANCES = 10  # of a quantile, in each run: with fewer, 95 % intervals hold less often than that
RESAMPLES = 400
ALIKE = ("bundle_sha256", "device", "target", "mode", "precision", "rate_hz", "threads")
NAMES = {"plan_ms": "a plan", "act_late_ms": "lateness"}
MACHINE = ("cpu", "kernel", "governor", "power_mode", "preempt_rt")
WRITE = "write it with `edgewm profile BUNDLE --json FILE`"


def read_profile(file: Path) -> dict[str, Any]:
    """The JSON of an earlier `profile`. EdgewmError where it is something else, or kept no samples in order."""
    try:
        found = json.loads(Path(file).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise EdgewmError(f"no profile can be read there: {fault}", str(file), WRITE) from fault
    if not isinstance(found, dict) or not {"plan_ms", "rate_hz", "ticks", "series"} <= found.keys():
        raise EdgewmError("this is no profile", str(file), WRITE)
    lacking = [key for key in KEPT_SERIES if not found["series"].get(key)]
    if lacking:
        words = ", ".join(lacking)
        what = f"too many samples to keep of {words}" if found["ticks"] > LONGEST_SERIES else f"no samples of {words}"
        raise EdgewmError(what, str(file), f"{WRITE} again")
    return found


def compare(now: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`now` minus `other`: {quantity: {statistic: {by_ms, low_ms, high_ms, share}}}, misses, and what was not alike."""
    is_paired = (now["rate_hz"], now["ticks"]) == (other["rate_hz"], other["ticks"])
    found: dict[str, Any] = {}
    notes = ["one run of each: what changes from one start to the next is not in the intervals"]
    for key in KEPT_SERIES:
        pair = [Series(np.asarray(run["series"].get(key) or [], np.float64)) for run in (other, now)]
        if min(map(len, pair)) < LEAST:
            found[key] = None
            continue
        paired, least = is_paired and len(pair[0]) == len(pair[1]), min(map(len, pair))
        notes += [
            f"{NAMES[key]}: of the first {len(each):,} samples of {which} run"
            for which, each in zip(("the other", "this"), pair, strict=True)
            if len(each) == LONGEST_SERIES
        ]
        notes += [
            f"{NAMES[key]}, {told(name)}: withheld, it takes {needed(p):,} samples of each run"
            for name, p in QUANTILES.items()
            if least < needed(p)
        ]
        statistics = {"mean": np.mean} | {
            name: (lambda x, p=p: float(np.quantile(x, p))) for name, p in QUANTILES.items()
            if least >= needed(p)
        }  # fmt: skip
        found[key] = {name: _told(*pair, statistic, paired) for name, statistic in statistics.items()}
    return {
        "confidence": CONFIDENCE, "paired": is_paired, "other_bundle_sha256": other.get("bundle_sha256"),
        "differences": found, "misses": [other["misses"], now["misses"]], "not_alike": not_alike(now, other),
        "notes": notes,
    }  # fmt: skip


def needed(p: float) -> int:
    """Samples of each run for a difference of their p-quantiles."""
    return max(samples_needed(p, CONFIDENCE), round(EXCEEDANCES / min(p, 1 - p)))


def told(quantile: str) -> str:
    return quantile.replace("p999", "p99.9")


def _told(first: Series, second: Series, statistic: Any, is_paired: bool) -> dict[str, float | None]:
    by, interval = difference(first, second, statistic, is_paired, CONFIDENCE, RESAMPLES)
    low, high = interval or (None, None)
    before = float(statistic(first.x))
    return {"by_ms": by, "low_ms": low, "high_ms": high, "share": by / before if before else 0.0}


def not_alike(now: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What else was different, so that the difference may be due to it."""
    machines = [(run.get("environment") or {}) for run in (now, other)]
    pairs = [(key, now.get(key), other.get(key)) for key in ALIKE]
    pairs += [(key, machines[0].get(key), machines[1].get(key)) for key in MACHINE]
    short = lambda value: str(value)[:16]  # noqa: E731
    return [f"{key.replace('_', ' ')}: {short(a)}, it was {short(b)}" for key, a, b in pairs if a != b]


def sentences(found: Mapping[str, Any]) -> list[str]:
    """For people: a line a quantity and statistic."""
    lines = []
    for key, statistics in found["differences"].items():
        if statistics is None:
            lines.append(f"{NAMES[key]}: too few samples to compare")
        for name, each in (statistics or {}).items():
            if each["low_ms"] is None:
                lines.append(
                    f"{NAMES[key]}, {told(name)}: {each['by_ms']:+.3g} ms; withheld how surely: samples cluster"
                )
                continue
            verdict = "no difference beyond chance" if each["low_ms"] <= 0 <= each["high_ms"] else (
                "longer" if each["by_ms"] > 0 else "shorter"
            )  # fmt: skip
            lines.append(
                f"{NAMES[key]}, {told(name)}: {each['by_ms']:+.3g} ms "
                f"({each['low_ms']:+.3g} to {each['high_ms']:+.3g}), {100 * each['share']:+.1f} %: {verdict}"
            )
    return [*lines, *(f"not alike: {each}" for each in found["not_alike"]), *found["notes"]]

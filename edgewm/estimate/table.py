"""What `edgewm estimate` and `edgewm targets probe` print for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from ..charts import clipped
from ..console import number, table

SHOWN = 12  # kernels
LONGEST_NAME = 44  # of a kernel, so that its figures stand beside it in a narrow terminal


def estimate_table(result: Mapping[str, Any]) -> Group:
    """The interval, what binds, the kernels that take most, and what all of it rests on."""
    plan, whole = result["plan_ms"], result["plan_ms"]["point"]
    how = f"{result['threads']} threads" if result["place"] == "cpu" else f"{result['runtime']} kernels"
    where = f"{result['target']}, mode {result['mode']}, {result['precision']}, {result['place']}, {how}"
    made = table(f"{result['subject']} on {where}", "kernel", "times", "ms", "share", "bound by")
    rows = result["kernels"]
    for row in rows[:SHOWN]:
        name, share = clipped(row["name"], LONGEST_NAME), _percent(row["ms"] / whole)
        made.add_row(name, number(row["calls"]), number(row["ms"]), share, row["bound"])
    if len(rows) > SHOWN:
        rest = sum(row["ms"] for row in rows[SHOWN:])
        made.add_row(f"and {len(rows) - SHOWN} more", "", number(rest), _percent(rest / whole), "")
    spent = ", ".join(f"{limit} {_percent(share)}" for limit, share in result["shares"].items() if share >= 0.005)
    lines = [
        f"estimated {number(whole, 'ms')}, {number(plan['low'])} to {number(plan['high'], 'ms')} "
        f"({coverage_words(result['coverage'])})",
        f"bound by {result['bound']}: {spent}",
        *(f"OUTSIDE: {reason}" for reason in result["outside"]),
        *(f"note: {note}" for note in result["notes"]),
        "rests on",
        *(f"  {source}" for source in result["provenance"]),
    ]
    return Group(made, Text("\n".join(lines)))


def coverage_words(coverage: float | None) -> str:
    """What an interval claims."""
    if coverage is None:
        return "nobody has checked this interval on this board"
    return f"{100 * coverage:.0f} % of what is measured"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def probe_table(facts: Mapping[str, Any]) -> Group:
    """Peaks, what threads cost each other, and the price of each count."""
    from .counts import COUNTS

    peaks = table(f"{facts['machine']['cpu']}, {facts['machine']['isa']} kernels", "peak", *(
        f"{n} thread{'s' if n != '1' else ''}" for n in facts["peaks"]
    ))  # fmt: skip
    for name in facts["peaks"]["1"]:
        peaks.add_row(name.replace("_", " "), *(number(found[name]) for found in facts["peaks"].values()))
    for name, value in facts["caches"].items():
        peaks.add_row(name.replace("_", " "), number(value))
    prices = table(f"one of each, over {number(facts['calls_timed'])} timed calls", "count", "ns", "limit", "what")
    for name, ns in facts["costs_ns"].items():
        prices.add_row(name, number(ns), COUNTS[name][0], COUNTS[name][1])
    together, late = facts["threads"], facts["wake_up_us"]
    lines = [
        *gpu_lines(facts["gpu"]),
        f"typical error of a call {_percent(facts['sigma'])}",
        f"from region to region {number(together['step_ns'], 'ns')}; {together['tried']} threads: "
        f"{number(together['meet_ns'], 'ns')}, a plan that wakes them loses "
        f"{number((together['wake_ns'] + together['late_ns']) / 1e3, 'us')}",
        f"a sleeper wakes {number(late['p50'], 'us')} late at the median, {number(late['max'], 'us')} at most",
    ]
    return Group(peaks, prices, Text("\n".join(lines)))


def gpu_lines(gpu: Mapping[str, Any]) -> list[str]:
    """What was measured of a GPU, or why nothing was."""
    from .machine import OF_GPU

    name = f"{gpu['name']}, sm_{gpu['sm']}" if "name" in gpu else "no GPU"
    if "why" in gpu:
        return [f"{name}: not measured: {gpu['why']}"]
    return [f"{name}: {what} {number(gpu[key], unit)}" for key, (what, unit) in OF_GPU.items() if gpu[key] is not None]

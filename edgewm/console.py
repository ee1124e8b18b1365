"""What the verbs print for people: one rich table a result, from the same JSON that `--json` writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Result = Mapping[str, Any]
SLOW_S = 2.0  # a bar appears on what takes longer


def number(value: Any, unit: str = "", digits: int = 3) -> str:
    """A figure with its unit; a dash where it was withheld."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{text} {unit}".rstrip()


def size(value: int | None) -> str:
    """Bytes in the largest binary unit that leaves at least one."""
    if value is None:
        return "-"
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value} B"


def table(title: str, *columns: str) -> Table:
    look = {"title_justify": "left", "box": SIMPLE, "padding": (0, 1, 0, 0), "header_style": "bold"}
    made = Table(title=title, show_header=any(columns), **look)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    return made


def build_table(result: Result) -> Table:
    made = table("would build" if result.get("sha256") is None else "built", "", "")
    flops = result.get("flops") or {}
    for name, text in (
        ("target", f"{result['target']}, mode {result['mode']}"),
        ("precision", str(result["precision"])),
        ("bundle", str(result.get("bundle") or "-")),
        ("size", size(result.get("bytes"))),
        ("arena", size(result.get("arena_bytes"))),
        ("kernel calls per plan", number(result.get("calls"))),
        ("operations, upstream graph", number(flops.get("upstream"), "FLOP")),
        ("operations, exact program", number(flops.get("exact"), "FLOP")),
        ("took", number(result.get("seconds"), "s")),
    ):
        made.add_row(name, text)
    return made


def profile_table(result: Result) -> Table:
    title = f"{result['device']}: {result['target']}, mode {result['mode']}, {number(result['rate_hz'], 'Hz')}"
    made = table(f"{title}, {number(result['ticks'])} ticks", "milliseconds", "p50", "p99", "p99.9", "max")
    for name, key in (("action late", "act_late_ms"), ("plan", "plan_ms"), ("age of the plan", "plan_age_ms")):
        row = result.get(key) or {}
        made.add_row(name, *(number(row.get(p)) for p in ("p50", "p99", "p999", "max")))
    rate, misses, upper = (result.get(k) for k in ("plans_per_s", "misses", "miss_rate_upper"))
    made.caption = f"{number(rate)} plans/s; {number(misses)} misses, rate below {number(upper)}"
    made.caption_justify = "left"
    return made


def validate_table(result: Result) -> Table:
    verdict = {True: "passed", False: "failed", None: "not enough evidence"}
    made = table(f"gates: {verdict[result['passed']]}", "gate", "value", "limit", "")
    for gate in result.get("gates", ()):
        made.add_row(gate["name"], number(gate["value"], digits=4), number(gate["limit"]), verdict[gate["passed"]])
    loop = result.get("closed_loop") or {}
    for side in ("full", "compressed"):
        if loop.get(side):
            made.add_row(f"success, {side} model", f"{loop[side]['successes']} of {loop[side]['episodes']}", "", "")
    return made


def plain_table(title: str, result: Result) -> Table:
    """A flat result, one row a key; nested values as they are."""
    made = table(title, "", "")
    for key, value in result.items():
        if key != "schema_version":
            made.add_row(key.replace("_", " "), number(value))
    return made


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None] | None]:
    """`(stage, fraction)` -> a bar on stderr after two seconds, where a person watches; None where nobody does."""
    if not sys.stderr.isatty():
        yield None
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    )
    task, begun, shown = bar.add_task("", total=1.0), time.monotonic(), False

    def report(stage: str, fraction: float) -> None:
        nonlocal shown
        if not shown and time.monotonic() - begun > SLOW_S:
            bar.start()
            shown = True
        bar.update(task, description=stage, completed=fraction)

    try:
        yield report
    finally:
        if shown:
            bar.stop()

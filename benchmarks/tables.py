"""Figures of README and benchmarks/README, written from `benchmarks/results/*.jsonl`: nobody types a number there.

    python benchmarks/tables.py            rewrite the blocks between <!-- table: NAME --> and <!-- end -->
    python benchmarks/tables.py --check    exit with 1 where a page differs

A line of a results file is one JSON object with `table` (the block's name), `machine` (of its file's name) and the
columns; the newest line of the same `name` in a file wins, so results are appended and never edited. Lines that name
the `run` they are of stand with lines of that run alone: of a table the newest run is shown. Of the table of devices
every board of targets/ has a row, empty until somebody sends what its kit printed (`take_kit.py`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import take_kit

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_COLUMNS = ("table", "schema_version", "command", "run", "basis")
NONE_YET = "_Not measured yet: a script of `benchmarks/` fills this in._"

Row = Mapping[str, Any]


def rows(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every current row: of those with the same table, machine and name the last one written."""
    current: dict[tuple, dict[str, Any]] = {}
    newest: dict[tuple, str | None] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            if line.strip():
                row = {"machine": file.stem, **json.loads(line)}
                current[row["table"], row["machine"], row["name"]] = row
                newest[row["table"], row["machine"]] = row.get("run")
    return [row for (table, machine, _), row in current.items() if row.get("run") == newest[table, machine]]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown(table: Iterable[Row]) -> str:
    """Rows as a Markdown table; columns in order of first appearance, `machine` only where there are several."""
    table = list(table)
    if not table:
        return NONE_YET
    columns = [key for key in dict.fromkeys(k for row in table for k in row) if key not in NOT_COLUMNS]
    if len({row["machine"] for row in table}) == 1:
        columns.remove("machine")
    lines = ["| " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in table]
    if commands := sorted({row["command"] for row in table if row.get("command")}):
        machines = ", ".join(sorted({row["machine"] for row in table}))
        is_estimate = all(row.get("basis") == "estimated" for row in table)
        how = "Estimated from a board's facts, not measured, with" if is_estimate else f"Measured on {machines} with"
        lines += ["", f"{how} {', '.join(f'`{c}`' for c in commands)}."]
    return "\n".join(lines)


def generated(text: str, found: Iterable[Row]) -> str:
    """A page's text with each block rebuilt."""
    found = list(found)
    found = [row for row in found if row["table"] != take_kit.TABLE] + take_kit.table_rows(found)
    return BLOCK.sub(
        lambda block: block[1] + markdown(row for row in found if row["table"] == block["name"]) + "\n" + block[3], text
    )


def main(arguments: list[str]) -> int:
    found, differing = rows(), 0
    for page in PAGES:
        now = page.read_text()
        wanted = generated(now, found)
        if now != wanted and "--check" in arguments:
            differing = 1
        elif now != wanted:
            page.write_text(wanted)
    return differing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

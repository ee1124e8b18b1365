"""Take in what a board's own kit printed: check it against the bundle, append a row to the results of that board.

    sh kit.sh >board.json                                      on the board, in the bundle's directory
    python benchmarks/take_kit.py board.json --bundle orin/    here; --name says what the bundle is
    python benchmarks/tables.py                                README's table `devices`, one row a board

Rows lie in benchmarks/results/<target>.jsonl like every other; a board that nobody has sent has a row without figures.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgewm.errors import EdgewmError
from edgewm.kit import board_of, read
from edgewm.target import targets

RESULTS = Path(__file__).resolve().parent / "results"
TABLE = "devices"
COLUMNS = (
    "jetpack", "power_mode", "clocks", "bundle", "rate_hz", "plan_p50_ms", "plan_p99_ms", "act_late_p99_ms", "misses",
    "source", "bundle_sha256",
)  # fmt: skip


def row_of(found: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The results file's name, and its row, of what `edgewm.kit.read` returns."""
    environment = found["environment"]
    board = board_of(environment)
    title = board.title if board else found["device"]
    machine = board.name if board else re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    limits = environment["clock_limits_hz"]
    clocks = None if not limits["max"] else "held" if limits["min"] == limits["max"] else "free"
    bundle = f"{name} {found['precision']}"
    return machine, {
        "table": TABLE, "name": f"{title}, {found['mode'] or 'as it is'}, {bundle}", "board": title,
        "jetpack": environment["jetpack"] or environment["l4t"], "power_mode": found["mode"], "clocks": clocks,
        "bundle": bundle, "rate_hz": found["rate_hz"], "plan_p50_ms": found["plan_ms"]["p50"],
        "plan_p99_ms": found["plan_ms"]["p99"], "act_late_p99_ms": found["act_late_ms"]["p99"],
        "misses": f"{found['misses']} of {found['ticks']}", "source": found["source"],
        "bundle_sha256": found["bundle_sha256"][:16], "degraded": [d["what"] for d in environment["degraded"]],
    }  # fmt: skip


def table_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of README's table `devices`: what was sent, and an empty row for each board of targets/ that nobody has."""
    sent = [row for row in rows if row["table"] == TABLE]
    shown = []
    titles = [board.title for board in targets().values()]
    for title in [*titles, *sorted({row["board"] for row in sent} - set(titles))]:
        own = [row for row in sent if row["board"] == title] or [{}]
        named = {"table": TABLE, "machine": TABLE, "board": title}
        shown += [{**named, **{column: row.get(column) for column in COLUMNS}} for row in own]
    return shown


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", type=Path, help="what `sh kit.sh` printed")
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle it came from")
    parser.add_argument("--name", help="what the bundle is  [default: its directory's name]")
    given = parser.parse_args(arguments)
    try:
        machine, row = row_of(read(given.json, given.bundle), given.name or given.bundle.resolve().name)
    except EdgewmError as fault:
        print(fault, file=sys.stderr)
        return 2
    with (RESULTS / f"{machine}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{row['name']}: appended to {RESULTS / machine}.jsonl; now: make tables")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

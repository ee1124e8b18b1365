"""Where figures go: appended to `benchmarks/results/<machine>.jsonl`, which `tables.py` reads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from step import machine_name

RESULTS = Path(__file__).resolve().parent / "results"


def append(rows: Iterable[Mapping[str, Any]], folder: Path = RESULTS) -> Path:
    """One line for each row at the end of this machine's file; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{machine_name()}.jsonl"
    with file.open("a") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def add_flags(parser: argparse.ArgumentParser) -> None:
    """`--json FILE` and `--no-record`, the same for every benchmark."""
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="append the figures")


def finish(rows: list[Mapping[str, Any]], given: argparse.Namespace) -> None:
    """Do with the rows what the flags say."""
    if given.json:
        given.json.write_text(json.dumps({"schema_version": 1, "rows": rows}, indent=1) + "\n")
    if given.record:
        append(rows)

"""The board kit: `kit.sh` in a bundle, which a board without Python runs, and what it prints, read and checked.

Anybody may send such a JSON. It counts only where it is of this very bundle, whole and of one piece, and where the
board gave the bundle's recorded answers bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .clock import LONGEST_KEPT, SAMPLES, summarise
from .device.place import COPIED, bundle_machine, golden_said
from .environment import SCRIPT, measured
from .errors import EdgewmError
from .manifest import read_manifest
from .power import another_mode, mode_there
from .target import Target, targets

SCHEMA_VERSION = 1
OWN = "rate_hz=50 threads=1 # of this bundle"
AS_RECORDED = re.compile(r"golden \d+: entry \w+, \d+ results, ")
NUMBERS = ("rate_hz", "plans_per_s", "elapsed_ns", "first_plan_ns")
KINDS: dict[str, type | tuple[type, ...]] = {
    "sha256": dict, "golden.status": int, "golden.said": str, "tick.scheduler": dict, "tick.stats": dict,
    "tick.mode": str,
    **{f"environment.{when}": str for when in ("before", "during", "after")},
    **{f"tick.{name}": int for name in ("threads", "ticks", "misses", "plans", "plan_error")},
    **{f"tick.{name}": (int, float) for name in NUMBERS},
    **{f"tick.{name}": dict for name in SAMPLES.values()},
}  # fmt: skip
SEND = "run `sh kit.sh >board.json` in the bundle's directory on the board, and send that file as it is"


def text(rate_hz: float, threads: int) -> str:
    """kit.sh for a bundle with this control rate and these threads."""
    script = SCRIPT.read_text()
    assert OWN in script
    return script.replace(OWN, f"rate_hz={rate_hz!r} threads={threads} # of this bundle")


def read(file: Path, bundle: Path) -> dict[str, Any]:
    """A kit's JSON in the fields of `edgewm profile --json`. EdgewmError for whatever makes it not count."""
    given = _load(file)
    where = str(file)
    for name in COPIED:
        here, there = hashlib.sha256((bundle / name).read_bytes()).hexdigest(), given["sha256"].get(name)
        if here != there:
            raise EdgewmError(
                f"it timed another bundle: {name} there has SHA-256 {str(there)[:16]}, here {here[:16]}", where,
                f"give the bundle it came from instead of {bundle}",
            )  # fmt: skip
    if given["golden"]["status"] != 0:
        wrong = (line for line in given["golden"]["said"].splitlines() if not AS_RECORDED.match(line))
        said = next(wrong, "nothing")
        raise EdgewmError(
            f"the board does not give the bundle's golden answers: {said}", where,
            "a wrong answer is not timed: validate the bundle here, then check the board's memory and clocks",
        )  # fmt: skip
    tick, texts = given["tick"], given["environment"]
    try:
        faults = inconsistencies(tick)
        environment = measured(texts["before"], texts["during"], texts["after"], tick["scheduler"]["refused"])
        figures = {} if faults else summarise(tick)
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError) as fault:
        raise EdgewmError(f"a field is not of its kind: {fault}", where, SEND) from fault
    if faults:
        raise EdgewmError(f"its figures contradict each other: {faults[0]}", where, SEND)
    if environment["machine"] != bundle_machine(bundle):
        raise EdgewmError(
            f"the bundle is for {bundle_machine(bundle)}, the board is {environment['machine']}", where,
            "an emulator is no clock: run the kit on the board itself",
        )  # fmt: skip
    manifest = read_manifest(bundle)
    mode = mode_there(manifest.target, environment)
    if other := another_mode(manifest, mode):
        figures["findings"].insert(0, other)
    return {
        "schema_version": SCHEMA_VERSION,
        "device": environment["board"] or environment["cpu"] or environment["machine"],
        "source": "measured-on-device",
        "golden": golden_said(given["golden"]["said"]),
        "target": manifest.target, "mode": mode, "built_for_mode": manifest.mode,
        "precision": manifest.precision, "bundle_sha256": manifest.sha256, "rate_hz": float(tick["rate_hz"]),
        "threads": int(tick["threads"]), **figures, "environment": environment,
    }  # fmt: skip


def _load(file: Path) -> Mapping[str, Any]:
    """The JSON, with every field that is read later. EdgewmError where it is something else."""
    try:
        given = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as fault:
        raise EdgewmError(f"no JSON can be read there: {fault}", str(file), SEND) from fault
    fields = {
        "": ("sha256", "golden", "environment", "tick"), "golden": ("status", "said"),
        "environment": ("before", "during", "after"),
        "tick": ("rate_hz", "threads", "ticks", "misses", "plans", "plans_per_s", "elapsed_ns", "plan_error",
                 "first_plan_ns", "scheduler", "stats", "mode", *SAMPLES.values()),
    }  # fmt: skip
    if not isinstance(given, dict) or (given.get("schema_version"), given.get("kit")) != (SCHEMA_VERSION, 1):
        raise EdgewmError("it is not what this version's kit prints", str(file), SEND)
    for outer, names in fields.items():
        inside = given[outer] if outer else given
        lacking = [name for name in names if not isinstance(inside, dict) or name not in inside]
        if lacking:
            raise EdgewmError(f"it lacks {', '.join(lacking)}", f"{file} {outer}".strip(), SEND)
    for path, kind in KINDS.items():
        *outer, name = path.split(".")
        value = given[outer[0]][name] if outer else given[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise EdgewmError(f"a field is not of its kind: {path} is {value!r:.40}", str(file), SEND)
    if not 0 < given["tick"]["rate_hz"] < float("inf"):
        raise EdgewmError(f"it ran at {given['tick']['rate_hz']} Hz", str(file), SEND)
    return given


def inconsistencies(tick: Mapping[str, Any]) -> list[str]:
    """What cannot be so in one run of edgewm-tick."""
    found = []
    period_ns = 1e9 / tick["rate_hz"] if tick["rate_hz"] > 0 else float("inf")
    for name in SAMPLES.values():
        histogram = tick[name]
        tops, counts = [top for top, _ in histogram["buckets"]], [n for _, n in histogram["buckets"]]
        if sum(counts) != histogram["count"] or min(counts, default=1) <= 0:
            found.append(f"{name} counts {histogram['count']} samples, its buckets hold {sum(counts)}")
        elif tops and (tops != sorted(set(tops)) or not histogram["min"] <= histogram["max"] <= tops[-1]):
            found.append(f"{name}'s buckets are not in order")
        series, kept = histogram.get("series", ()), min(histogram["count"], LONGEST_KEPT)
        is_whole, largest = kept == histogram["count"], max(series, default=0)
        if series and (len(series) != kept or largest > histogram["max"] or (is_whole and largest != histogram["max"])):
            found.append(f"{name}'s series is not that of its buckets")
    late = tick["act_late_ns"]
    if late["count"] != tick["ticks"]:
        found.append(f"{tick['ticks']} ticks, but {late['count']} actions accounted for")
    over = sum(n for top, n in late["buckets"] if top < period_ns)
    if late["buckets"] and late["count"] - over < tick["misses"]:
        found.append(f"{tick['misses']} misses, but only {late['count'] - over} actions were a period late")
    if tick["elapsed_ns"] < (tick["ticks"] - 1) * period_ns:
        seconds = tick["elapsed_ns"] / 1e9
        found.append(f"{tick['ticks']} periods at {tick['rate_hz']} Hz do not fit into {seconds:.3g} s")
    if tick["plans"] != tick["plan_ns"]["count"] or tick["plan_error"] != 0:
        found.append(f"{tick['plans']} plans, {tick['plan_ns']['count']} timed, error {tick['plan_error']}")
    return found


def board_of(environment: Mapping[str, Any]) -> Target | None:
    """The board of targets/ whose identity the machine's device tree names; None for any other machine."""
    shown = {found for word in environment["board_ids"] for found in re.findall(r"p\d{4}-\d{4}", word)}
    for board in targets().values():
        own = identities(board.boards)
        if own & (shown | {name.partition("-")[0] for name in shown}):
            return board
    return None


def identities(boards: str) -> set[str]:
    """`p3767-0003; devkit 0005` -> {p3767-0003, p3767-0005}; a board without a number stands for all of its kind."""
    found, kind = set(), ""
    for whole, number, alone in re.findall(r"(p\d{4})(?:-(\d{4}))?|\b(\d{4})\b", boards):
        kind = whole or kind
        found.add("-".join(filter(None, (kind, number or alone))))
    return found

"""report.html and report.json beside a bundle: what it is, what the clock and the judge said, and what it imagines.

Each verb adds its part (`add`); parts measured on other bytes are dropped. The page holds everything it shows: no
script, no font, no link.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from . import charts
from .clock_page import clock
from .console import size
from .errors import EdgewmError
from .judge_page import judge
from .manifest import Manifest, read_manifest
from .page import STYLE

SCHEMA_VERSION = 1
PARTS = ("profile", "validate", "run", "futures")
Parts = Mapping[str, Any]


def add(bundle: Path, part: str, result: Mapping[str, Any]) -> Path:
    """Put one part (of PARTS) into the bundle's report; its page's path. EdgewmError where it cannot be written."""
    bundle = Path(bundle)
    manifest = read_manifest(bundle)
    file = bundle / "report.json"
    old = _read(file)
    kept = {k: old[k] for k in PARTS if k in old and old.get("bundle_sha256") == manifest.sha256}
    parts = {**kept, part: dict(result)}
    made = {"schema_version": SCHEMA_VERSION, "bundle_sha256": manifest.sha256, **parts}
    _write(file, json.dumps(made, indent=1, allow_nan=False) + "\n")
    return _write(bundle / "report.html", page(manifest, parts))


def _read(file: Path) -> Mapping[str, Any]:
    """What a report holds; nothing where there is none, or it is not whole."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, text: str) -> Path:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    except OSError as fault:
        beside.unlink(missing_ok=True)
        raise EdgewmError(
            f"the report cannot be written: {fault.strerror}", str(file), "make the bundle directory writable"
        ) from fault
    return file


# --------------------------------------------------------------------------------------------------------------- page


def page(manifest: Manifest, parts: Parts) -> str:
    """The whole page as one text."""
    sections = [
        head(manifest, parts),
        imagined(parts.get("futures")),
        clock(parts.get("profile"), manifest),
        judge(parts.get("validate")),
        acting(parts.get("run")),
        provenance(manifest, parts),
    ]
    title = f"{manifest.raw.get('family', 'world model')} on {manifest.target}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def head(manifest: Manifest, parts: Parts) -> str:
    p = manifest.planner
    budget = f"{p.samples} samples × {p.iterations} iterations × {p.horizon} actions, {p.elites} elites"
    facts = {
        "target": f"{manifest.target}, {manifest.mode}",
        "precision": manifest.precision,
        "planner": f"{p.kind.upper()}: {budget}",
        "control rate": f"{manifest.rate_hz:g} Hz",
        "plays": f"{p.commit_steps} of the {p.horizon * p.action_block} periods it plans",
        manifest.file: f"sha256 {manifest.sha256[:16]}…",
    }
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f"<header><h1>A world model, compiled</h1>{verdict(parts)}<dl>{rows}</dl></header>"


def verdict(parts: Parts) -> str:
    """One sentence a person can act on."""
    found = parts.get("validate")
    if found is None:
        state, words = "none", "Not judged yet: nothing says that it plans like the full model."
    else:
        gates = found["gates"]
        failed = [g["name"].replace("_", " ") for g in gates if g["passed"] is False]
        state = {True: "good", False: "bad", None: "none"}[found["passed"]]
        words = {
            True: f"It plans like the full model: all {len(gates)} gates passed."
            if "plan" in found.get("suites", ("plan",))
            else f"It passed {', '.join(found['suites'])}; nothing says yet that it plans like the full model.",
            False: f"It does not plan like the full model: {', '.join(failed)} failed.",
            None: "Not enough evidence to say whether it plans like the full model.",
        }[found["passed"]]
    timed = parts.get("profile")
    if timed:
        words += " " + _clock_sentence(timed)
    return f'<p class="verdict {state}">{escape(words)}</p>'


def _clock_sentence(timed: Mapping[str, Any]) -> str:
    plan = timed["plan_ms"]
    which, value = next(((k, plan[k]) for k in ("p99", "p50", "max") if plan.get(k) is not None), ("", None))
    missed = f"{timed['misses']} of {timed['ticks']:,} periods missed at {timed['rate_hz']:g} Hz"
    return missed + "." if value is None else f"A plan takes {_words(which)} {charts.short(value)} ms; {missed}."


def _words(quantile: str) -> str:
    return {"p99": "at p99 at most", "p50": "at the median at most", "max": "at most (seen)"}[quantile]


def imagined(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    names = {"real": "what came", "full": "full model imagined", "compressed": "this bundle imagined"}
    columns = len(found["seconds"])
    times = "".join(f"<span>{'now' if s == 0 else f'+{s:g} s'}</span>" for s in found["seconds"])
    body = f'<div class="times" style="--n:{columns}"><b></b>{times}</div>'
    for key, name in names.items():
        frames = "".join(
            f'<img alt="{name}, step {i}" src="data:image/png;base64,{p}">' for i, p in enumerate(found[key])
        )
        body += f'<div class="film {key}" style="--n:{columns}"><b>{name}</b>{frames}</div>'
    return (
        "<section><h2>What it imagines</h2><p>From the first picture alone, under the same actions. A latent is shown "
        f"as the picture, out of a gallery of this scene, whose latent lies nearest.</p>{body}</section>"
    )


def acting(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["wilson_95"]
    return (
        f"<section><h2>Acting</h2><p>{found['successes']} of {found['episodes']} episodes reached the goal in "
        f"<b>{escape(found['env'])}</b> (95 % interval {100 * low:.0f} to {100 * high:.0f} %), planning in "
        f"{charts.short(found['plan_ms']['p50'])} ms at the median.</p></section>"
    )


def provenance(manifest: Manifest, parts: Parts) -> str:
    machine = (parts.get("profile") or {}).get("environment") or {}
    known = {k: _plain(v, k) for k, v in machine.items() if k not in ("degraded", "over_time")}
    unknown = [f"{each['what'].replace('_', ' ')} ({each['why']})" for each in machine.get("degraded", ())]
    rows = "".join(
        f"<div><dt>{escape(UNIT.sub('', k).replace('_', ' '))}</dt><dd>{escape(v)}</dd></div>"
        for k, v in known.items() if v
    )  # fmt: skip
    lacks = f"<p class='note'>Could not be had: {escape(', '.join(unknown))}.</p>" if unknown else ""
    where = f"<h2>Where it was measured</h2><dl>{rows}</dl>{lacks}" if machine else ""
    bound = f"<p class='note'>Bound to {manifest.file}, sha256 <code>{manifest.sha256}</code>.</p>"
    return f"<footer>{where}{bound}</footer>"


UNIT = re.compile("_(bytes|hz|us|c)$")


def _plain(value: Any, name: str) -> str:
    """A fact of a machine for people, in the unit that its name ends with; empty where nothing is known."""
    if value is None or value is False:
        return ""
    if isinstance(value, Mapping):
        told = {key: _plain(each, name) for key, each in value.items()}
        return ", ".join(f"{key} {text}" for key, text in told.items() if text)
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, (_plain(each, name) for each in value)))
    if value is True or not isinstance(value, int | float):
        return "yes" if value is True else str(value)
    unit = UNIT.search(name)
    if unit is None:
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    told = {"bytes": size(int(value)), "hz": f"{value / 1e6:,.0f} MHz", "us": f"{value:g} us", "c": f"{value:g} °C"}
    return told[unit[1]]

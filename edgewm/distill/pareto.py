"""Every candidate as (time of a plan, fidelity, success): `pareto.json`, and `pareto.html` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import charts
from ..page import STYLE
from .targets import write_bytes

JSON, HTML = "pareto.json", "pareto.html"
Row = Mapping[str, Any]
COLUMNS = ("name", "tick_ms", "source", "spearman_min", "elite_overlap", "regret", "success", "state")


def row(name: str, tick_ms: float | None, source: str, state: str, **figures: Any) -> dict[str, Any]:
    """One candidate. `source` of its time: estimated or measured; `state`: considered, tried, chosen, teacher or
    variant, the chosen student in another precision; figures that nobody measured are None."""
    known = {key: figures.get(key) for key in ("spearman_min", "elite_overlap", "regret", "success")}
    return {"name": name, "tick_ms": tick_ms, "source": source, **known, "state": state}


def front(rows: Sequence[Row], figure: str = "elite_overlap") -> list[str]:
    """Names of those that no other beats in both time and `figure`, fastest first."""
    known = sorted(
        (r for r in rows if r[figure] is not None and r["tick_ms"] is not None),
        key=lambda r: (r["tick_ms"], -r[figure]),
    )
    best, out = float("-inf"), []
    for r in known:
        if r[figure] > best:
            best = r[figure]
            out.append(r["name"])
    return out


def write(folder: Path, rows: Sequence[Row], title: str) -> None:
    """Both files, whole or not at all."""
    found = {"schema_version": 1, "title": title, "rows": list(rows), "front": front(rows)}
    write_bytes(folder / JSON, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    write_bytes(folder / HTML, page(found).encode())


def page(found: Mapping[str, Any]) -> str:
    """A drawing of what was judged, and a table of all."""
    judged = [r for r in found["rows"] if r["elite_overlap"] is not None and r["tick_ms"] is not None]
    drawing = charts.card("Elites kept, by time of a plan", _drawing(judged, found["front"])) if judged else ""
    heads = "".join(f"<th>{escape(c.replace('_', ' '))}</th>" for c in COLUMNS)
    body = "".join(
        "<tr>"
        + f"<th>{escape(str(r['name']))}</th>"
        + "".join(f"<td>{_cell(r[c])}</td>" for c in COLUMNS[1:])
        + "</tr>"
        for r in sorted(found["rows"], key=lambda r: r["tick_ms"] or 0.0)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(found['title'])}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(found['title'])}</h1><p>Nobody beats in both time and elites kept: "
        f'{escape(", ".join(found["front"]) or "nothing was judged yet")}.</p><div class="cards">{drawing}</div>'
        f'<table class="figures"><tr>{heads}</tr>{body}</table></main></body></html>\n'
    )


def _drawing(rows: Sequence[Row], best: Sequence[str]) -> str:
    low, high, ticks_x = charts.scale(0.0, max(r["tick_ms"] for r in rows))
    bottom, top, ticks_y = charts.scale(min(0.0, *(r["elite_overlap"] for r in rows)), 1.0)

    def at_x(v: float) -> float:
        return charts.LEFT + (v - low) / (high - low) * (charts.WIDTH - charts.LEFT - charts.RIGHT)

    def at_y(v: float) -> float:
        height = charts.HEIGHT - charts.BOTTOM - charts.TOP
        return charts.HEIGHT - charts.BOTTOM - (v - bottom) / (top - bottom) * height

    out = [charts.tick_x(at_x(v), charts.short(v)) for v in ticks_x]
    out += [charts.tick_y(at_y(v), charts.short(v)) for v in ticks_y]
    for r in rows:
        part = 2 if r["name"] in best else 0
        out.append(
            f'<circle class="dot part{part}" cx="{at_x(r["tick_ms"]):.1f}" cy="{at_y(r["elite_overlap"]):.1f}" r="4">'
            f"<title>{escape(str(r['name']))}</title></circle>"
        )
    return charts.figure(out, "ms a plan", "elites kept")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))

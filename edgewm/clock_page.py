"""The clock's part of the report: figures and what they claim, what stood out, where time goes, what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import charts, clock_charts
from .charts import card
from .clock import NO_RATE, judged_words
from .compare import sentences
from .device import LOCAL
from .kernel_times import kernel_lines
from .manifest import Manifest

ROWS = (("a plan takes", "plan_ms"), ("an action is late by", "act_late_ms"), ("a plan's age", "plan_age_ms"))
ROOFS = "Area: share of a plan. Roofs: measured here; above the slope is what stays in caches."
TIMES = 12  # of a chart over the run
QUANTILES = ("p50", "p99", "p999", "max")


def clock(timed: Mapping[str, Any] | None, manifest: Manifest) -> str:
    """The section as HTML; an older profile may lack what later ones have."""
    if timed is None:
        return "<section><h2>The clock</h2><p class='none'>Not profiled yet.</p></section>"
    if timed.get("backend"):
        return f"<section><h2>The clock</h2>{figures(timed)}<p class='note'>{escape(of_backend(timed))}</p></section>"
    return (
        f"<section><h2>The clock</h2>{findings(timed.get('findings'))}{figures(timed)}"
        f"<p class='note'>{escape(' '.join(notes(timed)))}</p>{headroom(timed.get('headroom'))}"
        f"<div class='cards'>{''.join(cards(timed, manifest))}</div>{against(timed.get('against'))}"
        f"{_kernels(timed.get('kernels'))}</section>"
    )


def findings(found: Sequence[Mapping[str, Any]] | None) -> str:
    if not found:
        return ""
    rows = "".join(f"<li><b>{escape(each['name'])}</b>: {escape(each['words'])}.</li>" for each in found)
    return f"<ul class='findings'>{rows}</ul>"


def figures(timed: Mapping[str, Any]) -> str:
    def row(name: str, values: Mapping[str, float | None]) -> str:
        cells = "".join(f"<td>{_ms(values[q]) if q in values else ''}</td>" for q in QUANTILES)
        return f"<tr><th>{escape(name)}</th>{cells}</tr>"

    rows = "".join(row(name, timed[key]) for name, key in ROWS)
    if timed.get("jitter_ms"):
        rows += row("actions are apart by the period, but for", timed["jitter_ms"])
    loaded = timed.get("loaded")
    if loaded:
        rows += "".join(row(f"{name}, {loaded['load']} busy", loaded[key]) for name, key in ROWS[:2])
    after = (timed.get("phases") or {}).get("after_idle")
    if after:
        rows += row(f"a plan after {after['gap_s']:g} s of nothing", after["plan_ms"])
    for key, name in (("cold_start", "cold start to first action"), ("first_plan", "the first plan")):
        found = (timed.get("phases") or {}).get(key)
        rows += row(name, {"max": found["max_ms"]}) if found else ""
    head = "<tr><th></th><th>p50</th><th>p99</th><th>p99.9</th><th>max</th></tr>"
    return f"<table class='figures'>{head}{rows}</table>"


def notes(timed: Mapping[str, Any]) -> list[str]:
    needs = "; ".join(
        f"{_quantile(k)} needs {v['needs']:,} (has {v['samples']:,})" for k, v in timed["withheld"].items()
    )
    upper, row, fraction = timed["miss_rate_upper"], timed.get("misses_in_a_row"), timed.get("peak_fraction")
    worth, period_ppm = timed.get("effective_ticks"), timed.get("period_error_ppm")
    of = f", worth {charts.short(worth)} independent ones" if worth and worth < timed["ticks"] else ""
    device = timed.get("device", LOCAL)
    where = "here" if device == LOCAL else f"on {device}"
    made = [
        f"Measured {where}, paced at {timed['rate_hz']:g} Hz, {timed['ticks']:,} periods{of}, {timed['threads']} thread"
        f"{'s' if timed['threads'] != 1 else ''}.",
        "Its power mode is not known." if "mode" in timed and timed["mode"] is None else "",
        f"Missed {timed['misses']}{f', {row} in a row' if row and row > 1 else ''}: "
        + (NO_RATE if upper is None else f"at most {charts.short(100 * upper)} % of periods with 95 % confidence")
        + ".",
        "" if period_ppm is None else f"The mean time between actions is {period_ppm:+.3g} ppm off the nominal period.",
        f"{judged_words(timed)}." if judged_words(timed) else "",
        "Quantiles are upper 95 % bounds counted from the intended release; max is the largest seen.",
        f"{charts.short(timed['plans_per_s'])} plans a second." if timed.get("plans_per_s") else "",
        f"{100 * fraction:.0f} % of this machine's measured peak." if fraction else "",
        f"Withheld: {needs}." if needs else "",
    ]
    return [note for note in made if note]


def of_backend(timed: Mapping[str, Any]) -> str:
    """What the figures of a loop in Python mean."""
    return (
        f"Measured here: {timed['plans']:,} plans by {timed['backend']}, paced at {timed['rate_hz']:g} Hz, "
        f"{charts.short(timed['plans_per_s'])} a second. Quantiles are upper 95 % bounds counted from the intended "
        "release. The loop is Python's: how late an action would be, it cannot say."
    )


def headroom(found: Mapping[str, Any] | None) -> str:
    """The rate that holds, the budget left, and what would change them."""
    if not found:
        return ""
    share = f"{100 * found['miss']:g} %"
    if found["highest_rate_hz"] is None:
        needs = " and ".join(f"{n:,} {name}s" for name, n in found["needs"].items())
        words = f"The highest rate with at most {share} late plans is withheld: it takes {needs}."
    else:
        left, budget = found["plan_left_ms"], found["plan_budget_ms"]
        spare = f"{charts.short(left)} ms of {charts.short(budget)} are left" if left >= 0 else (
            f"it is {charts.short(-left)} ms more than the {charts.short(budget)} there are"
        )  # fmt: skip
        words = (
            f"Holds up to {charts.short(found['highest_rate_hz'])} Hz with at most {share} late plans (95 % confidence)"
            f", limited by the {found['bound_by']}. Of the time to the next plan {spare}."
        )
    rows = "".join(
        f"<tr><th>{escape(g['change'])}</th><td>{100 * g['share']:.0f} %</td><td>{_ms(g['plan_ms'])}</td>"
        f"<td>{'' if g['highest_rate_hz'] is None else charts.short(g['highest_rate_hz']) + ' Hz'}</td></tr>"
        for g in found["gains"][:6]
    )
    head = "<tr><th>to change</th><th>time</th><th>a plan</th><th>up to</th></tr>"
    sources = "; ".join(dict.fromkeys(g["from"] for g in found["gains"][:6]))
    table = f"<table class='figures'>{head}{rows}</table><p class='note'>Computed: {escape(sources)}.</p>"
    table = table if rows else ""
    return f"<h3 class='suite'>How fast it could go</h3><p>{escape(words)}</p>{table}"


def cards(timed: Mapping[str, Any], manifest: Manifest) -> list[str]:
    period = 1e3 / timed["rate_hz"]
    budget = period * manifest.planner.commit_steps
    shown, series = timed["histograms"], timed.get("series") or {}
    plan_marks = _marks(timed["plan_ms"], ("to the next plan", budget))
    made = [
        card("Time of a plan", charts.histogram(shown["plan_ms"], plan_marks, "ms, logarithmic")),
        card(
            "Lateness of an action",
            charts.histogram(shown["act_late_ms"], _marks(timed["act_late_ms"], ("period", period)), "ms, logarithmic"),
        ),
    ]
    if series.get("act_late_ms"):
        line = clock_charts.timeline(series["act_late_ms"], period, timed["rate_hz"])
        part = "" if len(series["act_late_ms"]) == timed["ticks"] else f" The first {len(series['act_late_ms']):,}."
        words = f"The latest action of each stretch; red: a period was missed.{part}"
        made.append(card("Lateness over the run", line, words))
    stages = (timed.get("headroom") or {}).get("stages")
    if stages:
        key = " ".join(f"{s['stage']} {100 * s['share']:.2g} %," for s in stages).rstrip(",")
        made.append(card("A plan, from whole to kernels", clock_charts.flame(stages), escape(key)))
    spent = [(k, v) for k, v in timed.get("stages", {}).items() if v >= 0.005][:10]
    if spent:
        made.append(card("Where a plan's time goes", charts.shares(spent)))
    if timed.get("kernels") and timed.get("peaks"):
        line = clock_charts.roofline(timed["kernels"], timed["peaks"])
        made.append(card("Kernels under their roofs, one thread", line, ROOFS))
    if timed.get("estimate"):
        line = clock_charts.estimate(timed["estimate"], timed["plan_ms"])
        made.append(card("Estimate against measurement", line, escape(timed["estimate"]["source"])))
    return made + over_time(timed)


def over_time(timed: Mapping[str, Any]) -> list[str]:
    """Plan time, memory and temperatures, for runs that are long enough to change."""
    spans, made = timed.get("spans") or [], []
    if len(spans) > 2:
        wide = -(-len(spans) // TIMES)
        parts = [spans[i : i + wide] for i in range(0, len(spans), wide)]
        seconds = [part[-1]["s"] for part in parts]
        told = [[each["plan_ms"] for each in part if each["plan_ms"] is not None] for part in parts]
        means = [sum(each) / len(each) if each else None for each in told]
        line = charts.lines([("mean", means, "full")], seconds, "seconds", "ms")
        made.append(card("Plan time over the run", line))
        memory = [part[-1]["peak_bytes"] / 2**20 for part in parts]
        if memory[-1] > memory[0]:
            line = charts.lines([("peak", memory, "compressed")], seconds, "seconds", "MiB")
            made.append(card("Memory over the run", line))
    seen = (timed.get("environment") or {}).get("over_time") or []
    seen = seen[:: -(-len(seen) // TIMES) or 1]
    hottest = [max(each["temperatures_c"].values(), default=None) for each in seen]
    if len(seen) > 2 and any(each is not None for each in hottest):
        rows = [("hottest", hottest, "compressed")]
        line = charts.lines(rows, [each["s"] for each in seen], "seconds", "degrees Celsius")
        made.append(card("Temperature over the run", line))
    return made


def against(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    rows = "".join(f"<li>{escape(line)}</li>" for line in sentences(found))
    return f"<h3 class='suite'>Against another run</h3><ul class='findings'>{rows}</ul>"


def _kernels(rows: Sequence[Mapping[str, Any]] | None) -> str:
    if not rows:
        return ""
    text = escape("\n".join(kernel_lines(rows)))
    return f"<details><summary>The kernels of a plan on one thread</summary><pre>{text}</pre></details>"


def _quantile(key: str) -> str:
    """`plan_ms.p999` in words."""
    name, which = key.split(".")
    words = {"plan_ms": "plan time", "act_late_ms": "lateness", "plan_age_ms": "plan age", "jitter_ms": "jitter"}
    return f"{which.replace('p999', 'p99.9')} of {words[name]}"


def _marks(found: Mapping[str, float | None], deadline: tuple[str, float]) -> list[tuple[str, float, str]]:
    marks = [(k, found[k], "quantile") for k in ("p50", "p99") if found.get(k) is not None]
    return [*marks, (*deadline, "deadline")]


def _ms(value: float | None) -> str:
    return "<span class='faint'>withheld</span>" if value is None else f"{charts.short(value)} ms"

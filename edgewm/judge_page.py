"""The judge's part of the report: the gates, suite by suite, and a card for each question it asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from . import charts
from .charts import card

Found = Mapping[str, Any]
TITLES = {
    "plan": "The same plan", "physics": "Physically right", "causality": "Caused by its actions",
    "horizon": "Consistent over long horizons", "general": "Beyond the training range",
    "closed-loop": "In closed loop",
}  # fmt: skip
BOTH = "<i class='key full'></i> full model <i class='key compressed'></i> this bundle"
STATES = {True: ("good", "passed"), False: ("bad", "failed"), None: ("none", "undecided")}


def judge(found: Found | None) -> str:
    """The whole section."""
    if found is None:
        return "<section><h2>The judge</h2><p class='none'>Not validated yet.</p></section>"
    against = escape(str(found.get("against", "the full model")))
    other = " The bundle was built from other weights than this model's." * (found.get("same_weights") is False)
    words = f"Against <b>{against}</b>, on the same noise{_evidence(found)}{_preset(found)}.{other}"
    parts = "".join(_suite(name, found) for name in TITLES if _rows(name, found))
    return f"<section><h2>The judge</h2><p>{words}</p>{parts}{_left_out(found)}</section>"


def _preset(found: Found) -> str:
    if "preset" not in found:
        return ""
    return f", by the preset <b>{escape(str(found['preset']))}</b>"


def _evidence(found: Found) -> str:
    known = " (which the bundle was calibrated on)" * bool(found.get("is_calibrated_on_data"))
    return f", on <b>{escape(str(found['data']))}</b>{known}" if found.get("data") else ""


def _rows(suite: str, found: Found) -> list[Found]:
    """The suite's gates; rows without a suite are the first one's."""
    return [g for g in found["gates"] if g.get("suite", "plan") == suite]


def _suite(suite: str, found: Found) -> str:
    rows = "".join(_gate(g) for g in _rows(suite, found))
    head = "".join(f"<th>{word}</th>" for word in ("gate", "value", "limit", "samples", ""))
    table = f"<table class='gates'><tr>{head}</tr>{rows}</table>"
    figures = found.get(suite.replace("-", "_"))
    cards = CARDS[suite](figures) if figures else ""
    if suite == "closed-loop" and found.get("latency"):
        cards += latency(found["latency"])
    shown = f"<div class='cards'>{cards}</div>" if cards else ""
    return f"<h3 class='suite'>{TITLES[suite]}</h3>{table}{shown}"


def _gate(g: Found) -> str:
    state, word = STATES[g["passed"]]
    sign = "≥" if g["direction"] == "at_least" else "≤"
    value = "not a number" if g["value"] is None else f"{g['value']:.4g}"
    note = f"<br><em>{escape(g['note'])}</em>" if g.get("note") else ""
    return (
        f"<tr><td><b>{escape(g['name'].replace('_', ' '))}</b><small>{escape(g['meaning'])}{note}</small></td>"
        f"<td>{value}</td><td>{sign} {g['limit']:.3g}</td><td>{g['samples']}</td><td class='{state}'>{word}</td></tr>"
    )


def _left_out(found: Found) -> str:
    lines = [f"{TITLES.get(name, name)}: not judged, {why}" for name, why in (found.get("skipped") or {}).items()]
    lines += [f"{TITLES.get(n, n)}: {'; '.join(whys)}" for n, whys in (found.get("left_out") or {}).items()]
    return f"<p class='note'>{escape('. '.join(lines))}.</p>" if lines else ""


# --------------------------------------------------------------------------------------------------- cards by suite


def plan(figures: Found) -> str:
    dots, drift = figures["scatter"], figures["drift_by_step"]
    ranking = card(
        "The same ranking? Candidate costs in the worst context",
        charts.scatter(
            dots["full"], dots["compressed"], dots["part"], "cost under the full model", "under this bundle"
        ),
        "<i class='key part0'></i> drawn blindly <i class='key part1'></i> halfway "
        "<i class='key part2'></i> last iteration",
    )
    apart = card(
        "Drift: the two models' latents apart",
        charts.lines([("drift", drift, "compressed")], range(len(drift)), "model actions ahead", "share of spread"),
    )
    return ranking + apart + _elites(figures) + _layers(figures.get("layers"))


def _elites(figures: Found) -> str:
    at, n = figures.get("elites_part_at", ()), figures.get("contexts")
    if len(at) < 2:
        return ""
    parted = [sum(at[: i + 1]) / n for i in range(len(at))]
    differ = [1 - v for v in figures["elite_overlap_by_iteration"]]
    half = next((f"in half of the contexts by iteration {i + 1}" for i, v in enumerate(parted) if v >= 0.5), "")
    tau = figures["kendall_by_iteration_median"]
    words = f"never in {figures['elites_never_part']} of {n} contexts{half and f', {half}'}"
    return card(
        "When do elites part?",
        charts.lines([("contexts", parted, "full"), ("elites", differ, "compressed")], range(1, len(at) + 1),
                     "iteration", "share"),
        f"contexts in which they have, {words}; elites that differ, of the same candidates; Kendall\u2019s tau of "
        f"their costs {_figure(tau[0])} in the first iteration, {_figure(tau[-1])} in the last",
    )  # fmt: skip


MOST_LAYERS = 12


def _layers(found: Found | None) -> str:
    if not found or not found["rows"]:
        return ""
    rows = found["rows"][:MOST_LAYERS]
    more = len(found["rows"]) - len(rows)
    return card(
        "Which layer costs what fidelity, each alone", _layer_bars(rows),
        f"error of the last iteration\u2019s costs over their spread, {found['contexts']} contexts; weights rounded to "
        "nearest, the other layers in full"
        + (f"; {more} more cost less" if more else "")
        + (f"; {len(found['not_told'])} products are no whole linear layers" if found["not_told"] else ""),
    )  # fmt: skip


def _layer_bars(rows: Sequence[Found]) -> str:
    line, left, right = 22, 226, 64
    widest = max((row["cost_error"] or 0.0 for row in rows), default=0.0) or 1.0
    out = []
    for i, row in enumerate(rows):
        y, wide = 4 + i * line, (row["cost_error"] or 0.0) / widest * (charts.WIDTH - left - right)
        name = row["name"].removesuffix(".weight")
        name = name if len(name) <= MOST_LETTERS else "…" + name[1 - MOST_LETTERS :]
        for x, anchor, css, text in (
            (left - 50, "end", "", name), (left - 8, "end", " faint", row["form"]),
            (left + wide + 6, "start", " faint", _figure(row["cost_error"])),
        ):  # fmt: skip
            place = f'x="{x:.1f}" y="{y + 14}" text-anchor="{anchor}"'
            out.append(f'<text class="label{css}" {place}>{escape(text)}</text>')
        out.append(f'<rect class="bar" x="{left}" y="{y + 3}" width="{max(wide, 1):.1f}" height="{line - 8}" rx="2"/>')
    return f'<svg viewBox="0 0 {charts.WIDTH} {line * len(rows) + 8}" role="img">{"".join(out)}</svg>'


MOST_LETTERS = 26  # of a layer's name


def physics(figures: Found) -> str:
    cards = ""
    if "probe_r2_by_state" in figures:
        names = figures["probe_names"]
        seen = zip(names, *figures["probe_r2_by_state"], strict=True)
        later = zip((f"{n}, imagined" for n in names), *figures["imagined_probe_r2_by_state"], strict=True)
        cards += card(
            "What a linear probe reads of the world's state",
            charts.dumbbells([*seen, *later], "explained variance (R²), held-out", high=1.0),
            f"{BOTH}; imagined: at the planner's horizon",
        )
    if "surprise_auroc_by_kind" in figures:
        kinds = figures["surprise_auroc_by_kind"]
        rows = [*((kind, *pair) for kind, pair in kinds.items()), ("all", *figures["surprise_auroc"])]
        cards += card(
            "Does the impossible surprise?",
            charts.dumbbells(rows, "AUROC of surprise; chance is 0.5", high=1.0),
            f"{BOTH}; {figures['clips']} pairs of clips{_blind(kinds)}",
        )
    return cards


def _blind(kinds: Mapping[str, Sequence[float | None]]) -> str:
    """What the full model itself does not tell from chance."""
    missed = [kind for kind, (full, _) in kinds.items() if full is not None and full < 0.6]
    return f". The full model itself is not surprised by: {escape(', '.join(missed))}" if missed else ""


def causality(figures: Found) -> str:
    cards = ""
    if "divergence_by_step" in figures:
        curves = [(name, figures["divergence_by_step"][key], key) for name, key in
                  (("real", "real"), ("full", "full"), ("bundle", "compressed"))]  # fmt: skip
        cards += card(
            "What other actions would have changed",
            charts.lines(curves, range(len(curves[0][1])), "model actions ahead", "share of spread"),
            f"{figures['branches']} starts, two sequences of actions each",
        )
    if "action_r2" in figures:
        cards += card(
            "Can the action be read from what it did?",
            charts.dumbbells(
                [("a block's sum", *figures["action_r2"]), ("period by period", *figures["action_r2_by_period"])],
                "out-of-fold R² of a model action",
                high=1.0,
            ),
            f"{BOTH}; largest change of a latent by a later action: {_short(figures['prefix_change'][1])}",
        )
    return cards


def horizon(figures: Found) -> str:
    full, compressed = figures["full_error_by_step"], figures["compressed_error_by_step"]
    words, cards = "", ""
    if "steps_to_threshold" in figures:
        far = [f"{s:.1f}" if is_reached else f"more than {s:.0f}" for s, is_reached in
               zip(figures["steps_to_threshold"], figures["reached_threshold"], strict=True)]  # fmt: skip
        words = f"half of the variance is explained for {far[0]} model actions (full), {far[1]} (bundle)"
    cards += card(
        "Error against real futures",
        charts.lines([("full", full, "full"), ("bundle", compressed, "compressed")], range(len(full)),
                     "model actions ahead", "share of spread"),
        words,
    )  # fmt: skip
    if "blackout_steps" in figures:
        both = [("full", figures["full_blackout_error"], "full"),
                ("bundle", figures["compressed_blackout_error"], "compressed")]  # fmt: skip
        cards += card(
            "Blackout: what is expected when the camera comes back",
            charts.lines(both, figures["blackout_steps"], "model actions in the dark", "share of spread"),
            f"after {figures['blackout_frames_before']} frames seen; imagining in one go or in two parts differs by "
            + " and ".join(map(_short, figures["prefix_gap"])),
        )
    return cards


def general(figures: Found) -> str:
    shifts = figures["shifts"]
    error = [(name, *s["error"]) for name, s in shifts.items() if "error" in s]
    if figures.get("usual_error"):
        error = [("as in training", *figures["usual_error"]), *error]
    rank = [(name, s.get("spearman_min")) for name, s in shifts.items()]
    rows = "".join(
        f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{_figure(shifts[name].get(k))}</td>" for k in COLUMNS) + "</tr>"
        for name, _ in rank
    )
    head = "".join(f"<th>{title}</th>" for title in COLUMNS.values())
    table = f"<table class='figures'><tr><th></th>{head}</tr>{rows}</table>"
    cards = card("Shifted scenes: the same plan as the full model's?", table)
    left = [(name, *s["cost_left"]) for name, s in shifts.items() if "cost_left" in s]
    if left:
        shown = charts.dumbbells(left, "cost of the plan, of a candidate's drawn blindly")
        cards += card("What plans leave of the cost there", shown, f"{BOTH}; both as the full model sees them")
    if error:
        shown = charts.dumbbells(error, "error at the planner's horizon, share of spread")
        cards += card("Error against real futures there", shown, f"{BOTH}; the full model's own error is its own")
    return cards


COLUMNS = {"spearman_min": "least Spearman", "elite_overlap": "elites", "regret": "regret"}


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _short(value: float | None) -> str:
    return "not a number" if value is None else charts.short(value)


def closed_loop(figures: Found) -> str:
    shifts = {name: s for name, s in (figures.get("shifts") or {}).items() if name != "all"}
    return (
        _success("Success in closed loop, same starts and noise", figures)
        + _success_by("Success by family of tasks", figures.get("families") or {})
        + _success_by("Success in shifted scenes", shifts)
    )


def _success_by(title: str, found: Mapping[str, Found]) -> str:
    rows = [
        (charts.clipped(shown, 13), side["successes"] / side["episodes"], *side["wilson_95"], css)
        for name, s in found.items()
        for shown, side, css in ((name, s["full"], "full"), ("", s["compressed"], "compressed"))
    ]
    counts = ", ".join(f"{name} {s['full']['episodes']} starts" for name, s in found.items())
    return card(title, charts.intervals(rows), f"{BOTH}; 95 % Wilson intervals; {escape(counts)}") if rows else ""


def _success(title: str, figures: Found) -> str:
    both = [("full", figures["full"], "full"), ("bundle", figures["compressed"], "compressed")]
    drawn = charts.intervals([(n, s["successes"] / s["episodes"], *s["wilson_95"], css) for n, s, css in both])
    counts = ", ".join(f"{n} {s['successes']}/{s['episodes']}" for n, s, _ in both)
    return card(title, drawn, f"{counts}; 95 % Wilson intervals")


def latency(figures: Found) -> str:
    points = figures["points"]
    ms = [p["ms"] for p in points]

    def curves(of: Callable[[Found], Any], shown: Sequence[Found] = points) -> list[tuple[str, list, str]]:
        sides = (("full", "full"), ("bundle", "compressed"))
        return [(name, [of(p[side]) for p in shown], side) for name, side in sides]

    edge = figures["break_even_ms"]
    words = f"up to {charts.short(ms[-1])} ms no loss of {figures['margin']:g}" if edge is None else (
        f"at {charts.short(edge)} ms it has lost {figures['margin']:g} against the full model at once"
    )  # fmt: skip
    if edge and figures.get("break_even_periods"):
        words += f", {figures['break_even_periods']:.1f} periods at {figures['rate_hz']:g} Hz"
    gated = next((p for p in points if p["name"] == figures.get("gated", "measured")), None)
    here = "" if gated is None else f"; {gated['name']}: {charts.short(gated['ms'])} ms at the median"
    axis = "ms until a plan's actions are there"
    cards = card(
        "Success against latency", charts.lines(curves(_rate), ms, axis, "success"),
        f"{points[0]['full']['episodes']} starts at each latency; {words}{here}",
    ) + card(
        "Time to the goal against latency", charts.lines(curves(_took), ms, axis, "periods"),
        "median of those that succeed",
    )  # fmt: skip
    late = [p for p in points if p["ms"] > 0]
    if gated is None or "rate_hz" not in figures or len(late) < 2:
        return cards
    rates = [figures["rate_hz"] * p["ms"] / gated["ms"] for p in late]
    fastest = figures.get("fastest_rate_hz")
    words = "" if fastest is None else f"; the break-even is at {charts.short(fastest)} Hz"
    return cards + card(
        "Success against control rate", charts.lines(curves(_rate, late), rates, "control rate in Hz", "success"),
        f"the same episodes, as plans of {charts.short(gated['ms'])} ms would be as many periods late{words}",
    )  # fmt: skip


def _rate(side: Found) -> float:
    return side["successes"] / side["episodes"]


def _took(side: Found) -> float | None:
    return side.get("median_periods")


CARDS = {
    "plan": plan, "physics": physics, "causality": causality, "horizon": horizon, "general": general,
    "closed-loop": closed_loop,
}  # fmt: skip

"""The judge's cards: what they say is what the figures say, words from outside are escaped, and what is not there is
not shown. The page around them is judged in test_report."""

from __future__ import annotations

import re

from edgewm import judge_page
from edgewm.statistics import wilson

RANKS = {
    "drift_by_step": [0.01, 0.02], "contexts": 59, "elites_part_at": [0, 3, 16], "elites_never_part": 40,
    "scatter": {"full": [1.0, 2.0], "compressed": [1.1, 2.0], "part": [0, 1]},
    "elite_overlap_by_iteration": [1.0, 0.99, 0.95], "kendall_by_iteration_median": [0.99, 0.98, 0.97],
}  # fmt: skip


def layer(name: str, cost_error: float) -> dict:
    return {"name": name, "form": "w8a8", "cost_error": cost_error, "spearman_min": 0.99}


def sides(full: int, compressed: int, episodes: int = 50) -> dict:
    return {
        side: {"successes": n, "episodes": episodes, "wilson_95": list(wilson(n, episodes)), "median_periods": 20.0}
        for side, n in (("full", full), ("compressed", compressed))
    }


def test_where_elites_part_is_counted_in_contexts() -> None:
    text = judge_page.plan(RANKS)
    assert "contexts in which they have, never in 40 of 59 contexts; elites" in text
    assert "costs 0.99 in the first iteration, 0.97 in the last" in text
    early = RANKS | {"elites_part_at": [10, 30, 19], "elites_never_part": 0}
    assert "never in 0 of 59 contexts, in half of the contexts by iteration 2;" in judge_page.plan(early)
    for missing in ({"elites_part_at": [0]}, {"elites_part_at": []}):
        assert "When do elites part" not in judge_page.plan(RANKS | missing)


def test_layers_are_shown_dearest_first_each_with_a_bar_of_its_share() -> None:
    rows = [layer("a.<b>.weight", 0.04), layer("c.weight", 0.01)]
    text = judge_page.plan(RANKS | {"layers": {"rows": rows, "contexts": 8, "not_told": ["merged"]}})
    wide, narrow = (float(v) for v in re.findall(r'class="bar" [^>]*?width="([\d.]+)"', text))
    assert wide == 4 * narrow
    assert "a.&lt;b&gt;" in text and ".weight" not in text and "1 products are no whole linear layers" in text
    long = {"rows": [layer("a.very.long.name.of.a.layer.indeed", 0.1)], "contexts": 8, "not_told": []}
    assert "…ry.long.name.of.a.layer.indeed"[-25:] in judge_page.plan(RANKS | {"layers": long})
    many = {"rows": [layer(f"l{i}", 0.1) for i in range(judge_page.MOST_LAYERS + 3)], "contexts": 8, "not_told": []}
    assert "3 more cost less" in judge_page.plan(RANKS | {"layers": many})
    assert "Which layer" not in judge_page.plan(RANKS)


def test_success_by_family_and_by_shift() -> None:
    figures = sides(44, 43) | {"families": {"far <1 m>": sides(30, 29, 35), "other": sides(14, 14, 15)}}
    text = judge_page.closed_loop(figures)
    assert "Success by family of tasks" in text and "far &lt;1 m&gt; 35 starts, other 15 starts" in text
    assert "shifted scenes" not in text
    assert "Success in shifted scenes" in judge_page.closed_loop(
        figures | {"shifts": {"all": sides(9, 9), "a": sides(4, 4)}}
    )


def test_latency_is_told_in_ms_periods_and_rates() -> None:
    points = [{"name": name, "ms": ms, **sides(44, n)} for name, ms, n in
              (("at once", 0.0, 44), ("estimated", 100.0, 43), ("estimated, high", 150.0, 30))]  # fmt: skip
    figures = {
        "points": points, "margin": 0.1, "break_even_ms": 120.0, "break_even_periods": 2.4, "rate_hz": 20.0,
        "gated": "estimated, high", "fastest_rate_hz": 16.0,
    }  # fmt: skip
    text = judge_page.latency(figures)
    assert "at 120 ms it has lost 0.1 against the full model at once, 2.4 periods at 20 Hz" in text
    assert "estimated, high: 150 ms at the median" in text and "Success against control rate" in text
    assert "as plans of 150 ms would be as many periods late; the break-even is at 16 Hz" in text
    none = figures | {"break_even_ms": None, "break_even_periods": None, "fastest_rate_hz": None, "gated": None}
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", judge_page.latency(none))
    assert captions == ["50 starts at each latency; up to 150 ms no loss of 0.1", "median of those that succeed"]


def test_costs_in_shifted_scenes_stand_side_by_side() -> None:
    shifts = {"size": {"spearman_min": 0.99, "elite_overlap": 0.9, "regret": 0.001, "cost_left": [0.2, 0.21]}}
    assert "What plans leave of the cost there" in judge_page.general({"shifts": shifts})
    shifts = {"size": {"error": [0.3, 0.4]}}
    assert "What plans leave" not in judge_page.general({"shifts": shifts})


def test_what_is_not_a_number_is_not_told_as_none() -> None:
    figures = {"action_r2": [0.9, 0.8], "action_r2_by_period": [0.5, 0.4], "prefix_change": [0.0, None]}
    assert "by a later action: not a number" in judge_page.causality(figures)
    assert "by a later action: 0<" in judge_page.causality(figures | {"prefix_change": [0.0, 0.0]})


def test_other_weights_are_told_and_unknown_ones_are_not() -> None:
    found = {"gates": [], "against": "mine", "preset": "default", "data": "a <b>"}
    assert "on <b>a &lt;b&gt;</b>, by the preset" in judge_page.judge(found)
    known = judge_page.judge(found | {"is_calibrated_on_data": True})
    assert "</b> (which the bundle was calibrated on), by the preset" in known
    for same, is_told in ((True, False), (None, False), (False, True)):
        assert ("other weights" in judge_page.judge(found | {"same_weights": same})) is is_told

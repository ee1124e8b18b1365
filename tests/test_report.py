"""The page holds everything it shows, says what was judged, and never shows what was measured on other bytes."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import json
import re
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from test_profile import tick
from test_validate import PLANNER as TOY_PLANNER
from test_validate import PORTS, Toy, side

from edgewm import charts, clock_charts, report
from edgewm import format as ewm_format
from edgewm.clock import summarise
from edgewm.errors import EdgewmError
from edgewm.judge import gates, picture
from edgewm.judge.imagine import Subjects
from edgewm.program import Planner
from edgewm.statistics import wilson


def write_bundle(folder, precision: str = "w8a8"):
    planner = Planner(samples=128, iterations=8, elites=12, horizon=5, action_block=5, commit_steps=5)
    manifest = {
        "target": "host", "mode": "AS_IS", "precision": precision, "rate_hz": 20.0, "threads": 1, "ports": [],
        "planner": dataclasses.asdict(planner), "family": "torch_world.lewm",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "model.ewm").write_bytes(ewm_format.pack({"manifest": json.dumps(manifest).encode()}, "t", bytes(32)))
    return folder


def profiled(plans: int = 600) -> dict:
    rng = np.random.default_rng(0)
    late = rng.lognormal(11.3, 0.25, 3000)
    late[1500:1503] = [7e6, 5e6, 3e6]
    found = summarise(tick(late, rng.lognormal(17.0, 0.08, plans), rng.lognormal(17.8, 0.1, 3000)))
    return found | {
        "rate_hz": 20.0, "threads": 2, "peak_fraction": 0.41,
        "environment": {"cores": 2, "kernel": "6.1", "memory_bytes": 8 << 30, "virtual": True, "preempt_rt": False,
                        "clocks_hz": {"0": 2.2e9}, "clock_limits_hz": {"min": [], "max": []},
                        "degraded": [{"what": "governor", "why": "not told"}]},
        "stages": {"product_i8": 0.62, "attention": 0.2, "map": 0.1, "reduce": 0.05, "barriers": 0.03},
    }  # fmt: skip


def judged(passed: bool = True) -> dict:
    rng = np.random.default_rng(1)
    cost = rng.gamma(3, 0.1, 128)
    rows = [
        {"suite": "plan", **gates.judged("spearman_min", 0.996 if passed else 0.71, 60)},
        {"suite": "plan", **gates.judged("elite_overlap", 0.968, 60, (0.955, 0.98))},
        {"suite": "plan", **gates.judged("regret", 0.002, 60, (-0.001, 0.006))},
        {"suite": "plan", **gates.judged("drift", 0.03, 60, (0.025, 0.035))},
        {"suite": "physics", **gates.judged("probe_loss", 0.001, 60, (0.0, 0.002))},
        {"suite": "causality", **gates.judged("prefix_causality", 0.0, 60)},
        {"suite": "horizon", **gates.judged("horizon_kept", 1.0, 60, (0.99, 1.0))},
        {"suite": "general", **gates.judged("shifted_rank", 0.995, 60)},
        {"suite": "closed-loop", **gates.decided("late_loss", 0.02, True, 50)},
    ]
    drift = [0.006, 0.011, 0.017, 0.022, 0.026, 0.03]
    return {
        "passed": gates.verdict(rows), "against": "reference", "gates": rows, "preset": "default", "contexts": 60,
        "skipped": {}, "left_out": {"causality": ["no two real futures from one start"]},
        "plan": {
            "drift_by_step": drift,
            "scatter": {"full": cost.tolist(), "compressed": (cost + rng.normal(0, 0.006, 128)).tolist(),
                        "part": (np.arange(128) * 3 // 128).tolist()},
        },
        "physics": {
            "probe_names": ["x", "y"], "probe_r2_by_state": [[0.99, 0.97], [0.985, 0.97]], "clips": 60,
            "imagined_probe_r2_by_state": [[0.9, -0.2], [0.88, None]], "surprise_auroc": [0.8, 0.79],
            "surprise_auroc_by_kind": {"teleport": [1.0, 1.0], "<pass>": [0.41, 0.43]},
        },
        "causality": {
            "divergence_by_step": {"real": [0, 0.9, 1.2], "full": [0, 0.9, 1.1], "compressed": [0, 0.9, 1.1]},
            "branches": 60, "action_r2": [0.8, 0.79], "action_r2_by_period": [0.2, 0.19], "prefix_change": [0.0, 0.0],
        },
        "horizon": {
            "full_error_by_step": [0.0, 0.09, 0.14, 0.18, 0.22, 0.27],
            "compressed_error_by_step": [0.01, 0.09, 0.142, 0.183, 0.224, 0.273], "threshold": 0.7,
            "steps_to_threshold": [5.0, 4.2], "reached_threshold": [False, True], "prefix_gap": [0.04, 0.05],
            "blackout_steps": [1, 2, 3], "blackout_frames_before": 3, "full_blackout_error": [0.1, 0.2, 0.3],
            "compressed_blackout_error": [0.1, 0.21, 0.33],
        },
        "general": {
            "shifts": {"colours": {"spearman_min": 0.998, "elite_overlap": 0.93, "regret": 0.001, "error": [8.0, 8.1]},
                       "starts": {"spearman_min": 0.999, "elite_overlap": 0.97, "regret": -0.001}},
            "usual_error": [0.2, 0.2],
        },
        "closed_loop": {**pair(44, 43), "shifts": {"all": pair(50, 50), "colours": pair(0, 0), "size": pair(30, 29)}},
        "latency": {
            "points": [{"name": n, "ms": ms, **pair(full, 43 - i)} for i, (n, ms, full) in
                       enumerate((("at once", 0.0, 44), ("measured", 141.0, 43), ("600 ms", 600.0, 20)))],
            "margin": 0.1, "break_even_ms": 480.0,
        },
    }  # fmt: skip


def pair(full: int, compressed: int) -> dict:
    """Two sides of a closed loop of 50 episodes."""
    return {
        name: {"successes": n, "episodes": 50, "wilson_95": list(wilson(n, 50)), "median_periods": 20.0 if n else None}
        for name, n in (("full", full), ("compressed", compressed))
    }


def imagined() -> dict:
    frames = np.random.default_rng(2).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return picture.as_json(picture.Futures(frames, frames[::-1], frames, np.arange(6) * 0.25))


VOID = ("meta", "img", "br", "rect", "line", "circle", "path", "polyline")


class Wellformed(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(path) -> str:
    text = path.read_text(encoding="utf-8")
    reader = Wellformed()
    reader.feed(text)
    assert reader.open == [] and all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert "<script" not in text and "@import" not in text and "url(" not in text and "http" not in text
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<[^>]*>", " ", text))
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text)
    return text


def whole(folder):
    write_bundle(folder)
    report.add(folder, "profile", profiled())
    report.add(folder, "validate", judged())
    report.add(folder, "futures", imagined())
    run = {"successes": 9, "episodes": 10, "wilson_95": [0.6, 0.98], "env": "reference", "plan_ms": {"p50": 24.0}}
    return report.add(folder, "run", run)


def test_the_whole_page(tmp_path):
    text = checked(whole(tmp_path))
    for words in (
        "It plans like the full model: all 9 gates passed.", "128 samples × 8 iterations × 5 actions", "what came",
        "this bundle imagined", "spearman min", "product_i8", "41 % of this machine", "9 of 10 episodes",
        "Could not be had: governor (not told)", "full 44/50", "+1.25 s",
        "by the preset <b>default</b>.", "Physically right", "is not surprised by: &lt;pass&gt;",
        "half of the variance is explained for more than 5 model actions (full), 4.2 (bundle)", "Beyond the training",
        "Caused by its actions: no two real futures from one start.", "at 480 ms it has lost 0.1 against the full",
        "measured: 141 ms at the median", "Blackout", "y, imagined", "<dt>memory</dt><dd>8.0 GiB</dd>",
        "<dt>clocks</dt><dd>0 2,200 MHz</dd>", "<dt>virtual</dt><dd>yes</dd>",
    ):  # fmt: skip
        assert words in text, words
    assert "clock limits" not in text and "preempt" not in text
    assert len(text) < 200_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ewm", "report.html", "report.json"]


def test_a_bundle_that_nobody_judged_says_so(tmp_path):
    text = checked(report.add(write_bundle(tmp_path), "profile", profiled(plans=60)))
    assert "Not judged yet" in text and "Not validated yet." in text
    assert "p99 of plan time needs 299 (has 60)" in text and "withheld" in text


def test_a_failed_and_an_undecided_verdict_are_told(tmp_path):
    write_bundle(tmp_path)
    assert "It does not plan like the full model: spearman min failed." in checked(
        report.add(tmp_path, "validate", judged(False))
    )
    few = judged()
    few["gates"] = [gates.judged("regret", float("nan"), 3)]
    few |= {"passed": None, **dict.fromkeys(("plan", "physics", "causality", "horizon", "general", "closed_loop"))}
    few |= {"latency": None, "skipped": {"general": "no contexts"}, "left_out": {}}
    text = checked(report.add(tmp_path, "validate", few))
    assert "Not enough evidence" in text and "3 independent samples, 59 needed" in text and "not a number" in text


def test_a_verdict_that_says_nothing_of_plans_is_told_as_what_it_is(tmp_path):
    write_bundle(tmp_path)
    text = checked(report.add(tmp_path, "validate", judged() | {"suites": ["causality", "horizon"]}))
    assert "It passed causality, horizon; nothing says yet that it plans like the full model." in text


def test_a_report_that_is_not_whole_is_written_anew(tmp_path):
    write_bundle(tmp_path)
    for text in ('{"bundle_sha256": "ab', "[]"):
        (tmp_path / "report.json").write_text(text)
        checked(report.add(tmp_path, "profile", profiled()))


def test_parts_of_other_bytes_are_dropped(tmp_path):
    whole(tmp_path)
    write_bundle(tmp_path, precision="fp32")
    report.add(tmp_path, "profile", profiled())
    found = json.loads((tmp_path / "report.json").read_text())
    assert "validate" not in found and "profile" in found


def test_a_page_that_cannot_be_written_is_refused(tmp_path):
    write_bundle(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(EdgewmError, match="the report cannot be written"):
        report.add(tmp_path, "profile", profiled())


def test_words_from_outside_stay_words(tmp_path):
    write_bundle(tmp_path)
    assert "<b>bad" not in report.add(tmp_path, "validate", judged() | {"against": "<b>bad"}).read_text()


def test_png_comes_back():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = base64.b64decode(charts.png(image))
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (7, 5)
    length = struct.unpack(">I", data[33:37])[0]
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(5, 22)
    assert (rows[:, 0] == 0).all() and np.array_equal(rows[:, 1:].reshape(5, 7, 3), image)


def clocked() -> dict:
    """A profile with everything that one may have."""
    rng, found = np.random.default_rng(3), profiled()
    late = rng.lognormal(-2, 0.3, 3000)
    late[1500:1503] = [70, 60, 55]
    stages = [{"stage": "encode", "ms": 1.0, "share": 0.1, "kernels": {"product": 0.9, "<map>": 0.1}},
              {"stage": "plan", "ms": 9.0, "share": 0.9, "kernels": {"product_i8": 9.0}}]
    held = {"miss": 0.01, "highest_rate_hz": 31.2, "bound_by": "plan", "needs": {}, "plan_budget_ms": 250.0,
            "plan_bound_ms": 160.0, "plan_left_ms": 90.0, "stages": stages, "rates_hz": {}}
    row = {"p50": 12.0, "p99": None, "p999": None, "max": 14.0}
    kernel = {"family": "product_i8", "dims": [4, 2], "lanes": 8, "does": "y", "calls": 1, "ms": 3.0, "share": 0.8,
              "gflops": 120.0, "gbps": 3.0, "flops": 4e8, "bytes": 1e7, "limit_ms": None, "of_limit": None}
    return found | {
        "findings": [{"name": "stall", "words": "1 stall, the longest <70> ms"}], "misses_in_a_row": 3,
        "series": {"act_late_ms": late.tolist(), "plan_ms": None}, "effective_ticks": 900.0,
        "spans": [{"s": float(i + 1), "plan_ms": 20 + i / 10, "peak_bytes": (40 + i) << 20} for i in range(60)],
        "phases": {"cold_start": {"max_ms": 80.0, "each_ms": [80.0]}, "first_plan": {"max_ms": 31.0, "each_ms": [31.0]},
                   "after_idle": {"gap_s": 1.0, "plan_ms": row}},
        "headroom": held | {"gains": [{"change": "4 iterations instead of 8", "share": 0.5, "plan_ms": 80.0,
                                       "highest_rate_hz": 62.0, "from": "measured time of the loop"}]},
        "loaded": {"load": "disk", "plan_ms": row, "act_late_ms": row, "plan_age_ms": row},
        "kernels": [kernel], "peaks": {"int8_gops": 400.0, "fp32_gflops": 100.0, "dram_gbps": 20.0},
        "estimate": {"point": 22.0, "low": 18.0, "high": 27.0, "source": "estimated: from <facts>"},
        "against": {"differences": {"plan_ms": {"p50": {"by_ms": 1, "low_ms": 0.5, "high_ms": 1.5, "share": 0.05}},
                                    "act_late_ms": None}, "not_alike": ["threads: 2, it was 1"], "notes": []},
        "environment": found["environment"] | {"over_time": [
            {"s": 5.0 * i, "temperatures_c": {"cpu": 50.0 + i, "soc": 44.0}, "clocks_hz": {}} for i in range(30)]},
    }  # fmt: skip


def test_the_clocks_part_of_the_page(tmp_path):
    text = checked(report.add(write_bundle(tmp_path), "profile", clocked()))
    for words in (
        "<b>stall</b>: 1 stall, the longest &lt;70&gt; ms.", "worth 900 independent ones", "Missed 0, 3 in a row",
        "Holds up to 31.2 Hz with at most 1 % late plans (95 % confidence), limited by the plan.",
        "Of the time to the next plan 90 ms of 250 are left.", "4 iterations instead of 8", "62 Hz",
        "a plan takes, disk busy", "a plan after 1 s of nothing", "cold start to first action", "Lateness over the run",
        'class="bar missed"', "one period, 50 ms", "A plan, from whole to kernels", "product_i8 9 ms",
        "Kernels under their roofs", "int8 400", "Estimate against measurement", "estimated: from &lt;facts&gt;",
        "Plan time over the run", "Memory over the run", "Temperature over the run", "Against another run",
        "a plan, p50: +1 ms (+0.5 to +1.5), +5.0 %: longer", "lateness: too few samples to compare",
    ):  # fmt: skip
        assert words in text, words
    late = clocked()["headroom"] | {"plan_left_ms": -10.0}
    assert "it is 10 ms more than the 250 there are" in checked(
        report.add(tmp_path, "profile", clocked() | {"headroom": late})
    )
    none = clocked()["headroom"] | {"highest_rate_hz": None, "needs": {"plan": 2995, "action": 299}, "gains": []}
    assert "is withheld: it takes 2,995 plans and 299 actions." in checked(
        report.add(tmp_path, "profile", clocked() | {"headroom": none})
    )


def test_charts_of_the_clock_of_odd_data():
    assert "not kept in order" in clock_charts.timeline([], 1.0, 50.0)
    assert clock_charts.timeline([0.0], 1.0, 50.0).count("<rect") == 1
    assert "profile with --kernels" in clock_charts.roofline([{"gflops": None}], {"fp32_gflops": 1.0})
    assert "not measured" in clock_charts.flame([])
    sliver = [{"stage": "a", "ms": 1e-9, "kernels": {"b": 1e-9}}, {"stage": "c", "ms": 1.0, "kernels": {}}]
    assert 'width="0.60"' in clock_charts.flame(sliver)
    assert "max" not in clock_charts.estimate({"point": 1, "low": 0.5, "high": 2}, {"p50": 1.0})


def test_charts_of_odd_data():
    assert "nothing was measured" in charts.histogram([], [], "ms")
    one = charts.histogram([[3.0, 1]], [("p50", 3.0, "quantile")], "ms")
    assert "p50 3 ms" in one
    assert charts.histogram([[0.0, 5], [1e5, 1]], [], "ms").count('class="bar"') == 2
    assert "no candidate" in charts.scatter([None], [1.0], [0], "x", "y")
    assert "<circle" in charts.scatter([1.0, 1.0], [1.0, 1.0], [0, 1], "x", "y")
    assert "nothing was measured" in charts.lines([("a", [None], "full")], [0], "x", "y")
    near = charts.lines([("a", [1.0, 2.0, 3.0], "full")], [0, 1, 100], "x", "y")
    assert 'text-anchor="middle">0</text>' in near and 'text-anchor="middle">1</text>' not in near  # no room for both
    assert "nothing was measured" in charts.dumbbells([("a", None, None)], "x")
    assert charts.dumbbells([("a", 0.5, None), ("b", -1.0, 2.0)], "x", high=1.0).count("<circle") == 3
    low, high, ticks = charts.scale(0.013, 0.97)
    assert low <= 0.013 and high >= 0.97 and 4 <= len(ticks) <= 7


def test_imagined_futures_are_what_the_gallery_knows():
    toy = Toy()
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    shown = np.concatenate([frames[:1], rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)])
    actions = rng.uniform(-1, 1, (8, 2))
    subjects = Subjects(side(toy), side(toy), TOY_PLANNER, "pixels", PORTS[2])
    found = picture.futures(subjects, lambda periods, seed: (frames, actions, shown), 20.0, 0)
    assert found.real.shape == found.full.shape == (5, 4, 4, 3)
    assert np.array_equal(found.full, found.compressed) and np.array_equal(found.full[0], frames[0])
    assert found.seconds.tolist() == [0, 0.1, 0.2, 0.3, 0.4]


def test_a_film_of_an_episode(tmp_path):
    image = pytest.importorskip("PIL.Image")
    from edgewm.film import Film
    from edgewm.reference.two_room.world import TwoRoom

    arena = TwoRoom().make(3)
    seen = arena.reset(3)
    film = Film(SimpleNamespace(rate_hz=20.0))
    for period in range(1, 6):
        film.add(arena, seen, period, 24.0)
        seen = arena.step(np.float32([1, 0]))
    film.hold(True, frames=2)
    film.save(tmp_path / "a.gif")
    with image.open(tmp_path / "a.gif") as made:
        assert made.n_frames >= 3 and made.size[0] > 400 and made.info["duration"] in range(100, 400)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]
    with pytest.raises(EdgewmError, match="nothing was filmed"):
        Film(SimpleNamespace(rate_hz=20.0)).save(tmp_path / "b.gif")

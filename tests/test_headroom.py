"""The rate that holds, the stages of a plan, what a change would gain, two runs compared, and the fleet's text."""

from __future__ import annotations

import dataclasses
import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_profile import MILLI, TALKING, tick, write_bundle

from edgewm import clock, clock_page, compare, headroom, phases, prometheus
from edgewm import profile as verb
from edgewm.clock import summarise
from edgewm.console import profile_table
from edgewm.device import Place
from edgewm.errors import EdgewmError
from edgewm.estimate import verb as verb_of_estimate
from edgewm.manifest import read_manifest
from edgewm.program import Planner
from edgewm.series import Series


def series(run: dict, **samples: list) -> dict:
    for name, values in samples.items():
        run[name]["series"] = [int(v) for v in values]
    return run


def steady(plans: int = 600, ticks: int = 3000, plan_ms: float = 8.0, seed: int = 0, **more) -> dict:
    rng = np.random.default_rng(seed)
    late = (1e5 * rng.lognormal(0, 0.2, ticks)).astype(int)
    took = (plan_ms * 1e6 * rng.lognormal(0, 0.05, plans)).astype(int)
    return series(tick(late, took, rate_hz=50.0, elapsed_ns=10**12, **more), act_late_ns=late, plan_ns=took)


def test_the_rate_that_holds_is_where_the_slowest_plans_just_fit():
    run = steady()
    held = headroom.rate_that_holds(run, 50.0, 5, 0.01)
    took = np.asarray(run["plan_ns"]["series"])
    assert held["bound_by"] == "plan" and held["needs"] == {}
    assert (took > 5e9 / held["highest_rate_hz"]).mean() <= 0.01
    assert held["plan_budget_ms"] == 100 and held["plan_left_ms"] == pytest.approx(100 - held["plan_bound_ms"])
    twice = headroom.rate_that_holds(run, 50.0, 10, 0.01)
    assert twice["highest_rate_hz"] == pytest.approx(2 * held["highest_rate_hz"])
    few = headroom.rate_that_holds(run, 50.0, 5, 0.001)
    assert few["highest_rate_hz"] is None and few["needs"] == {"plan": 3688, "action": 3688}
    slow_acts = headroom.rate_that_holds(steady(plan_ms=0.1), 50.0, 5, 0.01)
    assert slow_acts["bound_by"] == "action"


CALLS = [
    {"call": 0, "kernel": "map<a>", "lanes": 8, "times": 1, "step": 0},
    {"call": 1, "kernel": "product<b>", "lanes": 64, "times": 1, "step": 1},
    {"call": 2, "kernel": "product<c>", "lanes": 128, "times": 8, "step": 3},
    {"call": 3, "kernel": "topk", "lanes": 1, "times": 8, "step": 3},
]  # fmt: skip


def timed() -> dict:
    spent = zip(range(4), (10, 90, 800, 60), strict=True)
    run = tick([MILLI] * 10, [1000] * 10, calls=[{"call": i, "kernel": "x", "ns": 10 * ns} for i, ns in spent],
               steps=[{"step": i, "ns": ns} for i, ns in ((0, 100), (1, 900), (3, 8800))], observe_ns=100)  # fmt: skip
    return series(run, plan_ns=[1000] * 10)


def test_stages_of_a_plan_by_what_is_repeated_and_what_comes_before():
    found = {each["stage"]: each for each in headroom.stages_ms(timed(), CALLS)}
    assert list(found) == list(headroom.STAGES)
    in_ns = {name: round(each["ms"] * 1e6) for name, each in found.items()}
    assert in_ns == {"observe": 10, "preprocess": 10, "encode": 90, "plan": 880, "publish": 20}
    assert sum(each["share"] for each in found.values()) == pytest.approx(1)
    assert list(found["plan"]["kernels"]) == ["product", "topk", "waiting"]
    assert headroom.stages_ms(tick([1]), []) == []


def test_gains_are_computed_from_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    planner = dataclasses.replace(Planner(), samples=128, iterations=8)
    manifest = SimpleNamespace(planner=planner, precision="fp32", target="host", mode="AS_IS")
    bundle = write_bundle(tmp_path / "out", "")
    monkeypatch.setattr(headroom, "calls_of", lambda bundle: CALLS)
    monkeypatch.setattr(headroom, "_estimates", lambda *given: [("2 threads instead of 1", 0.6, "estimated")])
    held, peaks = headroom.rate_that_holds(steady(), 50.0, 5, 0.01), {"fp32_gflops": 50.0, "int8_gops": 200.0}
    stages = headroom.stages_ms(timed(), CALLS)
    found = {g["change"]: g for g in headroom.gains(manifest, bundle, timed(), stages, held, 1, peaks)}
    shares = {change: round(1000 * each["share"]) for change, each in found.items()}
    whole = 1010
    assert shares == {
        "w8a8 instead of fp32": round(1000 * (1 - 800 / whole * 0.75)),
        "4 iterations instead of 8": round(1000 * (1 - 440 / whole)),
        "64 samples instead of 128": round(1000 * (1 - 880 * 800 / 860 / 2 / whole)),
        "2 threads instead of 1": 600,
    }
    assert list(shares.values()) == sorted(shares.values())
    for each in found.values():
        assert each["plan_ms"] == pytest.approx(held["plan_bound_ms"] * each["share"])
        assert each["highest_rate_hz"] == pytest.approx(held["rates_hz"]["plan"] / each["share"])
    withheld = headroom.rate_that_holds(steady(9), 50, 5, 0.01)
    unknown = headroom.gains(manifest, bundle, timed(), stages, withheld, 1, None)
    assert unknown and all(each["plan_ms"] is None and "w8a8" not in each["change"] for each in unknown)


def test_products_are_weighed_by_the_peak_of_what_each_computes_in():
    peaks = {"fp32_gflops": 50.0, "bf16_gflops": 100.0, "int8_gops": 400.0}
    kernels = {"product_bf16": 60.0, "product": 10.0, "product_rounded": 9.0, "attention": 5.0, "topk": 16.0}
    stages = [{"stage": "plan", "kernels": kernels}]
    ((change, share, _),) = headroom._precisions("bf16", stages, 100.0, peaks)
    assert change == "w8a8 instead of bf16" and share == pytest.approx(1 - 0.60 * 0.75 - 0.10 * 0.875)
    found = {change: share for change, share, _ in headroom._precisions("fp32", stages, 100.0, peaks)}
    assert found["bf16 instead of fp32"] == pytest.approx(1 - 0.10 * 0.5)  # what is in bf16 stays
    built = [{**call, "kernel": call["kernel"].replace("product<", "product_bf16<")} for call in CALLS]
    ((_, share, _),) = headroom._precisions("bf16", headroom.stages_ms(timed(), built), 1010e-6, peaks)
    assert share == pytest.approx(1 - 800 / 1010 * 0.75)
    assert headroom._precisions("bf16", stages, 100.0, {**peaks, "bf16_gflops": None}) == []
    assert headroom._precisions("bf16", [{"stage": "plan", "kernels": {"product_i8": 9.0}}], 9.0, peaks) == []


def test_the_peak_is_of_the_formats_that_products_were_run_in():
    peaks = {"fp32_gflops": 50.0, "bf16_gflops": 100.0, "int8_gops": 400.0, "dram_gbps": 10.0}
    calls = [
        {"times": 1, "work": {"f32": 1000, "vector": 9, "weights": 8, "does": "as it is"}},
        {"times": 8, "work": {"i8": 375, "does": "as it is"}},
    ]  # fmt: skip
    assert verb.product_peak(calls, peaks) == pytest.approx(4000 / (1000 / 50 + 3000 / 400))
    assert verb.product_peak(calls[1:], peaks) == 400
    assert verb.product_peak(calls, {**peaks, "int8_gops": None}) is None and verb.product_peak(calls, None) is None
    assert verb.product_peak([{"times": 1, "work": {"vector": 9, "does": "as it is"}}], peaks) is None
    assert verb.peak_fraction(2 * 10**9, 100.0, 40.0) == pytest.approx(0.5)
    assert verb.peak_fraction(None, 100.0, 40.0) is verb.peak_fraction(2, None, 40.0) is None
    assert verb.peak_fraction(2, 100.0, None) is None


# --------------------------------------------------------------------------------------------------------- power modes


def test_a_profile_is_of_the_mode_that_the_board_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(verb_of_estimate, "estimate", lambda bundle, **how: asked.append(how["mode"]) or {
        "plan_ms": {"point": 1.0, "low": 0.9, "high": 1.2}, "provenance": ["facts"]})  # fmt: skip
    bundle = write_bundle(tmp_path / "out", TALKING.replace("{answer}", repr(steady(20, 100))))
    built = read_manifest(bundle)
    for target, said, mode in (
        ("orin", "MODE_15W", "15W"), ("orin", "MAXN", "MAXN"), ("orin", "MODE_70W", "70W"), ("orin", None, None),
        ("host", "MODE_15W", "15W"), ("host", None, "AS_IS"),
    ):  # fmt: skip
        first = {"orin": "MAXN", "host": "AS_IS"}[target]
        own = dataclasses.replace(built, target=target, mode=first, raw={"isa": "neon"})
        text = "== $ uname -m\nnone\n" + (f"== $ nvpmodel -q\nNV Power Mode: {said}\n2\n" if said else "")
        monkeypatch.setattr(verb, "read_manifest", lambda bundle, own=own: own)
        there = Place("local", "measured", str(bundle), list, lambda: None, lambda text=text: text)
        monkeypatch.setattr(verb, "place", lambda *given, there=there: nullcontext(there))
        asked.clear()
        found = verb.profile(bundle, ticks=100)
        assert (found["mode"], found["built_for_mode"]) == (mode, own.mode)
        is_known = target == "host" or mode in ("15W", "MAXN")
        assert (found["estimate"] is not None) == is_known
        assert asked[:1] == [mode if target == "orin" else "AS_IS"][:is_known]
        names = [each["name"] for each in found["findings"]]
        assert ("another mode" in names) == (target == "orin" and mode in ("15W", "70W"))
        title = profile_table(found).renderables[0].title
        assert f"mode {mode or 'not known'}" in title
        assert ("Its power mode is not known." in clock_page.notes(found)) == (mode is None)


def test_where_it_was_measured_is_said():
    own = {**profiled(), "threads": 1}
    for device, words in (("local", "Measured here, paced"), ("Jetson Orin", "Measured on Jetson Orin, paced")):
        assert clock_page.notes({**own, "device": device})[0].startswith(words)
    assert clock_page.notes(own)[0].startswith("Measured here, paced")


# ------------------------------------------------------------------------------------------------------------ compare


def profiled(**how) -> dict:
    run = summarise(steady(**how))
    return {**run, "rate_hz": 50.0, "threads": 1, "environment": {"cpu": "a", "governor": None}}


def test_two_runs_are_told_apart_or_not():
    same = compare.compare(profiled(seed=1), profiled(seed=2))
    each = same["differences"]["plan_ms"]["p50"]
    assert same["paired"] and each["low_ms"] <= 0 <= each["high_ms"]
    slower = compare.compare({**profiled(seed=1, plan_ms=8.4), "threads": 2}, profiled(seed=2))
    each = slower["differences"]["plan_ms"]["p50"]
    assert 0 < each["low_ms"] < 0.4 < each["high_ms"] and each["share"] == pytest.approx(0.05, abs=0.01)
    assert slower["not_alike"] == ["threads: 2, it was 1"]
    lines = "\n".join(compare.sentences(slower))
    assert "a plan, p50: +0.3" in lines and "longer" in lines and "lateness, mean" in lines
    assert "no difference beyond chance" in lines and "not alike: threads: 2" in lines and "one run of each" in lines
    assert compare.compare(profiled(plans=9), profiled())["differences"]["plan_ms"] is None
    assert "p99" not in slower["differences"]["plan_ms"]  # 600 plans: 6 above it
    assert "a plan, p99: withheld, it takes 1,000 samples of each run" in lines
    assert "lateness, p99.9: withheld, it takes 10,000 samples of each run" in lines  # 3000 ticks: 3 above it


def test_soaks_longer_than_a_file_keeps_are_compared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clock, "LONGEST_SERIES", 2000)
    monkeypatch.setattr(compare, "LONGEST_SERIES", 2000)
    runs = json.loads(json.dumps([profiled(seed=1), profiled(seed=2)]))
    assert len(runs[0]["series"]["act_late_ms"]) == 2000 and runs[0]["ticks"] == 3000
    found = compare.compare(*runs)
    assert found["differences"]["act_late_ms"]["p99"]["low_ms"] <= 0
    assert "lateness: of the first 2,000 samples of this run" in found["notes"]
    assert not any(each.startswith("a plan: of the first") for each in found["notes"])


def test_what_is_no_profile_is_refused(tmp_path: Path):
    file = tmp_path / "a.json"
    none = "this is no profile"
    for text, what in (("{", "no profile can be read there"), ("[]", none), ('{"a": 1}', none)):
        file.write_text(text)
        with pytest.raises(EdgewmError, match=what):
            compare.read_profile(file)
    with pytest.raises(EdgewmError, match="no profile can be read there"):
        compare.read_profile(tmp_path / "none.json")
    file.write_text(json.dumps({**profiled(), "series": {"plan_ms": None, "act_late_ms": [1.0]}}))
    with pytest.raises(EdgewmError, match="no samples of plan_ms"):
        compare.read_profile(file)
    file.write_text(json.dumps({**profiled(), "ticks": 180_000, "series": {"plan_ms": [1.0], "act_late_ms": None}}))
    with pytest.raises(EdgewmError, match="too many samples to keep of act_late_ms"):
        compare.read_profile(file)


def test_the_interval_of_a_median_widens_where_plans_cluster():
    x = np.random.default_rng(0).normal(size=500)
    low, high = phases.median_interval(Series(x))
    wide_low, wide_high = phases.median_interval(Series(np.repeat(x, 10)))
    assert low < 0 < high and wide_high - wide_low > 0.8 * (high - low)  # ten times the samples, worth no more
    assert phases.median_interval(Series(np.repeat(x[:20], 10))) is None


def test_console_and_page_say_what_was_judged_and_what_is_withheld():
    run = steady()
    run["act_late_ns"]["series"] = run["act_late_ns"]["series"][:2000]
    none = steady()
    del none["act_late_ns"]["series"]
    for each, words in ((run, "judged on the first 2,000 periods"), (none, "rate is withheld, too little is known")):
        result = {**summarise(each), "rate_hz": 50.0, "threads": 1, "device": "local", "target": "host", "mode": "A"}
        shown, page = "\n".join(map(str, profile_table(result).renderables)), " ".join(clock_page.notes(result))
        assert words in shown and words in page
        assert ("ppm off the nominal period" in shown) == ("ppm off the nominal period" in page) == (each is run)
        assert ("apart by the period" in clock_page.figures(result)) == (each is run)
    assert "The order of samples was not kept, so bounds are withheld" in page


# --------------------------------------------------------------------------------------------------------- prometheus


def test_prometheus_text_is_whole_and_leaves_out_what_is_withheld(tmp_path: Path):
    result = {**profiled(), "device": 'a "b"\\', "target": "host", "findings": [{"name": "stall", "words": ""}]}
    lines = prometheus.text(result).splitlines()
    names = {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {n.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for n in names} <= typed
    buckets = [int(line.split()[-1]) for line in lines if line.startswith("edgewm_plan_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == 600
    bounds = [re.search(r'le="([^"]+)"', line)[1] for line in lines if line.startswith("edgewm_plan_seconds_bucket")]
    assert bounds[:4] == ["1e-05", "2e-05", "5e-05", "0.0001"] and bounds[-2:] == ["50", "+Inf"]
    assert buckets[bounds.index("0.01")] == sum(n for ms, n in result["histograms"]["plan_ms"] if ms <= 10)
    own = '{device="a \\"b\\"\\\\",target="host"'
    assert f'edgewm_plan_upper_bound_seconds{own},quantile="0.99"}} ' in "\n".join(lines)
    assert not any("edgewm_plan_upper_bound_seconds" in line and '0.999"' in line for line in lines)
    assert f'edgewm_finding{own},name="stall"}} 1' in lines
    prometheus.write(result, tmp_path / "edgewm.prom")
    assert (tmp_path / "edgewm.prom").read_text().splitlines() == lines and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(EdgewmError, match="cannot write Prometheus text"):
        prometheus.write(result, tmp_path / "no" / "edgewm.prom")
    with pytest.raises(EdgewmError, match="cannot write Prometheus text: Is a directory"):
        prometheus.write(result, tmp_path)


def test_what_cannot_be_is_refused_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verb, "place", lambda *given: pytest.fail("it was timed"))
    bundle = write_bundle(tmp_path / "out", "")
    for file, why in ((Path(), "Is a directory"), (tmp_path / "no" / "x.prom", "No such file or directory"),
                      (bundle / "model.ewm" / "x.prom", "Not a directory")):  # fmt: skip
        with pytest.raises(EdgewmError, match=f"cannot write Prometheus text: {why}") as fault:
            verb.profile(bundle, prometheus=file)
        assert fault.value.where == str(file) and "--prometheus" in fault.value.fix
    for minutes in (float("nan"), 1e15, float("inf"), 0.0, -1.0):
        with pytest.raises(EdgewmError, match="minutes cannot be made") as fault:
            verb.profile(bundle, minutes=minutes)
        assert fault.value.fix == "give a number above 0 and up to 3.33e+08"
    assert verb.periods(1e-9, 50.0) == 1


# --------------------------------------------------------------------------------------------------------- whole runs


def test_a_profile_that_ends_with_a_rate_is_compared_and_told(tmp_path: Path):
    bundle = write_bundle(tmp_path / "out", TALKING.replace("{answer}", repr(steady())))
    first = verb.profile(bundle, ticks=3000, prometheus=tmp_path / "a.prom")
    (tmp_path / "a.json").write_text(json.dumps(first))
    again = verb.profile(bundle, minutes=1, against=tmp_path / "a.json")
    assert json.loads((bundle / "edgewm-tick.seen").read_text()) and again["headroom"]["highest_rate_hz"] > 0
    assert again["against"]["differences"]["plan_ms"]["p50"]["by_ms"] == 0
    assert (tmp_path / "a.prom").read_text().startswith("# HELP edgewm_action_lateness_seconds ")
    shown = "\n".join(map(str, profile_table(again).renderables))
    lines = ("highest rate with at most 1 % late plans: ", "against the other run:", "no difference beyond chance")
    for words in lines:
        assert words in shown, words
    with pytest.raises(EdgewmError, match="no profile can be read"):
        verb.profile(bundle, against=tmp_path / "b.json")


def test_minutes_are_periods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list = []

    def run(folder, rate_hz, ticks, threads, *flags, **more):
        asked.append((rate_hz, ticks))
        return steady()

    monkeypatch.setattr(verb, "run_tick", run)
    verb.profile(write_bundle(tmp_path / "out", ""), minutes=0.5)
    assert asked[0] == (50.0, 1500)

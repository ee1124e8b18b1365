"""The clock prints only what its sample supports, and sees planted stalls."""

from __future__ import annotations

import dataclasses
import json
import platform
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgewm import clock, findings, loads, phases
from edgewm import format as ewm_format
from edgewm import profile as verb
from edgewm.device import Place
from edgewm.errors import EdgewmError
from edgewm.program import Planner

MILLI = 1_000_000
SCHEDULER = {"policy": "other", "priority": 0, "cpus": [0], "memory_locked": False, "refused": []}


def bucket_top(x: int) -> int:
    """As runtime/histogram.h: 64 linear buckets for each power of two."""
    if x < 64:
        return x
    shift = x.bit_length() - 7
    return (((x >> shift) + 1) << shift) - 1


def as_histogram(values_ns) -> dict:
    values = [int(v) for v in values_ns]
    tops, counts = np.unique([bucket_top(v) for v in values], return_counts=True)
    return {
        "count": len(values), "min": min(values, default=0), "max": max(values, default=0),
        "buckets": [[int(t), int(c)] for t, c in zip(tops, counts, strict=True)],
        **({"series": values} if values else {}),
    }  # fmt: skip


def tick(late_ns, plan_ns=(), age_ns=(), misses=0, **more) -> dict:
    late = list(late_ns)
    return {
        "ticks": len(late), "misses": misses, "plans": len(list(plan_ns)), "plans_per_s": 20.0,
        "first_plan_ns": 9 * MILLI, "act_late_ns": as_histogram(late), "plan_ns": as_histogram(plan_ns),
        "plan_age_ns": as_histogram(age_ns),
        "stats": {}, "scheduler": SCHEDULER, "mode": "async", "plan_error": 0, "calls": [], "steps": [], **more,
    }  # fmt: skip


def test_the_fields_of_the_interface():
    rng = np.random.default_rng(0)
    found = clock.summarise(
        tick(rng.lognormal(11, 0.5, 5000), rng.lognormal(16, 0.1, 5000), rng.lognormal(17, 0.1, 5000))
    )
    for key in ("act_late_ms", "plan_ms", "plan_age_ms"):
        values = [found[key][q] for q in ("p50", "p99", "p999", "max")]
        assert values == sorted(values) and values[0] > 0
    assert found["misses"] == 0 and found["miss_rate_upper"] == pytest.approx(3 / 5000, rel=0.01)
    assert found["withheld"] == {} and found["independence"] == "measured"
    json.dumps(found, allow_nan=False)


def test_bounds_lie_above_the_truth_and_close_to_it():
    rng, bounds = np.random.default_rng(1), []
    truth = float(np.exp(13 + 0.5 * 2.3263478740408408)) / 1e6
    for _ in range(60):
        bounds.append(clock.summarise(tick(rng.lognormal(13, 0.5, 1000)))["act_late_ms"]["p99"])
    printed = [bound for bound in bounds if bound is not None]  # some look dependent by chance
    assert len(printed) >= 50 and max(printed) < 2 * truth
    assert sum(bound < truth for bound in printed) <= 8  # of 60 at a nominal 3


@pytest.mark.parametrize(
    ("n", "printed"),
    [(5, {"p50"}), (298, {"p50"}), (299, {"p50", "p99"}), (2994, {"p50", "p99"}), (2995, {"p50", "p99", "p999"})],
)
def test_a_quantile_is_withheld_below_the_samples_it_needs(n, printed):
    found = clock.summarise(tick(np.full(n, MILLI)))
    assert {k for k in clock.QUANTILES if found["act_late_ms"][k] is not None} == printed
    for key in set(clock.QUANTILES) - printed:
        note = found["withheld"][f"act_late_ms.{key}"]
        assert note["samples"] == n and note["needs"] in (299, 2995)


def test_no_samples_at_all():
    found = clock.summarise(tick([MILLI] * 10))
    assert found["plan_ms"] == dict.fromkeys(("p50", "p99", "p999", "max"))
    assert found["withheld"]["plan_ms.p50"]["needs"] == 5


def test_a_stall_counts_against_every_period_it_delays():
    period, n = MILLI, 10_000  # 1 kHz
    late = [50_000] * n
    for k in range(100):  # one stall of 100 ms
        late[5000 + k] = (100 - k) * period
    found = clock.summarise(tick(late, misses=sum(v >= period for v in late)))
    assert found["misses"] == 100 and found["act_late_ms"]["max"] == 100.0
    assert found["act_late_ms"]["p999"] is None and found["miss_rate_upper"] is None  # one event: how often, who knows
    naive = [50_000] * n
    naive[5000] = 100 * period  # control: one execution time
    assert clock.summarise(tick(naive))["act_late_ms"]["p999"] < 0.1


def test_a_kept_series_that_repeats_itself_is_worth_less():
    values = np.repeat(np.random.default_rng(2).lognormal(12, 1, 400), 10)
    found = clock.summarise(tick(values))
    assert clock.summarise(tick(np.random.default_rng(2).permutation(values)))["act_late_ms"]["p999"] is not None
    assert found["act_late_ms"]["p999"] is None and found["independence"] == "measured"
    assert found["withheld"]["act_late_ms.p999"]["worth"] < 1000
    assert found["miss_rate_upper"] is None and found["effective_ticks"] < 1000


def test_a_run_longer_than_its_series_is_judged_on_the_part_that_was_kept():
    rng, n, kept = np.random.default_rng(3), 20_000, 12_000

    def told(values: np.ndarray, keep: int = kept, **more) -> dict:
        run = tick(values, [MILLI] * 400, rate_hz=1000.0, elapsed_ns=10**12, **more)
        run["act_late_ns"]["series"] = run["act_late_ns"]["series"][:keep]
        return clock.summarise(run)

    values = rng.lognormal(11, 0.3, n)
    whole, part = told(values, n), told(values)
    assert (whole["independence"], part["independence"]) == ("measured", "measured on a part")
    assert part["judged_ticks"] == kept and part["effective_ticks"] == n
    for q in ("p50", "p99", "p999"):  # the histogram's buckets are within 1/64
        assert part["act_late_ms"][q] == pytest.approx(whole["act_late_ms"][q], rel=1 / 20)
    assert part["miss_rate_upper"] == whole["miss_rate_upper"] == pytest.approx(3 / n, rel=0.01)
    clustered = told(np.repeat(rng.lognormal(11, 0.3, n // 10), 10))
    assert clustered["act_late_ms"]["p99"] is not None and clustered["effective_ticks"] < n / 5
    assert clustered["act_late_ms"]["p999"] is None and clustered["miss_rate_upper"] is None
    unknown = told(values, 0)
    assert unknown["independence"] == "unknown" and unknown["miss_rate_upper"] is None
    assert [unknown["act_late_ms"][q] for q in clock.QUANTILES] == [None] * 3 and unknown["act_late_ms"]["max"] > 0
    assert "12,000 periods" in clock.judged_words(part) and "not kept" in clock.judged_words(unknown)
    assert clock.judged_words(whole) == ""
    # A stall after that part is seen in the spans; how often misses come, the part cannot say.
    values[15_000:15_100] = 1e6 * np.arange(101, 1, -1)
    spans = [{"end_ns": 10**9 * (i + 1), "ticks": 5000, "misses": 100 * (i == 3), "late_max_ns": 10**8 * (i == 3),
              "plans": 100, "plan_ns": 10**8, "peak_kb": 1, "minor_faults": 0, "major_faults": 0}
             for i in range(4)]  # fmt: skip
    late = told(values, misses=100, spans=spans)
    (stall,) = late["findings"]
    assert stall["name"] == "stall" and stall["words"].startswith("at least 1 stall, the longest 101 ms")
    assert late["miss_rate_upper"] is None


def test_jitter_and_period_are_of_consecutive_actions():
    found = clock.summarise(tick([100_000, 400_000] * 200, rate_hz=1000.0))  # 0.3 ms apart from the period, each time
    assert found["jitter_ms"]["p50"] == found["jitter_ms"]["max"] == pytest.approx(0.3)
    assert found["period_error_ppm"] == pytest.approx(1e6 * 0.3 / 399)
    rng = np.random.default_rng(5)
    late = 1e5 * rng.lognormal(0, 0.3, 4000)
    found = clock.summarise(tick(late, rate_hz=1000.0))
    off = np.abs(np.diff(late.astype(int)))
    for q, p in clock.QUANTILES.items():
        bound = found["jitter_ms"][q]
        if bound is None:
            assert f"jitter_ms.{q}" in found["withheld"]
        else:
            assert np.quantile(off, p) <= 1e6 * bound < 2 * np.quantile(off, p)
    assert found["jitter_ms"]["p50"] is not None and found["jitter_ms"]["max"] == pytest.approx(off.max() / 1e6)
    slow = clock.summarise(tick(100 * np.arange(4000), rate_hz=1000.0))  # each action 100 ns later than the last
    assert slow["period_error_ppm"] == pytest.approx(100) and slow["jitter_ms"]["max"] == pytest.approx(1e-4)
    # Two periods without an action of their own share the next one's: one gap of three periods.
    shared = clock.summarise(tick([0] * 50 + [2 * MILLI, MILLI, 0] + [0] * 50, rate_hz=1000.0))
    assert shared["jitter_ms"]["max"] == 2.0 and shared["period_error_ppm"] == pytest.approx(1e6 * (102 / 100 - 1))
    assert clock.summarise(tick([MILLI] * 9))["jitter_ms"] is None  # of no known rate


def test_shares_by_kernel():
    calls = [
        {"call": 0, "kernel": "product", "ns": 60},
        {"call": 1, "kernel": "map", "ns": 10},
        {"call": 2, "kernel": "product", "ns": 10},
    ]
    found = clock.kernel_shares(tick([1], calls=calls, steps=[{"step": 0, "ns": 100}]))
    assert list(found.items()) == [("product", 0.7), ("barriers", 0.2), ("map", 0.1)]
    assert clock.kernel_shares(tick([1])) == {}


def test_slo():
    assert verb.parse_slo("p99=20ms") == ("p99", 20.0)
    assert verb.parse_slo("p99.9=1.5s") == ("p999", 1500.0)
    assert verb.parse_slo("max=300us") == ("max", pytest.approx(0.3))
    assert verb.parse_slo(None) is None
    with pytest.raises(EdgewmError, match="no bound 'p99<3'"):
        verb.parse_slo("p99<3")


def here(folder: Path, started: list) -> Place:
    def command(words: list[str]) -> list[str]:
        started.append(words)
        return words

    return Place("local", "measured", str(folder), command, lambda: None, lambda: "")


@pytest.mark.parametrize("load", loads.SCRIPTS)
def test_loads_run_and_end_and_leave_nothing(load: str, tmp_path: Path) -> None:
    started: list = []
    with loads.loaded(load, here(tmp_path, started), {"cores": 2, "nvidia": False}):
        assert len(started) == (1 if load == "disk" else 2)
    assert list(tmp_path.iterdir()) == []


def test_loads_that_cannot_run_are_refused_by_their_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "GPU", "raise SystemExit('Torch not compiled with CUDA enabled')")

    def refused(load: str, folder: Path, nvidia: bool = False):
        with pytest.raises(EdgewmError) as fault, loads.loaded(load, here(folder, []), {"cores": 1, "nvidia": nvidia}):
            pass
        return fault.value

    assert refused("gpu", tmp_path).what == "no NVIDIA GPU there to be busy"
    assert refused("gpu", tmp_path, nvidia=True).what == "the load does not run: Torch not compiled with CUDA enabled"
    full = refused("disk", tmp_path / "nowhere")
    assert "the load does not run: " in full.what and full.fix == "make the bundle's folder writable and free 64 MiB"
    assert refused("net", tmp_path).what == "no load 'net'"


def test_a_load_that_ends_early_is_no_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loads.SCRIPTS, "cpu", "echo ready; echo out of luck >&2; exit 3")
    busy = loads.loaded("cpu", here(tmp_path, []), {"cores": 1, "nvidia": False})
    with pytest.raises(EdgewmError, match="the load does not run: out of luck"), busy:
        time.sleep(0.5)


# ---------------------------------------------------------------------------------------------------- whole runs


ELF = {"x86_64": 0x3E, "aarch64": 0xB7}


def write_bundle(folder, runner: str, machine: str = platform.machine()):
    """A bundle with a runner of our own."""
    manifest = {
        "target": "host", "mode": "AS_IS", "precision": "fp32", "rate_hz": 50.0, "threads": 1, "ports": [],
        "planner": dataclasses.asdict(Planner()),
    }  # fmt: skip
    folder.mkdir()
    (folder / "model.ewm").write_bytes(ewm_format.pack({"manifest": json.dumps(manifest).encode()}, "t", bytes(32)))
    (folder / "libedgewm.so").write_bytes(b"\x7fELF" + bytes(14) + ELF[machine].to_bytes(2, "little") + bytes(8))
    program = folder / "edgewm-tick"
    program.write_text(f"#!{sys.executable}\n{runner}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


TALKING = """import json, sys
print(json.dumps({answer}))
json.dump(sys.argv[1:], open(__file__ + ".seen", "w"))
"""


def test_a_whole_profile(tmp_path):
    answer = tick([40_000] * 400, [7 * MILLI] * 200, [9 * MILLI] * 400)
    answer["calls"] = [{"call": 0, "kernel": "product", "ns": 5}]
    bundle = write_bundle(tmp_path / "out", TALKING.replace("{answer}", repr(answer)))
    seen = []
    found = verb.profile(bundle, ticks=400, slo="p50=10ms", progress=lambda stage, done: seen.append(done))
    assert found["plan_ms"]["p50"] == pytest.approx(7.0, rel=1 / 64) and found["slo_met"] is True
    assert found["plan_ms"]["p99"] is None and found["act_late_ms"]["p99"] == 0.04
    assert found["stages"] == {"product": 1.0} and found["rate_hz"] == 50.0 and found["device"] == "local"
    assert (bundle / "report.html").is_file() and json.loads((bundle / "report.json").read_text())["profile"]
    arguments = json.loads((bundle / "edgewm-tick.seen").read_text())
    assert arguments[1:3] == ["--rate-hz", "50.0"] and "--kernels" in arguments
    assert verb.profile(bundle, ticks=400, slo="p50=5ms")["slo_met"] is False
    assert verb.profile(bundle, ticks=400, slo="p99=50ms")["slo_met"] is None


def test_an_interrupt_ends_the_runner(tmp_path):
    bundle = write_bundle(tmp_path / "out", "import os, time; open(__file__ + '.pid', 'w').write(str(os.getpid()))\n"
                          "time.sleep(60)")  # fmt: skip

    def interrupt(stage: str, done: float) -> None:
        if (bundle / "edgewm-tick.pid").is_file() and (bundle / "edgewm-tick.pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verb.run_tick(bundle, 50.0, 10, 1, progress=interrupt)
    assert not Path("/proc", (bundle / "edgewm-tick.pid").read_text()).exists()


def test_load_is_measured_apart(tmp_path):
    bundle = write_bundle(tmp_path / "out", TALKING.replace("{answer}", repr(tick([40_000] * 400, [MILLI] * 50))))
    found = verb.profile(bundle, ticks=400, load="cpu")
    assert found["loaded"]["load"] == "cpu" and found["loaded"]["plan_ms"]["p50"] > 0


def test_phases_stand_apart():
    steady = tick([9e6, 5e4, 5e4], [7e6] * 60, rate_hz=200.0, cold_ns=80e6)
    steady["act_late_ns"]["series"], steady["plan_ns"]["series"] = [9e6, 5e4, 5e4], [7e6] * 60
    idle = tick([5e4] * 12, [9e6] * 12, cold_ns=90e6)
    idle["plan_ns"]["series"] = [9e6 + i for i in range(12)]
    found = phases.phases(steady, idle, [tick([1], first_plan_ns=20 * MILLI)])
    assert found["cold_start"] == {"each_ms": [80, 90], "max_ms": 90} and found["first_plan"]["max_ms"] == 20
    assert found["first_periods"] == {"late_ms": [9, 0.05, 0.05], "misses": 1}
    by, low, high = phases.gap_penalty(found)
    assert low <= by <= high and by == pytest.approx(2, rel=1e-4)
    assert findings.idle_gap(phases.GAP_S, (by, low, high))["words"] == (
        "after 1 s of nothing a plan takes 2 ms longer (2 ms to 2 ms)"
    )
    few = phases.phases(steady, tick([5e4], [9e6]), [])
    assert few["after_idle"]["penalty_ms"] is None and phases.gap_penalty(few) is None
    assert phases.phases(steady, None, [])["after_idle"] is None
    assert phases.idle_run(lambda *words: words, 49, 50.0, 1, ()) is None  # shorter than a gap
    assert phases.idle_run(lambda *words: words, 100, 50.0, 1, ("--mlock",)) == (
        1.0, 2, 1, "--inline", "--replan", "free", "--mlock"
    )  # fmt: skip


def test_refusals(tmp_path):
    bundle = write_bundle(tmp_path / "out", "")
    with pytest.raises(EdgewmError, match="'me@robot' is no device"):
        verb.profile(bundle, device="me@robot")
    with pytest.raises(EdgewmError, match=r"no model\.ewm"):
        verb.profile(tmp_path)
    other = next(m for m in ELF if m != platform.machine())
    with pytest.raises(EdgewmError, match=f"the bundle is for {other}, this machine is {platform.machine()}"):
        verb.profile(write_bundle(tmp_path / "foreign", "", other))
    bare = write_bundle(tmp_path / "bare", "")
    (bare / "libedgewm.so").unlink()
    with pytest.raises(EdgewmError, match=r"no libedgewm\.so"):
        verb.profile(bare)


def test_the_runners_own_words_come_through(tmp_path):
    words = "error: CPU lacks avx512\\n  where: libedgewm.so\\n  fix: build with --isa avx2\\n"
    failing = write_bundle(tmp_path / "a", f'import sys; sys.stderr.write("{words}"); sys.exit(2)')
    with pytest.raises(EdgewmError, match="CPU lacks avx512") as fault:
        verb.profile(failing)
    assert fault.value.fix == "build with --isa avx2"
    with pytest.raises(EdgewmError, match="edgewm-tick ended with status 3"):
        verb.profile(write_bundle(tmp_path / "b", "import sys; sys.exit(3)"))
    late = tick([1] * 10, plan_error=400)
    with pytest.raises(EdgewmError, match="a plan failed with error 400"):
        verb.profile(write_bundle(tmp_path / "c", TALKING.replace("{answer}", repr(late))))
    broken = write_bundle(tmp_path / "d", "")
    (broken / "edgewm-tick").chmod(0o644)
    with pytest.raises(EdgewmError, match="the runner does not start"):
        verb.profile(broken)


def test_a_lower_quantile_is_never_bounded_above_a_higher_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correlated samples are worth least for the median: its own bound may lie above that of p99."""
    bounds = dict(zip(clock.QUANTILES.values(), (100e6, 90e6, None), strict=True))
    monkeypatch.setattr(clock, "bound_ns", lambda sample, p: clock.Bound(bounds[p], 9.0, 99))
    values = np.arange(1, 101) * 1_000_000
    found = clock.quantiles_ms(clock.Sample(values, np.ones(100, np.int64), 100_000_000), {}, "plan")
    assert (found["p50"], found["p99"], found["p999"]) == (90.0, 90.0, None)

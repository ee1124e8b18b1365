"""The verb `profile`, the clock: how late can an action be, how long does a plan take, how old is it when it is played?

The bundle's own `edgewm-tick` runs its two loops at the control rate; every figure counts from the intended release, so
a stall counts against each period it delays. A quantile is printed as the order statistic that lies above it with 95 %
confidence, and withheld (null) where the sample is too small; `withheld` then says how many it would take.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import statistics
from .abi import elf_machine
from .errors import EdgewmError
from .manifest import Manifest, read_manifest
from .options import SLO, Progress, part

Array = np.ndarray

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
SHARES_S = 2.0  # length of the run that times kernels
QUANTILES = {"p50": 0.50, "p99": 0.99, "p999": 0.999}
MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Sample(NamedTuple):
    """Durations in ns: distinct upper bounds, ascending, with counts; the largest seen; the series where kept."""

    upper_ns: Array
    counts: Array
    max_ns: int
    series_ns: Array | None = None

    @property
    def n(self) -> int:
        return int(self.counts.sum())


def sample_of(histogram: Mapping[str, Any]) -> Sample:
    """A histogram of edgewm-tick's JSON: `buckets` of [greatest value, count], `max`, and the `series` where kept."""
    buckets = np.asarray(histogram["buckets"], np.int64).reshape(-1, 2)
    largest = int(histogram["max"]) if len(buckets) else 0
    series = histogram.get("series")
    return Sample(
        np.minimum(buckets[:, 0], largest),
        buckets[:, 1],
        largest,
        None if not series else np.asarray(series, np.float64),
    )


def ranked_ns(sample: Sample, rank: int) -> int:
    """Upper bound of the rank-th smallest (from 1)."""
    return int(sample.upper_ns[np.searchsorted(np.cumsum(sample.counts), rank)])


def quantiles_ms(sample: Sample, withheld: dict[str, Any], name: str) -> dict[str, float | None]:
    """Upper 95 % bounds of the quantiles, and the largest value seen; what is withheld is noted under `name`."""
    found: dict[str, float | None] = {}
    for key, p in QUANTILES.items():
        effective = sample.n if sample.series_ns is None else statistics.effective_sample_size(sample.series_ns, p)
        rank = statistics.effective_rank(sample.n, effective, p, CONFIDENCE) if sample.n else None
        found[key] = None if rank is None else ranked_ns(sample, rank) / 1e6
        if rank is None:
            needs = statistics.samples_needed(p, CONFIDENCE)
            withheld[f"{name}.{key}"] = {
                "samples": sample.n, "worth": round(float(effective), 1),
                "needs": round(needs * sample.n / max(effective, 1.0)) if sample.n else needs,
            }  # fmt: skip
    bound = None
    for key in reversed(QUANTILES):  # what bounds a quantile bounds every lower one
        bound = found[key] if bound is None else min(bound, bound if found[key] is None else found[key])
        found[key] = None if found[key] is None else bound
    found["max"] = sample.max_ns / 1e6 if sample.n else None
    return found


def summarise(tick: Mapping[str, Any]) -> dict[str, Any]:
    """What one run of edgewm-tick says, in the fields of the JSON interface."""
    withheld: dict[str, Any] = {}
    samples = {key: sample_of(tick[name]) for key, name in SAMPLES.items()}
    result: dict[str, Any] = {key: quantiles_ms(s, withheld, key) for key, s in samples.items()}
    ticks, misses = int(tick["ticks"]), int(tick["misses"])
    late = samples["act_late_ms"]
    worth = ticks if late.series_ns is None else min(ticks, statistics.effective_sample_size(late.series_ns, 0.99))
    share = worth / ticks if ticks else 0.0
    result |= {
        "ticks": ticks,
        "plans": int(tick["plans"]),
        "plans_per_s": float(tick["plans_per_s"]),
        "first_plan_ms": tick["first_plan_ns"] / 1e6,
        "misses": misses,
        "miss_rate_upper": statistics.miss_rate_upper(int(np.ceil(misses * share)), int(worth), CONFIDENCE),
        "confidence": CONFIDENCE,
        "independence": "assumed" if late.series_ns is None else "measured",
        "withheld": withheld,
        "histograms": {key: histogram(s) for key, s in samples.items()},
        "states": tick["stats"],
        "memory_locked": tick["memory_locked"],
        "plan_and_act": tick["mode"],
    }
    return result


SAMPLES = {"act_late_ms": "act_late_ns", "plan_ms": "plan_ns", "plan_age_ms": "plan_age_ns"}


def stages(tick: Mapping[str, Any]) -> dict[str, float]:
    """Share of the planning thread's time by kernel family, largest first; `barriers` is what steps took beyond."""
    spent: dict[str, float] = {}
    for call in tick["calls"]:
        family = call["kernel"].partition("<")[0]
        spent[family] = spent.get(family, 0.0) + call["ns"]
    steps = sum(step["ns"] for step in tick["steps"])
    if steps > sum(spent.values()):
        spent["barriers"] = steps - sum(spent.values())
    whole = sum(spent.values())
    return {k: v / whole for k, v in sorted(spent.items(), key=lambda kv: -kv[1])} if whole else {}


def histogram(sample: Sample) -> list[list[float]]:
    """[upper bound in ms, count], for the report."""
    return [[float(u) / 1e6, int(c)] for u, c in zip(sample.upper_ns, sample.counts, strict=True) if c]


# ------------------------------------------------------------------------------------------------------------ running


def profile(
    bundle: Path, *, rate_hz: float | None = None, ticks: int = 3000, threads: int | None = None,
    device: str = "local", load: str | None = None, kernels: bool = False, slo: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run the bundle at its control rate (or `rate_hz`) for `ticks` periods; with `load` once more under that load.

    `slo` is a bound on plan time like `p99=20ms`; `slo_met` is None where the sample cannot tell. `kernels` adds the
    time of every call. Raises EdgewmError for a bundle of another machine, a runner that does not run, a remote device.
    """
    bundle = Path(bundle)
    if device != "local":
        raise EdgewmError(
            "profile runs on this machine", f"--device {device}", "copy the bundle and run edgewm-tick there"
        )
    limit = parse_slo(slo)
    manifest = read_manifest(bundle)
    check_machine(bundle, manifest)
    rate_hz = rate_hz or manifest.rate_hz
    threads = threads or manifest.threads
    share = 0.5 if load else 1.0
    before = environment()
    steady = run_tick(bundle, rate_hz, ticks, threads, progress=part(progress, 0.0, share))
    # Timing every call disturbs what it times, so shares come from a short run of their own.
    timed = run_tick(bundle, rate_hz, max(10, round(SHARES_S * rate_hz)), threads, "--kernels", "--inline")
    result = {
        "schema_version": SCHEMA_VERSION,
        "device": "local",
        "source": "measured",
        "target": manifest.target,
        "mode": manifest.mode,
        "precision": manifest.precision,
        "bundle_sha256": manifest.sha256,
        "rate_hz": rate_hz,
        "threads": threads,
        **summarise(steady),
    }
    result["stages"] = stages(timed)
    if kernels:
        result["kernels"] = timed["calls"]
    result["peak_fraction"] = peak_fraction(manifest, result["plan_ms"]["p50"], threads)
    if load:
        with hogs(load):
            loaded = run_tick(bundle, rate_hz, ticks, threads, progress=part(progress, share, 1 - share))
        kept = (
            "act_late_ms",
            "plan_ms",
            "plan_age_ms",
            "plans_per_s",
            "misses",
            "miss_rate_upper",
            "withheld",
            "histograms",
        )
        found = summarise(loaded)
        result["loaded"] = {"load": load, **{key: found[key] for key in kept}}
    result["environment"] = {**before, "load_average_after": os.getloadavg()}
    if limit is not None:
        which, limit_ms = limit
        found_ms = result["plan_ms"][which]
        result |= {"slo": slo, "slo_met": None if found_ms is None else found_ms <= limit_ms}
    from .report import add

    add(bundle, "profile", result)
    return result


def parse_slo(slo: str | None) -> tuple[str, float] | None:
    """`p99=20ms` -> ("p99", 20.0)."""
    if slo is None:
        return None
    match = SLO.fullmatch(slo)
    if match is None:
        raise EdgewmError(f"no bound {slo!r}", "--slo", "write it like p99=20ms (p50, p99, p99.9 or max; us, ms or s)")
    return match["which"].replace(".", ""), float(match["value"]) * MS[match["unit"]]


def check_machine(bundle: Path, manifest: Manifest) -> None:
    """EdgewmError when the library is for another architecture: an emulator is no clock."""
    library = bundle / "libedgewm.so"
    if not library.is_file():
        raise EdgewmError("no libedgewm.so", str(bundle), "build the bundle again")
    machine = elf_machine(library)
    if machine != platform.machine():
        raise EdgewmError(
            f"the bundle is for {machine}, this machine is {platform.machine()}",
            f"{library} (target {manifest.target})",
            "copy the bundle to its target and run edgewm-tick there, or build with --target host",
        )  # fmt: skip


def run_tick(
    bundle: Path, rate_hz: float, ticks: int, threads: int, *flags: str, progress: Progress | None = None
) -> dict[str, Any]:
    """One paced run; edgewm-tick's JSON. EdgewmError with its own words when it fails."""
    command = [
        str(bundle / "edgewm-tick"), str(bundle), "--rate-hz", repr(float(rate_hz)), "--ticks", str(ticks),
        "--threads", str(threads), "--json", "-", *flags,
    ]  # fmt: skip
    expected_s = ticks / rate_hz
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as fault:
        raise EdgewmError(
            f"the runner does not start: {fault.strerror}", command[0], "build the bundle again"
        ) from fault
    began = time.monotonic()
    try:
        while True:
            try:
                out, err = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if progress:
                    progress("ticking", min(1.0, (time.monotonic() - began) / expected_s))
    finally:  # an interrupt must not leave a process behind that keeps the cores busy
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise _as_told(err, " ".join(command), process.returncode)
    result = json.loads(out)
    if result["plan_error"]:
        raise EdgewmError(
            f"a plan failed with error {result['plan_error']} (see edgewm.h)", " ".join(command), "validate the bundle"
        )
    return result


def _as_told(err: str, where: str, status: int) -> EdgewmError:
    """The runner's own three lines; its signal or status where it said nothing."""
    told = dict(line.strip().split(": ", 1) for line in err.splitlines() if ": " in line)
    if "error" in told:
        return EdgewmError(told["error"], told.get("where", where), told.get("fix", "build the bundle again"))
    return EdgewmError(f"edgewm-tick ended with status {status}", where, "build the bundle for this machine again")


def peak_fraction(manifest: Manifest, plan_p50_ms: float | None, threads: int) -> float | None:
    """Useful operations a second over what this machine was measured to do at best, in the bundle's arithmetic."""
    flops = (manifest.raw.get("flops") or {}).get("plan")
    if not flops or not plan_p50_ms:
        return None
    from .peaks import measure_peaks

    peaks = measure_peaks(threads)
    peak = peaks["int8_gops" if manifest.precision.startswith("w8a8") else "fp32_gflops"]
    return flops / (plan_p50_ms / 1e3) / (peak * 1e9) if peak else None


# -------------------------------------------------------------------------------------------------------- environment

HOGS = {
    "cpu": "while True: pass",
    "memory": "import numpy as n; a, b = n.zeros(1 << 24), n.zeros(1 << 24)\nwhile True: n.copyto(b, a)",
}


@contextmanager
def hogs(load: str) -> Iterator[None]:
    """One busy process for each core this process may use."""
    if load not in HOGS:
        raise EdgewmError(f"no load {load!r}", "--load", f"use {' or '.join(HOGS)}")
    running = [subprocess.Popen([sys.executable, "-c", HOGS[load]]) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(0.5)  # until they have started
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def environment() -> dict[str, Any]:
    """What the figures depend on beyond the bundle; None for what this machine does not tell."""

    def read(path: str) -> str | None:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return None

    cpu = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", read("/proc/cpuinfo") or "", re.MULTILINE)
    return {
        "machine": platform.machine(),
        "cpu": model[1] if model else None,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "preempt_rt": None if (found := read("/sys/kernel/realtime")) is None else found == "1",
        "governor": read(str(cpu / "scaling_governor")),
        "clock_khz": read(str(cpu / "scaling_cur_freq")),
        "clock_source": read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "virtual": "hypervisor" in (read("/proc/cpuinfo") or ""),
        "load_average": os.getloadavg(),
    }

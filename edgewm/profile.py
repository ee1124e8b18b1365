"""The verb `profile`, the clock: how late can an action be, how long does a plan take, how old is it when it is played?

The bundle's own `edgewm-tick` runs its two loops at the control rate; every figure counts from the intended release, so
a stall counts against each period it delays. A quantile is printed as the order statistic that lies above it with 95 %
confidence, and withheld (null) where the sample is too small; `withheld` then says how many it would take.
"""

from __future__ import annotations

import functools
import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import statistics
from .device import LOCAL, Place, place
from .environment import Command, measured, record, watching
from .errors import EdgewmError, as_told
from .kernel_times import kernel_rows
from .manifest import Manifest, read_manifest
from .options import SLO, Progress, part

Array = np.ndarray

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
PEAKS = {"bf16": "bf16_gflops", "w8a8": "int8_gops"}  # by precision, where it is not fp32's
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
        "scheduler": tick["scheduler"],
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
    device: str = LOCAL, load: str | None = None, kernels: bool = False, slo: str | None = None,
    pin: str | None = None, fifo: int | None = None, mlock: bool = False, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run the bundle at its control rate (or `rate_hz`) for `ticks` periods; with `load` once more under that load.

    `device` is `local` or an ssh address; there the golden answers come first. `pin` (CPUs), `fifo` (priority) and
    `mlock` are asked of its kernel; what it refuses is in `environment.degraded`. `slo` is a bound on plan time like
    `p99=20ms`; `slo_met` is None where the sample cannot tell. `kernels` adds the rows of
    `kernel_times.kernel_rows`, on one thread.

    Raises EdgewmError for a bundle of another machine, a runner that does not run, a device that
    cannot be reached or answers otherwise.
    """
    bundle = Path(bundle)
    limit = parse_slo(slo)
    manifest = read_manifest(bundle)
    rate_hz = rate_hz or manifest.rate_hz
    threads = threads or manifest.threads
    asked = [word for flag, value in (("--pin", pin), ("--fifo", fifo)) if value for word in (flag, str(value))]
    asked += ["--mlock"] if mlock else []
    with place(bundle, device, threads, progress) as there:
        result = _measure(there, manifest, rate_hz, ticks, threads, load, asked, progress)
        if kernels:
            run = functools.partial(run_tick, there.folder, command=there.command)
            result["kernels"] = kernel_rows(bundle, run, is_here=there.device == LOCAL)
    if limit is not None:
        which, limit_ms = limit
        found_ms = result["plan_ms"][which]
        result |= {"slo": slo, "slo_met": None if found_ms is None else found_ms <= limit_ms}
    from .report import add

    add(bundle, "profile", result)
    return result


def _measure(
    there: Place, manifest: Manifest, rate_hz: float, ticks: int, threads: int, load: str | None,
    asked: Sequence[str], progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    share = 0.5 if load else 1.0
    run = functools.partial(run_tick, there.folder, rate_hz, command=there.command)
    before = there.look()
    with watching(there.command) as seen:
        steady = run(ticks, threads, *asked, progress=part(progress, 0.0, share))
        during = seen()
    after = there.look()
    # Timing every call disturbs what it times, so shares come from a short run of their own.
    timed = run(max(10, round(SHARES_S * rate_hz)), threads, "--kernels", "--inline")
    result = {
        "schema_version": SCHEMA_VERSION,
        "device": there.device,
        "address": there.address,
        "source": there.source,
        "golden": there.golden,
        "target": manifest.target,
        "mode": manifest.mode,
        "precision": manifest.precision,
        "bundle_sha256": manifest.sha256,
        "rate_hz": rate_hz,
        "threads": threads,
        **summarise(steady),
    }
    result["stages"] = stages(timed)
    here = there.device == LOCAL
    result["peak_fraction"] = peak_fraction(manifest, result["plan_ms"]["p50"], threads) if here else None
    result["environment"] = measured(before, during, after, steady["scheduler"]["refused"])
    if load:
        with hogs(load, there, record(before)["cores"] or 1):
            loaded = run(ticks, threads, *asked, progress=part(progress, share, 1 - share))
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
    return result


def parse_slo(slo: str | None) -> tuple[str, float] | None:
    """`p99=20ms` -> ("p99", 20.0)."""
    if slo is None:
        return None
    match = SLO.fullmatch(slo)
    if match is None:
        raise EdgewmError(f"no bound {slo!r}", "--slo", "write it like p99=20ms (p50, p99, p99.9 or max; us, ms or s)")
    return match["which"].replace(".", ""), float(match["value"]) * MS[match["unit"]]


def run_tick(
    folder: str | Path, rate_hz: float, ticks: int, threads: int, *flags: str, command: Command = list,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One paced run; edgewm-tick's JSON. `command` leads to the machine that `folder` is on.

    EdgewmError with the runner's own words when it fails.
    """
    words = [
        f"{folder}/edgewm-tick", str(folder), "--rate-hz", repr(float(rate_hz)), "--ticks", str(ticks),
        "--threads", str(threads), "--json", "-", *flags,
    ]  # fmt: skip
    expected_s = ticks / rate_hz
    try:
        process = subprocess.Popen(
            command(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except OSError as fault:
        raise EdgewmError(f"the runner does not start: {fault.strerror}", words[0], "build the bundle again") from fault
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
            process.wait()
            process.stdout.close()  # over ssh its other end stays open until the device has ended
            process.stderr.close()
    if process.returncode != 0:
        raise as_told(err, " ".join(words), process.returncode)
    result = json.loads(out)
    if result["plan_error"]:
        raise EdgewmError(
            f"a plan failed with error {result['plan_error']} (see edgewm.h)", " ".join(words), "validate the bundle"
        )
    return result


def peak_fraction(manifest: Manifest, plan_p50_ms: float | None, threads: int) -> float | None:
    """Useful operations a second over what this machine was measured to do at best, in the bundle's arithmetic."""
    flops = (manifest.raw.get("flops") or {}).get("plan")
    if not flops or not plan_p50_ms:
        return None
    from .peaks import measure_peaks

    peaks = measure_peaks(threads)
    peak = peaks[PEAKS.get(manifest.precision, "fp32_gflops")]
    return flops / (plan_p50_ms / 1e3) / (peak * 1e9) if peak else None


# --------------------------------------------------------------------------------------------------------------- load

HOGS = {"cpu": "while :; do :; done", "memory": "exec dd if=/dev/zero of=/dev/null bs=64M"}  # dd fills its buffer


@contextmanager
def hogs(load: str, there: Place, cores: int) -> Iterator[None]:
    """One busy process for each core of the place."""
    if load not in HOGS:
        raise EdgewmError(f"no load {load!r}", "--load", f"use {' or '.join(HOGS)}")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(there.command(["sh", "-c", HOGS[load]]), **quiet) for _ in range(cores)]
    try:
        time.sleep(0.5)  # until they have started
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
        there.stop()

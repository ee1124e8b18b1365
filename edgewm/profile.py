"""The verb `profile`, the clock: how late can an action be, how long does a plan take, how old is it when it is played?

The bundle's own `edgewm-tick` runs its two loops at the control rate; every figure counts from the intended release, so
a stall counts against each period it delays. Phases are timed apart: `phases.py`; what figures claim: `clock.py`.
"""

from __future__ import annotations

import functools
import json
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .clock import kernel_shares, summarise
from .compare import compare, read_profile
from .device import LOCAL, Place, place
from .environment import Command, measured, record, watching
from .errors import EdgewmError, as_told
from .findings import idle_gap
from .headroom import estimated, gains, gpu_peaks, on_gpu, rate_that_holds, stages_ms
from .kernel_times import PEAKS, calls_of, kernel_rows
from .loads import loaded
from .manifest import Manifest, read_manifest
from .options import NATIVE, SLO, Progress, part
from .peaks import measure_peaks
from .phases import GAP_S, gap_penalty, idle_run, phases
from .power import another_mode, mode_there, run_in
from .prometheus import check_writable
from .prometheus import write as write_prometheus

SCHEMA_VERSION = 1
TICKS, MISS = 3000, 0.01  # unless told otherwise
MOST_TICKS = 10**12  # of edgewm-tick
SHARES_S = 2.0  # length of the run that times kernels
UNDER_LOAD = (
    "act_late_ms", "plan_ms", "plan_age_ms", "plans_per_s", "misses", "misses_in_a_row", "miss_rate_upper", "withheld",
    "findings", "histograms",
)  # fmt: skip
MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


# ------------------------------------------------------------------------------------------------------------ running


def profile(
    bundle: Path, *, rate_hz: float | None = None, ticks: int = TICKS, minutes: float | None = None,
    threads: int | None = None, device: str = LOCAL, load: str | None = None, kernels: bool = False,
    slo: str | None = None, miss: float = MISS, against: Path | None = None, prometheus: Path | None = None,
    pin: str | None = None, fifo: int | None = None, mlock: bool = False, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run the bundle at its control rate (or `rate_hz`) for `ticks` periods; with `load` once more under that load.

    `minutes` is another way to say how long: drift, memory and temperatures over that time are in `spans`,
    `findings` and `environment.over_time`. `miss` is the share of late plans that the highest rate may have
    (`headroom`). `against`: the JSON of an earlier profile, to compare with; `prometheus`: a file for a fleet's
    collector.

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
    rate_hz, threads = rate_hz or manifest.rate_hz, threads or manifest.threads
    ticks = ticks if minutes is None else periods(minutes, rate_hz)
    if manifest.backend != NATIVE:
        from .backends.paced import profile as paced

        result = paced(
            bundle, manifest, rate_hz, ticks, threads, progress,
            not_here={"--device": device != LOCAL, "--load": load, "--kernels": kernels, "--compare": against,
                      "--prometheus": prometheus, "--pin": pin, "--fifo": fifo, "--mlock": mlock},
        )  # fmt: skip
        return _kept(result, bundle, slo, limit)
    if prometheus is not None:
        check_writable(prometheus)
    other = None if against is None else read_profile(against)  # refuse before anything is timed
    asked = [word for flag, value in (("--pin", pin), ("--fifo", fifo)) if value for word in (flag, str(value))]
    asked += ["--mlock"] if mlock else []
    with place(bundle, device, threads, progress) as there:
        result = _measure(there, manifest, bundle, rate_hz, ticks, threads, load, miss, asked, progress)
        if kernels:
            run = functools.partial(run_tick, there.folder, command=there.command)
            result["peaks"] = known = peaks_of(run_in(manifest, result["mode"]), there, 1)
            result["kernels"] = kernel_rows(bundle, run, known is not None, lambda threads: known)
    if other is not None:
        result["against"] = compare(result, other)
    result = _kept(result, bundle, slo, limit)
    if prometheus is not None:
        write_prometheus(result, prometheus)
    return result


def periods(minutes: float, rate_hz: float) -> int:
    """Control periods in so many minutes, at least one. EdgewmError for what is no length, or more than a run has."""
    found = minutes * 60 * rate_hz
    if not 0 < found <= MOST_TICKS:  # nan is not, either
        fix = f"give a number above 0 and up to {MOST_TICKS / 60 / rate_hz:.3g}"
        raise EdgewmError(f"a run of {minutes:g} minutes cannot be made", f"--minutes {minutes:g}", fix)
    return max(1, round(found))


def _kept(result: dict[str, Any], bundle: Path, slo: str | None, limit: tuple[str, float] | None) -> dict[str, Any]:
    """The result, with what the bound says of it, in the bundle's report too."""
    from .report import add

    if limit is not None:
        which, limit_ms = limit
        found_ms = result["plan_ms"][which]
        result |= {"slo": slo, "slo_met": None if found_ms is None else found_ms <= limit_ms}
    add(bundle, "profile", result)
    return result


def _measure(
    there: Place, manifest: Manifest, bundle: Path, rate_hz: float, ticks: int, threads: int, load: str | None,
    miss: float, asked: Sequence[str], progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    share = 0.5 if load else 1.0
    tick = functools.partial(run_tick, there.folder, command=there.command)
    before = there.look()
    with watching(there.command) as seen:
        steady = tick(rate_hz, ticks, threads, *asked, progress=part(progress, 0.0, share))
        during = seen()
    after = there.look()
    environment = measured(before, during, after, steady["scheduler"]["refused"])
    mode = mode_there(manifest.target, environment)
    idle = idle_run(tick, ticks, rate_hz, threads, asked)
    # Timing every call disturbs what it times, so shares come from a short run of their own.
    timed = tick(rate_hz, max(10, round(SHARES_S * rate_hz)), threads, "--kernels", "--inline")
    result = {
        "schema_version": SCHEMA_VERSION,
        "device": there.device,
        "address": there.address,
        "source": there.source,
        "golden": there.golden,
        "target": manifest.target,
        "mode": mode,
        "built_for_mode": manifest.mode,
        "precision": manifest.precision,
        "bundle_sha256": manifest.sha256,
        "rate_hz": rate_hz,
        "threads": threads,
        **summarise(steady),
        "phases": phases(steady, idle, [timed]),
    }
    if other := another_mode(manifest, mode):
        result["findings"].insert(0, other)
    if penalty := gap_penalty(result["phases"]):
        result["findings"].append(idle_gap(GAP_S, penalty))
    result["stages"] = kernel_shares(timed)
    if "gpu" in timed:  # what its graphs took, and how calls were launched while they were measured
        result["gpu"] = timed["gpu"]
    manifest = run_in(manifest, mode)
    is_known = "calls" in manifest.raw
    peaks = peaks_of(manifest, there, threads) if is_known else None
    peak, flops = product_peak(calls_of(bundle) if is_known else (), peaks), manifest.raw.get("flops") or {}
    result["peak_fraction"] = peak_fraction(flops.get("plan"), result["plan_ms"]["p50"], peak)
    result["estimate"] = estimated(manifest, bundle, threads) if "isa" in manifest.raw else None
    result["headroom"] = _headroom(manifest, bundle, steady, timed, rate_hz, threads, miss, peaks)
    result["environment"] = environment
    if load:
        with loaded(load, there, record(before)):
            busy = tick(rate_hz, ticks, threads, *asked, progress=part(progress, share, 1 - share))
        found = summarise(busy)
        result["loaded"] = {"load": load, **{key: found[key] for key in UNDER_LOAD}}
    return result


def peaks_of(manifest: Manifest, there: Place, threads: int) -> Mapping[str, float] | None:
    """`peaks.measure_peaks` of what the calls run on: of a CPU measured now, of a GPU as `targets probe` measured it.
    None where they are not known, as of a device."""
    if there.device != LOCAL:
        return None
    return gpu_peaks(manifest) if on_gpu(manifest) else measure_peaks(threads)


def _headroom(
    manifest: Manifest, bundle: Path, steady: Mapping[str, Any], timed: Mapping[str, Any], rate_hz: float, threads: int,
    miss: float, peaks: Mapping[str, float] | None,
) -> dict[str, Any]:  # fmt: skip
    held: dict[str, Any] = rate_that_holds(steady, rate_hz, manifest.planner.commit_steps, miss)
    if "calls" not in manifest.raw:  # a bundle that does not say what its calls do
        return held | {"stages": [], "gains": []}
    found = stages_ms(timed, calls_of(bundle))
    return held | {"stages": found, "gains": gains(manifest, bundle, timed, found, held, threads, peaks)}


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


def product_peak(calls: Sequence[Mapping[str, Any]], peaks: Mapping[str, float] | None) -> float | None:
    """10^9 operations a second that `peaks` allow the products of `calls` (`kernel_times.calls_of`), each in the format
    it was run in; None where one of those peaks is not known, or nothing was multiplied."""
    work: Counter[str] = Counter()
    for call in calls:
        work.update({kind: call["work"].get(kind, 0) * call["times"] for kind in PEAKS})
    run = {kind: count for kind, count in work.items() if count}
    if not run or not peaks or not all(peaks.get(PEAKS[kind]) for kind in run):
        return None
    return sum(run.values()) / sum(count / peaks[PEAKS[kind]] for kind, count in run.items())


def peak_fraction(flops: int | None, plan_p50_ms: float | None, peak: float | None) -> float | None:
    """Useful operations a second of a plan over those of `product_peak`; None where one is not known."""
    if not flops or not plan_p50_ms or not peak:
        return None
    return flops / (plan_p50_ms / 1e3) / (peak * 1e9)

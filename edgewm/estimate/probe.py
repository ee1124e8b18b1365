"""`edgewm targets probe`: what this machine charges, measured in a minute, and kept for the estimates.

Specimens (`specimens.py`) go through the compiler as models do; the runtime's own clock times every call, on one
thread, and the lower quartile of many runs counts, since whatever else a machine does can only add. Peaks come from
`peaks.py`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..arena import regions
from ..binding import Runtime
from ..bundle import compile_bundle, pack
from ..emit import schedule_program
from ..errors import EdgewmError
from ..kernel import load
from ..options import Progress
from ..passes import EXACT, LOWERING, run
from ..paths import KERNELS, RUNTIME
from ..peaks import measure_caches, measure_peaks
from ..program import Program
from ..quantize import NAMED
from ..schedule import Schedule
from ..target import Target, resolve
from ..toolchain import cache_folder
from .counts import plan_counts, tile_counts
from .cpu import Machine, price_plan
from .fit import Timed, fit_costs
from .specimens import meetings, specimens

SCHEMA_VERSION = 1
LANES = 16  # of the vector that counts are in
ENTRY_S = 0.3  # for which an entry is run over and over
LEAST_RUNS = 12
QUANTILE = 0.25
MEETINGS = 200  # runs with threads
WAKE_UPS, WAKE_PERIOD_S = 300, 1e-3


def facts_file(isa: str) -> Path:
    """Where the measured facts of this machine lie, for one instruction set."""
    return cache_folder() / "measured" / f"host-{isa}.json"


def keep(facts: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write facts where estimates for `host` look, or to `out`. EdgewmError where that cannot be written."""
    file = out or facts_file(facts["machine"]["isa"])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts, indent=1) + "\n")
    except OSError as fault:
        fix = "give -o a writable file"
        raise EdgewmError(f"cannot write measured facts: {fault.strerror}", str(file), fix) from fault
    return file


def kernels_sha256() -> str:
    """Identity of the kernel sources: prices hold for these."""
    digest = hashlib.sha256()
    for path in sorted([*KERNELS.glob("*.cc"), *KERNELS.glob("*.h"), RUNTIME / "lanes.h"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def probe(isa: str | None = None, threads: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """The facts of this machine: peaks, prices in ns of one thread, and what threads cost each other.

    `threads`: how many are tried together (default: the cores this process may use). Raises EdgewmError for an
    instruction set it does not have, or when the compiler fails.
    """
    say = progress or (lambda stage, done: None)
    board, _ = resolve("host", None, isa)
    cores = threads or len(os.sched_getaffinity(0))
    say("peaks", 0.0)
    peaks = {str(n): measure_peaks(n, board.isa) for n in dict.fromkeys((1, cores))}
    timed: list[Timed] = []
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        for i, precision in enumerate(NAMED):
            say(f"kernels in {precision}", 0.1 + 0.8 * i / len(NAMED))
            timed += time_program(specimens(precision), board, Path(folder) / precision)
        costs, sigma = fit_costs(timed, least_ns(peaks["1"], board.isa))
        say("threads", 0.9)
        together = time_threads(board, Path(folder) / "meetings", cores, costs)
    say("done", 1.0)
    cpu = board.cpu
    return {
        "schema_version": SCHEMA_VERSION, "source": f"measured by `edgewm targets probe` on {cpu.name}",
        "machine": {
            "cpu": cpu.name, "isa": board.isa, "features": list(cpu.features), "cores": cpu.cores,
            "l2_bytes": cpu.l2_bytes, "l3_bytes": cpu.l3_bytes,
        },
        "kernels_sha256": kernels_sha256(), "calls_timed": len(timed), "peaks": peaks, "costs_ns": costs,
        "caches": measure_caches(board.isa), "sigma": sigma,
        "threads": {**together, "slowdown": slowdown(peaks, cores)},
        "wake_up_us": wake_up_us(),
        "gpu": {"launch_us": None, "graph_node_us": None, "why": "no GPU is probed: edgewm has no kernels for one"},
    }  # fmt: skip


def least_ns(peaks: Mapping[str, float], isa: str) -> dict[str, float]:
    """What the counts of multiply-adds cost at the machine's peaks: nothing fitted may be below."""
    group = load("product").TILING[isa].group
    return {
        "fma_f32": 2 * LANES / peaks["fp32_gflops"], "fma_bf16": 4 * LANES / peaks["bf16_gflops"],
        "fma_i8": 2 * group * LANES / peaks["int8_gops"],
    }  # fmt: skip


def slowdown(peaks: Mapping[str, Mapping[str, float]], cores: int) -> dict[str, float]:
    """What a thread loses when `cores` of them compute at once: ratio of its peaks in f32."""
    return {str(cores): max(1.0, cores * peaks["1"]["fp32_gflops"] / peaks[str(cores)]["fp32_gflops"])}


# ---------------------------------------------------------------------------------------------- calls


def compiled(program: Program, board: Target, folder: Path) -> Schedule:
    """A bundle without manifest or golden answers in `folder`, and its schedule."""
    exact = run(program.with_(target=board, recipe=None), EXACT)
    lowered = run(exact.with_(recipe=program.recipe), LOWERING)
    schedule = schedule_program(lowered, board.isa)
    folder.mkdir(parents=True)
    sections, paths = compile_bundle(lowered, schedule, {}, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    return schedule


def time_program(program: Program, board: Target, folder: Path) -> list[Timed]:
    """Every call of every entry, all its tiles together."""
    schedule = compiled(program, board, folder)
    found: list[Timed] = []
    first = 0
    with Runtime(folder) as runtime:
        for name, entry in schedule.entries.items():
            held = [(region, call) for region in regions(entry.steps) for call in region.calls]
            typical, beyond = typical_call_ns(runtime, name)
            clock_ns = beyond / sum(-(-region.lanes // region.tile) for region, _ in held)
            for (region, call), ns in zip(held, typical[first : first + len(held)], strict=True):
                tiles = -(-region.lanes // region.tile)
                whole, last = tile_counts(call, schedule, board.isa)
                work = Counter({key: count * (tiles - 1) for key, count in whole.items()})
                work.update(last)
                found.append(Timed(name, work, max(ns - tiles * clock_ns, 1.0)))
            first += len(held)
    return found


def typical_call_ns(runtime: Runtime, entry: str) -> tuple[np.ndarray, float]:
    """Time of each call of the file, all tiles together (0 for calls of other entries); and by how much a whole run
    exceeds its calls, since each call is timed by two reads of the clock and pays for one. QUANTILE of the runs."""
    c, counts = runtime._c, runtime.info
    c.ewm_profile.argtypes = [ctypes.c_void_p] * 3
    data = inputs_of(runtime, entry)
    runtime.run_entry(entry, **data)
    runs: list[np.ndarray] = []
    beyond: list[float] = []
    end = time.monotonic() + ENTRY_S
    while len(runs) < LEAST_RUNS or time.monotonic() < end:
        steps, calls = np.zeros(counts["steps"], np.uint64), np.zeros(counts["calls"], np.uint64)
        c.ewm_profile(runtime._loop, steps.ctypes.data, calls.ctypes.data)
        runtime.run_entry(entry, **data)
        runs.append(calls)
        beyond.append(float(steps.sum()) - float(calls.sum()))
    c.ewm_profile(runtime._loop, None, None)
    return np.quantile(np.stack(runs), QUANTILE, 0), float(np.quantile(beyond, QUANTILE))


def inputs_of(runtime: Runtime, entry: str) -> dict[str, np.ndarray]:
    """Seeded values for every input of an entry."""
    random = np.random.default_rng(0)
    found = {}
    for port in runtime.ports(entry):
        if port.is_input:
            drawn = random.standard_normal(port.shape, np.float32) if port.dtype == np.float32 else None
            found[port.name] = np.ones(port.shape, port.dtype) if drawn is None else np.clip(drawn, port.low, port.high)
    return found


# ---------------------------------------------------------------------------------------------- threads and sleep


def time_threads(board: Target, folder: Path, threads: int, costs_ns: Mapping[str, float]) -> dict[str, Any]:
    """What goes on between calls, in ns: `step_ns` from region to region on one thread, `meet_ns` the same with
    `threads` that meet there, `wake_ns` to wake the others for a run; those two are 0 for one thread."""
    schedule = compiled(meetings(), board, folder)
    took = {n: dict.fromkeys(schedule.entries, 0.0) for n in dict.fromkeys((1, threads))}
    for n, found in took.items():
        with Runtime(folder, threads=n) as runtime:
            for entry in found:
                data = inputs_of(runtime, entry)
                rounds = [_seconds(runtime, entry, data) for _ in range(MEETINGS)]
                found[entry] = float(np.quantile(rounds, QUANTILE)) * 1e9
    counts = {entry: plan_counts(schedule, board.isa, entry) for entry in schedule.entries}
    steps = counts["often"]["steps"] - counts["once"]["steps"]
    alone = Machine(costs_ns, 0.0, 0.0, 0.0, float("inf"), 1 << 62, 0.0, "")
    work = {entry: 1e6 * price_plan(counts[entry], alone, 1)["plan_ms"]["point"] for entry in counts}

    def between(n: int) -> float:
        spent = took[n]["often"] - took[n]["once"] - (work["often"] - work["once"]) / n
        return max(0.0, spent / steps)

    waking = max(0.0, took[threads]["once"] - took[1]["once"])
    return {
        "tried": threads, "step_ns": between(1), "meet_ns": between(threads) if threads > 1 else 0.0,
        "wake_ns": waking if threads > 1 else 0.0,
    }  # fmt: skip


def _seconds(runtime: Runtime, entry: str, data: Mapping[str, np.ndarray]) -> float:
    began = time.perf_counter()
    runtime.run_entry(entry, **data)
    return time.perf_counter() - began


def wake_up_us() -> dict[str, float]:
    """How late a thread wakes that slept until a time: median and greatest of WAKE_UPS, Python's share included."""
    late = []
    due = time.monotonic() + WAKE_PERIOD_S
    for _ in range(WAKE_UPS):
        time.sleep(max(0.0, due - time.monotonic()))
        late.append(time.monotonic() - due)
        due += WAKE_PERIOD_S
    return {"p50": float(np.median(late)) * 1e6, "max": max(late) * 1e6}

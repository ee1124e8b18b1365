"""`edgewm targets probe`: what a machine charges, measured in a minute, and kept for the estimates.

Specimens (`specimens.py`) go through the compiler as models do, to the machine (`site.py`) and through a small program
there (`probe.cc`) that has the runtime's own clock time every call. The lower quartile of many runs counts, since
whatever else a machine does can only add. Peaks come from `ceilings.cc`, a GPU's from `gpu_probe.cc` where there is a
driver. None needs Python where it runs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arena import regions
from ..bundle import compile_bundle, pack
from ..device import LOCAL
from ..emit import schedule_program
from ..errors import EdgewmError
from ..kernel import features, load
from ..kit import board_of
from ..options import Progress
from ..passes import EXACT, LOWERING, run
from ..paths import KERNELS, RUNTIME
from ..program import Program
from ..quantize import NAMED
from ..schedule import Schedule
from ..target import Mode, Target, compile_flags, resolve
from ..toolchain import cache_folder, compile_program
from .counts import plan_counts, tile_counts
from .cpu import Machine, price_plan
from .fit import Timed, fit_costs
from .gpu_probe import measure_gpu
from .site import Site, site
from .specimens import meetings, specimens

SCHEMA_VERSION = 2
LANES = 16  # of the vector that counts are in
ENTRY_S = 0.3  # for which an entry is run over and over
MEETINGS = 400  # runs with threads
WAKE_UPS, WAKE_PERIOD_NS = 300, 1_000_000
STREAM_BYTES, CACHES = 1 << 26, 4  # what reads out of memory stream through: so much, or so many last-level caches
HERE = Path(__file__).parent
PROBE, CEILINGS = "edgewm-probe", "edgewm-ceilings"


def facts_file(board: Target, mode: str) -> Path:
    """Where the measured facts of a board in a mode lie, for one instruction set."""
    return cache_folder() / "measured" / f"{board.name}-{mode}-{board.isa}.json"


def kept_files(board: Target) -> dict[str, Path]:
    """Mode -> file of what was measured of this board."""
    found = {mode.name: facts_file(board, mode.name) for mode in board.mode}
    return {mode: file for mode, file in found.items() if file.is_file()}


def keep(facts: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write facts where estimates look for them, or to `out`. EdgewmError where that cannot be written."""
    file = out or facts_file(resolve(facts["target"], facts["mode"], facts["machine"]["isa"])[0], facts["mode"])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts, indent=1) + "\n")
    except OSError as fault:
        fix = "give -o a writable file"
        raise EdgewmError(f"cannot write measured facts: {fault.strerror}", str(file), fix) from fault
    return file


def kernels_sha256() -> str:
    """Identity of the kernel sources and of what is counted of them: prices hold for these."""
    digest = hashlib.sha256()
    for path in (*sorted([*KERNELS.glob("*.cc"), *KERNELS.glob("*.h"), RUNTIME / "lanes.h"]), HERE / "counts.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def probe(
    isa: str | None = None, threads: int | None = None, *, device: str = LOCAL, target: str | None = None,
    mode: str | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The facts of a machine: peaks, prices in ns of one thread, what threads cost each other, how late sleepers wake;
    and those of its GPU (`gpu_probe.measure_gpu`).

    `threads`: how many are tried together (default: the cores that a process may use there). A `device` is a `target`
    in a power `mode` (default: the one it says it is in). Raises EdgewmError for an instruction set or board that the
    machine is not, a device that cannot be used, and when the compiler fails.
    """
    say = progress or (lambda stage, done: None)
    if device != LOCAL and target is None:
        raise EdgewmError("the device's board is not said", "--target", "name it as `edgewm targets` does, e.g. orin")
    board, _ = resolve(target or "host", mode, isa)
    with site(device, board) as there, tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        check_board(board, there.environment)
        power = power_mode(board, mode, there.environment)
        cores = threads or there.cores
        say("peaks", 0.0)
        peaks, caches = measure_ceilings(board, there, Path(folder) / "ceilings", cores)
        timed: list[Timed] = []
        for i, precision in enumerate(NAMED):
            say(f"kernels in {precision}", 0.1 + 0.8 * i / len(NAMED))
            timed += time_program(specimens(precision), board, there, Path(folder) / precision)
        costs, sigma = fit_costs(timed, least_ns(peaks["1"], board.isa))
        say("threads", 0.9)
        slower = slowdown(peaks, cores)
        together = time_threads(board, there, Path(folder) / "meetings", cores, costs, slower[str(cores)])
        late = there.run(Path(folder) / "meetings", PROBE, "sleep", str(WAKE_UPS), str(WAKE_PERIOD_NS))
        say("GPU", 0.95)
        gpu = measure_gpu(board, there, Path(folder) / "gpu")
    say("done", 1.0)
    cpu, found = board.cpu, there.environment
    name = cpu.name if device == LOCAL else f"{found['board'] or found['cpu'] or board.title}, {power.name}"
    return {
        "schema_version": SCHEMA_VERSION, "source": f"measured by `edgewm targets probe` on {name}",
        "target": board.name, "mode": power.name,
        "machine": {
            "cpu": cpu.name, "isa": board.isa, "features": list(cpu.features), "cores": there.cores,
            "l2_bytes": cpu.l2_bytes, "l3_bytes": cpu.l3_bytes,
        },
        "environment": {key: found[key] for key in ENVIRONMENT},
        "kernels_sha256": kernels_sha256(), "calls_timed": len(timed), "peaks": peaks, "costs_ns": costs,
        "caches": caches, "sigma": sigma, "threads": {**together, "slowdown": slower},
        "wake_up_us": late,
        "gpu": gpu,
    }  # fmt: skip


ENVIRONMENT = ("board", "kernel", "preempt_rt", "l4t", "jetpack", "power_mode", "governor", "clocks_hz", "degraded")


def power_mode(board: Target, wanted: str | None, environment: Mapping[str, Any]) -> Mode:
    """The mode that facts are of: as given, or as the machine says (`power_mode` of `environment.record`).

    EdgewmError where neither is known, and where they contradict each other.
    """
    said = (environment["power_mode"] or {}).get("name")
    if len(board.mode) == 1 or (said is None and wanted is not None):
        return board.mode_named(wanted)
    if said is None:
        names = ", ".join(mode.name for mode in board.mode)
        raise EdgewmError("the device does not say which power mode it is in", "--mode", f"give one of {names}")
    if wanted is not None and not board.mode_named(wanted).is_named(said):
        fix = f"leave --mode out, or set that mode on the device with nvpmodel (it boots in {board.default_mode})"
        raise EdgewmError(f"the device is in power mode {said}, not in {wanted}", f"--mode {wanted}", fix)
    return board.mode_named(said)


def check_board(board: Target, environment: Mapping[str, Any]) -> None:
    """EdgewmError where the machine's device tree names another board; one that names none is taken at its word."""
    named = board_of(environment)
    if board.boards and named is not None and named.name != board.name:
        fix = f"give --target {named.name}"
        raise EdgewmError(f"the device is a {named.name}, not a {board.name}", f"--target {board.name}", fix)


def measure_ceilings(board: Target, there: Site, folder: Path, threads: int) -> tuple[dict, dict]:
    """Peaks by number of threads (`fp32_gflops`, `bf16_gflops`, `int8_gops`, `dram_gbps`), and reads out of half of
    each cache that the machine is known to have (`l2_gbps`), 10^9 a second."""
    folder.mkdir(parents=True)
    flags = [*compile_flags(board, *features(["product_bf16"])), *load("product").TILING[board.isa].defines]
    sources = {"ceilings.cc": HERE / "ceilings.cc", "peaks.cc": KERNELS / "peaks.cc"}
    texts = {name: path.read_text() for name, path in sources.items()}
    compile_program(texts, [RUNTIME, KERNELS], flags=flags, out=folder / CEILINGS)
    sizes = {level: getattr(board.cpu, f"{level}_bytes") for level in ("l1d", "l2", "l3")}
    stream = max(STREAM_BYTES, CACHES * (sizes["l3"] or 0))
    caches = [word for level, size in sizes.items() if size for word in (level, str(size))]
    found = there.run(folder, CEILINGS, str(threads), str(stream), *caches)
    return {n: peaks for n, peaks in found.items() if n != "caches"}, found["caches"]


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
    """A bundle without manifest or golden answers in `folder`, with the program that times it; and its schedule."""
    exact = run(program.with_(target=board, recipe=None), EXACT)
    lowered = run(exact.with_(recipe=program.recipe), LOWERING)
    schedule = schedule_program(lowered, board.isa)
    folder.mkdir(parents=True)
    sections, paths = compile_bundle(lowered, schedule, {}, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    flags = [flag for flag in compile_flags(board) if not flag.startswith("-mcpu=")]
    library, text = folder / "libedgewm.so", (HERE / "probe.cc").read_text()
    compile_program({"probe.cc": text}, [RUNTIME], flags=flags, libraries=[library], out=folder / PROBE)
    return schedule


def time_program(program: Program, board: Target, there: Site, folder: Path) -> list[Timed]:
    """Every call of every entry, all its tiles together."""
    schedule = compiled(program, board, folder)
    took = there.run(folder, PROBE, "calls", "model.ewm", str(ENTRY_S))
    found: list[Timed] = []
    for name, entry in schedule.entries.items():
        held = [(region, call) for region in regions(entry.steps) for call in region.calls]
        clock_ns = took[name]["beyond"] / sum(-(-region.lanes // region.tile) for region, _ in held)
        for (region, call), ns in zip(held, took[name]["calls"], strict=True):
            tiles = -(-region.lanes // region.tile)
            whole, last = tile_counts(call, schedule, board.isa)
            work = Counter({key: count * (tiles - 1) for key, count in whole.items()})
            work.update(last)
            found.append(Timed(name, work, max(ns - tiles * clock_ns, 1.0)))
    return found


# ---------------------------------------------------------------------------------------------- threads


def time_threads(
    board: Target, there: Site, folder: Path, threads: int, costs_ns: Mapping[str, float], slower: float
) -> dict[str, Any]:
    """What goes on beside calls, in ns: `step_ns` from region to region on one thread, `meet_ns` where `threads` meet
    there; `wake_ns` for the call that wakes the others for a run, `late_ns` that a run loses as they take their time.
    Those three are 0 for one thread; a thread that works beside others is `slower`."""
    schedule = compiled(meetings(), board, folder)
    took = {n: there.run(folder, PROBE, "runs", "model.ewm", str(n), str(MEETINGS)) for n in {1, threads}}
    ns = {n: {entry: ran["together"] or ran["any"] for entry, ran in runs.items()} for n, runs in took.items()}
    once = took[1]["once"]["any"]
    counts = {entry: plan_counts(schedule, board.isa, entry) for entry in ("once", "often")}
    steps = counts["often"]["steps"] - counts["once"]["steps"]
    rounds = sum(region["times"] for region in counts["often"]["regions"]) - 1
    alone = Machine(costs_ns, 0.0, 0.0, 0.0, float("inf"), 1 << 62, 0.0, "")
    work = {entry: 1e6 * price_plan(counts[entry], alone, 1)["plan_ms"]["point"] for entry in counts}
    more = work["often"] - work["once"]
    step_ns = max(0.0, (ns[1]["often"] - once - more) / steps)
    if threads == 1:
        return {"tried": 1, "step_ns": step_ns, "meet_ns": 0.0, "wake_ns": 0.0, "late_ns": 0.0}
    wake_ns = max(0.0, took[threads]["once"]["any"] - once)  # over before they are awake
    late_ns = max(0.0, ns[threads]["much"] - slower * (ns[1]["much"] - once) / threads - once - wake_ns)
    meeting = ns[threads]["often"] - once - wake_ns - late_ns - more / threads - (steps - rounds) * step_ns
    return {
        "tried": threads, "step_ns": step_ns, "meet_ns": max(0.0, meeting / rounds), "wake_ns": wake_ns,
        "late_ns": late_ns,
    }  # fmt: skip

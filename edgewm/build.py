"""`edgewm build`: a model in, a bundle out. The steps are those of DESIGN's pipeline, one function each.

The same input gives the same bytes: a bundle holds no time, host name or path. It is written beside its place and takes
it in one rename, so that a build which is interrupted, or which runs out of disk, leaves what was there.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import kit
from .arena import regions
from .bundle import compile_bundle, compile_gpu_bundle, pack
from .data import identity
from .errors import EdgewmError
from .estimate.placed import Placement
from .estimate.verb import SECTION
from .garbage import uncollected
from .golden import Answers, answers, record
from .manifest import BACKEND_MANIFEST, CALIBRATION, read_manifest
from .ops import graph_flops
from .options import AUTO, CALIBRATED, NATIVE, OWN_RECIPE, Progress, is_named, part
from .passes import EXACT, LOWERING, run
from .place import check_gpu_tools, check_place, clock_of, has_gpu, place_program
from .planner import settled
from .program import Graph, Planner, Port, Program
from .quantize import recipe_of
from .quantize.calibrate import calibrated, check_contexts
from .schedule import Schedule
from .target import Mode, Target, resolve

DEFAULT_RATE_HZ = 20.0
MAX_THREADS = 64  # of runtime/threads.h
# What a bundle's directory holds: the bundle, and what the verbs put beside it.
MADE = frozenset(
    {"model.ewm", "libedgewm.so", "edgewm-tick", "edgewm.h", "kit.sh", "report.html", "report.json", "verdict.json"}
)


@uncollected()
def build(
    model: str,
    *,
    target: str = "host",
    mode: str | None = None,
    rate_hz: float | None = None,
    precision: str = "fp32",
    calibration: Path | None = None,
    planner: Mapping[str, Any] | None = None,
    heads: list[str] | None = None,
    place: str = "auto",
    threads: int | None = None,
    isa: str | None = None,
    backend: str = NATIVE,
    out: Path = Path("out"),
    seed: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compile MODEL for a board into the directory `out`; returns what `build --json` prints.

    `planner` holds fields of `program.Planner`; what it leaves out, or None, is the model's own. `precision` is a name
    of `options.RECIPES` (`+CLASS` behind it, of `options.VALUES`, holds what candidates leave between calls in bf16),
    `auto`, or a JSON file of one's own recipe; `calibration` is recorded data to choose steps, weights of 4 bits or
    auto's formats by, for a model that brings no contexts. `backend` is one of `options.BACKENDS`; another than native
    makes a bundle for another runtime (`backends.build`). After a dry run `bytes` is an estimate: the weights, which
    are nearly all of a file. `estimate_ms` is what `edgewm estimate` says of a plan {point, low, high, source} and,
    where a place was chosen, of its parts (`parts_ms`); null where nothing is known of the board; `auto` is what
    `quantize.search.chosen` found, null for other precisions.

    Raises EdgewmError, before anything is written, for whatever does not fit together.
    """
    if backend != NATIVE:
        _refuse_kernels(backend, isa, place)
        from .backends.build import build as build_for

        return build_for(
            model, backend=backend, target=target, mode=mode, rate_hz=rate_hz, precision=precision,
            calibration=calibration, planner=planner or {}, heads=heads, threads=threads, out=out, seed=seed,
            dry_run=dry_run, progress=progress,
        )  # fmt: skip
    begun = time.perf_counter()
    say = progress or (lambda stage, done: None)
    board, power = resolve(target, mode, isa)
    _refuse_options(board, place, threads)
    cores = threads or min(power.cpu_cores or board.cpu.cores, MAX_THREADS)
    if not dry_run:
        check_out(out)
    say("load", 0.0)
    program, rate, files = capture(model, planner or {}, rate_hz, heads, board)
    upstream = flops_of(program)
    say("passes", 0.3)
    program = run(program, EXACT)
    exact = flops_of(program)
    found, why = None, ""
    if precision == AUTO:
        from .quantize.search import chosen

        clock, why = clock_of(program, board, power, place, cores)
        place = "gpu" if clock.machine is None else "cpu"
        found = chosen(program, model, calibration, clock, rate, seed, part(progress, 0.3, 0.2))
    recipe = found["recipe"] if found else recipe_of(program, precision)
    if calibration is not None and not found and not set(recipe.values()) & set(CALIBRATED):
        raise EdgewmError(
            f"nothing of {precision} is calibrated", f"--calibration {calibration}",
            f"leave it out, or build {', '.join((*CALIBRATED, AUTO))}",
        )  # fmt: skip
    if precision != AUTO and not is_named(precision):
        precision = OWN_RECIPE  # a bundle names no path
    program = program.with_(recipe=recipe, target=board)
    if dry_run:
        check_contexts(program, model, calibration)
    else:
        program = calibrated(program, model, calibration, seed)
    program = run(program, LOWERING)
    say("schedule", 0.5)
    schedule, counts, placed = place_program(program, board, power, place, cores)
    placed = replace(placed, why=why or placed.why)
    cores = cores if placed.place == "cpu" else 1
    if placed.place == "gpu" and not dry_run:
        check_gpu_tools(board, place)
    manifest = manifest_of(program, board, power, precision, rate, cores, seed, files, placed)
    manifest |= {AUTO: found} if found else {}
    manifest |= {OWN_RECIPE: dict(recipe)} if precision == OWN_RECIPE else {}
    manifest |= {CALIBRATION: identity(calibration)} if calibration is not None else {}
    weight_bytes = sum(a.nbytes for a in schedule.constants.values())
    result = {
        "target": board.name, "mode": power.name, "precision": precision, "bundle": None, "sha256": None,
        "bytes": weight_bytes, "arena_bytes": schedule.arena_bytes + cores * schedule.scratch_bytes,
        "calls": calls_of(schedule), "flops": {"upstream": upstream, "exact": exact},
        "rate_hz": rate, "planner": asdict(program.planner), "threads": cores,
        "weight_bytes": weight_bytes, "place": placed.place, "why": placed.why,
        "estimate_ms": placed.cpu_ms if placed.place == "cpu" else placed.gpu_ms, AUTO: found,
    }  # fmt: skip
    if not dry_run:
        say("compile", 0.55)
        result |= write(
            program, schedule, manifest, counts, board, out, seed, lambda done: say("compile", 0.55 + 0.45 * done),
            power,
        )  # fmt: skip
    say("done", 1.0)
    return {**result, "seconds": round(time.perf_counter() - begun, 3)}


# ---------------------------------------------------------------------------------------------- steps


@uncollected()
def capture(
    model: str, overrides: Mapping[str, Any], rate_hz: float | None, heads: list[str] | None,
    board: Target | None = None,
) -> tuple[Program, float, dict[str, str]]:  # fmt: skip
    """The model's Program with the planner it will run, the control rate, and the SHA-256 of each file it came from.

    `board`, where given, is what it is for: a robot's wants a safe action declared.
    """
    from . import models

    loaded = models.load(model)
    check_safe(loaded.ports, board)
    planner = with_overrides(loaded.planner, overrides)
    missing = sorted(set(heads or []) - set(loaded.heads))
    if missing:
        raise EdgewmError(
            f"the model has no head {', '.join(missing)}", "--heads",
            f"choose of {', '.join(loaded.heads)}" if loaded.heads else "leave --heads out: this model has none",
        )  # fmt: skip
    kept = {name: loaded.heads[name] for name in heads or ()}
    rate = rate_hz or next((p.rate_hz for p in loaded.ports if p.rate_hz), 0.0) or DEFAULT_RATE_HZ
    return models.capture_model(replace(loaded, heads=kept), planner), rate, dict(loaded.files)


def with_overrides(planner: Planner, overrides: Mapping[str, Any]) -> Planner:
    """The model's own planner with what was asked for (None: nothing); fewer samples or actions pull elites and
    commitment down. EdgewmError for a setting that the kind does not read."""
    given = {k: v for k, v in overrides.items() if v is not None}
    merged = settled(planner, given)
    if "elites" not in given:
        merged = replace(merged, elites=min(merged.elites, merged.samples, max(2, merged.samples // 8)))
    if "commit_steps" not in given:
        merged = replace(merged, commit_steps=min(merged.commit_steps, merged.horizon * merged.action_block))
    return merged


def check_safe(ports: Sequence[Port], board: Target | None) -> None:
    """A robot's bundle needs to know what to do when there is nothing fresh to do (a declared safe action)."""
    for port in ports:
        if board and board.robot and port.kind == "action" and not port.safe:
            raise EdgewmError(
                f"the action port {port.name!r} declares no safe action",
                f"building for {board.name}, a robot target",
                f"declare safe=(...) of {port.shape[-1]} numbers in the model's action port (for a checkpoint: "
                "action.safe in robot.json beside its config.json), or build for host",
            )


def flops_of(program: Program) -> int:
    """Operations of one plan, the products' two for each multiply-add."""
    return graph_flops(plan_of(program))


def plan_of(program: Program) -> Graph:
    """The entry that plans; the first one of a program without."""
    return program.entries.get("plan") or next(iter(program.entries.values()))


def calls_of(schedule: Schedule) -> int:
    """Kernel calls written for the plan; those inside loops once."""
    entry = schedule.entries.get("plan") or next(iter(schedule.entries.values()))
    return sum(len(region.calls) for region in regions(entry.steps))


def manifest_of(
    program: Program, board: Target, power: Mode, precision: str, rate: float, threads: int, seed: int,
    files: Mapping[str, str], placed: Placement | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the bundle says of itself, for people and tools: no path, no time, no host name."""
    from . import __version__

    host = {} if board.name != "host" else {"cpu": board.isa}
    if placed is not None and has_gpu(board):
        host["placement"] = asdict(placed)
    return {
        "schema_version": 1, "edgewm": __version__, "target": board.name, "mode": power.name, "precision": precision,
        "rate_hz": rate, "planner": asdict(program.planner), "ports": [asdict(p) for p in program.ports],
        "threads": threads, "seed": seed, "model_sha256": dict(files), "isa": board.isa, "triple": board.zig_triple,
        "runs": dict.fromkeys(program.entries, placed.place if placed else "cpu"), **host,
        "flops": {name: graph_flops(graph) for name, graph in program.entries.items()},
        "log": [asdict(replace(line, seconds=0.0)) for line in program.log],
    }  # fmt: skip


def write(
    program: Program, schedule: Schedule, manifest: Mapping, counts: Mapping | None, board: Target, out: Path,
    seed: int, say: Callable[[float], None], mode: Mode | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Emit, compile, record golden answers, and put the bundle in its place; without `counts` it runs on a GPU in
    `mode`."""
    answered: Answers | None = None
    with staging(out) as folder:
        if counts is None and mode is not None:
            persistent = manifest["placement"]["persistent"]
            found = answered = []
            sections, paths = compile_gpu_bundle(
                program, schedule, manifest, board, mode, folder, persistent,
                meanwhile=lambda: found.extend(answers(program, seed)),
            )  # fmt: skip
        else:
            sections, paths = compile_bundle(program, schedule, manifest, board, folder)
        say(0.5)
        sections |= record(program, sections, board, seed, paths, answered)
        if counts is not None:
            sections[SECTION] = json.dumps(counts, separators=(",", ":")).encode()
        say(0.9)
        (folder / "model.ewm").write_bytes(pack(sections, board, paths))
        (folder / "kit.sh").write_text(kit.text(manifest["rate_hz"], manifest["threads"]))
        (folder / "kit.sh").chmod(0o755)
        data = (folder / "model.ewm").read_bytes()
        put(folder, out)
    return {"bundle": str(out), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


# ---------------------------------------------------------------------------------------------- the place on disk


def _refuse_options(board: Target, place: str, threads: int | None) -> None:
    """Options that are known, but can do nothing here."""
    check_place(board, place)
    if place == "gpu":
        check_gpu_tools(board, place)
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise EdgewmError(f"{threads} threads", "--threads", f"give 1 to {MAX_THREADS}")


def _refuse_kernels(backend: str, isa: str | None, place: str) -> None:
    """Options of our own kernels, which no other backend has."""
    for flag, value in (("--isa", isa), ("--place", None if place == "auto" else place)):
        if value is not None:
            raise EdgewmError(
                f"{backend} runs its own kernels", f"{flag} {value}", "leave it out, or build with --backend native"
            )


def check_out(out: Path) -> None:
    """Refuse early a place that cannot take the bundle, or that holds something else."""
    where = str(out)
    if out.exists() and not out.is_dir():
        raise EdgewmError("the output is a file", where, "give -o a directory")
    held = {p.name for p in out.iterdir()} if out.is_dir() else set()
    strange = sorted(held - MADE - _named_files(out))
    if strange or (held and not held & {"model.ewm", BACKEND_MANIFEST}):
        found = strange or sorted(held)
        raise EdgewmError(
            f"the output directory holds other files: {', '.join(found[:3])}{', ...' if found[3:] else ''}", where,
            "give -o an empty directory or an old bundle: a build replaces all of it",
        )  # fmt: skip
    there = next(p for p in out.resolve().parents if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as fault:
        raise EdgewmError(f"cannot write there: {fault.strerror}", where, "give -o a writable place") from fault


def _named_files(out: Path) -> set[str]:
    """What an old bundle for another runtime says it holds."""
    file = out / BACKEND_MANIFEST
    return {BACKEND_MANIFEST, *read_manifest(out).raw.get("files", {})} if file.is_file() else set()


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A directory beside `out`, gone afterwards whatever happens; a full disk becomes an EdgewmError."""
    out = out.resolve()
    parents = [p for p in out.parents if not p.exists()]  # made here, and unmade where the build fails
    for stale in out.parent.glob(f".{out.name}.building-*"):
        if not _alive(stale.name.rpartition("-")[2]):
            shutil.rmtree(stale, ignore_errors=True)
    folder = out.parent / f".{out.name}.building-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
    except BaseException as fault:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in parents:
            with contextlib.suppress(OSError):  # in use by now
                parent.rmdir()
        if isinstance(fault, OSError):
            raise EdgewmError(
                f"writing failed: {fault.strerror}", str(out),
                "free some space or give -o another place; nothing was changed",
            ) from fault  # fmt: skip
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists()


def put(folder: Path, out: Path) -> None:
    """`folder` becomes `out` in one step; what was there is removed after."""
    out = out.resolve()  # what a link points to is replaced, not the link
    for file in folder.iterdir():
        _sync(file)
    if not out.exists():
        folder.rename(out)
    elif not _exchange(folder, out):
        aside = folder.with_name(folder.name + ".old")
        out.rename(aside)
        try:
            folder.rename(out)
        except OSError:
            aside.rename(out)
            raise
        shutil.rmtree(aside)
    _sync(out.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names atomically (renameat2, Linux 3.15); False where the file system cannot."""
    at_fdcwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def compile(model: str, **options: Any) -> Path:
    """`edgewm.compile(model, target=...)`: build, and where the bundle is."""
    return Path(build(model, **options)["bundle"])

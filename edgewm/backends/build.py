"""`edgewm build --backend`: the exact program, in eight bits where asked for, as a bundle for another runtime.

As of a native build: the same input gives the same bytes, and the bundle takes its place in one rename.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import build as native
from ..data import identity
from ..errors import EdgewmError
from ..manifest import BACKEND_MANIFEST, CALIBRATION, read_manifest
from ..options import Progress
from ..passes import EXACT, run
from ..program import Program
from ..quantize import recipe_of
from ..quantize.calibrate import searched
from ..quantize.steps import FORM, activation_steps, hold_in_steps
from ..target import resolve
from . import backend as backend_named
from . import files, golden

PRECISIONS = ("fp32", FORM)
OF_KERNELS = ("isa", "triple", "cpu")  # of a native manifest alone


def build(
    model: str, *, backend: str, target: str, mode: str | None, rate_hz: float | None, precision: str,
    calibration: Path | None, planner: Mapping[str, Any], heads: list[str] | None, threads: int | None, out: Path,
    seed: int, dry_run: bool, progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    """Build MODEL for another runtime into `out`; arguments and result are those of `build.build`.

    `w8a8` here is what ONNX can say: weights by output channel, activations in constant steps, both symmetric. The
    steps are chosen on candidates of the planner's own, searched from the model's contexts or those of `calibration`.
    What the recipe holds in bf16 stays in float32. `checked_by` is what a backend's `check` found.
    Raises EdgewmError, before anything is written, for whatever does not fit.
    """
    begun = time.perf_counter()
    say = progress or (lambda stage, done: None)
    kind, (board, power) = backend_named(backend), resolve(target, mode)
    if precision not in PRECISIONS:
        raise EdgewmError(
            f"{backend} does not take {precision}", "--precision", f"use {' or '.join(PRECISIONS)}, or --backend native"
        )
    if calibration is not None and precision != FORM:
        raise EdgewmError(
            f"nothing of {precision} is calibrated", f"--calibration {calibration}", f"leave it out, or build {FORM}"
        )
    recipe = kind.recipe(board)
    if not dry_run:
        native.check_out(out)
    say("load", 0.0)
    program, rate, sources = native.capture(model, planner, rate_hz, heads, board)
    upstream = native.flops_of(program)
    say("passes", 0.3)
    exact = run(program, EXACT)
    of_exact = files.graphs_of(exact)
    say("calibrate", 0.5)
    held = calibrated(exact, model, calibration, seed) if precision == FORM else exact
    graphs = files.graphs_of(held) if precision == FORM else of_exact
    say("export", 0.7)
    made = files.written(graphs, held.weights, kind.OPSET)
    weight_bytes = len(made[files.WEIGHTS])
    cores = threads or min(power.cpu_cores or board.cpu.cores, native.MAX_THREADS)
    result = {
        "target": board.name, "mode": power.name, "precision": precision, "backend": backend, "bundle": None,
        "sha256": None, "checked_by": None, "bytes": weight_bytes, "arena_bytes": None, "calls": None,
        "flops": {"upstream": upstream, "exact": native.flops_of(exact)}, "rate_hz": rate,
        "planner": asdict(held.planner), "threads": cores, "weight_bytes": weight_bytes, "place": backend,
        "estimate_ms": None,
    }  # fmt: skip
    if not dry_run:
        say("golden", 0.8)
        made[files.GOLDEN] = golden.record(held, exact, graphs, of_exact, seed)
        fields = native.manifest_of(held, board, power, precision, rate, cores, seed, sources)
        fields = {k: v for k, v in fields.items() if k not in OF_KERNELS} | {
            "backend": backend, "runs": dict.fromkeys(held.entries, backend), "build": recipe,
            "graphs": {name: files.ports_of(graph) for name, graph in graphs.items()},
        }  # fmt: skip
        fields |= {CALIBRATION: identity(calibration)} if calibration is not None else {}
        made[BACKEND_MANIFEST] = files.manifest_text(fields, made).encode()
        say("check", 0.9)
        with native.staging(out) as folder:
            for name, data in made.items():
                (folder / name).write_bytes(data)
            result["checked_by"] = kind.check(folder, read_manifest(folder), board)
            native.put(folder, out)
        digest = hashlib.sha256(made[BACKEND_MANIFEST]).hexdigest()
        result |= {"bundle": str(out), "sha256": digest, "bytes": sum(map(len, made.values()))}
    say("done", 1.0)
    return {**result, "seconds": round(time.perf_counter() - begun, 3)}


def calibrated(exact: Program, model: str, data: Path | None, seed: int) -> Program:
    """The program with what its recipe holds in eight bits in constant steps."""
    names = [name for name, form in recipe_of(exact, FORM).items() if form == FORM]
    inputs = searched(exact, model, data, seed)
    return hold_in_steps(exact, activation_steps(exact.entries["score"], exact.weights, names, inputs))

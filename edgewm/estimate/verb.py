"""The verb `estimate`: how long a plan, or one run of a network, takes on a board that is not here.

A bundle is estimated where it runs: on a CPU call by call of its schedule, as a model is, or on a GPU from the facts of
its compiled kernels; a shape or an ONNX file on a board's GPU, kernel by kernel. What lies outside of what is known
there is refused, or, with `anyway`, estimated and said to be so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EdgewmError
from ..format import GPU, unpack
from ..manifest import BACKEND_MANIFEST
from ..options import Progress
from ..target import Mode, Target, resolve
from . import calibration
from .cpu import COVERAGE, Machine, bound_of, price_plan
from .gpu import RUNTIMES, Coefficients, check_mode, estimate_network, precision_of
from .machine import gpu_of, machine_of
from .network import Kernel, Network
from .shapes import network_of

SHAPE = "shape:"
MOST_CONVOLUTION = 0.1  # share of the operations beyond which a network is one of convolutions
SECTION = "counts"  # of model.ewm
SPENT = {"launch": "nodes_us", "sync": "barriers_us", "latency": "latency_us"}  # of a row of a bundle's kernels
OF_OTHERS = "fractions of peaks that others' kernels reach; clocks pinned at the mode's"


def estimate(
    subject: str, *, target: str | None = None, mode: str | None = None, precision: str | None = None,
    runtime: str = "fused", threads: int | None = None, planner: Mapping[str, Any] | None = None,
    isa: str | None = None, measured: Path | None = None, place: str | None = None, anyway: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Time of a bundle's plan, of a MODEL's, of an ONNX file's run or of `shape:NAME`'s; what `estimate --json` prints.

    `target` is a bundle's own where it is left out, the host for a model; `place` is where a model's plan runs, cpu or
    gpu; `threads` the mode's cores. `measured`: facts that `targets probe --out` wrote on such a machine; without
    them those that it keeps of that board. Times in ms; `plan_ms` {point, low, high}. `coverage`, the share of
    what is measured that lies between low and high, is COVERAGE where measurements of that machine set the prices; None
    elsewhere, and for what lies outside: nobody has checked. Raises EdgewmError for what does not exist, does not fit,
    or lies outside.
    """
    if subject.startswith(SHAPE) or Path(subject).suffix == ".onnx":
        for_plans = {"threads": threads, "isa": isa, "place": place, **(planner or {})}
        _refuse(subject, for_plans, "a plan on a CPU", "a network on a GPU")
        return _network(subject, target or "host", mode, precision or "fp16", runtime, anyway, measured)
    _refuse(subject, {"runtime": None if runtime == "fused" else runtime}, "a network on a GPU", "a plan on a CPU")
    if (Path(subject) / "model.ewm").is_file():
        _refuse(subject, {"isa": isa, "place": place, **(planner or {})}, "a MODEL", "a bundle, which has its own")
        return _bundle(Path(subject), target, mode, precision, threads, measured)
    if (Path(subject) / BACKEND_MANIFEST).is_file():
        raise EdgewmError(
            "a bundle for another runtime has no schedule to estimate by", subject,
            f"estimate a file of it: {Path(subject) / 'iterate.onnx'} --target BOARD",
        )  # fmt: skip
    if place == "gpu":
        _refuse(subject, {"threads": threads, "isa": isa}, "a plan on a CPU", "one on a GPU")
    where = resolve(target or "host", mode, isa)
    return _model(subject, *where, precision or "fp32", threads, planner or {}, place, measured, progress)


def _refuse(subject: str, options: Mapping[str, Any], whose: str, what: str) -> None:
    """EdgewmError for an option that is given and says nothing of such a subject."""
    for name, value in options.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            raise EdgewmError(f"{flag} is for {whose}, this is {what}", f"{subject} {flag}", f"leave {flag} out")


# ---------------------------------------------------------------------------------------------- on a CPU


def estimate_ms(
    counts: Mapping[str, Any], board: Target, mode: Mode, threads: int, measured: Path | None = None
) -> dict[str, Any] | None:
    """`plan_ms` of `counts.plan_counts` with its `source`; None where nothing is known of the board's CPU."""
    machine = machine_of(board, mode, threads, measured)
    if machine is None:
        return None
    return {**price_plan(counts, machine, threads)["plan_ms"], "source": f"estimated: {machine.source}"}


def _bundle(
    bundle: Path, target: str | None, mode: str | None, precision: str | None, threads: int | None,
    measured: Path | None,
) -> dict[str, Any]:  # fmt: skip
    from ..manifest import read_manifest

    manifest = read_manifest(bundle)
    own = manifest.raw["isa"]
    sections = unpack((bundle / "model.ewm").read_bytes())
    board, power = resolve(target or manifest.target, mode or (manifest.mode if target is None else None))
    if precision not in (None, manifest.precision):
        raise EdgewmError(
            f"the bundle is in {manifest.precision}", f"--precision {precision}", "build it again, or give its MODEL"
        )
    if board.isa != own:
        raise EdgewmError(
            f"the bundle holds {own} kernels, {board.name} runs {board.isa}", str(bundle),
            "build it for that target, or give its MODEL",
        )  # fmt: skip
    if "launches" in sections:
        _refuse(str(bundle), {"threads": threads}, "a plan on a CPU", "one on a GPU")
        return _on_gpu(bundle, sections, board, power, manifest.precision, measured)
    section = sections.get(SECTION)
    if section is None:
        raise EdgewmError("the bundle does not say what its calls do", str(bundle), "build it again")
    cores = threads or (manifest.threads if target is None else power.cpu_cores or board.cpu.cores)
    return _on_cpu(str(bundle), json.loads(section), board, power, manifest.precision, cores, measured)


def _model(
    subject: str, board: Target, power: Mode, precision: str, threads: int | None, planner: Mapping[str, Any],
    place: str | None, measured: Path | None, progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    from ..build import capture
    from ..cuda.schedule import schedule_gpu
    from ..emit import schedule_program
    from ..passes import EXACT, LOWERING, run
    from ..quantize import recipe_of
    from .counts import plan_counts
    from .placed import price_gpu

    say = progress or (lambda stage, done: None)
    cores = threads or power.cpu_cores or board.cpu.cores
    if place == "gpu":  # refused before anything that takes time
        check_mode(board, power)
    else:
        machine_or_refusal(board, power, cores, measured)
    say("load", 0.0)
    program, _, _ = capture(subject, planner, None, None)
    say("passes", 0.4)
    program = run(program, EXACT)
    program = run(program.with_(recipe=recipe_of(program, precision), target=board), LOWERING)
    say("schedule", 0.8)
    if place == "gpu":
        probed = gpu_of(board, power, measured)
        priced, made = price_gpu(schedule_gpu(program), board, power, probed)
        found = _of_own_kernels(subject, board, power, precision, priced, made, probed is not None)
    else:
        counts = plan_counts(schedule_program(program, board.isa), board.isa)
        found = _on_cpu(subject, counts, board, power, precision, cores, measured)
    return {**found, "planner": asdict(program.planner)}


def machine_or_refusal(board: Target, mode: Mode, threads: int, measured: Path | None) -> Machine:
    """The board's machine. EdgewmError where nothing is known of it."""
    machine = machine_of(board, mode, threads, measured)
    if machine is None:
        raise EdgewmError(
            f"nothing is known of how fast {board.name} is in {mode.name}", "--target",
            "run `edgewm targets probe` once" if board.name == "host" else
            "choose another mode, or give --measured FILE from `edgewm targets probe --out FILE` there",
        )  # fmt: skip
    return machine


def _on_cpu(
    subject: str, counts: Mapping[str, Any], board: Target, mode: Mode, precision: str, threads: int,
    measured: Path | None,
) -> dict[str, Any]:  # fmt: skip
    machine = machine_or_refusal(board, mode, threads, measured)
    found = price_plan(counts, machine, threads)
    told = _told(subject, board, mode, precision, "cpu", found, [machine.source], machine.notes, machine.is_measured)
    return told | {"threads": threads}


# ---------------------------------------------------------------------------------------------- on a GPU


def _on_gpu(
    bundle: Path, sections: Mapping[str, bytes], board: Target, mode: Mode, precision: str, measured: Path | None
) -> dict[str, Any]:
    """A bundle's plan on the GPU that its kernels were compiled for."""
    from ..cuda import bound

    (gpu,) = np.frombuffer(sections["gpu"], GPU)
    if board.gpu is None or board.gpu.sm != f"sm_{gpu['sm']}":
        has = "no GPU" if board.gpu is None else board.gpu.sm
        raise EdgewmError(
            f"the bundle holds kernels for sm_{gpu['sm']}, {board.name} has {has}", str(bundle),
            "build it again for that target",
        )  # fmt: skip
    probed = gpu_of(board, mode, measured)
    rows, made = bound.bundle_rows(bundle, board, mode, probed), bound.coefficients(board, mode, probed)
    shares: Counter[str] = Counter()
    kernels = []
    for row in rows:
        spent = Counter({name: row[key] for name, key in SPENT.items()})
        spent[row["bound"]] += row["estimate_us"] - sum(spent.values())
        shares.update(spent)
        kernels.append({
            "name": row["what"], "ms": row["estimate_us"] / 1e3, "bound": bound_of(spent), "calls": row["calls"],
        })  # fmt: skip
    whole_us = sum(shares.values())
    found = {
        "plan_ms": bound.whole(rows, board, mode)["estimate_ms"], "persistent": bound.is_persistent(sections),
        "bound": bound_of(shares),
        "shares": {limit: us / whole_us for limit, us in shares.most_common() if us}, "kernels": kernels,
    }  # fmt: skip
    return _of_own_kernels(str(bundle), board, mode, precision, found, made, probed is not None)


def _of_own_kernels(
    subject: str, board: Target, mode: Mode, precision: str, found: Mapping[str, Any], made: Coefficients,
    is_probed: bool,
) -> dict[str, Any]:  # fmt: skip
    notes = [OF_OTHERS]
    if found["persistent"]:
        barrier = "a barrier is taken to cost four trips to the L2" if made.barrier_us is None else "as measured"
        notes.append(f"launches that follow on each other run as one, with barriers of all blocks between: {barrier}")
    told = _told(subject, board, mode, precision, "gpu", found, list(made.sources), tuple(notes), is_probed)
    return told | {"runtime": "edgewm"}


def _network(
    subject: str, target: str, mode: str | None, precision: str, runtime: str, anyway: bool, measured: Path | None
) -> dict[str, Any]:
    network = network_of(subject.removeprefix(SHAPE)) if subject.startswith(SHAPE) else _onnx(Path(subject))
    board, power = resolve(target, mode)
    check_mode(board, power)
    held = precision_of(precision, board)
    if runtime not in RUNTIMES:
        raise EdgewmError(
            f"outside of what is known: run {runtime}, a stack is bound by launches that its host's CPU makes",
            f"--runtime {runtime}", f"use {' or '.join(RUNTIMES)}: kernels replayed as a graph",
        )  # fmt: skip
    strange = share_of(network, lambda kernel: kernel.kind == "convolution")
    if strange > MOST_CONVOLUTION and not anyway:
        raise EdgewmError(
            f"outside of what is known: {_told_share(network, strange)}", subject,
            "give --anyway for a figure that says it is",
        )  # fmt: skip
    outside = beyond(network)
    probed = gpu_of(board, power, measured)
    made = calibration.coefficients(board, power, probed=probed)
    found = estimate_network(network, board, power, held, made, runtime)
    is_checked = not outside and (probed is not None or board.name == calibration.BOARD)  # its rows are of that board
    sources = [network.source, *made.sources]
    told = _told(subject, board, power, precision, "gpu", found, sources, network.notes, is_checked)
    notes = ["kernels of other runtimes, not of edgewm; clocks pinned at the mode's", *told["notes"]]
    notes += calibration.stand_ins(board, held)
    return told | {"runtime": runtime, "flops": network.flops, "outside": outside, "notes": notes}


def _onnx(file: Path) -> Network:
    from .onnx_network import read_network

    if not file.is_file():
        raise EdgewmError("no such file", str(file), "give an ONNX file, a bundle, a MODEL or shape:NAME")
    return read_network(file)


def share_of(network: Network, which: Callable[[Kernel], bool]) -> float:
    """Of the network's operations."""
    return sum(kernel.flops for kernel in network.kernels if which(kernel)) / max(network.flops, 1)


def beyond(network: Network) -> list[str]:
    """Why a network lies outside of what the rows of `calibration.csv` show; empty where it does not. Products of rows
    that share their numbers are convolutions too."""
    share = share_of(network, lambda kernel: kernel.kind == "convolution" or kernel.overlap > 1)
    return [_told_share(network, share)] if share > MOST_CONVOLUTION else []


def _told_share(network: Network, share: float) -> str:
    return f"{100 * share:.0f} % of {network.name} is convolutions, and no row is of one"


# ---------------------------------------------------------------------------------------------- the result


def _told(
    subject: str, board: Target, mode: Mode, precision: str, place: str, found: Mapping[str, Any], sources: list[str],
    notes: tuple[str, ...], is_checked: bool,
) -> dict[str, Any]:  # fmt: skip
    return {
        "subject": subject, "target": board.name, "mode": mode.name, "precision": precision, "place": place,
        "source": "estimated", **found, "coverage": COVERAGE if is_checked else None, "provenance": sources,
        "notes": list(notes), "outside": [],
    }  # fmt: skip

"""Prices of a machine: measured where it was probed, else its advertised peaks times what our kernels reach elsewhere.

The two are never mixed. `reference.json` holds what `edgewm targets probe` found on one machine, for each of its
instruction sets. A count's price there, over the time that its peak gives it, is what a board is charged over its own
peak. How far that goes wrong is known from doing it from one of those instruction sets to the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import EdgewmError
from ..target import Measured, Mode, Target, peak_flops
from .cpu import Machine
from .probe import SCHEMA_VERSION, kept_files, kernels_sha256, least_ns

REFERENCE = Path(__file__).with_name("reference.json")
# Whose prices stand for an instruction set that was never timed: the same tile and the same blocks.
ALIKE = {"neon": "avx2", "scalar": "avx2"}
EMULATED_INT8 = 16  # vector operations of a word where no instruction makes its products (`dot` of microkernel.h)
CARRIED = ("step_ns", "meet_ns", "wake_ns")  # work of a core; how late a thread wakes is a kernel's and a chip's own
BESIDE_CALLS = (*CARRIED, "late_ns")
FORMATS = {"fma_bf16": "bf16", "fma_i8": "int8"}  # counts with a peak of their own; f32's is everybody else's


def machine_of(board: Target, mode: Mode, threads: int, measured: Path | None = None) -> Machine | None:
    """The machine of a board in a mode: from the facts in `measured` (a file that `targets probe` wrote), from those
    that it keeps of this board in this mode, else from advertised figures. None where nothing is known of it.

    Raises EdgewmError for a file that holds no such facts, or those of other kernels than the board runs.
    """
    file = measured or kept_files(board).get(mode.name)
    return advertised(board, mode, threads) if file is None else of_facts(read_facts(file, board))


def gpu_of(board: Target, mode: Mode, measured: Path | None = None) -> Mapping[str, Any] | None:
    """What was measured of the board's GPU in a mode, found as in `machine_of`; None where nothing was, or where what
    was probed is another architecture. EdgewmError where `measured` was asked for and is not of such a GPU."""
    file = measured or kept_files(board).get(mode.name)
    if file is None or board.gpu is None:
        return None
    gpu = read_facts(file, board)["gpu"]
    why = gpu.get("why") or ("" if f"sm_{gpu['sm']}" == board.gpu.sm else f"{gpu['name']} is sm_{gpu['sm']}")
    if why and measured is not None:
        fix = f"write it with `edgewm targets probe --target {board.name} --out FILE` on such a board"
        raise EdgewmError(f"the facts hold nothing of {board.gpu.name}: {why}", str(file), fix)
    return None if why else gpu


def read_facts(file: Path, board: Target) -> dict[str, Any]:
    """The facts of a file that `edgewm targets probe --out FILE` wrote on a machine like `board`."""
    again = "write it with `edgewm targets probe --out FILE` on that machine"
    try:
        facts = json.loads(file.read_text())
    except (OSError, ValueError) as fault:
        raise EdgewmError(f"cannot read measured facts: {fault}", str(file), again) from fault
    if not isinstance(facts, dict) or not {"costs_ns", "machine", "threads", "peaks", "sigma"} <= facts.keys():
        raise EdgewmError("these are no measured facts", str(file), again)
    if facts.get("schema_version") != SCHEMA_VERSION:
        version = facts.get("schema_version")
        raise EdgewmError(f"the facts are of version {version}, this reads {SCHEMA_VERSION}", str(file), again)
    if facts["machine"]["isa"] != board.isa:
        found = f"the facts are of {facts['machine']['isa']} kernels, {board.name} runs {board.isa}"
        raise EdgewmError(found, str(file), again)
    return facts


def of_facts(facts: Mapping[str, Any]) -> Machine:
    """Prices as they were measured."""
    together = {name: facts["threads"][name] for name in BESIDE_CALLS}
    is_current = facts["kernels_sha256"] == kernels_sha256()
    stale = "measured with other kernel sources than these: run `edgewm targets probe` again"
    return Machine(
        costs_ns=facts["costs_ns"], **together,
        dram_gbps=max(peaks["dram_gbps"] for peaks in facts["peaks"].values()),
        cache_bytes=facts["machine"]["l3_bytes"] or facts["machine"]["l2_bytes"] or 0, sigma=facts["sigma"],
        source=facts["source"],
        slowdown={int(n): value for n, value in facts["threads"]["slowdown"].items()},
        notes=() if is_current else (stale,), is_measured=is_current,
    )  # fmt: skip


PEAKS = {
    "fp32_gflops": ("products in f32", "GFLOPS"), "bf16_gflops": ("products in bf16", "GFLOPS"),
    "int8_gops": ("products in int8", "GOPS"), "dram_gbps": ("reads out of memory", "GB/s"),
}  # fmt: skip


OF_GPU = {
    "fp32_gflops": ("multiply-adds in f32", "GFLOPS"), "bf16_gflops": ("products of tensor cores in bf16", "GFLOPS"),
    "int8_gops": ("products of tensor cores in int8", "GOPS"), "dram_gbps": ("reads out of memory", "GB/s"),
    "copy_gbps": ("copies in memory, read and written", "GB/s"), "graph_node_us": ("a node of a replayed graph", "us"),
    "barrier_us": ("all resident blocks meet", "us"), "launch_us": ("the call that launches a graph", "us"),
    "answer_us": ("an empty graph, launched and its end seen", "us"),
    "answer_napping_us": ("the same, napping between looks", "us"),
}  # fmt: skip


def with_measured(board: Target) -> Target:
    """The board with what `targets probe` measured on it beside its facts; one never probed as it is."""
    rows = []
    for mode, file in kept_files(board).items():
        facts = read_facts(file, board)
        rows += [Measured(what, value, unit, facts["source"], mode) for what, value, unit in measured_rows(facts)]
    return replace(board, measured=(*board.measured, *rows))


def measured_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """What, value and unit of each figure that stands by itself: peaks, caches, meeting, waking."""
    for n, peaks in facts["peaks"].items():
        threads = f"{n} thread{'s' if n != '1' else ''}"
        yield from ((f"CPU: {what}, {threads}", round(peaks[key], 1), unit) for key, (what, unit) in PEAKS.items())
    for name, gbps in facts["caches"].items():
        yield f"CPU: reads out of half of {name.partition('_')[0].upper()}, 1 thread", round(gbps, 1), "GB/s"
    together = facts["threads"]
    yield "CPU: from region to region, 1 thread", round(together["step_ns"] / 1e3, 4), "us"
    if together["tried"] > 1:
        yield f"CPU: {together['tried']} threads meet", round(together["meet_ns"] / 1e3, 4), "us"
        woken = (together["wake_ns"] + together["late_ns"]) / 1e3
        yield f"CPU: {together['tried']} threads are woken for a plan", round(woken, 2), "us"
    gpu = facts["gpu"]
    yield from ((f"GPU: {what}", round(gpu[key], 3), unit) for key, (what, unit) in OF_GPU.items() if gpu.get(key))
    yield "a sleeper wakes late, median", round(facts["wake_up_us"]["p50"], 1), "us"
    yield "a sleeper wakes late, most", round(facts["wake_up_us"]["max"], 1), "us"


@cache
def reference() -> Mapping[str, Any]:
    """`reference.json`: `facts` by instruction set, and `transfer_sigma`, the error of carrying them over."""
    return json.loads(REFERENCE.read_text())


def advertised(board: Target, mode: Mode, threads: int) -> Machine | None:
    """Prices from a board's advertised figures; None where its clock, bandwidth or rates are not known."""
    peaks = {kind: peak_flops(board, mode, kind, "cpu") for kind in ("fp32", "bf16", "int8")}
    if not peaks["fp32"] or not mode.cpu_cores or not mode.dram_gbps:
        return None
    facts = reference()["facts"][ALIKE.get(board.isa, board.isa)]
    of_core = {
        "fp32_gflops": peaks["fp32"] / mode.cpu_cores / 1e9,
        # A CPU without an instruction for a format makes its products of others.
        "bf16_gflops": (peaks["bf16"] or peaks["fp32"]) / mode.cpu_cores / 1e9,
        "int8_gops": (peaks["int8"] or peaks["fp32"]) / mode.cpu_cores / 1e9,
    }
    there, here = least_ns(facts["peaks"]["1"], facts["machine"]["isa"]), least_ns(of_core, board.isa)
    costs = carried(facts["costs_ns"], there, here)
    if not board.cpu.flop_per_clock.int8:
        costs["fma_i8"] = EMULATED_INT8 * here["fma_f32"]
    slower = here["fma_f32"] / there["fma_f32"]
    return Machine(
        costs_ns=costs, **{name: facts["threads"][name] * slower for name in CARRIED},
        dram_gbps=mode.dram_gbps, cache_bytes=board.cpu.l3_bytes or board.cpu.l2_bytes or 0,
        sigma=reference()["transfer_sigma"],
        source=f"{board.title}'s advertised figures in {mode.name}, at the fractions that our "
        f"{facts['machine']['isa']} kernels reach on {facts['machine']['cpu']}",
        notes=(
            "carried over from another CPU: the interval knows only how its own instruction sets differ",
            *(("how late threads wake there is not known, and left out",) if threads > 1 else ()),
        ),
    )  # fmt: skip


def carried(costs_ns: Mapping[str, float], there: Mapping[str, float], here: Mapping[str, float]) -> dict[str, float]:
    """Prices of one machine on another: each times the ratio of what its multiply-adds take at peak (`least_ns`)."""
    return {
        name: ns * (here[name if name in FORMATS else "fma_f32"] / there[name if name in FORMATS else "fma_f32"])
        for name, ns in costs_ns.items()
    }

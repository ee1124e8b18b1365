"""How long the calls of a bundle take on a board's GPU at least, from facts alone, and an estimate above that.

The bound of a call is the longest of its limits at the board's advertised peaks: `tensor` (products and attention in
their own format, tiles counted whole), `vector` (all other arithmetic), `l2` (what it reads and writes, through the
port of each SM) and `memory` (what of that the L2 cannot hold). Where a call has fewer blocks than the mode has SMs,
the SMs without one do nothing: tensor and vector work is that of the busiest. Nothing runs faster than the bound. The
estimate divides the limits by the fractions of peaks that published kernels reach (`estimate.gpu.Coefficients`), and
adds what each launch costs as one node of a replayed graph.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .. import format as ewm
from ..errors import EdgewmError
from ..estimate import calibration
from ..estimate.cpu import bound_of, interval
from ..estimate.gpu import FP32_LANES, L2_BYTES, Coefficients, check_mode
from ..kernel_times import calls_of
from ..target import Mode, Target
from . import launches
from .occupancy import occupancy

FACTS = "facts"  # section of model.ewm: KernelFacts of every function
FORMATS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8"}  # of a call's work -> of a board's rates
LIMITS = ("tensor", "vector", "l2", "memory")


def coefficients(board: Target, mode: Mode, probed: Mapping[str, Any] | None = None) -> Coefficients:
    """Those of edgewm's kernels; `probed`: what was measured of the board's own GPU."""
    return calibration.of_own_kernels(calibration.coefficients(board, mode, probed=probed), board, mode, probed)


def bundle_rows(
    bundle: Path, board: Target, mode: Mode, probed: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """One row for each kernel and shape of a bundle's plan, largest estimate first; times in us of one plan.

    `what` its calls are, one behind the other in one launch; `functions` [{name, registers, spill_bytes, shared_bytes,
    blocks, resident, occupancy, limit, tensor_code}] its launches; `calls` and `launches` how many of a plan, `indices`
    into section "calls", `work` what all of them do; `bound_us` {limit: us} and `bound` the largest; `estimate_us` with
    the launches, `node_us` their part: nodes of a graph, or barriers of a launch that stays where their cost was
    `probed` (`gpu_probe.measure_gpu`). EdgewmError for a bundle whose calls run on a CPU, or a mode without clocks.
    """
    check_mode(board, mode)
    sections = ewm.unpack((bundle / "model.ewm").read_bytes())
    if "launches" not in sections or FACTS not in sections:
        raise EdgewmError(
            "the bundle holds no GPU kernels, or does not say what is known of them", str(bundle),
            "build it again with --target of a board with a GPU, and --place gpu or auto",
        )  # fmt: skip
    with_ = coefficients(board, mode, probed)
    between_us = with_.node_us * with_.node_mhz / mode.gpu_mhz
    if with_.barrier_us is not None and is_persistent(sections):
        between_us = with_.barrier_us
    facts = {f["name"]: f for f in json.loads(sections[FACTS])}
    names = [f["name"].decode() for f in np.frombuffer(sections["functions"], ewm.FUNCTION)]
    phases: dict[int, list[np.void]] = {}
    for row in np.frombuffer(sections["launches"], ewm.LAUNCH):
        phases.setdefault(int(row["call"]), []).append(row)
    found: dict[tuple, dict[str, Any]] = {}
    for _, region in groupby(calls_of(bundle), key=lambda call: call["step"]):
        calls = list(region)
        last, own = calls[-1], phases[calls[-1]["call"]]
        key = tuple((call["kernel"], tuple(call["dims"]), call["lanes"]) for call in calls)
        work = sum((Counter({k: v for k, v in call["work"].items() if k != "does"}) for call in calls), Counter())
        if key not in found:
            functions = [_function(facts[names[int(p["function"])]], p, board) for p in own]
            found[key] = {
                "what": " + ".join(map(_called, calls)), "family": last["kernel"].partition("<")[0], "indices": [],
                "functions": functions, "calls": 0, "launches": 0, "work": Counter(), "bound_us": Counter(),
                "estimate_us": 0.0, "node_us": 0.0,
                "each": limits_us({**last, "work": work}, [f["blocks"] for f in functions], board, mode),
            }  # fmt: skip
        row, times = found[key], last["times"]
        node_us = len(own) * between_us
        row["indices"] += [call["call"] for call in calls]
        row["calls"] += times
        row["launches"] += times * len(own)
        row["work"].update({kind: amount * times for kind, amount in work.items()})
        row["bound_us"].update({limit: us * times for limit, us in row["each"].items()})
        row["node_us"] += node_us * times
        row["estimate_us"] += (estimated_us(row["each"], work, with_) + node_us) * times
    for row in found.values():
        del row["each"]
        row["bound"] = bound_of(row["bound_us"])
    return sorted(found.values(), key=lambda row: -row["estimate_us"])


def is_persistent(sections: Mapping[str, bytes]) -> bool:
    """Whether launches that follow on each other are run as one."""
    (gpu,) = np.frombuffer(sections["gpu"], ewm.GPU)
    return int(gpu["persistent"]) != ewm.NONE


def whole(rows: Sequence[Mapping[str, Any]], board: Target, mode: Mode) -> dict[str, Any]:
    """Of a plan: `bound_ms`, `launches`, `node_ms`, `estimate_ms` {point, low, high} and `node_share` of the point."""
    sigma = calibration.coefficients(board, mode).sigma
    bound = sum(max(row["bound_us"].values()) for row in rows) / 1e3
    point, node = (sum(row[key] for row in rows) / 1e3 for key in ("estimate_us", "node_us"))
    told = interval(point, sigma)
    return {
        "launches": sum(row["launches"] for row in rows), "bound_ms": bound, "node_ms": node,
        "estimate_ms": {**told, "low": max(told["low"], bound)}, "node_share": node / point if point else 0.0,
    }  # fmt: skip


def limits_us(call: Mapping[str, Any], blocks: Sequence[int], board: Target, mode: Mode) -> dict[str, float]:
    """us of one call if each of LIMITS were alone, at advertised peaks; `blocks` of its launches, the core's last."""
    work, gpu = call["work"], board.gpu
    busy = -(-blocks[-1] // mode.sm) * mode.sm / blocks[-1]  # the busiest SM's work over the mean
    clocks = mode.gpu_mhz * mode.sm  # of all SMs, a us
    tensor = sum(
        padded(call, kind, blocks[-1]) * busy / (_rate(board, form) * clocks)
        for kind, form in FORMATS.items() if work.get(kind)
    )  # fmt: skip
    touched = work.get("weights", 0) + work.get("arena", 0) + 2 * work.get("scratch", 0)  # written, then read
    return {
        "tensor": tensor, "vector": work.get("vector", 0) / (FP32_LANES * clocks), "l2": touched / (L2_BYTES * clocks),
        "memory": max(0, touched - (gpu.l2_bytes or 0)) / (mode.dram_gbps * 1e3),
    }  # fmt: skip


def padded(call: Mapping[str, Any], kind: str, blocks: int) -> float:
    """Operations of a call's core; those of a product with the tiles that its blocks compute, whole."""
    if not call["kernel"].startswith("product"):
        return float(call["work"][kind])
    *outer, width, depth = call["dims"]
    tile = launches.SIDE * launches.SIDE
    if kind != "f32":  # a block of a narrow tile cannot have more results
        is_wide = prod(outer) * call["lanes"] * width > blocks * launches.NARROW**2
        tile = launches.BAND * launches.SIDE if is_wide else launches.NARROW**2
    return 2.0 * blocks * tile * depth


def estimated_us(limits: Mapping[str, float], work: Mapping[str, int], with_: Coefficients) -> float:
    """The longest limit at the fractions of peaks that published kernels reach."""
    form = next((FORMATS[kind] for kind in ("i8", "bf16", "f16") if work.get(kind)), "fp32")
    fraction = {"tensor": with_.tensor[form], "vector": 1.0, "l2": 1.0, "memory": with_.stream}
    return max(us / fraction[limit] for limit, us in limits.items())


def _rate(board: Target, form: str) -> float:
    """Dense operations of one SM in one clock. Products in fp32 use no tensor cores: the arithmetic contract's bits."""
    rate = getattr(board.gpu.flop_per_sm_clock, form)
    return 2 * FP32_LANES if form == "fp32" or not rate else rate


def _called(call: Mapping[str, Any]) -> str:
    dims = "x".join(map(str, call["dims"]))
    return f"{call['kernel'].partition('<')[0]} {dims}, {call['lanes']} lanes: {call['work']['does']}"


def _function(facts: Mapping[str, Any], launch: np.void, board: Target) -> dict[str, Any]:
    shared = facts["shared_bytes"] + int(launch["shared_bytes"])
    fits = occupancy(board.gpu, facts["registers"], launches.THREADS, shared)
    code = {name: n for name, n in facts["instructions"].items() if name.startswith(("IMMA", "HMMA"))}
    return {
        "name": facts["name"], "registers": facts["registers"], "spill_bytes": facts["spill_bytes"],
        "shared_bytes": shared, "blocks": int(launch["blocks"]), "resident": fits.blocks, "occupancy": fits.fraction,
        "limit": fits.limit, "tensor_code": sum(code.values()),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- for people


def lines(rows: Sequence[Mapping[str, Any]], board: Target, mode: Mode) -> list[str]:
    """A table of the rows with the plan's own line last; every time in it is an estimate."""
    text = [
        f"static bound on {board.title} in {mode.name}, an estimate: us of one plan",
        "  estimate    node   bound of       calls  regs spill  shared  blocks  resident  kernel",
    ]
    for row in rows:
        bound = f"{row['bound_us'][row['bound']]:9.1f} {row['bound']:7s}"
        for i, f in enumerate(row["functions"]):
            head = (
                f"  {row['estimate_us']:8.1f} {row['node_us']:7.1f} {bound} {row['calls']:6d}" if i == 0 else " " * 44
            )
            text.append(
                f"{head:44s} {f['registers']:5d} {f['spill_bytes']:5d} {f['shared_bytes']:7d} {f['blocks']:7d} "
                f"{f['resident']:4d} {f['occupancy']:4.0%}  {f['name']}" + (f": {row['what']}" if i == 0 else "")
            )
    told = whole(rows, board, mode)
    ms = told["estimate_ms"]
    text.append(
        f"  a plan: estimate {ms['point']:.1f} ms ({ms['low']:.1f} to {ms['high']:.1f}), bound {told['bound_ms']:.1f} "
        f"ms; {told['launches']} launches cost {told['node_ms']:.1f} ms as nodes of a graph ({told['node_share']:.0%})"
    )
    return text

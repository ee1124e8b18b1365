"""How long the calls of a bundle take on a board's GPU at least, from facts alone, and an estimate above that.

The bound of a launch is the longest of its limits at the board's advertised peaks: `tensor` (products and attention in
their own format, tiles counted whole), `vector` (all other arithmetic), `l2` (what it reads and writes, through the
port of each SM) and `memory` (what of that the L2 cannot hold, a call at a time). Where a launch has fewer blocks than
the mode has SMs, the SMs without one do nothing: each limit but memory is that of the busiest. Nothing runs faster than
the bound. The estimate divides the limits by the fractions of peaks that published kernels reach
(`estimate.gpu.Coefficients`), of DRAM's bandwidth by no more than what the threads of a launch have on their way, and
adds what each launch costs: a node of a replayed graph, or, where launches that follow on each other are one, a barrier
of its blocks. No launch takes less than what it reads one after the other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import format as ewm
from ..errors import EdgewmError
from ..estimate import calibration
from ..estimate.cpu import bound_of, interval
from ..estimate.gpu import FP32_LANES, L2_BYTES, Coefficients, check_mode, launches_us, least_us, stream_of
from ..kernel_times import calls_of
from ..target import Mode, Target
from . import launches
from .occupancy import occupancy

FACTS = "facts"  # section of model.ewm: KernelFacts of every function
FORMATS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8"}  # of a call's work -> of a board's rates
NUMBER_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "i8": 1}
LIMITS = ("tensor", "vector", "l2", "memory")


def coefficients(board: Target, mode: Mode, probed: Mapping[str, Any] | None = None) -> Coefficients:
    """Those of edgewm's kernels; `probed`: what was measured of the board's own GPU."""
    return calibration.of_own_kernels(calibration.coefficients(board, mode, probed=probed), board, mode, probed)


def bundle_rows(
    bundle: Path, board: Target, mode: Mode, probed: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """One row for each kernel and shape of a bundle's plan, largest estimate first; times in us of one plan.

    `what` its calls are, one behind the other in one launch; `functions` [{name, registers, spill_bytes, shared_bytes,
    blocks, resident, occupancy, limit, tensor_code}] its launches; `calls` and `launches` how many of a plan and
    `nodes` how many of those are nodes of its graph, `indices` into section "calls", `work` what all of them do;
    `bound_us` {limit: us} and `bound` the largest; `estimate_us` with the launches, `nodes_us` and `barriers_us` their
    part, at what was `probed` of the GPU (`gpu_probe.measure_gpu`) or what boards' facts say; `latency_us` the part
    that goes by with reads one after the other. EdgewmError for a bundle whose calls run on a CPU, or a mode without
    clocks.
    """
    check_mode(board, mode)
    sections = ewm.unpack((bundle / "model.ewm").read_bytes())
    if "launches" not in sections or FACTS not in sections:
        raise EdgewmError(
            "the bundle holds no GPU kernels, or does not say what is known of them", str(bundle),
            "build it again with --target of a board with a GPU, and --place gpu or auto",
        )  # fmt: skip
    with_ = coefficients(board, mode, probed)
    facts = {f["name"]: f for f in json.loads(sections[FACTS])}
    names = [f["name"].decode() for f in np.frombuffer(sections["functions"], ewm.FUNCTION)]
    phases: dict[int, list[np.void]] = {}
    for row in np.frombuffer(sections["launches"], ewm.LAUNCH):
        phases.setdefault(int(row["call"]), []).append(row)
    joined = is_persistent(sections)
    most = max(f["registers"] for f in facts.values())  # of the one kernel that runs all
    at_once = max(int(row["shared_bytes"]) for own in phases.values() for row in own)
    found: dict[tuple, dict[str, Any]] = {}
    before = None  # the step of the region before
    for step, region in groupby(calls_of(bundle), key=lambda call: call["step"]):
        calls = list(region)
        follows, before = joined and before is not None and step == before + 1, step
        last, own = calls[-1], [phase for call in calls for phase in phases.get(call["call"], [])]
        key = tuple((call["kernel"], tuple(call["dims"]), call["lanes"]) for call in calls)
        if key not in found:
            functions = [_function(facts[names[int(p["function"])]], p, board) for p in own]
            parts = parts_of(calls, own)
            found[key] = {
                "what": " + ".join(map(_called, calls)), "family": last["kernel"].partition("<")[0], "indices": [],
                "functions": functions, "calls": 0, "launches": 0, "nodes": 0, "work": Counter(),
                "bound_us": Counter(), "estimate_us": 0.0, "nodes_us": 0.0, "barriers_us": 0.0, "latency_us": 0.0,
                "each": [(limits_us(part.works, part.tiles, part.blocks, board, mode), part) for part in parts],
            }  # fmt: skip
        row, times, end = found[key], last["times"], 0
        for limits, part in row["each"]:
            nodes = not follows if joined else part.launches
            follows, end = joined, end + part.launches
            core = row["functions"][end - 1]
            resident = occupancy(board.gpu, most, launches.THREADS, at_once).blocks if joined else core["resident"]
            threads = min(part.blocks, resident * mode.sm) * launches.THREADS
            spent = spent_us(limits, added(part.works), part.launches, nodes, threads, mode, with_)
            row["nodes"] += times * nodes
            row["bound_us"].update({limit: us * times for limit, us in limits.items()})
            row["nodes_us"] += spent["nodes"] * times
            row["barriers_us"] += spent["barriers"] * times
            row["latency_us"] += spent["latency"] * times
            row["estimate_us"] += sum(spent.values()) * times
        row["indices"] += [call["call"] for call in calls]
        row["calls"] += times
        row["launches"] += times * len(own)
        row["work"].update({kind: n * times for kind, n in added([call["work"] for call in calls]).items()})
    for row in found.values():
        del row["each"]
        row["bound"] = bound_of(row["bound_us"])
    return sorted(found.values(), key=lambda row: -row["estimate_us"])


class Part(NamedTuple):
    """Launches of a region that are priced together: what their calls do, and the blocks of the last."""

    launches: int
    works: list[Mapping[str, Any]]
    tiles: list[Tile]
    blocks: int


def parts_of(calls: Sequence[Mapping[str, Any]], own: Sequence[np.void]) -> list[Part]:
    """A region's launches, `own`: calls that a chain runs whole, and those behind a barrier, whose rows it rounds."""
    first = next(i for i, call in enumerate(calls) if call["call"] == int(own[0]["call"]))
    cuts = [(calls[:first], own[:1]), (calls[first:], own[1:])] if first and len(own) > 1 else [(calls, own)]
    last = [int(rows[-1]["blocks"]) for _, rows in cuts]
    return [
        Part(len(rows), [call["work"] for call in part], tiles_of(part, blocks), blocks)
        for (part, rows), blocks in zip(cuts, last, strict=True)
    ]


def is_persistent(sections: Mapping[str, bytes]) -> bool:
    """Whether launches that follow on each other are run as one."""
    (gpu,) = np.frombuffer(sections["gpu"], ewm.GPU)
    return int(gpu["persistent"]) != ewm.NONE


def whole(rows: Sequence[Mapping[str, Any]], board: Target, mode: Mode) -> dict[str, Any]:
    """Of a plan: `bound_ms`, `launches`, `nodes` (of them, in its graph; behind barriers the others), `nodes_ms`,
    `barriers_ms`, `estimate_ms` {point, low, high}, and the shares of its point: `nodes_share`, `barriers_share`."""
    sigma = calibration.coefficients(board, mode).sigma
    bound = sum(max(row["bound_us"].values()) for row in rows) / 1e3
    point, nodes, barriers = (sum(r[key] for r in rows) / 1e3 for key in ("estimate_us", "nodes_us", "barriers_us"))
    told = interval(point, sigma)
    return {
        **{key: sum(row[key] for row in rows) for key in ("launches", "nodes")}, "bound_ms": bound, "nodes_ms": nodes,
        "barriers_ms": barriers, "estimate_ms": {**told, "low": max(told["low"], bound)},
        **{f"{key}_share": ms / point if point else 0.0 for key, ms in (("nodes", nodes), ("barriers", barriers))},
    }  # fmt: skip


def limits_us(
    works: Sequence[Mapping[str, int]], tiles: Sequence[Tile], blocks: int, board: Target, mode: Mode
) -> dict[str, float]:
    """us of launches if each of LIMITS were alone, at advertised peaks; `works` of their calls, `tiles` and `blocks` of
    the core's launch."""
    l2_bytes, work = board.gpu.l2_bytes or 0, added(works)
    busy = busiest(blocks, mode)
    clocks = mode.gpu_mhz * mode.sm  # of all SMs, a us
    tensor = sum(
        (sum(t.operations for t in tiles if t.form == kind) or work[kind]) * busy / (_rate(board, form) * clocks)
        for kind, form in FORMATS.items() if work.get(kind)
    )  # fmt: skip
    touched = [w.get("weights", 0) + w.get("arena", 0) + 2 * w.get("scratch", 0) for w in works]  # written, then read
    brought = max(0, sum(t.bytes for t in tiles) - work.get("weights", 0)) if tiles else 0  # once more by other blocks
    return {
        "tensor": tensor, "vector": work.get("vector", 0) * busy / (FP32_LANES * clocks),
        "l2": (sum(touched) + brought) * busy / (L2_BYTES * clocks),
        "memory": sum(max(0, each - l2_bytes) for each in touched) / (mode.dram_gbps * 1e3),
    }  # fmt: skip


def added(works: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Amounts of calls together, without what they do in words."""
    return sum((Counter({k: v for k, v in work.items() if k != "does"}) for work in works), Counter())


def busiest(blocks: int, mode: Mode) -> float:
    """The busiest SM's blocks over the mean."""
    return -(-blocks // mode.sm) * mode.sm / blocks


def spent_us(
    limits: Mapping[str, float], work: Mapping[str, int], launches: int, nodes: int, threads: int, mode: Mode,
    with_: Coefficients,
) -> dict[str, float]:  # fmt: skip
    """us that a region's launches are estimated at: `busy`, `latency`, `nodes` and `barriers`; of its core so many
    `threads` run at once."""
    busy = estimated_us(limits, work, replace(with_, stream=stream_of(threads, mode, with_)))
    return {
        "busy": busy, "latency": max(0.0, least_us(launches, mode) - busy), **launches_us(launches, nodes, mode, with_)
    }  # fmt: skip


class Tile(NamedTuple):
    """What the blocks of a product's launch do, tiles counted whole: `form` of its numbers, `operations`, and `bytes`
    of rows and columns that they bring to shared memory."""

    form: str
    operations: float
    bytes: float


def tiles_of(calls: Sequence[Mapping[str, Any]], blocks: int) -> list[Tile]:
    """Of a region's products: of whole rows where they do not end it."""
    *before, _ = calls
    last = tile_of(calls, blocks)
    attends = len(calls) > 1 and calls[-1]["kernel"].startswith("attention")
    rows = [call for call in (before[:-1] if attends else before) if _is_product(call)]
    return [_tile_of_rows(call, blocks) for call in rows] + ([last] if last else [])


def _tile_of_rows(call: Mapping[str, Any], blocks: int) -> Tile:
    form = _form(call)
    moved = launches.rows_bytes(tuple(call["dims"]), NUMBER_BYTES[form])
    passes = -(-call["dims"][-2] // launches.SIDE)
    operations = 2.0 * launches.TILE * passes * launches.SIDE * call["dims"][-1] * blocks
    return Tile(form, operations, float(moved * blocks))


def _is_product(call: Mapping[str, Any]) -> bool:
    return call["kernel"].startswith("product")


def _form(call: Mapping[str, Any]) -> str:
    """Of the numbers that a product multiplies."""
    return next((kind for kind in FORMATS if call["work"].get(kind) and kind != "f32"), "f32")


def tile_of(calls: Sequence[Mapping[str, Any]], blocks: int) -> Tile | None:
    """Of the product that ends a region's calls, or that an attention ends with it; None where none does."""
    attends = len(calls) > 1 and calls[-1]["kernel"].startswith("attention")
    call = calls[-2] if attends else calls[-1]
    if not _is_product(call):
        return None
    *outer, width, depth = call["dims"]
    form = _form(call)
    if attends:
        *_, tokens, numbers, values = calls[-1]["dims"]
        rows, tiles, columns = tokens * launches.TILE, -(-(2 * numbers + values) // launches.SIDE), launches.SIDE
    else:
        rows, tiles, columns = launches.SIDE, 1, launches.SIDE
        if form != "f32":  # a block of a narrow tile cannot have more results
            is_wide = prod(outer) * call["lanes"] * width > blocks * launches.NARROW**2
            rows, columns = (launches.BAND, launches.SIDE) if is_wide else (launches.NARROW, launches.NARROW)
    each = float(blocks * tiles * depth)
    return Tile(form, 2.0 * rows * columns * each, (rows + columns) * each * NUMBER_BYTES[form])


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
        "  estimate  launch   bound of       calls  regs spill  shared  blocks  resident  kernel",
    ]
    for row in rows:
        bound = f"{row['bound_us'][row['bound']]:9.1f} {row['bound']:7s}"
        for i, f in enumerate(row["functions"]):
            head = (
                f"  {row['estimate_us']:8.1f} {row['nodes_us'] + row['barriers_us']:7.1f} {bound} {row['calls']:6d}"
                if i == 0
                else " " * 44
            )
            text.append(
                f"{head:44s} {f['registers']:5d} {f['spill_bytes']:5d} {f['shared_bytes']:7d} {f['blocks']:7d} "
                f"{f['resident']:4d} {f['occupancy']:4.0%}  {f['name']}" + (f": {row['what']}" if i == 0 else "")
            )
    told = whole(rows, board, mode)
    ms = told["estimate_ms"]
    text.append(
        f"  a plan: estimate {ms['point']:.1f} ms ({ms['low']:.1f} to {ms['high']:.1f}), bound {told['bound_ms']:.1f} "
        f"ms; of {told['launches']} launches {told['nodes']} are nodes of a graph and cost {told['nodes_ms']:.1f} ms "
        f"({told['nodes_share']:.0%}); barriers before the others {told['barriers_ms']:.1f} ms "
        f"({told['barriers_share']:.0%})"
    )
    return text

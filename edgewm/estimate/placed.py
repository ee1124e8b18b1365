"""Whether a plan is sooner done on a board's GPU or its CPU: both estimated, from the calls of both schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ..cuda import launches
from ..cuda.bound import coefficients
from ..cuda.compile import sees_calls
from ..cuda.schedule import Launched, launched
from ..errors import EdgewmError
from ..ops import BYTES
from ..schedule import Call, EntrySchedule, Region, Schedule, Step
from ..target import Mode, Target
from .cpu import bound_of, interval
from .gpu import Coefficients, Precision, busy_us, check_mode, launches_us, least_us, stream_of
from .machine import gpu_of
from .network import Kernel

# plan_ms {point, low, high}, its source and `parts_ms` {PARTS: ms}; on a GPU the share that launches take, and
# `persistent`: whether it is that of launches which are run as one where they follow on each other, as that takes less
Estimate = Mapping[str, Any]
# Of a plan: what it does once; of each round what leads to the candidates' costs, and what follows from their ranks.
PARTS = ("encode", "score", "refit")
# What a product's operands are in registers, by family; everything else is f32.
HELD = {
    "product": Precision("fp32", "fp32", 4, 4), "product_bf16": Precision("bf16", "fp32", 2, 4),
    "product_fp16": Precision("fp16", "fp32", 2, 4), "product_i8": Precision("int8", "fp32", 1, 4),
    "product_rounded": Precision("int8", "fp32", 1, 4),
}  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """Where every entry runs (`place` is cpu or gpu), why, and what was estimated for each (None: not known).

    `persistent`: on the GPU launches that follow on each other are run as one.
    """

    place: str
    why: str
    cpu_ms: Estimate | None = None
    gpu_ms: Estimate | None = None
    persistent: bool = False


def choose(wanted: str, cpu_ms: Estimate | None, gpu_ms: Estimate | None, unknown: str = "") -> Placement:
    """`wanted` is cpu, gpu or auto, which takes the smaller estimate; `unknown`: why there is none of the GPU."""
    one = gpu_ms is not None and gpu_ms["persistent"]
    if wanted != "auto":
        return Placement(wanted, f"asked for: --place {wanted}", cpu_ms, gpu_ms, one and wanted == "gpu")
    if gpu_ms is None:
        return Placement("cpu", f"nothing is known of how long the GPU takes: {unknown}", cpu_ms, None)
    if cpu_ms is None:
        return Placement("gpu", "nothing is known of how long the CPU takes", None, gpu_ms, one)
    place, other = ("gpu", "cpu") if gpu_ms["point"] < cpu_ms["point"] else ("cpu", "gpu")
    taken, left = (gpu_ms, cpu_ms) if place == "gpu" else (cpu_ms, gpu_ms)
    why = f"a plan is estimated at {_told(taken, ' ms')} on the {place.upper()}, {_told(left)} on the {other.upper()}"
    return Placement(place, why, cpu_ms, gpu_ms, one and place == "gpu")


def _told(estimate: Estimate, unit: str = "") -> str:
    parts = ", ".join(f"{name} {ms:.3g}" for name, ms in estimate.get("parts_ms", {}).items())
    return f"{estimate['point']:.3g}{unit}" + (f" ({parts})" if parts else "")


def parts_of(schedule: Schedule) -> dict[str, Schedule]:
    """PARTS of the schedule's plan, as schedules of their own; those that it has."""
    entry = plan_of(schedule)
    once: list[Step] = []
    score: list[Step] = []
    refit: list[Step] = []
    for step in entry.steps:
        if isinstance(step, Region):
            once.append(step)
            continue
        ranks = [isinstance(s, Region) and any(call.family == "topk" for call in s.calls) for s in step.body]
        at = ranks.index(True) if any(ranks) else len(ranks)
        score.append(replace(step, body=step.body[:at]))
        refit.append(replace(step, body=step.body[at:]))
    ports = {"encode": (entry.inputs, entry.outputs)}
    return {
        name: replace(schedule, entries={"plan": EntrySchedule(steps, *ports.get(name, ({}, {})))})
        for name, steps in zip(PARTS, (once, score, refit), strict=True)
        if any(isinstance(step, Region) or step.body for step in steps)
    }


def plan_of(schedule: Schedule) -> EntrySchedule:
    """The entry that plans; the first one of a schedule without."""
    return schedule.entries.get("plan") or next(iter(schedule.entries.values()))


def estimate_gpu(schedule: Schedule, board: Target, mode: Mode) -> tuple[Estimate | None, str]:
    """`plan_ms` of a schedule for a GPU (`cuda.schedule`) with its `source`; or None, and why nothing is known."""
    try:
        probed = gpu_of(board, mode)
        found, _ = price_gpu(schedule, board, mode, probed)
        parts = {name: price_gpu(part, board, mode, probed)[0] for name, part in parts_of(schedule).items()}
    except EdgewmError as fault:
        return None, fault.what
    source = f"estimated: {board.title} in {mode.name}, at fractions of its peaks that others' kernels reach"
    source += "" if probed is None else f"; peaks, memory, nodes and barriers measured on {probed['name']}"
    share = sum(found["shares"].get(limit, 0.0) for limit in ("launch", "sync"))
    parts_ms = {name: part["plan_ms"]["point"] for name, part in parts.items()}
    told = {"parts_ms": parts_ms, "launch_share": share, "persistent": found["persistent"], "source": source}
    return {**found["plan_ms"], **told}, ""


def price_gpu(
    schedule: Schedule, board: Target, mode: Mode, probed: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Coefficients]:
    """`plan_ms`, `bound`, `shares` and `kernels` of a schedule for a GPU, and what they rest on; `probed`: what was
    measured of it. Of its two forms, the nodes of a graph or (`persistent`) launches that follow on each other run as
    one with barriers between, the one that takes less. EdgewmError for a board without a GPU, or a mode whose clocks
    nobody has confirmed."""
    check_mode(board, mode)
    made = coefficients(board, mode, probed)
    regions = launched(plan_of(schedule).steps)
    forms = [_priced(regions, board, mode, made)]
    can_meet = probed is None or probed["barrier_us"] is not None
    if can_meet and sees_calls(board.gpu.toolkit):
        forms.append(_priced(regions, board, mode, made, persistent=True))
    return min(forms, key=lambda form: form["plan_ms"]["point"]), made


def _priced(
    regions: Sequence[Launched], board: Target, mode: Mode, with_: Coefficients, persistent: bool = False
) -> dict[str, Any]:
    resident = launches.RESIDENT * launches.THREADS * mode.sm  # threads; all launches have those of the largest
    reached = replace(with_, stream=stream_of(resident, mode, with_)) if persistent else with_
    rows: dict[str, tuple[Counter[str], int]] = {}
    for region in regions:
        each: Counter[str] = Counter()
        for call in region.calls:
            each.update(busy_us(kernel_of(call), board, mode, held_by(call), reached))
        begun = launches_us(region.launches, region.nodes if persistent else region.launches, mode, with_)
        each["latency"] += max(0.0, least_us(region.launches, mode) - sum(each.values()))
        each.update({"launch": begun["nodes"], "sync": begun["barriers"]})
        name = " + ".join(f"{call.family} {'x'.join(map(str, call.dims))}, {call.lanes} lanes" for call in region.calls)
        spent, count = rows.get(name, (Counter(), 0))
        spent.update({limit: us * region.times for limit, us in each.items()})
        rows[name] = spent, count + region.times
    whole: Counter[str] = Counter()
    for spent, _ in rows.values():
        whole.update(spent)
    us = sum(whole.values())
    kernels = [
        {"name": name, "ms": sum(spent.values()) / 1e3, "bound": bound_of(spent), "calls": count}
        for name, (spent, count) in rows.items()
    ]
    return {
        "plan_ms": interval(us / 1e3, with_.sigma), "persistent": persistent, "bound": bound_of(whole),
        "shares": {limit: spent / us for limit, spent in whole.most_common() if spent},
        "kernels": sorted(kernels, key=lambda row: -row["ms"]),
    }  # fmt: skip


def held_by(call: Call) -> Precision:
    """The formats of a call's numbers; activations that are in bf16 take fewer bytes."""
    values = [o.buffer.dtype for o in call.operands() if o.buffer.space != "weights"]
    narrow = values.count("bf16") / len(values)
    held = HELD.get(call.family, HELD["product"])
    return replace(held, activation_bytes=(1 - narrow) * held.activation_bytes + narrow * BYTES["bf16"])


def kernel_of(call: Call) -> Kernel:
    """A call as the GPU model knows kernels; its lanes are rows, an attention's are queries where they share keys."""
    if call.family in HELD:
        *lead, n, k = call.dims
        return Kernel(call.family, "product", call.lanes * prod(lead), n, k)
    if call.family == "attention":
        *lead, queries, keys, depth, _ = call.dims
        if call.groups["packed"][0][1].lane_stride == (0, 0):
            return Kernel(call.family, "attention", queries * call.lanes, keys, depth, batch=prod(lead))
        return Kernel(call.family, "attention", queries, keys, depth, batch=prod(lead) * call.lanes)
    return Kernel(call.family, "rows", call.lanes, 1, prod(call.dims))

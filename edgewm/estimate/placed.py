"""Whether a plan is sooner done on a board's GPU or its CPU: both estimated, from the calls of both schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ..errors import EdgewmError
from ..schedule import Call, Repeat, Schedule, Step
from ..target import Mode, Target
from . import calibration
from .cpu import bound_of, interval
from .gpu import Coefficients, Precision, check_mode, kernel_us
from .machine import gpu_of
from .network import Kernel

Estimate = Mapping[str, Any]  # plan_ms {point, low, high} and its source; on a GPU the share that launches take
# What a product's operands are in registers, by family; everything else is f32.
HELD = {
    "product": Precision("fp32", "fp32", 4, 4), "product_bf16": Precision("bf16", "fp32", 2, 4),
    "product_fp16": Precision("fp16", "fp32", 2, 4), "product_i8": Precision("int8", "fp32", 1, 4),
    "product_rounded": Precision("int8", "fp32", 1, 4),
}  # fmt: skip
PHASES = 2  # launches of a product


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
    one = _is_launch_bound(gpu_ms)
    if wanted != "auto":
        return Placement(wanted, f"asked for: --place {wanted}", cpu_ms, gpu_ms, one and wanted == "gpu")
    if gpu_ms is None:
        return Placement("cpu", f"nothing is known of how long the GPU takes: {unknown}", cpu_ms, None)
    if cpu_ms is None:
        return Placement("gpu", "nothing is known of how long the CPU takes", None, gpu_ms, one)
    place, other = ("gpu", "cpu") if gpu_ms["point"] < cpu_ms["point"] else ("cpu", "gpu")
    taken, left = (gpu_ms, cpu_ms) if place == "gpu" else (cpu_ms, gpu_ms)
    points = f"{taken['point']:.3g} ms on the {place.upper()}, {left['point']:.3g} on the {other.upper()}"
    why = f"a plan is estimated at {points}"
    return Placement(place, why, cpu_ms, gpu_ms, one and place == "gpu")


def estimate_gpu(schedule: Schedule, board: Target, mode: Mode) -> tuple[Estimate | None, str]:
    """`plan_ms` of a schedule for a GPU (`cuda.schedule`) with its `source`; or None, and why nothing is known."""
    try:
        probed = gpu_of(board, mode)
        found, _ = price_gpu(schedule, board, mode, probed)
    except EdgewmError as fault:
        return None, fault.what
    source = f"estimated: {board.title} in {mode.name}, at fractions of its peaks that others' kernels reach"
    source += "" if probed is None else f"; peaks, memory and nodes measured on {probed['name']}"
    return {**found["plan_ms"], "launch_share": found["shares"].get("launch", 0.0), "source": source}, ""


def price_gpu(
    schedule: Schedule, board: Target, mode: Mode, probed: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Coefficients]:
    """`plan_ms`, `bound`, `shares` and `kernels` of a schedule for a GPU, and what they rest on; `probed`: what was
    measured of it. EdgewmError for a board without a GPU, or a mode whose clocks nobody has confirmed."""
    check_mode(board, mode)
    made = calibration.of_own_kernels(calibration.coefficients(board, mode, probed=probed), board, mode, probed)
    entry = schedule.entries.get("plan") or next(iter(schedule.entries.values()))
    calls: list[tuple[Call, int, bool]] = []
    _walk(entry.steps, 1, calls)
    rows: dict[str, tuple[Counter[str], int]] = {}
    for call, times, is_last in calls:
        held = HELD.get(call.family, HELD["product"])
        name = f"{call.family} {'x'.join(map(str, call.dims))}, {call.lanes} lanes"
        spent, count = rows.get(name, (Counter(), 0))
        kernel = kernel_of(call, times)
        kernel = kernel if is_last else replace(kernel, launches=0)  # a region's calls are launched with its last one
        spent.update(kernel_us(kernel, board, mode, held, made, "graph"))
        rows[name] = spent, count + times
    whole = sum((spent for spent, _ in rows.values()), Counter())
    us = sum(whole.values())
    kernels = [
        {"name": name, "ms": sum(spent.values()) / 1e3, "bound": bound_of(spent), "calls": count}
        for name, (spent, count) in rows.items()
    ]
    return {
        "plan_ms": interval(us / 1e3, made.sigma), "bound": bound_of(whole),
        "shares": {limit: spent / us for limit, spent in whole.most_common() if spent},
        "kernels": sorted(kernels, key=lambda row: -row["ms"]),
    }, made  # fmt: skip


def _is_launch_bound(gpu_ms: Estimate | None) -> bool:
    """Whether a plan's kernels take less time than it takes to launch them."""
    return gpu_ms is not None and gpu_ms["launch_share"] > 1 / 2


def _walk(steps: Sequence[Step], times: int, found: list[tuple[Call, int, bool]]) -> None:
    for step in steps:
        if isinstance(step, Repeat):
            _walk(step.body, times * step.count, found)
        else:
            found += [(call, times, call is step.calls[-1]) for call in step.calls]


def kernel_of(call: Call, times: int) -> Kernel:
    """A call as the GPU model knows kernels; its lanes are rows."""
    if call.family in HELD:
        *lead, n, k = call.dims
        return Kernel(call.family, "product", call.lanes * prod(lead), n, k, times, launches=PHASES)
    if call.family == "attention":
        *lead, queries, keys, depth, _ = call.dims
        return Kernel(call.family, "attention", queries, keys, depth, times, prod(lead) * call.lanes)
    return Kernel(call.family, "rows", call.lanes, 1, prod(call.dims), times)

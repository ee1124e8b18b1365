"""Whether a plan is sooner done on a board's GPU or its CPU: both estimated, from the calls of both schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ..cuda import launches
from ..cuda.compile import sees_calls
from ..cuda.schedule import launch_counts
from ..errors import EdgewmError
from ..schedule import Call, Repeat, Schedule, Step, is_direct
from ..target import Mode, Target
from . import calibration
from .cpu import interval
from .gpu import LEAST_CLOCKS, Coefficients, Precision, check_mode, kernel_us, launches_us, stream_of
from .network import Kernel

# plan_ms {point, low, high} and its source; on a GPU the share that launches take, and `persistent`: whether it is that
# of launches which are run as one where they follow on each other, as that takes less time
Estimate = Mapping[str, Any]
# What a product's operands are in registers, by family; everything else is f32.
HELD = {
    "product": Precision("fp32", "fp32", 4, 4), "product_bf16": Precision("bf16", "fp32", 2, 4),
    "product_i8": Precision("int8", "fp32", 1, 4),
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
    points = f"{taken['point']:.3g} ms on the {place.upper()}, {left['point']:.3g} on the {other.upper()}"
    why = f"a plan is estimated at {points}"
    return Placement(place, why, cpu_ms, gpu_ms, one and place == "gpu")


def estimate_gpu(schedule: Schedule, board: Target, mode: Mode) -> tuple[Estimate | None, str]:
    """`plan_ms` of a schedule for a GPU (`cuda.schedule`) with its `source`; or None, and why nothing is known."""
    try:
        check_mode(board, mode)
        with_ = calibration.coefficients(board, mode)
    except EdgewmError as fault:
        return None, fault.what
    entry = schedule.entries.get("plan") or next(iter(schedule.entries.values()))
    calls: list[tuple[Call, int]] = []
    _walk(entry.steps, 1, calls)
    count, together = launch_counts(entry.steps)
    resident = launches.RESIDENT * launches.THREADS * mode.sm
    joined = replace(with_, stream=stream_of(resident, mode, with_))  # all of them hold as few blocks as the largest
    found = []
    forms = ((False, count, with_), (True, together, joined))
    for persistent, nodes, reached in forms if sees_calls(board.gpu.toolkit) else forms[:1]:
        launch_us = sum(launches_us(count, nodes, mode, with_).values())
        found.append((_kernels_us(calls, board, mode, reached) + launch_us, launch_us, persistent))
    whole, launch_us, persistent = min(found)
    source = f"estimated: {board.title} in {mode.name}, at fractions of its peaks that others' kernels reach"
    told = {"launch_share": launch_us / whole, "persistent": persistent, "source": source}
    return {**interval(whole / 1e3, with_.sigma), **told}, ""


def _kernels_us(calls: Sequence[tuple[Call, int]], board: Target, mode: Mode, with_: Coefficients) -> float:
    """us of all calls, without what their launches cost."""
    whole = 0.0
    for call, times in calls:
        held = HELD.get(call.family, HELD["product"])
        spent = kernel_us(kernel_of(call, times), board, mode, held, with_)
        least_us = LEAST_CLOCKS / mode.gpu_mhz * launches.phases(call.family, is_direct(call)) * times
        whole += max(sum(spent.values()) - spent["launch"], least_us)
    return whole


def _walk(steps: Sequence[Step], times: int, found: list[tuple[Call, int]]) -> None:
    for step in steps:
        if isinstance(step, Repeat):
            _walk(step.body, times * step.count, found)
        else:
            found += [(call, times) for call in step.calls]


def kernel_of(call: Call, times: int) -> Kernel:
    """A call as the GPU model knows kernels; its lanes are rows."""
    if call.family in HELD:
        *lead, n, k = call.dims
        return Kernel(call.family, "product", call.lanes * prod(lead), n, k, times)
    if call.family == "attention":
        *lead, queries, keys, depth, _ = call.dims
        return Kernel(call.family, "attention", queries, keys, depth, times, prod(lead) * call.lanes)
    return Kernel(call.family, "rows", call.lanes, 1, prod(call.dims), times)

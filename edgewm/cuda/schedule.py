"""A program's schedule on a GPU: the calls of the CPU, each a region of its own, every value in the arena."""

from __future__ import annotations

import numpy as np

from ..arena import place
from ..lower import Lowering
from ..program import Program
from ..schedule import Call, Region, Repeat, Schedule, Step, is_direct
from . import launches


def schedule_gpu(program: Program) -> Schedule:
    """Every entry of a fused program as steps with placed buffers.

    Weights are packed and workspaces measured for `kernels/*.cu`; scratch is one buffer that all workspaces share, as
    calls run one after the other.
    """
    low = Lowering(program.weights, launches.TILE, _pack, _workspace_bytes, one_by_one)
    entries = {name: low.entry(graph, anytime=name == "plan") for name, graph in program.entries.items()}
    ports = {layout.buffer for e in entries.values() for layout in (*e.inputs.values(), *e.outputs.values())}
    workspaces = {call.workspace for e in entries.values() for call in calls_of(e.steps)}
    for buffer in low.buffers.values():
        if not buffer.space and buffer not in ports | workspaces:
            buffer.space = "arena"
    schedule = Schedule(entries, low.constants, low.buffers, launches.TILE)
    schedule.arena_bytes, schedule.scratch_bytes = place(list(entries.values()), launches.TILE)
    return schedule


def one_by_one(flow: list, tile: int) -> list[Step]:
    """Each call a region: blocks of one call read what any block of an earlier one wrote."""
    steps: list[Step] = []
    for item in flow:
        if isinstance(item, Repeat):
            item.body = one_by_one(item.body, tile)
            steps.append(item)
        else:
            steps.append(Region(item.lanes, tile, [item]))
    return steps


def calls_of(steps: list[Step]) -> list[Call]:
    """Every call in order, loops entered once: the order of section "calls"."""
    found: list[Call] = []
    for step in steps:
        found += calls_of(step.body) if isinstance(step, Repeat) else step.calls
    return found


def _pack(family: str, part: int, block: np.ndarray) -> np.ndarray:
    """One matrix of weights (K, N), or (part > 0) what int8 weights have beside them, as the kernels read it."""
    if part > 0:
        return np.ascontiguousarray(block, np.float32).reshape(-1)
    return launches.PACK[family](block).reshape(-1)


def _workspace_bytes(call: Call, **sizes) -> int:
    return launches.workspace_bytes(call.family, tuple(call.dims), call.lanes, is_direct(call))

"""What the runtime runs: calls with strided operands, grouped in regions, and loops of them.

Consecutive calls whose data never crosses lanes form a region: a thread runs the whole region for one tile of lanes,
and what lives only inside it lives in that thread's scratch. A barrier stands between regions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .layout import LANE, ZERO, Buffer, Layout, Stride
from .program import Node

SERIAL = ("topk", "take")


@dataclass(eq=False)
class Operand:
    """One operand of a call: a buffer, an offset, and a stride for each loop and for the lanes."""

    buffer: Buffer
    offset: Stride
    lane_stride: Stride
    strides: list[Stride]
    is_output: bool = False

    @property
    def mode(self) -> str:
        """V: lanes are neighbours from the buffer's first on; B: the same for all; G: anything else."""
        if self.lane_stride == ZERO:
            return "B"
        whole = self.buffer.lanes and self.offset[1] == 0 and all(c == 0 for _, c in self.strides)
        return "V" if self.lane_stride == LANE and whole else "G"


@dataclass(eq=False)
class Call:
    """One kernel call: its family, the graphs of its functors, loop dimensions and operands by functor parameter."""

    family: str
    node: Node | None
    dims: list[int]
    lanes: int
    groups: dict[str, list[tuple[str, Operand]]]  # part -> (parameter, operand), in the family's operand order
    out: Operand
    workspace: Buffer | None = None
    flops: int = 0
    cut: int = 0  # on a GPU: how blocks share it (`cuda.launches.cut`)

    def operands(self) -> list[Operand]:
        return [o for group in self.groups.values() for _, o in group] + [self.out]

    def reads(self) -> list[Operand]:
        return [o for group in self.groups.values() for _, o in group]


@dataclass(eq=False)
class Region:
    lanes: int
    tile: int
    calls: list[Call]


@dataclass(eq=False)
class Repeat:
    count: int
    counter: Buffer
    body: list
    anytime: bool = False


Step = Region | Repeat


@dataclass
class EntrySchedule:
    """The steps of one entry and the layouts of its ports."""

    steps: list[Step]
    inputs: dict[str, Layout]
    outputs: dict[str, Layout]


@dataclass
class Schedule:
    """All entries, the constant arrays their calls read, and the sizes of the two memories."""

    entries: dict[str, EntrySchedule]
    constants: dict[str, np.ndarray]
    buffers: dict[str, Buffer]
    tile: int
    arena_bytes: int = 0
    scratch_bytes: int = 0


def is_direct(call: Call) -> bool:
    """Whether a core reads its left operand in place: one float operand whose lanes are neighbours, as it is."""
    if call.family not in ("product", "product_i8", "attention") or len(call.groups["left"]) != 1:
        return False
    (x,) = call.node["left"].outputs.values()
    return x.op == "input" and x.dtype == "f32" and call.groups["left"][0][1].mode == "V"


def group(flow: list, tile: int) -> list[Step]:
    """Consecutive calls over the same lanes whose data never crosses lanes become one region."""
    steps: list[Step] = []
    region: Region | None = None
    local: set[Buffer] = set()  # written by this region, lane for lane
    across: set[Buffer] = set()  # written or read by this region in any other way
    for item in flow:
        if isinstance(item, Repeat):
            item.body = group(item.body, tile)
            steps.append(item)
            region = None
            continue
        modes = {o.buffer: o.mode for o in item.reads() if o.mode != "V"}
        crosses = (
            any(b in local for b in modes)
            or any(o.buffer in across and o.buffer in local for o in item.reads())
            or item.out.buffer in across
        )
        alone = item.family in SERIAL or (region is not None and region.calls[-1].family in SERIAL)
        if region is None or item.lanes != region.lanes or alone or crosses:
            region = Region(item.lanes, tile, [])
            steps.append(region)
            local, across = set(), set()
        region.calls.append(item)
        across.update(modes)
        local.add(item.out.buffer)
        if item.out.mode != "V":
            across.add(item.out.buffer)
    return steps


def merge_loops(call: Call) -> None:
    """Walk adjacent loops as one where every operand's strides allow it; a family's own inner loops stay."""
    family = call.family.partition("_")[0]  # products differ in how numbers are held
    inner = {"map": 0, "copy": 0, "reduce": 1, "product": 2, "attention": 4}.get(family, len(call.dims))
    operands = call.operands()
    a = 0
    while a + 1 < len(call.dims) - inner:
        d = call.dims[a + 1]
        mergeable = all(o.strides[a] == (o.strides[a + 1][0] * d, o.strides[a + 1][1] * d) for o in operands)
        if call.dims[a] == 1 or d == 1 or mergeable:
            keep = a if d == 1 and call.dims[a] != 1 else a + 1
            call.dims[a : a + 2] = [call.dims[a] * d]
            for o in operands:
                o.strides[a : a + 2] = [o.strides[keep]]
        else:
            a += 1

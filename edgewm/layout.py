"""Where the elements of a value lie: one axis in vector lanes, the others outside it; views only change strides.

A buffer in lanes has unit stride along its lane axis, padded to whole tiles; every other stride is a multiple of that
padded length, which is not known before the schedule decided whether the buffer holds all lanes or one tile. So strides
and offsets are pairs: `(p, c)` stands for p * (padded lanes) + c elements. Dense buffers (ports, weights) have p = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .errors import EdgewmError
from .ops import NUMPY
from .program import Node

Stride = tuple[int, int]
ZERO: Stride = (0, 0)
LANE: Stride = (0, 1)


@dataclass(eq=False)
class Buffer:
    """Memory for one value. `lanes` is the real length of its lane axis, 0 where it is dense.

    `space` (arena, scratch, weights) and `offset_bytes` are filled by the schedule.
    """

    name: str
    dtype: str
    elements: int  # without the lane axis; all of them where dense
    lanes: int = 0
    space: str = ""
    offset_bytes: int = -1
    pinned: bool = False  # ports and carries: never shares its place
    held: bool = False  # by the one launch that writes and reads it: its place is never touched


@dataclass(frozen=True)
class Layout:
    """One view of a buffer: a logical shape with a stride for each axis, in elements."""

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[Stride, ...]
    offset: Stride = ZERO


def dense(buffer: Buffer, shape: tuple[int, ...]) -> Layout:
    """Row-major."""
    strides, step = [], 1
    for d in reversed(shape):
        strides.append((0, step))
        step *= d
    return Layout(buffer, shape, tuple(reversed(strides)))


def in_lanes(buffer: Buffer, shape: tuple[int, ...], lane_axis: int, outer: tuple[int, ...] | None = None) -> Layout:
    """`lane_axis` innermost, the other axes outside it in the order of `outer` (default: logical order)."""
    outer = tuple(a for a in range(len(shape)) if a != lane_axis) if outer is None else outer
    strides: list[Stride] = [LANE] * len(shape)
    step = 1
    for axis in reversed(outer):
        strides[axis] = (step, 0)
        step *= shape[axis]
    return Layout(buffer, shape, tuple(strides))


def view(layout: Layout, node: Node) -> Layout | None:
    """The layout of a view node, given its source's; None where no strides can express it (a copy is needed)."""
    if node.op == "permute":
        axes = node["axes"]
        return replace(layout, shape=node.shape, strides=tuple(layout.strides[a] for a in axes))
    if node.op == "slice":
        step, start = layout.strides[node["axis"]], node["start"]
        offset = (layout.offset[0] + step[0] * start, layout.offset[1] + step[1] * start)
        return replace(layout, shape=node.shape, offset=offset)
    if node.op == "expand":
        return broadcast(layout, node.shape)
    if node.op == "reshape":
        return reshape(layout, node.shape)
    raise EdgewmError(f"{node!r} is not a view", "layout", "this is a fault of edgewm; report it")


def broadcast(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """New leading axes and axes of length 1 get stride 0."""
    lead = len(shape) - len(layout.shape)
    strides = [ZERO] * lead
    for had, wants, stride in zip(layout.shape, shape[lead:], layout.strides, strict=True):
        strides.append(ZERO if had == 1 and wants != 1 else stride)
    return replace(layout, shape=shape, strides=tuple(strides))


def reshape(layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """Same elements in row-major order of another shape, if strides allow it."""
    # maximal runs of axes that one stride can walk
    runs: list[tuple[int, Stride]] = []
    for d, stride in zip(layout.shape, layout.strides, strict=True):
        if d == 1:
            continue
        if runs and runs[-1][1] == (stride[0] * d, stride[1] * d):
            runs[-1] = (runs[-1][0] * d, stride)
        else:
            runs.append((d, stride))
    strides: list[Stride] = []
    pending = list(reversed(runs))
    for d in reversed(shape):
        if d == 1:
            strides.append(ZERO)
            continue
        if not pending:
            return None
        length, stride = pending[0]
        if length % d:
            return None
        strides.append(stride)
        pending[0] = (length // d, (stride[0] * d, stride[1] * d))
        if length == d:
            pending.pop(0)
    return replace(layout, shape=shape, strides=tuple(reversed(strides)))


def dtype_of(array: np.ndarray) -> str:
    """edgewm's name of an array's dtype."""
    halves = [name for name in ("bf16", "f16") if array.dtype == NUMPY[name]]
    if halves:
        return halves[0]
    return (
        {"f": "f32", "i": "i32", "u": "u32"}[array.dtype.kind]
        if array.itemsize == 4
        else {"i": "i8", "u": "u8"}[array.dtype.kind]
    )

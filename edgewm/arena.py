"""Places for buffers: tile-local ones in each thread's scratch, the rest in one arena, reused once a value is dead.

Scratch is for values whose every reader stands in the region that writes them, lane for lane: they need one tile. An
arena value is alive from the step that writes it to the last that reads it; a value from before a loop that the loop
reads stays to the loop's end, and so does everything a loop hands out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .layout import Buffer
from .ops import BYTES
from .schedule import Call, EntrySchedule, Region, Repeat, Step

ALIGN = 64


@dataclass
class Use:
    """When a buffer is alive, in positions of the flattened steps."""

    first: int
    last: int
    regions: set[int]
    local: bool = True


def bytes_of(buffer: Buffer, tile: int) -> int:
    """Size in the buffer's own space, a multiple of 64; a dense one has a tile to spare, as if padded."""
    if buffer.lanes:
        padded = tile if buffer.space == "scratch" else -(-buffer.lanes // tile) * tile
        elements = buffer.elements * padded
    else:
        elements = buffer.elements + tile
    return -(-elements * BYTES[buffer.dtype] // ALIGN) * ALIGN


def place(entries: Sequence[EntrySchedule], tile: int) -> tuple[int, int]:
    """Fill `space` and `offset_bytes` of every buffer; returns (arena, scratch) sizes in bytes.

    Ports of all entries keep places of their own; entries never run at once, so the rest of the arena is shared.
    """
    ports = 0
    for entry in entries:
        for layout in (*entry.inputs.values(), *entry.outputs.values()):
            if not layout.buffer.space:
                layout.buffer.space, layout.buffer.offset_bytes = "arena", ports
                ports += bytes_of(layout.buffer, tile)
    arena, scratch = ports, 0
    for entry in entries:
        used: dict[Buffer, Use] = {}
        _collect(entry.steps, 0, used)
        for buffer, use in used.items():
            if not buffer.space:
                local = use.local and len(use.regions) == 1 and not buffer.pinned and buffer.lanes
                buffer.space = "scratch" if local else "arena"
        scratch = max(scratch, _place_scratch(entry.steps, tile))
        shared = [(u, b) for b, u in used.items() if b.space == "arena" and b.offset_bytes < 0]
        arena = max(arena, _first_fit(shared, tile, ports))
    return arena, scratch


def _collect(steps: Sequence[Step], position: int, used: dict[Buffer, Use]) -> int:
    """Record uses; returns the position after `steps`."""
    for step in steps:
        if isinstance(step, Repeat):
            begin = position
            before = set(used)
            _touch(used, step.counter, begin, -1, False)
            position = _collect(step.body, position + 1, used)
            for buffer, use in used.items():
                # alive through every round: what the loop read from outside, and what it hands to the outside
                if use.last >= begin and (buffer in before or buffer.pinned):
                    use.first, use.last = min(use.first, begin), position
            position += 1
            continue
        for call in step.calls:
            if call.workspace is not None:
                call.workspace.space = "scratch"
            for operand in call.operands():
                if operand.buffer.space != "weights":
                    _touch(used, operand.buffer, position, position, operand.mode == "V")
        position += 1
    return position


def _touch(used: dict[Buffer, Use], buffer: Buffer, position: int, region: int, local: bool) -> None:
    use = used.setdefault(buffer, Use(position, position, set()))
    use.last = max(use.last, position)
    use.regions.add(region)
    use.local &= local


def _place_scratch(steps: Sequence[Step], tile: int) -> int:
    size = 0
    for step in steps:
        if isinstance(step, Repeat):
            size = max(size, _place_scratch(step.body, tile))
        else:
            size = max(size, _place_region(step.calls, tile))
    return size


def _place_region(calls: Sequence[Call], tile: int) -> int:
    used: dict[Buffer, Use] = {}
    for i, call in enumerate(calls):
        buffers = [o.buffer for o in call.operands()] + ([call.workspace] if call.workspace else [])
        for buffer in buffers:
            if buffer.space == "scratch":
                _touch(used, buffer, i, 0, True)
    return _first_fit([(u, b) for b, u in used.items()], tile, 0)


def _first_fit(wanted: list[tuple[Use, Buffer]], tile: int, base: int) -> int:
    """Give each buffer the lowest place that no buffer alive at the same time holds; returns the end of the highest."""
    placed: list[tuple[int, int, Use]] = []  # offset, end, use
    end = base
    for use, buffer in sorted(wanted, key=lambda w: (-bytes_of(w[1], tile), w[0].first, w[1].name)):
        size, at = bytes_of(buffer, tile), base
        for offset, stop, other in sorted(((o, s, u) for o, s, u in placed), key=lambda p: p[0]):
            if other.last < use.first or use.last < other.first:
                continue
            if offset - at >= size:
                break
            at = max(at, stop)
        buffer.offset_bytes = at
        placed.append((at, at + size, use))
        end = max(end, at + size)
    return end


def regions(steps: Sequence[Step]) -> list[Region]:
    """Every region, loops entered once."""
    found: list[Region] = []
    for step in steps:
        found += regions(step.body) if isinstance(step, Repeat) else [step]
    return found

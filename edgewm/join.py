"""Values that a concatenation joins lie side by side from the start: it is a view, and nothing is copied.

Buffers in lanes are tied together, each at a fixed distance from the others. A concatenation gives the distances that
it needs, a step for each index along its axis; those of keys and values, which several attentions see through windows
of their own, agree. What cannot be had (buffers that would overlap, that are dense, or whose strides differ) is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .layout import LANE, Buffer, Layout
from .schedule import Call, Repeat

Places = dict[Buffer, int]  # of the buffers of one tie: where each begins, in elements without the lane axis


class Ties:
    """The buffers of one entry that are tied together."""

    def __init__(self) -> None:
        self.places: dict[Buffer, Places] = {}

    def joined(self, sources: Sequence[Layout], axis: int) -> Layout | None:
        """The concatenation of `sources` along `axis` where they lie, their buffers tied; None where they cannot."""
        first = sources[0]
        if not all(_is_alike(first, s, axis) for s in sources):
            return None
        step = self._step(sources, axis)
        if step is None or step <= 0:
            return None
        begin, merged = 0, dict(self._of(first))
        base = merged[first.buffer] + first.offset[0]
        for s in sources:
            own = self._of(s)
            shift = base + begin * step - s.offset[0] - own[s.buffer]
            for buffer, at in own.items():
                if merged.setdefault(buffer, at + shift) != at + shift:
                    return None
            begin += s.shape[axis]
        if _overlap(merged):
            return None
        for buffer in merged:
            self.places[buffer] = merged
        shape = (*first.shape[:axis], begin, *first.shape[axis + 1 :])
        strides = (*first.strides[:axis], (step, 0), *first.strides[axis + 1 :])
        return Layout(first.buffer, shape, strides, first.offset)

    def resolve(self, flow: Sequence[Call | Repeat], buffers: dict[str, Buffer]) -> None:
        """Every tie becomes one buffer, in all operands of `flow` and in `buffers`."""
        made: dict[int, tuple[Buffer, int]] = {}
        for buffer, places in self.places.items():
            if id(places) not in made:
                begin, name = min(places.values()), "+".join(b.name for b in places)
                span = max(at + b.elements for b, at in places.items()) - begin
                made[id(places)] = Buffer(name, buffer.dtype, span, buffer.lanes), begin
                buffers[name] = made[id(places)][0]
            del buffers[buffer.name]
        self._rewrite(flow, made)

    def _rewrite(self, flow: Sequence[Call | Repeat], made: dict[int, tuple[Buffer, int]]) -> None:
        for item in flow:
            if isinstance(item, Repeat):
                self._rewrite(item.body, made)
                continue
            for operand in item.operands():
                places = self.places.get(operand.buffer)
                if places is not None:
                    whole, begin = made[id(places)]
                    at = operand.offset[0] + places[operand.buffer] - begin
                    operand.buffer, operand.offset = whole, (at, operand.offset[1])

    def _of(self, layout: Layout) -> Places:
        return self.places.get(layout.buffer, {layout.buffer: 0})

    def _step(self, sources: Sequence[Layout], axis: int) -> int | None:
        """Elements from one index to the next: as in the sources, as they are tied already, or the least there is."""
        inside = {s.strides[axis] for s in sources if s.shape[axis] > 1}
        if inside:
            return inside.pop()[0] if len(inside) == 1 else None
        first, second = sources[0], sources[1]
        left, right = self._of(first), self._of(second)
        here, there = (of[s.buffer] + s.offset[0] for of, s in ((left, first), (right, second)))
        if left is right or second.buffer in left:
            return there - here
        return max(at + b.elements for b, at in left.items()) - here + there - min(right.values())


def _is_alike(first: Layout, s: Layout, axis: int) -> bool:
    """Whether `s` lies as `first` does, but for its place: lanes as neighbours along one axis, which is not `axis`."""
    buffer = s.buffer
    if not buffer.lanes or buffer.pinned or buffer.space or s.offset[1] or s.strides[axis] == LANE:
        return False
    if (buffer.lanes, buffer.dtype) != (first.buffer.lanes, first.buffer.dtype) or LANE not in s.strides:
        return False
    if s.shape[s.strides.index(LANE)] != buffer.lanes or any(c for p, c in s.strides if (p, c) != LANE):
        return False
    others = [a for a in range(len(s.shape)) if a != axis and s.shape[a] > 1]
    return all(s.strides[a] == first.strides[a] for a in others) and s.strides.count(LANE) == 1


def _overlap(places: Places) -> bool:
    order = sorted((at, at + buffer.elements) for buffer, at in places.items())
    return any(end > begin for (_, end), (begin, _) in pairwise(order))

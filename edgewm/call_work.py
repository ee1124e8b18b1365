"""What one kernel call does, counted from its node and operands: a bundle carries it, so that its times can be read."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from .estimate import operations
from .ops import BYTES, TABLE
from .program import Graph
from .schedule import Call, Operand, Schedule

COSTLY = ("div", "sqrt")  # worth a name of their own, as are the ops that stand for a polynomial
PARTS = (("left", "before"), ("score", "score"), ("epilogue", "after"))


def call_work(call: Call, schedule: Schedule) -> dict[str, Any]:
    """Plain JSON values of one call over all its lanes; what is zero is left out.

    `f32`, `bf16`, `i8` (operations of products, a multiply-add counts two) and `vector` (all others); bytes that are
    read and written, each once, by where they lie: `weights`, `arena`, and `scratch`, which never leaves a core's
    caches, and `held`, which never leaves a launch; `does`, what stands before and after the core, in words.
    """
    found: Counter[str] = Counter()
    if call.node is not None and call.node.op == "kernel":
        found.update(operations(call.node["body"]))
    for operand in call.operands():
        found["held" if operand.buffer.held else operand.buffer.space] += touched_bytes(operand, call, schedule)
    return {**{key: int(count) for key, count in found.items() if count}, "does": does(call)}


def touched_bytes(operand: Operand, call: Call, schedule: Schedule) -> int:
    """Bytes of the elements that the call's loops reach; of a weight all that is stored, padding included."""
    if operand.buffer.space == "weights":
        return schedule.constants[operand.buffer.name].nbytes
    rounds = prod(d for d, stride in zip(call.dims, operand.strides, strict=False) if stride != (0, 0))
    lanes = call.lanes if operand.lane_stride != (0, 0) else 1
    return rounds * lanes * BYTES[operand.buffer.dtype]


def does(call: Call) -> str:
    """The parts of a kernel in words: how many ops stand before, in and after its core, costly ones by name."""
    if call.node is None or call.node.op != "kernel":
        return call.family
    parts = []
    for part, word in PARTS:
        graph = dict(call.node.attrs).get(part)
        if isinstance(graph, Graph):
            ops = Counter(n.op for n in graph.order() if TABLE[n.op].kind == "elementwise")
            costly = [op for op in ops if op in COSTLY or TABLE[op].expand is not None]
            if ops:
                parts.append(f"{word} {sum(ops.values())}" + (f" ({', '.join(costly)})" if costly else ""))
    return "; ".join(parts) or "as it is"

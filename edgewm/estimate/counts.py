"""What the calls of a schedule do, counted: the left side of every estimate on a CPU.

A call's counts are those of one tile of lanes and follow from its node alone: vector operations of the functors,
multiply-adds of the core, numbers loaded and stored, rounds of each loop. One count is one vector of sixteen lanes
unless its row in COUNTS says otherwise. Products and attentions leave out the vectors of a last tile that hold no lane.
Nothing here knows a machine but through its tiling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from math import prod
from typing import Any

from .. import arithmetic  # noqa: F401  (fills the table's transcendental rows)
from ..arena import regions
from ..expr import input as leaf
from ..kernel import load
from ..ops import BYTES, TABLE
from ..program import Graph, Node, order
from ..schedule import Call, EntrySchedule, Repeat, Schedule, Step, is_direct

# Each count: what limits a kernel that spends its time there, and what one of it is.
COUNTS = {
    "fma_f32": ("tensor", "multiply-add of a product in f32, padding included"),
    "fma_bf16": ("tensor", "word of 2 multiply-adds a lane of a product in bf16, padding included"),
    "fma_i8": ("tensor", "word of multiply-adds a lane of a product in int8, padding included"),
    "block_f32": ("tensor", "run of the microkernel: begin with zeros, end in memory (not a vector)"),
    "block_bf16": ("tensor", "likewise in bf16"),
    "block_i8": ("tensor", "likewise in int8"),
    "panel_f32": ("vector", "number put into a panel before an f32 product"),
    "panel_bf16": ("vector", "number rounded to bf16 and put into a panel"),
    "panel_i8": ("vector", "number quantized and put into a panel"),
    "scale_i8": ("vector", "sum of an int8 product scaled back"),
    "out": ("vector", "result of a product on its way out, which the next results' multiply-adds may hide"),
    "read_out": ("cache", "number read for it"),
    "op_out": ("vector", "element-wise operation on it but those below"),
    "multiply_out": ("vector", "multiplication on it, alone or with an addition"),
    "divide_out": ("vector", "division or square root on it"),
    "attend_own": ("tensor", "multiply-add of an attention whose keys are each lane's own"),
    "attend_shared": ("tensor", "multiply-add of an attention whose keys all lanes share"),
    "soften": ("vector", "score on its way through the softmax, its exponential included"),
    "query": ("vector", "query of one head: rows of scores begun and ended"),
    "fold": ("latency", "step of a reduction, bound to the one before (not a vector)"),
    "op": ("vector", "element-wise operation but those below"),
    "multiply": ("vector", "multiplication, alone or with an addition"),
    "divide": ("vector", "division or square root"),
    "chain": ("latency", "operation of a functor that is a long chain, times its length beyond CHAIN over CHAIN"),
    "wide": ("vector", "upper half of an integer product"),
    "load": ("cache", "load of neighbours"),
    "store": ("cache", "store to neighbours"),
    "spread": ("cache", "one number for all lanes"),
    "gather": ("cache", "load of lanes that are apart"),
    "scatter": ("cache", "store of lanes that are apart"),
    "round": ("vector", "round of an element-wise loop (not a vector)"),
    "outer": ("launch", "round of a call's outer loops (not a vector)"),
    "ranked": ("latency", "candidate looked at by topk (not a vector)"),
    "picked": ("latency", "number taken by index, or any other of one thread's (not a vector)"),
    "call": ("launch", "call (not a vector)"),
}  # fmt: skip
OPERATIONS = {"mul": "multiply", "fma": "multiply", "div": "divide", "sqrt": "divide", "mulhi": "wide"}
LANES = 16  # of one vector
TO_BF16 = 8  # operations of a cast to bf16
ROUNDED = {"product_rounded": 6, "product_fp16": 4}  # operations of a number on its way into a panel, where no count is
CHAIN = 24  # operations one after another whose latency a core hides behind the next rounds of its loop
READS = {"V": "load", "B": "spread", "G": "gather"}
WRITES = {"V": "store", "B": "store", "G": "scatter"}
PRODUCTS = {"f32": "f32", "bf16": "bf16", "f16": "f32", "i8": "i8"}  # dtype of a weight -> suffix of its counts

Counts = dict[str, float]


def plan_counts(schedule: Schedule, isa: str, entry: str | None = None) -> dict[str, Any]:
    """Everything that one run of `entry` (by default the one that plans, else the first) does, as plain JSON values.

    `regions`: [{times, tiles, weight_bytes, calls: [{family, dims, lanes, count, work, last, weight_bytes}]}], where
    `work` is of one tile (COUNTS) and `last`, where it is less, of the last one; `count` calls are alike, and the
    region runs `times` times; `steps`: regions run and rounds of loops begun or ended; `weight_bytes`: of the weights
    that a tile of a call, a region, the whole entry reads, each once.
    """
    entry = entry or ("plan" if "plan" in schedule.entries else next(iter(schedule.entries)))
    found: list[dict[str, Any]] = []
    steps = _walk(schedule, isa, schedule.entries[entry].steps, 1, found)
    calls = [call for region in regions(schedule.entries[entry].steps) for call in region.calls]
    return {
        "isa": isa, "tile": schedule.tile, "steps": steps, "regions": found,
        "weight_bytes": weight_bytes(schedule, calls),
        "port_bytes": port_bytes(schedule.entries[entry]),
    }  # fmt: skip


def port_bytes(entry: EntrySchedule) -> int:
    """What goes in and out of an entry, copied once."""
    layouts = (*entry.inputs.values(), *entry.outputs.values())
    return sum(prod(layout.shape) * BYTES[layout.buffer.dtype] for layout in layouts)


def weight_bytes(schedule: Schedule, calls: Iterable[Call]) -> int:
    """Of the weights these calls read, each once."""
    read = {o.buffer.name for call in calls for o in call.reads() if o.buffer.space == "weights"}
    return sum(schedule.constants[name].nbytes for name in read)


def _walk(schedule: Schedule, isa: str, steps: Sequence[Step], times: int, found: list[dict[str, Any]]) -> int:
    """Append regions; how many are run and rounds of loops begun or ended in `steps`, loops multiplied out."""
    passed = 0
    for step in steps:
        if isinstance(step, Repeat):
            passed += times * (step.count + 1) + _walk(schedule, isa, step.body, times * step.count, found)
            continue
        calls: dict[tuple, dict[str, Any]] = {}
        for call in step.calls:
            work, last = tile_counts(call, schedule, isa)
            held = weight_bytes(schedule, [call])
            key = (call.family, tuple(call.dims), held, tuple(sorted(work.items())))
            like = {
                "family": call.family, "dims": list(call.dims), "lanes": call.lanes, "weight_bytes": held, "work": work,
                **({"last": last} if last != work else {}), "count": 0,
            }  # fmt: skip
            calls.setdefault(key, like)["count"] += 1
        passed += times
        found.append({
            "times": times, "tiles": -(-step.lanes // step.tile), "weight_bytes": weight_bytes(schedule, step.calls),
            "calls": list(calls.values()),
        })  # fmt: skip
    return passed


def tile_counts(call: Call, schedule: Schedule, isa: str) -> tuple[Counts, Counts]:
    """Counts of one call on a tile, those that are not zero, and on its last one; the same where there is only one."""
    left = call.lanes % schedule.tile or schedule.tile
    last = _counts(call, schedule, isa, left)
    return (_counts(call, schedule, isa, schedule.tile), last) if call.lanes > schedule.tile else (last, last)


def _counts(call: Call, schedule: Schedule, isa: str, valid: int) -> Counts:
    """Of a tile in which `valid` lanes are real."""
    tiling = load("product").TILING[isa]
    vectors = 1 if valid <= LANES else tiling.vectors
    found = _FAMILIES.get(_kind(call), _serial)(call, tiling, vectors)
    found["call"] = 1
    found["scatter"] *= valid / schedule.tile  # real lanes only
    return {name: found[name] for name in COUNTS if found[name]}


def _kind(call: Call) -> str:
    """What a family is, by the parts it has."""
    if "score" in call.groups:
        return "attention"
    if "packed" in call.groups:
        return "product"
    return {"copy": "map", "map": "map", "reduce": "reduce"}.get(call.family, "serial")


# ---------------------------------------------------------------------------------------------- functors


def operations_of(roots: Iterable[Node]) -> Counter[str]:
    """Element-wise operations of one evaluation, those that stand for several written out."""
    found: Counter[str] = Counter()
    for node in order(roots):
        row = TABLE[node.op]
        if row.expand is not None:
            found.update(_expanded(node.op))
        elif row.kind == "elementwise" and node.op != "bitcast":
            found[OPERATIONS.get(node.op, "op")] += TO_BF16 if (node.op, node.dtype) == ("cast", "bf16") else 1
    return found


@cache
def _expanded(op: str) -> Counter[str]:
    return operations_of([TABLE[op].expand(leaf("x", (1,)))])


def depth_of(roots: Iterable[Node]) -> int:
    """Operations on the longest path of one evaluation, those that stand for several written out."""
    depth: dict[Node, int] = {}
    for node in order(roots):
        row = TABLE[node.op]
        own = 0 if row.kind != "elementwise" or node.op == "bitcast" else 1
        if row.expand is not None:
            own = _expanded_depth(node.op)
        depth[node] = own + max((depth[s] for s in node.sources), default=0)
    return max(depth.values(), default=0)


@cache
def _expanded_depth(op: str) -> int:
    return depth_of([TABLE[op].expand(leaf("x", (1,)))])


def _evaluate(call: Call, part: str, times: int, found: Counter[str], way: str = "") -> None:
    """The functor of one part, evaluated on `times` vectors, with what it loads; `way` ends the names of its counts."""
    graph = dict(call.node.attrs).get(part) if call.node is not None else None
    if isinstance(graph, Graph):
        each = operations_of(graph.outputs.values())
        beyond = max(0, depth_of(graph.outputs.values()) - CHAIN)
        each["chain"] = (each["op"] + each["multiply"]) * beyond / CHAIN
        for name, count in each.items():
            found[name + way if name + way in COUNTS else name] += count * times
    for _, operand in call.groups.get(part, ()):
        found["read_out" if way and operand.mode != "G" else READS[operand.mode]] += times


# ---------------------------------------------------------------------------------------------- families


def _map(call: Call, tiling: Any, vectors: int) -> Counter[str]:
    found: Counter[str] = Counter()
    rounds = prod(call.dims)
    found["round"], found["outer"] = rounds, prod(call.dims[:-1])
    _evaluate(call, "epilogue", rounds * tiling.vectors, found)
    found[WRITES[call.out.mode]] += rounds * tiling.vectors
    return found


def _reduce(call: Call, tiling: Any, vectors: int) -> Counter[str]:
    found: Counter[str] = Counter()
    rounds, outer = prod(call.dims), prod(call.dims[:-1])
    found["fold"], found["outer"] = rounds, outer
    for part in ("left", "right"):
        _evaluate(call, part, rounds * tiling.vectors, found) if part in call.groups else None
    _evaluate(call, "epilogue", outer * tiling.vectors, found)
    found[WRITES[call.out.mode]] += outer * tiling.vectors
    return found


def _product(call: Call, tiling: Any, vectors: int) -> Counter[str]:
    found: Counter[str] = Counter()
    *lead, width, depth = call.dims
    outer = prod(lead)
    held = _weight_dtype(call)
    words = -(-depth // {"f32": 1, "bf16": 2, "i8": tiling.group}[held])
    blocks = outer * -(-width // tiling.n_block)
    found[f"fma_{held}"] = blocks * tiling.n_block * words * vectors
    found[f"block_{held}"], found["outer"] = blocks, outer
    results = outer * width * vectors
    if not (held == "f32" and is_direct(call)):
        own = ROUNDED.get(call.family)
        found[f"panel_{'f32' if own else held}"] = outer * depth * tiling.vectors
        found["op"] += (own or 0) * outer * depth * tiling.vectors
        _evaluate(call, "left", outer * depth * tiling.vectors, found)
    if call.family == "product_i8":
        found["scale_i8"] = results
    _evaluate(call, "epilogue", results, found, "_out")
    found["scatter" if call.out.mode == "G" else "out"] += results
    return found


def _weight_dtype(call: Call) -> str:
    """What a product's weights are held as: the dtype of the node that is packed, not of its words in memory."""
    name = call.node["packed"][0]
    inputs = call.node["body"].inputs()
    return PRODUCTS[inputs[name].dtype]


def _attention(call: Call, tiling: Any, vectors: int) -> Counter[str]:
    found: Counter[str] = Counter()
    *lead, queries, keys, depth, width = call.dims
    outer = prod(lead) * queries
    for (_, operand), steps in zip(call.groups["packed"], (keys * depth, keys * width), strict=True):
        found["attend_own" if operand.mode == "V" else "attend_shared"] += outer * steps * vectors
    if not is_direct(call):
        found["panel_f32"] = outer * depth * tiling.vectors
        _evaluate(call, "left", outer * depth * tiling.vectors, found)
    found["soften"] = outer * keys * vectors
    _evaluate(call, "score", outer * keys * vectors, found)
    _evaluate(call, "epilogue", outer * width * vectors, found)
    found[WRITES[call.out.mode]] += outer * width * vectors
    found["query"], found["outer"] = outer, prod(lead)
    return found


def _serial(call: Call, tiling: Any, vectors: int) -> Counter[str]:
    return Counter({"ranked": call.dims[0]}) if call.family == "topk" else Counter({"picked": prod(call.dims)})


_FAMILIES = {"map": _map, "reduce": _reduce, "product": _product, "attention": _attention}

"""A program's schedule on a GPU: the calls of the CPU, a region for each launch, every value in the arena."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from ..arena import bytes_of, place
from ..estimate.gpu import BARRIER_CLOCKS, L2_BYTES
from ..layout import ZERO, Buffer, Stride
from ..lower import Lowering
from ..program import Program
from ..schedule import Call, Operand, Region, Repeat, Schedule, Step, is_direct
from . import launches

LONGEST = 8  # calls of a launch


def schedule_gpu(program: Program) -> Schedule:
    """Every entry of a fused program as steps with placed buffers.

    Weights are packed and workspaces measured for `kernels/*.cu`; scratch is one buffer that the workspaces of all
    regions share, as regions run one after the other.
    """
    low = Lowering(program.weights, launches.TILE, _pack, _workspace_bytes, chained, joins=True)
    entries = {name: low.entry(graph, anytime=name == "plan") for name, graph in program.entries.items()}
    ports = {layout.buffer for e in entries.values() for layout in (*e.inputs.values(), *e.outputs.values())}
    calls = [call for e in entries.values() for call in calls_of(e.steps)]
    workspaces = {call.workspace for call in calls}
    for call in calls:
        call.cut = launches.cut(call.family, _facts(call))
    for buffer in low.buffers.values():
        if not buffer.space and buffer not in ports | workspaces:
            buffer.space = "arena"
    schedule = Schedule(entries, low.constants, low.buffers, launches.TILE)
    schedule.arena_bytes, _ = place(list(entries.values()), launches.TILE)
    schedule.scratch_bytes = max((_place_workspaces(e.steps) for e in entries.values()), default=0)
    return schedule


def _place_workspaces(steps: list[Step]) -> int:
    """One behind the other in each region, where a block may be calls ahead of another; returns the end of the last."""
    end = 0
    for step in steps:
        if isinstance(step, Repeat):
            end = max(end, _place_workspaces(step.body))
            continue
        at = 0
        for workspace in (call.workspace for call in step.calls if call.workspace is not None):
            workspace.offset_bytes = at
            at += bytes_of(workspace, launches.TILE)
        end = max(end, at)
    return end


def chained(flow: list, tile: int) -> list[Step]:
    """Regions of calls that have launches in common: blocks of a call read what any block of an earlier one wrote."""
    return _chained(flow, tile, _uses(flow))


def _chained(flow: list, tile: int, uses: Counter[Buffer]) -> list[Step]:
    steps: list[Step] = []
    for item in flow:
        if isinstance(item, Repeat):
            item.body = _chained(item.body, tile, uses)
            steps.append(item)
            continue
        calls = steps[-1].calls if steps and isinstance(steps[-1], Region) else []
        attends = bool(calls) and can_attend(calls[-1], item, uses)
        if attends:
            calls[-1].out.buffer.held = True
        if attends or (calls and can_join(calls, item)):
            calls.append(item)
        else:
            steps.append(Region(item.lanes, tile, [item]))
    return steps


def _uses(flow: list) -> Counter[Buffer]:
    """How many operands of a flow's calls are in each buffer."""
    found: Counter[Buffer] = Counter()
    for item in flow:
        found.update(_uses(item.body) if isinstance(item, Repeat) else [o.buffer for o in item.operands()])
    return found


def can_join(region: list[Call], call: Call) -> bool:
    """Whether one launch can run `call` too: blocks beside those of the region's calls, or behind them."""
    if len(region) == LONGEST or call.lanes != region[0].lanes:
        return False
    read = [operand.buffer for member in region for operand in member.reads()]
    if call.out.buffer in read:
        return False
    families = {member.family for member in (*region, call)}
    if families <= {"map", "copy"}:
        written = {member.out.buffer for member in region}
        return not any(operand.buffer in written for operand in call.reads())
    return families <= {"reduce", *launches.PACK} and can_chain(region, call)


def can_chain(chain: list[Call], call: Call) -> bool:
    """Whether blocks of `call` read nothing that another block of the chain's calls has written.

    All of a chain are cut alike, into 32 lanes at one outer index: reductions, products of whole rows
    (`product_rows.cu`), and at the end what a product does to its rows before it multiplies. A product that ended the
    chain is one of whole rows from then on.
    """
    *before, last = chain
    if (call.family == "product" and is_direct(call)) or _outer(call) != _outer(chain[0]):
        return False
    if last.family != "reduce" and not can_take_rows(before, last):
        return False
    if any(call.out.buffer is member.out.buffer for member in chain):
        return False
    return _reads_own(call, call.reads() if call.family == "reduce" else [o for _, o in call.groups["left"]], chain)


def can_take_rows(chain: list[Call], product: Call) -> bool:
    """Whether a block can have all columns of its rows behind those calls, and is not slower for it."""
    if product.family not in launches.BYTES or not _reads_own(product, product.reads(), [*chain, product]):
        return False
    size, _ = launches.BYTES[product.family]
    return launches.takes_rows(_facts(product), size, BARRIER_CLOCKS * L2_BYTES)


def _outer(call: Call) -> list[int]:
    return call.dims[: -1 if call.family == "reduce" else -2]


def _reads_own(call: Call, operands: list[Operand], chain: list[Call]) -> bool:
    """Whether of what a chain's calls write, a lane at an outer index reads what was written there alone."""
    made = {member.out.buffer: member for member in chain}
    return all(_is_own(o, call, made[o.buffer]) for o in operands if o.buffer in made)


def _is_own(read: Operand, call: Call, made: Call) -> bool:
    outer, written = len(_outer(made)), made.out
    inside, whole = _inner(read, call, outer), _inner(written, made, outer)
    is_part = not inside or (inside.keys() == whole.keys() and all(inside[s] <= whole[s] for s in whole))
    is_there = read.mode == written.mode == "V" and read.offset == written.offset
    return is_there and read.strides[:outer] == written.strides[:outer] and is_part


def _inner(operand: Operand, call: Call, outer: int) -> dict[Stride, int]:
    """Strides of an operand along the loops behind the outer ones, and how far these go."""
    loops = zip(operand.strides[outer:], call.dims[outer:], strict=False)
    return {stride: count for stride, count in loops if stride != ZERO}


def can_attend(product: Call, call: Call, uses: Counter[Buffer]) -> bool:
    """Whether `call` is the attention of the queries, keys and values that `product` makes, all of them for itself, and
    a block holds those of all tokens: then nothing between the two is written."""
    made = product.out
    if call.family != "attention" or product.family not in launches.BYTES or call.lanes != product.lanes:
        return False
    inside = [o for _, o in call.groups["left"] if o.buffer is made.buffer]
    keys, values = (o for _, o in call.groups["packed"])
    if len(inside) != 1 or uses[made.buffer] != 4 or any(o.buffer is not made.buffer for o in (keys, values)):
        return False
    *outer, queries, tokens, depth, width = call.dims
    *rows, columns, _ = product.dims
    if rows != [tokens] or queries > tokens or launches.attended_bytes(tokens, depth, width) is None:
        return False
    if made.mode != "V" or any(s != ZERO for s in product.groups["packed"][0][1].strides):
        return False
    row, column, _ = made.strides
    if min(row[0], column[0]) <= 0:  # of one token or one number there is no stride
        return False
    along_i = row if queries > 1 else ZERO
    wanted = (
        (inside[0], [along_i, ZERO, column, ZERO], depth), (keys, [ZERO, row, column, ZERO], depth),
        (values, [ZERO, row, ZERO, column], width),
    )  # fmt: skip
    for operand, strides, numbers in wanted:
        token, first = _place(operand.offset[0] - made.offset[0], row[0], column[0])
        heads = [s[0] * (n - 1) for s, n in zip(operand.strides, outer, strict=False)]
        if operand.mode != "V" or operand.strides[len(outer) :] != strides or any(h % column[0] for h in heads):
            return False
        if token + (queries if operand is inside[0] else tokens) > tokens:
            return False
        if first < 0 or first + sum(heads) // column[0] + numbers > columns:
            return False
    return True


def _place(at: int, row: int, column: int) -> tuple[int, int]:
    """Row and column of an element of a matrix with these strides: `Place` of product_attention.cu."""
    return (at // row, at % row // column) if row > column else (at % column // row, at // column)


class Launched(NamedTuple):
    """A region's calls, how often they run, and as how many launches each time: those of the last call.

    `nodes`: how many of the launches are left where those that follow on each other are one.
    """

    calls: list[Call]
    times: int
    launches: int
    nodes: int


def _alone(calls: list[Call]) -> list[Call]:
    """The call of a region whose launches are the region's: its last, or the product that an attention ends."""
    return calls[-2:-1] if calls[-1].family == "attention" and len(calls) > 1 else calls[-1:]


def launched(steps: list[Step], times: int = 1) -> list[Launched]:
    """Every region in order, loops entered once."""
    found: list[Launched] = []
    follows = False
    for step in steps:
        if isinstance(step, Repeat):
            found += launched(step.body, times * step.count)
        else:
            count = sum(launches.phases(c.family, is_direct(c)) for c in _alone(step.calls))
            found.append(Launched(step.calls, times, count, int(not follows)))
        follows = isinstance(step, Region)
    return found


def _facts(call: Call) -> launches.Facts:
    batch = () if "packed" not in call.groups else call.groups["packed"][0][1].strides[: len(call.dims) - 2]
    return launches.Facts(tuple(call.dims), call.lanes, tuple(s != ZERO for s in batch))


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

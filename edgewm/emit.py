"""A scheduled program to the sections of `model.ewm` and the C++ source of its kernels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from . import format as ewm
from .arena import bytes_of, place
from .call_work import call_work
from .codegen import C_TYPE, Functor, Source, fold_functor, run_functor, score_functor, store_functor, value_functor
from .errors import EdgewmError
from .expr import input as input_leaf
from .garbage import uncollected
from .kernel import load
from .layout import Buffer, Layout
from .lower import Lowering
from .ops import BYTES
from .program import Graph, Port, Program
from .schedule import Call, EntrySchedule, Operand, Region, Schedule, Step, is_direct

SPACES = {"arena": ewm.ARENA, "scratch": ewm.SCRATCH, "weights": ewm.WEIGHTS}
ALIGN = 64


@uncollected()
def schedule_program(program: Program, isa: str) -> Schedule:
    """Every entry of a fused program as steps with placed buffers, for one CPU instruction set."""
    product = load("product")
    tiling = product.TILING[isa]

    packers = {  # and what one number of what they pack is
        "product": (product.pack_f32, np.float32),
        "product_bf16": (product.pack_bf16, np.uint32),
        "product_fp16": (product.pack_f16, np.float32),
        "product_i8": (product.pack_i8, np.int8),
        "product_rounded": (product.pack_i8, np.int8),
    }
    workspaces = {
        "product": product.workspace_bytes,
        "product_bf16": product.workspace_bf16_bytes,
        "product_fp16": product.workspace_f16_bytes,
        "product_i8": product.workspace_i8_bytes,
        "product_rounded": product.workspace_rounded_bytes,
    }

    def pack(family: str, part: int, block: np.ndarray) -> np.ndarray:
        if part > 0:  # what int8 weights have beside them: scales, column sums
            return np.ascontiguousarray(block, np.float32).reshape(-1)
        packer, unit = packers[family]
        return packer(block, isa).view(unit)

    def workspace(call: Call, **sizes) -> int:
        direct = is_direct(call)
        if call.family == "attention":
            return load("attention").workspace_bytes(**sizes, tile=tiling.tile, direct=direct)
        return workspaces[call.family](sizes["outer"], sizes["k"], isa, direct=direct)

    scheduler = Lowering(program.weights, tiling.tile, pack, workspace)
    entries = {name: scheduler.entry(graph, anytime=name == "plan") for name, graph in program.entries.items()}
    schedule = Schedule(entries, scheduler.constants, scheduler.buffers, tiling.tile)
    schedule.arena_bytes, schedule.scratch_bytes = place(list(entries.values()), tiling.tile)
    return schedule


@dataclass
class Tables:
    """The growing sections of a file."""

    tile: int
    source: Source = field(default_factory=Source)
    weights: list[bytes] = field(default_factory=list)
    weight_offsets: dict[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    steps: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    work: list = field(default_factory=list)  # of each call
    operands: list = field(default_factory=list)
    ports: list = field(default_factory=list)
    entries: list = field(default_factory=list)
    entry_ports: list[int] = field(default_factory=list)
    port_of: dict[Buffer, int] = field(default_factory=dict)


@uncollected()
def emit(program: Program, schedule: Schedule, manifest: Mapping) -> tuple[dict[str, bytes], Source]:
    """Sections of the file by name, and the source of the kernels that its calls index."""
    tables = Tables(schedule.tile)
    for name, entry in schedule.entries.items():
        _entry(tables, program, schedule, name, entry)
    if program.planner is not None:
        _feedback(tables, schedule)
    names = list(schedule.entries)
    sizes = np.zeros((), ewm.SIZES)
    sizes["arena_bytes"], sizes["scratch_bytes"] = schedule.arena_bytes, schedule.scratch_bytes
    sizes["weight_bytes"] = tables.weight_bytes
    for key in ("entries", "ports", "steps", "calls", "operands"):
        sizes[key] = len(getattr(tables, key))
    sizes["plan_entry"] = names.index("plan") if "plan" in names else ewm.NONE
    sections = {
        "manifest": _manifest(manifest, tables),
        "sizes": sizes.tobytes(),
        "ports": _rows(tables.ports, ewm.PORT),
        "entries": _rows(tables.entries, ewm.ENTRY),
        "entry_ports": np.array(tables.entry_ports, "<u4").tobytes(),
        "steps": _rows(tables.steps, ewm.STEP),
        "calls": _rows(tables.calls, ewm.CALL),
        "operands": _rows(tables.operands, ewm.OPERAND),
        "weights": b"".join(tables.weights),
    }
    return sections, tables.source


def _manifest(manifest: Mapping, tables: Tables) -> bytes:
    whole = {**manifest, "kernels": list(tables.source.kernels), "calls": tables.work}
    return json.dumps(whole, indent=1, sort_keys=True).encode()


def _rows(rows: list, dtype: np.dtype) -> bytes:
    return np.array(rows, dtype).tobytes() if rows else b""


# ---------------------------------------------------------------------------------------------- entries and ports


def _entry(tables: Tables, program: Program, schedule: Schedule, name: str, entry: EntrySchedule) -> None:
    first_port = len(tables.entry_ports)
    for layouts, is_result in ((entry.inputs, False), (entry.outputs, True)):
        for port_name, layout in layouts.items():
            if layout.buffer not in tables.port_of:
                tables.port_of[layout.buffer] = len(tables.ports)
                tables.ports.append(_port(program, port_name, layout, is_result))
            tables.entry_ports.append(tables.port_of[layout.buffer])
    first_step = len(tables.steps)
    _steps(tables, schedule, entry.steps)
    row = np.zeros((), ewm.ENTRY)
    row["name"], row["first_step"], row["steps"] = _text(name), first_step, len(tables.steps) - first_step
    row["first_port"], row["ports"] = first_port, len(tables.entry_ports) - first_port
    tables.entries.append(row)


def _text(name: str) -> bytes:
    if len(name) > 23:
        raise EdgewmError(f"the name {name!r} is longer than 23 characters", "ports and entries", "shorten it")
    return name.encode()


def _port(program: Program, name: str, layout: Layout, is_result: bool) -> np.void:
    wanted = "action" if is_result and name == "actions" else None
    declared = next((p for p in program.ports if _is(p, wanted, name, layout)), None)
    row = np.zeros((), ewm.PORT)
    row["name"], row["dtype"], row["rank"] = _text(name), ewm.DTYPES[layout.buffer.dtype], len(layout.shape)
    row["dim"][: len(layout.shape)] = layout.shape
    row["elements"], row["offset"] = layout.buffer.elements, layout.buffer.offset_bytes
    row["low"], row["high"] = -np.inf, np.inf
    row["feedback"] = ewm.NONE
    row["kind"] = ewm.KINDS["result" if is_result else "state"]
    if declared is None:
        return row
    if is_result == (declared.kind == "action"):
        row["kind"] = ewm.KINDS[declared.kind]
    if not is_result or declared.kind == "action":
        row["low"] = -np.inf if declared.low is None else declared.low
        row["high"] = np.inf if declared.high is None else declared.high
        row["max_age_ns"] = declared.max_age_ns
    if declared.kind == "action" and is_result:
        _action(program, declared, layout, row)
    return row


def _is(port: Port, wanted: str | None, name: str, layout: Layout) -> bool:
    """Whether a declared port is this one: the action leaving the plan, or an input of that name, shape, dtype."""
    if wanted:
        return port.kind == wanted
    return (port.name, tuple(port.shape), port.dtype) == (name, layout.shape, layout.buffer.dtype)


def _action(program: Program, port: Port, layout: Layout, row: np.void) -> None:
    block = program.planner.action_block
    axes = layout.shape[-1] // block
    row["control"], row["axes"], row["action_block"] = ewm.CONTROLS[port.control or "velocity"], axes, block
    row["commit_steps"] = program.planner.commit_steps
    row["slew"], row["has_safe"] = port.slew, len(port.safe) > 0
    for key, values, default in (("safe", port.safe, 0.0), ("scale", port.scale, 1.0), ("offset_", port.offset, 0.0)):
        row[key][:axes] = values or (default,) * axes


def _feedback(tables: Tables, schedule: Schedule) -> None:
    """State inputs of the plan take the results of the same name."""
    plan = schedule.entries.get("plan")
    for name, layout in (plan.inputs if plan else {}).items():
        if name in plan.outputs:
            tables.ports[tables.port_of[layout.buffer]]["feedback"] = tables.port_of[plan.outputs[name].buffer]


# ---------------------------------------------------------------------------------------------- steps and calls


def _steps(tables: Tables, schedule: Schedule, steps: list[Step]) -> None:
    for step in steps:
        row = np.zeros((), ewm.STEP)
        if isinstance(step, Region):
            row["kind"], row["first_call"], row["calls"] = ewm.REGION, len(tables.calls), len(step.calls)
            row["lanes"], row["tile"] = step.lanes, step.tile
            tables.steps.append(row)
            for call in step.calls:
                _call(tables, schedule, call)
            kernels = tuple(int(row["kernel"]) for row in tables.calls[-len(step.calls) :])
            tables.source.regions.setdefault(kernels)
            continue
        row["kind"], row["count"], row["anytime"] = ewm.REPEAT, step.count, step.anytime
        row["counter"] = step.counter.offset_bytes
        begin = len(tables.steps)
        tables.steps.append(row)
        _steps(tables, schedule, step.body)
        end = np.zeros((), ewm.STEP)
        end["kind"], end["count"] = ewm.END, len(tables.steps) - begin
        tables.steps.append(end)


def _call(tables: Tables, schedule: Schedule, call: Call) -> None:
    kernel, operands = instantiate(tables.source, call)
    row = np.zeros((), ewm.CALL)
    row["kernel"], row["first_operand"], row["operands"] = kernel, len(tables.operands), len(operands)
    row["rank"], row["lanes"], row["cut"] = len(call.dims), call.lanes, call.cut
    row["dim"][: len(call.dims)] = call.dims
    tables.calls.append(row)
    tables.work.append(call_work(call, schedule))
    for operand in operands:
        tables.operands.append(_operand(tables, schedule, call, operand))
    if call.workspace is not None:
        tables.operands.append(_workspace(call.workspace, schedule.tile))
        tables.calls[-1]["operands"] += 1


def _operand(tables: Tables, schedule: Schedule, call: Call, operand: Operand) -> np.void:
    buffer = operand.buffer
    row = np.zeros((), ewm.OPERAND)
    size = BYTES[buffer.dtype]
    padded = _padded(buffer, tables.tile)
    base = buffer.offset_bytes
    if buffer.space == "weights":
        base = _weight_offset(tables, schedule, buffer)
    row["space"], row["dtype"] = SPACES[buffer.space], ewm.DTYPES[_stored(buffer.dtype)]
    row["is_output"] = operand.is_output
    row["gathered"] = operand.mode == "G"
    p, c = operand.offset
    row["offset"] = base + (p * padded + c) * size
    row["lane_stride"] = operand.lane_stride[0] * padded + operand.lane_stride[1]
    for i, (sp, sc) in enumerate(operand.strides):
        row["stride"][i] = sp * padded + sc
    row["bytes"] = bytes_of(buffer, tables.tile) - (int(row["offset"]) - base) if buffer.space != "weights" else (
        schedule.constants[buffer.name].nbytes - (int(row["offset"]) - base)
    )
    return row


def _stored(dtype: str) -> str:
    return "i32" if dtype == "bool" else dtype


def _padded(buffer: Buffer, tile: int) -> int:
    if not buffer.lanes:
        return 1
    return tile if buffer.space == "scratch" else -(-buffer.lanes // tile) * tile


def _workspace(buffer: Buffer, tile: int) -> np.void:
    row = np.zeros((), ewm.OPERAND)
    row["space"], row["dtype"], row["is_output"] = ewm.SCRATCH, ewm.DTYPES["u8"], 1
    row["offset"], row["bytes"] = buffer.offset_bytes, bytes_of(buffer, tile)
    return row


def _weight_offset(tables: Tables, schedule: Schedule, buffer: Buffer) -> int:
    if buffer.name not in tables.weight_offsets:
        data = np.ascontiguousarray(schedule.constants[buffer.name])
        data = (data.astype(np.int32) if data.dtype == np.bool_ else data).tobytes()
        tables.weight_offsets[buffer.name] = tables.weight_bytes
        gap = -len(data) % ALIGN
        tables.weights += [data, bytes(gap)]
        tables.weight_bytes += len(data) + gap
    return tables.weight_offsets[buffer.name]


# ---------------------------------------------------------------------------------------------- kernels


def instantiate(source: Source, call: Call) -> tuple[int, list[Operand]]:
    """Index of the call's kernel in the bundle's table, and its operands in the family's order."""
    modes = {part: {name: operand.mode for name, operand in group} for part, group in call.groups.items()}
    bound = {part: [o for _, o in sorted(group, key=lambda g: g[0])] for part, group in call.groups.items()}
    out = call.out
    if call.family in ("topk", "take"):
        return source.kernel(call.family), [*(o for _, o in call.groups["epilogue"]), out]
    if call.family == "copy":
        leaf = input_leaf("p0", (1,), out.buffer.dtype)
        functor = Functor(Graph({"y": leaf}), modes["epilogue"], "i")
        return source.kernel("map", source.functor(run_functor(functor, out.buffer.dtype, out.mode))), [
            *bound["epilogue"],
            out,
        ]
    node, dtype = call.node, out.buffer.dtype
    epilogue = Functor(node["epilogue"], modes["epilogue"], "i")
    if call.family == "map":
        return source.kernel("map", source.functor(run_functor(epilogue, dtype, out.mode))), [*bound["epilogue"], out]
    if call.family == "reduce":
        epilogue.at = "0"
        parts = [p for p in ("left", "right") if p in call.groups]
        terms = [Functor(node[p], modes[p], "k") for p in parts]
        text = fold_functor(terms, node["combine"], epilogue, dtype, out.mode)
        return source.kernel("reduce", source.functor(text)), [
            *(o for p in parts for o in bound[p]),
            *bound["epilogue"],
            out,
        ]
    prologue = source.functor(value_functor(Functor(node["left"], modes["left"], "i"), is_direct(call)))
    ending = source.functor(store_functor(epilogue, dtype, out.mode))
    packed = [o for _, o in call.groups["packed"]]
    if call.family.startswith("product"):
        return source.kernel(call.family, prologue, ending), [*bound["left"], *packed, *bound["epilogue"], out]
    score = source.functor(score_functor(Functor(node["score"], modes["score"], "i")))
    shared = ["false" if o.mode == "V" else "true" for o in packed]
    held = [C_TYPE[o.buffer.dtype] for o in packed]
    return (
        source.kernel("attention", prologue, score, ending, "op_exp", *shared, *held),
        [*bound["left"], *packed, *bound["score"], *bound["epilogue"], out],
    )

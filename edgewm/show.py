"""`edgewm show`: a program at any stage of the compiler, or a bundle, as text for people.

A graph is one line a node: `%3  f32[5, 17]  add(%1, "bias")`; constants and weights stand where they are read, bodies
of loops are indented, and a fused kernel says its family and, when asked, the expression it computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import format as ewm
from .arena import bytes_of
from .errors import EdgewmError
from .manifest import BACKEND_MANIFEST, Manifest, read_manifest
from .ops import const_value, flops
from .passes import EXACT, LOWERING, run
from .program import Graph, LogLine, Node, Port, Program
from .reference.worlds import world_by_word
from .schedule import Call, EntrySchedule, Operand, Region, Schedule, Step

STAGES = ("capture", "exact", "quantize", "fuse", "schedule")
STEPS = tuple(step.__name__ for step in EXACT + LOWERING)
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@", "lt": "<", "le": "<=", "eq": "=="}
HIDDEN = ("body", "epilogue", "left", "right", "score", "family", "packed", "carries", "invariants")  # told otherwise
LONGEST = 300  # characters of one expression
INDENT = "    "


def show(path: str, *, stage: str | None = None, kernels: bool = False) -> str:
    """Text of a bundle (a directory with model.ewm) or of a model's program at `stage`.

    `stage` is capture (default), exact, quantize (as w8a8), fuse or schedule (as fp32, for this machine), or the name
    of one step of the pipeline. `kernels` adds what each kernel computes, and each call's operands. EdgewmError for
    what is neither.
    """
    if (Path(path) / "model.ewm").is_file():
        if stage not in (None, "schedule"):
            raise EdgewmError(
                f"a bundle holds no stage {stage!r}", path, "give the model it was built from, or leave --stage out"
            )
        return bundle_text(Path(path), kernels)
    if (Path(path) / BACKEND_MANIFEST).is_file():
        return backend_text(Path(path))
    if not Path(path).exists() and world_by_word(path) is None and ":" not in path:
        raise EdgewmError(
            f"no bundle or model {path!r}", "PATH or MODEL",
            "give the directory `edgewm build` wrote, a checkpoint, module:function, or the word reference",
        )  # fmt: skip
    if Path(path).is_dir() and not any(Path(path).glob("config.json")):
        raise EdgewmError(
            "neither a bundle nor a model", path,
            "give the directory `edgewm build` wrote, or a checkpoint with config.json",
        )
    stage = stage or ("schedule" if kernels else "capture")
    if stage not in (*STAGES, *STEPS):
        known = f"use one of {', '.join(STAGES)}, or a step: {', '.join(STEPS)}"
        raise EdgewmError(f"no stage {stage!r}", "--stage", known)
    from .models import capture_model, load

    return program_text(at_stage(capture_model(load(path)), stage), stage, kernels)


def at_stage(program: Program, stage: str) -> Program:
    """A captured program after `stage`, a name of STAGES or STEPS."""
    from .emit import schedule_program
    from .quantize import recipe_of
    from .target import resolve

    if stage == "capture":
        return run(program, ())
    if stage in STEPS and stage in [step.__name__ for step in EXACT]:
        return run(program, EXACT[: STEPS.index(stage) + 1])
    program = run(program, EXACT)
    if stage == "exact":
        return program
    quantized = stage in ("quantize", "quantize_products")
    steps = LOWERING[: STEPS.index("quantize_products") - len(EXACT) + 1] if quantized else LOWERING
    program = run(program.with_(recipe=recipe_of(program, "w8a8" if quantized else "fp32")), steps)
    return program.with_(schedule=schedule_program(program, resolve("host")[0].isa)) if stage == "schedule" else program


# ---------------------------------------------------------------------------------------------- programs


def program_text(program: Program, stage: str, kernels: bool = False) -> str:
    """A whole program: ports, weights, log, and its graphs (or its schedule, where it has one)."""
    parts = [f"program after {stage}: {_count(len(program.entries), 'entry')}"]
    if program.planner is not None:
        parts.append("planner  " + _planner(program.planner.__dict__))
    if program.ports:
        parts.append("\n".join(["ports", *_columns([_port_row(p) for p in program.ports])]))
    read = dict.fromkeys(name for graph in program.entries.values() for name in graph.weights())
    if read:
        held = [(name, program.weights[name]) for name in read]
        rows = [(name, f"{array.dtype}{list(array.shape)}", _bytes(array.nbytes)) for name, array in held]
        parts.append("\n".join(["weights", *_columns(rows)]))
    if program.log:
        parts.append(log_text(program.log))
    if program.schedule is not None:
        parts.append(schedule_text(program.schedule, kernels))
    else:
        parts += [entry_text(name, graph, kernels) for name, graph in program.entries.items()]
    return "\n\n".join(parts)


def entry_text(name: str, graph: Graph, kernels: bool = False) -> str:
    """One entry: its inputs, a line a node, its outputs."""
    from .ops import graph_flops

    nodes = [n for n in graph.order() if n.op not in ("input", "weight", "const")]
    head = f"entry {name}: {_count(len(nodes), 'node')}, {_number(graph_flops(graph))} FLOP"
    return "\n".join([head, *graph_lines(graph, kernels)])


def graph_lines(graph: Graph, kernels: bool = False, indent: str = INDENT) -> list[str]:
    """A line a node, sources before users; bodies of loops indented."""
    names: dict[Node, str] = {}
    rows: list[tuple[str, str, str] | list[str]] = [(n, _type(leaf), "input") for n, leaf in graph.inputs().items()]
    for node in graph.order():
        if node.op in ("input", "weight", "const"):
            names[node] = _leaf(node)
            continue
        names[node] = f"%{sum(n[0] == '%' for n in names.values())}"
        rows.append((names[node], _type(node), _node(node, names, kernels)))
        if node.op == "repeat":
            rows.append(graph_lines(node["body"], kernels, indent + INDENT))
    rows += [(f"-> {name}", _type(node), names[node]) for name, node in graph.outputs.items()]
    plain = [r for r in rows if isinstance(r, tuple)]
    wide = [max(len(r[i]) for r in plain) for i in (0, 1)]
    lines: list[str] = []
    for row in rows:
        if isinstance(row, list):
            lines += row
        else:
            lines.append(f"{indent}{row[0]:{wide[0]}}  {row[1]:{wide[1]}}  {row[2]}".rstrip())
    return lines


def _node(node: Node, names: dict[Node, str], kernels: bool) -> str:
    sources = [names[s] for s in node.sources]
    if node.op == "repeat":
        bound = [f"{n}={s}" for n, s in zip(node["carries"] + node["invariants"], sources, strict=True)]
        carried = len(node["carries"])
        fixed = f"; fixed {', '.join(bound[carried:])}" if bound[carried:] else ""
        return f"repeat {node['count']} times, carrying {', '.join(bound[:carried]) or 'nothing'}{fixed}"
    if node.op == "get":
        return f"{sources[0]}.{node['name']}"
    if node.op == "kernel":
        call = f"{node['family']}({', '.join(f'p{i}={s}' for i, s in enumerate(sources))})"
        return call + (f"  {_number(flops(node))} FLOP: {expression(node['body'])}" if kernels else "")
    attrs = [f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in node.attrs if k not in HIDDEN]
    if node.op in ("reshape", "expand", "cast", "bitcast"):
        attrs = []  # the result's type says it
    return f"{node.op}({', '.join([*sources, *attrs])})"


def expression(graph: Graph) -> str:
    """A graph in one line, values that are read twice named first; shortened where it is long."""
    (root,) = graph.outputs.values()
    nodes = graph.order()
    reads = Counter(s for n in nodes for s in n.sources)
    names: dict[Node, str] = {}
    lets: list[str] = []
    for node in nodes:
        if node.op in ("input", "weight", "const"):
            names[node] = _leaf(node)
            continue
        sources = [names[s] for s in node.sources]
        bare = {s: _bare(names[s], s) for s in node.sources}
        text = f"({sources[0]} {INFIX[node.op]} {sources[1]})" if node.op in INFIX else _node(node, bare, False)
        if reads[node] > 1:
            lets.append(f"t{len(lets)} = {_bare(text, node)}")
            text = f"t{len(lets) - 1}"
        names[node] = text
    text = "; ".join([*lets, _bare(names[root], root)])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({_count(len(nodes), 'node')})"


def _bare(text: str, node: Node) -> str:
    """An operator's text without the parentheses around it."""
    return text[1:-1] if node.op in INFIX and text.startswith("(") else text


def _leaf(node: Node) -> str:
    if node.op == "const":
        value = const_value(node)
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return f'"{node["name"]}"' if node.op == "weight" else node["name"]


def _type(node: Node) -> str:
    return "" if node.dtype == "tuple" else f"{node.dtype}{list(node.shape)}"


def log_text(log: Sequence[LogLine]) -> str:
    """What each step changed: nodes, bytes of weights and FLOPs of a plan, before -> after."""
    rows = [("step", "nodes", "weights", "FLOP")]
    rows += [
        (line.step, _change(line.nodes, str), _change(line.weight_bytes, _bytes), _change(line.flops, _number))
        for line in log
    ]
    return "\n".join(["log", *_columns(rows)])


# ---------------------------------------------------------------------------------------------- schedules


def schedule_text(schedule: Schedule, kernels: bool = False) -> str:
    """Memory, then each entry's regions and calls; with `kernels` each operand's place and strides."""
    constants = sum(a.nbytes for a in schedule.constants.values())
    head = (
        f"schedule: arena {_bytes(schedule.arena_bytes)}, scratch {_bytes(schedule.scratch_bytes)} a thread, "
        f"packed weights {_bytes(constants)}, tiles of {schedule.tile} lanes"
    )
    return "\n\n".join([head, *(_entry_schedule(schedule, *item, kernels) for item in schedule.entries.items())])


def _entry_schedule(schedule: Schedule, name: str, entry: EntrySchedule, kernels: bool) -> str:
    lines = [f"entry {name}"]
    for way, layouts in (("in ", entry.inputs), ("out", entry.outputs)):
        lines += [f"{INDENT}{way} {n}  {o.buffer.dtype}{list(o.shape)}  {_place(o.buffer)}" for n, o in layouts.items()]
    return "\n".join(lines + _step_lines(entry.steps, schedule.tile, kernels, INDENT))


def _step_lines(steps: Sequence[Step], tile: int, kernels: bool, indent: str) -> list[str]:
    lines: list[str] = []
    for step in steps:
        if isinstance(step, Region):
            tiles = -(-step.lanes // step.tile)
            lines.append(f"{indent}region of {_count(step.lanes, 'lane')}, {_count(tiles, 'tile')}")
            lines += [line for call in step.calls for line in _call_lines(call, tile, kernels, indent + INDENT)]
            continue
        leave = ", left when time is up" if step.anytime else ""
        lines.append(f"{indent}repeat {step.count} times{leave}, round at {_place(step.counter)}")
        lines += _step_lines(step.body, tile, kernels, indent + INDENT)
    return lines


def _call_lines(call: Call, tile: int, kernels: bool, indent: str) -> list[str]:
    operands = [(part, name, o) for part, group in call.groups.items() for name, o in group]
    work = f", workspace {_bytes(bytes_of(call.workspace, tile))}" if call.workspace else ""
    modes = "".join(o.mode for _, _, o in operands)
    dims = "x".join(map(str, call.dims))
    line = f"{indent}{call.family} {dims}  reads {modes or '-'}, writes {call.out.mode} {_at(call.out)}{work}"
    if not kernels:
        return [line]
    lines = [line]
    if call.node is not None and call.node.op == "kernel":
        lines.append(f"{indent}  = {expression(call.node['body'])}")
    lines += [f"{indent}  {part}.{name}  {_operand(o)}" for part, name, o in operands]
    return [*lines, f"{indent}  out  {_operand(call.out)}"]


def _operand(operand: Operand) -> str:
    strides = ", ".join(map(_stride, operand.strides))
    lane = f", lane {_stride(operand.lane_stride)}" if operand.mode == "G" else ""
    return f"{operand.mode} {operand.buffer.dtype} {_at(operand)}, strides [{strides}]{lane}"


def _at(operand: Operand) -> str:
    offset = f" [{_stride(operand.offset)}]" if operand.offset != (0, 0) else ""
    return _place(operand.buffer) + offset


def _stride(stride: tuple[int, int]) -> str:
    """Elements; `L` stands for the buffer's padded lanes."""
    per_lanes, plain = stride
    return f"{per_lanes}L" + (f"+{plain}" if plain else "") if per_lanes else str(plain)


def _kernels(manifest: Mapping[str, Any]) -> str:
    """Whose kernels a bundle holds, and why those where there was a choice."""
    placed = manifest.get("placement")
    if placed is None or placed["place"] == "cpu":
        kernels = f"{manifest['isa']} kernels"
    else:
        kernels = "kernels for its GPU"
    return kernels if placed is None else f"{kernels} ({placed['why']})"


def _place(buffer) -> str:
    if buffer.space == "weights":
        return f'weights "{buffer.name}"'
    return f"{buffer.space}+{buffer.offset_bytes}"


# ---------------------------------------------------------------------------------------------- bundles


def backend_text(bundle: Path) -> str:
    """What the manifest of a bundle for another runtime says: how it is built, and each graph's ports."""
    manifest = read_manifest(bundle)
    raw = manifest.raw
    lines = [f"{bundle}: {manifest.precision} for {manifest.target} by {manifest.backend}, {manifest.rate_hz:g} Hz"]
    lines += [f"planner {_planner(raw['planner'])}", f"SHA-256 {manifest.sha256}"]
    lines += [f"{key} {value}" for key, value in raw["build"].items()]
    for name, graph in raw["graphs"].items():
        lines.append(f"\n{name}.onnx")
        for kind, ports in graph.items():
            lines += [f"{INDENT}{kind[:-1]:7}{port}: {p['dtype']}{p['shape']}" for port, p in ports.items()]
    return "\n".join(lines)


def _static_bound(bundle: Path, manifest: Manifest) -> str:
    """Each GPU kernel's facts and its bound, in the power mode that the bundle is for."""
    from .cuda.bound import bundle_rows, lines
    from .target import resolve

    board, mode = resolve(manifest.target, manifest.mode)
    return "\n".join(lines(bundle_rows(bundle, board, mode), board, mode))


def bundle_text(bundle: Path, kernels: bool = False) -> str:
    """What a bundle's file says: manifest, ports, entries, steps, and how often each kernel is called."""
    manifest = read_manifest(bundle)
    data = (bundle / "model.ewm").read_bytes()
    sections = ewm.unpack(data)
    raw = manifest.raw
    (sizes,) = np.frombuffer(sections["sizes"], ewm.SIZES)
    steps, calls = (np.frombuffer(sections[n], d) for n, d in (("steps", ewm.STEP), ("calls", ewm.CALL)))
    arena, scratch, weights = (_bytes(int(sizes[f"{space}_bytes"])) for space in ("arena", "scratch", "weight"))
    memory = f"arena {arena}, scratch {scratch} a thread, weights {weights}"
    facts = [
        ("target", f"{manifest.target}, mode {manifest.mode}, {raw['triple']}, {_kernels(raw)}"),
        ("precision", manifest.precision),
        ("rate", f"{manifest.rate_hz:g} Hz"),
        ("threads", str(raw["threads"])),
        ("memory", memory),
        ("planner", _planner(raw["planner"])),
        ("edgewm", raw["edgewm"]),
        ("SHA-256", manifest.sha256),
    ]  # fmt: skip
    names = raw.get("kernels") or [f"kernel {i}" for i in range(int(calls["kernel"].max(initial=0)) + 1)]
    parts = [f"bundle of {_bytes(len(data))}\n" + "\n".join(_columns(facts))]
    parts.append("\n".join(["ports", *_columns([_port_row(p) for p in manifest.ports])]))
    parts.append("\n".join(["sections", *_columns([(n, _bytes(len(s))) for n, s in sections.items()])]))
    log = [LogLine(**{k: tuple(v) if isinstance(v, list) else v for k, v in line.items()}) for line in raw["log"]]
    parts.append(log_text(log))
    for entry in np.frombuffer(sections["entries"], ewm.ENTRY):
        name, first = entry["name"].decode(), int(entry["first_step"])
        own = steps[first : first + int(entry["steps"])]
        parts.append(_bundle_entry(name, own, calls, names, raw["flops"].get(name), kernels))
    if kernels and "launches" in sections:
        parts.append(_static_bound(bundle, manifest))
    return "\n\n".join(parts)


def _bundle_entry(
    name: str, steps: np.ndarray, calls: np.ndarray, names: Sequence[str], work: int | None, kernels: bool
) -> str:
    regions = steps[steps["kind"] == ewm.REGION]
    indices = [c for r in regions for c in range(int(r["first_call"]), int(r["first_call"] + r["calls"]))]
    loops = [f"{s['count']} rounds" for s in steps if s["kind"] == ewm.REPEAT]
    doing = f", {_number(work)} FLOP" if work is not None else ""
    looping = f", {_count(len(loops), 'loop')} of {', '.join(loops)}" if loops else ""
    lines = [f"entry {name}: {_count(len(regions), 'region')}, {_count(len(indices), 'call')}{looping}{doing}"]
    family = Counter(names[int(calls[c]["kernel"])].split("<")[0] for c in indices)
    lines += _columns([(f"{count} x", kernel) for kernel, count in family.most_common()])
    if not kernels:
        return "\n".join(lines)
    indent = INDENT
    for step in steps:
        if step["kind"] == ewm.END:
            indent = indent.removesuffix(INDENT)
        elif step["kind"] == ewm.REPEAT:
            lines.append(f"{indent}repeat {step['count']} times{', left when time is up' if step['anytime'] else ''}")
            indent += INDENT
        else:
            lines.append(f"{indent}region of {_count(int(step['lanes']), 'lane')}, tiles of {step['tile']}")
            for call in calls[int(step["first_call"]) : int(step["first_call"] + step["calls"])]:
                dims = "x".join(str(d) for d in call["dim"][: call["rank"]])
                operands = _count(int(call["operands"]), "operand")
                lines.append(f"{indent}{INDENT}{names[int(call['kernel'])]} {dims}, {operands}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- words


def _port_row(port: Port) -> tuple[str, ...]:
    bounds = "" if port.low is None and port.high is None else f"within [{port.low}, {port.high}]"
    safe = f"safe {list(port.safe)}" if port.safe else ""
    words = " ".join(w for w in (port.unit, bounds, port.control, safe) if w)
    return port.name, port.kind, f"{port.dtype}{list(port.shape)}", words


def _planner(planner: dict) -> str:
    """The settings that every plan has, those of this kind, and the others where they are not as usual."""
    from .planner import KINDS

    said = ["kind", "samples", "iterations", "elites", "horizon", "action_block", "commit_steps"]
    usual = {"history": 1, "roll_committed": False, "warm_start": False, "proposal": False, "objective": "final"}
    said += [*KINDS[planner["kind"]], *(name for name, value in usual.items() if planner.get(name, value) != value)]
    return ", ".join(f"{name} {planner[name]}" for name in said)


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    rows = [tuple(map(str, row)) for row in rows]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [(INDENT + "  ".join(f"{c:{w}}" for c, w in zip(row, wide, strict=True))).rstrip() for row in rows]


def _change(pair: tuple[int, int], text) -> str:
    before, after = map(text, pair)
    return before if before == after else f"{before} -> {after}"


def _count(n: int, what: str) -> str:
    plural = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{n} {what if n == 1 else plural}"


def _number(value: int) -> str:
    for unit, scale in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return str(value)


def _bytes(value: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value} B"

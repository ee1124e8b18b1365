"""Layout, lowering, schedule and arena: checked by simulating the memory, and by running drawn programs bit for bit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import programs
import pytest

from edgewm import expr as e
from edgewm import interp
from edgewm.arena import bytes_of, regions
from edgewm.binding import Runtime
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.kernel import load
from edgewm.layout import Buffer, broadcast, dense, in_lanes, reshape, view
from edgewm.ops import make
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Graph, Node, Program, walk_graphs
from edgewm.schedule import EntrySchedule, Operand, Region, Repeat, Schedule, Step
from edgewm.target import ISAS, resolve

SEEDS = (2, 5, 11)
DRAWN = 9  # graphs from each seed; each is built in fp32 and in w8a8
ROUNDS = 3  # of a loop that the memory is simulated for
LINE = 64  # bytes


def host_isas() -> tuple[str, ...]:
    levels = ISAS[resolve("host")[0].machine]
    return levels[levels.index(resolve("host")[0].isa) :]


def fused(program: Program, quantized: Mapping[str, str] | None = None) -> Program:
    return run(run(program, EXACT).with_(recipe=quantized), LOWERING)


def matrices(program: Program, salt: str) -> dict[str, str]:
    """A recipe: every product's weight of two dimensions whose name begins with `salt`, in eight bits."""
    return {n: "w8a8" for n, a in program.weights.items() if n.startswith(salt) and a.ndim == 2}


@dataclass(frozen=True)
class Drawn:
    """Drawn graphs as one program, fused, with what the oracle answers."""

    program: Program
    inputs: dict[str, dict[str, np.ndarray]]
    wanted: dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def drawn() -> Drawn:
    entries = {}
    for i, graph in enumerate(itertools.chain(*(programs.drawn(DRAWN, seed) for seed in SEEDS))):
        entries[f"f{i}"], entries[f"q{i}"] = programs.salted(graph, f"f{i}"), programs.salted(graph, f"q{i}")
    entries["early"] = Graph({"y": early_invariant(e.input("x", (40, 3)))})
    net = programs.transformer(33, 3, 8, 2, 4, 1)
    entries["net"] = net.entries["score"]
    entries["net_i8"] = programs.salted(net.entries["score"], "q")
    source = programs.program_of(entries)
    inputs = {name: programs.inputs_of(graph) for name, graph in entries.items()}
    exact = run(source, EXACT)
    program = run(exact.with_(recipe=matrices(exact, "q")), LOWERING)
    wanted = {name: interp.run(graph, inputs[name], program.weights) for name, graph in program.entries.items()}
    return Drawn(program, inputs, wanted)


def early_invariant(x: Node) -> Node:
    """A loop that reads a computed invariant first, then makes values that would fit in its place."""
    a, fixed = e.input("a", (40, 3)), e.input("fixed", (40, 3))
    t = e.mul(a, fixed)
    for _ in range(3):  # sums over the lanes: each is a barrier, so t lives in the arena
        t = e.tanh(e.mul(t, e.add(e.reduce_sum(t, 0), 0.5)))
    body = Graph({"a": t})
    return e.repeat(3, body, {"a": x}, {"fixed": e.mul(x, e.reduce_max(e.exp(x), 0))})["a"]


# ---------------------------------------------------------------------------------------------- bit for bit


@pytest.mark.slow
@pytest.mark.parametrize("isa", ("avx512", "avx2", "neon", "scalar"))
def test_drawn_programs_run_bit_for_bit(isa: str, drawn: Drawn, tmp_path: Path) -> None:
    """Compiled, on 1 and 2 threads, from memory full of NaN: what the oracle answers, to the last bit."""
    if isa not in host_isas():
        pytest.skip(f"this CPU has no {isa}")
    board, _ = resolve("host", isa=isa)
    sections, paths = compile_bundle(drawn.program, schedule_program(drawn.program, isa), {}, board, tmp_path)
    (tmp_path / "model.ewm").write_bytes(pack(sections, board, paths))
    wrong = []
    for threads in (1, 2):
        with Runtime(tmp_path, threads=threads) as runtime:
            for name, inputs in drawn.inputs.items():
                fill_with_nan(runtime, threads)
                found = runtime.run_entry(name, **inputs)
                lines = programs.differing(found, drawn.wanted[name])
                wrong += [f"{name}, {threads} threads, {line}" for line in lines]
    assert not wrong, "\n".join(wrong)


def fill_with_nan(runtime: Runtime, threads: int) -> None:
    """Every byte of arena and scratch, which end the memory given to the runtime, becomes 0xff: NaN, or -1."""

    def lines(size: int) -> int:
        return -(-size // LINE) * LINE

    memory = runtime._arena
    size = lines(runtime.info["arena_bytes"]) + threads * (lines(runtime.info["scratch_bytes"]) + LINE)
    memory[len(memory) - size :] = b"\xff" * size


def test_nan_reaches_the_memory_that_entries_use(drawn: Drawn, tmp_path: Path) -> None:
    """The fixture above is no empty gesture: what it overwrites is where ports lie."""
    source = programs.program_of({"f": Graph({"y": e.add(e.input("x", (5,)), 1.0)})})
    board, _ = resolve("host", isa="scalar")
    program = fused(source)
    schedule = schedule_program(program, "scalar")
    sections, paths = compile_bundle(program, schedule, {}, board, tmp_path)
    (tmp_path / "model.ewm").write_bytes(pack(sections, board, paths))
    with Runtime(tmp_path) as runtime:
        runtime.run_entry("f", x=np.arange(5, dtype=np.float32))
        assert runtime._arena.find(np.arange(1, 6, dtype=np.float32).tobytes()) > 0
        fill_with_nan(runtime, 1)
        assert runtime._arena.find(np.arange(1, 6, dtype=np.float32).tobytes()) < 0


# ---------------------------------------------------------------------------------------------- memory, simulated


def trace(steps: Sequence[Step]) -> Iterator[Region | Repeat]:
    """Steps as they run: a loop's own mark before each round, at most ROUNDS of them."""
    for step in steps:
        if isinstance(step, Region):
            yield step
            continue
        for _ in range(min(step.count, ROUNDS)):
            yield step
            yield from trace(step.body)


class Memory:
    """Who wrote each line of a space last."""

    def __init__(self, size: int, tile: int):
        self.owner = np.full(-(-size // LINE), -1, np.int64)
        self.tile = tile
        self.numbers: dict[Buffer, int] = {}

    def lines(self, buffer: Buffer) -> slice:
        return slice(buffer.offset_bytes // LINE, (buffer.offset_bytes + bytes_of(buffer, self.tile)) // LINE)

    def write(self, buffer: Buffer) -> None:
        self.owner[self.lines(buffer)] = self.numbers.setdefault(buffer, len(self.numbers))

    def holds(self, buffer: Buffer) -> bool:
        return buffer in self.numbers and bool(np.all(self.owner[self.lines(buffer)] == self.numbers[buffer]))


def lost_values(schedule: Schedule, entry: EntrySchedule) -> list[str]:
    """Reads of a buffer that another one has overwritten, or that nobody wrote, when the entry runs."""
    found: list[str] = []
    arena = Memory(schedule.arena_bytes, schedule.tile)
    for layout in entry.inputs.values():
        arena.write(layout.buffer)
    for step in trace(entry.steps):
        if isinstance(step, Repeat):
            arena.write(step.counter)
            continue
        scratch = Memory(schedule.scratch_bytes, schedule.tile)  # nothing survives a region
        spaces = {"arena": arena, "scratch": scratch}
        touched = [o.buffer for c in step.calls for o in c.operands() if o.buffer.space == "arena"]
        for call in step.calls:
            if call.workspace is not None:
                scratch.write(call.workspace)
            for operand in call.reads():
                buffer = operand.buffer
                if buffer.space != "weights" and not spaces[buffer.space].holds(buffer):
                    found.append(f"{call.family} reads {buffer.name}, gone from {buffer.space}")
            out = call.out.buffer
            if call.workspace is not None and not scratch.holds(call.workspace):
                found.append(f"{call.family}'s workspace is not its own")
            spaces[out.space].write(out)
            for other in touched:  # other threads may stand anywhere in this region
                mine, theirs = arena.lines(out), arena.lines(other)
                if out.space == "arena" and other is not out and mine.start < theirs.stop and theirs.start < mine.stop:
                    found.append(f"{call.family} writes {out.name} over {other.name} of the same region")
    found += [f"result {n} is gone" for n, layout in entry.outputs.items() if not arena.holds(layout.buffer)]
    return found


def addresses(operand: Operand, dims: Sequence[int], lanes: np.ndarray, tile: int) -> np.ndarray:
    """Elements of the buffer that `lanes` touch through an operand."""
    padded = -(-operand.buffer.lanes // tile) * tile if operand.buffer.lanes else 1

    def elements(stride: tuple[int, int]) -> int:
        return stride[0] * padded + stride[1]

    at = np.array([elements(operand.offset)])
    for d, stride in zip(dims, operand.strides, strict=False):
        at = (at[:, None] + np.arange(d) * elements(stride)).ravel()
    return np.unique((at[:, None] + lanes * elements(operand.lane_stride)).ravel())


def crossings(region: Region, tile: int) -> list[str]:
    """Pairs of calls in which one tile of lanes touches what another tile writes."""
    found = []
    tiles = [np.arange(t, min(t + tile, region.lanes)) for t in range(0, region.lanes, tile)]
    uses = [(c, o) for c in region.calls for o in c.operands()]
    for (a, wrote), (b, other) in itertools.product(uses, uses):
        if not wrote.is_output or other.buffer is not wrote.buffer or (wrote is other and len(tiles) == 1):
            continue
        for i, j in itertools.permutations(range(len(tiles)), 2):
            shared = np.intersect1d(addresses(wrote, a.dims, tiles[i], tile), addresses(other, b.dims, tiles[j], tile))
            if len(shared):
                found.append(f"{b.family} of tile {j} touches {wrote.buffer.name}, written by {a.family} of tile {i}")
                break
    return found


@pytest.mark.parametrize("isa", ("avx512", "scalar"))
def test_no_value_is_overwritten_while_it_is_needed(isa: str, drawn: Drawn) -> None:
    schedule = schedule_program(drawn.program, isa)
    assert [f"{name}: {line}" for name, s in schedule.entries.items() for line in lost_values(schedule, s)] == []


@pytest.mark.parametrize("isa", ("avx512", "scalar"))
def test_a_region_never_crosses_its_tiles(isa: str, drawn: Drawn) -> None:
    schedule = schedule_program(drawn.program, isa)
    found = [(name, r) for name, s in schedule.entries.items() for r in regions(s.steps)]
    assert [f"{name}: {line}" for name, r in found for line in crossings(r, schedule.tile)] == []


def test_scratch_holds_tiles_lane_for_lane(drawn: Drawn) -> None:
    schedule = schedule_program(drawn.program, "scalar")
    calls = [c for s in schedule.entries.values() for r in regions(s.steps) for c in r.calls]
    local = [(c, o) for c in calls for o in c.operands() if o.buffer.space == "scratch"]
    assert local and all(o.mode == "V" and o.buffer.lanes == c.lanes for c, o in local)


def test_every_buffer_lies_inside_its_space(drawn: Drawn) -> None:
    schedule = schedule_program(drawn.program, "avx2")
    sizes = {"arena": schedule.arena_bytes, "scratch": schedule.scratch_bytes}
    used = [c for s in schedule.entries.values() for r in regions(s.steps) for c in r.calls]
    buffers = {o.buffer for c in used for o in c.operands()} | {c.workspace for c in used if c.workspace}
    for buffer in buffers:
        if buffer.space == "weights":
            assert buffer.name in schedule.constants
        else:
            assert buffer.offset_bytes % LINE == 0
            assert 0 <= buffer.offset_bytes <= sizes[buffer.space] - bytes_of(buffer, schedule.tile)


def planted() -> tuple[Schedule, EntrySchedule]:
    """A program whose values cross lanes, so that several live in the arena at once."""
    x = e.input("x", (40, 3))
    total = e.reduce_sum(e.exp(x), 0)
    y = e.add(e.mul(x, total), e.reduce_sum(e.tanh(x), 0))
    schedule = schedule_program(fused(programs.program_of({"f": Graph({"y": y})})), "scalar")
    return schedule, schedule.entries["f"]


def test_the_checkers_see_a_planted_overlap() -> None:
    schedule, entry = planted()
    assert lost_values(schedule, entry) == []
    calls = [c for r in regions(entry.steps) for c in r.calls]
    values = [c.out.buffer for c in calls if c.family == "reduce"]
    assert len(values) == 2 and {b.space for b in values} == {"arena"}
    values[0].offset_bytes = values[1].offset_bytes
    assert any("gone from arena" in line or "of the same region" in line for line in lost_values(schedule, entry))


def test_the_checkers_see_a_lost_barrier() -> None:
    schedule, entry = planted()
    wide = [r for r in regions(entry.steps) if r.lanes == 40]
    narrow = [r for r in regions(entry.steps) if r.lanes != 40]
    assert wide and narrow and all(crossings(r, schedule.tile) == [] for r in wide + narrow)
    shift = e.input("x", (40,))
    body = Graph({"y": e.concat([e.narrow(e.tanh(shift), 0, 20, 40), e.narrow(e.tanh(shift), 0, 0, 20)], 0)})
    schedule = schedule_program(fused(programs.program_of({"f": body})), "scalar")
    found = regions(schedule.entries["f"].steps)
    assert len(found) > 1 and not any(crossings(r, schedule.tile) for r in found)
    merged = Region(40, schedule.tile, [replace(c, lanes=40) for r in found for c in r.calls])
    assert crossings(merged, schedule.tile)


# ---------------------------------------------------------------------------------------------- layouts


def elements(layout, padded: int) -> np.ndarray:
    """The place of every element of a layout."""
    at = np.array(layout.offset[0] * padded + layout.offset[1])
    for d, (p, c) in zip(layout.shape, layout.strides, strict=True):
        at = at[..., None] + np.arange(d) * (p * padded + c)
    return at


def test_views_of_layouts_are_views_of_arrays() -> None:
    """permute, slice, expand and reshape of a layout address what numpy's view would."""
    for shape, lane in (((2, 3, 5), 0), ((2, 3, 5), 2), ((1, 4, 6), 1), ((6,), 0)):
        buffer = Buffer("b", "f32", int(np.prod(shape)) // shape[lane], shape[lane])
        for layout in (in_lanes(buffer, shape, lane), dense(Buffer("d", "f32", int(np.prod(shape))), shape)):
            padded = 16 if layout.buffer.lanes else 1
            places = elements(layout, padded)
            assert len(np.unique(places)) == places.size
            x = e.input("x", shape)
            rank = len(shape)
            views = [
                make("permute", x, axes=tuple(reversed(range(rank)))),
                make("slice", x, axis=rank - 1, start=1, stop=shape[-1] - 1),
                make("expand", x, shape=(3, *shape)),
                make("reshape", x, shape=(int(np.prod(shape)),)),
                make("reshape", x, shape=(1, *shape, 1)),
            ]
            for node in views:
                made = view(layout, node)
                if made is None:
                    assert node.op == "reshape"
                    continue
                assert made.shape == node.shape
                value = interp.run(Graph({"y": node}), {"x": places.astype(np.float32)}, {})["y"]
                np.testing.assert_array_equal(elements(made, padded), value)


def test_a_reshape_that_no_strides_express_is_refused_or_copied() -> None:
    layout = in_lanes(Buffer("b", "f32", 3, 5), (5, 3), 0)
    assert reshape(layout, (15,)) is None
    assert broadcast(layout, (2, 5, 3)).strides[0] == (0, 0)
    program = fused(programs.program_of({"f": Graph({"y": e.reshape(e.tanh(e.input("x", (5, 3))), (15,))})}))
    calls = [c for r in regions(schedule_program(program, "scalar").entries["f"].steps) for c in r.calls]
    assert "copy" in {c.family for c in calls}


def test_a_call_of_too_many_loops_is_refused() -> None:
    shape = (2, 3, 2, 3, 2, 3, 2, 3)
    x = e.input("x", shape)
    y = e.add(e.permute(e.tanh(x), tuple(reversed(range(8)))), e.input("b", (3, 1, 3, 1, 3, 1, 3, 1)))
    with pytest.raises(EdgewmError, match=r"a \w+ call needs \d loops, more than 6"):
        schedule_program(fused(programs.program_of({"f": Graph({"y": y})})), "scalar")


# ---------------------------------------------------------------------------------------------- found by drawing

SMALL = {
    "a scalar result": lambda x, w: e.reshape(e.reduce_max(x, 0), ()),
    "a folded scalar": lambda x, w: e.add(e.tanh(e.reshape(w(1), ())), x),
    "parts of a vector": lambda x, w: e.concat([x, e.narrow(x, 0, 1, 3), w(5)], 0),
    "a weight handed out": lambda x, w: e.narrow(w(5), 0, 1, 4),
    "a batch of weights longer than its rows": lambda x, w: e.matmul(e.reshape(x, (1, 1, 5)), w(33, 5, 2)),
    "a loop that hands on what it got": lambda x, w: e.repeat(2, Graph({"a": e.input("a", (5,))}), {"a": x})["a"],
    "a loop that counts": lambda x, w: e.repeat(
        3, Graph({"a": e.input("a", (5,)), "n": e.input("counter", (), "u32")}), {"a": x}
    )["n"],
    "what a carry was in the last round": lambda x, w: e.repeat(
        3, Graph({"a": e.add(e.input("a", (5,)), 1.0), "seen": e.input("a", (5,))}), {"a": x}
    )["seen"],
    "a carry that is turned round": lambda x, w: e.repeat(
        3, Graph({"a": e.permute(e.input("a", (5, 5)), (1, 0))}), {"a": e.add(x, w(5, 5))}
    )["a"],
    "a sum of many": lambda x, w: functools.reduce(
        e.add, [e.mul(x, e.narrow(w(40, 5), 0, i, i + 1)) for i in range(40)]
    ),
    "an activation that reads its product twice": lambda x, w: e.gelu(e.matmul(e.reshape(x, (1, 5)), w(5, 17))),
    "an attention of an attention": lambda x, w: nested_attention(e.reshape(x, (5, 1)), w),
}  # fmt: skip


def nested_attention(x: Node, w) -> Node:
    """The scores of the second are what the first answers."""
    first = e.matmul(e.softmax(e.matmul(x, e.permute(x, (1, 0))), -1), w(5, 5))
    return e.matmul(e.softmax(first, -1), x)


def test_shapes_that_once_went_wrong(tmp_path: Path) -> None:
    """Each was refused, miscompiled or answered otherwise when programs were first drawn."""

    def weight(*shape: int) -> Node:
        return e.weight("w" + "x".join(map(str, shape)), shape)

    x = e.input("x", (5,))
    entries = {f"s{i}": Graph({"y": build(x, weight)}) for i, build in enumerate(SMALL.values())}
    source = programs.program_of(entries)
    board, _ = resolve("host", isa="scalar")
    program = fused(source)
    sections, paths = compile_bundle(program, schedule_program(program, "scalar"), {}, board, tmp_path)
    (tmp_path / "model.ewm").write_bytes(pack(sections, board, paths))
    with Runtime(tmp_path) as runtime:
        for name, case in zip(entries, SMALL, strict=True):
            inputs = programs.inputs_of(entries[name])
            wanted = interp.run(entries[name], inputs, source.weights)
            assert programs.differing(runtime.run_entry(name, **inputs), wanted) == [], case


def test_loops_nest_in_the_drawn_programs(drawn: Drawn) -> None:
    """The drawn programs are no trivial ones: every op and family of kernels occurs."""
    nodes = [n for graph in drawn.program.entries.values() for g in walk_graphs(graph) for n in g.order()]
    families = {n["family"] for n in nodes if n.op == "kernel"}
    assert families == {"map", "reduce", "product", "product_i8", "attention"}
    assert {"topk", "take", "concat", "repeat"} <= {n.op for n in nodes}
    bodies = [n["body"] for n in nodes if n.op == "repeat"]
    assert any(inner.op == "repeat" for body in bodies for inner in body.order())


def test_a_weight_that_several_entries_read_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    w, rows = e.weight("w", (4, 8)), {"few": 3, "many": 40}
    entries = {name: Graph({"y": e.matmul(e.input("x", (n, 4)), w)}) for name, n in rows.items()}
    board, _ = resolve("host", None, None)
    program = run(Program(entries, {"w": np.ones((4, 8), np.float32)}, recipe={}, target=board))
    packed, product = [], load("product")
    whole = product.pack_f32
    monkeypatch.setattr(product, "pack_f32", lambda *given: packed.append(given) or whole(*given))
    schedule = schedule_program(program, "scalar")
    assert len(packed) == 1 and schedule.entries.keys() == rows.keys()

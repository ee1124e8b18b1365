"""Fused graphs to calls: a layout for every value, strided operands for every kernel.

Every value gets a lane axis: the one that wastes least padding among those its kernel allows, where reading operands
across their own lanes counts as waste too. Views cost nothing; a reshape that no strides express becomes a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .errors import EdgewmError
from .families import FAMILIES
from .format import MAX_OPERANDS, MAX_RANK
from .join import Ties
from .kernel import load
from .layout import LANE, ZERO, Buffer, Layout, broadcast, dense, dtype_of, in_lanes, reshape, view
from .ops import TABLE, make
from .program import Graph, Node
from .schedule import SERIAL, Call, EntrySchedule, Operand, Repeat, group, merge_loops

LANES: int = load("product").LANES


class Lowering:
    """Lowers the graphs of one program; `pack(family, array, attrs)` lays constant operands out for the target."""

    def __init__(self, weights: Mapping[str, np.ndarray], tile: int, pack, workspace_bytes, group=group, joins=False):
        self.weights, self.tile, self.pack, self.workspace_bytes = weights, tile, pack, workspace_bytes
        self.group = group  # of a flow of calls, to steps
        self.joins = joins  # values that are concatenated lie side by side, where they can
        self.ties = Ties()
        self.constants: dict[str, np.ndarray] = {}
        self.buffers: dict[str, Buffer] = {}
        self.ports: dict[tuple, Buffer] = {}
        self.count = 0

    def entry(self, graph: Graph, anytime: bool) -> EntrySchedule:
        """Dense ports in, dense ports out."""
        env: dict[Node, Layout] = {}
        inputs, self.ties = {}, Ties()
        for name, leaf in graph.inputs().items():
            inputs[name] = env[leaf] = self.port(name, leaf, False)
        flow: list = []
        self.lower(graph, env, flow, anytime)
        outputs = {}
        for name, node in graph.outputs.items():
            outputs[name] = self.port(name, node, True)
            self.copy(env[node], outputs[name], flow)
        self.ties.resolve(flow, self.buffers)
        return EntrySchedule(self.group(flow, self.tile), inputs, outputs)

    def port(self, name: str, node: Node, is_result: bool) -> Layout:
        """A dense buffer; entries that name the same thing of one shape share it."""
        key = (name, node.shape, node.dtype, is_result)
        if key not in self.ports:
            self.ports[key] = self.buffer(node.dtype, node.size, 0, pinned=True)
        return dense(self.ports[key], node.shape)

    # ------------------------------------------------------------------ lowering

    def lower(self, graph: Graph, env: dict[Node, Layout], flow: list, anytime: bool = False) -> None:
        hints = _layout_hints(graph)
        for node in graph.order():
            kind = TABLE[node.op].kind
            if node in env:
                continue
            if node.op == "weight":
                env[node] = self.constant(self.weights[node["name"]], node["name"])
            elif node.op == "const":
                value = np.full(
                    (1,),
                    float.fromhex(node["value"]) if node.dtype == "f32" else int(node["value"], 16),
                    _numpy(node.dtype),
                )
                env[node] = reshape(self.constant(value, f"const/{node.dtype}/{node['value']}"), ())
            elif kind == "view":
                made = view(env[node.sources[0]], node)
                env[node] = made if made is not None else self.copied(env[node.sources[0]], node, flow)
            elif node.op == "kernel":
                env[node] = FAMILIES[node["family"]](self, node, env, flow, hints.get(node))
            elif node.op in SERIAL:
                env[node] = self.serial(node, env, flow)
            elif node.op == "concat":
                env[node] = self.concat(node, env, flow)
            elif node.op == "repeat":
                self.repeat(node, env, flow, anytime)
            elif node.op == "get":
                pass  # filled by repeat
            else:
                raise EdgewmError(
                    f"{node!r} was not fused into a kernel", "schedule", "this is a fault of edgewm; report it"
                )

    def value(
        self, node_shape: tuple[int, ...], dtype: str, lane_axis: int, outer=None, pinned: bool = False
    ) -> Layout:
        shape = node_shape or (1,)
        rest = int(np.prod([d for a, d in enumerate(shape) if a != lane_axis], dtype=np.int64))
        return in_lanes(self.buffer(dtype, rest, shape[lane_axis], pinned=pinned), shape, lane_axis, outer)

    def buffer(self, dtype: str, elements: int, lanes: int, **rest) -> Buffer:
        self.count += 1
        name = f"b{self.count}"
        self.buffers[name] = Buffer(name, dtype, elements, lanes, **rest)
        return self.buffers[name]

    def constant(self, array: np.ndarray, name: str) -> Layout:
        """A dense constant; the same name is stored once."""
        if name not in self.constants:
            self.constants[name] = np.ascontiguousarray(array)
            self.buffers[name] = Buffer(name, dtype_of(array), array.size, 0, space="weights", pinned=True)
        return dense(self.buffers[name], array.shape)

    def lane_axis(
        self,
        shape: tuple[int, ...],
        allowed: list[int],
        operands: list[Layout],
        narrows: bool = False,
        beside: Callable[[int], float] = lambda axis: 0.0,
    ) -> int:
        """The axis with the least padded work, where work on operands that lie across it counts double.

        `narrows`: the kernel runs a tile of at most LANES as one vector. `beside` is what an axis costs elsewhere, in
        results that could be computed meanwhile.
        """
        operands = [o for o in operands if len(o.shape) == len(shape) and o.buffer.lanes]
        whole = sum(map(_size, operands))

        def cost(axis: int) -> tuple:
            work = self.padded(shape[axis], narrows) * (int(np.prod(shape, dtype=np.int64)) // max(shape[axis], 1))
            across = sum(_size(o) for o in operands if o.strides[axis] != LANE)
            return (work * (1 + across / whole if whole else 1) + beside(axis), -shape[axis], axis)

        return min(allowed, key=cost)

    def padded(self, lanes: int, narrows: bool) -> int:
        """The lanes that a kernel computes for so many real ones."""
        whole, rest = divmod(lanes, self.tile)
        last = LANES if narrows and rest <= LANES else self.tile
        return whole * self.tile + (last if rest else 0)

    def bind(
        self,
        node: Node,
        part: str,
        env,
        shape: tuple[int, ...],
        lane: int,
        loops: list[int],
        graph_key: str | None = None,
    ):
        """Operands for the parameters a part reads, broadcast to `shape`; `loops` are the axes of the call's loops."""
        params = {f"p{i}": s for i, s in enumerate(node.sources)}
        graph: Graph = node[part]
        bound = []
        for name in sorted(n["name"] for n in graph.order() if n.op == "input" and n["name"] in params):
            bound.append((name, self.operand(self.layout(params[name], env, shape, lane), shape, lane, loops)))
        return bound

    def layout(self, source: Node, env, shape: tuple[int, ...], lane: int) -> Layout:
        """A source's layout broadcast to the call's index space; constants varying along lanes are laid in lanes."""
        here = broadcast(env[source], shape)
        if here.buffer.space == "weights" and lane >= 0 and here.strides[lane] != ZERO and not here.buffer.lanes:
            return self.constant_in_lanes(here, lane)
        return here

    def constant_in_lanes(self, here: Layout, lane: int) -> Layout:
        strides = [c for _, c in here.strides]
        array = self.array(here)
        keep = tuple(slice(None) if s else slice(0, 1) for s in strides)
        small = np.moveaxis(array[keep], lane, -1)
        padded = -(-small.shape[-1] // self.tile) * self.tile
        full = np.zeros((*small.shape[:-1], padded), small.dtype)
        full[..., : small.shape[-1]] = small
        name = (
            f"{here.buffer.name}@{here.offset[1]}:{','.join(map(str, here.shape))}:{','.join(map(str, strides))}:{lane}"
        )
        if name not in self.constants:
            self.constants[name] = np.ascontiguousarray(full)
            elements = int(np.prod(small.shape[:-1], dtype=np.int64))
            self.buffers[name] = Buffer(name, dtype_of(full), elements, here.shape[lane], space="weights", pinned=True)
        shape = tuple(1 if not s else d for s, d in zip(strides, here.shape, strict=True))
        return broadcast(in_lanes(self.buffers[name], shape, lane), here.shape)

    def constant_view(self, source: Layout, shape: tuple[int, ...]) -> Layout:
        """A constant's reshape as a constant of its own, without the axes along which it is all the same."""
        array = self.array(source).reshape(shape)
        for axis in range(len(shape)):
            first = array.take([0], axis)
            array = first if np.array_equal(np.broadcast_to(first, array.shape), array) else array
        name = f"{source.buffer.name}@{source.offset[1]}:{source.shape}:{source.strides}:{shape}"
        return broadcast(self.constant(array, name), shape)

    def array(self, here: Layout) -> np.ndarray:
        """The values of a dense constant's view."""
        base = self.constants[here.buffer.name].reshape(-1)
        strides = [c * base.itemsize for _, c in here.strides]
        return np.lib.stride_tricks.as_strided(base[here.offset[1] :], here.shape, strides)

    def operand(self, here: Layout, shape, lane: int, loops: list[int], is_output: bool = False) -> Operand:
        strides = [here.strides[a] if a >= 0 and shape[a] != 1 else ZERO for a in loops]
        across = here.strides[lane] if lane >= 0 else ZERO
        if is_output and across == ZERO:  # one lane: any stride will do, but a result is stored lane by lane
            across = LANE
        return Operand(here.buffer, here.offset, across, strides, is_output)

    def push(self, flow: list, call: Call) -> None:
        merge_loops(call)
        if len(call.dims) > MAX_RANK:
            raise EdgewmError(
                f"a {call.family} call needs {len(call.dims)} loops, more than {MAX_RANK}", "schedule",
                "reshape the value to fewer dimensions in the model",
            )
        if len(call.operands()) + 1 > MAX_OPERANDS:  # and a workspace
            raise EdgewmError(
                f"a {call.family} call needs {len(call.operands())} operands, more than {MAX_OPERANDS - 1}", "schedule",
                "join some of the values it reads in the model",
            )
        flow.append(call)

    def is_readable(self, layout: Layout, shape: tuple[int, ...], lane: int) -> bool:
        """Whether attention can read keys or values as they lie: lanes as neighbours, or the same for all."""
        here = broadcast(layout, shape)
        if lane < 0 or here.strides[lane] == ZERO:
            return True
        return self.operand(here, shape, lane, [a for a in range(len(shape)) if a != lane]).mode == "V"

    def readable(self, layout: Layout, shape: tuple[int, ...], lane: int, flow: list) -> Layout:
        """Keys or values as attention reads them, a copy where they do not lie so."""
        here = broadcast(layout, shape)
        if self.is_readable(layout, shape, lane):
            return here
        copy = self.value(shape, layout.buffer.dtype, lane)
        self.copy(here, copy, flow)
        return copy

    # ------------------------------------------------------------------ copies and control

    def copy(self, source: Layout, target: Layout, flow: list) -> None:
        """target[...] = source[...] for layouts of one shape."""
        shape = target.shape or (1,)
        if not target.shape:
            source, target = reshape(source, (1,)), reshape(target, (1,))
        own = [
            a
            for a in range(len(shape))
            if target.strides[a] == LANE and target.buffer.lanes == shape[a] and target.offset[1] == 0
        ]
        neighbours = [a for a in range(len(shape)) if source.strides[a] == LANE and source.buffer.lanes]
        lane = (own or neighbours or [max(range(len(shape)), key=lambda a: shape[a])])[0]
        if source.buffer.space == "weights" and source.strides[lane] != ZERO and not source.buffer.lanes:
            source = self.constant_in_lanes(source, lane)
        loops = [a for a in range(len(shape)) if a != lane] or [-1]
        dims = [shape[a] if a >= 0 else 1 for a in loops]
        call = Call("copy", None, dims, shape[lane], {"epilogue": [("p0", self.operand(source, shape, lane, loops))]},
                    self.operand(target, shape, lane, loops, True))
        self.push(flow, call)

    def copied(self, source: Layout, node: Node, flow: list) -> Layout:
        """A reshape that no strides express: a new value, written through the inverse reshape; or another constant."""
        shape = node.shape
        if source.buffer.space == "weights" and not source.buffer.lanes:
            return self.constant_view(source, shape)
        for lane in sorted(
            range(len(shape)), key=lambda a: (-(-shape[a] // self.tile) * self.tile / shape[a], -shape[a])
        ):
            out = self.value(shape, node.dtype, lane)
            back = reshape(out, source.shape)
            if back is not None:
                self.copy(source, back, flow)
                return out
        raise EdgewmError(f"{node!r} cannot be laid out", "schedule", "this is a fault of edgewm; report it")

    def concat(self, node: Node, env, flow: list) -> Layout:
        shape, axis = node.shape, node["axis"]
        sources = [env[s] for s in node.sources]
        if self.joins and (joined := self.ties.joined(sources, axis)) is not None:
            return joined
        allowed = [a for a in range(len(shape)) if a != axis]
        if not allowed:  # a vector: dense, written through masked stores
            out = dense(self.buffer(node.dtype, node.size, 0), shape)
        else:
            out = self.value(
                shape, node.dtype, self.lane_axis(shape, allowed, [s for s in sources if len(s.shape) == len(shape)])
            )
        start = 0
        for s in sources:
            step = out.strides[axis]
            offset = (out.offset[0] + step[0] * start, out.offset[1] + step[1] * start)
            self.copy(s, Layout(out.buffer, s.shape, out.strides, offset), flow)
            start += s.shape[axis]
        return out

    def serial(self, node: Node, env, flow: list) -> Layout:
        """topk and take: one thread, any strides."""
        if node.op == "topk":
            out = dense(self.buffer("i32", node.size, 0), node.shape)
            cost = env[node.sources[0]]
            groups = {"epilogue": [("cost", Operand(cost.buffer, cost.offset, ZERO, [cost.strides[0], ZERO]))]}
            call = Call(
                "topk",
                node,
                [cost.shape[0], node["k"]],
                1,
                groups,
                Operand(out.buffer, ZERO, ZERO, [ZERO, (0, 1)], True),
            )
        else:
            source, index = env[node.sources[0]], env[node.sources[1]]
            out = dense(self.buffer(node.dtype, node.size, 0), node.shape)
            rest = len(node.shape) - 1
            groups = {"epilogue": [
                ("source", Operand(source.buffer, source.offset, ZERO, list(source.strides))),
                ("index", Operand(index.buffer, index.offset, ZERO, [index.strides[0], *[ZERO] * rest])),
            ]}
            call = Call(
                "take", node, list(node.shape), 1, groups, Operand(out.buffer, ZERO, ZERO, list(out.strides), True)
            )
        flow.append(call)
        return out

    def repeat(self, node: Node, env, flow: list, anytime: bool) -> None:
        body: Graph = node["body"]
        inner: dict[Node, Layout] = {}
        leaves = body.inputs()
        carried: dict[str, Layout] = {}
        for name, source in zip(node["carries"], node.sources, strict=False):
            shape = source.shape or (1,)
            lane = self.lane_axis(shape, list(range(len(shape))), [])
            home = self.value(shape, source.dtype, lane, pinned=True)
            carried[name] = home if source.shape else reshape(home, ())
            self.copy(env[source], carried[name], flow)
            if name in leaves:
                inner[leaves[name]] = carried[name]
        for name, source in zip(node["invariants"], node.sources[len(node["carries"]) :], strict=True):
            if name in leaves:
                inner[leaves[name]] = env[source]
        counter = self.buffer("u32", 1, 0, pinned=True)
        if "counter" in leaves:
            inner[leaves["counter"]] = dense(counter, ())
        inside: list = []
        self.lower(body, inner, inside)
        homes = {layout.buffer for layout in carried.values()}
        staged = {}
        for name, out in body.outputs.items():  # what is (a view of) a carry is read before any carry is written
            staged[name] = inner[out]
            if inner[out].buffer in homes and inner[out] != carried.get(name):
                shape = out.shape or (1,)
                stage = self.value(shape, out.dtype, self.lane_axis(shape, list(range(len(shape))), []))
                staged[name] = stage if out.shape else reshape(stage, ())
                self.copy(inner[out], staged[name], inside)
        for name, home in carried.items():
            if staged[name] != home:
                self.copy(staged[name], home, inside)
        if not inside and "counter" in leaves:  # a loop needs a call: this one only counts
            self.copy(inner[leaves["counter"]], reshape(self.value((1,), "u32", 0), ()), inside)
        if inside:
            flow.append(Repeat(node["count"], counter, inside, anytime))
        for name in body.outputs:
            env[make("get", node, name=name)] = carried.get(name) or staged[name]


def _layout_hints(graph: Graph) -> dict[Node, tuple[int, ...]]:
    """For a kernel read only through one permute: the permuted order of its axes, so that later reshapes are views."""
    readers: dict[Node, list[Node]] = {}
    for node in graph.order():
        for source in node.sources:
            readers.setdefault(source, []).append(node)
    outputs = set(graph.outputs.values())
    return {
        node: found[0]["axes"]
        for node, found in readers.items()
        if node.op == "kernel" and len(set(found)) == 1 and found[0].op == "permute" and node not in outputs
    }


def _size(layout: Layout) -> int:
    return int(np.prod([d for d, s in zip(layout.shape, layout.strides, strict=True) if s != ZERO], dtype=np.int64))


def _numpy(dtype: str):
    return {"f32": np.float32, "i32": np.int32, "u32": np.uint32}[dtype]

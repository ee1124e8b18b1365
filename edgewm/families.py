"""How each kernel family is called: which axes its loops walk, how its operands lie, what workspace it needs.

A function a family: `(low, node, env, flow, order_hint)` appends the call to `flow` and returns the layout of its
result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .layout import LANE, ZERO, Buffer, Layout, Stride, broadcast, dtype_of, reshape
from .ops import TABLE
from .program import Node
from .schedule import Call, Operand

if TYPE_CHECKING:
    from .lower import Lowering

COPY_COST = 64  # of a number across lanes, in multiply-adds of one lane: four cycles, of sixteen lanes each


def call_map(low: Lowering, node: Node, env, flow, order_hint) -> Layout:
    shape = node.shape or (1,)
    lane = low.lane_axis(shape, list(range(len(shape))), operand_layouts(node, env, shape))
    out = low.value(shape, node.dtype, lane, _outer(order_hint, shape, lane))
    loops = [a for a in range(len(shape)) if a != lane] or [-1]
    inputs = low.bind(node, "epilogue", env, shape, lane, loops)
    dims = [shape[a] if a >= 0 else 1 for a in loops]
    result = low.operand(out, shape, lane, loops, True)
    low.push(flow, Call("map", node, dims, shape[lane], {"epilogue": inputs}, result))
    return out if node.shape else reshape(out, ())


def operand_layouts(node: Node, env, shape) -> list[Layout]:
    return [broadcast(env[s], shape) for s in node.sources if _broadcasts(env[s].shape, shape)]


def call_reduce(low: Lowering, node: Node, env, flow, order_hint) -> Layout:
    out_shape = node.shape
    if node["combine"] == "fma":
        return call_fold_product(low, node, env, flow, order_hint)
    axis = node["axis"]
    (x,) = node["left"].outputs.values()
    full = x.shape
    lane = low.lane_axis(
        out_shape, [a for a in range(len(full)) if a != axis] or [axis], operand_layouts(node, env, full)
    )
    if len(full) == 1:  # a whole vector: the one lane is a new axis
        return call_reduce_vector(low, node, env, flow, full)
    out = low.value(out_shape, node.dtype, lane, _outer(order_hint, out_shape, lane))
    loops = [a for a in range(len(full)) if a not in (lane, axis)] + [axis]
    groups = {
        "left": low.bind(node, "left", env, full, lane, loops),
        "epilogue": low.bind(node, "epilogue", env, out_shape, lane, loops),
    }
    call = Call(
        "reduce",
        node,
        [full[a] for a in loops],
        out_shape[lane],
        groups,
        low.operand(out, out_shape, lane, loops, True),
    )
    low.push(flow, call)
    return out


def call_reduce_vector(low: Lowering, node: Node, env, flow, full) -> Layout:
    out = low.value((1,), node.dtype, 0)
    groups = {}
    for part, length in (("left", full[0]), ("epilogue", 1)):
        params = {f"p{i}": s for i, s in enumerate(node.sources)}
        names = sorted(n["name"] for n in node[part].order() if n.op == "input" and n["name"] in params)
        groups[part] = []
        for name in names:
            here = broadcast(env[params[name]], (length,))
            stride = here.strides[0] if length > 1 else ZERO
            groups[part].append((name, Operand(here.buffer, here.offset, ZERO, [stride])))
    low.push(flow, Call("reduce", node, [full[0]], 1, groups, Operand(out.buffer, ZERO, LANE, [ZERO], True)))
    return out


def call_fold_product(low: Lowering, node: Node, env, flow, order_hint) -> Layout:
    """A product of two activations, one chain for each output: index space (..., m, n, k)."""
    (left,), (right,) = node["left"].outputs.values(), node["right"].outputs.values()
    shape = node.shape
    k = left.shape[-1]
    lane = low.lane_axis(shape, list(range(len(shape))), [])
    out = low.value(shape, node.dtype, lane, _outer(order_hint, shape, lane))
    rank = len(shape)
    space = (*shape, k)
    loops = [a for a in range(rank) if a != lane] + [rank]
    params = {f"p{i}": s for i, s in enumerate(node.sources)}
    groups: dict[str, list] = {}
    for part, value in (("left", left), ("right", right)):
        groups[part] = []
        for name in sorted(n["name"] for n in node[part].order() if n.op == "input" and n["name"] in params):
            here = broadcast(env[params[name]], value.shape)
            lead = broadcast(here, (*shape[: rank - 2], *value.shape[-2:]))
            s = lead.strides
            whole = (*s[:-1], ZERO, s[-1]) if part == "left" else (*s[:-2], ZERO, s[-1], s[-2])
            groups[part].append((name, low.operand(Layout(lead.buffer, space, whole, lead.offset), space, lane, loops)))
    groups["epilogue"] = low.bind(node, "epilogue", env, shape, lane, [*loops[:-1], -1])
    out_operand = low.operand(out, shape, lane, [*loops[:-1], -1], True)
    low.push(flow, Call("reduce", node, [space[a] for a in loops], shape[lane], groups, out_operand))
    return out


def call_product(low: Lowering, node: Node, env, flow, order_hint) -> Layout:
    (x,) = node["left"].outputs.values()
    shape, rank = node.shape, len(node.shape)
    k = x.shape[-1]
    batch = node.sources[int(node["packed"][0][1:])].shape[:-2]  # weights are the same for all lanes
    batch = (1,) * (rank - 2 - len(batch)) + batch + (1,)
    allowed = [a for a in range(rank - 1) if batch[a] == 1]
    lane = low.lane_axis(shape, allowed, operand_layouts(node, env, (*shape[:-1], k)), True)
    out = low.value(shape, node.dtype, lane, _outer(order_hint, shape, lane))
    outer = [a for a in range(rank - 1) if a != lane]
    x_space = (*shape[:-1], k)
    dims = [shape[a] for a in outer] + [shape[-1], k]
    groups = {
        "left": low.bind(node, "left", env, x_space, lane, [*outer, -1, rank - 1]),
        "packed": packed(low, node, shape, outer, k, lane),
        "epilogue": low.bind(node, "epilogue", env, shape, lane, [*outer, rank - 1, -1]),
    }
    call = Call(
        node["family"], node, dims, shape[lane], groups, low.operand(out, shape, lane, [*outer, rank - 1, -1], True)
    )
    call.flops = 2 * int(np.prod(shape, dtype=np.int64)) * k
    low.push(flow, call)
    shared = tuple(d for d, s in zip(call.dims[:-2], groups["packed"][0][1].strides, strict=False) if s == ZERO)
    size = low.workspace_bytes(call, outer=shared, k=k)
    call.workspace = low.buffer("u8", size, 0) if size else None
    return out


def packed(low: Lowering, node: Node, shape, outer: list[int], k: int, lane: int) -> list[tuple[str, Operand]]:
    """The weights packed for the target's microkernel (and int8 scales), one block for each batch index."""
    found = []
    for i, name in enumerate(node["packed"]):
        source = node.sources[int(name[1:])]
        array = _constant_value(source, low.weights)
        lead = array.shape[:-2]
        aligned = (1,) * (len(shape) - 2 - len(lead)) + lead  # to the result's batch axes
        blocks = array.reshape(-1, *array.shape[-2:])
        key = f"{_source_name(source)}/packed{i}"
        if key not in low.constants:
            data = np.concatenate([low.pack(node["family"], i, b).reshape(-1) for b in blocks])
            low.constants[key] = data
            low.buffers[key] = Buffer(key, dtype_of(data), data.size, 0, space="weights", pinned=True)
        step = low.constants[key].size // len(blocks)
        strides: list[Stride] = []
        for a in outer:
            batch = a < len(aligned) and aligned[a] != 1
            strides.append((0, step * int(np.prod(aligned[a + 1 :], dtype=np.int64))) if batch else ZERO)
        inner = [ZERO, ZERO] if i == 0 else [(0, 1), ZERO]
        found.append((name, Operand(low.buffers[key], ZERO, ZERO, strides + inner)))
    return found


def call_attention(low: Lowering, node: Node, env, flow, order_hint) -> Layout:
    (q,) = node["left"].outputs.values()
    k_source, v_source = (node.sources[int(n[1:])] for n in node["packed"])
    shape, rank = node.shape, len(node.shape)
    i_axis, j, d = rank - 2, v_source.shape[-2], q.shape[-1]
    lead = shape[: rank - 2]
    of_keys, of_values = (*lead, d, j), (*lead, j, shape[-1])  # keys are transposed

    def copies(axis: int) -> float:
        key_lane = axis if axis != i_axis else -1
        moved = sum(
            int(np.prod(of, dtype=np.int64))
            for source, of in ((k_source, of_keys), (v_source, of_values))
            if not low.is_readable(env[source], of, key_lane)
        )
        return moved * COPY_COST * shape[-1] / (j * (d + shape[-1]))

    lane = low.lane_axis(shape, list(range(rank - 1)), operand_layouts(node, env, (*shape[:-1], d)), True, copies)
    out = low.value(shape, node.dtype, lane, _outer(order_hint, shape, lane))
    outer = [a for a in range(rank - 2) if a != lane]
    query = -1 if lane == i_axis else i_axis
    dims = [shape[a] for a in outer] + [1 if query < 0 else shape[query], j, d, shape[-1]]
    q_space = (*lead, shape[i_axis], d)
    groups = {"left": low.bind(node, "left", env, q_space, lane, [*outer, query, -1, rank - 1, -1])}
    key_lane = lane if lane != i_axis else -1
    keys = low.readable(env[k_source], of_keys, key_lane, flow)
    values = low.readable(env[v_source], of_values, key_lane, flow)
    groups["packed"] = [
        ("k", low.operand(keys, of_keys, key_lane, [*outer, -1, rank - 1, rank - 2, -1])),
        ("v", low.operand(values, of_values, key_lane, [*outer, -1, rank - 2, -1, rank - 1])),
    ]
    s_space = (*lead, shape[i_axis], j)
    groups["score"] = low.bind(node, "score", env, s_space, lane, [*outer, query, rank - 1, -1, -1])
    groups["epilogue"] = low.bind(node, "epilogue", env, shape, lane, [*outer, query, -1, -1, rank - 1])
    out_operand = low.operand(out, shape, lane, [*outer, query, -1, -1, rank - 1], True)
    call = Call("attention", node, dims, shape[lane], groups, out_operand)
    call.flops = 4 * int(np.prod(s_space, dtype=np.int64)) * d
    low.push(flow, call)
    size = low.workspace_bytes(call, keys=j, depth=d)
    call.workspace = low.buffer("u8", size, 0)
    return out


def _outer(hint: tuple[int, ...] | None, shape, lane: int) -> tuple[int, ...] | None:
    return None if hint is None or len(hint) != len(shape) else tuple(a for a in hint if a != lane)


def _broadcasts(shape, to) -> bool:
    lead = len(to) - len(shape)
    return lead >= 0 and all(d in (1, t) for d, t in zip(shape, to[lead:], strict=True))


def _constant_value(node: Node, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    if node.op == "weight":
        return weights[node["name"]]
    return TABLE[node.op].meaning(dict(node.attrs), _constant_value(node.sources[0], weights))


def _source_name(node: Node) -> str:
    return node["name"] if node.op == "weight" else f"{node.op}{dict(node.attrs)}({_source_name(node.sources[0])})"


FAMILIES = {
    "map": call_map,
    "reduce": call_reduce,
    "product": call_product,
    "product_bf16": call_product,
    "product_fp16": call_product,
    "product_i8": call_product,
    "product_rounded": call_product,
    "attention": call_attention,
}

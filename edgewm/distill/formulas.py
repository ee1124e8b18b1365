"""Values of a graph in torch, on the device of its inputs: the formulas of the op table, not the order of its sums.

As `quantize/fast.py` has them in numpy, for the ops that rounded products are made of. In int8 they are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..expr import input as leaf
from ..ops import TABLE, const_value
from ..program import Graph, Node
from ..quantize.fast import EXACT_IN_F32

DTYPE = {
    "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i32": torch.int32, "i8": torch.int8,
    "u32": torch.int64,  # torch has no order of unsigned ones
}  # fmt: skip
BITS = 2**32 - 1
FORMULAS: Mapping[str, Callable[..., Tensor]] = {
    "const": lambda a: torch.tensor(const_value(a), dtype=DTYPE[a["dtype"]]),  # a number of the host meets any device
    "neg": lambda a, x: -x, "abs": lambda a, x: x.abs(), "rint": lambda a, x: x.round(),
    "add": lambda a, x, y: x + y, "sub": lambda a, x, y: x - y, "mul": lambda a, x, y: x * y,
    "div": lambda a, x, y: x / y, "fma": lambda a, x, y, z: x * y + z,
    "max": lambda a, x, y: torch.where(x > y, x, y), "min": lambda a, x, y: torch.where(x < y, x, y),
    "lt": lambda a, x, y: x < y, "where": lambda a, x, y, z: torch.where(x, y, z),
    "and": lambda a, x, y: x & y, "or": lambda a, x, y: x | y,
    "cast": lambda a, x: x.to(DTYPE[a["dtype"]]), "bitcast": lambda a, x: _bits(x, a["dtype"]),
    "reduce_max": lambda a, x: x.amax(a["axis"], keepdim=True), "matmul": lambda a, x, y: _product(x, y),
}  # fmt: skip


def values_of(graph: Graph, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The graph's outputs, of its inputs and weights by name."""
    found: dict[Node, Tensor] = {}
    for node in graph.order():
        is_leaf = node.op in ("input", "weight")
        found[node] = given[node["name"]] if is_leaf else _value(node, [found[s] for s in node.sources])
    return {name: found[node] for name, node in graph.outputs.items()}


def _value(node: Node, sources: list[Tensor]) -> Tensor:
    attrs: dict[str, Any] = dict(node.attrs)
    if node.op in FORMULAS:
        return FORMULAS[node.op](attrs, *sources)
    body = attrs["body"] if node.op == "kernel" else _expanded(node)
    return values_of(body, dict(zip(_names(node), sources, strict=True)))["y"]


def _expanded(node: Node) -> Graph:
    """What the table makes of an op, in others of it."""
    leaves = zip(_names(node), node.sources, strict=True)
    return Graph({"y": TABLE[node.op].expand(*(leaf(name, s.shape, s.dtype) for name, s in leaves))})


def _names(node: Node) -> list[str]:
    return [f"p{i}" for i in range(len(node.sources))]


def _bits(x: Tensor, dtype: str) -> Tensor:
    held = x.to(torch.int32) if x.dtype == DTYPE["u32"] else x  # its low half
    return held.view(torch.int32).long() & BITS if dtype == "u32" else held.view(DTYPE[dtype])


def _product(x: Tensor, y: Tensor) -> Tensor:
    is_integer = x.dtype == torch.int8
    kind = torch.float64 if is_integer and 127 * 127 * x.shape[-1] >= EXACT_IN_F32 else torch.float32
    found = x.to(kind) @ y.to(kind)
    return found.to(torch.int32) if is_integer else found

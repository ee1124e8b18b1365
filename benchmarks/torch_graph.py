"""A graph of the op table as a torch module: what torch makes of edgewm's exact graph, eager or compiled.

One row of `CALLS` for each op and idiom (`edgewm/idioms.py`), so that torch runs its own linear, layer_norm, gelu and
attention; weights are buffers, those of linear layers stored the way torch stores them. A loop is unrolled.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgewm.errors import EdgewmError
from edgewm.idioms import Step, steps
from edgewm.ops import NUMPY, const_value
from edgewm.program import Graph, Node

DTYPES = {"f32": torch.float32, "i32": torch.int32, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool}
LEAVES = ("weight", "const", "iota")


def module_of(graph: Graph, weights: Mapping[str, np.ndarray], without: tuple[str, ...] = ()) -> torch.fx.GraphModule:
    """A module whose forward takes the graph's inputs in their order and returns its outputs as a tuple in theirs.

    `without` names idioms that torch is to put together from their parts. Raises EdgewmError for an op torch has no
    call for (random numbers, fused kernels).
    """
    sheet = Sheet(weights, without)
    inputs = {name: sheet.graph.placeholder(name) for name in graph.inputs()}
    sheet.graph.output(tuple(write(sheet, graph, inputs).values()))
    sheet.graph.eliminate_dead_code()
    return torch.fx.GraphModule(sheet.root, sheet.graph).eval()


@dataclass(eq=False)
class Sheet:
    """A module while it is written; `buffers` are kept by the name of the weight and how it is stored."""

    weights: Mapping[str, np.ndarray]
    without: tuple[str, ...] = ()
    root: torch.nn.Module = field(default_factory=torch.nn.Module)
    graph: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    buffers: dict[tuple, torch.fx.Node] = field(default_factory=dict)

    def buffer(self, array: np.ndarray, *key: str) -> torch.fx.Node:
        key = key or (f"number {len(self.buffers)}",)
        if key not in self.buffers:
            name = f"buffer_{len(self.buffers)}"
            self.root.register_buffer(name, torch.from_numpy(np.array(array, order="C")))
            self.buffers[key] = self.graph.get_attr(name)
        return self.buffers[key]


def write(sheet: Sheet, graph: Graph, inputs: Mapping[str, torch.fx.Node]) -> dict[str, torch.fx.Node]:
    """Append the graph's calls; the values of its outputs by name."""
    values: dict[Node, Any] = {}
    for step in steps(graph, sheet.without):
        names = [values[s] for s in step.sources]
        if step.op == "input":
            made = inputs[step.attrs["name"]]
        elif step.op in LEAVES:
            made = sheet.buffer(leaf(step, sheet.weights), *([step.attrs["name"]] if step.op == "weight" else []))
        elif step.op == "repeat":
            made = unrolled(sheet, step, names)
        elif step.op == "get":
            made = names[0][step.attrs["name"]]
        elif step.op == "linear":
            name = step.sources[1]["name"]
            turned = sheet.buffer(sheet.weights[name].T, name, "turned")
            made = sheet.graph.call_function(F.linear, (names[0], turned, names[2]))
        elif step.op in CALLS:
            function, *keywords = CALLS[step.op]
            made = sheet.graph.call_function(function, tuple(names), *(of(step) for of in keywords))
        else:
            raise EdgewmError(f"op {step.op} has no call in torch", f"benchmarks, {step.out!r}", "add a row to CALLS")
        values[step.out] = made
    return {name: values[node] for name, node in graph.outputs.items()}


def unrolled(sheet: Sheet, step: Step, names: list[torch.fx.Node]) -> dict[str, torch.fx.Node]:
    """A loop's outputs by name."""
    carries = step.attrs["carries"]
    state = dict(zip((*carries, *step.attrs["invariants"]), names, strict=True))
    found: dict[str, torch.fx.Node] = {}
    for i in range(step.attrs["count"]):
        found = write(sheet, step.attrs["body"], {**state, "counter": sheet.buffer(np.array(i, np.int32))})
        state |= {name: found[name] for name in carries}
    return found


def leaf(step: Step, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    if step.op == "weight":
        return weights[step.attrs["name"]]
    dtype = NUMPY[step.out.dtype]
    if step.op == "const":
        return np.array(const_value(step.out), dtype)
    shape, axis = step.attrs["shape"], step.attrs["axis"]
    return np.broadcast_to(
        np.arange(shape[axis], dtype=dtype).reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape
    )


# ----------------------------------------------------------------------------------------------------------- the table


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.addcmul(c, a, b)


def sin2pi(x: Tensor) -> Tensor:
    return torch.sin(2 * torch.pi * x)


def cos2pi(x: Tensor) -> Tensor:
    return torch.cos(2 * torch.pi * x)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def concat(*xs: Tensor, dim: int) -> Tensor:
    return torch.cat(xs, dim)


def take(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index)


def topk(cost: Tensor, k: int) -> Tensor:
    """Indices of the k smallest, ascending in index."""
    return cost.topk(k, largest=False).indices.sort().values.to(torch.int32)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`k` holds keys in columns."""
    return F.scaled_dot_product_attention(q, k.transpose(-1, -2), v, attn_mask=mask, scale=scale)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 0.0) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _along(step: Step) -> dict[str, Any]:
    return {"dim": step.attrs["axis"], "keepdim": True}


def _eps(step: Step) -> dict[str, Any]:
    return {"eps": step.attrs["eps"]}


def _range(step: Step) -> dict[str, Any]:
    start, stop = step.attrs["start"], step.attrs["stop"]
    return {"dim": step.attrs["axis"], "start": start, "length": stop - start}


CALLS: dict[str, tuple] = {  # the function, and what gives its keywords from the step
    "neg": (torch.neg,), "abs": (torch.abs,), "sqrt": (torch.sqrt,), "rint": (torch.round,), "floor": (torch.floor,),
    "add": (operator.add,), "sub": (operator.sub,), "mul": (operator.mul,), "div": (operator.truediv,),
    "max": (torch.maximum,), "min": (torch.minimum,), "lt": (torch.lt,), "le": (torch.le,), "eq": (torch.eq,),
    "and": (torch.bitwise_and,), "or": (torch.bitwise_or,), "xor": (torch.bitwise_xor,), "where": (torch.where,),
    "exp": (torch.exp,), "log": (torch.log,), "erf": (torch.erf,), "tanh": (torch.tanh,), "gelu": (F.gelu,),
    "sigmoid": (torch.sigmoid,), "silu": (F.silu,), "softplus": (F.softplus,), "matmul": (torch.matmul,),
    "fma": (fma,), "sin2pi": (sin2pi,), "cos2pi": (cos2pi,), "take": (take,),
    "cast": (cast, lambda step: {"dtype": DTYPES[step.out.dtype]}),
    "reshape": (torch.reshape, lambda step: {"shape": step.out.shape}),
    "expand": (torch.broadcast_to, lambda step: {"size": step.out.shape}),
    "permute": (torch.permute, lambda step: {"dims": step.attrs["axes"]}),
    "slice": (torch.narrow, _range),
    "concat": (concat, lambda step: {"dim": step.attrs["axis"]}),
    "topk": (topk, lambda step: {"k": step.attrs["k"]}),
    "sum": (torch.sum, _along), "mean": (torch.mean, _along), "reduce_max": (torch.amax, _along),
    "softmax": (torch.softmax, lambda step: {"dim": step.attrs["axis"]}),
    "attention": (attention, lambda step: {"scale": step.attrs["scale"]}),
    "layer_norm": (layer_norm, _eps), "normalised": (layer_norm, _eps),
}  # fmt: skip

"""Kernels at the shapes of four world models, each with its neighbours: as torch modules, so that torch runs the same.

LeWM 18M (300 candidates, 3 frames of 192), TD-MPC2 5M (512 candidates, latent 512), DINO-WM (8 of its candidates, 588
tokens of 404) and V-JEPA 2-AC (4 candidates, 2 frames of 258 tokens of 1024). Whatever they read is drawn from raw
words of a counter, which are the same on every machine and for every numpy: nothing of it travels. Numbers have 16
levels, so that weights, which do travel, are small files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from step import weight_products
from torch import Tensor, nn
from torch.nn import functional as F

from edgewm.capture import capture
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Program

PRECISIONS = ("fp32", "bf16", "w8a8")


@dataclass(frozen=True)
class Case:
    """`module` maps inputs of `shapes` to one output; `flops` of its core, a multiply-add as two."""

    name: str
    model: str
    kind: str
    module: nn.Module
    shapes: Mapping[str, tuple[int, ...]]
    flops: int
    precisions: tuple[str, ...] = ("fp32",)


def drawn(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """f32 of 16 levels, evenly between -1.875 and 1.875."""
    count = int(np.prod(shape, dtype=np.int64))
    words = np.random.PCG64(seed).random_raw(-(-count // 8)).view(np.uint8)[:count]
    return ((words & 15).astype(np.float32) * 0.25 - 1.875).reshape(shape)


def coarse(array: np.ndarray) -> np.ndarray:
    """The array in steps of a power of two, about 15 levels to its largest number."""
    step = 2.0 ** np.round(np.log2(max(float(np.abs(array).max()), 1e-30) / 7))
    return (np.round(array / step) * step).astype(np.float32)


def weight(seed: int, inputs: int, outputs: int) -> nn.Parameter:
    """Of a linear layer, of about unit gain."""
    scale = 2.0 ** np.round(np.log2(1 / inputs**0.5))
    return nn.Parameter(torch.from_numpy(drawn(seed, (outputs, inputs)) * np.float32(scale)), requires_grad=False)


def vector(seed: int, size: int) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(drawn(seed, (size,)) * np.float32(0.125)), requires_grad=False)


class Layer(nn.Module):
    """A linear layer between its neighbours: what stands before it, and what behind it."""

    def __init__(self, seed: int, inputs: int, outputs: int, before: str = "", after: str = ""):
        super().__init__()
        self.weight, self.bias = weight(seed, inputs, outputs), vector(seed + 1, outputs)
        self.gain, self.offset = vector(seed + 2, inputs), vector(seed + 3, inputs)
        self.is_normed, self.before_, self.after_ = before.startswith("norm"), before, after

    def before(self, x: Tensor) -> Tensor:
        if self.is_normed:
            x = F.layer_norm(x, x.shape[-1:]) * (1 + self.gain) + self.offset
        return F.mish(x) if self.before_.endswith("mish") else x

    def forward(self, x: Tensor, *residual: Tensor) -> Tensor:
        y = F.linear(self.before(x), self.weight, self.bias)
        if self.after_ == "gelu":
            return F.gelu(y)
        return y + residual[0] if residual else y


class Attention(nn.Module):
    """Softmax attention, causal by frames of so many tokens, or of all tokens (0)."""

    def __init__(self, frame: int = 0):
        super().__init__()
        self.frame = frame

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.frame:
            return F.scaled_dot_product_attention(q, k, v)
        at = torch.arange(q.shape[-2], device=q.device) // self.frame
        return F.scaled_dot_product_attention(q, k, v, attn_mask=at[:, None] >= at[None, :])


class Windows(Attention):
    """Attention in windows of few tokens, behind the product that writes queries, keys and values, itself not timed:
    as in a plan, lanes are candidates then."""

    def __init__(self, frame: int, seed: int, heads: int, depth: int):
        super().__init__(frame)
        self.heads, self.layer = heads, Layer(seed, depth, 3 * heads * depth)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.layer(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        return self.attend(*parts)


class SimNorm(nn.Module):
    """Softmax within groups of 8, as TD-MPC2's latent is made."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x.view(*x.shape[:-1], -1, 8), -1).view(x.shape)


@dataclass(frozen=True)
class Stack:
    """A transformer's sizes: tokens of all candidates, width, inner width of its heads, MLP."""

    model: str
    lead: tuple[int, ...]
    tokens: int
    width: int
    heads: int
    depth: int
    mlp: int
    frame: int


STACKS = (
    Stack("lewm", (300,), 3, 192, 16, 64, 2048, 1),
    Stack("dino-wm", (8,), 588, 404, 16, 64, 2048, 196),
    Stack("vjepa2", (4,), 516, 1024, 16, 64, 4096, 258),
)
TDMPC_ROWS, TDMPC_WIDTH, TDMPC_ACTION = 512, 512, 6
LEWM_ENCODER = (1, 3, 257, 64)
FEW_TOKENS = 16  # below, lanes are candidates: tokens would fill none
SMALL = (
    Stack("lewm", (5,), 3, 24, 2, 8, 40, 1), Stack("vjepa2", (2,), 6, 32, 2, 16, 48, 3),
)  # fmt: skip


def cases(small: bool = False) -> list[Case]:
    found = []
    for i, stack in enumerate(SMALL if small else STACKS):
        found += of_stack(stack, 1000 * (i + 1))
    rows, width, action = (6, 16, 2) if small else (TDMPC_ROWS, TDMPC_WIDTH, TDMPC_ACTION)
    found += [
        product("tdmpc2 first", "tdmpc2-5m", 9000, (rows,), width + action, width),
        product("tdmpc2 mish", "tdmpc2-5m", 9010, (rows,), width, width, "norm mish"),
        Case("tdmpc2 simnorm", "tdmpc2-5m", "rows", SimNorm(), {"x": (rows, width)}, 0),
    ]  # fmt: skip
    shape = (1, 2, 9, 8) if small else LEWM_ENCODER
    return [*found, attention("lewm encoder", "lewm", shape, 0)]


def of_stack(s: Stack, seed: int) -> list[Case]:
    rows, inner = (*s.lead, s.tokens), s.heads * s.depth
    return [
        product(f"{s.model} qkv", s.model, seed, rows, s.width, 3 * inner, "norm"),
        product(f"{s.model} out", s.model, seed + 10, rows, inner, s.width, after="residual"),
        product(f"{s.model} up", s.model, seed + 20, rows, s.width, s.mlp, "norm", "gelu"),
        product(f"{s.model} down", s.model, seed + 30, rows, s.mlp, s.width, after="residual"),
        attention(f"{s.model} attention", s.model, (*s.lead, s.heads, s.tokens, s.depth), s.frame),
    ]


def product(
    name: str,
    model: str,
    seed: int,
    rows: tuple[int, ...],
    inputs: int,
    outputs: int,
    before: str = "",
    after: str = "",
) -> Case:
    shapes = {"x": (*rows, inputs)} | ({"residual": (*rows, outputs)} if after == "residual" else {})
    flops = 2 * int(np.prod(rows)) * inputs * outputs
    return Case(name, model, "product", Layer(seed, inputs, outputs, before, after), shapes, flops, PRECISIONS)


def attention(name: str, model: str, shape: tuple[int, ...], frame: int) -> Case:
    *lead, tokens, depth = shape
    seen = (tokens // frame + 1) / (2 * tokens // frame) if frame else 1.0  # of all pairs, those that are not masked
    flops = int(4 * np.prod(lead) * tokens * tokens * depth * seen)
    if tokens < FEW_TOKENS:
        module = Windows(frame, 8000, lead[-1], depth)
        return Case(name, model, "attention", module, {"x": (*lead[:-1], tokens, depth)}, flops)
    return Case(name, model, "attention", Attention(frame), dict.fromkeys("qkv", shape), flops)


def entry_of(case: Case) -> str:
    return case.name.replace(" ", "_")


def inputs_of(case: Case) -> dict[str, np.ndarray]:
    return {name: drawn(77 + i, shape) for i, (name, shape) in enumerate(case.shapes.items())}


def program_of(found: list[Case], precision: str) -> Program:
    """Every case that has this precision, as an entry of one program, ready to be scheduled."""
    entries, weights, recipe = {}, {}, {}
    for case in found:
        if precision in case.precisions:
            entry, examples = entry_of(case), [torch.from_numpy(x) for x in inputs_of(case).values()]
            entries[entry], weights = capture(
                case.module, examples, list(case.shapes), ["y"], f"{entry}.", weights=weights
            )
    program = run(Program(entries=entries, weights=weights), EXACT)
    if precision != "fp32":
        for graph in program.entries.values():
            recipe |= {node.sources[1]["name"]: precision for node, _ in weight_products(graph)}
    return run(program.with_(recipe=recipe), LOWERING)


def rounding(case: Case, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """How far two sums of a bf16 product may lie apart for each number of its output.

    Both round the same numbers to bf16 and add their exact products in fp32, in another order: a sum of K rounds, or
    cuts, K times by 2^-23 of the magnitudes at the most, the other likewise. GELU's slope is below 1.13.
    """
    layer = case.module
    x = layer.before(torch.from_numpy(inputs["x"])).bfloat16().double().abs()
    magnitude = F.linear(x, layer.weight.bfloat16().double().abs(), layer.bias.double().abs())
    steepest = 1.13 if layer.after_ == "gelu" else 1.0
    return (steepest * 2 * layer.weight.shape[1] * 2.0**-23 * 1.01 * magnitude).float().numpy()

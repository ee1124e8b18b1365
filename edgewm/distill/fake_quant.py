"""Products rounded in training as the bundle's recipe will round them; gradients pass as if they were not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..quantize import SMALLEST_K

INT8_MAX = 127


def to_int8(x: Tensor) -> Tensor:
    """Each row (last axis) in 255 levels of its own range."""
    step = x.detach().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / INT8_MAX
    return x + ((x / step).round() * step - x).detach()


def to_bf16(x: Tensor) -> Tensor:
    return x + (x.to(torch.bfloat16).to(x.dtype) - x).detach()


@contextlib.contextmanager
def rounded(module: nn.Module, precision: str) -> Iterator[None]:
    """Within, the linear layers that candidates run through compute as in a bundle of that precision (`quantize`):
    those of the predictor's blocks in it, the ways in and out, which every candidate passes, in bf16 at least."""
    if precision == "fp32":
        yield
        return
    kind = to_bf16 if precision.startswith("bf16") else to_int8
    layers = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear) and _runs(name, precision)}
    chosen = {m: kind if name.startswith("predictor.blocks") else to_bf16 for name, m in layers.items()}
    chosen = {m: way for m, way in chosen.items() if m.in_features >= SMALLEST_K}
    plain = {m: m.forward for m in chosen}
    try:
        for layer, way in chosen.items():
            layer.forward = lambda x, layer=layer, way=way: F.linear(way(x), way(layer.weight), layer.bias)
        yield
    finally:
        for layer in plain:
            del layer.forward


def _runs(name: str, precision: str) -> bool:
    return precision.endswith("_all") or name.startswith(("predictor.", "pred_proj.", "action_encoder."))

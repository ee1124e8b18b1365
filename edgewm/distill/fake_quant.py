"""Products rounded in training as a bundle rounds them, by its recipe and its formulas; gradients pass all the same.

Weights are held on the host, by what holds them for a bundle; products are done where the module is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import expr as e
from ..layout import dtype_of
from ..models import Model, capture_model
from ..passes import EXACT, run
from ..passes.quantize_products import HOLD, value_of
from ..program import Graph, Planner
from ..quantize import recipe_of
from .choice import untrained
from .formulas import DTYPE, values_of
from .shapes import Shape

Formats = Mapping[str, str]  # linear layer -> how a bundle holds it


def formats_of(shape: Shape, model: Model, planner: Planner, precision: str) -> Formats:
    """Of a student for the teacher `model`, in a bundle of this precision (`quantize.recipe_of`); those that stay in
    fp32 are left out."""
    if precision == "fp32":
        return {}
    program = run(capture_model(untrained(shape, model, planner), planner, ("score",)), EXACT)
    return {name.partition(".weight")[0]: form for name, form in recipe_of(program, precision).items()}


@contextlib.contextmanager
def rounded(module: nn.Module, formats: Formats) -> Iterator[None]:
    """Within, these linear layers compute as in a bundle. A gradient takes rounded weights, and activations as they
    are (straight-through: Bengio, Leonard and Courville 2013, https://arxiv.org/abs/1308.3432)."""
    layers = [(m, formats[name]) for name, m in module.named_modules() if name in formats and isinstance(m, nn.Linear)]
    try:
        for layer, form in layers:
            layer.forward = _rounding(layer, form)
        yield
    finally:
        for layer, _ in layers:
            layer.__dict__.pop("forward", None)


def _rounding(layer: nn.Linear, form: str):
    parts, device = HOLD[form].hold(_matrix(layer), None), layer.weight.device
    held = torch.from_numpy(value_of(parts, form).T).to(device)
    weight = layer.weight + (held - layer.weight).detach()
    leaves = {name: _there(part, device) for name, part in zip(HOLD[form].parts, parts, strict=True)}

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            rows = x.detach().float().reshape(-1, x.shape[-1])
            found = values_of(_product(form, *rows.shape, layer.out_features), {"x": rows, **leaves})["y"]
        exact = F.linear(x, weight)
        product = exact + (found.view_as(exact) - exact).detach()
        return product if layer.bias is None else product + layer.bias

    return forward


@lru_cache(maxsize=256)
def _product(form: str, rows: int, depth: int, width: int) -> Graph:
    """What a bundle computes of `x` (rows, depth) and a weight's leaves."""
    parts = HOLD[form].hold(np.zeros((depth, width), np.float32), None)
    leaves = [e.weight(name, part.shape, dtype_of(part)) for name, part in zip(HOLD[form].parts, parts, strict=True)]
    return Graph({"y": HOLD[form].product(e.input("x", (rows, depth)), *leaves)})


def on_levels(module: nn.Module, formats: Formats) -> None:
    """Set weights of 16 levels to them, so that who builds the module in that format finds nothing left to choose."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name in formats and HOLD[formats[name]].by == "moments":
            form = formats[name]
            once = value_of(HOLD[form].hold(_matrix(layer), None), form)  # to bf16, steps may move by it: then no more
            layer.weight.data.copy_(torch.from_numpy(value_of(HOLD[form].hold(once, None), form).T))


def _there(part: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(part.astype(np.float32)).to(device, DTYPE[dtype_of(part)])


def _matrix(layer: nn.Linear):
    """(in, out), as a bundle has it."""
    return layer.weight.detach().cpu().numpy().T

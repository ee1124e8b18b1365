"""What an action says to the layers of a predictor, in few numbers.

Each layer of a LeWM is modulated by six times its width of numbers, a product with as many inputs as a latent has, for
each action of each candidate: as much work as the layer itself. An action has few axes, so on what a planner tries all
these products together have a low rank, and a student does them in thin ones: the first for all layers, another for
each. They keep the directions in which modulations vary most (a reduced-rank regression on drawn actions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import Model, torch_world
from ..quantize import SMALLEST_K
from ..reference.model import JumpingLeWM

LEFT_OUT = 1e-4  # of the variance of modulations: rounding to 8 bits loses more
DRAWN = 4096  # actions


@torch.no_grad()
def numbers_of(model: Model) -> int:
    """How many numbers say what an action is to all layers of a LeWM's students: all but LEFT_OUT of it, and as many as
    a product must have inputs to be held in 8 bits. The latent's size where that saves nothing, or nothing is known."""
    width = model.latent_dim
    if model.family != torch_world.FAMILY:
        return width
    blocks = model.torch.predictor.blocks
    if (own := blocks[0].modulation[-1].in_features) < width:
        return own
    if isinstance(model.torch, JumpingLeWM):
        return width
    weight, _ = _modulations(model.torch, range(len(blocks)))
    power = _directions(_said(model), weight)[0].square()
    least = int((1 - power.cumsum(0) / power.sum() > LEFT_OUT).sum()) + 1
    return min(width, SMALLEST_K * math.ceil(least / SMALLEST_K))


@torch.no_grad()
def take(module: nn.Module, model: Model, kept: Sequence[int]) -> None:
    """Give `module`, whose layers are modulated by few numbers, the modulations of these layers of its teacher, whose
    own are square; the rest of its encoder of actions is theirs already."""
    thin = module.action_encoder[-1]
    said, (weight, bias) = _said(model), _modulations(model.torch, kept)
    axes = _directions(said, weight)[1][: thin.out_features].T
    middle = weight @ said.mean(0)
    thin.weight.copy_(axes.T @ weight)
    there = bias + middle - axes @ (axes.T @ middle)
    each = zip(module.predictor.blocks, axes.chunk(len(kept)), there.chunk(len(kept)), strict=True)
    for block, part, at in each:
        block.modulation[-1].weight.copy_(part)
        block.modulation[-1].bias.copy_(at)


def _said(model: Model) -> Tensor:
    """(N, D): what layers are told of actions as a planner first draws them, float64."""
    planner = model.planner
    drawn = planner.var_scale * torch.randn(DRAWN, model.action_dim, generator=torch.Generator().manual_seed(0))
    low, high = (edge if at is None else at for at, edge in ((planner.low, -math.inf), (planner.high, math.inf)))
    return F.silu(model.torch.action_encoder(drawn.clamp(low, high).to(model.device))).double()


def _modulations(module: nn.Module, kept: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Weight (6 D layers, D) and bias of these layers' together."""
    found = [module.predictor.blocks[i].modulation[-1] for i in kept]
    return torch.cat([m.weight for m in found]).double(), torch.cat([m.bias for m in found]).double()


def _directions(said: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """How far modulations vary along each axis, the furthest first, and these axes (rows)."""
    root = torch.linalg.qr(said - said.mean(0)).R
    _, spread, axes = torch.linalg.svd(root @ weight.T, full_matrices=False)
    return spread, axes

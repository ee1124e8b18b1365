"""How candidates are scored by a module that has torch-world's `rollout` and `cost` (LeWM of both families)."""

from __future__ import annotations

import torch
from torch import Tensor


def score(module: torch.nn.Module, z: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    """Cost (S,) of the last imagined latent: z (history, latent), goal (1, latent), actions (S, history - 1 + H, A)."""
    return module.cost(_imagined(module, z, actions), goal.expand(len(actions), -1))


def path_score(module: torch.nn.Module, z: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    """Mean cost (S,) of all imagined latents, as torch-world's `CEM` has it with the objective `path`."""
    latents, goals = _imagined(module, z, actions), goal.expand(len(actions), -1)
    ends = range(len(z) + 1, latents.shape[1] + 1)  # past the context
    return torch.stack([module.cost(latents[:, :end], goals) for end in ends]).mean(0)


def _imagined(module: torch.nn.Module, z: Tensor, actions: Tensor) -> Tensor:
    return module.rollout(z.unsqueeze(0).expand(len(actions), -1, -1), actions)

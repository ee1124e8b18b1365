"""`proposal.safetensors` beside a checkpoint's `config.json`: a plan at a glance, for a search to begin at.

A small network from a latent and a goal's to the mean of the first candidates, and their deviation, one for every
number of a plan. Its sizes are those of its weights. Where the planner's `proposal` is set, it is compiled into the
plan; `edgewm distill --proposal-only` trains one for a model as it is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import expr as e
from ..capture import capture
from ..constants import Store
from ..errors import EdgewmError
from ..program import Graph, Planner
from .checkpoint import fill, read_weights, sha256
from .model import Model

FILE = "proposal.safetensors"
PREFIX = "proposal."  # of its weights' names in a program


class Proposal(nn.Module):
    """Latents z, goal (B, latent) to plans (B, horizon, action), in the model's units, not yet bounded.

    `centre` (latent,) and `spread` (1,) are those of latents; `std` (horizon, action) is what first candidates deviate.
    """

    def __init__(self, latent_dim: int, width: int, horizon: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(latent_dim))
        self.register_buffer("spread", torch.ones(1))
        self.register_buffer("std", torch.ones(horizon, action_dim))
        self.first = nn.Linear(2 * latent_dim, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, horizon * action_dim)

    def forward(self, z: Tensor, goal: Tensor) -> Tensor:
        seen = torch.cat([(z - self.centre) / self.spread, (goal - z) / self.spread], -1)
        hidden = nn.functional.gelu(self.second(nn.functional.gelu(self.first(seen))))
        return self.last(hidden).unflatten(-1, tuple(self.std.shape))


def with_proposal(model: Model, folder: Path) -> Model:
    """The model with the proposal that lies in the directory; as it is where there is none. EdgewmError where it is
    damaged, or one of another model."""
    file = folder / FILE
    if not file.is_file():
        return model
    weights = read_weights(file)
    try:
        (width, seen), (horizon, action) = weights["first.weight"].shape, weights["std"].shape
    except (KeyError, ValueError) as fault:
        raise EdgewmError("this is no proposal", str(file), "train it again: edgewm distill --proposal-only") from fault
    if (seen, action) != (2 * model.latent_dim, model.action_dim):
        raise EdgewmError(
            f"the proposal is for latents of {seen // 2} and actions of {action} numbers, the model has "
            f"{model.latent_dim} and {model.action_dim}",
            str(file), "train one for this model: edgewm distill --proposal-only",
        )  # fmt: skip
    module = Proposal(model.latent_dim, width, horizon, action)
    fill(module, weights, str(file))
    return replace(model, proposal=module, files={**model.files, **sha256(file)})


def capture_proposal(model: Model, planner: Planner, weights: Store) -> Graph:
    """The graph of `z` (1, latent) and `goal` (1, latent) to `mean` and `std` (horizon, action), a weight; all weights
    enter `weights`. EdgewmError for a model without one, and for one of another horizon."""
    module = model.proposal
    if module is None:
        raise EdgewmError(
            "the model has no proposal", "planner settings",
            "train one: edgewm distill MODEL --proposal-only; or plan with --no-proposal",
        )  # fmt: skip
    if len(module.std) != planner.horizon:
        raise EdgewmError(
            f"the proposal is of {len(module.std)} actions, the horizon of {planner.horizon}", "planner settings",
            f"give --horizon {len(module.std)}, or --no-proposal",
        )  # fmt: skip
    both = [torch.zeros(1, model.latent_dim) for _ in range(2)]  # one tensor would be one input
    mean, _ = capture(module, both, ["z", "goal"], ["mean"], PREFIX, lambda m, z, goal: m(z, goal)[0], weights)
    weights[f"{PREFIX}std"] = module.std.numpy()
    return Graph({**mean.outputs, "std": e.weight(f"{PREFIX}std", module.std.shape)})

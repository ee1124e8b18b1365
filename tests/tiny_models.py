"""The smallest models that build: for tests of the build itself, by `module:function`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from edgewm.program import Planner, Port


class Tiny(nn.Module):
    """A linear latent of a vector observation, and a tanh step."""

    history = 1
    planner = Planner(samples=8, iterations=2, elites=3, horizon=2)
    ports: tuple[Port, ...] = (
        Port("state", "observation", (1, 4), max_age_ns=10**9),
        Port("goal", "goal", (1, 4)),
        Port("action", "action", (2,), low=-1.0, high=1.0, safe=(0.0, 0.0)),
    )

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.step = nn.Linear(4, 6), nn.Linear(8, 6)

    def encode(self, state: Tensor) -> Tensor:
        return self.encoder(state)

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        return torch.tanh(self.step(torch.cat([z[:, -1], actions[:, -1]], -1)))

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        return (z - goal).square().sum(-1)


def tiny() -> Tiny:
    return Tiny()


def careless() -> Tiny:
    """The same without a safe action."""
    model = Tiny()
    model.ports = tuple(replace(p, safe=()) for p in model.ports)
    return model

"""World models of other shapes than LeWM, of any size, with seeded weights: what estimates are tried on.

Each is a `torch.nn.Module` that declares its ports, as `module:function` does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewm.models import Model, own, synthetic
from edgewm.program import Planner, Port

PLANNER = Planner(samples=64, iterations=2, elites=8, horizon=4)


def _ports(observation: int, action: int) -> tuple[Port, ...]:
    return (
        Port("state", "observation", (1, observation)),
        Port("goal", "goal", (1, observation)),
        Port("action", "action", (action,), low=-1.0, high=1.0),
    )


class Mlp(nn.Module):
    """A residual MLP with a norm and a GELU in each of its blocks."""

    def __init__(self, observation: int, action: int, latent: int, hidden: int, blocks: int):
        super().__init__()
        self.ports, self.planner = _ports(observation, action), PLANNER
        self.encoder, self.enter = nn.Linear(observation, latent), nn.Linear(action, latent)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(latent), nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, latent))
            for _ in range(blocks)
        )

    def encode(self, state: Tensor) -> Tensor:
        return self.encoder(state)

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        x = z[:, -1] + self.enter(actions[:, -1])
        for block in self.blocks:
            x = x + block(x)
        return x

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        return (z - goal).square().mean(-1)


class Recurrent(nn.Module):
    """A gated recurrent cell whose state is the latent."""

    def __init__(self, observation: int, action: int, latent: int):
        super().__init__()
        self.ports, self.planner = _ports(observation, action), PLANNER
        self.encoder, self.enter = nn.Linear(observation, latent), nn.Linear(action, latent)
        self.cell = nn.GRUCell(latent, latent)
        self.head = nn.Sequential(nn.Linear(latent, latent), nn.SiLU(), nn.Linear(latent, 1))

    def encode(self, state: Tensor) -> Tensor:
        return torch.tanh(self.encoder(state))

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        return self.cell(F.silu(self.enter(actions[:, -1])), z[:, -1])

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        return (z - goal).abs().sum(-1) - self.head(z).squeeze(-1)


class Ensemble(nn.Module):
    """Mish layers, latents normed in groups, and an ensemble of values whose least counts (as TD-MPC2)."""

    def __init__(self, observation: int, action: int, latent: int, hidden: int, members: int):
        super().__init__()
        self.ports, self.planner = _ports(observation, action), PLANNER
        self.encoder = self._layers(observation, hidden, latent)
        self.dynamics = self._layers(latent + action, hidden, latent)
        self.value_in = nn.Parameter(torch.zeros(members, 2 * latent, hidden))
        self.value_out = nn.Parameter(torch.zeros(members, hidden, 1))
        self.norm = nn.LayerNorm(hidden)

    def _layers(self, n: int, hidden: int, m: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(n, hidden), nn.LayerNorm(hidden), nn.Mish(), nn.Linear(hidden, m))

    def encode(self, state: Tensor) -> Tensor:
        return self._simplex(self.encoder(state))

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        return self._simplex(self.dynamics(torch.cat([z[:, -1], actions[:, -1]], -1)))

    def _simplex(self, x: Tensor) -> Tensor:
        return F.softmax(x.view(*x.shape[:-1], -1, 8), dim=-1).view(*x.shape)

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        x = torch.cat([z, goal.expand_as(z)], -1)
        values = torch.vmap(lambda a, b: (F.mish(self.norm(x @ a)) @ b).squeeze(-1))(self.value_in, self.value_out)
        return -values.amin(0)


class Tokens(nn.Module):
    """Tokens of one frame that see each other, an action token among them."""

    def __init__(self, tokens: int, features: int, width: int, heads: int, action: int, blocks: int):
        super().__init__()
        self.ports, self.planner = _ports(tokens * features, action), PLANNER
        self.tokens, self.features, self.width, self.heads = tokens, features, width, heads
        self.embed, self.enter = nn.Linear(features, width), nn.Linear(action, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.mixes = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(blocks))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(blocks)
        )

    def encode(self, state: Tensor) -> Tensor:
        return self.embed(state.unflatten(-1, (self.tokens, self.features))).flatten(1)

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        x = torch.cat([z[:, -1].unflatten(-1, (self.tokens, self.width)), self.enter(actions[:, -1:])], 1)
        for i, (mix, out, mlp) in enumerate(zip(self.mixes, self.outs, self.mlps, strict=True)):
            parts = mix(self.norms[2 * i](x)).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            x = x + out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(-2))
            x = x + mlp(self.norms[2 * i + 1](x))
        return x[:, : self.tokens].flatten(1)

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        return (z - goal).square().mean(-1)


def model(kind: type[nn.Module], *sizes: int) -> Model:
    """A Model of that kind with seeded weights."""
    return own.from_module(synthetic.initialise(kind(*sizes)), kind.__name__)

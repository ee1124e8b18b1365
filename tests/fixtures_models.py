"""Small world models that are not LeWM, so that nothing grows LeWM-shaped, and what comparisons with torch share.

`tdmpc2()`, `rssm()` and `frame_causal()` return seeded modules with declared ports, as `module:function` does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_world.models import LeWM
from torch_world.nn import CLSEncoder

from edgewm import expr
from edgewm.models import Model, synthetic, torch_world
from edgewm.ops import TABLE, const_value, make
from edgewm.program import Graph, Node, Planner, Port

UNIT_ROUNDOFF = {np.float32: 2.0**-24, np.float64: 2.0**-53}
# units in the last place of one evaluation; transcendentals as bounded in edgewm/arithmetic.py
TRANSCENDENTAL_ULP = 8
PLANNER = Planner(samples=12, iterations=3, elites=4, horizon=3, action_block=1, commit_steps=1)


def rounding(graph: Graph, dtype: type) -> float:
    """Bound of relative error: rounding units of each op, summed along the longest path (n for a reduction of n)."""
    units: dict[Node, float] = {}
    for node in graph.order():
        own = {"matmul": lambda n: n.sources[0].shape[-1], "sum": lambda n: n.sources[0].shape[n["axis"]]}.get(node.op)
        cost = (
            own(node)
            if own
            else TRANSCENDENTAL_ULP
            if node.op in ("exp", "log", "erf", "gelu", "tanh", "sin2pi", "cos2pi")
            else 1
        )
        units[node] = cost + max((units[s] for s in node.sources), default=0)
    return UNIT_ROUNDOFF[dtype] * max(units[n] for n in graph.outputs.values())


_canonical_const = expr.const


def exact_const(value: float, dtype: str = "f32") -> Node:
    """A scalar whose float64 digits are kept."""
    return make("const", dtype="f32", value=float(value).hex()) if dtype == "f32" else _canonical_const(value, dtype)


@pytest.fixture
def exact_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants keep float64's digits, so that real arithmetic can meet torch's float64 to its last bits."""
    row = TABLE["const"]

    def exact(attrs: dict) -> np.ndarray:
        return np.asarray(const_value(attrs)) if attrs["dtype"] == "f32" else row.meaning(attrs)

    monkeypatch.setattr(expr, "const", exact_const)
    monkeypatch.setitem(TABLE, "const", replace(row, real=exact))


def relative_error(found: np.ndarray, wanted: Tensor | np.ndarray) -> float:
    wanted = np.asarray(wanted.detach() if isinstance(wanted, Tensor) else wanted, np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    return synthetic.initialise(module, seed)


def _ports(observation: int, action: int) -> tuple[Port, ...]:
    return (
        Port("state", "observation", (1, observation)),
        Port("goal", "goal", (1, observation)),
        Port("action", "action", (action,), low=-1.0, high=1.0),
    )


class SimNorm(nn.Module):
    """Softmax within groups of 4."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x.view(*x.shape[:-1], -1, 4), dim=-1).view(*x.shape)


class NormedLinear(nn.Linear):
    def __init__(self, n: int, m: int, act: nn.Module | None = None):
        super().__init__(n, m)
        self.ln, self.act = nn.LayerNorm(m), act or nn.Mish(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.ln(super().forward(x)))


class TDMPC2(nn.Module):
    """SimNorm latents, Mish layers, and an ensemble of Q functions evaluated by `vmap` over stacked weights."""

    def __init__(self, observation: int = 5, action: int = 2, latent: int = 16, hidden: int = 16, ensemble: int = 3):
        super().__init__()
        self.ports, self.planner = _ports(observation, action), PLANNER
        self.encoder = nn.Sequential(NormedLinear(observation, hidden), NormedLinear(hidden, latent, SimNorm()))
        self.dynamics = nn.Sequential(NormedLinear(latent + action, hidden), NormedLinear(hidden, latent, SimNorm()))
        self.q_in = nn.Parameter(torch.zeros(ensemble, 2 * latent, hidden))
        self.q_norm = nn.LayerNorm(hidden)
        self.q_out = nn.Parameter(torch.zeros(ensemble, hidden, 1))
        self.q_bias = nn.Parameter(torch.zeros(ensemble, 1))

    def encode(self, state: Tensor) -> Tensor:
        return self.encoder(state)

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        return self.dynamics(torch.cat([z[:, -1], actions[:, -1]], -1))

    def values(self, z: Tensor, goal: Tensor) -> Tensor:
        """(ensemble, S)."""
        x = torch.cat([z, goal.expand_as(z)], -1)

        def one(w_in: Tensor, w_out: Tensor, bias: Tensor) -> Tensor:
            return (F.mish(self.q_norm(x @ w_in)) @ w_out + bias).squeeze(-1)

        return torch.vmap(one)(self.q_in, self.q_out, self.q_bias)

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        return -self.values(z, goal).amin(0) + (z - goal).abs().sum(-1)

    def decode_value(self, z: Tensor) -> Tensor:
        return self.values(z, z).mean(0)


class RSSM(nn.Module):
    """A recurrent state (deterministic by a GRU cell, stochastic by its prior's mean) carried from step to step."""

    def __init__(self, observation: int = 6, action: int = 2, deter: int = 12, stoch: int = 4):
        super().__init__()
        self.ports, self.planner = _ports(observation, action), PLANNER
        self.deter = deter
        self.posterior = nn.Sequential(nn.Linear(observation, deter + stoch), nn.ELU())
        self.enter = nn.Sequential(nn.Linear(stoch + action, deter), nn.LayerNorm(deter), nn.SiLU())
        self.cell = nn.GRUCell(deter, deter)
        self.prior = nn.Sequential(nn.Linear(deter, deter), nn.SiLU(), nn.Linear(deter, 2 * stoch))
        self.reward = nn.Linear(deter + stoch, 1)

    def encode(self, state: Tensor) -> Tensor:
        return self.posterior(torch.sign(state) * torch.log1p(state.abs()))

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        h, s = z[:, -1].split([self.deter, z.shape[-1] - self.deter], -1)
        h = self.cell(self.enter(torch.cat([s, actions[:, -1]], -1)), h)
        mean, raw = self.prior(h).chunk(2, -1)
        return torch.cat([h, mean * (F.softplus(raw) + 0.1).clamp(max=2.0).rsqrt()], -1)

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        return torch.linalg.vector_norm(z - goal, dim=-1) - self.reward(z).squeeze(-1).sigmoid()

    def decode_reward(self, z: Tensor) -> Tensor:
        return self.reward(z)


def rotary(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs of the last axis of x (..., N, d) by angles that grow with `positions` (N,)."""
    half = x.shape[-1] // 2
    angle = positions.to(x.dtype)[:, None] * 100.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)


class FrameCausal(nn.Module):
    """Patch tokens of up to 2 frames plus an action token each; a token sees its own and earlier frames."""

    def __init__(self, patches: int = 4, dim: int = 8, action: int = 2, heads: int = 2, history: int = 2):
        super().__init__()
        self.ports, self.planner = _ports(patches * 3, action), PLANNER
        self.patches, self.dim, self.heads, self.history = patches, dim, heads, history
        self.embed, self.act = nn.Linear(3, dim), nn.Linear(action, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.RMSNorm(dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(approximate="tanh"), nn.Linear(2 * dim, dim))

    def encode(self, state: Tensor) -> Tensor:
        return self.embed(state.unflatten(-1, (self.patches, 3))).flatten(1)

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        samples, frames = z.shape[:2]
        tokens = torch.cat([z.unflatten(-1, (self.patches, self.dim)), self.act(actions).unsqueeze(2)], 2)
        x = tokens.flatten(1, 2)
        frame = torch.arange(frames).repeat_interleave(self.patches + 1)
        q, k, v = (
            self.qkv(self.norm1(x)).view(samples, -1, 3, self.heads, self.dim // self.heads).permute(2, 0, 3, 1, 4)
        )
        place = torch.arange(x.shape[1])
        mixed = F.scaled_dot_product_attention(
            rotary(q, place), rotary(k, place), v, attn_mask=frame[:, None] >= frame[None, :]
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        x = x + self.mlp(self.norm2(x))
        return x.view(samples, frames, self.patches + 1, self.dim)[:, -1, : self.patches].flatten(1)

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        return F.normalize(z - goal, dim=-1).mul(z).sum(-1).square() + (z - goal).square().mean(-1)


def tdmpc2() -> nn.Module:
    return seeded(TDMPC2())


def rssm() -> nn.Module:
    return seeded(RSSM())


def frame_causal() -> nn.Module:
    return seeded(FrameCausal())


def small_torch_world(planner: Planner | None = None) -> Model:
    """torch-world's LeWM at width 16: 16 px images, 1 block, window 2, actions of 2."""
    encoder = CLSEncoder(16, 8, 16, depth=1, num_heads=2, mlp_ratio=2.0)
    sizes = {"embed_dim": 16, "history": 2, "depth": 1, "num_heads": 2, "head_dim": 8, "mlp_dim": 32, "proj_dim": 32}
    module = seeded(LeWM(encoder, action_dim=2, **sizes))
    planner = planner or Planner(
        samples=12, iterations=3, elites=4, horizon=3, first_candidate_is_mean=False, low=-1.0, high=1.0
    )
    return torch_world.lewm(module, (16, 16), 2, planner, mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25))


def small_lewm(planner: Planner = PLANNER) -> Model:
    """The published LeWM at width 16: 16 px images, 1 block, window 3, actions of 2."""
    return synthetic.lewm(
        planner=planner, image_px=16, patch_px=8, latent=16, depth=1, heads=2, dim_head=8, mlp_dim=32, proj_dim=32,
        action_dim=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip


def observation(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for the observation and goal ports."""
    rng = np.random.default_rng(seed)
    draw = {"u8": lambda s: rng.integers(0, 256, s, np.uint8), "f32": lambda s: rng.standard_normal(s, np.float32)}
    return {p.name: draw[p.dtype](p.shape) for p in model.ports if p.kind in ("observation", "goal")}

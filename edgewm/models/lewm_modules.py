"""The published LeWM architecture in plain torch: a ViT whose CLS token is the latent, and an AdaLN-zero predictor.

Parameter names are those of stable-worldmodel's checkpoints (ViT names as in transformers 5), so that a state dict
loads as it is. Maes et al., "LeWorldModel" (arXiv 2603.19312); Dosovitskiy et al., "An image is worth 16x16 words"
(2021); Peebles & Xie, "Scalable diffusion models with transformers" (2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads * d) to (B, heads, T, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class ViTAttention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_of(project(x), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class ViTMLP(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class ViTLayer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.attention, self.mlp = ViTAttention(dim, heads), ViTMLP(dim, hidden)
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.mlp(self.layernorm_after(x))


class PatchProjection(nn.Module):
    def __init__(self, channels: int, dim: int, patch_px: int):
        super().__init__()
        self.projection = nn.Conv2d(channels, dim, patch_px, patch_px)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x).flatten(2).transpose(1, 2)


class ViTEmbeddings(nn.Module):
    def __init__(self, image_px: int, patch_px: int, dim: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embeddings = nn.Parameter(torch.zeros(1, (image_px // patch_px) ** 2 + 1, dim))
        self.patch_embeddings = PatchProjection(3, dim, patch_px)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), self.patch_embeddings(x)], 1)
        return tokens + self.position_embeddings


class ViT(nn.Module):
    """Images (N, 3, image_px, image_px) to the CLS token's last hidden state (N, dim)."""

    def __init__(self, image_px: int, patch_px: int, dim: int, depth: int, heads: int, hidden: int, eps: float = 1e-12):
        super().__init__()
        self.image_px = image_px
        self.embeddings = ViTEmbeddings(image_px, patch_px, dim)
        self.layers = nn.ModuleList(ViTLayer(dim, heads, hidden, eps) for _ in range(depth))
        self.layernorm = nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return self.layernorm(x)[:, 0]


class CausalAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        alone = heads == 1 and dim_head == dim
        self.to_out = nn.Identity() if alone else nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_of(part, self.heads) for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        return self.to_out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ConditionalBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition."""

    def __init__(self, dim: int, heads: int, dim_head: int, mlp_dim: int):
        super().__init__()
        self.attn, self.mlp = CausalAttention(dim, heads, dim_head), FeedForward(dim, mlp_dim)
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class ConditionalTransformer(nn.Module):
    def __init__(self, input_dim: int, dim: int, output_dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(ConditionalBlock(dim, heads, dim_head, mlp_dim) for _ in range(depth))
        self.input_proj = nn.Linear(input_dim, dim) if input_dim != dim else nn.Identity()
        self.cond_proj = nn.Linear(input_dim, dim) if input_dim != dim else nn.Identity()
        self.output_proj = nn.Linear(dim, output_dim) if output_dim != dim else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x, c = self.input_proj(x), self.cond_proj(c)
        for layer in self.layers:
            x = layer(x, c)
        return self.output_proj(self.norm(x))


class Predictor(nn.Module):
    """Latents and action embeddings (S, T, input_dim), T <= num_frames, to next latents (S, T, output_dim)."""

    def __init__(
        self, num_frames: int, depth: int, heads: int, mlp_dim: int, input_dim: int, hidden_dim: int,
        output_dim: int | None = None, dim_head: int = 64,
    ):  # fmt: skip
        super().__init__()
        self.num_frames = num_frames
        self.pos_embedding = nn.Parameter(torch.zeros(1, num_frames, input_dim))
        self.transformer = ConditionalTransformer(
            input_dim, hidden_dim, output_dim or input_dim, depth, heads, dim_head, mlp_dim
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.transformer(x + self.pos_embedding[:, : x.shape[1]], c)


class Embedder(nn.Module):
    """Actions (S, T, input_dim) to embeddings (S, T, emb_dim): a 1-tap convolution over time, then two layers."""

    def __init__(self, input_dim: int = 10, smoothed_dim: int = 10, emb_dim: int = 10, mlp_scale: int = 4):
        super().__init__()
        self.patch_embed = nn.Conv1d(input_dim, smoothed_dim, 1)
        self.embed = nn.Sequential(
            nn.Linear(smoothed_dim, mlp_scale * emb_dim), nn.SiLU(), nn.Linear(mlp_scale * emb_dim, emb_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.patch_embed(x.transpose(1, 2)).transpose(1, 2))


class MLP(nn.Module):
    """(N, input_dim) to (N, output_dim) through one normalised hidden layer."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int | None, norm: type[nn.Module] | None):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(input_dim, hidden_dim), nn.Identity() if norm is None else norm(hidden_dim), nn.GELU(),
            nn.Linear(hidden_dim, output_dim or input_dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class LeWM(nn.Module):
    """The five parts under their upstream names; rollout and criterion as upstream's `rollout` and `criterion`."""

    def __init__(
        self, encoder: ViT, predictor: Predictor, action_encoder: Embedder, projector: nn.Module, pred_proj: nn.Module
    ):
        super().__init__()
        self.encoder, self.predictor, self.action_encoder = encoder, predictor, action_encoder
        self.projector, self.pred_proj = projector, pred_proj

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, latent)."""
        return self.projector(self.encoder(images))

    def predict(self, z: Tensor, embedded: Tensor) -> Tensor:
        """Latents and action embeddings (S, T, latent) to the next latent of each, (S, T, latent)."""
        found = self.predictor(z, embedded)
        return self.pred_proj(found.flatten(0, 1)).unflatten(0, found.shape[:2])

    def rollout(self, z: Tensor, actions: Tensor) -> Tensor:
        """From context (S, T0, latent) through actions (S, T, action), T >= T0: all T + 1 latents."""
        embedded, latents = self.action_encoder(actions), list(z.unbind(1))
        for t in range(z.shape[1], actions.shape[1] + 1):
            start = max(0, t - self.predictor.num_frames)
            latents.append(self.predict(torch.stack(latents[start:], 1), embedded[:, start:t])[:, -1])
        return torch.stack(latents, 1)

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        """Squared distance, summed, between the last latent of (S, T, latent) and the goal (S, latent)."""
        return (z[:, -1] - goal).square().sum(-1)

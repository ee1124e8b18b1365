"""LeWM with seeded random weights: for speed, which does not depend on them; fidelity is never judged on it.

AdaLN gates are not at zero, so that the cost really depends on the actions.
"""

from __future__ import annotations

import torch

from ..program import Planner
from . import stable_worldmodel
from .model import Model


def config(
    size: str = "tiny", image_px: int = 224, patch_px: int = 14, latent: int = 192, depth: int = 6, heads: int = 16,
    dim_head: int = 64, mlp_dim: int = 2048, proj_dim: int = 2048, action_dim: int = 10, **vit: int,
) -> dict:  # fmt: skip
    """The `_target_` tree of the published LeWM (the defaults), or of a smaller one."""
    head = {
        "_target_": stable_worldmodel.PARTS + "MLP", "input_dim": latent, "hidden_dim": proj_dim, "output_dim": latent,
        "norm_fn": {"_target_": "torch.nn.BatchNorm1d", "_partial_": True},
    }  # fmt: skip
    return {
        "_target_": stable_worldmodel.ROOTS[0],
        "encoder": {
            "_target_": stable_worldmodel.VIT, "size": size, "patch_size": patch_px, "image_size": image_px,
            "pretrained": False, "use_mask_token": False, **vit,
        },
        "predictor": {
            "_target_": stable_worldmodel.PARTS + "Predictor", "num_frames": 3, "input_dim": latent,
            "hidden_dim": latent, "output_dim": latent, "depth": depth, "heads": heads, "mlp_dim": mlp_dim,
            "dim_head": dim_head, "dropout": 0.1, "emb_dropout": 0.0,
        },
        "action_encoder": {
            "_target_": stable_worldmodel.PARTS + "Embedder", "input_dim": action_dim, "emb_dim": latent,
        },
        "projector": head,
        "pred_proj": head,
    }  # fmt: skip


def initialise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every weight drawn anew, in state-dict order: matrices by 1/sqrt(fan-in), norms near 1, biases near 0."""
    generator = torch.Generator().manual_seed(seed)
    norms = (torch.nn.LayerNorm, torch.nn.BatchNorm1d)
    scales = {f"{path}.weight" for path, m in module.named_modules() if isinstance(m, norms)}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        if name in scales:
            value = 1 + 0.1 * drawn
        elif name.endswith("running_var"):
            value = 0.5 + drawn.abs()
        elif tensor.ndim == 1:
            value = 0.1 * drawn
        elif "pos" in name or "token" in name:
            value = 0.5 * drawn
        else:
            value = drawn / tensor[0].numel() ** 0.5
        tensor.copy_(value)
    return module.eval().requires_grad_(False)


def lewm(seed: int = 0, planner: Planner = stable_worldmodel.PLANNER, **sizes: int) -> Model:
    """The full-size LeWM (18.04M numbers): 224 px images, latent 192, 6 blocks of 16 x 64 heads, actions of 10."""
    module, image_px, action_dim = stable_worldmodel.build(config(**sizes), "edgewm.models.synthetic")
    return stable_worldmodel.lewm(initialise(module, seed), image_px, action_dim, planner)

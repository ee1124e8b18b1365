"""The reference network: `torch_world.models.LeWM` on a small ViT, built from and loaded by a JSON config.

build(config)      a fresh module            config["model"] names every size
load(path)         config.json + weights.safetensors (fp16) -> eval mode, fp32
normalise(pixels)  what the network eats: the exact preprocessing, also stated in config["preprocessing"]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_world.losses.sigreg import SIGReg
from torch_world.models import LeWM
from torch_world.nn import CLSEncoder
from torch_world.nn.transformer import MLP

from edgewm.errors import EdgewmError

PREPROCESSING = {
    "input": "uint8 HWC RGB 64x64",
    "layout": "CHW",
    "scale": 1.0 / 255.0,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "formula": "(pixels * scale - mean) / std, channels moved first",
}

MODEL = {
    "family": "lewm",
    "image_px": 64,
    "patch_px": 8,
    "embed_dim": 128,
    "encoder": {"depth": 3, "num_heads": 8, "mlp_ratio": 2.0},
    "predictor": {"depth": 3, "num_heads": 8, "head_dim": 16, "mlp_dim": 256},
    "proj_dim": 256,
    "history": 3,
    "env_action_dim": 2,
    "action_block": 5,
    "sigreg": {"lamb": 0.09, "num_slices": 256},
}


class JumpingLeWM(LeWM):
    """A LeWM that sees one latent and all actions since, up to `history` of them, at once: H steps of a candidate take
    H / history calls.

    Of a shorter prefix the later actions are zeros; how long it is says the position that is added to the latent. Each
    latent is so predicted from the oldest one of its window, as `rollout` hands it over: what is only passed through is
    read by nobody, and a compiler leaves it out.
    """

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        """`z` (B, T, D) and `actions` (B, T, A), T up to `history`, to the latent after the last one, (B, 1, D)."""
        length = z.shape[1]
        if length < self.history:
            missing = (len(actions), self.history - length, actions.shape[2])
            later = torch.zeros(missing, dtype=actions.dtype, device=actions.device)
            actions = torch.cat([actions, later], 1)
        taken = actions.flatten(1).unsqueeze(1)
        seen = z[:, :1] + self.pos_embed[:, length - 1 : length]
        return self.pred_proj(self.predictor(seen, self.action_encoder(taken), is_causal=True).flatten(0, 1))[:, None]


def build(config: dict[str, Any]) -> LeWM:
    """A freshly initialised model for `config["model"]`; one model action is `action_block` environment actions.

    The encoder section may state an `embed_dim` and a `proj_dim` of its own: a small predictor behind a large encoder.
    With a `jump` of more than 1 it foresees as many model actions in one call.
    The predictor's may state a `condition_dim`: so few numbers say to all layers what an action is (`few_numbers`).
    """
    m, sizes, predictor = config["model"], dict(config["model"]["encoder"]), dict(config["model"]["predictor"])
    condition = predictor.pop("condition_dim", None)
    seen, proj = sizes.pop("embed_dim", m["embed_dim"]), sizes.pop("proj_dim", m["proj_dim"])
    encoder = CLSEncoder(m["image_px"], m["patch_px"], seen, **sizes)
    jump = m.get("jump", 1)
    model = (JumpingLeWM if jump > 1 else LeWM)(
        encoder,
        action_dim=jump * m["action_block"] * m["env_action_dim"],
        embed_dim=m["embed_dim"],
        history=jump if jump > 1 else m["history"],
        **predictor,
        proj_dim=m["proj_dim"],
        dropout=0.0,
        lamb=m["sigreg"]["lamb"],
        sigreg=SIGReg(m["sigreg"]["num_slices"]),
    )
    if (seen, proj) != (m["embed_dim"], m["proj_dim"]):
        model.projector = MLP([seen, proj, m["embed_dim"]], norm=nn.BatchNorm1d)
    if condition is not None:
        few_numbers(model, condition)
    return model


def few_numbers(model: LeWM, count: int) -> None:
    """Let every layer's modulation be linear in the same `count` numbers of an action: one thin product for all layers
    and a thin one for each, in the place of a square one each."""
    width = model.pos_embed.shape[-1]
    model.action_encoder = nn.Sequential(*model.action_encoder, nn.SiLU(), nn.Linear(width, count, bias=False))
    for block in model.predictor.blocks:
        block.modulation = nn.Sequential(nn.Linear(count, 6 * width))
        nn.init.zeros_(block.modulation[0].weight)
        nn.init.zeros_(block.modulation[0].bias)


def normalise(pixels: Tensor) -> Tensor:
    """uint8 `(..., 64, 64, 3)` to float32 `(..., 3, 64, 64)` in [-1, 1]."""
    mean, std = (torch.tensor(PREPROCESSING[k], device=pixels.device) for k in ("mean", "std"))
    return ((pixels.float() * PREPROCESSING["scale"] - mean) / std).movedim(-1, -3)


def load(path: str | Path) -> LeWM:
    """The trained model in `path`, in eval mode, fp32, every weight accounted for."""
    path = Path(path)
    for name in ("config.json", "weights.safetensors"):
        if not (path / name).is_file():
            raise EdgewmError(f"no {name}", str(path), "give a directory that edgewm.reference.train wrote")
    model = build(json.loads((path / "config.json").read_text()))
    found, wanted = load_file(path / "weights.safetensors"), shipped_weights(model)
    where = str(path / "weights.safetensors")
    for what, names in (("missing", wanted.keys() - found.keys()), ("unexpected", found.keys() - wanted.keys())):
        if names:
            raise EdgewmError(
                f"{what} weight {sorted(names)[0]} ({len(names)} in all)",
                where,
                "export the weights again, or use the config.json they were trained with",
            )
    for name, w in found.items():
        if w.shape != wanted[name].shape:
            raise EdgewmError(
                f"weight {name} has shape {tuple(w.shape)}, config.json asks for {tuple(wanted[name].shape)}",
                where,
                "use the config.json the weights were trained with",
            )
    model.load_state_dict({k: w.float() for k, w in found.items()}, strict=False)
    return model.eval().requires_grad_(False)


def shipped_weights(model: LeWM) -> dict[str, Tensor]:
    """What inference needs, in fp16: no training loss, no counters."""
    state = model.state_dict().items()
    return {k: v.half().contiguous().cpu() for k, v in state if not k.startswith("sigreg.") and v.is_floating_point()}


def parameter_count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())

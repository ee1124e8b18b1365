"""LeWM of torch-world: `torch_world.models.LeWM` on its own ViT, as a checkpoint or as an instance.

Rollout and cost are upstream's (`WorldModel.rollout`, `WorldModel.cost`): the mean squared distance of the last
imagined latent to the goal's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EdgewmError
from ..program import Planner, Port
from .checkpoint import fill, read_weights, sha256
from .model import Model
from .robot import with_robot
from .scoring import path_score, score

FAMILY = "torch_world.lewm"
PLANNER = Planner(first_candidate_is_mean=False, iterations=10)


def lewm(
    module: torch.nn.Module,
    image_px: tuple[int, int],
    action_dim: int,
    planner: Planner | None = None,
    action: Port | None = None,
    scale: float = 1 / 255,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    rate_hz: float = 0.0,
) -> Model:
    """A trained `torch_world.models.LeWM` as a Model: frames are uint8 (1, height, width, 3), turned into
    `(pixels * scale - mean) / std`; `action_dim` is one model action's; `action` declares the robot's port."""
    planner = planner or PLANNER
    latent = module.pos_embed.shape[-1]

    def encode(m: torch.nn.Module, pixels: Tensor) -> Tensor:
        kind = m.pos_embed.dtype
        shift, width = (torch.tensor(x, dtype=kind, device=m.pos_embed.device) for x in (mean, std))
        x = (pixels.to(kind) * scale - shift) / width
        return m.encode(x.movedim(-1, -3).unsqueeze(1)).squeeze(1)

    frame = {
        "shape": (1, *image_px, 3), "dtype": "u8", "low": 0.0, "high": 255.0, "rate_hz": rate_hz,
        "preprocessing": f"(pixels * {scale} - {list(mean)}) / {list(std)}",
    }  # fmt: skip
    return Model(
        family=FAMILY, torch=module.eval(), encode=encode, predict=predict, score=score, path_score=path_score,
        latent_dim=latent, action_dim=action_dim, planner=planner, window=module.history,
        ports=(
            Port("pixels", "observation", **frame), Port("goal", "goal", **frame),
            action or Port("action", "action", (action_dim // planner.action_block,), rate_hz=rate_hz),
        ),
    )  # fmt: skip


def predict(module: torch.nn.Module, z: Tensor, actions: Tensor) -> Tensor:
    return module.predict(z, actions)[:, -1]


def recognises(config: dict[str, Any]) -> bool:
    model = config.get("model")
    return isinstance(model, dict) and model.get("family") == "lewm" and "predictor" in model


def load(path: Path, config: dict[str, Any], file: Path) -> Model:
    """The checkpoint that `edgewm.reference.train` writes. EdgewmError for a wrong config, weight or shape."""
    from ..reference.model import build

    try:
        module, m, image = build(config), config["model"], config["preprocessing"]
        shape = (m["image_px"], m["image_px"])
        block, action_dim = m["action_block"], m["action_block"] * m["env_action_dim"]
        pixels = {k: image[k] for k in ("scale", "mean", "std")}
    except (KeyError, TypeError) as fault:
        where = str(path / "config.json")
        raise EdgewmError(f"config.json lacks {fault}", where, "export the checkpoint again") from fault
    fill(module, read_weights(file), str(file), unused=("sigreg.",))
    planner = replace(PLANNER, action_block=block, commit_steps=block)
    model = lewm(module, shape, action_dim, planner, **pixels)
    return with_robot(replace(model, files=sha256(path / "config.json", file)), path, trained_block=block)

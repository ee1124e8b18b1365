"""LeWM as stable-worldmodel publishes it: `config.json`, a tree of `_target_`s, beside a state dict.

Only the targets below are known, and none is imported: each is built from edgewm's own modules. The ViT's weights may
have the names of transformers 4 or 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EdgewmError
from ..program import Planner, Port
from .checkpoint import fill, read_weights, sha256
from .lewm_modules import MLP, Embedder, LeWM, Predictor, ViT
from .model import Model
from .robot import with_robot
from .scoring import path_score, score

FAMILY = "stable_worldmodel.lewm"
ROOTS = ("stable_worldmodel.wm.lewm.LeWM", "stable_worldmodel.wm.lewm.lewm.LeWM")
VIT = "stable_pretraining.backbone.utils.vit_hf"
PARTS = "stable_worldmodel.wm.lewm.module."
NORMS = {"torch.nn.BatchNorm1d": nn.BatchNorm1d, "torch.nn.LayerNorm": nn.LayerNorm}
IDENTITY = "torch.nn.Identity"
SIZES = {  # channels, layers, heads
    "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16),
}  # fmt: skip
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# plan/config of stable-worldmodel: 300 x 30, 30 elites, 5 blocks of 5 periods, all of them played
PLANNER = Planner(action_block=5, commit_steps=25)

TRANSFORMERS_4 = (
    (r"^encoder\.encoder\.layer\.(\d+)\.attention\.attention\.query\.", r"encoder.layers.\1.attention.q_proj."),
    (r"^encoder\.encoder\.layer\.(\d+)\.attention\.attention\.key\.", r"encoder.layers.\1.attention.k_proj."),
    (r"^encoder\.encoder\.layer\.(\d+)\.attention\.attention\.value\.", r"encoder.layers.\1.attention.v_proj."),
    (r"^encoder\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"encoder.layers.\1.attention.o_proj."),
    (r"^encoder\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^encoder\.encoder\.layer\.(\d+)\.output\.dense\.", r"encoder.layers.\1.mlp.fc2."),
    (r"^encoder\.encoder\.layer\.(\d+)\.", r"encoder.layers.\1."),
)


def recognises(config: dict[str, Any]) -> bool:
    return isinstance(config.get("_target_"), str)


def load(path: Path, config: dict[str, Any], file: Path) -> Model:
    """The checkpoint directory's model. EdgewmError for an unknown target or key, or a weight that does not fit."""
    module, image_px, action_dim = build(config, str(path / "config.json"))
    fill(module, rename(read_weights(file)), str(file), unused=("encoder.embeddings.mask_token",))
    return with_robot(replace(lewm(module, image_px, action_dim), files=sha256(path / "config.json", file)), path)


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers 4 names of the ViT's weights to those of transformers 5; all others as they are."""

    def renamed(name: str) -> str:
        for pattern, by in TRANSFORMERS_4:
            name, n = re.subn(pattern, by, name)
            if n:
                break
        return name

    return {renamed(name): tensor for name, tensor in weights.items()}


def lewm(module: LeWM, image_px: int, action_dim: int, planner: Planner = PLANNER) -> Model:
    """An instance as a Model: frames are uint8 (1, image_px, image_px, 3), normalised as ImageNet's."""
    frame = {
        "shape": (1, image_px, image_px, 3), "dtype": "u8", "low": 0.0, "high": 255.0,
        "preprocessing": f"(pixels / 255 - {list(IMAGENET['mean'])}) / {list(IMAGENET['std'])}",
    }  # fmt: skip
    return Model(
        family=FAMILY, torch=module.eval(), encode=encode, predict=predict, score=score, path_score=path_score,
        latent_dim=module.predictor.pos_embedding.shape[-1], action_dim=action_dim, planner=planner,
        window=module.predictor.num_frames,
        ports=(
            Port("pixels", "observation", **frame), Port("goal", "goal", **frame),
            Port("action", "action", (action_dim // planner.action_block,)),
        ),
    )  # fmt: skip


def encode(module: LeWM, pixels: Tensor) -> Tensor:
    kind, device = module.predictor.pos_embedding.dtype, module.predictor.pos_embedding.device
    mean, std = (torch.tensor(IMAGENET[k], dtype=kind, device=device) for k in ("mean", "std"))
    return module.encode(((pixels.to(kind) / 255 - mean) / std).movedim(-1, -3))


def predict(module: LeWM, z: Tensor, actions: Tensor) -> Tensor:
    return module.predict(z, module.action_encoder(actions))[:, -1]


# ------------------------------------------------------------------------------------------------- config to modules


def build(config: Mapping[str, Any], where: str) -> tuple[LeWM, int, int]:
    """The module a `_target_` tree describes, the side of its images in pixels, and its action's length."""
    root = _section(config, "", ROOTS, {"encoder", "predictor", "action_encoder"}, {"projector", "pred_proj"}, where)
    encoder, image_px = _vit(root["encoder"], where)
    predictor = _made(
        Predictor, root["predictor"], "predictor", PARTS + "Predictor",
        {"num_frames", "depth", "heads", "mlp_dim", "input_dim", "hidden_dim"}, {"output_dim", "dim_head"},
        where, {"dropout", "emb_dropout"},
    )  # fmt: skip
    embedder = _made(
        Embedder, root["action_encoder"], "action_encoder", PARTS + "Embedder", set(),
        {"input_dim", "smoothed_dim", "emb_dim", "mlp_scale"}, where,
    )  # fmt: skip
    heads = [_mlp(root.get(name), name, where) for name in ("projector", "pred_proj")]
    return LeWM(encoder, predictor, embedder, *heads).eval(), image_px, embedder.patch_embed.in_channels


def _section(
    section: Any, path: str, targets: tuple[str, ...], required: set[str], optional: set[str], where: str
) -> dict[str, Any]:
    """The section's keys but `_target_`, checked. EdgewmError naming the key."""
    label = path or "the top level"
    if not isinstance(section, Mapping):
        raise EdgewmError(f"{label} is no object with a _target_", where, "export config.json again")
    target = section.get("_target_")
    if target not in targets:
        raise EdgewmError(
            f"{label} has _target_ {target!r}, which edgewm does not know", where,
            f"known here: {', '.join(targets)}; for another architecture give module:function",
        )  # fmt: skip
    keys = set(section) - {"_target_"}
    for what, names in (("lacks", required - keys), ("has unknown", keys - required - optional)):
        if names:
            fix = f"{target} takes {', '.join(sorted(required | optional))}"
            raise EdgewmError(f"{label} {what} {sorted(names)[0]!r}", where, fix)
    return {k: v for k, v in section.items() if k != "_target_"}


def _made(
    make: Callable, section: Any, path: str, target: str, required: set[str], optional: set[str], where: str,
    training: frozenset[str] | set[str] = frozenset(),
) -> Any:  # fmt: skip
    keys = _section(section, path, (target,), required, optional | set(training), where)
    sizes = {k: v for k, v in keys.items() if k not in training and v is not None}
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise EdgewmError(f"{path}.{key} is {value!r}", where, "give a positive integer")
    return make(**sizes)


def _vit(section: Any, where: str) -> tuple[ViT, int]:
    known = {
        "image_size", "pretrained", "use_mask_token", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "layer_norm_eps",
    }  # fmt: skip
    keys = {"image_size": 224} | _section(section, "encoder", (VIT,), {"size", "patch_size"}, known, where)
    if keys["size"] not in SIZES:
        raise EdgewmError(f"encoder.size is {keys['size']!r}", where, f"known sizes: {', '.join(SIZES)}")
    dim, depth, heads = SIZES[keys["size"]]
    dim, depth = keys.get("hidden_size", dim), keys.get("num_hidden_layers", depth)
    heads, hidden = keys.get("num_attention_heads", heads), keys.get("intermediate_size", 4 * SIZES[keys["size"]][0])
    if keys["image_size"] % keys["patch_size"] or dim % heads:
        raise EdgewmError(
            f"encoder of {keys['image_size']} px in patches of {keys['patch_size']}, {dim} channels in {heads} heads",
            where, "give sizes that divide",
        )  # fmt: skip
    eps = keys.get("layer_norm_eps", 1e-12)
    return ViT(keys["image_size"], keys["patch_size"], dim, depth, heads, hidden, eps), keys["image_size"]


def _mlp(section: Any, path: str, where: str) -> nn.Module:
    if section is None or (isinstance(section, Mapping) and section.get("_target_") == IDENTITY):
        return nn.Identity()
    known = {"output_dim", "norm_fn", "act_fn"}
    keys = _section(section, path, (PARTS + "MLP",), {"input_dim", "hidden_dim"}, known, where)
    norm = keys.pop("norm_fn", {"_target_": "torch.nn.LayerNorm"})
    if norm is not None:
        target = norm.get("_target_") if isinstance(norm, Mapping) else norm
        if target not in NORMS:
            raise EdgewmError(f"{path}.norm_fn is {target!r}", where, f"known: {', '.join(NORMS)}")
        norm = NORMS[target]
    act = keys.pop("act_fn", None)
    if (act.get("_target_") if isinstance(act, Mapping) else act) not in (None, "torch.nn.GELU"):
        raise EdgewmError(f"{path}.act_fn is {act!r}", where, "known: torch.nn.GELU")
    return MLP(keys["input_dim"], keys["hidden_dim"], keys.get("output_dim"), norm)

"""What a student may look like.

A student is torch-world's LeWM, whatever its teacher is: one frame to one latent, a causal transformer over the last
`window` latents. Smaller ones are the teacher's sizes in halves and quarters; those of one latent may foresee several
actions in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch_world.nn.transformer import Transformer

from ..errors import EdgewmError
from ..models import Model, torch_world
from ..program import Planner
from ..reference.model import PREPROCESSING, JumpingLeWM

WIDTHS = (1.0, 0.75, 0.5, 0.25)  # of the teacher's
INNER = 0.5  # of its heads and channels, of layers as wide as the teacher's
LEAST_SAMPLES = 16  # of a planner that is made smaller


@dataclass(frozen=True)
class Shape:
    """Sizes of a LeWM: `width` of latents and of the predictor, `window` the latents it looks at; and its encoder's.
    A `jump` is as many model actions as it foresees in one call, from one latent."""

    width: int
    depth: int
    heads: int
    head_dim: int
    mlp_dim: int
    proj_dim: int
    window: int
    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    encoder_mlp_ratio: float
    encoder_proj_dim: int
    patch_px: int
    jump: int = 1

    @property
    def step_weights(self) -> int:
        """Numbers that one imagined step of one candidate goes through, or one jump, but for those of its actions."""
        inner = self.heads * self.head_dim
        attention = self.width * inner * (4 if self.window > 1 else 2)  # over one key, only values and the way out
        return self.depth * (attention + 2 * self.width * self.mlp_dim) + 2 * self.width * self.proj_dim

    def holds(self, other: Shape) -> bool:
        """Whether no size of the other is larger, and no jump shorter."""
        mine, its = (astuple(replace(shape, jump=-shape.jump)) for shape in (self, other))
        return all(a >= b for a, b in zip(mine, its, strict=True))


def of_teacher(model: Model) -> Shape:
    """The shape of a LeWM of torch-world; of another family's, one with as wide a latent."""
    width = model.latent_dim
    if model.family != torch_world.FAMILY:
        heads = max(1, width // 32)
        side = camera_px(model)
        sizes = (3, heads, width // heads, 2 * width, 2 * width, model.window)
        return Shape(width, *sizes, width, 3, heads, 2.0, 2 * width, max(1, side // 4))
    module = model.torch
    blocks, seen = module.predictor.blocks, encoder_blocks(module)
    window, jump = (1, module.history) if isinstance(module, JumpingLeWM) else (module.history, 1)
    first = blocks[0]
    patch = next(m for m in module.encoder.modules() if isinstance(m, torch.nn.Conv2d)).kernel_size[0]
    return Shape(
        width, len(blocks), first.attn.num_heads, first.attn.head_dim, first.mlp[0].out_features,
        module.pred_proj[0].out_features, window, module.encoder.embed_dim, len(seen), seen[0].attn.num_heads,
        seen[0].mlp[0].out_features / module.encoder.embed_dim, module.projector[0].out_features, patch, jump,
    )  # fmt: skip


def encoder_blocks(module: torch.nn.Module) -> torch.nn.ModuleList:
    """The transformer blocks of a LeWM's encoder, in order."""
    return next(m for m in module.encoder.modules() if isinstance(m, Transformer)).blocks


def camera_px(model: Model) -> int:
    """Side of the one square colour picture that the model sees. EdgewmError where it sees anything else."""
    (camera, *more) = model.ports_of("observation")
    if more or camera.dtype != "u8" or len(camera.shape) != 4 or camera.shape[0] != 1 or camera.shape[3] != 3:
        ports = ", ".join(f"{p.name} {p.dtype} {tuple(p.shape)}" for p in model.ports_of("observation"))
        raise EdgewmError(
            f"the teacher sees {ports}", "MODEL", "a student sees one uint8 colour picture: distil a model that does"
        )
    if camera.shape[1] != camera.shape[2]:
        raise EdgewmError(f"pictures of {camera.shape[1]} x {camera.shape[2]}", "MODEL", "give it square ones")
    return camera.shape[1]


def shapes(teacher: Shape) -> Iterator[Shape]:
    """Every shape considered, the teacher's own first; then layers of half its heads and channels, which still see its
    latents and begin with what they had; then narrower ones. The encoder stays: it runs twice a plan, not thousands of
    times, and a student that has its teacher's sees what its teacher sees."""
    scaled = [dict.fromkeys(("width", "heads", "mlp_dim", "proj_dim"), share) for share in WIDTHS]
    for window in dict.fromkeys((teacher.window, 1)):
        for shares in (scaled[0], {"heads": INNER, "mlp_dim": INNER}, *scaled[1:]):
            sizes = {key: round(share * getattr(teacher, key)) for key, share in shares.items()}
            if any(sizes[key] != shares[key] * getattr(teacher, key) for key in ("width", "heads") if key in sizes):
                continue
            for depth in range(teacher.depth, 0, -1):
                yield replace(teacher, **sizes, window=window, depth=depth)


def jumping(found: Iterable[Shape], horizon: int) -> Iterator[Shape]:
    """The shapes found, and those of one latent with each jump that takes fewer calls to the horizon, short ones first:
    a large student that jumps plans better than a small one that steps (`benchmarks/students.py`)."""
    jumps = dict.fromkeys(-(-horizon // calls) for calls in range(horizon, 0, -1))
    for shape in found:
        yield from (replace(shape, jump=jump) for jump in (jumps if shape.window == 1 else (1,)))


def planners(teacher: Planner) -> Iterator[Planner]:
    """The teacher's planner, then smaller ones: samples are halved first, since a plan loses more with iterations
    (`benchmarks/proposals.py`: 26 x 8 beside 102 x 2)."""
    planner = teacher
    while True:
        yield planner
        samples, iterations = planner.samples // 2, planner.iterations
        if samples < LEAST_SAMPLES:
            samples, iterations = planner.samples, -(-iterations // 2)
        if (samples, iterations) == (planner.samples, planner.iterations):
            return
        planner = smaller(teacher, samples, iterations)


def smaller(planner: Planner, samples: int, iterations: int) -> Planner:
    """The planner with fewer candidates, and as large a share of elites."""
    elites = min(samples, max(2, round(planner.elites * samples / planner.samples)))
    return replace(planner, samples=samples, iterations=iterations, elites=elites)


def config_of(shape: Shape, model: Model) -> dict[str, Any]:
    """`config.json` of a student of this shape for the teacher `model`: a checkpoint of torch-world's LeWM."""
    side, block = camera_px(model), model.planner.action_block
    if side % shape.patch_px:
        raise EdgewmError(f"patches of {shape.patch_px} in pictures of {side} px", "MODEL", "distil a model of others")
    return {
        "schema_version": 1,
        "model": {
            "family": "lewm", "image_px": side, "patch_px": shape.patch_px, "embed_dim": shape.width,
            "encoder": {
                "depth": shape.encoder_depth, "num_heads": shape.encoder_heads, "mlp_ratio": shape.encoder_mlp_ratio,
                "embed_dim": shape.encoder_width, "proj_dim": shape.encoder_proj_dim,
            },
            "predictor": {
                "depth": shape.depth, "num_heads": shape.heads, "head_dim": shape.head_dim, "mlp_dim": shape.mlp_dim,
            },
            "proj_dim": shape.proj_dim, "history": shape.window, "env_action_dim": model.action_dim // block,
            "action_block": block, "jump": shape.jump, "sigreg": {"lamb": 0.0, "num_slices": 1},
        },
        "preprocessing": PREPROCESSING | {"input": f"uint8 HWC RGB {side}x{side}"},
    }  # fmt: skip


def as_model(
    module: torch.nn.Module, model: Model, planner: Planner, proposal: torch.nn.Module | None = None
) -> Model:  # fmt: skip
    """A student's module, and its proposal, with the ports of its teacher `model`, in memory."""
    side = camera_px(model)
    pixels = {key: PREPROCESSING[key] for key in ("scale", "mean", "std")}
    made = torch_world.lewm(module, (side, side), model.action_dim, planner, model.ports_of("action")[0], **pixels)
    renamed = zip(made.ports, (*model.ports_of("observation"), *model.ports_of("goal")), strict=False)
    ports = tuple(replace(p, name=t.name, rate_hz=t.rate_hz, max_age_ns=t.max_age_ns) for p, t in renamed)
    return replace(made, ports=(*ports, made.ports[-1]), proposal=proposal)

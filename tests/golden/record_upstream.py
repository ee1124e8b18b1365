"""Record what upstream's own code answers, for tests that run without it.

    pip install --no-deps stable-worldmodel==0.1.1
    pip install 'transformers<5' einops gymnasium loguru safetensors       (torch and edgewm beside them)
    python tests/golden/record_upstream.py

writes, beside this file,

    lewm_upstream.safetensors      a tiny LeWM's weights under the names of transformers 4, and what stable-worldmodel's
                                   modules make of two frames and four action sequences
    solvers_upstream.safetensors   plans of its CEMSolver, ICEMSolver and MPPISolver with that model, each with the
                                   noise it drew; the settings of each are in the file's metadata

Everything is computed in float64; noise is rounded to float32 first, so that it can be handed to an edgewm plan as it
is. The package's `__init__` imports every environment it has; only its solvers and its LeWM are needed here, so it is
passed over. Candidates are future actions alone, as in the package's later `planning`: where several frames are given,
the actions between them are put in front (0.1.1 would search these too).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgewm.models import stable_worldmodel, synthetic

HERE = Path(__file__).parent
SIZES = {
    "image_px": 16, "patch_px": 8, "latent": 16, "depth": 2, "heads": 2, "dim_head": 12, "mlp_dim": 32, "proj_dim": 24,
    "action_dim": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
WEIGHT_SEED, INPUT_SEED = 1, 2
BLOCK = 2
COMMON = {"samples": 12, "iterations": 3, "elites": 4, "horizon": 4}
CASES: dict[str, dict[str, Any]] = {
    "cem": {"kind": "cem"},
    "cem_warm_3_frames": {"kind": "cem", "history": 3, "warm": True, "var_scale": 0.7},
    "icem": {"kind": "icem", "low": -1.0, "high": 1.0},
    "icem_warm_2_frames": {"kind": "icem", "history": 2, "warm": True, "horizon": 5, "noise_beta": 1.0, "alpha": 0.3},
    "icem_best_3_frames": {
        "kind": "icem", "history": 3, "return_mean": False, "n_elite_keep": 2, "low": -0.6, "high": 0.9,
    },
    "icem_keeping_none": {"kind": "icem", "horizon": 2, "n_elite_keep": 0, "alpha": 0.0},
    "mppi": {"kind": "mppi", "temperature": 2.0},
    "mppi_warm_3_frames": {"kind": "mppi", "history": 3, "warm": True, "temperature": 5.0, "elites": 12},
}  # fmt: skip


def upstream_package() -> None:
    """The packages `stable_worldmodel` and its parts without running their `__init__`."""
    spec = importlib.util.find_spec("stable_worldmodel")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("no stable_worldmodel here: pip install --no-deps stable-worldmodel==0.1.1")
    (root,) = spec.submodule_search_locations
    for name in ("stable_worldmodel", "stable_worldmodel.wm", "stable_worldmodel.wm.lewm"):
        package = ModuleType(name)
        package.__path__ = [str(Path(root, *name.split(".")[1:]))]
        sys.modules[name] = package


def model_of(weights: dict[str, Tensor]) -> torch.nn.Module:
    """stable-worldmodel's LeWM on transformers' ViT, float64."""
    from stable_worldmodel.wm.lewm.lewm import LeWM
    from stable_worldmodel.wm.lewm.module import MLP, Embedder, Predictor
    from transformers import ViTConfig, ViTModel

    s = SIZES
    vit = ViTConfig(
        hidden_size=s["hidden_size"], num_hidden_layers=s["num_hidden_layers"], image_size=s["image_px"],
        num_attention_heads=s["num_attention_heads"], intermediate_size=s["intermediate_size"],
        patch_size=s["patch_px"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    predictor = Predictor(
        num_frames=3, depth=s["depth"], heads=s["heads"], mlp_dim=s["mlp_dim"], input_dim=s["latent"],
        hidden_dim=s["latent"], dim_head=s["dim_head"],
    )  # fmt: skip
    heads = (MLP(s["latent"], s["proj_dim"], s["latent"], norm_fn=torch.nn.BatchNorm1d) for _ in range(2))
    embedder = Embedder(input_dim=s["action_dim"], emb_dim=s["latent"])
    model = LeWM(ViTModel(vit, add_pooling_layer=False), predictor, embedder, *heads)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any("num_batches_tracked" not in name for name in missing):
        sys.exit(f"the state dict does not fit: missing {missing}, unexpected {unexpected}")
    return model.double().eval().requires_grad_(False)


def weights() -> dict[str, Tensor]:
    """Seeded, float32, under the names of transformers 4."""
    module, _, _ = stable_worldmodel.build(synthetic.config(**SIZES), "record_upstream")
    state = synthetic.initialise(module, WEIGHT_SEED).state_dict()
    older = {new.replace(r"\1", "{}"): old for old, new in stable_worldmodel.TRANSFORMERS_4}

    def renamed(name: str) -> str:
        parts = name.split(".")
        if parts[:2] != ["encoder", "layers"]:
            return name
        for new, old in older.items():
            start = new.format(parts[2])
            if name.startswith(start):
                end = old.lstrip("^").replace(r"(\d+)", parts[2]).replace("\\", "")
                return end + name[len(start) :]
        return name

    return {renamed(k): v.contiguous() for k, v in state.items() if "num_batches_tracked" not in k}


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (T, H, W, 3) to what the model eats, (T, 3, H, W) float64."""
    mean, std = (torch.tensor(stable_worldmodel.IMAGENET[k], dtype=torch.float64) for k in ("mean", "std"))
    return ((pixels.double() / 255 - mean) / std).movedim(-1, -3)


def modules_answer(model: torch.nn.Module, draw: torch.Generator) -> dict[str, Tensor]:
    """Latents of two frames; imagined latents and costs of four action sequences from the first to the second."""
    pixels = torch.randint(0, 256, (2, SIZES["image_px"], SIZES["image_px"], 3), generator=draw, dtype=torch.uint8)
    actions = torch.randn(4, 5, SIZES["action_dim"], generator=draw, dtype=torch.float32)
    frames = normalised(pixels)
    z = model.encode({"pixels": frames[:, None]})["emb"][:, 0]
    count = len(actions)
    info = {
        "pixels": frames[:1].expand(1, count, 1, -1, -1, -1), "goal": frames[1:].expand(1, count, 1, -1, -1, -1),
        "action": torch.zeros(1, count, 1, SIZES["action_dim"]),
    }  # fmt: skip
    cost = model.get_cost(info, actions.double()[None])[0]
    return {"pixels": pixels, "actions": actions, "z": z, "cost": cost, "imagined": info["predicted_emb"][0]}


class Planned(torch.nn.Module):
    """The model as a solver asks it, with the actions between its frames; notes every batch of candidates and cost."""

    def __init__(self, model: torch.nn.Module, past: Tensor):
        super().__init__()
        self.model, self.past, self.asked = model, past.double(), []

    def get_cost(self, info: dict, candidates: Tensor) -> Tensor:
        past = self.past.expand(1, candidates.shape[1], -1, -1)
        cost = self.model.get_cost(info, torch.cat([past, candidates], 2))
        self.asked.append((candidates[0].clone(), cost[0].clone()))
        return cost


class Refits:
    """A solver's callback: mean and deviation before each iteration."""

    output_key, history = "refits", ()

    def __init__(self) -> None:
        self.before: list[tuple[Tensor, Tensor]] = []

    def reset(self) -> None: ...
    def start_batch(self) -> None: ...
    def end_solve(self) -> None: ...

    def __call__(self, *, prev_mean: Tensor, prev_var: Tensor, **_: Any) -> None:
        self.before.append((prev_mean[0].clone(), prev_var[0].clone()))


@contextlib.contextmanager
def noted(noise: list[Tensor]) -> Iterator[None]:
    """`torch.randn` gives float64 that float32 holds, and its draws are noted."""
    randn = torch.randn

    def drawn(*shape: Any, **options: Any) -> Tensor:
        noise.append(randn(*shape, **options).to(torch.float32).double())
        return noise[-1]

    torch.randn = drawn
    try:
        yield
    finally:
        torch.randn = randn


def solved(model: torch.nn.Module, case: dict[str, Any], draw: torch.Generator) -> dict[str, Tensor]:
    """One plan: its inputs, and by iteration noise, mean, deviation, costs and elites."""
    import gymnasium
    from stable_worldmodel.solver import CEMSolver, ICEMSolver, MPPISolver

    frames, axes = case.get("history", 1), SIZES["action_dim"] // BLOCK
    pixels = torch.randint(
        0, 256, (frames + 1, SIZES["image_px"], SIZES["image_px"], 3), generator=draw, dtype=torch.uint8
    )
    past = torch.randn(frames - 1, SIZES["action_dim"], generator=draw, dtype=torch.float32)
    warm = torch.randn(case["horizon"], SIZES["action_dim"], generator=draw, dtype=torch.float32) * case["warm"]
    planned, refits, noise = Planned(model, past), Refits(), []
    names = {"samples": "num_samples", "iterations": "n_steps", "elites": "topk"}
    own = ("var_scale", "noise_beta", "alpha", "n_elite_keep", "return_mean", "temperature")
    options = {new: case[old] for old, new in names.items()} | {k: case[k] for k in own if k in case}
    if case["kind"] != "mppi":
        options["callbacks"] = [refits]
    kinds = {"cem": CEMSolver, "icem": ICEMSolver, "mppi": MPPISolver}
    solver = kinds[case["kind"]](planned, **options)
    solver._dtype = torch.float64
    low, high = case.get("low", -np.inf), case.get("high", np.inf)
    solver.configure(
        action_space=gymnasium.spaces.Box(low, high, (1, axes), np.float64), n_envs=1,
        config=SimpleNamespace(horizon=case["horizon"], action_block=BLOCK),
    )  # fmt: skip
    seen = normalised(pixels)
    info = {"pixels": seen[None, :-1], "goal": seen[None, -1:], "action": torch.zeros(1, frames, SIZES["action_dim"])}
    with noted(noise):
        found = solver.solve(info, warm.double()[None] if case["warm"] else None)
    white = torch.cat(noise)
    if case["kind"] == "icem":  # drawn with the horizon last
        white = white.transpose(-1, -2)
    candidates, costs = (torch.stack(x) for x in zip(*planned.asked, strict=True))
    before = refits.before or [(c[0], found["var"][0][0]) for c in candidates]  # mppi's candidate 0 is its mean
    mean, std = (torch.stack(x) for x in zip(*before, strict=True))
    elites = costs.topk(case["elites"], dim=1, largest=False).indices.sort(dim=1).values
    return {
        "pixels": pixels[:-1], "goal": pixels[-1:], "past_actions": past, "warm_mean": warm, "noise": white.float(),
        "mean": mean, "std": std, "cost": costs, "elites": elites, "candidates": candidates,
        "actions": found["actions"][0], "last_std": found["var"][0][0],
    }  # fmt: skip


def main() -> None:
    upstream_package()
    held = weights()
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # the action embedder asks for it
    model = model_of(held)
    draw = torch.Generator().manual_seed(INPUT_SEED)
    answers = {f"upstream/{k}": v.contiguous() for k, v in modules_answer(model, draw).items()}
    save_file(held | answers, HERE / "lewm_upstream.safetensors")
    cases = {name: {"warm": False, **COMMON, **case} for name, case in CASES.items()}
    plans = {}
    for name, case in cases.items():
        torch.manual_seed(INPUT_SEED)
        plans |= {f"{name}/{k}": v.contiguous() for k, v in solved(model, case, draw).items()}
    about = {"cases": cases, "block": BLOCK, "sizes": SIZES}
    save_file(plans, HERE / "solvers_upstream.safetensors", {key: json.dumps(value) for key, value in about.items()})


if __name__ == "__main__":
    main()

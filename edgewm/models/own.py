"""One's own `torch.nn.Module`, from `module:function`.

The module declares `ports` (program.Port: observations, one goal port for each, one action port) and has
`encode(*observations) -> (1, latent)`, `predict(z (S, T, latent), actions (S, T, action)) -> (S, latent)` and
`cost(z (S, latent), goal (1, latent)) -> (S,)`. Optional: `history` (longest T, default 1), `planner` (program.Planner)
and methods `decode_<head>(z)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import EdgewmError
from ..imports import function_of
from ..program import Planner
from .model import Model, example


def load(spec: str) -> Model:
    """The Model that `module:function` returns, or what its torch module declares. EdgewmError when it is neither."""
    found = function_of(spec)()
    if isinstance(found, Model):
        return found
    if isinstance(found, torch.nn.Module):
        return from_module(found, spec)
    fix = "return an edgewm.models.Model or a torch.nn.Module with ports"
    raise EdgewmError(f"{spec.partition(':')[2]} returned a {type(found).__name__}", spec, fix)


def from_module(module: torch.nn.Module, where: str) -> Model:
    """The Model a torch module declares. EdgewmError naming what it lacks."""
    for name in ("ports", "encode", "predict", "cost"):
        if not hasattr(module, name):
            fix = "declare ports and the methods encode, predict and cost (edgewm/models/own.py)"
            raise EdgewmError(f"{type(module).__name__} has no {name!r}", where, fix)
    kinds = [p.kind for p in module.ports]
    observations = [p for p in module.ports if p.kind == "observation"]
    if not observations or kinds.count("goal") != len(observations) or kinds.count("action") != 1:
        raise EdgewmError(
            f"ports are {kinds}", where, "declare one or more observations, a goal for each of them, and one action"
        )
    planner = getattr(module, "planner", Planner())
    action = next(p for p in module.ports if p.kind == "action")
    with torch.no_grad():
        latent_dim = module.eval().encode(*map(example, observations)).shape[-1]
    return Model(
        family="own", torch=module, latent_dim=latent_dim, planner=planner, ports=tuple(module.ports),
        encode=lambda m, *xs: m.encode(*xs), predict=lambda m, z, a: m.predict(z, a), score=score,
        path_score=path_score,
        action_dim=action.shape[-1] * planner.action_block, window=getattr(module, "history", 1),
        heads={n[7:]: (lambda m, z, n=n: getattr(m, n)(z)) for n in sorted(dir(module)) if n.startswith("decode_")},
    )  # fmt: skip


def imagined(module: torch.nn.Module, z: Tensor, actions: Tensor) -> list[Tensor]:
    """Latents (S, latent), one after each action from the last frame of z (history, latent) on, each from the last
    `history` latents and actions."""
    window, latents = getattr(module, "history", 1), list(z.unsqueeze(0).expand(len(actions), -1, -1).unbind(1))
    for t in range(len(z), actions.shape[1] + 1):
        start = max(0, t - window)
        latents.append(module.predict(torch.stack(latents[start:], 1), actions[:, start:t]))
    return latents[len(z) :]


def score(module: torch.nn.Module, z: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    """The cost of the last imagined latent."""
    return module.cost(imagined(module, z, actions)[-1], goal)


def path_score(module: torch.nn.Module, z: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    """The mean cost of all imagined latents."""
    return torch.stack([module.cost(latent, goal) for latent in imagined(module, z, actions)]).mean(0)

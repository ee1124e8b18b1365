"""What edgewm needs to know of a world model, whatever its family: data and four functions of the torch module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from ..errors import EdgewmError
from ..program import Planner, Port

Score = Callable[[torch.nn.Module, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Model:
    """A trained world model: upstream's torch module, functions that call it, ports, and its planner's defaults.

    The functions take the module first, so that the same ones serve capture, the judge and comparisons in float64:
    `encode(module, *observations)` -> z (1, latent), observations as their ports declare them, raw;
    `predict(module, z (S, T, latent), actions (S, T, action))` -> the latent after the last one, (S, latent);
    `score(module, z (history, latent), goal (1, latent), actions (S, history - 1 + H, action))` -> cost (S,),
    upstream's rollout and criterion: the first actions are those between the frames of z; `path_score`, where there is
    one, takes the same and returns the mean cost of all imagined latents; `heads[name](module, z (1, latent))` -> a
    reading of the latent.
    `proposal`, where there is one, maps latents z and goal (B, latent) to plans (B, H, A) to begin a search at, which
    deviate by its `std` (H, A).
    `window` is the longest T, `action_dim` counts one model action (`planner.action_block` periods), `files` gives the
    SHA-256 of each file read.
    """

    family: str
    torch: torch.nn.Module
    encode: Callable[..., Tensor]
    predict: Callable[[torch.nn.Module, Tensor, Tensor], Tensor]
    score: Score
    latent_dim: int
    action_dim: int
    ports: tuple[Port, ...]
    planner: Planner = field(default_factory=Planner)
    window: int = 1
    heads: Mapping[str, Callable[[torch.nn.Module, Tensor], Tensor]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    path_score: Score | None = None
    proposal: torch.nn.Module | None = None

    def ports_of(self, kind: str) -> tuple[Port, ...]:
        """The ports of one kind, in order; goal ports answer observation ports one by one."""
        return tuple(p for p in self.ports if p.kind == kind)

    @property
    def device(self) -> torch.device:
        """Where the module's numbers are; the host, where it has none."""
        return next(chain(self.torch.parameters(), self.torch.buffers()), torch.empty(0)).device

    def on(self, device: torch.device) -> Model:
        """The same there, in memory of its own; itself, where it is there."""
        if device == self.device:
            return self
        both = (module and copy.deepcopy(module).to(device) for module in (self.torch, self.proposal))
        return replace(self, **dict(zip(("torch", "proposal"), both, strict=True)))

    def scored(self, objective: str) -> Score:
        """The function that scores by a planner's objective. EdgewmError where this model has none for it."""
        if objective == "path" and self.path_score is None:
            raise EdgewmError("this model scores no path", "planner settings", "plan with the objective final")
        return self.path_score if objective == "path" and self.path_score else self.score


def example(port: Port) -> Tensor:
    """A tensor as the port declares it, zeros."""
    return torch.zeros(port.shape, dtype={"f32": torch.float32, "u8": torch.uint8, "i32": torch.int32}[port.dtype])

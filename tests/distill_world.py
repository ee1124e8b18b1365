"""A world that a teacher knows exactly, for tests of distillation: a bright spot on a dark picture moves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from edgewm.program import Planner, Port

SIDE, LATENT = 8, 4
PLANNER = Planner(
    samples=24, iterations=2, elites=4, horizon=2, action_block=1, commit_steps=1, low=-1.0, high=1.0,
    first_candidate_is_mean=False,
)  # fmt: skip
SPEED, WIDTH = 1.0, 1.2  # pixels an action, and of the spot


class Spot(nn.Module):
    """Latents are the spot's place, in four directions; an action moves it."""

    ports = (
        Port("pixels", "observation", (1, SIDE, SIDE, 3), "u8"), Port("goal", "goal", (1, SIDE, SIDE, 3), "u8"),
        Port("action", "action", (2,), low=-1.0, high=1.0, safe=(0.0, 0.0)),
    )  # fmt: skip
    planner = PLANNER

    def __init__(self) -> None:
        super().__init__()
        turn = torch.tensor([[1.0, 0.0, 0.7, 0.7], [0.0, 1.0, 0.7, -0.7]])
        self.register_buffer("turn", turn)

    def encode(self, pixels: Tensor) -> Tensor:
        light = pixels.to(self.turn.dtype).mean(-1)
        at = torch.arange(SIDE, dtype=light.dtype, device=light.device) - (SIDE - 1) / 2
        mass = light.sum((1, 2))
        place = torch.stack([(light.sum(1) * at).sum(1), (light.sum(2) * at).sum(1)], 1) / mass[:, None]
        return place @ self.turn

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        return z[:, -1] + SPEED * actions[:, -1] @ self.turn

    def cost(self, z: Tensor, goal: Tensor) -> Tensor:
        return (z - goal).square().mean(-1)


def make() -> Spot:
    return Spot()


def picture(place: np.ndarray) -> np.ndarray:
    """(8, 8, 3) uint8 of a spot at x, y from the middle."""
    at = np.arange(SIDE) - (SIDE - 1) / 2
    square = (at[None, :] - place[0]) ** 2 + (at[:, None] - place[1]) ** 2
    return np.repeat((255 * np.exp(-square / (2 * WIDTH**2)))[..., None], 3, 2).round().astype(np.uint8)


def contexts(n: int, seed: int) -> Iterator[tuple[dict, dict]]:
    places = np.random.default_rng([1, seed]).uniform(-2, 2, (n, 2, 2))
    for start, goal in places:
        yield {"pixels": picture(start)}, {"pixels": picture(goal)}


def rollouts(n: int, steps: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng([2, seed])
    for _ in range(n):
        actions = rng.uniform(-0.5, 0.5, (steps, 2)).astype(np.float32)
        places = rng.uniform(-1.5, 1.5, 2) + np.concatenate([np.zeros((1, 2)), SPEED * actions.cumsum(0)])
        yield np.stack([picture(p) for p in places]), actions, places.astype(np.float32)

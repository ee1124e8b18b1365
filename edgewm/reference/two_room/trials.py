"""TwoRoom for the judge: a disc that passes through the wall, and rooms outside the training range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgewm.reference.base import World
from edgewm.reference.pushing.pictures import paint_disc
from edgewm.reference.slower import Slower
from edgewm.reference.two_room import arena, data
from edgewm.reference.two_room.world import TwoRoom

Array = np.ndarray

BLUE, DARK_BLUE = np.float32([66, 104, 196]), np.float32([30, 48, 120])  # sRGB in [0, 255]
LARGER = 1.4  # times the radius of the disc
OUTSIDE_X_M = ((0.30, 0.40), (0.60, 0.70))  # of the wall; training has `arena.WALL_X_M`
OUTSIDE_Y_M = ((0.19, 0.24), (0.76, 0.81))  # of the door; training has `arena.DOOR_Y_M`


def pass_through(world: World, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array, Array]:
    """The disc is driven at the wall: it is held up, or goes through as if there were none."""
    layouts = arena.sample_layouts(rng, n)
    side = rng.choice(np.float32([-1, 1]), n)
    starts = arena.sample_positions(rng, layouts)
    starts[:, 0] = layouts[:, 0] + side * rng.uniform(0.12, 0.20, n)
    jamb = np.where(layouts[:, 1] < 0.5, 1.0, -1.0) * rng.uniform(1.1, 1.6, n) * arena.DOOR_HALF_M
    starts[:, 1] = np.clip(layouts[:, 1] + jamb, arena.RADIUS_M, 1 - arena.RADIUS_M)
    drive = np.stack([-side * rng.uniform(0.25, 0.5, n), np.zeros(n)], 1)
    actions = (drive[:, None] + rng.normal(0, 0.1, (n, steps, 2))).astype(np.float32)
    actions[..., 1] *= 0.3  # not along the wall and out by the door
    at = np.concatenate([starts, layouts], 1).astype(np.float32)
    held, through = [at], [at]
    free = np.float32([10, 0.5])  # a wall beyond the arena
    for t in range(steps):
        held.append(world.move(held[-1], actions[:, t]))
        moved = arena.move(np.broadcast_to(free, (n, 2)), through[-1][:, :2], actions[:, t])
        through.append(np.concatenate([moved, layouts], 1))
    return actions, np.stack(held, 1), np.stack(through, 1)


PLANTED = {"pass-through": pass_through}


class Painted(TwoRoom):
    """The disc in other colours, or of another size."""

    def __init__(self, rim: Array, fill: Array, size: float):
        self.rim, self.fill, self.radius_m = rim, fill, size * arena.RADIUS_M

    def observe(self, states: Array) -> Array:
        image = arena.to_uint8(arena.draw_arena(states[:, 2:]))
        paint_disc(image, states[:, :2], self.rim, self.radius_m)
        paint_disc(image, states[:, :2], self.fill, 0.8 * self.radius_m)
        return image


class SlowerDisc(Slower, TwoRoom):
    """The disc moves less far."""


class Elsewhere(TwoRoom):
    """Wall and door where they never stood in training."""

    def layouts(self, rng: np.random.Generator, n: int) -> Array:
        sides = rng.integers(0, 2, (2, n))
        spans = [np.float32(span)[side] for span, side in zip((OUTSIDE_X_M, OUTSIDE_Y_M), sides, strict=True)]
        return np.stack([rng.uniform(span[:, 0], span[:, 1]) for span in spans], 1).astype(np.float32)

    def sample_states(self, rng: np.random.Generator, n: int) -> Array:
        layouts = self.layouts(rng, n)
        return np.concatenate([arena.sample_positions(rng, layouts), layouts], 1)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        starts = self.sample_states(rng, n)
        goals = starts.copy()
        while (near := self.distance(starts, goals) < arena.MIN_TASK_M).any():
            goals[near, :2] = arena.sample_positions(rng, goals[near, 2:])
        return starts, goals

    def trajectories(self, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array]:
        layouts, actions, positions = data.trajectories(rng, n, steps, self.layouts(rng, n))
        return actions, np.concatenate([positions, np.repeat(layouts[:, None], steps + 1, 1)], 2)


def shifted(world: World) -> Mapping[str, World]:
    """Worlds like this one, each with one thing outside the training range."""
    rim, fill = 255 * arena.RIM, 255 * arena.DISC
    return {
        "colours": Painted(DARK_BLUE, BLUE, 1.0), "size": Painted(rim, fill, LARGER), "speed": SlowerDisc(),
        "starts": Elsewhere(),
    }  # fmt: skip

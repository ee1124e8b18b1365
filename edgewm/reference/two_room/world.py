"""TwoRoom as a world to train, plan and be judged in. A state is `(B, 4)`: the disc's x and y, the wall's x, the door's
y, in metres."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgewm.reference.base import World
from edgewm.reference.two_room import arena, data

Array = np.ndarray


class TwoRoom(World):
    name = "two_room"
    title = "TwoRoom"
    period_s = arena.PERIOD_S
    max_steps = arena.MAX_STEPS
    names = ("x", "y", "wall_x", "door_y")
    subset = "other room"
    about = (
        f"A disc {2 * arena.RADIUS_M:.2f} m across in an arena of 1 m x 1 m: two rooms, one wall, one door; wall and "
        f"door stand elsewhere in every episode. An action is a velocity command in [-1, 1]^2; full scale is "
        f"{arena.STEP_M} m per axis in one period of {arena.PERIOD_S} s. {100 * arena.CROSSING_SHARE:.0f} % of the "
        f"tasks end in the other room, all at least {arena.MIN_TASK_M} m away. Success: the disc's centre comes within "
        f"{arena.GOAL_RADIUS_M} m of the goal at any time in {arena.MAX_STEPS} periods."
    )
    limits = "It knows this world only: one disc, one wall, one door."

    def sample_states(self, rng: np.random.Generator, n: int) -> Array:
        layouts = arena.sample_layouts(rng, n)
        return np.concatenate([arena.sample_positions(rng, layouts), layouts], 1)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        layouts, starts, goals = arena.sample_tasks(rng, n)
        return np.concatenate([starts, layouts], 1), np.concatenate([goals, layouts], 1)

    def trajectories(self, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array]:
        layouts, actions, positions = data.trajectories(rng, n, steps)
        return actions, np.concatenate([positions, np.repeat(layouts[:, None], steps + 1, 1)], 2)

    def batch(
        self, seed: int, step: int, layouts: int, windows: int, frames: int, action_block: int, **options: Any
    ) -> tuple[Array, Array, Array]:
        """`straight_share` of those that seek a target ignore the wall."""
        return data.batch(seed, step, layouts, windows, frames, action_block, **options)

    def move(self, states: Array, actions: Array) -> Array:
        return np.concatenate([arena.move(states[:, 2:], states[:, :2], actions), states[:, 2:]], 1)

    def observe(self, states: Array) -> Array:
        return arena.observe(states[:, 2:], states[:, :2])

    def reached(self, states: Array, goals: Array) -> Array:
        return arena.reached(states[:, :2], goals[:, :2])

    def features(self, states: Array) -> Array:
        return states

    def distance(self, starts: Array, goals: Array) -> Array:
        return np.linalg.norm(goals[:, :2] - starts[:, :2], axis=1)

    def in_subset(self, starts: Array, goals: Array) -> Array:
        """The goal is in the other room."""
        return (starts[:, 0] < starts[:, 2]) != (goals[:, 0] < goals[:, 2])

    def variations(self, states: Array, rng: np.random.Generator) -> Array:
        """The same rooms with the disc on every free spot."""
        axis = np.linspace(arena.RADIUS_M, 1 - arena.RADIUS_M, 40, dtype=np.float32)
        spots = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        layouts = np.repeat(states[:1, 2:], len(spots), 0)
        return np.concatenate([spots, layouts], 1)[~arena.blocked(layouts, spots)]

    def paint(self, path: Array, goal: Array, size_px: int) -> Array:
        """The goal as a ring, the path so far as a fading trail, a soft shadow."""
        image = arena.draw_arena(path[:1, 2:], size_px)
        at = path[-1:, :2]
        centre = np.arange(size_px, dtype=np.float32) + 0.5
        x, y = centre[None, None, :], centre[None, :, None]

        def from_point(point_m: Array) -> Array:
            return np.hypot(x - point_m[0] * size_px, y - point_m[1] * size_px)

        ring_px = from_point(goal[:2]) - arena.GOAL_RADIUS_M * size_px
        image = arena.over(image, ring_px, arena.GOAL, 0.18)
        image = arena.over(image, np.abs(ring_px) - 0.006 * size_px, arena.GOAL)
        trail = path[-60:-1, :2]
        for i, point_m in enumerate(trail):
            opacity = 0.12 + 0.4 * i / len(trail)
            image = arena.over(image, from_point(point_m) - 0.009 * size_px, arena.DISC, opacity)
        shadow = from_point(at[0] + np.float32([0.008, 0.014])) - (arena.RADIUS_M + 0.004) * size_px
        image = arena.over(image, shadow / (0.02 * size_px), arena.WALL, 0.35)
        image = arena.draw_disc(image, at)
        shine = from_point(at[0] - np.float32(0.3 * arena.RADIUS_M)) - 0.22 * arena.RADIUS_M * size_px
        return arena.to_uint8(arena.over(image, shine, np.float32([1, 1, 1]), 0.45))[0]

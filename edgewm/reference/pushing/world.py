"""Pushing as a world to train, plan and be judged in, for one body. A state is `(B, 5)`: the disc's x and y, the body's
x and y (its centre of gravity) and angle, in metres and radians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewm.reference.base import World
from edgewm.reference.pushing import physics, pictures, policy
from edgewm.reference.pushing.physics import Body

Array = np.ndarray

AHEAD = 25  # periods from start to goal on a held-out trajectory
RECORDED = 75  # periods of the trajectory they are cut from
TRAIL = 60  # periods shown of the way so far
GOAL = np.float32([14, 148, 122])  # sRGB in [0, 255]


def turn(a: Array, b: Array) -> Array:
    """The angle between two headings, in [0, pi]."""
    return np.abs((a - b + np.pi) % (2 * np.pi) - np.pi)


@dataclass(frozen=True)
class Pushing(World):
    """A body to push, how far it must move for a task to count, and how near it must come to the goal."""

    name: str
    title: str
    body: Body
    min_move_m: float
    far_move_m: float  # what the card calls far
    tolerance_m: float
    tolerance_rad: float = np.inf
    period_s = physics.PERIOD_S
    max_steps = 2 * AHEAD

    @property
    def names(self) -> tuple[str, ...]:
        body = self.body.name
        return ("disc_x", "disc_y", f"{body}_x", f"{body}_y", *((f"{body}_cos", f"{body}_sin") * self.body.oriented))

    @property
    def subset(self) -> str:
        return f"moved {self.far_move_m:.2f} m or more"

    @property
    def about(self) -> str:
        turned = f" and its angle within {np.rad2deg(self.tolerance_rad):.0f} degrees" if self.body.oriented else ""
        return (
            f"A disc {2 * self.body.disc_m:.3f} m across pushes a {self.body.name} (radius {self.body.reach_m:.3f} m "
            f"round its centre of gravity) over a table of 1 m x 1 m, without friction at the contact; what is not "
            f"pushed stands still. An action is a velocity command in [-1, 1]^2; full scale is {physics.STEP_M} m per "
            f"axis in one period of {physics.PERIOD_S} s. A task is two moments, {AHEAD} periods apart, of one "
            f"held-out scripted push in which the {self.body.name} moved at least {self.min_move_m:.2f} m. Success: "
            f"its centre comes within {self.tolerance_m:.3f} m of the goal's{turned} at any time in {self.max_steps} "
            f"periods."
        )

    @property
    def limits(self) -> str:
        return f"It knows this world only: one disc, one {self.body.name}, one table."

    def sample_states(self, rng: np.random.Generator, n: int) -> Array:
        return physics.sample_states(self.body, rng, n)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        """Two moments of one scripted push, between which the body moved."""
        starts, goals = np.zeros((2, n, 5), np.float32)
        found = 0
        while found < n:
            _, states = policy.trajectories(self.body, rng, max(16, 2 * (n - found)), RECORDED, styles=(1.0,))
            rows, at = np.arange(len(states)), rng.integers(0, RECORDED - AHEAD + 1, len(states))
            start, goal = states[rows, at], states[rows, at + AHEAD]
            moved = np.flatnonzero(self.distance(start, goal) >= self.min_move_m)[: n - found]
            taken = slice(found, found + len(moved))
            starts[taken], goals[taken] = start[moved], goal[moved]
            found = taken.stop
        return starts, goals

    def trajectories(self, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array]:
        return policy.trajectories(self.body, rng, n, steps)

    def batch(
        self, seed: int, step: int, layouts: int, windows: int, frames: int, action_block: int, **options: Any
    ) -> tuple[Array, Array, Array]:
        """There is one table, so all windows are of one layout."""
        return policy.batch(self.body, seed, step, layouts * windows, frames, action_block, **options)

    def move(self, states: Array, actions: Array) -> Array:
        return physics.move(self.body, states, actions)

    def observe(self, states: Array) -> Array:
        return pictures.observe(self.body, states)

    def reached(self, states: Array, goals: Array) -> Array:
        """The body is where the goal's is; the disc may be anywhere."""
        return (self.distance(states, goals) < self.tolerance_m) & (
            turn(states[:, 4], goals[:, 4]) < self.tolerance_rad
        )

    def features(self, states: Array) -> Array:
        """Positions, and the angle as cosine and sine where it can be seen."""
        angle = states[:, 4:]
        return np.concatenate([states[:, :4], *([np.cos(angle), np.sin(angle)] * self.body.oriented)], 1)

    def distance(self, starts: Array, goals: Array) -> Array:
        """How far the body is from where it should be."""
        return np.hypot(goals[:, 2] - starts[:, 2], goals[:, 3] - starts[:, 3])

    def in_subset(self, starts: Array, goals: Array) -> Array:
        return self.distance(starts, goals) >= self.far_move_m

    def variations(self, states: Array, rng: np.random.Generator, n: int = 1500) -> Array:
        """Disc and body near where they were on the way, and not in one another."""
        around = states[rng.integers(0, len(states), 4 * n)] + rng.normal(0, 0.05, (4 * n, 5)).astype(np.float32)
        around[:, 4] += rng.normal(0, 0.3, 4 * n).astype(np.float32)
        around[:, 4] *= self.body.oriented
        around[:, :2] = np.clip(around[:, :2], self.body.disc_m, 1 - self.body.disc_m)
        around[:, 2:4] = np.clip(around[:, 2:4], self.body.reach_m, 1 - self.body.reach_m)
        return around[physics.depth(self.body, around) <= 0][:n]

    def paint(self, path: Array, goal: Array, size_px: int) -> Array:
        """The goal as a shade on the table, the paths so far as fading trails."""
        image = pictures.blank(1, size_px)
        pictures.paint_body(image, self.body, goal[None, 2:], GOAL, 0.35)
        trail = path[-TRAIL:-1]
        for i, state in enumerate(trail):
            opacity = 0.10 + 0.35 * i / len(trail)
            pictures.paint_disc(image, state[None, 2:4], pictures.BODY, 0.006, opacity)
            pictures.paint_disc(image, state[None, :2], pictures.DISC, 0.006, opacity)
        shadow = path[-1:] + np.float32([0.006, 0.010, 0.006, 0.010, 0])
        pictures.paint_body(image, self.body, shadow[:, 2:], np.float32([0, 0, 0]), 0.15)
        pictures.paint_disc(image, shadow[:, :2], np.float32([0, 0, 0]), self.body.disc_m, 0.15)
        pictures.paint_body(image, self.body, path[-1:, 2:])
        pictures.paint_disc(image, path[-1:, :2], pictures.DISC, self.body.disc_m)
        return image[0]


PUCK = Pushing(
    "puck", "a pushed puck", physics.PUCK, min_move_m=0.16, far_move_m=0.30, tolerance_m=physics.PUCK.reach_m / 2
)
PUSH_T = Pushing(
    "push_t", "Push-T", physics.TEE, min_move_m=0.10, far_move_m=0.20, tolerance_m=20 * physics.UNIT_M,
    tolerance_rad=np.pi / 9,
)  # fmt: skip

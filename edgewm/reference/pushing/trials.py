"""Pushing for the judge: bodies that let a disc through or slide by themselves, tables outside the training range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from edgewm.reference.pushing import physics, pictures, policy
from edgewm.reference.pushing.physics import STEP_M, Body
from edgewm.reference.pushing.world import AHEAD, Pushing
from edgewm.reference.slower import Slower

Array = np.ndarray

GREEN, VIOLET = np.float32([52, 142, 92]), np.float32([128, 70, 170])  # sRGB in [0, 255], of body and disc
LARGER = 1.25  # times the body
EDGE_M = 0.01  # from body to table's edge: training starts no nearer than 0.02


def approach(world: Pushing, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array]:
    """Actions `(n, T, 2)` that drive the disc at the body's centre, and states `(n, 5)` to begin with: close to it."""
    body = world.body
    centre = rng.uniform(0.3, 0.7, (n, 2))
    way = rng.uniform(-np.pi, np.pi, n)
    towards = np.stack([np.cos(way), np.sin(way)], 1)
    angle = rng.uniform(-np.pi, np.pi, n) * body.oriented
    disc = centre - (body.reach_m + body.disc_m + 0.01) * towards
    full = np.abs(towards).max(1, keepdims=True)
    drive = (rng.uniform(0.4, 0.8, (n, 1)) * towards / full)[:, None] + rng.normal(0, 0.03, (n, steps, 2))
    return drive.astype(np.float32), np.concatenate([disc, centre, angle[:, None]], 1).astype(np.float32)


def pass_through(world: Pushing, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array, Array]:
    """The disc pushes the body, or goes through it and leaves it where it is."""
    actions, at = approach(world, rng, n, steps)
    pushed, through = [at], [at]
    for t in range(steps):
        pushed.append(world.move(pushed[-1], actions[:, t]))
        disc = through[-1][:, :2] + STEP_M * np.clip(actions[:, t], -1, 1)
        disc = np.clip(disc, world.body.disc_m, 1 - world.body.disc_m)
        through.append(np.concatenate([disc, at[:, 2:]], 1))
    return actions, np.stack(pushed, 1), np.stack(through, 1)


def untouched(world: Pushing, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array, Array]:
    """From a third of the way on the body slides by itself; the disc goes about its business."""
    actions, states = world.trajectories(rng, n, steps)
    moved = states.copy()
    way = rng.uniform(-np.pi, np.pi, n)
    begin = steps // 3
    slide = np.maximum(np.arange(steps + 1) - begin, 0)[None, :, None] * 0.6 * STEP_M
    moved[..., 2:4] += slide * np.stack([np.cos(way), np.sin(way)], 1)[:, None]
    moved[..., 2:4] = np.clip(moved[..., 2:4], world.body.reach_m, 1 - world.body.reach_m)
    return actions, states, moved


PLANTED = {"pass-through": pass_through, "untouched": untouched}


@dataclass(frozen=True)
class Painted(Pushing):
    """Body and disc in other colours."""

    def observe(self, states: Array) -> Array:
        image = pictures.blank(len(states))
        pictures.paint_body(image, self.body, states[:, 2:], GREEN)
        pictures.paint_disc(image, states[:, :2], VIOLET, self.body.disc_m)
        return image


@dataclass(frozen=True)
class SlowerDisc(Slower, Pushing):
    """The disc moves less far."""


@dataclass(frozen=True)
class AtTheEdge(Pushing):
    """The body begins nearer to an edge than in training."""

    def sample_states(self, rng: np.random.Generator, n: int) -> Array:
        states, todo = np.zeros((n, 5), np.float32), np.ones(n, bool)
        while todo.any():
            drawn = physics.sample_states(self.body, rng, int(todo.sum()))
            rows, axis = np.arange(len(drawn)), rng.integers(2, 4, len(drawn))
            near = self.body.reach_m + rng.uniform(0, EDGE_M, len(drawn))
            drawn[rows, axis] = np.where(rng.random(len(drawn)) < 0.5, near, 1 - near)
            states[todo] = drawn
            todo[todo] = physics.depth(self.body, drawn) > 0
        return states

    def trajectories(self, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array]:
        at = self.sample_states(rng, n)
        targets = rng.uniform(self.body.reach_m, 1 - self.body.reach_m, (n, 2)).astype(np.float32)
        aims = (rng.uniform(-0.3, 0.3, n) * self.body.reach_m).astype(np.float32)
        actions, states = np.zeros((n, steps, 2), np.float32), np.zeros((n, steps + 1, 5), np.float32)
        states[:, 0] = at
        for t in range(steps):
            seek = policy.push(self.body, at, targets, aims) + 0.2 * rng.normal(0, 1, (n, 2))
            actions[:, t] = np.clip(seek, -1, 1)
            at = states[:, t + 1] = self.move(at, actions[:, t])
        return actions, states

    def sample_tasks(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        starts, goals = np.zeros((2, 0, 5), np.float32)
        while len(starts) < n:
            _, states = self.trajectories(rng, 4 * n, AHEAD)
            moved = self.distance(states[:, 0], states[:, -1]) >= self.min_move_m
            starts, goals = (
                np.concatenate([a, b])[:n] for a, b in ((starts, states[moved, 0]), (goals, states[moved, -1]))
            )
        return starts, goals


def _larger(body: Body) -> Body:
    boxes = tuple(tuple(LARGER * v for v in box) for box in body.boxes)
    grown = {name: LARGER * getattr(body, name) for name in ("rounding_m", "gyration_m", "reach_m")}
    return replace(body, boxes=boxes, **grown)


def shifted(world: Pushing) -> Mapping[str, Pushing]:
    """Tables like this one, each with one thing outside the training range."""
    own = {field.name: getattr(world, field.name) for field in fields(world)}
    return {
        "colours": Painted(**own), "size": replace(world, body=_larger(world.body)), "speed": SlowerDisc(**own),
        "starts": AtTheEdge(**own),
    }  # fmt: skip

"""TwoRoom: a disc in a square arena, two rooms, one wall, one door; the goal is a picture of the disc somewhere else.

Lengths are metres in an arena of 1 m x 1 m, x to the right and y down (as in an image), times are seconds. An action is
a velocity command in [-1, 1]^2; full scale moves the disc by `STEP_M` per axis in one period. numpy only.

Everything is a function of arrays with a leading batch dimension: a layout is `(B, 2)` float32, the wall's x and the
door's y; a position is `(B, 2)` float32.
"""

from __future__ import annotations

import numpy as np

from edgewm.reference.base import PIXELS

Array = np.ndarray

PERIOD_S = 0.05
STEP_M = 0.045  # per axis, at full command, in one period
RADIUS_M = 0.05  # of the disc
WALL_HALF_M = 0.02
DOOR_HALF_M = 0.14
WALL_X_M = (0.42, 0.58)
DOOR_Y_M = (0.25, 0.75)
GOAL_RADIUS_M = 0.06  # success: the centres come this close at any time ...
MAX_STEPS = 100  # ... within this many periods
MIN_TASK_M = 0.35  # straight-line distance between start and goal
CROSSING_SHARE = 0.55  # share of tasks whose goal is in the other room

# sRGB in [0, 1]
ROOM_LEFT, ROOM_RIGHT = np.float32([0.90, 0.93, 0.97]), np.float32([0.97, 0.94, 0.88])
WALL, DISC, RIM, GOAL = (
    np.float32([0.17, 0.20, 0.27]),
    np.float32([0.93, 0.33, 0.22]),
    np.float32([0.62, 0.13, 0.10]),
    np.float32([0.05, 0.58, 0.48]),
)


# --- the arena ------------------------------------------------------------------------------------------------


def sample_layouts(rng: np.random.Generator, n: int) -> Array:
    """`(n, 2)` layouts: wall x, door y, in metres."""
    return rng.uniform([WALL_X_M[0], DOOR_Y_M[0]], [WALL_X_M[1], DOOR_Y_M[1]], (n, 2)).astype(np.float32)


def blocked(layouts: Array, positions_m: Array) -> Array:
    """`(B,)` bool: the disc's bounding square at `positions_m` `(B, 2)` would overlap the wall."""
    near_wall = np.abs(positions_m[:, 0] - layouts[:, 0]) < WALL_HALF_M + RADIUS_M
    in_door = np.abs(positions_m[:, 1] - layouts[:, 1]) <= DOOR_HALF_M - RADIUS_M
    return near_wall & ~in_door


def sample_positions(rng: np.random.Generator, layouts: Array) -> Array:
    """`(B, 2)` free positions, uniform over the arena."""
    positions_m = np.zeros_like(layouts)
    todo = np.ones(len(layouts), bool)
    while todo.any():
        positions_m[todo] = rng.uniform(RADIUS_M, 1 - RADIUS_M, (int(todo.sum()), 2))
        todo = blocked(layouts, positions_m)
    return positions_m


def move(layouts: Array, positions_m: Array, actions: Array) -> Array:
    """One period: `(B, 2)` positions after `(B, 2)` actions. Contact stops one axis and lets the other slide."""
    new = positions_m.copy()
    delta = STEP_M * np.clip(actions, -1, 1).astype(np.float32)
    reach_x, reach_y = np.float32(WALL_HALF_M + RADIUS_M), np.float32(DOOR_HALF_M - RADIUS_M)
    new[:, 0] = np.clip(new[:, 0] + delta[:, 0], RADIUS_M, 1 - RADIUS_M)
    side = np.where(positions_m[:, 0] < layouts[:, 0], np.float32(-1), np.float32(1))
    new[:, 0] = np.where(blocked(layouts, new), layouts[:, 0] + side * reach_x * np.float32(1.0001), new[:, 0])
    new[:, 1] = np.clip(new[:, 1] + delta[:, 1], RADIUS_M, 1 - RADIUS_M)
    stuck = blocked(layouts, new)  # inside the doorway, moving into a jamb
    jamb = layouts[:, 1] + np.sign(delta[:, 1]) * reach_y * np.float32(0.9999)
    new[:, 1] = np.where(stuck, jamb, new[:, 1])
    return new


def sample_tasks(rng: np.random.Generator, n: int) -> tuple[Array, Array, Array]:
    """Layouts, starts and goals, each `(n, 2)`. `CROSSING_SHARE` of them lead through the door."""
    layouts = sample_layouts(rng, n)
    crossing = rng.random(n) < CROSSING_SHARE
    starts, goals = sample_positions(rng, layouts), sample_positions(rng, layouts)
    while True:
        room = (starts[:, 0] < layouts[:, 0]) != (goals[:, 0] < layouts[:, 0])
        bad = (room != crossing) | (np.linalg.norm(starts - goals, axis=1) < MIN_TASK_M)
        if not bad.any():
            return layouts, starts, goals
        starts[bad], goals[bad] = sample_positions(rng, layouts[bad]), sample_positions(rng, layouts[bad])


def reached(positions_m: Array, goals_m: Array) -> Array:
    """`(B,)` bool."""
    return np.linalg.norm(positions_m - goals_m, axis=-1) < GOAL_RADIUS_M


# --- pictures -------------------------------------------------------------------------------------------------


def over(image: Array, distance_px: Array, colour: Array, opacity: float = 1.0) -> Array:
    """Paint where the signed distance `(B, S, S)` is negative, with one pixel of anti-aliasing."""
    cover = (opacity * np.clip(0.5 - distance_px, 0, 1))[..., None].astype(np.float32)
    return image + cover * (colour - image)


def draw_arena(layouts: Array, size_px: int = PIXELS) -> Array:
    """Rooms and wall without the disc: `(B, S, S, 3)` float32 in [0, 1]."""
    centre_m = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    x, y = centre_m[None, None, :], centre_m[None, :, None]
    wall_x, door_y = layouts[:, 0, None, None], layouts[:, 1, None, None]
    right = np.clip((x - wall_x) * size_px + 0.5, 0, 1)[..., None] + 0 * y[..., None]
    image = ROOM_LEFT + right * (ROOM_RIGHT - ROOM_LEFT)
    to_wall = np.maximum(np.abs(x - wall_x) - WALL_HALF_M, DOOR_HALF_M - np.abs(y - door_y))
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) - 0.012
    return over(over(image, to_wall * size_px, WALL), edge * size_px, WALL)


def draw_disc(image: Array, positions_m: Array) -> Array:
    """The disc painted on `image` `(B, S, S, 3)`; touches only the square round each disc."""
    size_px = image.shape[1]
    half = int(np.ceil(RADIUS_M * size_px)) + 3
    centre = positions_m * size_px
    corner = np.clip(np.floor(centre).astype(int) - half, 0, size_px - 2 * half)
    offset = np.arange(2 * half)
    cols, rows = corner[:, 0, None] + offset, corner[:, 1, None] + offset
    at = (np.arange(len(image))[:, None, None], rows[:, :, None], cols[:, None, :])
    dx, dy = cols[:, None, :] + 0.5 - centre[:, 0, None, None], rows[:, :, None] + 0.5 - centre[:, 1, None, None]
    radius_px = RADIUS_M * size_px
    patch = over(image[at], np.hypot(dx, dy) - radius_px, RIM)
    patch = over(patch, np.hypot(dx, dy) - 0.80 * radius_px, DISC)
    image = image.copy()
    image[at] = patch
    return image


def to_uint8(image: Array) -> Array:
    return (image * 255 + 0.5).astype(np.uint8)


def observe(layouts: Array, positions_m: Array) -> Array:
    """What the robot sees: `(B, 64, 64, 3)` uint8."""
    return to_uint8(draw_disc(draw_arena(layouts), positions_m))

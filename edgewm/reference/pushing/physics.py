"""A driven disc pushes a rigid body over a table: contact without friction, and nothing moves by itself.

Lengths are metres in an arena of 1 m x 1 m, x to the right and y down (as in an image), angles are radians. gym-pusht's
workspace of 512 units is this metre; its T, its disc, its inertia and its rate of 10 Hz are taken over. There too the
body's speed is damped away in every step (space damping 0) and the disc is kinematic, so a contact acts by how deep the
disc would go, and masses cancel but for the radius of gyration. Unlike there, the disc obeys a velocity command rather
than a target position, so one picture shows the whole state. numpy only.

A state is `(B, 5)` float32: disc x, y, body x, y (its centre of gravity), angle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

UNIT_M = 1 / 512  # of gym-pusht's workspace
PERIOD_S = 0.1
STEP_M = 0.02  # per axis, at full command, in one period
SUBSTEPS = 4  # a substep moves the disc by much less than its radius


@dataclass(frozen=True)
class Body:
    """A rigid shape: the union of `boxes` (centre x, y, half width, half height), each grown by `rounding_m` all round.

    A puck is one box of no size, grown. `gyration_m` is the radius of gyration, `reach_m` that of the circle round the
    centre of gravity that holds the shape, `oriented` whether its angle can be seen.
    """

    name: str
    boxes: tuple[tuple[float, float, float, float], ...]
    rounding_m: float
    gyration_m: float
    reach_m: float
    oriented: bool
    disc_m: float  # radius of the disc that pushes it

    @property
    def corners(self) -> Array:
        """`(V, 2)` in the body's frame, before rounding."""
        spans = [(x + i * w, y + j * h) for x, y, w, h in self.boxes for i in (-1, 1) for j in (-1, 1)]
        return np.unique(np.float32(spans), axis=0)


def _units(*values: float) -> tuple[float, ...]:
    return tuple(v * UNIT_M for v in values)


PUCK = Body(
    "puck", ((0.0, 0.0, 0.0, 0.0),), rounding_m=0.10, gyration_m=0.10 * 0.5**0.5, reach_m=0.10, oriented=False,
    disc_m=0.07,
)  # fmt: skip
# Bar 120 x 30 and stem 30 x 90 round their common centre of gravity; inertia 3000 for mass 1, as in gym-pusht.
TEE = Body(
    "tee", (_units(0, -30, 60, 15), _units(0, 30, 15, 45)), rounding_m=0.0, gyration_m=3000**0.5 * UNIT_M,
    reach_m=77 * UNIT_M, oriented=True, disc_m=15 * UNIT_M,
)  # fmt: skip


def rotate(vectors: Array, cos: Array, sin: Array) -> Array:
    """`(..., 2)` vectors turned by angles given as cosine and sine `(...)`."""
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], -1)


def surface(body: Body, points: Array) -> tuple[Array, Array]:
    """Signed distance `(...)` from points `(..., 2)` in the body's frame, and the outward unit normal `(..., 2)`."""
    best, normal = None, None
    for x, y, w, h in body.boxes:
        offset = points - np.float32([x, y])
        beyond = np.abs(offset) - np.float32([w, h])
        out = np.maximum(beyond, 0)
        far = np.hypot(out[..., 0], out[..., 1])
        distance = far + np.minimum(beyond.max(-1), 0)
        inside = far <= 0
        axis = np.where(beyond[..., :1] > beyond[..., 1:], np.float32([1, 0]), np.float32([0, 1]))
        way = np.where(inside[..., None], axis, out / np.maximum(far, np.float32(1e-9))[..., None])
        way = way * np.where(offset < 0, np.float32(-1), np.float32(1))
        if best is None:
            best, normal = distance, way
        else:
            nearer = distance < best
            best, normal = np.where(nearer, distance, best), np.where(nearer[..., None], way, normal)
    return best - np.float32(body.rounding_m), normal


def _press(body: Body, pose: Array, arm: Array, way: Array, deep: Array) -> Array:
    """The pose `(B, 3)` after its point at `arm` from the centre was moved by `deep` along `way`, without friction."""
    torque = arm[:, 0] * way[:, 1] - arm[:, 1] * way[:, 0]
    swing = torque / np.float32(body.gyration_m**2)
    impulse = np.maximum(deep, 0) / (1 + torque * swing)
    return pose + np.concatenate([impulse[:, None] * way, (impulse * swing)[:, None]], 1)


def _contact(body: Body, disc: Array, pose: Array) -> tuple[Array, Array, Array]:
    """How deep the disc is in the body `(B,)`, the outward normal, the point as seen from the centre `(B, 2)`."""
    cos, sin = np.cos(pose[:, 2]), np.sin(pose[:, 2])
    point = rotate(disc - pose[:, :2], cos, -sin)
    distance, normal = surface(body, point)
    arm = point - normal * distance[:, None]
    return np.float32(body.disc_m) - distance, rotate(normal, cos, sin), rotate(arm, cos, sin)


def depth(body: Body, states: Array) -> Array:
    """`(B,)` metres by which the disc is in the body; negative where they are apart."""
    return _contact(body, states[:, :2], states[:, 2:])[0]


def _keep_inside(body: Body, pose: Array) -> Array:
    """The pose with the body's corners pushed back over each of the four edges."""
    corners, rounding = body.corners, np.float32(body.rounding_m)
    reach = np.float32(body.reach_m)
    near = np.flatnonzero(((pose[:, :2] < reach) | (pose[:, :2] > 1 - reach)).any(1))
    if not len(near):
        return pose
    kept = pose[near]
    rows = np.arange(len(near))
    for axis in (0, 1):
        for sign in (1, -1):
            arms = rotate(corners[None], np.cos(kept[:, 2, None]), np.sin(kept[:, 2, None]))
            at = kept[:, None, axis] + arms[:, :, axis]
            over = rounding - at if sign == 1 else at + rounding - 1
            deepest = over.argmax(1)
            way = np.zeros((len(near), 2), np.float32)
            way[:, axis] = sign
            kept = _press(body, kept, arms[rows, deepest], way, over[rows, deepest])
    pose = pose.copy()
    pose[near] = kept
    return pose


def move(body: Body, states: Array, actions: Array) -> Array:
    """One period: `(B, 5)` states after `(B, 2)` velocity commands in [-1, 1]."""
    disc, pose = states[:, :2], states[:, 2:]
    delta = np.clip(actions, -1, 1).astype(np.float32) * np.float32(STEP_M / SUBSTEPS)
    low, high = np.float32(body.disc_m), np.float32(1 - body.disc_m)
    for _ in range(SUBSTEPS):
        disc = np.clip(disc + delta, low, high)
        for _ in body.boxes:  # where two boxes meet, the disc touches both
            deep, normal, arm = _contact(body, disc, pose)
            pose = _press(body, pose, arm, -normal, deep)
        pose = _keep_inside(body, pose)
        deep, normal, _ = _contact(body, disc, pose)  # a body held by an edge holds the disc
        disc = np.clip(disc + normal * np.maximum(deep, 0)[:, None], low, high)
    return np.concatenate([disc, pose], 1).astype(np.float32)


def sample_states(body: Body, rng: np.random.Generator, n: int) -> Array:
    """`(n, 5)`: the body anywhere, most discs close to it, none touching it."""
    states, todo = np.zeros((n, 5), np.float32), np.ones(n, bool)
    while todo.any():
        k = int(todo.sum())
        margin = body.reach_m + 0.02
        pose = np.concatenate([rng.uniform(margin, 1 - margin, (k, 2)), rng.uniform(-np.pi, np.pi, (k, 1))], 1)
        pose[:, 2] *= body.oriented
        way, far = rng.uniform(-np.pi, np.pi, k), body.reach_m + body.disc_m + rng.uniform(-0.03, 0.10, k)
        near = pose[:, :2] + far[:, None] * np.stack([np.cos(way), np.sin(way)], 1)
        anywhere = rng.uniform(body.disc_m, 1 - body.disc_m, (k, 2))
        disc = np.where(rng.random((k, 1)) < 0.7, near, anywhere)
        states[todo] = np.concatenate([disc, pose], 1)
        outside = ((states[:, :2] < body.disc_m) | (states[:, :2] > 1 - body.disc_m)).any(1)
        todo = (depth(body, states) > 0) | outside
    return states

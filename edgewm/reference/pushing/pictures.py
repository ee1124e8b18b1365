"""Pictures of the table: the body, the disc in front of it; `(B, S, S, 3)` uint8, anti-aliased by signed distance."""

from __future__ import annotations

import numpy as np

from edgewm.reference.base import PIXELS
from edgewm.reference.pushing.physics import Body, rotate, surface

Array = np.ndarray

# sRGB in [0, 255]
TABLE, BODY, DISC = np.float32([242, 240, 234]), np.float32([62, 84, 122]), np.float32([226, 78, 48])


def _patch(centres_m: Array, reach_m: float, size_px: int) -> tuple[tuple[Array, Array, Array], Array]:
    """Indices of the square of pixels round each centre, and their offsets from it in metres `(B, N, N, 2)`."""
    side = min(2 * (int(np.ceil(reach_m * size_px)) + 2), size_px)
    corner = np.clip(np.floor(centres_m * size_px).astype(int) - side // 2, 0, size_px - side)
    cols, rows = corner[:, 0, None] + np.arange(side), corner[:, 1, None] + np.arange(side)
    x = (cols + 0.5) / size_px - centres_m[:, 0, None]
    y = (rows + 0.5) / size_px - centres_m[:, 1, None]
    offsets = np.empty((len(centres_m), side, side, 2), np.float32)
    offsets[..., 0], offsets[..., 1] = x[:, None, :], y[:, :, None]
    return (np.arange(len(centres_m))[:, None, None], rows[:, :, None], cols[:, None, :]), offsets


def _over(image: Array, at: tuple[Array, Array, Array], distance_px: Array, colour: Array, opacity: float) -> None:
    """Paints where the signed distance `(B, N, N)` is negative, with one pixel of anti-aliasing."""
    cover = (np.float32(opacity) * np.clip(np.float32(0.5) - distance_px, 0, 1))[..., None]
    below = image[at].astype(np.float32)
    image[at] = (below + cover * (colour - below) + np.float32(0.5)).astype(np.uint8)


def paint_body(image: Array, body: Body, poses: Array, colour: Array = BODY, opacity: float = 1.0) -> None:
    """The body at `poses` `(B, 3)`, painted into `image` `(B, S, S, 3)` uint8."""
    size_px = image.shape[1]
    at, offsets = _patch(poses[:, :2], body.reach_m, size_px)
    if body.oriented:
        offsets = rotate(offsets, np.cos(poses[:, 2, None, None]), -np.sin(poses[:, 2, None, None]))
    _over(image, at, surface(body, offsets)[0] * size_px, colour, opacity)


def paint_disc(image: Array, centres_m: Array, colour: Array, radius_m: float, opacity: float = 1.0) -> None:
    """A disc at `centres_m` `(B, 2)`."""
    size_px = image.shape[1]
    at, offsets = _patch(centres_m, radius_m, size_px)
    distance = np.hypot(offsets[..., 0], offsets[..., 1]) - np.float32(radius_m)
    _over(image, at, distance * size_px, colour, opacity)


def blank(n: int, size_px: int = PIXELS) -> Array:
    return np.broadcast_to(TABLE.astype(np.uint8), (n, size_px, size_px, 3)).copy()


def observe(body: Body, states: Array, size_px: int = PIXELS) -> Array:
    """What the robot sees in states `(B, 5)`: `(B, 64, 64, 3)` uint8."""
    image = blank(len(states), size_px)
    paint_body(image, body, states[:, 2:])
    paint_disc(image, states[:, :2], DISC, body.disc_m)
    return image

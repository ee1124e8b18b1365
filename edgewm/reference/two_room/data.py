"""Training data: trajectories of a scripted, noisy policy, generated as they are needed.

Nothing is stored: step `k` of a run draws its batch from `(seed, k)`, so memory stays at one batch, no window is seen
twice, and a resumed run sees exactly what an uninterrupted one would have.
"""

from __future__ import annotations

import numpy as np

from edgewm.reference.two_room import arena

Array = np.ndarray

_TRAINING = 0x7A11
# Cumulative shares: to a target through the door, a held direction, white noise, a slow wander.
STYLES = (0.55, 0.75, 0.90, 1.0)


def trajectories(
    rng: np.random.Generator, n: int, steps: int, layouts: Array | None = None, straight_share: float = 0.0
) -> tuple[Array, Array, Array]:
    """Layouts `(n, 2)`, actions `(n, steps, 2)` in [-1, 1], states `(n, steps + 1, 2)` in metres.

    A third of the discs start close to the door: that is where the dynamics are hard and a uniform start is rare.
    Of those that seek a target, `straight_share` ignore the wall: they show what a planner would like to be false.
    """
    layouts = arena.sample_layouts(rng, n) if layouts is None else layouts
    at = arena.sample_positions(rng, layouts)
    near = (layouts + rng.normal(0, [0.09, 0.10], (n, 2))).clip(arena.RADIUS_M, 1 - arena.RADIUS_M).astype(np.float32)
    near_door = (rng.random(n) < 1 / 3) & ~arena.blocked(layouts, near)
    at = np.where(near_door[:, None], near, at)
    style = np.searchsorted(STYLES, rng.random(n))
    target = arena.sample_positions(rng, layouts)
    speed = rng.uniform(0.5, 2.0, (n, 1)).astype(np.float32)
    jitter = rng.uniform(0.0, 0.6, (n, 1)).astype(np.float32)
    held = rng.uniform(-1.5, 1.5, (n, 2)).astype(np.float32)
    wander = rng.normal(0, 1, (n, 2)).astype(np.float32)
    straight = rng.random((n, 1)) < straight_share if straight_share else np.zeros((n, 1), bool)
    actions, states = np.zeros((n, steps, 2), np.float32), np.zeros((n, steps + 1, 2), np.float32)
    states[:, 0] = at
    for t in range(steps):
        noise = rng.normal(0, 1, (n, 2)).astype(np.float32)
        wander = 0.9 * wander + 0.44 * noise
        renew = rng.random(n) < 0.05
        held = np.where(renew[:, None], rng.uniform(-1.5, 1.5, (n, 2)), held).astype(np.float32)
        arrived = np.linalg.norm(target - at, axis=1) < arena.STEP_M
        if arrived.any():
            target[arrived] = arena.sample_positions(rng, layouts[arrived])
        way = np.where(straight, towards(at, target), steer(layouts, at, target))
        seek = speed * way + jitter * noise
        action = np.choose(style[:, None], [seek, held + 0.3 * jitter * noise, noise, wander])
        actions[:, t] = np.clip(action, -1, 1)
        at = arena.move(layouts, at, actions[:, t])
        states[:, t + 1] = at
    return layouts, actions, states


def steer(layouts: Array, at: Array, target: Array) -> Array:
    """Direction `(B, 2)`, largest component 1, to the target or, from the other room, to the door and through it."""
    other_room = (at[:, 0] < layouts[:, 0]) != (target[:, 0] < layouts[:, 0])
    in_line = np.abs(at[:, 1] - layouts[:, 1]) < arena.DOOR_HALF_M - arena.RADIUS_M
    beyond = np.where(at[:, 0] < layouts[:, 0], np.float32(0.2), np.float32(-0.2))
    door = layouts + np.stack([np.where(in_line, beyond, -beyond / 2), np.zeros_like(beyond)], 1)
    return towards(at, np.where(other_room[:, None], door, target))


def towards(at: Array, target: Array) -> Array:
    """Direction `(B, 2)` as the crow flies, largest component 1 until the last step."""
    delta = target - at
    return (delta / np.maximum(np.abs(delta).max(1, keepdims=True), arena.STEP_M)).astype(np.float32)


def batch(
    seed: int, step: int, n_layouts: int, windows: int, frames: int, action_block: int, straight_share: float = 0.0
) -> tuple[Array, Array, Array]:
    """`windows` windows in each of `n_layouts` layouts, of `frames` observations, one every `action_block` periods.

    Returns, layout by layout with B = n_layouts * windows, pixels `(B, F, 64, 64, 3)` uint8, actions
    `(B, F, action_block * 2)` and states `(B, F, 4)`: position and layout, in metres. The last action leads out of the
    window and is there only to give every frame one. Negative steps are streams that no training step uses.
    """
    rng = np.random.default_rng([_TRAINING, seed, step % 2**63])
    size = n_layouts * windows
    layouts = np.repeat(arena.sample_layouts(rng, n_layouts), windows, 0)
    _, actions, states = trajectories(rng, size, frames * action_block, layouts, straight_share)
    states = states[:, : frames * action_block : action_block]
    static = np.repeat(layouts, frames, 0)
    rooms = np.repeat(arena.draw_arena(layouts), frames, 0)
    pixels = arena.to_uint8(arena.draw_disc(rooms, states.reshape(-1, 2)))
    seen = np.concatenate([states.reshape(-1, 2), static], 1).reshape(size, frames, 4)
    return pixels.reshape(size, frames, *pixels.shape[1:]), actions.reshape(size, frames, -1), seen

"""Scripted, noisy pushing: the training data, and the trajectories that tasks are cut from.

Nothing is stored: batch `k` of a run is a function of `(seed, k)`, so no window is seen twice and a resumed run sees
exactly what an uninterrupted one would have.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from edgewm.reference.base import PIXELS
from edgewm.reference.pushing.physics import STEP_M, Body, move, sample_states
from edgewm.reference.pushing.pictures import observe

Array = np.ndarray

_TRAINING = 0x9A55
# Cumulative shares: push the body somewhere, a held direction, white noise, a slow wander.
STYLES = (0.75, 0.85, 0.93, 1.0)
POOL = 8  # batches simulated at a time: numpy costs the same for few rows as for many
CUTS = 2  # windows cut from one trajectory, one after another: later ones begin in contact
_GAP_M = 0.012  # between disc and body while going round


def _unit(vectors: Array) -> Array:
    return vectors / np.maximum(np.hypot(vectors[:, 0], vectors[:, 1]), np.float32(1e-6))[:, None]


def push(body: Body, states: Array, targets: Array, aims: Array) -> Array:
    """Velocity commands `(B, 2)`: get behind the body as seen from `targets` `(B, 2)`, then push towards them.

    The line of push passes `aims` `(B,)` metres beside the centre of gravity, so a body with corners turns.
    """
    disc, centre = states[:, :2], states[:, 2:4]
    along = _unit(targets - centre)
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    centre = centre + aims[:, None] * across
    offset = disc - centre
    ahead, beside = (offset * along).sum(1), (offset * across).sum(1)
    pushing = (ahead < 0) & (np.abs(beside) < 0.6 * body.disc_m)
    straight = along - 3.0 * (beside / body.reach_m)[:, None] * across
    clear = body.reach_m + body.disc_m + _GAP_M
    behind = centre - clear * along - disc
    # Within the circle of clearance, and not behind: go round it, by the shorter way, and outwards when too near.
    out, distance = _unit(states[:, :2] - states[:, 2:4]), np.hypot(*(states[:, :2] - states[:, 2:4]).T)
    tangent = np.stack([-out[:, 1], out[:, 0]], 1)
    tangent = tangent * np.where((tangent * behind).sum(1) < 0, -1, 1)[:, None]
    way = _unit(behind)
    inward = np.minimum((way * out).sum(1), 0)
    blocked = (distance < clear + STEP_M) & (inward < -0.2) & (ahead > -0.5 * body.reach_m)
    outward = np.clip((clear - distance) / STEP_M, 0, 1)
    round_it = tangent + outward[:, None] * out
    slow = np.minimum(1.0, np.hypot(behind[:, 0], behind[:, 1]) / STEP_M)[:, None]
    approach = np.where(blocked[:, None], _unit(round_it), way * slow)
    return np.where(pushing[:, None], _unit(straight), approach).astype(np.float32)


def trajectories(
    body: Body, rng: np.random.Generator, n: int, steps: int, styles: tuple[float, ...] = STYLES
) -> tuple[Array, Array]:
    """Actions `(n, steps, 2)` in [-1, 1] and states `(n, steps + 1, 5)`."""

    def sample_targets(k: int) -> Array:
        return rng.uniform(body.reach_m, 1 - body.reach_m, (k, 2)).astype(np.float32)

    def sample_aims(k: int) -> Array:
        return (rng.uniform(-0.6, 0.6, k) * (body.reach_m if body.oriented else 0.3 * body.reach_m)).astype(np.float32)

    at = sample_states(body, rng, n)
    style = np.searchsorted(styles, rng.random(n))
    targets, aims = sample_targets(n), sample_aims(n)
    speed = rng.uniform(0.4, 1.2, (n, 1)).astype(np.float32)
    jitter = rng.uniform(0.0, 0.8, (n, 1)).astype(np.float32)
    held, wander = (rng.normal(0, 1, (n, 2)).astype(np.float32) for _ in range(2))
    actions, states = np.zeros((n, steps, 2), np.float32), np.zeros((n, steps + 1, 5), np.float32)
    states[:, 0] = at
    for t in range(steps):
        noise = rng.normal(0, 1, (n, 2)).astype(np.float32)
        wander = 0.9 * wander + 0.44 * noise
        renew = rng.random(n) < 0.04
        arrived = np.hypot(*(targets - at[:, 2:4]).T) < 0.02
        held[renew] = rng.normal(0, 1, (int(renew.sum()), 2))
        renew |= arrived
        targets[renew], aims[renew] = sample_targets(int(renew.sum())), sample_aims(int(renew.sum()))
        seek = speed * push(body, at, targets, aims) + jitter * noise
        action = np.choose(style[:, None], [seek, held + jitter * noise, noise, wander])
        actions[:, t] = np.clip(action, -1, 1)
        at = move(body, at, actions[:, t])
        states[:, t + 1] = at
    return actions, states


@lru_cache(maxsize=1)
def _pool(body: Body, seed: int, pool: int, windows: int, periods: int) -> tuple[Array, Array]:
    """Actions `(POOL * windows, periods, 2)` and states at their beginnings `(.., periods, 5)`, in random order."""
    rng = np.random.default_rng([_TRAINING, seed, pool % 2**63])
    n = -(-POOL * windows // CUTS)
    actions, states = trajectories(body, rng, n, CUTS * periods)
    order = rng.permutation(n * CUTS)[: POOL * windows]
    return actions.reshape(-1, periods, 2)[order], states[:, :-1].reshape(-1, periods, 5)[order]


def batch(body: Body, seed: int, step: int, windows: int, frames: int, action_block: int) -> tuple[Array, Array, Array]:
    """`windows` windows of `frames` observations, one every `action_block` periods.

    Returns pixels `(B, F, 64, 64, 3)` uint8, actions `(B, F, action_block * 2)` and states `(B, F, 5)`. The last action
    leads out of the window and is there only to give every frame one. Negative steps are streams that no training step
    uses.
    """
    actions, states = _pool(body, seed, step // POOL, windows, frames * action_block)
    part = slice(step % POOL * windows, (step % POOL + 1) * windows)
    seen = states[part, ::action_block]
    pixels = observe(body, seen.reshape(-1, 5)).reshape(windows, frames, PIXELS, PIXELS, 3)
    return pixels, actions[part].reshape(windows, frames, -1), seen

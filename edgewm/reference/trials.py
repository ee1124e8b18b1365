"""What the judge asks of a world beyond contexts, futures and episodes: states to probe, planted impossibilities, two
futures from one start, and scenes outside the training range. Generic here; a world adds its own in its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edgewm.judge.sources import Branch, Clip, Shift, Source
from edgewm.reference.base import HELD_OUT, World
from edgewm.reference.pushing import trials as pushing
from edgewm.reference.two_room import trials as two_room
from edgewm.reference.worlds import world_of

__all__ = ["source", "world_of"]

Array = np.ndarray
# For each world: clips that cannot be, `(world, rng, n, steps) -> actions (n, T, A), possible and impossible states
# (n, T + 1, S)` by kind; and shifted worlds by name.
PLANTED: Mapping[str, Mapping[str, Callable]] = {
    "two_room": two_room.PLANTED, "puck": pushing.PLANTED, "push_t": pushing.PLANTED,
}  # fmt: skip
SHIFTED: Mapping[str, Callable[[Any], Mapping[str, World]]] = {
    "two_room": two_room.shifted, "puck": pushing.shifted, "push_t": pushing.shifted,
}  # fmt: skip


def source(world: World) -> Source:
    """Everything the judge may ask for."""

    def rollouts(n: int, steps: int, seed: int) -> Iterator[tuple[Array, Array, Array]]:
        return _rollouts(world, n, steps, seed)

    def shifts() -> dict[str, Shift]:
        return {name: _shift(other) for name, other in SHIFTED[world.name](world).items()}

    return Source(
        contexts=world.contexts, rollouts=rollouts, make=world.make, gallery=world.gallery,
        states=lambda n, seed: _states(world, n, seed), names=world.names, shifts=shifts,
        impossible=lambda n, steps, seed: _impossible(world, n, steps, seed),
        branches=lambda n, steps, seed: _branches(world, n, steps, seed),
    )  # fmt: skip


def _rollouts(world: World, n: int, steps: int, seed: int) -> Iterator[tuple[Array, Array, Array]]:
    """`world.rollouts` with what a picture shows in the place of raw states."""
    for frames, actions, states in world.rollouts(n, steps, seed):
        yield frames, actions, world.features(states)


def _shift(world: World) -> Shift:
    return Shift(world.contexts, lambda n, steps, seed: _rollouts(world, n, steps, seed), world.make, is_endless=True)


def _states(world: World, n: int, seed: int) -> tuple[Array, Array]:
    states = world.sample_states(np.random.default_rng([HELD_OUT, 11, seed]), n)
    return world.observe(states), world.features(states)


def _impossible(world: World, n: int, steps: int, seed: int) -> Iterator[Clip]:
    """As many clips of each kind, the kinds by turns."""
    rng = np.random.default_rng([HELD_OUT, 12, seed])
    kinds = {"teleport": teleport, "frozen": frozen, **PLANTED[world.name]}
    each = -(-n // len(kinds))
    drawn = {kind: plant(world, rng, each, steps) for kind, plant in kinds.items()}
    for i in range(n):
        kind = list(kinds)[i % len(kinds)]
        actions, possible, impossible = (part[i // len(kinds)] for part in drawn[kind])
        yield Clip(kind, actions, world.observe(possible), world.observe(impossible))


def _branches(world: World, n: int, steps: int, seed: int) -> Iterator[Branch]:
    """From one state, the actions of two scripts that began elsewhere."""
    rng = np.random.default_rng([HELD_OUT, 13, seed])
    starts = world.sample_states(rng, n)
    actions = world.trajectories(rng, 2 * n, steps)[0].reshape(2, n, steps, -1)
    states = np.stack([played(world, starts, branch) for branch in actions])
    for i in range(n):
        yield Branch(actions[:, i], np.stack([world.observe(s) for s in states[:, i]]))


def played(world: World, starts: Array, actions: Array) -> Array:
    """States `(n, T + 1, S)` that actions `(n, T, A)` lead through."""
    states = [starts]
    for t in range(actions.shape[1]):
        states.append(world.move(states[-1], actions[:, t]))
    return np.stack(states, 1)


def lively(world: World, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array]:
    """Of four times as many scripted trajectories, those whose pictures change most: actions, states."""
    actions, states = world.trajectories(rng, 4 * n, steps)
    path = np.abs(np.diff(np.stack([world.features(s) for s in states]), axis=1)).sum((1, 2))
    most = np.sort(np.argsort(-path, kind="stable")[:n])
    return actions[most], states[most]


def teleport(world: World, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array, Array]:
    """Half way, everything that moves is somewhere else in the same scene, and goes on from there."""
    actions, states = lively(world, rng, n, steps)
    at = steps // 2
    elsewhere = np.stack([_farthest(world, s[at], world.variations(s, rng), rng) for s in states])
    after = played(world, elsewhere, actions[:, at:])
    return actions, states, np.concatenate([states[:, :at], after], 1)


def _farthest(world: World, state: Array, others: Array, rng: np.random.Generator) -> Array:
    """One of the farther half of `others`, as far as a picture shows."""
    apart = np.abs(world.features(others) - world.features(state[None])).sum(1)
    return others[rng.choice(np.argsort(apart)[len(others) // 2 :])]


def frozen(world: World, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array, Array]:
    """From a third of the way on nothing moves, whatever the actions say."""
    actions, states = lively(world, rng, n, steps)
    return actions, states, states[:, np.minimum(np.arange(steps + 1), steps // 3)]

"""What a reference model is trained in, planned in and judged in: a `World`, and one `Episode` of it.

A world's dynamics are functions of arrays with a leading batch dimension: states `(B, S)` float32 that hold everything
there is, actions `(B, A)` in [-1, 1], pictures `(B, 64, 64, 3)` uint8. numpy only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgewm.errors import EdgewmError

Array = np.ndarray
Observation = dict[str, Array]

PIXELS = 64  # side of an observation
HELD_OUT = 0x7E57  # first key of every stream that is not training, so no seed can repeat a training stream


class World(ABC):
    """Stateless; its random numbers are those of the generator it is given."""

    name: str
    title: str  # for people
    period_s: float
    max_steps: int  # periods in which a task must succeed
    names: tuple[str, ...]  # of what `features` gives
    subset: str  # the tasks that `in_subset` picks, in words
    about: str  # for the model card: what there is, what an action does, what succeeds
    limits: str  # for the model card: what it is not
    action_dim = 2
    action_low, action_high = -1.0, 1.0

    @abstractmethod
    def sample_states(self, rng: np.random.Generator, n: int) -> Array:
        """`(n, S)` states from all over the world."""

    @abstractmethod
    def sample_tasks(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        """Starts and goals, each `(n, S)`."""

    @abstractmethod
    def trajectories(self, rng: np.random.Generator, n: int, steps: int) -> tuple[Array, Array]:
        """Actions `(n, steps, A)` of a scripted, noisy policy and the states `(n, steps + 1, S)` they lead through."""

    @abstractmethod
    def batch(
        self, seed: int, step: int, layouts: int, windows: int, frames: int, action_block: int, **options: Any
    ) -> tuple[Array, Array, Array]:
        """Training windows: pixels `(B, F, 64, 64, 3)`, model actions `(B, F, action_block * A)`, states `(B, F, S)`.

        `windows` in each of `layouts` layouts, layout by layout, with one frame every `action_block` periods.
        """

    @abstractmethod
    def move(self, states: Array, actions: Array) -> Array:
        """States one period later."""

    @abstractmethod
    def observe(self, states: Array) -> Array:
        """What the robot sees."""

    @abstractmethod
    def reached(self, states: Array, goals: Array) -> Array:
        """`(B,)` bool: this counts as the goal."""

    @abstractmethod
    def features(self, states: Array) -> Array:
        """`(B, K)`: what a linear probe looks for."""

    @abstractmethod
    def distance(self, starts: Array, goals: Array) -> Array:
        """`(B,)` metres: how much a task asks for."""

    @abstractmethod
    def in_subset(self, starts: Array, goals: Array) -> Array:
        """`(B,)` bool: the harder tasks."""

    @abstractmethod
    def variations(self, states: Array, rng: np.random.Generator) -> Array:
        """`(N, S)`: what else one might see in the scene of the trajectory `states` `(T, S)`."""

    @abstractmethod
    def paint(self, path: Array, goal: Array, size_px: int) -> Array:
        """`(size_px, size_px, 3)` uint8 for people: the last of `path` `(T, S)`, the way there and the goal `(S,)`."""

    # --- what the judge asks for --------------------------------------------------------------------------------

    def make(self, seed: int | None = None) -> Episode:
        return Episode(self, seed)

    def contexts(self, n: int, seed: int = 0) -> Iterator[tuple[Observation, Observation]]:
        """`n` pairs (observation, goal) from tasks never trained on."""
        starts, goals = self.sample_tasks(np.random.default_rng([HELD_OUT, 1, seed]), n)
        for start, goal in zip(self.observe(starts), self.observe(goals), strict=True):
            yield {"pixels": start}, {"pixels": goal}

    def rollouts(self, n: int, steps: int, seed: int = 0) -> Iterator[tuple[Array, Array, Array]]:
        """`n` held-out trajectories: pixels `(T + 1, 64, 64, 3)`, actions `(T, A)`, states `(T + 1, S)`."""
        actions, states = self.trajectories(np.random.default_rng([HELD_OUT, 2, seed]), n, steps)
        for a, s in zip(actions, states, strict=True):
            yield self.observe(s), a, s

    def gallery(self, periods: int, seed: int) -> tuple[Array, Array, Array]:
        """The held-out trajectory, of many, in which most happens, and pictures to recognise imagined latents by.

        Returns frames `(T + 1, 64, 64, 3)`, actions `(T, A)` and the pictures `(N, 64, 64, 3)`.
        """
        rng = np.random.default_rng([0x6A11, seed])
        actions, states = self.trajectories(rng, 256, periods)
        first, last = states[:, 0], states[:, -1]
        chosen = int(np.argmax(self.distance(first, last) + self.in_subset(first, last)))
        return self.observe(states[chosen]), actions[chosen], self.observe(self.variations(states[chosen], rng))


class Episode:
    """One task in one world, played a period at a time."""

    def __init__(self, world: World, seed: int | None = None):
        self.world, self.period_s, self.max_steps = world, world.period_s, world.max_steps
        self.action_dim, self.action_low, self.action_high = world.action_dim, world.action_low, world.action_high
        self.reset(seed)

    def reset(self, seed: int | None = None) -> Observation:
        starts, goals = self.world.sample_tasks(np.random.default_rng(seed), 1)
        self.path, self._goal, self._success = starts, goals, False
        return self._observation()

    def _observation(self) -> Observation:
        return {"pixels": self.world.observe(self.path[-1:])[0]}

    def step(self, action: Array) -> Observation:
        action = np.asarray(action, np.float32)
        if action.shape != (self.action_dim,) or not np.isfinite(action).all():
            raise EdgewmError(
                f"action {action.tolist()}", "Episode.step", "pass two finite numbers, a velocity in [-1, 1]^2"
            )
        self.path = np.concatenate([self.path, self.world.move(self.path[-1:], action[None])])
        in_time = self.steps <= self.max_steps
        self._success |= in_time and bool(self.world.reached(self.path[-1:], self._goal)[0])
        return self._observation()

    @property
    def steps(self) -> int:
        """Periods played."""
        return len(self.path) - 1

    @property
    def goal(self) -> Observation:
        return {"pixels": self.world.observe(self._goal)[0]}

    @property
    def success(self) -> bool:
        return self._success

    @property
    def family(self) -> str:
        """The kind of task: `World.subset` or another."""
        return self.world.subset if self.world.in_subset(self.path[:1], self._goal)[0] else "other tasks"

    @property
    def state(self) -> Array:
        """`(S,)` float32."""
        return self.path[-1].copy()

    @property
    def goal_state(self) -> Array:
        """`(S,)` float32."""
        return self._goal[0].copy()

    def render(self, size_px: int = 256) -> Array:
        """`(size_px, size_px, 3)` uint8 for people."""
        return self.world.paint(self.path, self._goal[0], size_px)

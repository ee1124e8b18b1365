"""Both models let loose in a simulator: what suite `closed-loop` plays, how long it will take, success by latency."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import statistics
from ..errors import EdgewmError
from ..manifest import Manifest
from ..options import Progress
from . import closed_loop as pairs
from .causality import action_dim
from .gates import Preset, decided
from .imagine import Subjects
from .latency import AT_ONCE, MEASURED, Latency, Policy, break_even, of_bundle, of_model, timed
from .noise import philox
from .sides import Observation
from .sources import Source

Array = np.ndarray
Figures = dict[str, Any]
Rows = list[dict[str, Any]]
Make = Callable[[int], Any]  # seed -> simulator
Episode = Callable[[int], int | None]  # seed of its start -> periods to success, None without

CURVE_EPISODES = 50  # at each latency, at most
FEWEST = 40  # pairs before a test of equals can end, about


@dataclass(frozen=True)
class Loop:
    """What episodes are played with; `clock` holds the nanoseconds that `runtime` reads as its clock."""

    subjects: Subjects
    manifest: Manifest
    runtime: Any
    clock: list[int]
    preset: Preset
    seed: int
    progress: Progress
    notice: Callable[[str], None]

    @property
    def period_ms(self) -> float:
        return 1e3 / self.manifest.rate_hz

    def pair(self, make: Make, latency: Latency = AT_ONCE) -> pairs.Pair:
        """One episode of each, by the seed of their start."""
        full, compressed = self.with_full(make, latency), self.with_compressed(make, latency)
        return lambda seed: (full(seed), compressed(seed))

    def with_full(self, make: Make, latency: Latency = AT_ONCE) -> Episode:
        """One episode of the full model, by the seed of its start, on the noise that the bundle's plans draw."""

        def episode(seed: int) -> int | None:
            world = make(seed)
            observation = world.reset(seed)
            parts = of_model(self.subjects.full, self.manifest, world.goal, lambda plan: self.noise(seed, plan))
            return played(world, observation, timed(parts, self.subjects.planner, self._late(latency, seed)))

        return episode

    def with_compressed(self, make: Make, latency: Latency = AT_ONCE) -> Episode:
        """The same of the bundle, through its C ABI."""

        def episode(seed: int) -> int | None:
            world = make(seed)
            observation = world.reset(seed)
            parts = of_bundle(self.runtime, self.clock, self.manifest, world.goal, seed)
            return played(world, observation, timed(parts, self.subjects.planner, self._late(latency, seed)))

        return episode

    def noise(self, seed: int, plan: int) -> Array:
        """What plan number `plan` draws after a reset with `seed`."""
        return philox(self.subjects.planner, action_dim(self.subjects), seed, plan)

    def _late(self, latency: Latency, seed: int) -> Callable[[], int]:
        rng = np.random.default_rng([0x1A7E, seed])
        return lambda: latency.periods(rng, self.period_ms)


def played(world: Any, observation: Observation, policy: Policy) -> int | None:
    """Periods to success; None where there was none."""
    for period in range(world.max_steps):
        observation = world.step(policy(observation, period))
        if world.success:
            return period + 1
    return None


# ------------------------------------------------------------------------------------------------------------ the suite


def closed_loop(
    loop: Loop, source: Source, episodes: int, is_shifted: bool, latency: Sequence[Latency]
) -> tuple[Figures, Rows]:
    """Pairs of episodes; of shifted scenes, too, where `is_shifted`; and success by latency."""
    shifts = [s.make for s in (source.shifts() if is_shifted and source.shifts else {}).values() if s.make is not None]
    _announce(loop, source.make, episodes, bool(shifts), len(latency))
    figures, rows = pairs.run(loop.pair(source.make), episodes, loop.seed, loop.progress, loop.preset)
    figures = {"closed_loop": figures}
    if shifts:
        found, judgements = shifted(loop, source, episodes)
        figures["closed_loop"]["shifts"], rows = found, rows + judgements
    if latency:
        found, judgements = by_latency(loop, source.make, latency, min(episodes, CURVE_EPISODES))
        figures["latency"], rows = found, rows + judgements
    return figures, rows


def _announce(loop: Loop, make: Make, episodes: int, is_shifted: bool, curve: int) -> None:
    """How long this will take, from one plan of each model. EdgewmError for a simulator of another rate."""
    world = make(loop.seed)
    if not math.isclose(world.period_s * loop.manifest.rate_hz, 1.0, rel_tol=1e-6):
        raise EdgewmError(
            f"the simulator runs at {1 / world.period_s:g} Hz, the bundle at {loop.manifest.rate_hz:g} Hz",
            "suite closed-loop", f"build with --rate-hz {1 / world.period_s:g}",
        )  # fmt: skip
    observation, goal = world.reset(loop.seed), world.goal
    begun = time.perf_counter()
    noise = loop.noise(loop.seed, 0)
    for side in loop.subjects.both:
        side.plan(observation, goal, noise)
    plan_s = time.perf_counter() - begun
    pair_s = plan_s * math.ceil(world.max_steps / loop.manifest.planner.commit_steps)
    curve_s = pair_s * min(episodes, CURVE_EPISODES) * (curve + 1 if curve else 0)
    each = pair_s * (1 + is_shifted)
    loop.notice(
        f"closed loop: {_minutes(curve_s + each * min(FEWEST, episodes))} where the models are equal, at most "
        f"{_minutes(curve_s + each * episodes)} ({episodes} pairs of episodes"
        f"{', shifted scenes' if is_shifted else ''}{f', {curve} latencies' if curve else ''})"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def shifted(loop: Loop, source: Source, episodes: int) -> tuple[Figures, Rows]:
    """The same test in shifted scenes, which take turns; success by shift, as far as the test went."""
    makes = {name: s.make for name, s in source.shifts().items() if s.make is not None}
    starts = pairs.starts_of(episodes, loop.seed + 1)
    turns = dict(zip(starts, itertools.cycle(makes)))
    outcomes: dict[str, list[pairs.Outcome]] = {name: [] for name in makes}

    def pair(start: int) -> pairs.Outcome:
        found = loop.pair(makes[turns[start]])(start)
        outcomes[turns[start]].append(found)
        return found

    figures, rows = pairs.run(
        pair, episodes, loop.seed + 1, loop.progress, loop.preset, "shifted_loss", "closed-loop, shifted scenes"
    )
    return {"all": figures, **{name: pairs.compared(found) for name, found in outcomes.items() if found}}, rows


def by_latency(loop: Loop, make: Make, latency: Sequence[Latency], episodes: int) -> tuple[Figures, Rows]:
    """Success of both models where plans come late, on the same starts; the gate is on the measured latency."""
    starts = pairs.starts_of(episodes, loop.seed)
    points, rows, margin = [], [], loop.preset.limits["late_loss"]
    at_once: list[int | None] = []
    ordered = sorted((late for late in latency if late.median_ms > 0), key=lambda late: late.median_ms)
    for i, late in enumerate([AT_ONCE, *ordered]):
        found = [loop.pair(make, late)(start) for start in starts]
        at_once = at_once or [f for f, _ in found]
        points.append({"name": late.name, "ms": late.median_ms, **pairs.compared(found)})
        if late.name == MEASURED:
            lost = [pairs.change((f, c)) for (_, c), f in zip(found, at_once, strict=True)]
            state = statistics.noninferiority(lost, margin)
            note = None if state.decision is not None else f"not decided after {episodes} episodes: allow more"
            rows.append(decided("late_loss", float(-np.mean(lost)), state.decision, episodes, note, loop.preset))
        loop.progress(f"latency: {late.name}", (i + 1) / (len(ordered) + 1))
    figures = {"points": points, "margin": margin, "break_even_ms": break_even(points, margin)}
    return figures, rows

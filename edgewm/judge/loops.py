"""Both models let loose in a simulator: what suite `closed-loop` plays, how long it will take, success by latency."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..manifest import Manifest
from ..options import Progress
from ..program import Planner
from . import closed_loop as pairs
from .causality import action_dim
from .gates import Preset
from .imagine import Subjects
from .latency import AT_ONCE, Latency, Policy, break_even, fastest_rate_hz, of_bundle, of_model, timed
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
        """One episode of the full model, by the seed of its start, on the noise that the bundle's plans draw; with as
        large a search as it plans with."""
        planner = self.subjects.whole or self.subjects.planner

        def episode(seed: int) -> int | None:
            world = make(seed)
            observation = world.reset(seed)
            parts = of_model(
                self.subjects.full, self.manifest, world.goal, lambda plan: self.noise(seed, plan, planner), planner
            )
            return played(world, observation, timed(parts, planner, self._late(latency, seed)))

        return episode

    def with_compressed(self, make: Make, latency: Latency = AT_ONCE) -> Episode:
        """The same of the bundle, through its C ABI."""

        def episode(seed: int) -> int | None:
            return of_start(self.runtime, self.clock, self.manifest, make, seed, self._late(latency, seed))

        return episode

    def noise(self, seed: int, plan: int, planner: Planner | None = None) -> Array:
        """What plan number `plan` draws after a reset with `seed`; the bundle's planner, unless one is given."""
        return philox(planner or self.subjects.planner, action_dim(self.subjects), seed, plan)

    def _late(self, latency: Latency, seed: int) -> Callable[[], int]:
        rng = np.random.default_rng([0x1A7E, seed])
        return lambda: latency.periods(rng, self.period_ms)


def of_start(
    runtime: Any, clock: list[int], manifest: Manifest, make: Make, seed: int, late: Callable[[], int] = lambda: 0
) -> int | None:
    """One episode of the bundle opened as `runtime`, from the start with that seed; plans land `late` periods after."""
    world = make(seed)
    return of_world(runtime, clock, manifest, world, world.reset(seed), seed, late)


def of_world(
    runtime: Any, clock: list[int], manifest: Manifest, world: Any, observation: Observation, seed: int,
    late: Callable[[], int] = lambda: 0,
) -> int | None:  # fmt: skip
    """The same in a world that is reset already, and shows this."""
    parts = of_bundle(runtime, clock, manifest, world.goal, seed)
    return played(world, observation, timed(parts, manifest.planner, late))


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
    _announce(loop, source.make, episodes, bool(shifts), latency)
    at_once = functools.cache(loop.pair(source.make))
    pair, by_family = sorted_by(at_once, lambda start: family_of(source.make, start))
    figures, rows = pairs.run(pair, episodes, loop.seed, loop.progress, loop.preset)
    families = {name: pairs.compared(found) for name, found in by_family.items() if name is not None}
    figures = {"closed_loop": figures | ({"families": families} if families else {})}
    if shifts:
        found, judgements = shifted(loop, source, episodes)
        figures["closed_loop"]["shifts"], rows = found, rows + judgements
    if latency:
        found, judgements = by_latency(loop, source.make, at_once, latency, episodes)
        figures["latency"], rows = found, rows + judgements
    return figures, rows


def family_of(make: Make, start: int) -> str | None:
    """The kind of task that starts there, where the simulator tells."""
    world = make(start)
    world.reset(start)
    return getattr(world, "family", None)


def sorted_by(
    pair: pairs.Pair, name_of: Callable[[int], str | None]
) -> tuple[pairs.Pair, dict[str | None, list[pairs.Outcome]]]:
    """The same pairs, and where their outcomes will lie, by the name of their start."""
    outcomes: dict[str | None, list[pairs.Outcome]] = {}

    def told(start: int) -> pairs.Outcome:
        found = pair(start)
        outcomes.setdefault(name_of(start), []).append(found)
        return found

    return told, outcomes


def _announce(loop: Loop, make: Make, episodes: int, is_shifted: bool, latency: Sequence[Latency]) -> None:
    """How long this will take, from one plan of each model."""
    world = make(loop.seed)
    observation, goal = world.reset(loop.seed), world.goal
    plan_s = math.inf
    for plan in range(2):  # the first one is slower than all that follow
        begun = time.perf_counter()
        noise = loop.noise(loop.seed, plan)
        for side in loop.subjects.both:
            side.plan(observation, goal, noise)
        plan_s = min(plan_s, time.perf_counter() - begun)
    pair_s = plan_s * math.ceil(world.max_steps / loop.manifest.planner.commit_steps)
    curve = len(latency)
    curve_s = pair_s * min(episodes, CURVE_EPISODES) * (curve + 1 if curve else 0)
    each = pair_s * (1 + is_shifted + any(late.is_gated for late in latency))
    late = f", {curve} latencies" if curve else ""
    margin = loop.preset.limits["closed_loop_loss"]
    loop.notice(
        f"closed loop: {_minutes(curve_s + each * min(FEWEST, episodes))} where the models are equal, at most "
        f"{_minutes(curve_s + each * episodes)} ({episodes} pairs of episodes{', shifted scenes' if is_shifted else ''}"
        f"{late}); passes where a loss of {100 * margin:g} points is excluded with 95 % confidence"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def shifted(loop: Loop, source: Source, episodes: int) -> tuple[Figures, Rows]:
    """The same test in shifted scenes, which take turns; success by shift, as far as the test went."""
    makes = {name: s.make for name, s in source.shifts().items() if s.make is not None}
    turns = dict(zip(pairs.starts_of(episodes, loop.seed + 1), itertools.cycle(makes)))
    pair, outcomes = sorted_by(lambda start: loop.pair(makes[turns[start]])(start), turns.__getitem__)
    figures, rows = pairs.run(
        pair, episodes, loop.seed + 1, loop.progress, loop.preset, "shifted_loss", "closed-loop, shifted scenes"
    )
    return {"all": figures, **{name: pairs.compared(outcomes[name]) for name in makes if name in outcomes}}, rows


def by_latency(
    loop: Loop, make: Make, at_once: pairs.Pair, latency: Sequence[Latency], episodes: int
) -> tuple[Figures, Rows]:
    """Success of both models where plans come late, on the same starts, as `at_once` has them without latency.

    The gate is on the slowest of those that are gated: the full model at once against the compressed one so late, up to
    `episodes` pairs, until it is decided.
    """
    starts = pairs.starts_of(episodes, loop.seed)[:CURVE_EPISODES]
    ordered = sorted((late for late in latency if late.median_ms > 0), key=lambda late: late.median_ms)
    late_by = {late: functools.cache(loop.pair(make, late)) for late in ordered}
    points = []
    for i, late in enumerate([AT_ONCE, *ordered]):
        found = [late_by.get(late, at_once)(start) for start in starts]
        points.append({"name": late.name, "ms": late.median_ms, **pairs.compared(found)})
        loop.progress(f"latency: {late.name}", (i + 1) / (len(ordered) + 1))
    edge, rate_hz = break_even(points, loop.preset.limits["late_loss"]), loop.manifest.rate_hz
    figures = {
        "points": points, "margin": loop.preset.limits["late_loss"], "break_even_ms": edge,
        "break_even_periods": None if edge is None else edge / loop.period_ms, "rate_hz": rate_hz,
    }  # fmt: skip
    gated = next((late for late in reversed(ordered) if late.is_gated), None)
    if gated is None:
        return figures, []
    figures |= {"gated": gated.name, "fastest_rate_hz": fastest_rate_hz(edge, gated.median_ms, rate_hz)}
    full, compressed = loop.with_full(make), loop.with_compressed(make, gated)
    known = set(starts)

    def pair(start: int) -> pairs.Outcome:
        return (at_once(start)[0], late_by[gated](start)[1]) if start in known else (full(start), compressed(start))

    found, rows = pairs.run(
        pair, episodes, loop.seed, loop.progress, loop.preset, "late_loss", f"latency: {gated.name}"
    )
    return figures | {"late": found}, rows

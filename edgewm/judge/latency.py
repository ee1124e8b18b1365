"""Latency in the loop: a plan is begun on what is seen, and its actions are there as much later as it took.

Time in a simulator comes in control periods, so a plan that takes any part of a period is there at the next one: no
result is better than it would be on the robot. Until then the chunk before is played on, then the ladder of the runtime
holds. A plan begins when it would on the robot, but not before the one before it is there.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EdgewmError
from ..ladder import aim, in_robot_units, within
from ..manifest import Manifest
from ..program import Planner
from .sides import Memory, Observation, Side, named, replan

Array = np.ndarray
Policy = Callable[[Observation, int], Array]  # what is seen, period -> action (axes,)

MEASURED, ESTIMATED = "measured", "estimated"
ENDS = ("low", "point", "high")  # of an estimate


@dataclass(frozen=True)
class Latency:
    """A distribution of a plan's time in ms: `values` with their `weights`; the verdict is on one that is `gated`."""

    name: str
    values: tuple[float, ...]
    weights: tuple[float, ...]
    is_gated: bool = False

    @property
    def median_ms(self) -> float:
        order = np.argsort(self.values)
        share = np.cumsum(np.asarray(self.weights)[order]) / np.sum(self.weights)
        return float(np.asarray(self.values)[order][np.searchsorted(share, 0.5)])

    def periods(self, rng: np.random.Generator, period_ms: float) -> int:
        """Control periods until a plan is there."""
        drawn = rng.choice(np.asarray(self.values), p=np.asarray(self.weights) / np.sum(self.weights))
        return math.ceil(float(drawn) / period_ms - 1e-9)  # 50 ms of 50 ms are one period, whatever binary makes of it


AT_ONCE = Latency("at once", (0.0,), (1.0,))


def latencies(words: Sequence[str], bundle: Path, sha256: str) -> list[Latency]:
    """What `--latency` names, one word after another.

    `measured`, from the clock's part of the bundle's report; `estimated`, both ends and the middle of what
    `edgewm estimate` says of the bundle; a JSON file of `edgewm profile --json` or `edgewm estimate --json`, which may
    be of a board that is not here and is told by its name; or milliseconds. EdgewmError for anything else.
    """
    return [late for word in words for late in _named(word, bundle, sha256)]


def _named(word: str, bundle: Path, sha256: str) -> list[Latency]:
    if word == MEASURED:
        return [_measured(bundle, sha256)]
    if word == ESTIMATED:
        from ..estimate.verb import estimate

        return _estimated(ESTIMATED, estimate(str(bundle))["plan_ms"])
    return _of_file(Path(word)) if Path(word).is_file() else [_given(word)]


def _given(word: str) -> Latency:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise EdgewmError(
            f"no latency {word!r}", "--latency",
            "give measured, estimated, a JSON file of profile or estimate, or milliseconds, with commas between",
        )  # fmt: skip
    return Latency(f"{value:g} ms", (value,), (1.0,))


def _measured(bundle: Path, sha256: str) -> Latency:
    file = Path(bundle) / "report.json"
    try:
        found: Mapping[str, Any] = json.loads(file.read_text())
        buckets = ((found.get("profile") or {}).get("histograms") or {}).get("plan_ms")
        is_of_it = found.get("bundle_sha256") == sha256
    except (OSError, ValueError, AttributeError):  # none, or not whole
        is_of_it, buckets = False, None
    if not is_of_it or not buckets:
        raise EdgewmError("no profile of this bundle", str(file), f"run `edgewm profile {bundle}` first")
    return _counted(MEASURED, buckets)


def _counted(name: str, buckets: Sequence[Sequence[float]]) -> Latency:
    """Of a histogram's [ms, count]."""
    return Latency(name, tuple(float(v) for v, _ in buckets), tuple(float(n) for _, n in buckets), True)


def _estimated(name: str, plan_ms: Mapping[str, float]) -> list[Latency]:
    """The band's ends and its middle apart: it says how well the time is known, not how it varies. The verdict is on
    the slow end."""
    return [
        Latency(name if end == "point" else f"{name}, {end}", (float(plan_ms[end]),), (1.0,), end == "high")
        for end in ENDS
    ]


def _of_file(file: Path) -> list[Latency]:
    fix = "give what `edgewm profile --json` or `edgewm estimate --json` wrote"
    try:
        found = json.loads(file.read_text())
        buckets = (found.get("histograms") or {}).get("plan_ms")
        made = [_counted(file.stem, buckets)] if buckets else _estimated(file.stem, found["plan_ms"])
        if not all(0 <= value < math.inf for late in made for value in late.values):
            raise ValueError("it is below 0 or without end")
        return made
    except (ValueError, AttributeError, KeyError, TypeError) as fault:
        raise EdgewmError(f"no time of a plan in it: {fault}", str(file), fix) from fault


# --------------------------------------------------------------------------------------------------------- policies


@dataclass(frozen=True)
class Parts:
    """A loop in parts: `begin(observation, period)` a plan on what is seen, have it `land(period)`, `act(period)` for
    the action and whether the newest chunk is the one in play."""

    begin: Callable[[Observation, int], None]
    land: Callable[[int], None]
    act: Callable[[int], tuple[Array, bool]]


def timed(parts: Parts, planner: Planner, late: Callable[[], int]) -> Policy:
    """The loop with plans that take `late()` periods each.

    A plan from the observation on begins every `commit_steps` periods, before the period's action. One that follows on
    the chunk in play (`roll_committed`) begins right after that chunk's first action.
    """
    begun, due = -planner.commit_steps, None

    def begin(observation: Observation, period: int) -> None:
        nonlocal begun, due
        parts.begin(observation, period)
        begun, due = period, period + late()

    def land(period: int) -> None:
        nonlocal due
        if due is not None and period >= due:
            parts.land(period)
            due = None

    def policy(observation: Observation, period: int) -> Array:
        land(period)
        if due is None and (period == 0 or not planner.roll_committed) and period >= begun + planner.commit_steps:
            begin(observation, period)
            land(period)
        action, is_newest = parts.act(period)
        if planner.roll_committed and due is None and is_newest:
            begin(observation, period)
            land(period)
        return action

    return policy


def of_bundle(runtime: Any, clock: list[int], manifest: Manifest, goal: Observation, seed: int) -> Parts:
    """The bundle through the C ABI: observe, plan, act. `clock` holds the nanoseconds that `runtime` reads."""
    observations, goals = manifest.ports_of("observation"), manifest.ports_of("goal")
    period_ns = round(1e9 / manifest.rate_hz)
    runtime.reset(seed)
    runtime.set_goal(**named(goals, goal, observations))
    asked = newest = 0

    def begin(observation: Observation, period: int) -> None:
        nonlocal asked
        asked = clock[0] = (period + 1) * period_ns  # 0 would be no time at all
        runtime.observe(asked, **named(observations, observation, observations))

    def land(period: int) -> None:
        nonlocal newest
        clock[0] = asked  # it was planned then
        newest = runtime.plan().generation

    def act(period: int) -> tuple[Array, bool]:
        clock[0] = (period + 1) * period_ns
        action, info = runtime.act(clock[0])
        return action, info.state == "fresh" and info.generation == newest

    return Parts(begin, land, act)


def of_model(
    side: Side, manifest: Manifest, goal: Observation, noise: Callable[[int], Array], planner: Planner | None = None
) -> Parts:
    """The same around any side, on `noise(plan)`, with the runtime's own ladder; the bundle's planner unless another is
    given."""
    planner, action = planner or manifest.planner, manifest.ports_of("action")[0]
    target, memory, count = side.encode(goal), Memory(), itertools.count()
    held: tuple[Observation, int] | None = None
    planned = -1  # period of the last plan's observation
    chunk: Array | None = None
    released, is_stopped = 0, False
    coming: tuple[Array, int] | None = None  # a chunk, and the period that it is due in

    def begin(observation: Observation, period: int) -> None:
        nonlocal held
        held = (observation, period)

    def land(period: int) -> None:
        nonlocal coming, planned
        observation, asked = held
        is_playing = planner.roll_committed and chunk is not None and 0 <= asked - released < len(chunk)
        begun = asked - released + 1 if is_playing else 0
        if asked - planned != planner.action_block:
            memory.forget_frames()
        planned = asked
        plan = replan(side, planner, observation, target, noise(next(count)), memory, begun)
        coming = in_robot_units(action, plan), asked + planner.commit_steps if begun else 0

    def act(period: int) -> tuple[Array, bool]:
        nonlocal chunk, released, coming, is_stopped
        if coming is not None and period >= coming[1]:
            chunk, released, coming = coming[0], period, None
        state, aimed = aim(action, chunk, period - released, is_stopped)
        is_stopped |= state == "stopped"
        return np.asarray(within(action, aimed), np.float32), coming is None and state == "fresh"

    return Parts(begin, land, act)


# ------------------------------------------------------------------------------------------------------------ figures


def break_even(points: Sequence[Mapping[str, Any]], margin: float) -> float | None:
    """Milliseconds at which the compressed model's success falls `margin` below the full model's at once, interpolated
    between points; 0 where it begins below, None where it never falls so far.
    """
    ordered = sorted(points, key=lambda p: p["ms"])
    rates = [p["compressed"]["successes"] / p["compressed"]["episodes"] for p in ordered]
    wanted = next(p for p in ordered if p["ms"] == 0)["full"]
    least = wanted["successes"] / wanted["episodes"] - margin
    if rates[0] < least:
        return 0.0
    for i in range(1, len(ordered)):
        if rates[i] < least:
            a, b = ordered[i - 1]["ms"], ordered[i]["ms"]
            return a + (b - a) * (rates[i - 1] - least) / (rates[i - 1] - rates[i])
    return None


def fastest_rate_hz(break_even_ms: float | None, late_ms: float, rate_hz: float) -> float | None:
    """The control rate at which a plan of `late_ms` is as many periods late as the break-even is at `rate_hz`: how fast
    a robot that moves as far in each period may be controlled. None where there is no break-even or nothing is late.
    """
    return None if break_even_ms is None or late_ms <= 0 else rate_hz * break_even_ms / late_ms

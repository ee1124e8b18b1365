"""The verb `run`: a bundle acts in a simulator through `ewm_observe`, `ewm_plan` and `ewm_act`, and is filmed.

A simulator is what `module:function` returns for a seed: `reset(seed)` and `step(action)` -> `{port: array}`, `goal`
(`{port: array}`), `success`, `max_steps`, `period_s`; with `render(size_px)` -> (S, S, 3) uint8 the film shows that
instead of the camera. Time in the loop is the simulator's own: a plan takes effect in the period it was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import report, statistics
from .errors import EdgewmError
from .film import FILMED_EPISODES, Film, check_place
from .imports import function_of
from .judge.sides import Observation, named
from .manifest import Manifest, read_manifest
from .options import Progress

Array = np.ndarray


class Step(NamedTuple):
    """One control period: the action played (axes,), and how long the plan behind it took if one was made here."""

    action: Array
    plan_ms: float | None


Policy = Callable[[Observation, int], Step]  # observation, period


def world_of(env: str) -> Callable[[int], Any]:
    """The simulator's maker: seed -> world. EdgewmError when there is no such thing."""
    from .reference.worlds import world_by_word

    world = world_by_word(env)
    if world is not None:
        return world.make
    if not env.partition(":")[2]:
        raise EdgewmError(
            f"no simulator {env!r}", "--env",
            "give reference, reference/ and a world's name, or module:function that makes one from a seed",
        )  # fmt: skip
    return function_of(env)


def play(world: Any, seed: int, policy: Policy) -> Iterator[tuple[Observation, Step]]:
    """One episode, to success or its last period; yields after each period what was seen and done in it."""
    observation = world.reset(seed)
    for period in range(world.max_steps):
        step = policy(observation, period)
        seen, observation = observation, world.step(step.action)
        yield seen, step
        if world.success:
            return


def period_of(manifest: Manifest) -> int:
    """The control period in ns."""
    return round(1e9 / manifest.rate_hz)


def compiled_policy(runtime: Any, clock: list[int], manifest: Manifest, goal: Observation, seed: int) -> Policy:
    """What a robot does, through the C ABI: observe, plan every `commit_steps` periods, act. A plan that follows on the
    chunk in play is made right after that chunk's first action, and has these periods of time.

    `clock` holds the nanoseconds that `runtime` was given as its clock; it is moved here, a period at a time.
    """
    observations, goals = manifest.ports_of("observation"), manifest.ports_of("goal")
    period_ns = period_of(manifest)
    runtime.reset(seed)
    runtime.set_goal(**named(goals, goal, observations))

    def policy(observation: Observation, period: int) -> Step:
        clock[0] = (period + 1) * period_ns  # 0 would be no time at all
        runtime.observe(clock[0], **named(observations, observation, observations))
        is_due, follows = period % manifest.planner.commit_steps == 0, manifest.planner.roll_committed
        plan_ms = planned_ms() if is_due and (period == 0 or not follows) else None
        action, _ = runtime.act(clock[0])
        if is_due and follows:
            plan_ms = planned_ms()
        return Step(action, plan_ms)

    def planned_ms() -> float:
        began = time.perf_counter()
        runtime.plan()
        return 1e3 * (time.perf_counter() - began)

    return policy


def run(
    bundle: Path, *, env: str = "reference", episodes: int = 10, seed: int = 0, gif: Path | None = None,
    threads: int | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Act in `episodes` fresh worlds; the figures, and a film of the first few episodes in `gif`.

    Raises EdgewmError for a bundle or simulator that does not fit, or a film that cannot be written.
    """
    from .backends import opened

    make, manifest, clock = world_of(env), read_manifest(bundle), [0]
    fits(make(seed), env, manifest)
    if gif:
        check_place(gif)
    film = Film(manifest) if gif else None
    successes, plan_ms, periods = 0, [], []
    with opened(bundle, manifest, threads or manifest.threads, period_of(manifest), lambda: clock[0]) as runtime:
        for i in range(episodes):
            start = seed + i
            world = make(start)
            world.reset(start)
            policy = compiled_policy(runtime, clock, manifest, world.goal, start)
            count = 0
            for count, (seen, step) in enumerate(play(world, start, policy), 1):
                if step.plan_ms is not None:
                    plan_ms.append(step.plan_ms)
                if film and i < FILMED_EPISODES:
                    film.add(world, seen, count, plan_ms[-1])
            if film and i < FILMED_EPISODES:
                film.hold(world.success)
            successes += bool(world.success)
            periods.append(count)
            if progress:
                progress("run", (i + 1) / episodes)
        counts = runtime.stats()
    if film and gif:
        film.save(gif)
    result = {
        "schema_version": 1,
        "bundle_sha256": manifest.sha256,
        "env": env,
        "episodes": episodes,
        "successes": successes,
        "wilson_95": list(statistics.wilson(successes, episodes)),
        "periods": {"median": float(np.median(periods)), "max": int(max(periods))},
        "plan_ms": {"p50": float(np.median(plan_ms)), "max": float(np.max(plan_ms)), "plans": len(plan_ms)},
        "rate_hz": manifest.rate_hz,
        "gif": str(gif) if gif else None,
        "counts": counts,
    }
    report.add(bundle, "run", result)
    return result


def fits(world: Any, env: str, manifest: Manifest) -> None:
    """EdgewmError when the world does not show what the bundle wants to see, has no such goal, or runs at another
    rate."""
    for what, values in (("simulator shows", world.reset(0)), ("simulator's goal shows", world.goal)):
        for port in manifest.ports_of("observation"):
            value = values.get(port.name)
            if value is None or np.size(value) != int(np.prod(port.shape)):
                found = f"shape {np.shape(value)}" if value is not None else "nothing"
                raise EdgewmError(
                    f"the {what} {found} on port {port.name!r}, the bundle wants {port.shape}", env,
                    "take the world that the bundle's model was trained for",
                )  # fmt: skip
    rate_hz = 1 / world.period_s
    if abs(rate_hz - manifest.rate_hz) > 1e-6 * rate_hz:
        raise EdgewmError(
            f"the simulator runs at {rate_hz:g} Hz, the bundle at {manifest.rate_hz:g} Hz", env,
            f"give --env the world of the bundle's model, say reference/two_room; or build with --rate-hz {rate_hz:g}",
        )  # fmt: skip

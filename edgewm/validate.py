"""The verb `validate`: the judge's suites on one bundle, and a verdict bound to it.

The verdict lies beside `model.ewm` as `verdict.json`, names it by SHA-256, and is written beside its place and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import report
from .errors import EdgewmError
from .judge import closed_loop, gates, horizon, picture, plan
from .judge.sides import compiled, upstream
from .judge.sources import Source, source_of, wanted, wanted_rollouts
from .manifest import Manifest, read_manifest
from .options import SUITES, Progress
from .program import Port

VERDICT = "verdict.json"
EPISODES = 200  # pairs, at most: enough to decide equal models at any success rate upstream has
SCHEMA_VERSION = 1


def validate(
    bundle: Path, *, against: str, suite: Sequence[str] = ("plan",), episodes: int | None = None,
    contexts: int | None = None, data: Path | None = None, env: str | None = None, seed: int = 0,
    threads: int | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Judge the bundle against the full model; `passed` is True, False, or None for not enough evidence.

    `contexts` counts pairs of observation and goal (default: what the gates need), `episodes` pairs of closed-loop
    episodes at most; recorded `data` (`judge.sources`) and the simulator `env` (as `act.run` takes it) come before the
    model's own. Raises EdgewmError when a suite cannot run at all: no such model, ports that do not match, no data, a
    bundle for another machine.
    """
    from .act import period_of, world_of
    from .binding import Runtime
    from .models import load

    unknown = [s for s in suite if s not in SUITES]
    if unknown or not suite:
        raise EdgewmError(f"no suite {unknown[0]!r}" if unknown else "no suite", "--suite", f"use {', '.join(SUITES)}")
    manifest, model = read_manifest(bundle), load(against)
    _same_model(manifest, model, against)
    source = source_of(against, model, data)
    source = source if env is None else replace(source, world=world_of(env))
    clock = [0]
    with Runtime(bundle, threads or manifest.threads, period_ns=period_of(manifest), clock=lambda: clock[0]) as runtime:
        result = judge(
            manifest, model, runtime, clock, source, suite=suite, episodes=episodes or EPISODES,
            contexts=contexts or gates.CONTEXTS, seed=seed, progress=progress or (lambda stage, done: None),
        )  # fmt: skip
        shown = _futures(manifest, model, runtime, source, seed)
    # A student is judged against its teacher, so other weights are no fault; but the reader should know.
    same = dict(model.files) == manifest.raw.get("model_sha256")
    head = {
        "schema_version": SCHEMA_VERSION,
        "bundle_sha256": manifest.sha256,
        "against": against,
        "same_weights": same,
    }
    result = {**head, **result}
    write_verdict(Path(bundle), result)
    report.add(bundle, "validate", result)
    if shown is not None:
        report.add(bundle, "futures", shown)
    return result


def _futures(manifest: Manifest, model: Any, runtime: Any, source: Source, seed: int) -> dict[str, Any] | None:
    """Pictures for the report, where there is a gallery to recognise latents by."""
    if source.gallery is None:
        return None
    planner = manifest.planner
    full, small = upstream(model, planner), compiled(runtime, model, planner)
    observation = _single(model.ports_of("observation"))
    found = picture.futures(full, small, planner, observation, _action(model), source.gallery, manifest.rate_hz, seed)
    return picture.as_json(found)


def judge(
    manifest: Manifest, model: Any, runtime: Any, clock: list[int], source: Source, *, suite: Sequence[str],
    episodes: int, contexts: int, seed: int, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """The suites asked for, as one result. `clock` holds the nanoseconds that `runtime` reads as its clock."""
    planner = manifest.planner
    full, small = upstream(model, planner), compiled(runtime, model, planner)
    result: dict[str, Any] = {"precision": manifest.precision, "seed": seed, "suites": list(suite), "gates": []}
    result |= dict.fromkeys(("plan", "horizon", "closed_loop"))
    if "plan" in suite:
        pairs = _needs(source.contexts, "contexts", "contexts to plan in", _record(wanted(model)))(contexts, seed)
        result["plan"], rows = plan.run(full, small, planner, model.action_dim, pairs, contexts, seed, progress)
        result["gates"] += rows
    if "horizon" in suite:
        observation = _single(model.ports_of("observation"))
        found = _needs(source.rollouts, "rollouts", "recorded futures", _record(wanted_rollouts(model)))(
            contexts, planner.horizon * planner.action_block, seed
        )
        result["horizon"], rows = horizon.run(
            full, small, planner, observation, _action(model), found, contexts, progress
        )
        result["gates"] += rows
    if "closed-loop" in suite:
        make = _needs(source.world, "make", "a simulator", "name one by --env module:function")
        full_episode, small_episode = _episodes(manifest, model, runtime, clock, full, make)
        result["closed_loop"], rows = closed_loop.run(full_episode, small_episode, episodes, seed, progress)
        result["gates"] += rows
    result["passed"] = gates.verdict(result["gates"])
    return result


def _episodes(manifest: Manifest, model: Any, runtime: Any, clock: list[int], full: Any, make: Callable[[int], Any]):
    from .act import compiled_policy, planning_policy, play

    def with_full(seed: int) -> bool:
        world = make(seed)
        world.reset(seed)
        return _succeeds(
            world, seed, planning_policy(full, manifest.planner, manifest.ports_of("action")[0], world.goal, seed)
        )

    def with_compiled(seed: int) -> bool:
        world = make(seed)
        world.reset(seed)
        return _succeeds(world, seed, compiled_policy(runtime, clock, manifest, world.goal, seed))

    def _succeeds(world: Any, seed: int, policy: Any) -> bool:
        for _ in play(world, seed, policy):
            pass
        return bool(world.success)

    return with_full, with_compiled


def _same_model(manifest: Manifest, model: Any, against: str) -> None:
    """EdgewmError when the ports of bundle and model differ: they are then no pair to compare."""

    def shapes(ports: Sequence[Port]) -> dict[str, tuple]:
        return {p.name: (p.kind, tuple(p.shape), p.dtype) for p in ports if p.kind in ("observation", "goal", "action")}

    built, wanted = shapes(manifest.ports), shapes(model.ports)
    for name in [*built, *wanted]:
        if built.get(name) != wanted.get(name):
            raise EdgewmError(
                f"port {name!r} is {built.get(name)} in the bundle, {wanted.get(name)} in the model", against,
                "compare the bundle with the model it was built from",
            )  # fmt: skip


def _needs(found: Any, name: str, what: str, otherwise: str) -> Any:
    if found is None:
        raise EdgewmError(
            f"nothing like {what} for this model", "--against",
            f"{otherwise}; or give module:function and define {name}() in that module (edgewm/judge/sources.py)",
        )  # fmt: skip
    return found


def _record(arrays: str) -> str:
    return f"give --data FILE.safetensors with the arrays {arrays}"


def _single(ports: Sequence[Port]) -> str:
    if len(ports) != 1:
        raise EdgewmError(
            f"{len(ports)} observation ports", "suite horizon", "leave this suite out: it follows one camera"
        )
    return ports[0].name


def _action(model: Any) -> Port:
    return model.ports_of("action")[0]


def write_verdict(bundle: Path, result: dict[str, Any]) -> None:
    """`verdict.json` beside the model; EdgewmError where the directory cannot be written."""
    file = bundle / VERDICT
    beside = bundle / f".{VERDICT}.{os.getpid()}"
    try:
        beside.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        beside.replace(file)
    except OSError as fault:
        beside.unlink(missing_ok=True)
        raise EdgewmError(
            f"the verdict cannot be written: {fault.strerror}", str(file), "make the bundle directory writable"
        ) from fault


def read_verdict(bundle: Path) -> dict[str, Any] | None:
    """The verdict on exactly this `model.ewm`; None where there is none, or it is on other bytes."""
    file = Path(bundle) / VERDICT
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    return found if found.get("bundle_sha256") == read_manifest(bundle).sha256 else None

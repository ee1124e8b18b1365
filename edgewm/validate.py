"""The verb `validate`: the judge's suites on one bundle, and a verdict bound to it.

The verdict lies beside `model.ewm` as `verdict.json`, names it by SHA-256, and is written beside its place and renamed.
Suites may be run one after another: what they say of the same bytes on the same evidence comes together.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import report
from .errors import EdgewmError
from .judge import budget, causality, exact, gates, general, horizon, lift, loops, own, physics, picture, plan
from .judge.imagine import Subjects
from .judge.latency import Latency, latencies
from .judge.recorded import wanted, wanted_rollouts
from .judge.sides import compiled, upstream, window_of
from .judge.sources import Source, source_of
from .manifest import CALIBRATION, Manifest, read_manifest
from .options import AUTO, NATIVE, OWN_RECIPE, SUITES, Progress
from .program import Port

VERDICT = "verdict.json"
SCHEMA_VERSION = 1
EXACT_PRECISION = "fp32"
DEFAULT_SUITES = tuple(s for s in SUITES if s != "closed-loop")  # where there is evidence for them
Notice = Callable[[str], None]


def validate(
    bundle: Path, *, against: str, suite: Sequence[str] | None = None, preset: str = gates.DEFAULT.name,
    episodes: int | None = None, contexts: int | None = None, data: Path | None = None, env: str | None = None,
    latency: Sequence[str] = (), seed: int = 0, threads: int | None = None, apart: bool | None = None,
    progress: Progress | None = None, notice: Notice | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Judge the bundle against the full model; `passed` is True, False, or None for not enough evidence.

    Without `suite` every suite but closed-loop runs that there is evidence for, and `skipped` says why others did not.
    `preset` is strict, default, explore or a JSON file (`judge.gates.preset_of`). `contexts` counts pairs of
    observation and goal (default: what the preset's claim takes), `episodes` pairs of closed-loop episodes at most;
    `latency` are those of the closed loop's curve (`judge.latency`). Recorded `data` (`judge.recorded`,
    `judge.episodes`) and the simulator `env` (as `act.run` takes it) come before the model's own; `apart`: of them
    those that `distill` keeps from a student. `notice` is told how long episodes will take.

    Raises EdgewmError, before anything is judged, when a suite cannot run at all: no such model, ports that do not
    match, no data, a simulator of other ports or another rate, a bundle for another machine or in a place that cannot
    be written.
    """
    from .act import fits, period_of, world_of
    from .backends import opened
    from .data import identity
    from .models import load

    asked = check_suites(suite, latency, episodes, env)
    limits = gates.preset_of(preset)
    manifest, model = read_manifest(bundle), load(against)
    _same_model(manifest, model, against)
    check_place(Path(bundle))
    tell = notice or (lambda text: None)
    late = latencies(latency, Path(bundle), manifest.sha256)
    data_sha256 = None if data is None else identity(data)
    if data is not None and manifest.raw.get(CALIBRATION) == data_sha256:
        tell(f"{bundle} was calibrated on {data}: judge it on other data, too")
    source = source_of(against, model, data, apart=apart)
    source = source if env is None else replace(source, make=world_of(env))
    if "closed-loop" in (asked or ()) and source.make is not None:
        fits(source.make(seed), env or against, manifest)
    clock = [0]
    with opened(bundle, manifest, threads or manifest.threads, period_of(manifest), lambda: clock[0]) as runtime:
        subjects = subjects_of(manifest, model, runtime)
        if source.contexts is not None:
            seen = (observation for observation, _ in source.contexts(lift.PICTURES, seed + 3))
            subjects = replace(subjects, compressed=lift.in_space_of(*subjects.both, seen))
        result = judge(
            subjects, manifest, model, runtime, clock, source, suite=asked, preset=limits,
            episodes=episodes or limits.episodes, contexts=contexts or limits.contexts, latency=late, seed=seed,
            progress=progress or (lambda stage, done: None), notice=tell,
        )  # fmt: skip
        gallery = long_enough(source, subjects.periods)[0].gallery
        shown = None if gallery is None else picture.futures(subjects, gallery, manifest.rate_hz, seed)
    if result["plan"]:
        begun = time.perf_counter()
        add_layers(result, manifest, model, source, seed, progress or (lambda stage, done: None))
        result["seconds"]["plan"] = round(result["seconds"]["plan"] + time.perf_counter() - begun, 2)
    head = {
        "schema_version": SCHEMA_VERSION,
        "bundle_sha256": manifest.sha256,
        "against": against,
        "same_weights": has_weights_of(manifest, model),
        "model_sha256": dict(model.files),
        "data": None if data is None else str(data),
        "data_sha256": data_sha256,
        "held_out": bool(apart),
        "is_calibrated_on_data": data is not None and manifest.raw.get(CALIBRATION) == data_sha256,
    }
    if result["closed_loop"]:
        result["closed_loop"]["env"] = env
    result = {**head, **result}
    whole = merged(read_verdict(bundle), result)
    write_verdict(Path(bundle), whole)
    report.add(bundle, "validate", whole)
    if shown is not None:
        report.add(bundle, "futures", picture.as_json(shown))
    return result


def check_suites(
    suite: Sequence[str] | None, latency: Sequence[str] = (), episodes: int | None = None, env: str | None = None
) -> Sequence[str] | None:
    """The suites asked for; None for the usual ones. EdgewmError for one that is none, and for what belongs to a loop
    without one."""
    unknown = [s for s in suite or () if s not in SUITES]
    if unknown or (suite is not None and not suite):
        raise EdgewmError(f"no suite {unknown[0]!r}" if unknown else "no suite", "--suite", f"use {', '.join(SUITES)}")
    of_loop = {"--latency": ("a latency", latency), "--episodes": ("episodes", episodes), "--env": ("a simulator", env)}
    for option, (what, given) in of_loop.items():
        if given and "closed-loop" not in (suite or ()):
            raise EdgewmError(f"{what} without a loop", option, "add --suite closed-loop")
    return suite


def subjects_of(manifest: Manifest, model: Any, runtime: Any) -> Subjects:
    """The full model, run by torch, and the bundle opened as `runtime`."""
    planner = manifest.planner
    camera, action = model.ports_of("observation")[0].name, model.ports_of("action")[0]
    bundle = compiled(runtime, model, planner, window_of(runtime))
    searched = {key: getattr(model.planner, key) for key in ("samples", "iterations", "elites")}
    whole = replace(planner, **searched)
    return Subjects(upstream(model, planner), bundle, planner, camera, action, None if whole == planner else whole)


def judge(
    subjects: Subjects, manifest: Manifest, model: Any, runtime: Any, clock: list[int], source: Source, *,
    suite: Sequence[str] | None, preset: gates.Preset, episodes: int, contexts: int, latency: Sequence[Latency],
    seed: int, progress: Progress, notice: Notice,
) -> dict[str, Any]:  # fmt: skip
    """The suites asked for, as one result. `clock` holds the nanoseconds that `runtime` reads as its clock."""
    result: dict[str, Any] = {
        "precision": manifest.precision, "preset": preset.name, "limits": dict(preset.limits), "seed": seed,
        "contexts": contexts, "suites": [], "skipped": {}, "left_out": {}, "seconds": {}, "gates": [],
    }  # fmt: skip
    result |= {_key(name): None for name in SUITES} | {"latency": None}

    def look(name: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
        if name == "plan":
            pairs = source.contexts(contexts, seed)
            found, rows = plan.run(
                subjects.full, subjects.compressed, subjects.planner, model.action_dim, pairs, contexts, seed, progress
            )
            parts = [own.run(runtime, model, subjects.planner, source.contexts(own.PLANS, seed + 1), seed, preset)]
            if manifest.precision == EXACT_PRECISION and has_weights_of(manifest, model):
                pairs = source.contexts(exact.CONTEXTS, seed + 1)
                parts.append(exact.run(model, subjects.planner, *subjects.both, pairs, seed, preset))
            if subjects.whole is not None:
                parts.append(budget.run(subjects, model.action_dim, source.contexts(contexts, seed), seed))
            for figures, judgements in parts:
                found, rows = found | figures, rows + judgements
            return found, rows, []
        return IMAGINING[name](subjects, source, contexts, seed, progress)

    source, short = long_enough(source, subjects.periods)
    asked = [name for name in SUITES if name in (suite or DEFAULT_SUITES)]
    for name in asked:  # all of them, before any takes its minutes
        fault = short if short is not None and name in OF_FUTURES else lacking(name, model, source)
        if fault is not None and (suite is not None or name == "plan"):
            raise fault
        result["skipped"] |= {} if fault is None else {name: fault.what}
    for name in (s for s in asked if s not in result["skipped"]):
        begun = time.perf_counter()
        result["suites"].append(name)
        if name == "closed-loop":
            loop = loops.Loop(subjects, manifest, runtime, clock, preset, seed, progress, notice)
            found, rows = loops.closed_loop(loop, source, episodes, "general" in (suite or ()), latency)
            result |= found
        else:
            result[_key(name)], rows, left_out = look(name)
            rows = [gates.under(preset, row) for row in rows]
            result["left_out"] |= {name: left_out} if left_out else {}
        result["gates"] += [{**row, "suite": name} for row in rows]
        result["seconds"][name] = round(time.perf_counter() - begun, 2)
    result["passed"] = gates.verdict(result["gates"])
    return result


def add_layers(
    result: dict[str, Any], manifest: Manifest, model: Any, source: Source, seed: int, progress: Progress
) -> None:
    """What each product costs that the bundle's recipe holds in fewer bits, as `layers` of the suite `plan`."""
    from .judge import layers
    from .models import capture_model
    from .passes import EXACT
    from .passes import run as passed
    from .quantize import recipe_of

    recipe = manifest.raw.get(AUTO, manifest.raw).get(OWN_RECIPE)
    if manifest.precision == OWN_RECIPE and recipe is None:
        result["left_out"].setdefault("plan", []).append("which layer costs what: the bundle does not name its recipe")
        return
    if manifest.backend != NATIVE and manifest.precision != EXACT_PRECISION:
        result["left_out"].setdefault("plan", []).append(f"which layer costs what: {manifest.backend} does not tell")
        return
    if manifest.precision == EXACT_PRECISION:
        return
    if has_weights_of(manifest, model) is False:
        result["left_out"].setdefault("plan", []).append("which layer costs what: the bundle is of another model")
        return
    if recipe is None:
        blind = replace(manifest.planner, proposal=False)  # which the full model may not have
        recipe = recipe_of(passed(capture_model(model, blind), EXACT), manifest.precision)
    pairs = source.contexts(min(layers.CONTEXTS, result["contexts"]), seed + 2)
    result["plan"]["layers"] = layers.run(model, manifest.planner, recipe, pairs, seed, progress)


IMAGINING = {
    "physics": physics.run, "causality": causality.run, "horizon": horizon.run, "general": general.run,
}  # fmt: skip


OF_FUTURES = ("physics", "causality", "horizon")


def long_enough(source: Source, periods: int) -> tuple[Source, EdgewmError | None]:
    """The source, and why it has no futures of so many periods, which it is then without."""
    if source.rollouts is None:
        return source, None
    try:
        next(iter(source.rollouts(1, periods, 0)), None)
    except EdgewmError as fault:
        shifts = source.shifts
        bare = None if shifts is None else lambda: {name: replace(s, rollouts=None) for name, s in shifts().items()}
        return replace(source, rollouts=None, impossible=None, gallery=None, shifts=bare), fault
    return source, None


def _key(suite: str) -> str:
    return suite.replace("-", "_")


def lacking(suite: str, model: Any, source: Source) -> EdgewmError | None:
    """Why a suite cannot run; None where it can."""
    record = "give --data DIRECTORY of recorded episodes, or --data FILE.safetensors with the arrays {}"
    missing = {
        "plan": ("contexts", "recorded observations and goals to plan from", record.format(wanted(model))),
        **dict.fromkeys(OF_FUTURES, ("rollouts", "recorded futures", record.format(wanted_rollouts(model)))),
        "general": ("shifts", "shifted scenes", record.format(wanted(model))),
        "closed-loop": ("make", "simulator", "name one by --env module:function"),
    }
    name, what, otherwise = missing[suite]
    if getattr(source, name) is None:
        return EdgewmError(
            f"no {what} for this model", "--against",
            f"{otherwise}; or give module:function and define {name}() in that module (edgewm/judge/sources.py)",
        )  # fmt: skip
    cameras = len(model.ports_of("observation"))
    if suite in IMAGINING and cameras != 1:
        return EdgewmError(
            f"{cameras} observation ports", f"suite {suite}", "leave this suite out: it follows one camera"
        )
    return None


def has_weights_of(manifest: Manifest, model: Any) -> bool | None:
    """Whether the bundle was built from these very files; None for a model that is of none. A student is judged against
    its teacher, so other weights are no fault; but the reader should know, and they leave more than rounding between
    the two."""
    return dict(model.files) == manifest.raw.get("model_sha256") if model.files else None


def _same_model(manifest: Manifest, model: Any, against: str) -> None:
    """EdgewmError when the ports of bundle and model differ: they are then no pair to compare."""

    def shapes(ports: Sequence[Port]) -> dict[str, tuple]:
        return {p.name: (p.kind, tuple(p.shape), p.dtype) for p in ports if p.kind in ("observation", "goal", "action")}

    built, known = shapes(manifest.ports), shapes(model.ports)
    for name in [*built, *known]:
        if built.get(name) != known.get(name):
            raise EdgewmError(
                f"port {name!r} is {built.get(name)} in the bundle, {known.get(name)} in the model", against,
                "compare the bundle with the model it was built from",
            )  # fmt: skip


SAME = ("schema_version", "bundle_sha256", "against", "same_weights", "model_sha256", "preset", "limits", "seed")


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The verdict that both runs give together: of each suite the newer; the new one alone where they asked for
    something else, or on other data. A closed loop takes no data."""
    if old is None or any(key not in old or old[key] != new[key] for key in SAME):
        return new
    on_data = [found for found in (new, old) if set(found["suites"]) - {"closed-loop"}] or [new]
    if len({(found.get("data_sha256"), found.get("held_out")) for found in on_data}) > 1:
        return new
    kept = [name for name in old["suites"] if name not in new["suites"]]
    rows = [row for row in old["gates"] if row["suite"] in kept] + new["gates"]
    both = {key: {**{k: v for k, v in old[key].items() if k in kept}, **new[key]} for key in ("left_out", "seconds")}
    figures = {_key(name): old[_key(name)] for name in kept}
    figures |= {"latency": old["latency"]} if "closed-loop" in kept else {}
    suites = [name for name in SUITES if name in (*kept, *new["suites"])]
    skipped = {name: why for name, why in (old["skipped"] | new["skipped"]).items() if name not in suites}
    return {
        **new, **{key: on_data[0].get(key) for key in ("data", "data_sha256", "held_out")}, **figures, **both,
        "skipped": skipped, "suites": suites, "passed": gates.verdict(rows),
        "gates": sorted(rows, key=lambda row: SUITES.index(row["suite"])),
    }  # fmt: skip


def check_place(bundle: Path) -> None:
    """EdgewmError where a verdict cannot be written."""
    try:
        with tempfile.TemporaryFile(dir=bundle):
            pass
    except OSError as fault:
        raise _unwritten(bundle / VERDICT, fault) from fault


def write_verdict(bundle: Path, result: dict[str, Any]) -> None:
    """`verdict.json` beside the model; EdgewmError where the directory cannot be written."""
    file = bundle / VERDICT
    beside = bundle / f".{VERDICT}.{os.getpid()}"
    try:
        beside.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        beside.replace(file)
    except OSError as fault:
        beside.unlink(missing_ok=True)
        raise _unwritten(file, fault) from fault


def _unwritten(file: Path, fault: OSError) -> EdgewmError:
    what = f"the verdict cannot be written: {fault.strerror}"
    return EdgewmError(what, str(file), "make the bundle directory writable")


def read_verdict(bundle: Path) -> dict[str, Any] | None:
    """The verdict on exactly this `model.ewm`; None where there is none, or it is on other bytes, or not whole."""
    file = Path(bundle) / VERDICT
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    is_of_it = isinstance(found, dict) and found.get("bundle_sha256") == read_manifest(bundle).sha256
    return found if is_of_it else None


def is_validated(bundle: Path) -> bool:
    """Whether these very bytes have a verdict that passed, on their plans at least."""
    found = read_verdict(bundle)
    return found is not None and found["passed"] is True and "plan" in found["suites"]

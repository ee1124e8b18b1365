"""The verb `distill`: choose what plans at a rate on a target, train it, judge it.

OUT afterwards holds a checkpoint that `build` takes like any other (config.json, weights.safetensors, robot.json and,
where its planner begins at one, proposal.safetensors), the one file that says how it came to be (distill.json),
log.jsonl of a student, pareto.json and .html, the bundle it was judged as (bundle/), and what `--resume` needs (run/).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..build import build, with_overrides
from ..errors import EdgewmError
from ..judge.sources import Source, source_of
from ..models import Model, folder_of, load
from ..models.checkpoint import sha256
from ..models.proposal import FILE
from ..options import AUTO, PRECISIONS, Progress, part
from ..student import regret_of
from ..validate import validate
from . import budgets, losses, pareto, states
from .choice import Board, Candidate, board_of, candidate_of, chosen, considered, fastest, holds, tick
from .material import LEARNING, TUNING, Notice, Settings, bytes_of
from .processes import Processes
from .proposal import Settings as Beginning
from .proposal_only import check_checkpoint, with_trained, write_checkpoint
from .prune import begins_as
from .shapes import planners
from .targets import OF, write_bytes
from .teacher import check_fit, teacher_of
from .train import RUN, check_training, train

CONFIG = "distill.json"
BUNDLE = "bundle"
PRESET = "student"  # of the judge
SEARCHED = ("samples", "iterations", "elites", "proposal", "warm_start")  # what smaller planners differ in
MADE = frozenset({
    CONFIG, BUNDLE, RUN, "config.json", "weights.safetensors", "robot.json", FILE, "log.jsonl", pareto.JSON,
    pareto.HTML,
})  # fmt: skip
MIB = 1 << 20


def distill(
    model: str, *, rate_hz: float, target: str = "host", mode: str | None = None, precision: str = AUTO,
    planner: Mapping[str, Any] | None = None, threads: int | None = None, measured: Path | None = None,
    out: Path = Path("student"), data: Path | None = None, cache: Path | None = None, cache_mib: int = 2048,
    without: Sequence[str] = (), training: Mapping[str, Any] | None = None, judged: int | None = None,
    episodes: int | None = None, resume: bool = False, dry_run: bool = False, seed: int = 0,
    progress: Progress | None = None, notice: Notice | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Find and train what of MODEL plans `rate_hz` times a second on the target; what `--json` prints.

    Where the model itself holds the rate, in another precision or with a smaller planner, no student is trained: the
    `chosen` shape is None. Nothing is written then, unless that planner begins at a proposal that was trained for it:
    OUT is MODEL with both. The target's time is what `edgewm estimate` says (the upper end), `measured` as there.
    `precision` auto chooses that, too. `planner` holds fields of `program.Planner`; where any is given, that planner is
    kept, but for `proposal` alone: all planners begin at one, or none. `without` names terms of `losses.TERMS` to leave
    out; `training` fields of `material.Settings`, its `contexts` those of a proposal, too. Targets in `cache` (in OUT,
    where left out) take at most `cache_mib`. `judged` are the judge's contexts, `episodes` the most pairs in which both
    models are let loose in the teacher's world, None for none.
    EdgewmError for a rate that no student meets, too little data, a teacher that cannot foresee, losses that are no
    numbers, a full disk, another run in OUT.
    """
    say, tell = progress or (lambda stage, done: None), notice or (lambda text: None)
    first = Processes.here().is_first
    if data is not None and not data.is_file():
        raise EdgewmError("no such file", str(data), "give recorded data, safetensors")
    board, full = board_of(target, mode, threads, measured), load(model)
    given = {k: v for k, v in (planner or {}).items() if v is not None}
    asked = {
        "teacher": model, "teacher_sha256": dict(full.files), "target": board.target.name, "mode": board.mode.name,
        "threads": board.threads, "rate_hz": rate_hz, "precision": precision, "planner": given,
        "begins_at_proposal": full.planner.proposal, "without": list(without), "training": dict(training or {}),
        "seed": seed, "data": None if data is None else sha256(data)[data.name],
    }  # fmt: skip
    _check(precision, without, training or {})
    full = asked_for(model, full, given)
    if not dry_run:
        _check_out(out, resume, full)
    source, kept = source_of(model, full, data), cache or (None if dry_run else out / RUN / "cache")
    beginning = replace(Beginning(seed=seed), **{k: v for k, v in (training or {}).items() if k == "contexts"})
    trained = partial(
        with_trained, model, full, source, asked["data"], beginning, kept if first else None,
        part(progress, 0.0, 0.1, "proposal"),
    )  # fmt: skip
    found = _asked_before(out, asked) if resume and not dry_run else None
    if found is None:
        whole, found = decided(full, source, board, asked, trained, part(progress, 0.1, 0.1, "shapes"))
        best = candidate_of(found["chosen"])
    else:
        best = candidate_of(found["chosen"])
        whole = trained()[0] if best.planner.proposal and full.proposal is None else full
    is_student = best.shape is not None
    if dry_run or not (is_student or (best.planner.proposal and full.proposal is None)):
        return found
    found["teacher_ms"] = tick(None, full.planner, "fp32", whole, board).tick_ms
    if is_student:
        settings = settings_of(best, full, without, training or {}, beginning, seed)
        teacher = teacher_of(model, whole, best.planner, source, asked["data"])
        if not (kept / OF).exists():
            check_room(bytes_of(settings, teacher), cache_mib, cache or out)
        found |= {"teacher": check_fit(teacher), "settings": asdict(settings)}
    if first:
        with states.disk(out):
            out.mkdir(parents=True, exist_ok=True)
            write_bytes(out / CONFIG, _json(found))
            if not is_student:
                searched = {key: getattr(best.planner, key) for key in SEARCHED}
                write_checkpoint(model, whole, {**given, **searched}, out)
    if is_student:
        shown = part(progress, 0.2, 0.7)
        found["run"] = train(settings, teacher, out, cache=kept, resume=resume, progress=shown, notice=tell)
    if not first:
        return found
    found["student"] = str(out)
    say("judge", 0.9)
    build(str(out), precision=best.precision, threads=threads, out=out / BUNDLE, seed=seed)
    verdict = validate(
        out / BUNDLE, against=model, suite=["plan", "closed-loop"] if episodes else ["plan"], preset=PRESET,
        contexts=judged, episodes=episodes or None, data=data, seed=seed, progress=part(progress, 0.9, 0.1),
        notice=tell,
    )  # fmt: skip
    found["verdict"] = {key: verdict[key] for key in ("passed", "plan", "closed_loop", "gates")}
    with states.disk(out):
        pareto.write(out, rows_of(found), f"What plans for {model} on {board.target.name}")
        write_bytes(out / CONFIG, _json(found))
    return found


def asked_for(name: str, model: Model, given: Mapping[str, Any]) -> Model:
    """MODEL with the settings of its planner that are given; without its proposal where none is wanted. EdgewmError
    where one is wanted that cannot be there."""
    is_another = bool(set(given) - {"proposal"})
    planner = with_overrides(model.planner, given) if is_another else replace(model.planner, **given)
    asked = replace(model, planner=planner)
    if given.get("proposal") is False:
        return replace(asked, proposal=None)
    if asked.planner.proposal and asked.proposal is None:
        check_checkpoint(name)
    return asked


def decided(
    full: Model, source: Source, board: Board, asked: Mapping[str, Any], trained: Callable[[], Any],
    progress: Progress | None,
) -> tuple[Model, dict[str, Any]]:  # fmt: skip
    """MODEL, with a proposal where one was `trained`, and what holds the rate, as `--json` prints it."""
    rate_hz, precision, given = asked["rate_hz"], asked["precision"], asked["planner"]
    sizes = [full.planner] if set(given) - {"proposal"} else list(planners(full.planner))
    chosen(fastest(full, board, precision, sizes[-1]), rate_hz, board)  # refuses before anything is trained
    may_begin = given.get("proposal", True) and folder_of(asked["teacher"]) is not None
    told = budgets.budgets(
        asked["teacher"], full, sizes, source, asked["seed"],
        partial(holds, board=board, rate_hz=rate_hz, precision=precision), trained if may_begin else None,
    )  # fmt: skip
    candidates = considered(told.model, board, rate_hz, precision, told.groups, progress)
    return told.model, {
        "schema_version": 1, "asked": asked, "considered": [c.as_json() for c in candidates],
        "chosen": chosen(candidates, rate_hz, board).as_json(),
        "planners": [{"planner": asdict(p), "regret": lost} for p, lost in told.regrets.items()],
        "proposal": told.proposal, "teacher_ms": None, "student": None, "run": None, "verdict": None,
    }  # fmt: skip


def settings_of(
    best: Candidate, full: Model, without: Sequence[str], training: Mapping[str, Any], beginning: Beginning, seed: int
) -> Settings:
    weights = {name: 0.0 if name in without else weight for name, weight in losses.WEIGHTS.items()}
    given = {"learning_rate": TUNING if begins_as(best.shape, full) else LEARNING, **training}
    if isinstance(first := given.get("learning_rate"), (int, float)):
        given["learning_rate"] = (first, first / 100)
    proposal = beginning if best.planner.proposal else None
    return replace(Settings(best.shape, best.planner, best.precision, weights, proposal, seed=seed), **given)


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the Pareto page: the teacher, every candidate considered, the one chosen with what the judge found. The
    teacher with a smaller planner is known by its regret before."""
    loop = (found["verdict"] or {}).get("closed_loop")
    rates = {who: loop[who]["successes"] / loop[who]["episodes"] for who in ("full", "compressed")} if loop else {}
    exact = {"spearman_min": 1.0, "elite_overlap": 1.0, "regret": 0.0, "success": rates.get("full")}
    rows = [pareto.row("teacher", found["teacher_ms"]["point"], "estimated", "teacher", **exact)]
    figures = found["verdict"]["plan"] if found["verdict"] else {}
    for candidate in found["considered"]:
        is_chosen = candidate == found["chosen"]
        told: dict[str, Any] = {"regret": regret_of(found, candidate)}
        if is_chosen:
            told = {key: figures.get(key) for key in ("spearman_min", "elite_overlap", "regret")}
        if "search_regret" in figures and is_chosen:
            told["regret"] = figures["search_regret"]
        if is_chosen:
            told["success"] = rates.get("compressed")
        state = "chosen" if is_chosen else "considered"
        rows.append(pareto.row(name_of(candidate), candidate["tick_ms"]["point"], "estimated", state, **told))
    return rows


def name_of(candidate: Mapping[str, Any]) -> str:
    """A candidate in a few words."""
    shape, planner = candidate["shape"], candidate["planner"]
    size = "the model itself"
    if shape is not None:
        size = f"{shape['width']} wide, {shape['depth']} deep, window {shape['window']}"
    begun = ", from a proposal" if planner["proposal"] else ""
    return f"{size}, {planner['samples']} x {planner['iterations']}{begun}, {candidate['precision']}"


# -------------------------------------------------------------------------------------------------------- refusals


def _check(precision: str, without: Sequence[str], training: Mapping[str, Any]) -> None:
    if precision not in (AUTO, *PRECISIONS):
        names = ", ".join((AUTO, *PRECISIONS))
        raise EdgewmError(f"no student is trained for {precision!r}", "--precision", f"use {names}")
    unknown = [name for name in without if name not in losses.TERMS]
    if unknown or not any(weight for name, weight in losses.WEIGHTS.items() if name not in without):
        what = f"no loss {unknown[0]!r}" if unknown else "no loss is left"
        raise EdgewmError(what, "--without", f"leave out some of {', '.join(losses.TERMS)}")
    check_training(training)


def _check_out(out: Path, resume: bool, full: Model) -> None:
    if out.exists() and not out.is_dir():
        raise EdgewmError("the output is a file", str(out), "give -o a directory")
    strange = sorted({p.name for p in out.iterdir()} - MADE - set(full.files)) if out.is_dir() else []
    strange = [name for name in strange if not name.startswith(".")]
    if strange:
        raise EdgewmError(
            f"the output directory holds other files: {', '.join(strange[:3])}", str(out), "give -o an empty directory"
        )
    if not resume and (out / CONFIG).is_file() and states.kept(out / RUN):
        raise EdgewmError("the directory already holds a run", str(out), "pass --resume, or give another -o")


def check_room(wanted: int, cache_mib: int, folder: Path) -> None:
    """EdgewmError where the teacher's answers take more than they may, or than there is."""
    if wanted > cache_mib * MIB:
        raise EdgewmError(
            f"the teacher's answers take {math.ceil(wanted / MIB)} MiB, {cache_mib} are allowed", "--cache-mib",
            "allow more, or ask for fewer --frames or --contexts",
        )  # fmt: skip
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise EdgewmError(
            f"the teacher's answers take {math.ceil(wanted / MIB)} MiB, {free // MIB} are free", str(there),
            "free some space, or give --cache a folder on another disk",
        )  # fmt: skip


def _asked_before(out: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run that is to go on had found. EdgewmError where it was asked for something else."""
    file = out / CONFIG
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
        before, _ = found["asked"], [candidate_of(c) for c in (*found["considered"], found["chosen"])]
    except (ValueError, KeyError, TypeError) as fault:
        raise EdgewmError(f"{CONFIG} is damaged: {fault}", str(file), "begin again in another directory") from fault
    same = json.loads(json.dumps(asked))
    differing = [key for key in same if before.get(key) != same[key]]
    if differing:
        key = differing[0]
        raise EdgewmError(
            f"the run to go on had {key} {before.get(key)!r}, this has {same[key]!r}", str(file),
            "give the options it was begun with, or another -o",
        )  # fmt: skip
    return found


def _json(found: Mapping[str, Any]) -> bytes:
    return (json.dumps(found, indent=1, allow_nan=False, default=str) + "\n").encode()

"""The verb `distill`: choose a student for a target and a rate, train it, judge it.

OUT afterwards holds a checkpoint that `build` takes like any other (config.json, weights.safetensors, robot.json), the
one file that says how it came to be (distill.json), log.jsonl, pareto.json and .html, the bundle it was judged as
(bundle/), and what `--resume` needs (run/).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..build import build, with_overrides
from ..errors import EdgewmError
from ..judge.sources import source_of
from ..models import Model, load
from ..models.checkpoint import sha256
from ..options import AUTO, TRAINED, Progress, part
from ..program import Planner
from ..validate import validate
from . import budgets, losses, pareto, states
from . import trials as trying
from .choice import Candidate, board_of, candidate_of, chosen, considered, rivals, tick
from .processes import Processes
from .prune import begins_as
from .targets import write_bytes
from .teacher import Teacher, check_fit, teacher_of
from .train import LEARNING, RUN, TUNING, Notice, Settings, bytes_of, check_training, train

CONFIG = "distill.json"
BUNDLE = "bundle"
PRESET = "student"  # of the judge
MADE = frozenset({
    CONFIG, BUNDLE, RUN, trying.FOLDER, trying.JOURNAL, "config.json", "weights.safetensors", "robot.json", "log.jsonl",
    pareto.JSON, pareto.HTML,
})  # fmt: skip
FIGURES = ("spearman_min", "elite_overlap", "regret")
MIB = 1 << 20


def distill(
    model: str, *, rate_hz: float, target: str = "host", mode: str | None = None, precision: str = AUTO,
    planner: Mapping[str, Any] | None = None, threads: int | None = None, measured: Path | None = None,
    out: Path = Path("student"), data: Path | None = None, cache: Path | None = None, cache_mib: int = 2048,
    without: Sequence[str] = (), training: Mapping[str, Any] | None = None, judged: int | None = None,
    episodes: int | None = None, resume: bool = False, dry_run: bool = False, seed: int = 0,
    trials: int | None = None, trial_steps: int = trying.STEPS, study: Path | None = None, join: bool = False,
    progress: Progress | None = None, notice: Notice | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Find and train the student of MODEL that plans `rate_hz` times a second on the target; what `--json` prints.

    Where the model itself holds the rate, in another precision or with a smaller planner, no student is trained: the
    `chosen` shape is None, and nothing is written. The target's time is what `edgewm estimate` says (the upper end),
    `measured` as there. `precision` auto chooses that, too. `planner` holds fields of `program.Planner`; where any is
    given, that planner is kept. `without` names terms of `losses.TERMS` to leave out; `training` fields of
    `train.Settings`. Targets in `cache` (in OUT, where left out) take at most `cache_mib`. `judged` are the judge's
    contexts, `episodes` the most pairs in which both models are let loose in the teacher's world, None for none.

    With `trials` the first so many students that hold the rate are trained for `trial_steps`, and the one that ranks
    best is trained in full; who else knows the journal `study` (in OUT, where left out) takes some of them with `join`,
    and trains nothing else: `student` is None then.

    EdgewmError for a rate that no student meets, too little data, a teacher that cannot foresee, losses that are no
    numbers, a full disk, another run in OUT.
    """
    say, tell = progress or (lambda stage, done: None), notice or (lambda text: None)
    if data is not None and not data.is_file():
        raise EdgewmError("no such file", str(data), "give recorded data, safetensors")
    board, full = board_of(target, mode, threads, measured), load(model)
    given = {k: v for k, v in (planner or {}).items() if v is not None}
    if given.pop("proposal", False):
        raise EdgewmError("a student has no proposal", "--proposal", "train one for the student: --proposal-only")
    had_proposal = full.proposal is not None
    full = replace(full, proposal=None, planner=replace(full.planner, proposal=False))
    asked = {
        "teacher": model, "teacher_sha256": dict(full.files), "target": board.target.name, "mode": board.mode.name,
        "threads": board.threads, "rate_hz": rate_hz, "precision": precision, "planner": given,
        "without_proposal": had_proposal, "without": list(without), "training": dict(training or {}), "seed": seed,
        "data": None if data is None else sha256(data)[data.name], "trials": trials,
        "trial_steps": trial_steps if trials or join else None,
    }  # fmt: skip
    is_study, journal = bool(trials or join), study or out / trying.JOURNAL
    _check(precision, without, training or {})

    def choice() -> dict[str, Any]:
        """What a run that is to go on had considered and chosen, or what is considered and chosen now."""
        if not dry_run:
            _check_out(out, resume)
        if is_study and not dry_run and (join or journal.is_file()):
            opened = trying.begin(journal, asked, None, name_of)
            return {"considered": [entry["candidate"] for entry in opened.entries], "chosen": None, "is_known": False}
        known = _asked_before(out, asked) if resume and not dry_run else None
        if known is None:
            groups = [[with_overrides(full.planner, given)]]
            if not given:
                groups = budgets.groups(model, full, source_of(model, full, data), seed)
            shown = part(progress, 0.0, 0.1, "shapes")
            candidates = considered(full, board, rate_hz, precision, groups, shown, every=is_study)
            best = chosen(candidates, rate_hz, board)
        else:
            candidates, best = known
        if is_study and best.shape is not None:
            candidates = rivals(candidates, rate_hz)[:trials]
            if not dry_run:
                trying.begin(journal, asked, lambda: candidates, name_of)
        told = {"considered": [c.as_json() for c in candidates], "chosen": best.as_json()}
        return {**told, "is_known": known is not None}

    def teaching(planner: Planner) -> Teacher:
        return teacher_of(model, full, planner, source_of(model, full, data), asked["data"])

    def settings_for(candidate: Candidate) -> Settings:
        return settings_of(candidate, full, without, training or {}, seed)

    def shortly(candidate: Candidate) -> Settings:
        return replace(settings_for(candidate), steps=trial_steps, round_steps=-(-trial_steps // 2))

    with Processes.here() as share:
        told = share.first_says(choice)
        found = {
            "schema_version": 1, "asked": asked, "considered": told["considered"], "chosen": told["chosen"],
            "teacher_ms": None, "trials": None, "student": None, "run": None, "verdict": None,
        }  # fmt: skip
        if dry_run or (told["chosen"] and told["chosen"]["shape"] is None):
            return found
        found["teacher_ms"] = tick(None, full.planner, "fp32", full, board).tick_ms
        taught = [candidate_of(c) for c in (told["considered"] if is_study else [told["chosen"]])]
        answers = cache or out / (trying.FOLDER if is_study else RUN) / "cache"

        def fit() -> dict[str, float]:
            if not answers.exists():
                each = {c.planner: bytes_of(settings_for(c), teaching(c.planner)) for c in taught}
                check_room(sum(each.values()), cache_mib, cache or out)
            return check_fit(teaching(taught[0].planner))

        found["teacher"] = share.first_says(fit)
        if is_study:
            opened, judge = trying.begin(journal, asked, None, name_of), teaching(with_overrides(full.planner, given))
            shown = part(progress, 0.1, 0.4, "trials") or say
            with states.disk(out):
                trying.work(opened, teaching, shortly, judge, out / trying.FOLDER, answers, shown, tell)
            found["chosen"], found["trials"] = share.first_says(lambda: trying.best_of(opened))
            if join:
                return found
        best = candidate_of(found["chosen"])
        if is_study:
            answers = trying.answers_in(answers, best.planner)
        settings, before = settings_for(best), 0.5 if is_study else 0.1
        found["settings"] = asdict(settings)
        if share.is_first:
            with states.disk(out):
                out.mkdir(parents=True, exist_ok=True)
                if not told["is_known"]:
                    write_bytes(out / CONFIG, _json(found))
        shown = part(progress, before, 0.9 - before)
        run = train(settings, teaching(best.planner), out, cache=answers, resume=resume, progress=shown, notice=tell)
    if not share.is_first:
        return found
    found |= {"student": str(out), "run": run}
    say("judge", 0.9)
    shown = part(progress, 0.9, 0.1)
    build(str(out), precision=best.precision, threads=threads, out=out / BUNDLE, seed=seed)
    verdict = validate(
        out / BUNDLE, against=model, suite=["plan", "closed-loop"] if episodes else ["plan"], preset=PRESET,
        contexts=judged, episodes=episodes or None, data=data, seed=seed, progress=shown, notice=tell,
    )  # fmt: skip
    found["verdict"] = {key: verdict[key] for key in ("passed", "plan", "closed_loop", "gates")}
    with states.disk(out):
        pareto.write(out, rows_of(found), f"Students of {model} for {board.target.name}")
        write_bytes(out / CONFIG, _json(found))
    return found


def settings_of(
    best: Candidate, full: Model, without: Sequence[str], training: Mapping[str, Any], seed: int
) -> Settings:
    weights = {name: 0.0 if name in without else weight for name, weight in losses.WEIGHTS.items()}
    given = {"learning_rate": TUNING if begins_as(best.shape, full) else LEARNING, **training}
    if isinstance(first := given.get("learning_rate"), (int, float)):
        given["learning_rate"] = (first, first / 100)
    return replace(Settings(best.shape, best.planner, best.precision, weights, seed=seed), **given)


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the Pareto page: the teacher, every candidate considered, those tried with what they were worth after their
    short training, the one chosen with what the judge found."""
    loop = (found["verdict"] or {}).get("closed_loop")
    rates = {who: loop[who]["successes"] / loop[who]["episodes"] for who in ("full", "compressed")} if loop else {}
    exact = {"spearman_min": 1.0, "elite_overlap": 1.0, "regret": 0.0, "success": rates.get("full")}
    rows = [pareto.row("teacher", found["teacher_ms"]["point"], "estimated", "teacher", **exact)]
    figures = found["verdict"]["plan"] if found["verdict"] else {}
    tried = [row["figures"] or {} for row in found["trials"] or ()] or [{}] * len(found["considered"])
    for candidate, shortly in zip(found["considered"], tried, strict=True):
        is_chosen = candidate == found["chosen"]
        told = {key: (figures if is_chosen else shortly).get(key) for key in FIGURES}
        if "search_regret" in figures and is_chosen:
            told["regret"] = figures["search_regret"]
        if is_chosen:
            told["success"] = rates.get("compressed")
        state = "chosen" if is_chosen else "tried" if shortly else "considered"
        rows.append(pareto.row(name_of(candidate), candidate["tick_ms"]["point"], "estimated", state, **told))
    return rows


def name_of(candidate: Mapping[str, Any]) -> str:
    """A candidate in a few words."""
    shape, planner = candidate["shape"], candidate["planner"]
    size = "the model itself"
    if shape is not None:
        size = f"{shape['width']} wide, {shape['mlp_dim']} within, {shape['depth']} deep, window {shape['window']}"
        size += f", jump {shape['jump']}" if shape["jump"] > 1 else ""
    return f"{size}, {planner['samples']} x {planner['iterations']}, {candidate['precision']}"


# -------------------------------------------------------------------------------------------------------- refusals


def _check(precision: str, without: Sequence[str], training: Mapping[str, Any]) -> None:
    if precision not in (AUTO, *TRAINED):
        names = ", ".join((AUTO, *TRAINED))
        raise EdgewmError(f"no student is trained for {precision!r}", "--precision", f"use {names}")
    unknown = [name for name in without if name not in losses.TERMS]
    if unknown or not any(weight for name, weight in losses.WEIGHTS.items() if name not in without):
        what = f"no loss {unknown[0]!r}" if unknown else "no loss is left"
        raise EdgewmError(what, "--without", f"leave out some of {', '.join(losses.TERMS)}")
    check_training(training)


def _check_out(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise EdgewmError("the output is a file", str(out), "give -o a directory")
    strange = sorted({p.name for p in out.iterdir()} - MADE) if out.is_dir() else []
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


def _asked_before(out: Path, asked: Mapping[str, Any]) -> tuple[list[Candidate], Candidate] | None:
    """What a run that is to go on had considered and chosen. EdgewmError where it was asked for something else."""
    file = out / CONFIG
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
        before, seen, best = found["asked"], found["considered"], found["chosen"]
        known = [candidate_of(c) for c in seen], candidate_of(best)
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
    return known


def _json(found: Mapping[str, Any]) -> bytes:
    return (json.dumps(found, indent=1, allow_nan=False, default=str) + "\n").encode()

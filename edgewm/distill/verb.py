"""The verb `distill`: choose what plans at a rate on a target, train it, judge it.

OUT afterwards holds a checkpoint that `build` takes like any other (config.json, weights.safetensors, robot.json and,
where its planner begins at one, proposal.safetensors), the one file that says how it came to be (distill.json),
log.jsonl of a student, pareto.json and .html, the bundle it was judged as (bundle/), and what `--resume` needs (run/).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache as remembered
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..build import build
from ..data import identity
from ..judge.sources import Source, source_of
from ..models import Model, folder_of, load
from ..options import AUTO, Progress, part
from ..program import Planner
from ..student import regret_of
from ..validate import validate
from . import budgets, losses, pareto, states
from . import trials as trying
from .asked import BUNDLE, CONFIG, asked_before, asked_for, check, check_out, check_room
from .choice import Board, Candidate, board_of, candidate_of, chosen, considered, fastest, holds, rivals, tick
from .devices import computing
from .material import LEARNING, TUNING, Notice, Settings, bytes_of
from .processes import Processes
from .proposal import Settings as Beginning
from .proposal_only import with_trained, write_checkpoint
from .prune import begins_as
from .shapes import planners
from .targets import OF, write_bytes
from .teacher import Teacher, check_fit, teacher_of
from .train import RUN, train

PRESET = "student"  # of the judge
SEARCHED = ("samples", "iterations", "elites", "proposal", "warm_start")  # what smaller planners differ in
FIGURES = ("spearman_min", "elite_overlap", "regret")


def distill(
    model: str, *, rate_hz: float, target: str = "host", mode: str | None = None, precision: str = AUTO,
    planner: Mapping[str, Any] | None = None, threads: int | None = None, place: str = AUTO,
    measured: Path | None = None, out: Path = Path("student"), data: Path | None = None,
    cache: Path | None = None, cache_mib: int = 2048,
    terms: Sequence[str] = losses.DEFAULT, training: Mapping[str, Any] | None = None, judged: int | None = None,
    episodes: int | None = None, resume: bool = False, dry_run: bool = False, seed: int = 0,
    trials: int | None = None, trial_steps: int = trying.STEPS, study: Path | None = None, join: bool = False,
    device: str = AUTO, progress: Progress | None = None, notice: Notice | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Find and train what of MODEL plans `rate_hz` times a second on the target; what `--json` prints.

    Where the model itself holds the rate, in another precision or with a smaller planner, no student is trained: the
    `chosen` shape is None. Nothing is written then, unless that planner begins at a proposal that was trained for it:
    OUT is MODEL with both. The target's time is what `edgewm estimate` says (the upper end), `measured` as there, of
    its CPU or its GPU (`place`; auto: of each plan the sooner). `precision` auto chooses that, too. `planner` holds
    fields of `program.Planner`; where any is given, that planner is kept, but for `proposal` alone: all planners begin
    at one, or none. It learns `terms` of `losses.TERMS`; `training` are fields of `material.Settings`, its `contexts`
    those of a proposal, too. Targets in `cache` (in OUT, where left out) take at most `cache_mib`. `judged` are the
    judge's contexts, `episodes` the most pairs in which both models are let loose in the teacher's world, None for
    none.

    With `trials` the first so many students that hold the rate are trained for `trial_steps`, and the one that ranks
    best is trained in full; who else knows the journal `study` (in OUT, where left out) takes some of them with `join`,
    and trains nothing else: `student` is None then.

    Models and losses are computed on `device`, as `device_of` takes it. It is no part of what was asked: a run may go
    on elsewhere, as in another number of processes; in the same bits it ends on CPUs alone.

    EdgewmError for a rate that no student meets, too little data, a teacher that cannot foresee, losses that are no
    numbers, a full disk, another run in OUT, a device that is not there.
    """
    say, tell = progress or (lambda stage, done: None), notice or (lambda text: None)
    share = Processes.here(device)
    board, full = board_of(target, mode, threads, measured, place), load(model)
    given = {k: v for k, v in (planner or {}).items() if v is not None}
    asked = {
        "teacher": model, "teacher_sha256": dict(full.files), "target": board.target.name, "mode": board.mode.name,
        "threads": board.threads, "place": place, "rate_hz": rate_hz, "precision": precision, "planner": given,
        "begins_at_proposal": full.planner.proposal, "losses": list(terms), "training": dict(training or {}),
        "seed": seed, "data": None if data is None else identity(data), "trials": trials,
        "trial_steps": trial_steps if trials or join else None,
    }  # fmt: skip
    check(precision, terms, training or {})
    full = asked_for(model, full, given)
    is_study, journal = bool(trials or join), study or out / trying.JOURNAL
    answers = cache or (None if dry_run else out / (trying.FOLDER if is_study else RUN) / "cache")
    source = source_of(model, full, data, learning=True)
    beginning = replace(Beginning(seed=seed), **{k: v for k, v in (training or {}).items() if k == "contexts"})

    @remembered
    def begun() -> tuple[Model, dict[str, Any]]:
        """MODEL with a proposal that is trained for it, and what that is worth."""
        shown = part(progress, 0.0, 0.1, "proposal")
        return with_trained(model, full, source, asked["data"], beginning, answers, shown, share.device)

    def choice() -> dict[str, Any]:
        """What is considered and chosen: by others whose study is joined, by a run that is to go on, or here."""
        if not dry_run:
            check_out(out, resume, full)
        if is_study and not dry_run and (join or journal.is_file()):
            opened = trying.begin(journal, asked, None, name_of)
            return _told(asked, [entry["candidate"] for entry in opened.entries])
        if resume and not dry_run and (before := asked_before(out, asked)):
            return before
        shown = part(progress, 0.1, 0.1, "shapes")
        found = decided(full, source, board, asked, begun, is_study, share.device, shown)
        if is_study and found["chosen"]["shape"] is not None:
            kept = rivals([candidate_of(c) for c in found["considered"]], rate_hz)[:trials]
            found["considered"] = [c.as_json() for c in kept]
            if not dry_run:
                trying.begin(journal, asked, lambda: kept, name_of)
                found["chosen"] = None
        return found

    with computing(share.device), share:
        found = share.first_says(choice)
        taught = [candidate_of(c) for c in ([found["chosen"]] if found["chosen"] else found["considered"])]
        is_student = taught[0].shape is not None
        is_begun = full.proposal is None and any(c.planner.proposal for c in taught)
        if dry_run or not (is_student or is_begun):
            return found
        whole = begun()[0] if is_begun else full
        moved = whole.on(share.device)

        def teaching(planner: Planner) -> Teacher:
            return teacher_of(model, moved, planner, source, asked["data"])

        def settings_for(candidate: Candidate) -> Settings:
            return settings_of(candidate, full, terms, training or {}, beginning, seed)

        def shortly(candidate: Candidate) -> Settings:
            return replace(settings_for(candidate), steps=trial_steps, round_steps=-(-trial_steps // 2))

        def answers_of(planner: Planner) -> Path:
            return trying.answers_in(answers, planner) if is_study else answers

        def fit() -> dict[str, float]:
            sizes = {answers_of(c.planner): bytes_of(settings_for(c), teaching(c.planner)) for c in taught}
            wanted = sum(size for folder, size in sizes.items() if not (folder / OF).exists())
            check_room(wanted, cache_mib, cache or out)
            return check_fit(teaching(taught[0].planner))

        found["teacher_ms"] = tick(None, full.planner, "fp32", whole, board).tick_ms
        if is_student:
            found["teacher"] = share.first_says(fit)
        if is_student and is_study:
            opened, shown = trying.begin(journal, asked, None, name_of), part(progress, 0.2, 0.3, "trials") or say
            with states.disk(out):
                judge = teaching(full.planner)
                trying.work(opened, teaching, shortly, judge, out / trying.FOLDER, answers, shown, tell)
            found["chosen"], found["trials"] = share.first_says(lambda: trying.best_of(opened))
            if join:
                return found
        best = candidate_of(found["chosen"])
        if is_student:
            found["settings"] = asdict(settings_for(best))
        if share.is_first:
            with states.disk(out):
                out.mkdir(parents=True, exist_ok=True)
                write_bytes(out / CONFIG, _json(found))
                if not is_student:
                    searched = {key: getattr(best.planner, key) for key in SEARCHED}
                    write_checkpoint(model, whole, {**given, **searched}, out)
        if is_student:
            before = 0.5 if is_study else 0.2
            found["run"] = train(
                settings_for(best), teaching(best.planner), out, cache=answers_of(best.planner), resume=resume,
                progress=part(progress, before, 0.9 - before), notice=tell, share=replace(share),
            )  # fmt: skip
    if not share.is_first:
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


def decided(
    full: Model, source: Source, board: Board, asked: Mapping[str, Any], begun: Callable[[], Any], every: bool,
    device: torch.device, progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    """What holds the rate, as `--json` prints it, with a proposal that is `begun` where that is needed."""
    rate_hz, precision, given = asked["rate_hz"], asked["precision"], asked["planner"]
    sizes = [full.planner] if set(given) - {"proposal"} else list(planners(full.planner))
    chosen(fastest(full, board, precision, sizes[-1]), rate_hz, board)  # refuses before anything is trained
    may_begin = given.get("proposal", True) and folder_of(asked["teacher"]) is not None
    told = budgets.budgets(
        asked["teacher"], full, sizes, source, asked["seed"],
        partial(holds, board=board, rate_hz=rate_hz, precision=precision), begun if may_begin else None,
        device,
    )  # fmt: skip
    candidates = considered(told.model, board, rate_hz, precision, told.groups, progress, every=every)
    return _told(asked, [c.as_json() for c in candidates]) | {
        "chosen": chosen(candidates, rate_hz, board).as_json(), "proposal": told.proposal,
        "planners": [{"planner": asdict(p), "regret": lost} for p, lost in told.regrets.items()],
    }  # fmt: skip


def _told(asked: Mapping[str, Any], seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The result where nothing is known but what is considered."""
    return {
        "schema_version": 1, "asked": asked, "considered": list(seen), "chosen": None, "planners": [], "proposal": None,
        "teacher_ms": None, "trials": None, "student": None, "run": None, "verdict": None,
    }  # fmt: skip


def settings_of(
    best: Candidate, full: Model, terms: Sequence[str], training: Mapping[str, Any], beginning: Beginning, seed: int
) -> Settings:
    given = {"learning_rate": TUNING if begins_as(best.shape, full) else LEARNING, **training}
    if isinstance(first := given.get("learning_rate"), (int, float)):
        given["learning_rate"] = (first, first / 100)
    proposal = beginning if best.planner.proposal else None
    weights = losses.weighing(terms)
    return replace(Settings(best.shape, best.planner, best.precision, weights, proposal, seed=seed), **given)


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the Pareto page: the teacher, every candidate considered, those tried with what they were worth after their
    short training, the one chosen with what the judge found. The teacher with a smaller planner is known by its regret
    before."""
    loop = (found["verdict"] or {}).get("closed_loop")
    rates = {who: loop[who]["successes"] / loop[who]["episodes"] for who in ("full", "compressed")} if loop else {}
    exact = {"spearman_min": 1.0, "elite_overlap": 1.0, "regret": 0.0, "success": rates.get("full")}
    rows = [pareto.row("teacher", found["teacher_ms"]["point"], "estimated", "teacher", **exact)]
    figures = found["verdict"]["plan"] if found["verdict"] else {}
    tried = [row["figures"] or {} for row in found["trials"] or ()] or [{}] * len(found["considered"])
    for candidate, shortly in zip(found["considered"], tried, strict=True):
        is_chosen = candidate == found["chosen"]
        told = {"regret": regret_of(found, candidate)} | {key: shortly[key] for key in FIGURES if key in shortly}
        if is_chosen:
            told = {key: figures.get(key) for key in FIGURES} | {"success": rates.get("compressed")}
        if "search_regret" in figures and is_chosen:
            told["regret"] = figures["search_regret"]
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
    begun = ", from a proposal" if planner["proposal"] else ""
    return f"{size}, {planner['samples']} x {planner['iterations']}{begun}, {candidate['precision']}"


def _json(found: Mapping[str, Any]) -> bytes:
    return (json.dumps(found, indent=1, allow_nan=False, default=str) + "\n").encode()

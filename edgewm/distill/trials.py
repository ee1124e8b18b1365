"""Which of the students that hold a rate plans best: each is trained shortly and judged on the same held-out contexts.

They are few and known before (`choice.rivals`), so a study is no search in the dark: each is tried once, in order of
preference, by this process or by any other that joins.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import EdgewmError
from ..judge.sides import upstream
from ..models import load
from ..options import Progress
from ..program import Planner
from . import fidelity, states, study, targets
from .choice import Candidate, candidate_of
from .material import Notice, Settings, material
from .processes import Processes
from .shapes import as_model
from .teacher import HELD_OUT, Teacher, held_out
from .train import train

FOLDER, JOURNAL = "trials", "study.log"
STEPS = 400  # of a trial
KEYS = ("teacher_sha256", "rate_hz", "precision", "planner", "losses", "training", "seed", "data", "trial_steps")


def begin(
    file: Path, asked: Mapping[str, Any], entries: Callable[[], Sequence[Candidate]] | None, name: Callable[[Any], str]
) -> study.Study:
    """The study of what was `asked`, of all `entries()`; to join one that is there, where None."""

    def told() -> list[dict[str, Any]]:
        return [{"name": name(c.as_json()), "candidate": c.as_json()} for c in entries()]

    return study.open_study(file, {key: asked[key] for key in KEYS}, entries and told)


def work(
    opened: study.Study, teaching: Callable[[Planner], Teacher], settings: Callable[[Candidate], Settings],
    judge: Teacher, folder: Path, cache: Path, say: Progress, notice: Notice,
) -> None:  # fmt: skip
    """Take trials until all are done. `judge` is the teacher with the planner whose searches all are judged on."""
    count = len(opened.entries)

    def tried(i: int) -> dict[str, Any]:
        candidate = candidate_of(opened.entries[i]["candidate"])
        own = settings(candidate)
        seed = HELD_OUT + own.seed * 4096
        teacher, answers = teaching(candidate.planner), answers_in(cache, candidate.planner)
        place = folder / hashlib.sha256(repr(own).encode()).hexdigest()[:16]  # a trial that was cut off goes on
        with states.turn(cache):  # of the processes on this machine, one makes the teacher's answers
            material(own, teacher, answers, say, notice)
            targets.open_folder(cache / "held-out", {"planner": asdict(judge.planner), "seed": seed})
            held = targets.shard(
                cache / "held-out", str(own.held_out), lambda: held_out(judge, own.held_out, seed), notice
            )
        train(own, teacher, place, cache=answers, resume=True, progress=say, share=Processes())
        made = load(str(place))
        student = as_model(made.torch, judge.model, candidate.planner, made.proposal)
        side = upstream(student.on(judge.model.device), candidate.planner)
        found = fidelity.look(judge, side, held, seed, candidate.planner)
        shutil.rmtree(place)
        return {"value": found["rank"], **found}

    study.run(opened, tried, lambda left: say(f"{left} of {count} left", 1 - left / max(count, 1)))


def best_of(opened: study.Study) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first of those that rank best, and every row: its candidate, as `as_json` has it, and figures."""
    rows = [
        {**entry, "figures": found} for entry, found in zip(opened.entries, study.figures_of(opened), strict=True)
    ]
    known = [row for row in rows if row["figures"] is not None]
    if not known:
        raise EdgewmError(
            "every trial of the study was cut off", f"{len(rows)} trials", "begin again with --study another file"
        )
    return max(known, key=lambda row: row["figures"]["value"])["candidate"], rows


def answers_in(cache: Path, planner: Planner) -> Path:
    """Where the teacher's answers for a planner lie."""
    return cache / f"{planner.samples}x{planner.iterations}{'-begun' if planner.proposal else ''}"

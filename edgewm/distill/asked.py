"""What `distill` is asked for, and what it refuses before anything is trained or written."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..build import with_overrides
from ..errors import EdgewmError
from ..models import Model, folder_of
from ..models.proposal import FILE
from ..options import AUTO, TRAINED
from . import losses, pareto, states, trials
from .choice import candidate_of
from .proposal_only import check_checkpoint
from .train import RUN, check_training

CONFIG, BUNDLE = "distill.json", "bundle"
WEIGHTS = frozenset({"weights.safetensors", "weights.pt"})
MADE = frozenset({
    CONFIG, BUNDLE, RUN, trials.FOLDER, trials.JOURNAL, "config.json", *WEIGHTS, "robot.json", FILE, "log.jsonl",
    pareto.JSON, pareto.HTML,
})  # fmt: skip
BEGUN = frozenset({RUN, trials.FOLDER, trials.JOURNAL})  # what lies there before CONFIG does
MIB = 1 << 20


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


def check(precision: str, terms: Sequence[str], training: Mapping[str, Any]) -> None:
    if precision not in (AUTO, *TRAINED):
        names = ", ".join((AUTO, *TRAINED))
        raise EdgewmError(f"no student is trained for {precision!r}", "--precision", f"use {names}")
    unknown = [name for name in terms if name not in losses.TERMS]
    if unknown or not terms:
        what = f"no loss {unknown[0]!r}" if unknown else "no loss is given"
        raise EdgewmError(what, "--losses", f"give some of {', '.join(losses.TERMS)}")
    check_training(training)


def check_places(out: Path, cache: Path | None, study: Path | None) -> None:
    for folder, flag in ((out, "-o"), (cache, "--cache"), (study and study.parent, "--study")):
        states.check_folder(folder, flag)
    if study is not None and study.is_dir():
        raise EdgewmError(f"{study} is a directory", "--study", "give a file")


def check_out(out: Path, resume: bool, model: str) -> None:
    """EdgewmError where anything but a run that may go on or begin there would be overwritten."""
    if not out.is_dir():
        return
    full, is_run = folder_of(model), (out / CONFIG).is_file()
    if full is not None and out.resolve() == full.resolve():
        raise EdgewmError("the output is MODEL itself", str(out), "give -o another directory")
    there = {p.name for p in out.iterdir() if not p.name.startswith((".", f"{trials.JOURNAL}."))}
    strange = sorted(there - (MADE if is_run else BEGUN))
    if strange:
        raise EdgewmError(
            f"the output directory holds other files: {', '.join(strange[:3])}", str(out), "give -o an empty directory"
        )
    if not resume and is_run and (there & WEIGHTS or states.kept(out / RUN)):
        raise EdgewmError("the directory already holds a run", str(out), "pass --resume, or give another -o")


def check_room(wanted: int, kept: int, cache_mib: int, folder: Path) -> None:
    """EdgewmError where the teacher's answers take more than they may, or, but for what is kept of them, than there
    is."""
    if wanted > cache_mib * MIB:
        raise EdgewmError(
            f"the teacher's answers take {math.ceil(wanted / MIB)} MiB, {cache_mib} are allowed", "--cache-mib",
            "allow more, or ask for fewer --frames or --contexts",
        )  # fmt: skip
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free, more = shutil.disk_usage(there).free, wanted - kept
    if more > free:
        raise EdgewmError(
            f"the teacher's answers take {math.ceil(more / MIB)} MiB, {free // MIB} are free", str(there),
            "free some space, or give --cache a folder on another disk",
        )  # fmt: skip


def asked_before(out: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
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

"""`build --student`: which model is built in MODEL's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import EdgewmError
from .options import Progress

SIZES, BEGINNING = ("samples", "iterations", "elites"), ("proposal", "warm_start")  # what smaller planners differ in
Verdict = Mapping[str, Any]
Asked = tuple[str, Mapping[str, Any], str, Verdict | None]


def student_for(
    model: str, student: str, planner: Mapping[str, Any], options: Mapping[str, Any], progress: Progress | None,
    notice: Callable[[str], None],
) -> Asked:  # fmt: skip
    """What `build --student` builds in MODEL's place, with which settings of the planner, in which precision, and what
    the judge said of it, where it was asked: a directory given, or one distilled beside the bundle, for the options of
    `build`; a run that was cut off there goes on. MODEL itself where it holds the rate. EdgewmError where auto lacks a
    rate."""
    if student != "auto":
        return student, planner, options["precision"], None
    if options["rate_hz"] is None:
        raise EdgewmError("no rate to distil for", "--student auto", "give --rate-hz")
    if options["dry_run"]:
        raise EdgewmError("there is no student yet", "--student auto --dry-run", "see `edgewm distill --dry-run`")
    from .distill import distill

    out = Path(options["out"])
    same = ("rate_hz", "target", "mode", "precision", "threads", "place", "seed")
    found = distill(
        model, planner=planner, out=out.with_name(f"{out.name}-student"), resume=True, progress=progress, notice=notice,
        **{key: options[key] for key in same},
    )  # fmt: skip
    best = found["chosen"]
    if found["student"] is not None:
        return found["student"], {}, best["precision"], found["verdict"]
    return model, {**planner, **search_of(found)}, best["precision"], None


def regret_of(found: Mapping[str, Any], candidate: Mapping[str, Any]) -> float | None:
    """What plans of the model itself lose with a candidate's planner, where `distill` tried that before it chose."""
    tried = [p["regret"] for p in found["planners"] if p["planner"] == candidate["planner"]]
    return tried[0] if tried and candidate["shape"] is None else None


def search_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the planner that `distill` chose for the model itself, where nothing was trained."""
    planner = found["chosen"]["planner"]
    is_same = planner["proposal"] == found["asked"]["begins_at_proposal"]
    return {key: planner[key] for key in (SIZES if is_same else (*SIZES, *BEGINNING))}

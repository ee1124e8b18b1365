"""`build --student`: which model is built in MODEL's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import EdgewmError
from .options import Progress


def student_for(
    model: str, student: str, planner: Mapping[str, Any], options: Mapping[str, Any], progress: Progress | None,
    notice: Callable[[str], None],
) -> str:  # fmt: skip
    """What `build --student` builds in MODEL's place: a directory given, or one distilled beside the bundle, for the
    options of `build`; a run that was cut off there goes on. EdgewmError where auto lacks a rate."""
    if student != "auto":
        return student
    if options["rate_hz"] is None:
        raise EdgewmError("no rate to distil for", "--student auto", "give --rate-hz")
    if options["dry_run"]:
        raise EdgewmError("there is no student yet", "--student auto --dry-run", "see `edgewm distill --dry-run`")
    from .distill import distill

    out = Path(options["out"])
    same = ("rate_hz", "target", "mode", "precision", "threads", "seed")
    found = distill(
        model, planner=planner, out=out.with_name(f"{out.name}-student"), resume=True, progress=progress, notice=notice,
        **{key: options[key] for key in same},
    )  # fmt: skip
    return found["student"]

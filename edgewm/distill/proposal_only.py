"""`edgewm distill MODEL --proposal-only`: the same checkpoint with a proposal, and a planner that begins there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import EdgewmError
from ..judge.sources import source_of
from ..models import folder_of, load
from ..models.checkpoint import read_object, sha256, weights_file
from ..models.robot import ROBOT
from ..options import Progress
from . import states
from .proposal import Settings, train, write
from .targets import write_bytes
from .teacher import teacher_of
from .train import check_training


def distill_proposal(
    model: str, *, out: Path = Path("student"), data: Path | None = None, cache: Path | None = None,
    training: Mapping[str, Any] | None = None, seed: int = 0, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a proposal for MODEL and its own planner; `out` is then that checkpoint with it. What `--json` prints.

    `training` holds fields of `proposal.Settings`; searches are kept in `cache`, where one is given. EdgewmError for a
    MODEL that is no checkpoint, too little data, losses that are no numbers, a full disk, an OUT with other files.
    """
    folder = folder_of(model)
    if folder is None:
        raise EdgewmError(
            "a proposal lies beside a checkpoint", model, "give a checkpoint's directory, or the word reference"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EdgewmError("the output is no empty directory", str(out), "give -o an empty directory")
    if data is not None and not data.is_file():
        raise EdgewmError("no such file", str(data), "give recorded data, safetensors")
    check_training(training or {})
    full = load(model)
    planner = replace(full.planner, proposal=False, warm_start=False)
    known = None if data is None else sha256(data)[data.name]
    teacher = teacher_of(model, full, planner, source_of(model, full, data), known)
    settings = replace(Settings(seed=seed), **(training or {}))
    if settings.contexts < 2:
        raise EdgewmError("one context cannot be learned from and held out", "--contexts", "give more")
    with states.disk(cache or out):
        found, worth = train(teacher, settings, cache, progress)
    robot = read_object(folder / ROBOT) if (folder / ROBOT).is_file() else {}
    robot["planner"] = {**robot.get("planner", {}), "proposal": True, "warm_start": False}
    with states.disk(out):
        out.mkdir(parents=True, exist_ok=True)
        for file in (folder / "config.json", weights_file(folder)):
            shutil.copyfile(file, out / file.name)
        write(found, out)
        write_bytes(out / ROBOT, (json.dumps(robot, indent=1) + "\n").encode())
    return {
        "schema_version": 1, "teacher": model, "teacher_sha256": dict(full.files), "proposal": str(out),
        "planner": asdict(planner), "settings": asdict(settings), **worth,
    }  # fmt: skip

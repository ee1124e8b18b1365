"""`edgewm distill MODEL --proposal-only`: the same checkpoint with a proposal, and a planner that begins there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..data import identity
from ..errors import EdgewmError
from ..judge.sources import Source, source_of
from ..models import Model, folder_of, load
from ..models.checkpoint import read_object, weights_file
from ..models.robot import ROBOT
from ..options import AUTO, Progress
from . import states
from .devices import HOST, computing, device_of
from .proposal import Settings, blind, train, write
from .targets import write_bytes
from .teacher import teacher_of
from .train import check_training


def distill_proposal(
    model: str, *, out: Path = Path("student"), data: Path | None = None, cache: Path | None = None,
    training: Mapping[str, Any] | None = None, seed: int = 0, device: str = AUTO, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a proposal for MODEL and its own planner; `out` is then that checkpoint with it. What `--json` prints.

    `training` holds fields of `proposal.Settings`; searches are kept in `cache`, where one is given; `device` as
    `device_of` takes it. EdgewmError for a MODEL that is no checkpoint, too little data, losses that are no numbers, a
    full disk, an OUT with other files, a device that is not there.
    """
    where = device_of(device)
    check_checkpoint(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EdgewmError("the output is no empty directory", str(out), "give -o an empty directory")
    check_training(training or {})
    known = None if data is None else identity(data)
    full, settings = load(model), replace(Settings(seed=seed), **(training or {}))
    source = source_of(model, full, data, learning=True)
    with computing(where):
        begun, worth = with_trained(model, full, source, known, settings, cache, progress, where)
    with states.disk(out):
        write_checkpoint(model, begun, {"proposal": True, "warm_start": False}, out)
    return {
        "schema_version": 1, "teacher": model, "teacher_sha256": dict(full.files), "proposal": str(out), **worth,
    }  # fmt: skip


def with_trained(
    name: str, model: Model, source: Source, data: str | None, settings: Settings, cache: Path | None,
    progress: Progress | None, device: torch.device = HOST,
) -> tuple[Model, dict[str, Any]]:  # fmt: skip
    """MODEL with a proposal for its own planner, which is trained on the device and comes back to the host, and how
    that was trained and what it is worth. `data` is the SHA-256 of recorded data."""
    if settings.contexts < 2:
        raise EdgewmError("one context cannot be learned from and held out", "--contexts", "give more")
    planner = blind(model.planner)
    with nullcontext() if cache is None else states.disk(cache):
        found, worth = train(teacher_of(name, model.on(device), planner, source, data), settings, cache, progress)
    facts = {"planner": asdict(planner), "settings": asdict(settings), **worth}
    return replace(model, proposal=found.cpu()), facts


def write_checkpoint(name: str, model: Model, planner: Mapping[str, Any], out: Path) -> None:
    """The checkpoint `name` in `out`, with the model's proposal and these settings of its planner."""
    folder = check_checkpoint(name)
    robot = read_object(folder / ROBOT) if (folder / ROBOT).is_file() else {}
    robot["planner"] = {**robot.get("planner", {}), **planner}
    out.mkdir(parents=True, exist_ok=True)
    for file in (folder / "config.json", weights_file(folder)):
        shutil.copyfile(file, out / file.name)
    write(model.proposal, out)
    write_bytes(out / ROBOT, (json.dumps(robot, indent=1) + "\n").encode())


def check_checkpoint(name: str) -> Path:
    """The directory of MODEL. EdgewmError where it is a function."""
    folder = folder_of(name)
    if folder is None:
        raise EdgewmError(
            "a proposal lies beside a checkpoint", name, "give a checkpoint's directory, or the word reference"
        )
    return folder

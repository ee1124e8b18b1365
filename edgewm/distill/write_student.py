"""A student as a checkpoint that `build` takes like any other: config.json, weights.safetensors, robot.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..models import Model
from ..models.robot import ACTION, ROBOT
from ..program import Planner
from .targets import write_bytes

NOT_SHIPPED = ("sigreg.",)


def write_student(
    out: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], teacher: Model, planner: Planner
) -> None:
    """Each file whole or not at all; the weights last."""
    write_bytes(out / "config.json", _json(config))
    write_bytes(out / ROBOT, _json(robot(teacher, planner)))
    shipped = {
        name: value.cpu().contiguous()
        for name, value in sorted(weights.items())
        if value.is_floating_point() and not name.startswith(NOT_SHIPPED)
    }
    write_bytes(out / "weights.safetensors", save(shipped))


def robot(teacher: Model, planner: Planner) -> dict[str, Any]:
    """`robot.json`: the teacher's robot, and the student's planner for it."""
    port, camera = teacher.ports_of("action")[0], teacher.ports_of("observation")[0]
    unsaid = {"low": None, "high": None, "slew": 0.0, "control": "", "unit": ""}
    action = {key: getattr(port, key) for key in ACTION if getattr(port, key) not in (unsaid.get(key, ()), ())}
    search = {key: value for key, value in asdict(planner).items() if value is not None and key != "action_block"}
    own = {"cem": ("noise_beta", "alpha", "n_elite_keep", "return_mean", "temperature")}
    own["icem"], own["mppi"] = ("temperature",), own["cem"][:-1]
    found: dict[str, Any] = {"action": action, "action_block": planner.action_block}
    found |= {"rate_hz": port.rate_hz} if port.rate_hz else {}
    found |= {"max_age_ms": camera.max_age_ns / 1e6} if camera.max_age_ns else {}
    return {**found, "planner": {k: v for k, v in search.items() if k not in own[planner.kind]}}


def _json(found: Mapping[str, Any]) -> bytes:
    return (json.dumps(found, indent=2) + "\n").encode()

"""`robot.json` beside a checkpoint's `config.json`: the robot its actions are for, and the plan to make for it.

    {"action": {"control": "velocity", "unit": "m/s", "low": -1, "high": 1, "slew": 0, "safe": [0, 0],
                "scale": [1, 1], "offset": [0, 0]},
     "rate_hz": 20, "action_block": 5, "max_age_ms": 150,
     "planner": {"samples": 300, "iterations": 30, "elites": 30, "horizon": 5, "commit_steps": 25}}

Every key may be left out. `action` holds the fields of the action port (`program.Port`), in the robot's units;
`planner` those of `program.Planner` (`"kind": "icem"` and what belongs to it, too): its `low` and `high` bound the
search in the model's units, its `commit_steps` count control periods. `action_block` is how many control periods one
model action lasts, `max_age_ms` how old an observation may be.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import EdgewmError
from ..planner import check, committed_actions, settled
from ..program import Planner, Port
from .checkpoint import read_object, sha256
from .model import Model

ROBOT = "robot.json"
KEYS = ("action", "rate_hz", "action_block", "max_age_ms", "planner")
ACTION = ("control", "unit", "low", "high", "slew", "safe", "scale", "offset")
PLANNER = {f.name: f.default for f in fields(Planner) if f.name != "action_block"}
CONTROLS = ("position", "velocity", "torque")
NS_PER_MS = 1_000_000


def with_robot(model: Model, folder: Path, trained_block: int | None = None) -> Model:
    """The model with the ports and planner that the directory's `robot.json` gives it; as it is where there is none.

    `trained_block` is the action_block that config.json states. EdgewmError for an unknown key, a wrong type or length,
    a number that is not finite, and settings that contradict each other or the model.
    """
    file = folder / ROBOT
    if not file.exists():
        return model
    where = str(file)
    found = _known(read_object(file), KEYS, where)
    block = _value(found, "action_block", model.planner.action_block, where)
    if trained_block not in (None, block):
        raise EdgewmError(f"action_block is {block}, config.json says {trained_block}", where, "leave action_block out")
    if block < 1 or model.action_dim % block:
        raise EdgewmError(
            f"action_block is {block}, a model action has {model.action_dim} numbers", where,
            "give the number of control periods that one model action lasts: it divides those",
        )  # fmt: skip
    rate_hz, age_ms = (_value(found, key, 0.0, where) for key in ("rate_hz", "max_age_ms"))
    if rate_hz < 0 or ("rate_hz" in found and rate_hz == 0) or age_ms < 0:
        key = "max_age_ms" if age_ms < 0 else "rate_hz"
        raise EdgewmError(f"{key} is {found[key]}", where, "give a positive number")
    action = _action(found.get("action", {}), model.action_dim // block, f"{where}, action")

    def described(port: Port) -> Port:
        port = replace(port, rate_hz=rate_hz or port.rate_hz)
        if port.kind == "action":
            return replace(port, shape=(model.action_dim // block,), **action)
        return replace(port, max_age_ns=round(age_ms * NS_PER_MS)) if age_ms and port.kind == "observation" else port

    planner = _planner(found.get("planner", {}), model.planner, block, f"{where}, planner")
    files = {**model.files, **sha256(file)}
    return replace(model, ports=tuple(map(described, model.ports)), planner=planner, files=files)


def _action(section: Any, axes: int, where: str) -> dict[str, Any]:
    """Fields of the action port."""
    found = _known(section, ACTION, where)
    control = _value(found, "control", "", where)
    if "control" in found and control not in CONTROLS:
        raise EdgewmError(f"control is {control!r}", where, f"give {', '.join(CONTROLS)}")
    given: dict[str, Any] = {k: _value(found, k, "", where) for k in ("control", "unit") if k in found}
    given |= {k: _value(found, k, 0.0, where) for k in ("low", "high", "slew") if k in found}
    given |= {k: _axes(found, k, axes, where) for k in ("safe", "scale", "offset") if k in found}
    low, high = given.get("low", -math.inf), given.get("high", math.inf)
    if not low < high:
        raise EdgewmError(f"limits are [{low:g}, {high:g}]", where, "give low below high")
    if given.get("slew", 0.0) < 0:
        raise EdgewmError(f"slew is {given['slew']:g}", where, "give the largest change a period, 0 for no limit")
    if 0.0 in given.get("scale", ()):
        raise EdgewmError("scale holds 0", where, "give how much of the robot's unit one unit of the model's action is")
    if not all(low <= value <= high for value in given.get("safe", ())):
        raise EdgewmError(
            f"safe is {list(given['safe'])}, the limits are [{low:g}, {high:g}]", where, "give one within them"
        )
    return given


def _planner(section: Any, base: Planner, block: int, where: str) -> Planner:
    """The family's planner with what the file says; as many model actions committed as before where it says nothing."""
    found = _known(section, tuple(PLANNER), where)
    given = {
        key: _value(found, key, 0.0 if default is None else default, where)
        for key, default in PLANNER.items()
        if key in found
    }
    merged = settled(replace(base, action_block=block), given, where)
    if "commit_steps" not in given and merged.history == 1:
        merged = replace(merged, commit_steps=min(committed_actions(base), merged.horizon) * block)
    try:
        check(merged)
    except EdgewmError as fault:
        raise EdgewmError(fault.what, where, fault.fix) from fault
    return merged


def _known(section: Any, keys: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(section, Mapping):
        raise EdgewmError(f"{section!r} where an object is wanted", where, f"it may hold {', '.join(keys)}")
    unknown = sorted(set(section) - set(keys))
    if unknown:
        raise EdgewmError(f"unknown key {unknown[0]!r}", where, f"known are {', '.join(keys)}")
    return section


def _value(found: Mapping[str, Any], key: str, default: Any, where: str) -> Any:
    """The value of a key, of the type of its default; whole numbers serve as floats."""
    value, kind = found.get(key, default), type(default)
    if kind is float:
        return _number(value, key, where)
    if type(value) is not kind:
        wanted = {int: "a whole number", bool: "true or false", str: "a word"}[kind]
        raise EdgewmError(f"{key} is {value!r}", where, f"give {wanted}")
    return value


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise EdgewmError(f"{key} is {value!r}", where, "give a finite number")
    return float(value)


def _axes(found: Mapping[str, Any], key: str, axes: int, where: str) -> tuple[float, ...]:
    value = found[key]
    if not isinstance(value, list) or len(value) != axes:
        raise EdgewmError(f"{key} is {value!r}", where, f"give a list of {axes} numbers, one an axis")
    return tuple(_number(v, key, where) for v in value)

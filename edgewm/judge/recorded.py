"""Recorded data as evidence: contexts and trajectories out of a safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EdgewmError
from ..program import Port
from .sides import Observation
from .sources import Pairs, rows_apart

Array = np.ndarray
STATES = "rollout_state"  # what a picture shows, (N, T + 1, K): optional

KINDS = {"u8": "uint8", "f32": "float32", "i32": "int32"}


def wanted(model: Any) -> str:
    """The arrays of recorded contexts, in words."""
    ports = (*model.ports_of("observation"), *model.ports_of("goal"))
    return ", ".join(f"{p.name} (N, {', '.join(map(str, p.shape[1:]))}) {KINDS[p.dtype]}" for p in ports)


def wanted_rollouts(model: Any) -> str:
    """The arrays of recorded trajectories, in words."""
    (camera, *_), (action, *_) = model.ports_of("observation"), model.ports_of("action")
    frame = ", ".join(map(str, camera.shape[1:]))
    return (
        f"rollout_{camera.name} (N, T + 1, {frame}) {KINDS[camera.dtype]}, "
        f"rollout_{action.name} (N, T, {action.shape[-1]}) float32, one row a control period "
        f"(optional: {STATES} (N, T + 1, K) float32, what a picture shows)"
    )


def recorded(data: Path, model: Any, apart: bool | None = None) -> dict[str, Any]:
    """Fields of a Source: `contexts`, `rollouts` or both, of what a safetensors file holds.

    Contexts are one array (N, ...) for each observation port and, under the goal ports' names, of what to reach;
    trajectories `rollout_<observation port>` (N, T + 1, ...) and `rollout_<action port>` (N, T, axes), the robot's
    actions in its own units, and, if one likes, `rollout_state` (N, T + 1, K). EdgewmError when an array is missing or
    does not fit. `apart` as `sources.source_of` takes it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(data)
    except (SafetensorError, OSError) as fault:
        raise EdgewmError(f"not a safetensors file: {fault}", str(data), "save the recorded data again") from fault
    rollouts = any(name.startswith("rollout_") for name in arrays)
    found: dict[str, Any] = _recorded_rollouts(arrays, model, str(data), apart) if rollouts else {"moments": {}}
    if not rollouts or any(p.name in arrays for p in (*model.ports_of("observation"), *model.ports_of("goal"))):
        found["contexts"], n = _recorded_contexts(arrays, model, str(data), apart)
        found["moments"] = {**found["moments"], "contexts": n}
    return found


def _rows(arrays: Mapping[str, Array], name: str, port: Port, axes: str, where: str) -> Array:
    """The array `name`, whose axes after `axes` must be those of the port, but for axes of 1. EdgewmError where they
    are not, and for numbers of another kind than the port's: their scale would be another, too."""
    rows = arrays.get(name)
    if rows is None:
        raise EdgewmError(f"no array {name!r}", where, f"record one ({axes}, ...) of that name")
    leading, dtype = axes.count(",") + 1, KINDS[port.dtype]
    fix = f"record rows of shape {tuple(port.shape)} in {dtype}, in this order of axes"
    if rows.ndim < leading or rows.size == 0:
        raise EdgewmError(f"array {name!r} has no rows", where, fix)
    if _wide(rows.shape[leading:]) != _wide(port.shape):
        raise EdgewmError(f"rows of {name!r} have shape {rows.shape[leading:]}", where, fix)
    if rows.dtype != dtype and not (port.dtype == "f32" and rows.dtype.kind == "f"):
        raise EdgewmError(f"rows of {name!r} are {rows.dtype}", where, fix)
    return rows


def _wide(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _recorded_contexts(
    arrays: Mapping[str, Array], model: Any, where: str, apart: bool | None
) -> tuple[Callable[[int, int], Pairs], int]:  # fmt: skip
    observations, goals = model.ports_of("observation"), model.ports_of("goal")
    held = {p.name: _rows(arrays, p.name, p, "N", where) for p in (*observations, *goals)}
    counts = {name: len(rows) for name, rows in held.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{n} of {name!r}" for name, n in counts.items())
        raise EdgewmError(f"contexts do not match: {told}", where, "record as many rows of each: row i of all is one")
    rows = rows_apart(next(iter(counts.values())), apart, "context", where)
    answers = list(zip(observations, goals, strict=True))

    def contexts(n: int, seed: int) -> Iterator[tuple[Observation, Observation]]:
        for i in np.random.default_rng(seed).permutation(rows)[:n]:
            yield {o.name: held[o.name][i] for o, _ in answers}, {o.name: held[g.name][i] for o, g in answers}

    return contexts, len(rows)


def _recorded_rollouts(
    arrays: Mapping[str, Array], model: Any, where: str, apart: bool | None
) -> dict[str, Any]:  # fmt: skip
    (camera, *_), (action, *_) = model.ports_of("observation"), model.ports_of("action")
    frames = _rows(arrays, f"rollout_{camera.name}", camera, "N, T + 1", where)
    actions = _rows(arrays, f"rollout_{action.name}", action, "N, T", where)
    states = arrays.get(STATES)
    if frames.shape[0] != actions.shape[0] or frames.shape[1] != actions.shape[1] + 1:
        raise EdgewmError(
            f"{frames.shape[0]} trajectories of {frames.shape[1]} frames and {actions.shape[0]} of "
            f"{actions.shape[1]} actions", where, "record T + 1 frames for T actions of each trajectory",
        )  # fmt: skip
    if states is not None and (states.ndim != 3 or states.shape[:2] != frames.shape[:2]):
        raise EdgewmError(f"{STATES!r} has shape {states.shape}", where, f"record {frames.shape[:2]} rows of K numbers")

    rows = rows_apart(len(actions), apart, "trajectory", where)

    def rollouts(n: int, steps: int, seed: int) -> Iterator[tuple[Array, Array, Array | None]]:
        if steps > actions.shape[1]:
            raise EdgewmError(
                f"trajectories of {actions.shape[1]} periods", where, f"record {steps}: as far as a plan looks ahead"
            )
        rng = np.random.default_rng([0x7011, seed])
        for i in rng.permutation(rows)[:n]:
            first = int(rng.integers(actions.shape[1] - steps + 1))
            seen = slice(first, first + steps + 1)
            yield frames[i, seen], actions[i, first : first + steps], None if states is None else states[i, seen]

    there = {"frames": len(rows) * frames.shape[1]}
    return {"rollouts": rollouts, "longest": int(actions.shape[1]), "moments": there}

"""Where the judge's evidence comes from: contexts to plan in, recorded futures, a simulator to act in.

`reference` brings its own world. One's own model (`module:function`) may define, in that module, `contexts(n, seed)`,
`rollouts(n, steps, seed)` and `make(seed)` with the meaning they have in `edgewm.reference.world`. For any model, a
checkpoint directory too, a safetensors file of recorded data serves (see `recorded`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EdgewmError
from ..imports import module_of
from .sides import Observation

Array = np.ndarray
Pairs = Iterable[tuple[Observation, Observation]]
Rollouts = Iterable[tuple[Array, Array, Array | None]]


@dataclass(frozen=True)
class Source:
    """What there is; None for what there is not. `contexts(n, seed)` yields pairs (observation, goal);
    `rollouts(n, steps, seed)` trajectories (frames (T + 1, ...), robot actions (T, axes), states or None);
    `world(seed)` a simulator; `gallery(seed)` one trajectory and frames (N, ...) to recognise imagined latents by."""

    contexts: Callable[[int, int], Pairs] | None = None
    rollouts: Callable[[int, int, int], Rollouts] | None = None
    world: Callable[[int], Any] | None = None
    gallery: Callable[[int, int], tuple[Array, Array, Array]] | None = None


def source_of(against: str, model: Any, data: Path | None = None) -> Source:
    """The source that belongs to MODEL; recorded `data` come before its own. EdgewmError for data that do not fit."""
    found = Source()
    if against == "reference" or _is_reference(against):
        from ..reference import world

        found = Source(world.contexts, world.rollouts, world.make, reference_gallery)
    elif ":" in against and not Path(against).exists():
        module = module_of(against)
        found = Source(*(getattr(module, name, None) for name in ("contexts", "rollouts", "make")))
    return found if data is None else replace(found, **recorded(data, model))


def _is_reference(against: str) -> bool:
    from ..reference import PATH

    path = Path(against)
    return (path if path.is_dir() else path.parent).resolve() == PATH


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
        f"rollout_{action.name} (N, T, {action.shape[-1]}) float32, one row a control period"
    )


def recorded(data: Path, model: Any) -> dict[str, Callable]:
    """`contexts`, `rollouts` or both, as fields of a Source, of what a safetensors file holds.

    Contexts are one array (N, ...) for each observation port and, under the goal ports' names, of what to reach;
    trajectories `rollout_<observation port>` (N, T + 1, ...) and `rollout_<action port>` (N, T, axes), the robot's
    actions in its own units. EdgewmError when an array is missing or does not fit its port.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(data)
    except (SafetensorError, OSError) as fault:
        raise EdgewmError(f"not a safetensors file: {fault}", str(data), "save the recorded data again") from fault
    rollouts = any(name.startswith("rollout_") for name in arrays)
    found: dict[str, Callable] = {"rollouts": _recorded_rollouts(arrays, model, str(data))} if rollouts else {}
    if not rollouts or any(p.name in arrays for p in (*model.ports_of("observation"), *model.ports_of("goal"))):
        found["contexts"] = _recorded_contexts(arrays, model, str(data))
    return found


def _rows(arrays: Mapping[str, Array], name: str, shape: tuple[int, ...], axes: str, where: str) -> Array:
    """The array `name`, whose axes after `axes` must hold as much as `shape`. EdgewmError when it does not fit."""
    rows = arrays.get(name)
    if rows is None:
        raise EdgewmError(f"no array {name!r}", where, f"record one ({axes}, ...) of that name")
    leading = axes.count(",") + 1
    if rows.ndim < leading or rows.size == 0:
        raise EdgewmError(f"array {name!r} has no rows", where, f"record rows of shape {shape}")
    if np.prod(rows.shape[leading:], dtype=int) != np.prod(shape, dtype=int):
        raise EdgewmError(f"rows of {name!r} have shape {rows.shape[leading:]}", where, f"record rows of shape {shape}")
    return rows


def _recorded_contexts(arrays: Mapping[str, Array], model: Any, where: str) -> Callable[[int, int], Pairs]:
    observations, goals = model.ports_of("observation"), model.ports_of("goal")
    held = {p.name: _rows(arrays, p.name, p.shape, "N", where) for p in (*observations, *goals)}
    n_recorded = min(map(len, held.values()))
    answers = list(zip(observations, goals, strict=True))

    def contexts(n: int, seed: int) -> Iterator[tuple[Observation, Observation]]:
        for i in np.random.default_rng(seed).permutation(n_recorded)[:n]:
            yield {o.name: held[o.name][i] for o, _ in answers}, {o.name: held[g.name][i] for o, g in answers}

    return contexts


def _recorded_rollouts(arrays: Mapping[str, Array], model: Any, where: str) -> Callable[[int, int, int], Rollouts]:
    (camera, *_), (action, *_) = model.ports_of("observation"), model.ports_of("action")
    frames = _rows(arrays, f"rollout_{camera.name}", camera.shape, "N, T + 1", where)
    actions = _rows(arrays, f"rollout_{action.name}", action.shape, "N, T", where)
    if frames.shape[0] != actions.shape[0] or frames.shape[1] != actions.shape[1] + 1:
        raise EdgewmError(
            f"{frames.shape[0]} trajectories of {frames.shape[1]} frames and {actions.shape[0]} of "
            f"{actions.shape[1]} actions", where, "record T + 1 frames for T actions of each trajectory",
        )  # fmt: skip

    def rollouts(n: int, steps: int, seed: int) -> Iterator[tuple[Array, Array, Array | None]]:
        if steps > actions.shape[1]:
            raise EdgewmError(
                f"trajectories of {actions.shape[1]} periods", where, f"record {steps}: as far as a plan looks ahead"
            )
        rng = np.random.default_rng([0x7011, seed])
        for i in rng.permutation(len(actions))[:n]:
            first = int(rng.integers(actions.shape[1] - steps + 1))
            yield frames[i, first : first + steps + 1], actions[i, first : first + steps], None

    return rollouts


def reference_gallery(periods: int, seed: int) -> tuple[Array, Array, Array]:
    """One held-out trajectory of TwoRoom through the door, and the same room with the disc on every free spot.

    Returns frames (T + 1, 64, 64, 3), actions (T, 2) and the gallery (N, 64, 64, 3).
    """
    from ..reference import data, world

    rng = np.random.default_rng([0x6A11, seed])
    layouts, actions, states = data.trajectories(rng, 256, periods)
    crossed = (states[:, 0, 0] < layouts[:, 0]) != (states[:, -1, 0] < layouts[:, 0])
    moved = np.linalg.norm(states[:, -1] - states[:, 0], axis=1)
    chosen = int(np.argmax(moved + crossed))
    layout = layouts[chosen : chosen + 1]
    axis = np.linspace(world.RADIUS_M, 1 - world.RADIUS_M, 40, dtype=np.float32)
    spots = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    spots = spots[~world.blocked(np.repeat(layout, len(spots), 0), spots)]
    frames = world.observe(np.repeat(layout, periods + 1, 0), states[chosen])
    return frames, actions[chosen], world.observe(np.repeat(layout, len(spots), 0), spots)

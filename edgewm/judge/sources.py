"""Where the judge's evidence comes from: contexts to plan in, recorded futures, a simulator to act in.

`reference` brings its own world. One's own model (`module:function`) may define, in that module, `contexts(n, seed)`,
`rollouts(n, steps, seed)` and `make(seed)` with the meaning they have in `edgewm.reference.world`. For any model a
safetensors file of recorded data serves: one array (N, ...) for each observation port and, under the goal ports' names,
of what to reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EdgewmError
from ..imports import module_of
from .sides import Observation

Array = np.ndarray
Pairs = Iterable[tuple[Observation, Observation]]
Rollouts = Iterable[tuple[Array, Array, Array]]


@dataclass(frozen=True)
class Source:
    """What there is; None for what there is not. `contexts(n, seed)` yields pairs (observation, goal);
    `rollouts(n, steps, seed)` trajectories (frames (T + 1, ...), robot actions (T, axes), states); `world(seed)` a
    simulator; `gallery(seed)` one trajectory and frames (N, ...) to recognise imagined latents by."""

    contexts: Callable[[int, int], Pairs] | None = None
    rollouts: Callable[[int, int, int], Rollouts] | None = None
    world: Callable[[int], Any] | None = None
    gallery: Callable[[int, int], tuple[Array, Array, Array]] | None = None


def source_of(against: str, model: Any, data: Path | None = None) -> Source:
    """The source that belongs to MODEL. EdgewmError for data that do not fit its ports."""
    found = Source()
    if against == "reference" or _is_reference(against):
        from ..reference import world

        found = Source(world.contexts, world.rollouts, world.make, reference_gallery)
    elif ":" in against and not Path(against).exists():
        module = module_of(against)
        found = Source(*(getattr(module, name, None) for name in ("contexts", "rollouts", "make")))
    if data is not None:
        pairs = recorded(data, model)
        return Source(lambda n, seed: _draw(pairs, n, seed), found.rollouts, found.world, found.gallery)
    return found


def _is_reference(against: str) -> bool:
    from ..reference import PATH

    path = Path(against)
    return (path if path.is_dir() else path.parent).resolve() == PATH


def wanted(model: Any) -> str:
    """The arrays that `recorded` reads, in words."""
    kinds = {"u8": "uint8", "f32": "float32", "i32": "int32"}
    ports = (*model.ports_of("observation"), *model.ports_of("goal"))
    return ", ".join(f"{p.name} (N, {', '.join(map(str, p.shape[1:]))}) {kinds[p.dtype]}" for p in ports)


def recorded(data: Path, model: Any) -> list[tuple[Observation, Observation]]:
    """The pairs in a safetensors file. EdgewmError when an array is missing or its rows have another shape."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(data)
    except (SafetensorError, OSError) as fault:
        raise EdgewmError(f"not a safetensors file: {fault}", str(data), "save the recorded data again") from fault
    observations, goals = model.ports_of("observation"), model.ports_of("goal")
    for port in (*observations, *goals):
        rows = arrays.get(port.name)
        if rows is None:
            raise EdgewmError(f"no array {port.name!r}", str(data), f"record one (N, ...) for port {port.name!r}")
        if rows.ndim == 0 or len(rows) == 0:
            raise EdgewmError(f"array {port.name!r} has no rows", str(data), f"record rows of shape {port.shape}")
        if rows[0].size != int(np.prod(port.shape)):
            raise EdgewmError(
                f"rows of {port.name!r} have shape {rows.shape[1:]}", str(data), f"record rows of shape {port.shape}"
            )
    n = min(len(arrays[p.name]) for p in (*observations, *goals))
    pairs = list(zip(observations, goals, strict=True))
    return [
        ({o.name: arrays[o.name][i] for o, _ in pairs}, {o.name: arrays[g.name][i] for o, g in pairs}) for i in range(n)
    ]


def _draw(pairs: list, n: int, seed: int) -> Iterator[tuple[Observation, Observation]]:
    for i in np.random.default_rng(seed).permutation(len(pairs))[:n]:
        yield pairs[i]


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

"""What can be made of recorded contexts and trajectories where nobody brought it.

States for probes are those that lie beside recorded frames. An impossible clip is a cut to another trajectory, or
frames that stand still while the actions go on. A shifted scene is the same one in other light, other colours, or seen
by a camera that was moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .episodes import in_turn
from .sides import Observation
from .sources import Clip, Pairs, Rollouts, Shift, Source

Array = np.ndarray
DARKER = 0.6  # of the light there was
MOVED = 1 / 16  # of the picture's side
SHOWN = 256  # frames, about, to recognise imagined latents by


def completed(source: Source, model: Any) -> Source:
    """The source with what can be derived from it, for the ports of `model`."""
    made = source
    observations = model.ports_of("observation")
    has_camera = any(p.dtype == "u8" and p.shape[-1] == 3 for p in observations)
    if source.rollouts is not None and source.states is None:
        made = made.having(states=_states(source))
    if source.rollouts is not None and source.impossible is None:
        made = made.having(impossible=_impossible(source))
    if source.rollouts is not None and source.gallery is None and has_camera and len(observations) == 1:
        made = made.having(gallery=_gallery(source))
    if source.contexts is not None and source.shifts is None and has_camera:
        made = made.having(shifts=lambda: {name: _shifted(source, change) for name, change in PICTURES.items()})
    return made


def _states(source: Source) -> Callable[[int, int], tuple[Array, Array, Array] | None]:
    def states(n: int, seed: int) -> tuple[Array, Array, Array] | None:
        """A moment of each of `n` trajectories, several where there are fewer; None where nothing lies beside them."""
        periods = source.longest or 1
        found = list(source.rollouts(n, periods, seed))
        if not found or found[0][2] is None:
            return None
        rng = np.random.default_rng([0x57A7E, seed])
        each = -(-n // len(found))
        moments = [rng.permutation(len(frames))[:each] for frames, _, _ in found]
        places = in_turn(moments)[:n]
        frames, values = (np.stack([found[i][part][at] for i, at in places]) for part in (0, 2))
        return frames, values, np.array([i for i, _ in places])

    return states


def _impossible(source: Source) -> Callable[[int, int, int], Iterator[Clip]]:
    def impossible(n: int, steps: int, seed: int) -> Iterator[Clip]:
        rng = np.random.default_rng([0x1390, seed])
        found = list(source.rollouts(n, steps, seed))
        for i, (frames, actions, _) in enumerate(found):
            at = int(rng.integers(steps // 4, steps // 2 + 1))
            other = found[i - 1][0]
            if i % 2 == 0 and len(found) > 1:
                yield Clip("cut", actions, frames, np.concatenate([frames[:at], other[at:]]))
            else:
                yield Clip("frozen", actions, frames, frames[np.minimum(np.arange(steps + 1), at)])

    return impossible


def _gallery(source: Source) -> Callable[[int, int], tuple[Array, Array, Array]]:
    def gallery(periods: int, seed: int) -> tuple[Array, Array, Array]:
        """Of some trajectories the one whose picture changes most, and the frames of all."""
        found = list(source.rollouts(-(-SHOWN // (periods + 1)), periods, seed))
        changed = [np.abs(frames[-1].astype(float) - frames[0]).mean() for frames, _, _ in found]
        frames, actions, _ = found[int(np.argmax(changed))]
        return frames, actions, np.concatenate([frames for frames, _, _ in found])

    return gallery


# ------------------------------------------------------------------------------------------------- shifted pictures


def _moved(frames: Array) -> Array:
    """Right and down, the edge repeated."""
    rows, columns = (np.arange(size) - round(MOVED * size) for size in frames.shape[-3:-1])
    return frames[..., np.maximum(rows, 0), :, :][..., np.maximum(columns, 0), :]


PICTURES: Mapping[str, Callable[[Array], Array]] = {
    "darker": lambda frames: (frames * DARKER).astype(np.uint8),
    "colours": lambda frames: np.ascontiguousarray(frames[..., ::-1]),
    "camera": _moved,
}


def _of_pictures(change: Callable[[Array], Array], values: Observation) -> Observation:
    return {k: change(v) if v.dtype == np.uint8 and v.shape[-1:] == (3,) else v for k, v in values.items()}


def _shifted(source: Source, change: Callable[[Array], Array]) -> Shift:
    def contexts(n: int, seed: int) -> Pairs:
        for observation, goal in source.contexts(n, seed):
            yield _of_pictures(change, observation), _of_pictures(change, goal)

    def rollouts(n: int, steps: int, seed: int) -> Rollouts:
        for frames, actions, states in source.rollouts(n, steps, seed):
            yield _of_pictures(change, {"": frames})[""], actions, states

    return Shift(contexts, rollouts if source.rollouts is not None else None)

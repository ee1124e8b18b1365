"""All episodes one after another in one array of rows, with their lengths or ends: stable-worldmodel's HDF5, Push-T's.

Each array has a row for each period of each episode: `pixels` (rows, H, W, 3) or (rows, 3, H, W), `action`, perhaps
`state`. `ep_len` (episodes,) counts those of an episode, which begins at `ep_offset`, or where the one before ends;
`episode_ends` (episodes,) says where each ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EdgewmError
from .. import hdf5
from ..episode import Episode, episode, lacking
from . import robomimic

Array = np.ndarray
LOOKS_FOR = "*.h5 or *.hdf5 with pixels, action and ep_len (and ep_offset) or episode_ends"
ENDINGS = hdf5.ENDINGS
PIXELS, ACTION, STATE = "pixels", "action", "state"
LENGTHS, OFFSETS, ENDS = "ep_len", "ep_offset", "episode_ends"


def found(path: Path) -> bool:
    return bool(hdf5.files(path)) and not robomimic.found(path)


def episodes(path: Path, camera: str | None) -> list[Episode]:
    return [e for file in hdf5.files(path) for e in _episodes(file, camera or PIXELS)]


def _episodes(file: Path, pixels: str) -> list[Episode]:
    where = str(file)
    with hdf5.open_file(file) as held:
        there = hdf5.arrays(held)
        for name in (pixels, ACTION):
            if name not in there:
                raise lacking(name, there, where, "record it; other names of pictures by --data PATH#NAME")
        starts, stops = _bounds(held, there, where)
        n = there[pixels][0]
        if len(starts) and (starts.min() < 0 or (stops < starts).any() or stops.max() > n):
            raise EdgewmError(f"episodes reach beyond the {n} rows there are", where, "record the file again")
        action, state = hdf5.rows(held[ACTION]), hdf5.rows(held[STATE]) if STATE in there else None
    for name, array in ((ACTION, action), (STATE, state)):
        if array is not None and len(array) != n:
            raise EdgewmError(f"{n} rows of {pixels!r} and {len(array)} of {name!r}", where, "record the file again")
    return [
        episode(
            f"{where}, episode {i}", b - a, hdf5.pictures_of(file, pixels, a), action[a:b],
            None if state is None else state[a:b],
        )
        for i, (a, b) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True))
    ]  # fmt: skip


def _bounds(held: Any, there: dict[str, tuple[int, ...]], where: str) -> tuple[Array, Array]:
    """The first row of each episode, and the row after its last."""
    if LENGTHS in there:
        lengths = _counts(held[LENGTHS])
        starts = _counts(held[OFFSETS]) if OFFSETS in there else np.cumsum(lengths) - lengths
        if len(starts) != len(lengths):
            raise EdgewmError(f"{len(lengths)} lengths and {len(starts)} offsets", where, "record the file again")
        return starts, starts + lengths
    if ENDS not in there:
        raise lacking(LENGTHS, there, where, f"say where episodes end: {LENGTHS} (and {OFFSETS}), or {ENDS}")
    ends = _counts(held[ENDS])
    return np.concatenate([[0], ends])[:-1].astype(np.int64), ends


def _counts(array: Any) -> Array:
    return hdf5.rows(array).astype(np.int64).ravel()

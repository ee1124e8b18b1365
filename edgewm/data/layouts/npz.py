"""Episodes as numpy saves them: one file an episode, `numpy.savez("0001.npz", pixels=..., action=..., state=...)`."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...errors import EdgewmError
from ..episode import Episode, episode, lacking
from ..pictures import rgb

Array = np.ndarray
LOOKS_FOR = "*.npz, an episode each, with pixels (T, H, W, 3) uint8 and action (T, axes)"
ENDINGS = (".npz",)
PIXELS, ACTION, STATE = "pixels", "action", "state"
KEPT = 4  # files in memory: an array in an archive is read whole


def _files(path: Path) -> list[Path]:
    return [p for p in ([path] if path.is_file() else sorted(path.iterdir())) if p.suffix in ENDINGS and p.is_file()]


def found(path: Path) -> bool:
    return bool(_files(path))


def episodes(path: Path, camera: str | None) -> list[Episode]:
    read = lru_cache(maxsize=KEPT)(_pictures)
    return [_episode(file, camera or PIXELS, read) for file in _files(path)]


def _episode(file: Path, pixels: str, read: Callable[[Path, str], Array]) -> Episode:
    where, fix = str(file), f"save {PIXELS} and {ACTION}; other names of pictures by --data PATH#NAME"
    try:
        with zipfile.ZipFile(file) as members:
            there = [name.removesuffix(".npy") for name in members.namelist()]
            if missing := [name for name in (pixels, ACTION) if name not in there]:
                raise lacking(missing[0], there, where, fix)
            shape = _shape(members, pixels)
        with np.load(file) as arrays:
            action, state = arrays[ACTION], arrays[STATE] if STATE in there else None
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as fault:
        raise _damaged(fault, where) from fault
    n = shape[0] if shape else 0
    return episode(where, n, lambda start, stop: read(file, pixels)[start:stop], action, state)


def _shape(members: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """Of an array, without reading it."""
    with members.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[0]


def _pictures(file: Path, name: str) -> Array:
    try:
        with np.load(file) as arrays:
            return rgb(arrays[name], f"{file}, {name}")
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as fault:
        raise _damaged(fault, str(file)) from fault


def _damaged(fault: Exception, where: str) -> EdgewmError:
    return EdgewmError(f"the npz file cannot be read: {fault}", where, "save the arrays again, without objects")

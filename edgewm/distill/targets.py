"""A teacher's answers on disk: shards of arrays, memory-mapped, made once.

    FOLDER/of.json           what they are answers to; another teacher's or other settings' folder is refused
    FOLDER/NAME/*.npy        one shard; it appears whole, by a rename, with the SHA-256 of each array in sums.json

A shard that was cut off, or whose bytes are not those that were written, is made again: it is a function of the teacher
and its seed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import EdgewmError
from ..models import Model

Array = np.ndarray
Arrays = dict[str, Array]
SUMS = "sums.json"
OF = "of.json"


def identity_of(model: Model) -> dict[str, str]:
    """SHA-256 of the files that a model was read from; of its weights, where it was read from none."""
    if model.files:
        return dict(model.files)
    found = hashlib.sha256()
    for name, value in sorted(model.torch.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {"weights": found.hexdigest()}


def open_folder(folder: Path, of: Mapping[str, Any]) -> None:
    """Begin or go on with the answers to `of`. EdgewmError where the folder holds answers to something else."""
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / OF, json.dumps(of, indent=1, sort_keys=True) + "\n"
    if not file.is_file():
        write_bytes(file, text.encode())
    elif file.read_text() != text:
        raise EdgewmError(
            "the folder holds another teacher's targets, or those of other settings", str(folder),
            "give --cache another folder, or remove this one",
        )  # fmt: skip


def bytes_in(folder: Path) -> int:
    """What its shards take."""
    return sum(file.stat().st_size for file in folder.glob("*/*.npy"))


def shard(
    folder: Path, name: str, make: Callable[[], Arrays], notice: Callable[[str], None] = lambda text: None
) -> Arrays:
    """The arrays of one shard, memory-mapped; made where there is none, or where it is damaged."""
    place = folder / name
    fault = damage(place)
    if fault is not None:
        if place.exists():
            notice(f"{place}: {fault}; made again")
        partial = folder / f".{name}.partial"
        for stale in (partial, place):
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir(parents=True)
        arrays = make()
        for key, value in arrays.items():
            held = io.BytesIO()  # numpy's own writing to a file says nothing of a full disk
            np.save(held, value, allow_pickle=False)
            write_bytes(partial / f"{key}.npy", held.getbuffer())
        sums = {f"{key}.npy": digest(partial / f"{key}.npy") for key in arrays}
        write_bytes(partial / SUMS, (json.dumps(sums, indent=1) + "\n").encode())
        partial.rename(place)
    return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in sorted(place.glob("*.npy"))}


def damage(place: Path) -> str | None:
    """What is wrong with a shard; None where it is whole."""
    if not (place / SUMS).is_file():
        return "an interrupted shard" if place.exists() else "none yet"
    try:
        sums = json.loads((place / SUMS).read_text())
        changed = [name for name, sum in sums.items() if digest(place / name) != sum]
    except (OSError, ValueError, AttributeError):
        return "a damaged shard"
    return f"{changed[0]} is damaged" if changed else None


def digest(file: Path) -> str:
    with file.open("rb") as data:
        return _digest(data)


def _digest(data: Any) -> str:
    found = hashlib.sha256()
    while part := data.read(1 << 20):
        found.update(part)
    return found.hexdigest()


def write_bytes(file: Path, data: bytes | memoryview) -> None:
    """The old file or the new one, never half of one."""
    beside = file.with_name(f".{file.name}.partial")
    with beside.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)


def taken(shards: Sequence[Arrays], index: Array) -> Arrays:
    """Rows `index` of shards of equal length laid end to end; of the arrays that all of them hold."""
    if not len(index):
        return {}
    size = len(next(iter(shards[0].values())))
    return {
        key: np.stack([shards[i // size][key][i % size] for i in index.tolist()])
        for key in set.intersection(*map(set, shards))
    }

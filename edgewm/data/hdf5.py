"""What layouts in HDF5 share: their files, how they are opened, and what h5py says of damaged ones."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EdgewmError
from .episode import Pictures, needed
from .pictures import rgb

Array = np.ndarray
ENDINGS = (".h5", ".hdf5")
PLUGINS = "hdf5plugin"  # compressions beyond HDF5's own, as stable-worldmodel's: importing it registers them


def files(path: Path) -> list[Path]:
    """The HDF5 files at `path`: itself, or those in the directory."""
    found = [path] if path.is_file() else sorted(path.iterdir())
    return [p for p in found if p.suffix in ENDINGS and p.is_file()]


@contextmanager
def open_file(file: Path) -> Iterator[Any]:
    """EdgewmError for a file that is none or is damaged, and without h5py."""
    h5py = needed("h5py", "an HDF5 file", str(file))
    if importlib.util.find_spec(PLUGINS) is not None:
        importlib.import_module(PLUGINS)
    try:
        with h5py.File(file, "r") as found:
            yield found
    except OSError as fault:
        what = f"the HDF5 file cannot be read: {fault}"
        raise EdgewmError(what, str(file), "copy or record it again") from fault


def arrays(group: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in a group, by name; numbers by themselves are none."""
    return {name: item.shape for name, item in getattr(group, "items", dict)() if getattr(item, "shape", ())}


def rows(array: Any, start: int = 0, stop: int | None = None) -> Array:
    """Rows of an array. EdgewmError where it is compressed in a way that nobody here undoes."""
    import h5py

    where, made = f"{array.file.filename}, {array.name}", array.id.get_create_plist()
    for code, _, _, name in (made.get_filter(i) for i in range(made.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            told = name.decode(errors="replace") or f"number {code}"
            raise EdgewmError(f"compressed by an HDF5 filter that is missing: {told}", where, f"pip install {PLUGINS}")
    return np.asarray(array[start:stop])


def pictures_of(file: Path, key: str, first: int = 0) -> Pictures:
    """Rows of the array `key`, counted from `first`."""

    def pictures(start: int, stop: int) -> Array:
        with open_file(file) as found:
            return rgb(rows(found[key], first + start, first + stop), f"{file}, {key}")

    return pictures

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
PLUGINS = "hdf5plugin"  # filters beyond HDF5's own: it registers them where it is imported


def files(path: Path) -> list[Path]:
    """The HDF5 files at `path`: itself, or those in the directory."""
    found = [path] if path.is_file() else sorted(path.iterdir())
    return [p for p in found if p.suffix in ENDINGS and p.is_file()]


@contextmanager
def open_file(file: Path) -> Iterator[Any]:
    """EdgewmError for a file that is none or is damaged, and without h5py."""
    h5py = needed("h5py", "an HDF5 file", str(file))
    has_plugins = importlib.util.find_spec(PLUGINS) is not None
    if has_plugins:
        importlib.import_module(PLUGINS)
    try:
        with h5py.File(file, "r") as found:
            yield found
    except OSError as fault:
        fix = "copy or record it again"
        if "filter" in str(fault) and not has_plugins:
            fix = f"it is compressed by a filter that HDF5 does not bring: pip install {PLUGINS}"
        raise EdgewmError(f"the HDF5 file cannot be read: {fault}", str(file), fix) from fault


def arrays(group: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in a group, by name."""
    return {name: item.shape for name, item in group.items() if hasattr(item, "shape")}


def pictures_of(file: Path, key: str, first: int = 0) -> Pictures:
    """Rows of the array `key`, counted from `first`."""

    def pictures(start: int, stop: int) -> Array:
        with open_file(file) as found:
            return rgb(np.asarray(found[key][first + start : first + stop]), f"{file}, {key}")

    return pictures

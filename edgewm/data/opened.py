"""Which layout a path has, the episodes that lie there, and what identifies them."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ..errors import EdgewmError
from . import layouts
from .episode import Episode, told

NAMES_A_CAMERA = "#"
BLOCK_BYTES = 1 << 22


def is_recording(data: Path) -> bool:
    """Whether `data` are episodes, not arrays that were made for a model (`judge.recorded`)."""
    path, camera = _split(data)
    return path.is_dir() or camera is not None or any(path.suffix in layout.ENDINGS for layout in _layouts())


def opened(data: Path) -> list[Episode]:
    """The episodes at `data`: a directory or a file, with `#CAMERA` after it where there are several cameras.

    EdgewmError where there is nothing, where no layout is recognised, or several, and for what a layout refuses.
    """
    path, camera = _split(data)
    _check(path)
    found = [layout for layout in _layouts() if layout.found(path)]
    if len(found) != 1:
        looked = "; ".join(layout.LOOKS_FOR for layout in (found or _layouts()))
        what = "episodes in several layouts" if found else "no recorded episodes in a layout that is read"
        there = [path.name] if path.is_file() else [p.name for p in path.iterdir()]
        raise EdgewmError(f"{what}: there are {told(there)}", str(path), f"give one of: {looked}")
    return found[0].episodes(path, camera)


def identity(data: Path) -> str:
    """SHA-256 of a file; of a directory that of all names and contents, hidden ones left out. The camera is part of it.
    EdgewmError where there is nothing."""
    path, camera = _split(data)
    _check(path)
    if path.is_file():
        found = _sha256(path)
    else:
        files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
        seen = [f"{name} {_sha256(p)}\n" for name, p in files if not any(x.startswith(".") for x in name.split("/"))]
        found = hashlib.sha256("".join(seen).encode()).hexdigest()
    return found if camera is None else f"{found}{NAMES_A_CAMERA}{camera}"


def _layouts() -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(layouts.__path__):
        yield importlib.import_module(f"{layouts.__name__}.{module.name}")


def _split(data: Path) -> tuple[Path, str | None]:
    """A path, and the camera that is named after it."""
    before, mark, camera = str(data).rpartition(NAMES_A_CAMERA)
    return (Path(before), camera) if mark and not data.exists() else (data, None)


def _check(path: Path) -> None:
    if not path.exists():
        raise EdgewmError(
            "no such file or directory", str(path), "give a directory of episodes, or a safetensors file of contexts"
        )


def _sha256(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()

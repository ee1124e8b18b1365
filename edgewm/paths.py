"""Where the data that ships with edgewm lies: inside the package (a wheel) or beside it (a checkout)."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


KERNELS = _shipped("kernels")
TARGETS = _shipped("targets")
RUNTIME = PACKAGE / "runtime"
REFERENCE = PACKAGE / "reference"

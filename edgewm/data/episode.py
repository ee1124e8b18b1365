"""One recorded episode, and what every layout refuses."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ..errors import EdgewmError

Array = np.ndarray
Pictures = Callable[[int, int], Array]
EXTRA = "pip install 'edgewm[data]'"


@dataclass(frozen=True, eq=False)
class Episode:
    """One row a control period.

    pictures(start, stop)   (stop - start, H, W, 3) uint8, read when they are asked for
    action                  (T, axes) float32, the robot's: row t is taken at picture t and leads to picture t + 1
    state                   (T + 1, K) float32, what a picture shows, or None
    rate_hz                 of the recording; 0 where it does not say
    """

    where: str
    pictures: Pictures
    action: Array
    state: Array | None = None
    rate_hz: float = 0.0


def episode(
    where: str, n: int, pictures: Pictures, action: Array, state: Array | None = None, rate_hz: float = 0.0
) -> Episode:
    """An episode of `n` pictures. `action` has as many rows, the last of which leads nowhere and is left out, or one
    fewer. EdgewmError for rows that do not fit, and for numbers that are not finite."""
    action = numbers("action", action, where)
    if n < 1 or len(action) not in (n, n - 1):
        raise EdgewmError(
            f"{n} pictures and {len(action)} actions", where,
            "record an action for each picture, or for all but the last",
        )  # fmt: skip
    action = action[: n - 1]
    state = None if state is None else numbers("state", state, where)
    for name, rows in (("action", action), ("state", state)):
        if rows is not None and not np.isfinite(rows).all():
            at = int(np.argmax(~np.isfinite(rows).all(1)))
            raise EdgewmError(f"{name} {at} is not finite", where, "leave this episode out, or record it again")
    if state is not None and len(state) != n:
        raise EdgewmError(f"{n} pictures and {len(state)} states", where, "record a state for each picture")
    return Episode(where, pictures, action, state, rate_hz)


def numbers(name: str, rows: Array, where: str) -> Array:
    """Rows (N, K) float32 of numbers (N,) or (N, ...)."""
    if rows.ndim < 1 or rows.dtype.kind not in "fiub":
        raise EdgewmError(f"{name!r} holds {rows.dtype} of shape {rows.shape}", where, "record rows of numbers")
    return rows.astype(np.float32).reshape(len(rows), -1) if rows.size else np.empty((len(rows), 0), np.float32)


def picked(camera: str | None, cameras: Iterable[str], there: Iterable[str], where: str) -> str:
    """The camera asked for, or the only one. EdgewmError, with what is there, where it is none of `cameras` or where
    there are several."""
    cameras = sorted(cameras)
    fix = "name the camera: --data PATH#CAMERA"
    if camera is not None and camera not in cameras:
        raise EdgewmError(f"no camera {camera!r}", where, f"name one of {told(cameras)}: --data PATH#CAMERA")
    if not cameras:
        raise EdgewmError(f"no pictures: there are {told(there)}", where, "record pictures (T, H, W, 3) uint8")
    if camera is None and len(cameras) > 1:
        raise EdgewmError(f"{len(cameras)} cameras: {told(cameras)}", where, fix)
    return camera or cameras[0]


def lacking(key: str, there: Iterable[str], where: str, fix: str) -> EdgewmError:
    """A key is missing; these are there."""
    return EdgewmError(f"no {key!r}: there are {told(there)}", where, fix)


def told(names: Iterable[str]) -> str:
    """Names in words, at most a dozen."""
    names = sorted(names)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"


def needed(module: str, what: str, where: str) -> ModuleType:
    """An optional module. EdgewmError, with the line that installs it, where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as fault:
        raise EdgewmError(f"{what} needs {module.partition('.')[0]}", where, EXTRA) from fault

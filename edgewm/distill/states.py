"""Where a run stands, on disk: `state-NNNNNN/`, whole by a rename, hashed; the newest two are kept.

tensors.safetensors   weights, their running average, the best so far, the optimizer's moments
facts.json            the step, what was best, seconds so far
sums.json             SHA-256 of both
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import EdgewmError
from .targets import SUMS, damage, digest, write_bytes

KEPT = 2
TENSORS, FACTS = "tensors.safetensors", "facts.json"


def keep(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """The state after `step` steps; older ones go when it is there."""
    final, partial = folder / f"state-{step:06d}", folder / ".state.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_bytes(partial / TENSORS, save({k: v.cpu().contiguous() for k, v in tensors.items()}))
    write_bytes(partial / FACTS, (json.dumps({**facts, "step": step}, indent=1) + "\n").encode())
    sums = {name: digest(partial / name) for name in (TENSORS, FACTS)}
    write_bytes(partial / SUMS, (json.dumps(sums, indent=1) + "\n").encode())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in kept(folder)[:-KEPT]:
        shutil.rmtree(old)


def kept(folder: Path) -> list[Path]:
    """Oldest first; whole or damaged."""
    return sorted(p for p in folder.glob("state-*") if p.is_dir())


def newest(folder: Path, notice: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of the newest whole state; None where there is none. A damaged one is passed over, aloud."""
    for place in reversed(kept(folder)):
        fault = damage(place)
        if fault is None:
            return load_file(place / TENSORS), json.loads((place / FACTS).read_text())
        notice(f"{place}: {fault}; the state before it is taken")
    return None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder for one run; a killed run lets go of it. EdgewmError where another is at work in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise EdgewmError(
                "another run is at work in this directory", str(folder), "wait for it, or give another -o"
            ) from fault
        yield


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """One process after another: waits until no other is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "turn").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """A disk that is full, or cannot be written, as an EdgewmError."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        raise EdgewmError(
            f"writing failed: {os.strerror(fault.errno)}", str(folder),
            "free some space and go on with --resume; the last state is whole",
        ) from fault  # fmt: skip

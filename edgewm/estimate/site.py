"""Where programs that time something run: on this machine, or on a device over ssh, without Python there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..device import connect, parse_address
from ..device.place import no_start, send
from ..environment import gather, record
from ..errors import EdgewmError, as_told
from ..target import ISAS, Target

AGAIN = "run `edgewm targets probe` again"


@dataclass(frozen=True)
class Site:
    """`run(folder, program, *words)` has `program` of `folder` run there, which may read the other files of it by name,
    and returns the JSON that it prints. `environment` is what `environment.record` says of the machine.
    """

    run: Callable[..., Any]
    cores: int
    environment: Mapping[str, Any]


@contextmanager
def site(device: str, board: Target) -> Iterator[Site]:
    """The machine at `device` (`local` or an ssh address) while the context lasts; nothing is left on it.

    Raises EdgewmError for a device that cannot be reached, lacks what is needed or is no `board`, and for a program
    that fails there.
    """
    address = parse_address(device)
    if address is None:
        yield Site(_here, len(os.sched_getaffinity(0)), record(gather()))
        return
    with connect(address) as connection:
        found = record(gather(connection.run))
        if connection.folder is None:
            fix = "free some space, or set TMPDIR there to a directory where programs may run"
            raise EdgewmError(f"no place for programs on the device: {connection.why}", str(address), fix)
        _check(board, found, str(address))
        files: dict[str, tuple[int, int]] = {}  # what lies there

        def there(folder: Path, program: str, *words: str) -> Any:
            stats = {p.name: p.stat() for p in folder.iterdir() if p.is_file()}
            marks = {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}
            lacking = [name for name, mark in marks.items() if files.get(name) != mark]
            if lacking:
                send(folder, connection, lacking)
                files.update((name, marks[name]) for name in lacking)
            return _answer(connection.run(f"./{program}", *words), f"{address} {program}")

        yield Site(there, found["cores"] or 1, found)


def _here(folder: Path, program: str, *words: str) -> Any:
    done = subprocess.run([str(folder / program), *words], cwd=folder, capture_output=True, text=True)
    return _answer(done, str(folder / program))


def _check(board: Target, found: Mapping[str, Any], where: str) -> None:
    """EdgewmError where the device's processor is not the board's."""
    if found["machine"] != board.machine:
        fix = "give the --target that it is (host: one like this machine)"
        raise EdgewmError(f"{board.name} is {board.machine}, the device is {found['machine']}", where, fix)
    levels = ISAS[board.machine]
    if levels.index(found["isa"]) > levels.index(board.isa):
        fix = f"give the --target that it is, or --isa {found['isa']}"
        raise EdgewmError(f"the device has no {board.isa}: it runs {found['isa']} kernels", where, fix)
    if found["lacks_tools"]:
        raise EdgewmError(f"the device has no {', '.join(found['lacks_tools'])}", where, "install coreutils or busybox")


def _answer(done: subprocess.CompletedProcess[str], where: str) -> Any:
    if done.returncode != 0:
        raise no_start(done.stderr, where) or as_told(done.stderr, where, done.returncode)
    try:
        return json.loads(done.stdout)
    except ValueError as fault:
        raise EdgewmError(f"its answer is no JSON: {fault}", where, AGAIN) from fault

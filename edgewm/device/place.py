"""Where a bundle is timed: this machine, or a device that gets a copy, proves it whole and right, then loses it."""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..abi import elf_machine
from ..environment import Command, gather, record
from ..errors import EdgewmError, as_told
from ..options import Progress
from .address import LOCAL, parse_address
from .ssh import Connection, connect

COPIED = ("model.ewm", "libedgewm.so", "edgewm-tick")
NO_TOOLS = "install coreutils or busybox there"
# What a loader or a shell says of a program that does not start -> what the device lacks, and what to do.
NO_START = (
    (r"loading shared libraries: (\S+): cannot open", "the device lacks the library {0}", "install it there"),
    (r"version `(\S+)' not found", "the device's C library is too old: the bundle needs {0}",
     "build for the board's own target: its file in targets/ names its C library"),
    (r"Exec format error", "the device cannot execute the runner", "build for its architecture"),
    (r"edgewm-\w+'?: No such file", "the device has no loader for the runner: it uses another C library",
     "build for its C library (targets/*.toml, triple)"),
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the bundle lies (`folder`, as that machine names it) and how commands are run there.

    `golden` says how many recorded answers the device gave bit for bit; None here, where the build recorded them.
    """

    device: str
    source: str
    folder: str
    command: Command
    stop: Callable[[], None]
    look: Callable[[], str]
    address: str | None = None
    golden: Mapping[str, Any] | None = None


def _here(bundle: Path) -> Place:
    return Place(LOCAL, "measured", str(bundle), list, lambda: None, gather)


@contextmanager
def place(bundle: Path, device: str, threads: int, progress: Progress | None = None) -> Iterator[Place]:
    """The bundle at `device` (`local` or an ssh address) while the context lasts.

    Raises EdgewmError for a bundle of another architecture, and for a device that cannot be reached, lacks what is
    needed, has no room, gets a damaged copy, does not start the runner, answers otherwise than the bundle's golden
    answers, or is lost.
    """
    machine = bundle_machine(bundle)
    address = parse_address(device)
    say = progress or (lambda stage, done: None)
    if address is None:
        check_machine(bundle, machine, platform.machine(), "this machine")
        yield _here(bundle)
        return
    with connect(address) as connection:
        say("connected", 0.0)
        found = record(gather(connection.run))
        check_device(bundle, machine, found, connection)
        say("copying", 0.0)
        send(bundle, connection)
        say("golden answers", 0.0)
        golden = verify(connection, threads)
        there = Place(
            found["board"] or found["cpu"] or found["machine"], "measured-on-device", ".", connection.command,
            connection.stop, lambda: gather(connection.run), str(address), golden,
        )  # fmt: skip
        try:
            yield there
        except EdgewmError:
            connection.check()  # what failed may have failed for want of it
            raise


def bundle_machine(bundle: Path) -> str:
    library = bundle / "libedgewm.so"
    if not library.is_file():
        raise EdgewmError("no libedgewm.so", str(bundle), "build the bundle again")
    return elf_machine(library)


def check_machine(bundle: Path, machine: str, found: str | None, whose: str) -> None:
    """EdgewmError when the library is for another architecture: an emulator is no clock."""
    if machine != found:
        raise EdgewmError(
            f"the bundle is for {machine}, {whose} is {found}", str(bundle / "libedgewm.so"),
            "build with that machine's --target (host for this one), or give --device ssh://user@host",
        )  # fmt: skip


def check_device(bundle: Path, machine: str, found: Mapping[str, Any], connection: Connection) -> None:
    """Before anything is copied: a place for it, the architecture, the tools, the room."""
    where = str(connection.address)
    if connection.folder is None:
        raise EdgewmError(
            f"no place for the bundle on the device: {connection.why}", where,
            "free some space, or set TMPDIR there to a directory where programs may run",
        )  # fmt: skip
    check_machine(bundle, machine, found["machine"], f"the device {connection.address.host}")
    if found["lacks_tools"]:
        raise EdgewmError(f"the device has no {', '.join(found['lacks_tools'])}", where, NO_TOOLS)
    needed, free = sum((bundle / name).stat().st_size for name in COPIED), found["disk_free_bytes"]
    if free is not None and free < needed:
        raise full(needed, free, connection)


def full(needed: int, free: int | None, connection: Connection) -> EdgewmError:
    has = "" if free is None else f", {free:,} are free"
    return EdgewmError(
        f"the device's disk is full: the bundle needs {needed:,} bytes{has}",
        f"{connection.address} {connection.folder}",
        "free some space there, or set TMPDIR to a larger disk",
    )  # fmt: skip


def send(bundle: Path, connection: Connection, names: Sequence[str] = COPIED) -> None:
    """Copy these files of the bundle and compare what arrived, by SHA-256 on the device."""
    here, where = {}, str(connection.address)
    for name in names:
        file = bundle / name
        here[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        with file.open("rb") as data:
            done = connection.run("sh", "-c", f"cat >{name}", stdin=data)
        if done.returncode != 0:
            if "No space left" in done.stderr:
                raise full(sum((bundle / n).stat().st_size for n in names), None, connection)
            said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise EdgewmError(f"{name} cannot be copied: {said}", where, "mend that on the device (`ulimit -f`?)")
    together = shlex.join(names)
    done = connection.run("sh", "-c", f"chmod 700 {together} && sha256sum {together}")
    if done.returncode != 0:
        raise EdgewmError("the device cannot check the copy: no sha256sum", where, NO_TOOLS)
    there = {line.split()[-1].lstrip("*"): line.split()[0] for line in done.stdout.splitlines() if line}
    for name, digest in here.items():
        if there.get(name) != digest:
            raise EdgewmError(
                f"{name} arrived damaged: SHA-256 {there.get(name, 'missing')[:16]}, sent {digest[:16]}", where,
                "copy again; if it stays so, check the device's disk and memory",
            )  # fmt: skip


def verify(connection: Connection, threads: int) -> dict[str, Any]:
    """Device parity: every recorded answer, bit for bit. An answer that is wrong is not timed: EdgewmError."""
    done = connection.run("./edgewm-tick", ".", "--golden", "--threads", str(threads))
    where = f"{connection.address} edgewm-tick --golden"
    if done.returncode == 0:
        return golden_said(done.stdout)
    if fault := no_start(done.stderr, where):
        raise fault
    if done.returncode == 1:
        first = done.stderr.strip().splitlines()[0]
        raise EdgewmError(
            f"the device gives other answers than the bundle's golden ones: {first}", where,
            "validate the bundle here; if it passes, the device computes wrongly: test its memory, lower its clocks",
        )  # fmt: skip
    raise as_told(done.stderr, where, done.returncode)


def golden_said(said: str) -> dict[str, Any]:
    """How many answers were as recorded, and whether all of them to the bit."""
    answers = [line for line in said.splitlines() if line.startswith("golden ")]
    return {"identical": all(line.endswith("bit-identical") for line in answers), "answers": len(answers)}


def no_start(said: str, where: str) -> EdgewmError | None:
    """Why a program did not start, by what a loader or a shell said; None for anything else."""
    for pattern, what, fix in NO_START:
        if match := re.search(pattern, said):
            return EdgewmError(what.format(*match.groups()), where, fix)
    return None

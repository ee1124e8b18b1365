"""A device to log in to: a real sshd of our own on a high port of this machine, with its own keys and folders."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewm.doctor import find_tool

# All that a device has, besides a login shell; `edgewm profile --device` must need no more than this.
TOOLS = ("sh", "cat", "mkdir", "rm", "chmod", "sha256sum", "env", "uname", "sed", "tr", "df", "getconf", "sleep", "dd")
RUN = Path("/run/sshd")  # an sshd started by root insists on it
START_S = 10.0


@dataclass(frozen=True)
class Device:
    """`folder` holds bin/ (its PATH), tmp/ (its TMPDIR), home/; `sshd` is the server's process id."""

    address: str
    folder: Path
    sshd: int

    @property
    def left(self) -> list[str]:
        """What lies in its temporary folder and home, and the programs that run there."""
        lying = [str(p) for name in ("tmp", "home") for p in (self.folder / name).iterdir()]
        running = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                cwd = (process / "cwd").readlink()
                if cwd.is_relative_to(self.folder / "tmp"):
                    running.append(f"{process.name} in {cwd}")
        return lying + running

    def cleared(self, seconds: float) -> list[str]:
        """`left`, once nothing is or so much time has passed."""
        ends = time.monotonic() + seconds
        while self.left and time.monotonic() < ends:
            time.sleep(0.05)
        return self.left

    def cut(self) -> None:
        """Kill what serves the open connections, as a crash would."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, _, rest = stat.read_text().partition(" (")
                name, _, rest = rest.rpartition(") ")
                if name.startswith("sshd"):
                    children.setdefault(int(rest.split()[1]), []).append(int(pid))
        doomed = list(children.get(self.sshd, []))
        for pid in doomed:
            doomed += children.get(pid, [])
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def device(
    folder: Path, *, before: str = "", tools: Mapping[str, str | None] | None = None, mounts: str = "",
    login: bool = True, known: str = "host", settings: str = "",
) -> Iterator[Device]:  # fmt: skip
    """A device that lasts as long as the context; for that time `ssh` in `folder/client` knows it.

    `before` are lines of sh run ahead of each command, `tools` replaces programs of its PATH by scripts (None: it has
    none), `mounts` are lines of sh that mount what only the device sees (root alone), `known` is the key known here.
    """
    for name in ("bin", "tmp", "home", "client"):
        (folder / name).mkdir(parents=True)
    for name in ("host", "other", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    _tools(folder / "bin", tools or {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes() if login else b"")
    key = (folder / f"{known}.pub").read_text() if known else ""
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key}" if known else "")
    script(folder / "shell", f'{before}\nexec sh -c "$SSH_ORIGINAL_COMMAND"')
    there = f'TMPDIR="{folder}/tmp" HOME="{folder}/home" PATH="{folder}/bin"'
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin yes\n"
        f"ForceCommand {folder}/shell\nSetEnv {there}\n{settings}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n  UpdateHostKeys no\n"
    )
    script(folder / "client" / "ssh", f'exec {shutil.which("ssh")} -F {folder}/ssh_config "$@"')
    if os.getuid() == 0:
        RUN.mkdir(exist_ok=True)
    command = [find_tool("sshd"), "-D", "-e", "-f", str(folder / "sshd_config")]
    if mounts:
        command = ["unshare", "-m", "sh", "-ec", f'{mounts}\nexec "$@"', "sh", *command]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _await(process, port, folder / "log")
        yield Device(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", folder, process.pid)
    finally:
        Device("", folder, process.pid).cut()
        process.terminate()
        process.wait()


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def _tools(folder: Path, replaced: Mapping[str, str | None]) -> None:
    for name in {*TOOLS, *replaced}:
        if name not in replaced:
            (folder / name).symlink_to(shutil.which(name))
        elif (text := replaced[name]) is not None:
            script(folder / name, text)


def _await(process: subprocess.Popen, port: int, log: Path) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not start: {log.read_text()}")

"""One OpenSSH connection, with the user's own configuration, keys and known hosts: one login for every command.

The login's own session is the keeper: a sh on the device that makes a folder and reads until its input ends. However
that comes about (the work is done, an interrupt, a lost connection, a killed sshd), it then ends what runs in the
folder and removes it.
"""

from __future__ import annotations

import re
import secrets
import select
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import EdgewmError
from .address import Address

CONNECT_S, ALIVE_S, ALIVE_TIMES = 10, 5, 3  # a silent device is given up after ALIVE_S * ALIVE_TIMES
ANSWER_S = 60.0  # for a login shell to start sh
END_S = 10.0  # for the keeper to remove its folder
OPTIONS = (
    "BatchMode=yes", f"ConnectTimeout={CONNECT_S}", f"ServerAliveInterval={ALIVE_S}",
    f"ServerAliveCountMax={ALIVE_TIMES}", "ControlPersist=no", "RemoteCommand=none", "RequestTTY=no",
    "ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes",
)  # fmt: skip
CLEARED = "the device removes what was copied by itself"

# -ef compares files: whatever has the folder as its working directory was started by us.
STOP = (
    'stop() { for process in /proc/[0-9]*; do [ "$process/cwd" -ef "$folder" ] && kill -9 "${process#/proc/}"; done '
    "2>/dev/null; }"
)
KEEPER = f"""{STOP}
end() {{
  trap '' HUP INT TERM PIPE EXIT
  stop
  rm -rf "$folder"
}}
""" + """export LC_ALL=C
umask 077
echo hello
for at in "${TMPDIR-}" /tmp "${HOME-}"; do
  [ -n "$at" ] || continue
  folder=$at/@NAME@
  trap end EXIT
  trap exit HUP INT TERM
  if ! said=$(mkdir "$folder" 2>&1); then
    echo "no $said"
  elif ! said=$( (printf '#!/bin/sh\\n' >"$folder/try" && chmod 700 "$folder/try") 2>&1); then
    echo "no $at: ${said:-it cannot be written}"
  elif ! "$folder/try" 2>/dev/null; then
    echo "no $at: no program may run there (mounted noexec)"
  else
    rm "$folder/try"
    break
  fi
  rm -rf "$folder"
  folder=
done
echo "folder $folder"
while read -r line; do :; done
end
echo gone
"""

# What ssh says -> what that means for the user, and what to do; {by_hand} is `ssh user@host`, {host} the name.
LOGIN = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "the device shows another host key than it did before",
     "if it was set up again: ssh-keygen -R {host}, then {by_hand} and compare the fingerprint"),
    ("Host key verification failed|No .* host key is known", "the device's host key is not known here",
     "connect once by hand, {by_hand}, compare the fingerprint and accept it"),
    ("Permission denied|Too many authentication failures", "the device does not let this user in",
     "make `ssh -o BatchMode=yes` work: ssh-copy-id, ssh-add, or another user in the address"),
    ("Could not resolve hostname", "no host of that name", "check the name, or give its IP address"),
    ("Connection refused", "nothing answers on that port", "start sshd there, or give the port: ssh://user@host:port"),
    ("timed out|No route to host|unreachable", "the device cannot be reached",
     "see that it is on and on this network"),
)  # fmt: skip


@dataclass(frozen=True)
class Connection:
    """An open connection. `folder` is where programs may run on the device, None where they may nowhere (`why`)."""

    address: Address
    socket: Path
    keeper: subprocess.Popen[bytes]
    folder: str | None
    why: str

    def command(self, words: Sequence[str], inside: bool = True) -> list[str]:
        """The words that run `words` on the device, in its folder or where it logs in."""
        # Not exec: of a program that a signal ends, ssh would only say 255. No line ends: a csh takes none in quotes.
        there = shlex.join(["exec", "sh", "-c", 'export LC_ALL=C; env "$@"; exit $?', "sh", *words])
        if self.folder and inside:
            there = f"cd {shlex.quote(self.folder)} && {there}"
        # Without its master ssh would log in anew, past the keeper: the proxy that fails prevents it.
        through = _options(f"ControlPath={self.socket}", "ControlMaster=no", "ProxyCommand=false")
        return ["ssh", *through, *self.address.words, there]

    def run(
        self, *words: str, stdin: int | IO[bytes] = subprocess.DEVNULL, inside: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `words` there and wait. EdgewmError where the connection ends; any status but ssh's own is returned."""
        done = subprocess.run(self.command(words, inside), stdin=stdin, capture_output=True)
        said = done.stderr.decode(errors="replace")
        if done.returncode == 255:
            self.check()
            raise EdgewmError(
                f"the device refuses a command: {_last(said)}", str(self.address),
                "sshd there must allow several sessions in one connection (MaxSessions)",
            )  # fmt: skip
        return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(errors="replace"), said)

    def check(self) -> None:
        """EdgewmError where the connection has ended."""
        try:
            self.keeper.wait(0.5)  # the master goes a moment after its sessions
        except subprocess.TimeoutExpired:
            return
        raise EdgewmError("the connection to the device ended", str(self.address), f"connect and try again; {CLEARED}")

    def stop(self) -> None:
        """End what runs in the folder."""
        self.run("sh", "-c", f"folder=$1; {STOP}; stop", "sh", self.folder or "", inside=False)


@contextmanager
def connect(address: Address) -> Iterator[Connection]:
    """Log in, and leave nothing behind: neither on the device nor here. EdgewmError with the reason where it fails."""
    with tempfile.TemporaryDirectory(prefix="edgewm-", dir="/tmp") as here:  # a socket's path must be short
        socket, name = Path(here) / "master", f"edgewm-{secrets.token_hex(8)}"
        with (Path(here) / "said").open("w+b") as errors:
            keeper = _start(address, socket, errors)
            try:
                _say(keeper, KEEPER.replace("@NAME@", name))
                folder, why = _greeting(keeper, address, errors)
                yield Connection(address, socket, keeper, folder, why)
                if not _end(keeper):
                    raise EdgewmError(
                        "the device did not say that it removed what was copied", str(address),
                        f"look for {folder or name} there and remove it",
                    )  # fmt: skip
            finally:
                _end(keeper)


def _options(*more: str) -> list[str]:
    return ["-T", *(word for option in (*more, *OPTIONS) for word in ("-o", option))]


def _start(address: Address, socket: Path, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    through = _options(f"ControlPath={socket}", "ControlMaster=yes")
    try:
        return subprocess.Popen(
            ["ssh", *through, *address.words, "exec sh"], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, start_new_session=True,  # an interrupt from the keyboard is not for the keeper
        )  # fmt: skip
    except OSError as fault:
        raise EdgewmError(
            f"ssh does not start: {fault.strerror}", str(address), "install: sudo apt-get install openssh-client"
        ) from fault


def _say(keeper: subprocess.Popen[bytes], text: str) -> None:
    with suppress(BrokenPipeError):  # ssh has ended; what it said tells why
        keeper.stdin.write(text.encode())


def _line(keeper: subprocess.Popen[bytes], seconds: float) -> str | None:
    """The keeper's next line; None where it has ended, or says nothing for so long."""
    ready, _, _ = select.select([keeper.stdout], [], [], seconds)
    return keeper.stdout.readline().decode(errors="replace").rstrip("\n") or None if ready else None


def _greeting(keeper: subprocess.Popen[bytes], address: Address, errors: IO[bytes]) -> tuple[str | None, str]:
    """The keeper's folder, and why there is none."""
    first = _line(keeper, ANSWER_S)
    if first is None:
        if not _ended(keeper):
            raise EdgewmError("the device's login shell does not start sh", str(address), f"try {address.by_hand} sh")
        errors.seek(0)
        raise refused(address, errors.read().decode(errors="replace"))
    if first != "hello":
        raise EdgewmError(
            f"the login shell there prints of its own accord: {first!r}", str(address),
            "let its start-up files (~/.bashrc) be silent in shells that are not interactive",
        )  # fmt: skip
    why = []
    while (line := _line(keeper, ANSWER_S)) is not None:
        kind, _, rest = line.partition(" ")
        if kind == "folder":
            return rest or None, "; ".join(why)
        why.append(rest)
    raise EdgewmError("the connection to the device ended", str(address), "connect and try again")


def refused(address: Address, said: str) -> EdgewmError:
    """What ssh said when it did not get in, as an error; its own last line where the reason is not a known one."""
    for pattern, what, fix in LOGIN:
        if re.search(pattern, said):
            return EdgewmError(what, str(address), fix.format(by_hand=address.by_hand, host=address.host))
    return EdgewmError(f"ssh failed: {_last(said)}", str(address), f"make this work first: {address.by_hand} true")


def _last(said: str) -> str:
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it says nothing")


def _ended(keeper: subprocess.Popen[bytes]) -> bool:
    try:
        keeper.wait(1.0)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(keeper: subprocess.Popen[bytes]) -> bool:
    """Let the keeper remove its folder and log out; whether it said so."""
    if keeper.stdin.closed:
        return False
    keeper.stdin.close()
    gone = False
    while (line := _line(keeper, END_S)) is not None:
        gone |= line == "gone"
    try:
        keeper.wait(END_S)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()
    keeper.stdout.close()
    return gone

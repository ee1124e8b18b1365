"""What this machine has, lacks, and how to mend it: one `Check` a fact, `ok`, `lacking` or `unknown`.

Lacking one of the checks marked `needed` makes `edgewm doctor` exit 1; lacking the others makes a build poorer or a
measurement less steady.
"""

from __future__ import annotations

import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from .errors import EdgewmError


@dataclass(frozen=True)
class Tool:
    """A program pip cannot bring: the names it goes by, a file that must lie beside it, and the line that installs it.

    `in_ci` tools must be there where tests run with `--require-tools`.
    """

    commands: tuple[str, ...]
    install: str
    files: tuple[str, ...] = ()
    in_ci: bool = True


SYSROOTS = ("/usr/aarch64-linux-gnu", "/")  # libc6-arm64-cross; an aarch64 machine itself
_LOADER = "lib/ld-linux-aarch64.so.1"

TOOLS = {
    "qemu-aarch64": Tool(
        ("qemu-aarch64", "qemu-aarch64-static"),
        "install: sudo apt-get install qemu-user libc6-arm64-cross",
        tuple(f"{root}/{_LOADER}" for root in SYSROOTS),
    ),
    "valgrind": Tool(("valgrind",), "install: sudo apt-get install valgrind", in_ci=False),
}


def find_tool(name: str) -> str | None:
    """Path of a tool of `TOOLS`, or None where it or the file it needs is missing."""
    tool = TOOLS[name]
    if tool.files and not any(Path(file).exists() for file in tool.files):
        return None
    return next((path for path in map(shutil.which, tool.commands) if path), None)


def qemu_command(cpu: str) -> list[str] | None:
    """The words before an aarch64 program that run it as `cpu` (qemu's name); None without qemu or its C library."""
    qemu = find_tool("qemu-aarch64")
    if qemu is None:
        return None
    root = next(root for root in SYSROOTS if (Path(root) / _LOADER).exists())
    return [qemu, "-cpu", cpu, "-L", root]


@dataclass(frozen=True)
class Check:
    """One line of `edgewm doctor`; `state` is ok, lacking or unknown, `fix` the line that mends it."""

    id: str
    state: str
    found: str
    fix: str = ""
    needed: bool = False


def _package(id: str, module: str, fix: str, needed: bool = False) -> Check:
    if util.find_spec(module) is None:
        return Check(id, "lacking", "not installed", fix, needed)
    return Check(id, "ok", metadata.version(id))


def _python() -> Check:
    old = sys.version_info < (3, 10)
    state = "lacking" if old else "ok"
    return Check("python", state, platform.python_version(), "install Python 3.10 or newer", needed=True)


def _ziglang() -> Check:
    return _package("ziglang", "ziglang", "pip install ziglang: the compiler that builds bundles", needed=True)


def _torch() -> Check:
    return _package("torch", "torch", "pip install 'edgewm[torch]' (CPU: see README); needed to read checkpoints")


def _qemu() -> Check:
    path = find_tool("qemu-aarch64")
    if path:
        return Check("qemu-aarch64", "ok", path)
    return Check("qemu-aarch64", "lacking", "bundles for Jetson cannot be run here", TOOLS["qemu-aarch64"].install)


def _cpu() -> Check:
    from .host import host

    target = host()
    found = f"{target.cpu.name}, {target.cpu.cores} cores, {target.isa} kernels ({' '.join(target.cpu.features)})"
    if target.isa == "scalar":
        return Check("cpu", "lacking", found, "plans are many times slower than with AVX2 (x86-64) or dotprod (Arm)")
    return Check("cpu", "ok", found)


def _memory() -> Check:
    from .host import memory_bytes

    total = memory_bytes()
    low = total < 2 << 30
    return Check("memory", "lacking" if low else "ok", f"{total / 2**30:.1f} GiB", "2 GiB or more, to capture a model")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None  # containers hide it: the check says unknown


def _clock() -> Check:
    source = _read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source is None:
        return Check("clock", "unknown", "the kernel does not say", "run outside the container")
    fast = source in ("tsc", "arch_sys_counter", "kvm-clock")
    return Check("clock", "ok" if fast else "lacking", source, "boot with clocksource=tsc: this needs a system call")


def _governor() -> Check:
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        return Check("governor", "unknown", "the kernel does not say", "on a board: sudo jetson_clocks")
    fix = "sudo cpupower frequency-set -g performance; on a board: sudo jetson_clocks"
    return Check("governor", "ok" if governor == "performance" else "lacking", governor, fix)


def _limit(id: str, which: int, enough: int, unit: str, fix: str) -> Check:
    soft, _ = resource.getrlimit(which)
    unlimited = soft == resource.RLIM_INFINITY
    good = unlimited or soft >= enough
    return Check(id, "ok" if good else "lacking", "unlimited" if unlimited else f"{soft} {unit}".strip(), fix)


def _memlock() -> Check:
    fix = "`* - memlock unlimited` in /etc/security/limits.conf: a paged-out arena misses deadlines"
    return _limit("memlock", resource.RLIMIT_MEMLOCK, 256 << 20, "bytes", fix)


def _rtprio() -> Check:
    fix = "`* - rtprio 80` in /etc/security/limits.conf: lets the control thread run under SCHED_FIFO"
    return _limit("rtprio", resource.RLIMIT_RTPRIO, 80, "", fix)


CHECKS: dict[str, Callable[[], Check]] = {
    "python": _python, "ziglang": _ziglang, "torch": _torch, "qemu-aarch64": _qemu, "cpu": _cpu, "memory": _memory,
    "clock": _clock, "governor": _governor, "memlock": _memlock, "rtprio": _rtprio,
}  # fmt: skip


def examine(skip: Iterable[str] = ()) -> list[Check]:
    """Every check but those skipped by id. EdgewmError for an id that does not exist."""
    skip = set(skip)
    for id in skip - set(CHECKS):
        raise EdgewmError(f"no check is named {id!r}", "--skip", "choose among " + ", ".join(CHECKS))
    return [check() for id, check in CHECKS.items() if id not in skip]

"""What this machine or a device has, lacks, and how to mend it: one `Check` a fact, `ok`, `lacking` or `unknown`.

Lacking one of the checks marked `needed` makes `edgewm doctor` exit 1; lacking the others makes a build poorer or a
measurement less steady. What a machine says of itself is read by `environment.record`, here and on a device alike, and
only read: nothing is changed, and a fact that cannot be had is unknown, never ok.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from .cuda.compile import INSTALL, check_tools
from .environment import UNLIMITED, gather, record
from .errors import EdgewmError
from .target import targets


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
    "sshd": Tool(("sshd", "/usr/sbin/sshd"), "install: sudo apt-get install openssh-server"),
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


# ------------------------------------------------------------------------------------------- what builds: here alone


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


def _gpu_tools() -> Check:
    fix = f"{INSTALL}: what compiles kernels for a GPU; without it --place cpu builds the CPU's"
    releases = sorted({board.gpu.toolkit for board in targets().values() if board.gpu and board.gpu.toolkit})
    try:
        for release in releases:
            check_tools(release)
    except EdgewmError as fault:
        return Check("gpu-tools", "lacking", fault.what, fix)
    return Check("gpu-tools", "ok", f"CUDA {', '.join(releases)}")


def _qemu() -> Check:
    path = find_tool("qemu-aarch64")
    if path:
        return Check("qemu-aarch64", "ok", path)
    return Check("qemu-aarch64", "lacking", "bundles for Jetson cannot be run here", TOOLS["qemu-aarch64"].install)


def _ssh() -> Check:
    path = shutil.which("ssh")
    fix = "install: sudo apt-get install openssh-client"
    return Check("ssh", "ok" if path else "lacking", path or "no device can be reached (--device)", fix)


# ------------------------------------------------------------------------------- what runs: a machine's own record

Record = Mapping[str, Any]
GIB = 1 << 30
COUNTED_CLOCKS = ("tsc", "arch_sys_counter", "kvm-clock")  # read without a system call
ENOUGH_LOCKED_BYTES, ENOUGH_PRIORITY = 256 << 20, 80
JETSON = "on a Jetson: sudo jetson_clocks"


SILENT = "the kernel does not say"


def _check(id: str, good: bool | None, found: str | None, fix: str, needed: bool = False) -> Check:
    """`good` None: not known."""
    return Check(id, {True: "ok", False: "lacking", None: "unknown"}[good], found or SILENT, fix, needed)


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _cpu(r: Record) -> Check:
    found = f"{r['board'] or r['cpu'] or r['machine']}, {r['cores']} cores, {r['isa']} kernels"
    fix = "plans are many times slower than with AVX2 (x86-64) or dotprod (Arm)"
    return _check("cpu", None if r["machine"] is None else r["isa"] != "scalar", found, fix)


def _memory(r: Record) -> Check:
    free, whole = r["memory_available_bytes"], r["memory_bytes"]
    fix = "end other programs: capturing a model takes 2 GiB, running a bundle far less"
    if free is None or whole is None:
        return _check("memory", None, None, fix)
    return _check("memory", free >= 2 * GIB, f"{_gib(free)} free of {_gib(whole)}", fix)


def _swap(r: Record) -> Check:
    swap = r["swap_bytes"]
    fix = "sudo swapoff -a, or --mlock: a paged-out arena misses deadlines"
    return _check("swap", None, None, fix) if swap is None else _check("swap", swap == 0, _gib(swap), fix)


def _disk(r: Record) -> Check:
    free = r["disk_free_bytes"]
    fix = "free some space: a bundle takes up to some hundred MiB, twice while it is replaced"
    return _check("disk", None, None, fix) if free is None else _check("disk", free >= GIB, f"{_gib(free)} free", fix)


def _clock(r: Record) -> Check:
    source = r["clock_source"]
    good = None if source is None else source in COUNTED_CLOCKS
    return _check("clock", good, source, "boot with clocksource=tsc: another needs a system call each time it is read")


def _governor(r: Record) -> Check:
    fix = f"sudo cpupower frequency-set -g performance; {JETSON}"
    governor = r["governor"]
    return _check("governor", None if governor is None else governor == "performance", governor or _hidden(r), fix)


def _hidden(r: Record) -> str:
    return "a virtual machine does not show its host's" if r["virtual"] else SILENT


def _clocks(r: Record) -> Check:
    lowest, highest = (r["clock_limits_hz"][which] for which in ("min", "max"))
    free = [name for name in highest if lowest.get(name) != highest[name]]
    fix = f"{JETSON} (it holds CPU, GPU and memory at the mode's highest); elsewhere: cpupower frequency-set -d MAX"
    if not highest:
        return _check("clocks", None, _hidden(r), fix)
    return _check("clocks", not free, f"free to change: {', '.join(free)}" if free else "held", fix)


def _power(r: Record) -> Check:
    fix = "sudo nvpmodel -m 0 (-m 2 on Orin Nano Super), and reboot where it asks; or profile in this mode on purpose"
    if r["l4t"] is None:
        return _check("power", True, "no Jetson: no power modes", "")
    if r["power_mode"] is None:
        return _check("power", None, "nvpmodel does not say", "sudo nvpmodel -q")
    name = r["power_mode"]["name"]
    return _check("power", name.startswith("MAXN"), f"{name} (JetPack {r['jetpack'] or r['l4t']})", fix)


def _heat(r: Record) -> Check:
    zones, limits = r["temperatures_c"], r["slows_down_at_c"]
    fix = "cool it: a fan, a heat sink, a lower power mode"
    if zones is None:
        return _check("heat", None, _hidden(r), fix)
    hot = [name for name, value in zones.items() if value >= limits.get(name, float("inf"))]
    zone = max(zones, key=zones.__getitem__)
    return _check("heat", not hot, f"{zone} at {zones[zone]:.0f} °C" if not hot else f"slowed by {', '.join(hot)}", fix)


def _throttle(r: Record) -> Check:
    risen = [f"{name} {n} times" for name, n in r["throttle_counts"].items() if n]
    at_work = [f"{name} at work" for name, state in r["cooling"].items() if state > 0]
    fix = "cool it, feed it with what its power mode draws, or take a lower mode; counts are since boot"
    if not r["throttle_counts"] and not r["cooling"]:
        return _check("throttle", None, _hidden(r), fix)
    return _check("throttle", not risen and not at_work, ", ".join([*risen, *at_work]) or "never since boot", fix)


def _limit(id: str, value: int | str | None, enough: int, unit: str, fix: str) -> Check:
    if value is None:
        return _check(id, None, None, fix)
    return _check(id, value == UNLIMITED or value >= enough, UNLIMITED if value == UNLIMITED else f"{value}{unit}", fix)


def _memlock(r: Record) -> Check:
    fix = "`* - memlock unlimited` in /etc/security/limits.conf and log in again: lets --mlock keep every page"
    return _limit("memlock", r["memlock_bytes"], ENOUGH_LOCKED_BYTES, " bytes", fix)


def _rtprio(r: Record) -> Check:
    fix = "`* - rtprio 80` in /etc/security/limits.conf and log in again: lets --fifo go before other work"
    return _limit("rtprio", r["rtprio"], ENOUGH_PRIORITY, "", fix)


def _rt_kernel(r: Record) -> Check:
    fix = "a kernel with PREEMPT_RT; on a Jetson its rt-kernel packages (nvidia-l4t-rt-kernel)"
    good = None if r["kernel"] is None else r["preempt_rt"]
    return _check("rt-kernel", good, r["kernel"] and f"{r['kernel']}{' PREEMPT_RT' if good else ''}", fix)


def _isolation(r: Record) -> Check:
    cores = r["isolated_cores"]
    fix = "isolcpus=LAST nohz_full=LAST on the kernel's command line, then --pin LAST: nothing else runs there"
    return _check("isolation", bool(cores), f"cores {cores}" if cores else "no core is kept free", fix)


def _load(r: Record) -> Check:
    load, fix = r["load_average"], "end other programs (top), or wait: they take the cores that plan"
    good = None if load is None else load[0] < 1
    return _check("load", good, load and f"{load[0]:.2f} busy on average", fix)


def _driver(r: Record) -> Check:
    if not r["nvidia"]:
        return _check("driver", True, "no NVIDIA GPU: plans run on the CPU", "")
    fix = "on a Jetson: sudo apt-get install nvidia-jetpack; elsewhere NVIDIA's driver"
    return _check("driver", r["driver"] is not None, r["driver"] or "a GPU, but no libcuda.so.1", fix)


# -------------------------------------------------------------------------------------------- what only a device needs


def _tools(r: Record) -> Check:
    lacks = r["lacks_tools"]
    found = f"no {', '.join(lacks)}" if lacks else "all there"
    return _check("tools", not lacks, found, "install coreutils or busybox there", needed=True)


def _libc(r: Record) -> Check:
    libc = r["libc"]
    good = None if libc is None else libc.startswith("glibc")
    return _check("libc", good, libc, "the boards of targets/ run glibc, as JetPack does: use its image")


HERE: dict[str, Callable[[], Check]] = {
    "python": _python, "ziglang": _ziglang, "torch": _torch, "gpu-tools": _gpu_tools, "qemu-aarch64": _qemu,
    "ssh": _ssh,
}  # fmt: skip
MACHINE: dict[str, Callable[[Record], Check]] = {
    "cpu": _cpu, "memory": _memory, "swap": _swap, "disk": _disk, "clock": _clock, "governor": _governor,
    "clocks": _clocks, "power": _power, "heat": _heat, "throttle": _throttle, "memlock": _memlock, "rtprio": _rtprio,
    "rt-kernel": _rt_kernel, "isolation": _isolation, "load": _load, "driver": _driver,
}  # fmt: skip
DEVICE: dict[str, Callable[[Record], Check]] = {"tools": _tools, "libc": _libc}
IDS = (*HERE, *MACHINE, "place", *DEVICE)


def examine(skip: Iterable[str] = (), device: str = "local") -> list[Check]:
    """Every check but those skipped by id, of this machine or of a device (an ssh address).

    EdgewmError for an id that does not exist, or a device that cannot be reached.
    """
    from .device import connect, parse_address

    skip = set(skip)
    for id in sorted(skip - set(IDS)):
        raise EdgewmError(f"no check is named {id!r}", "--skip", "choose among " + ", ".join(IDS))
    address = parse_address(device)
    if address is None:
        found = [check() for id, check in HERE.items() if id not in skip]
        return found + judge(record(gather()), MACHINE, skip)
    with connect(address) as connection:
        good = connection.folder is not None
        said = connection.folder.rpartition("/")[0] if good else connection.why
        fix = "free some space, or set TMPDIR there to a directory where programs may run"
        place = [] if "place" in skip else [_check("place", good, said, fix, needed=True)]
        return place + judge(record(gather(connection.run)), {**DEVICE, **MACHINE}, skip)


def judge(found: Record, checks: Mapping[str, Callable[[Record], Check]], skip: Iterable[str] = ()) -> list[Check]:
    """The checks of one machine's record (`environment.record`)."""
    return [check(found) for id, check in checks.items() if id not in skip]

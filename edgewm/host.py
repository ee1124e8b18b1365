"""The machine at hand as a `Target`: what the kernel says of its CPU, caches and memory."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from .errors import EdgewmError
from .target import X86_CPU, Cpu, Memory, Mode, Software, Target

GLIBC = (2, 31)  # the oldest that any target has: a bundle built here runs on older machines too

# What /proc/cpuinfo calls a feature -> what edgewm calls it.
X86_FEATURES = {"avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx512_vnni": "avx512vnni", "avx512_bf16": "avx512bf16"}
X86_64_V4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
ARM_FEATURES = {
    "asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve2": "sve2",
}  # fmt: skip


def _cpuinfo(text: str) -> dict[str, str]:
    """The first processor of /proc/cpuinfo, keys in lower case."""
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip().lower(): value.strip() for key, value in pairs}


def isa_and_features(machine: str, flags: set[str]) -> tuple[str, tuple[str, ...]]:
    """The widest kernels a CPU with these flags of /proc/cpuinfo runs, and its features in edgewm's words."""
    if machine == "aarch64":
        features = tuple(ours for theirs, ours in ARM_FEATURES.items() if theirs in flags)
        return ("neon" if "dotprod" in features else "scalar"), features
    features = tuple(ours for theirs, ours in X86_FEATURES.items() if theirs in flags)
    if flags >= X86_64_V4:
        features = ("avx512", *features)
    if {"avx512", "avx512vnni", "fma"} <= set(features):
        return "avx512", features
    return ("avx2" if {"avx2", "fma", "f16c"} <= set(features) else "scalar"), features


def _cache_bytes() -> dict[str, int]:
    """Size of core 0's caches: l1d_bytes, l2_bytes, l3_bytes; absent where the kernel does not say."""
    found = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = ((index / f).read_text().strip() for f in ("type", "level", "size"))
        except OSError:
            continue  # a container may hide single files; the figure is then unknown
        if kind != "Instruction" and size.endswith("K"):
            found["l1d_bytes" if level == "1" else f"l{level}_bytes"] = int(size[:-1]) * 1024
    return {key: value for key, value in found.items() if key in ("l1d_bytes", "l2_bytes", "l3_bytes")}


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def host() -> Target:
    """The machine at hand. EdgewmError where it is neither x86-64 nor aarch64 Linux."""
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in ("x86_64", "aarch64"):
        raise EdgewmError(
            f"the host is {platform.system()} on {machine}", "--target host", "build on x86-64 or aarch64 Linux"
        )
    info = _cpuinfo(Path("/proc/cpuinfo").read_text())
    isa, features = isa_and_features(machine, set(info.get("flags", info.get("features", "")).split()))
    zig_cpu = X86_CPU[isa] if machine == "x86_64" else "generic+v8_2a+dotprod+fullfp16" if isa == "neon" else "generic"
    libc, version = platform.libc_ver()
    glibc = min(GLIBC, tuple(int(v) for v in version.split(".")[:2])) if libc == "glibc" and version else None
    cores = len(os.sched_getaffinity(0))
    mhz = float(info["cpu mhz"]) if "cpu mhz" in info else None
    source = "/proc and /sys of the machine at hand"
    return Target(
        name="host",
        title=info.get("model name", machine),
        default_mode="AS_IS",
        robot=False,
        software=Software(
            triple=f"{machine}-linux-{'gnu' if glibc else 'musl'}", source=source, glibc=".".join(map(str, glibc or ()))
        ),
        cpu=Cpu(info.get("model name", machine), zig_cpu, isa, features, cores, source, **_cache_bytes()),
        memory=Memory("", memory_bytes(), source),
        mode=(Mode("AS_IS", source, cpu_cores=cores, cpu_mhz=mhz),),
    )

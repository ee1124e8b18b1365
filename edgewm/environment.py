"""What a measurement depends on beyond the bundle: machine, power mode, clocks, temperatures, limits, kernel.

One POSIX sh script (`runtime/kit.sh`) gathers the text, here, on a device over ssh, or on a board without Python; this
module reads it, whichever way it came. What a machine does not tell is None, and `degraded` lists it with the reason.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import EdgewmError
from .host import isa_and_features

SCRIPT = Path(__file__).resolve().parent / "runtime" / "kit.sh"
SAMPLE_S = 1.0  # between looks at clocks and temperatures while a bundle is timed
TOOLS = ("cat", "mkdir", "rm", "chmod", "sha256sum")  # what a device must have beside sh
LIMITS = {  # of /proc/self/limits; the bit of CapEff that lifts it (linux/capability.h)
    "memlock_bytes": ("Max locked memory", 14),
    "rtprio": ("Max realtime priority", 23),
}
UNLIMITED = "unlimited"
# JetPack by L4T release: jetson-stats 7.2.2 and anduril/jetpack-nixos.
JETPACK = {
    "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2", "35.5.0": "5.1.3", "35.6.0": "5.1.4", "35.6.1": "5.1.5",
    "35.6.2": "5.1.5", "35.6.3": "5.1.5", "35.6.4": "5.1.6", "35.6.5": "5.1.7", "36.3.0": "6.0", "36.4.0": "6.1",
    "36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5.0": "6.2.2", "36.5.2": "6.2.3", "38.2.0": "7.0",
    "38.2.1": "7.0", "38.2.2": "7.0", "38.4.0": "7.1", "39.2.0": "7.2", "39.2.1": "7.2.1", "39.2.2": "7.2.2",
}  # fmt: skip

CPU, DEVFREQ, THERMAL = "/sys/devices/system/cpu/", "/sys/class/devfreq/", "/sys/class/thermal/"
EMC = "/sys/kernel/debug/bpmp/debug/clk/emc/rate"  # memory clock of a Jetson
COUNTERS = re.compile(r"/(core_throttle_count|oc\d+_event_cnt)$")

Command = Callable[[Sequence[str]], list[str]]  # words as a place runs them -> words that make it do so from here
Facts = Mapping[str, str]  # section of the text -> what it holds, without the last newline
Span = list[int]  # [lowest, highest]


# ------------------------------------------------------------------------------------------------------------ the text


def run_here(*words: str, stdin: IO[bytes]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, stdin=stdin, capture_output=True, text=True, errors="replace")


def gather(run: Callable[..., subprocess.CompletedProcess[str]] = run_here) -> str:
    """The text of this machine, or of the one that `run` runs words on. EdgewmError where no sh runs there."""
    with SCRIPT.open("rb") as script:
        done = run("sh", "-s", "environment", stdin=script)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise EdgewmError(f"the machine cannot be looked at: {said[-1]}", "sh", "it needs a POSIX sh with sed and tr")
    return done.stdout


@contextmanager
def watching(command: Command = list) -> Iterator[Callable[[], str]]:
    """Looks at what changes, once each `SAMPLE_S`; the function given returns the text so far."""
    with tempfile.TemporaryFile() as kept, SCRIPT.open("rb") as script:
        words = command(["sh", "-s", "watch", repr(SAMPLE_S)])
        process = subprocess.Popen(words, stdin=script, stdout=kept, stderr=subprocess.DEVNULL)

        def so_far() -> str:
            kept.seek(0)
            return kept.read().decode(errors="replace")

        try:
            yield so_far
        finally:
            process.kill()
            process.wait()


def sections(text: str) -> dict[str, str]:
    """`== NAME` and the lines below it, as a mapping."""
    found = re.split(r"^== (.*)\n", text, flags=re.MULTILINE)
    return {name: body.rstrip("\n") for name, body in zip(found[1::2], found[2::2], strict=True)}


# ---------------------------------------------------------------------------------------------------------- the record


def record(text: str) -> dict[str, Any]:
    """The environment as JSON values; an empty list is what there is none of, None what could not be had."""
    facts = sections(text)
    cpu, memory, status = (_pairs(facts.get(f"/proc/{name}", "")) for name in ("cpuinfo", "meminfo", "self/status"))
    flags = set((cpu.get("flags") or cpu.get("features", "")).split())
    l4t = _l4t(facts.get("/etc/nv_tegra_release", ""))
    found = {
        "machine": facts.get("$ uname -m"),
        "board": facts.get("/proc/device-tree/model", "").strip() or None,
        "board_ids": facts.get("/proc/device-tree/compatible", "").split(),
        "cpu": cpu.get("model name"),
        "isa": isa_and_features(facts.get("$ uname -m", ""), flags)[0],
        "cores": len(numbers(status.get("cpus_allowed_list", ""))) or None,
        "isolated_cores": numbers(facts.get(f"{CPU}isolated", "")),
        "virtual": "hypervisor" in flags,
        "kernel": facts.get("/proc/sys/kernel/osrelease"),
        "preempt_rt": facts.get("/sys/kernel/realtime") == "1" or "PREEMPT_RT" in facts.get("/proc/version", ""),
        "os": facts.get("/etc/os-release", "").partition("=")[2].strip('"') or None,
        "libc": facts.get("$ getconf GNU_LIBC_VERSION"),
        "l4t": l4t,
        "jetpack": JETPACK.get(l4t or ""),
        "power_mode": _power_mode(facts.get("$ nvpmodel -q", "")),
        "governor": ", ".join(sorted({v for k, v in facts.items() if k.endswith("/scaling_governor")})) or None,
        "clocks_hz": clocks(facts) or None,
        "clock_limits_hz": {what: clocks(facts, what) for what in ("min", "max")},
        "clock_source": facts.get("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "temperatures_c": temperatures(facts) or None,
        "slows_down_at_c": trips(facts),
        "throttle_counts": counts(facts),
        "cooling": cooling(facts),
        "memory_bytes": _kibibytes(memory.get("memtotal", "").split()),
        "memory_available_bytes": _kibibytes(memory.get("memavailable", "").split()),
        "swap_bytes": _kibibytes(memory.get("swaptotal", "").split()),
        "disk_free_bytes": _kibibytes(" ".join(facts.get("$ df -Pk .", "").splitlines()[-1:]).split()[3:4]),
        **{key: _limit(facts, line, bit, status) for key, (line, bit) in LIMITS.items()},
        "rt_runtime_us": _integer(facts.get("/proc/sys/kernel/sched_rt_runtime_us")),
        "nvidia": "nvidia" in facts,
        "driver": facts.get("libcuda"),
        "load_average": _load(facts),
        "lacks_tools": sorted(set(TOOLS) - {Path(p).name for p in facts.get("tools", "").split()}),
    }  # fmt: skip
    return {**found, "degraded": [{"what": what, "why": why} for what, why in missing(found, facts).items()]}


def missing(found: Mapping[str, Any], facts: Facts) -> dict[str, str]:
    """What could not be had, and why; what this kind of machine has not got at all is not missed."""
    hidden = "a virtual machine does not show its host's" if found["virtual"] else "the kernel does not say"
    wanted = {"governor": hidden, "clocks_hz": hidden, "temperatures_c": hidden, "clock_source": hidden}
    wanted |= dict.fromkeys(("cores", "memory_available_bytes", "load_average"), "/proc cannot be read")
    lacking = {what: why for what, why in wanted.items() if found[what] is None}
    if not counts(facts) and not any("/cooling_device" in name for name in facts):
        lacking["throttle"] = hidden
    seen = clocks(facts)
    shows_gpu = any("gpu" in name or "gv11b" in name for name in seen)
    if found["l4t"] is None:
        if found["nvidia"] and not shows_gpu:
            why = f"no GPU in {DEVFREQ}, and its driver is not asked"
            lacking |= dict.fromkeys(("GPU clock", "GPU temperature", "GPU throttle"), why)
        return lacking
    if found["power_mode"] is None:
        said = facts.get("! nvpmodel -q", facts.get("$ nvpmodel -q", "nvpmodel is not installed"))
        lacking["power_mode"] = (said.splitlines() or ["nvpmodel says nothing"])[-1]
    if found["jetpack"] is None:
        lacking["jetpack"] = f"L4T {found['l4t']} is not in the list"
    if "emc" not in seen:
        lacking["memory clock"] = f"{EMC} is for root alone"
    if not shows_gpu:
        lacking["GPU clock"] = f"no GPU in {DEVFREQ}"
    return lacking


def measured(before: str, during: str, after: str, refused: Sequence[str] = ()) -> dict[str, Any]:
    """The record of a measurement: the machine as it was, what changed while it ran, and all that could not be had.

    `refused` is what the kernel refused the runner (`scheduler.refused` of edgewm-tick). `throttled` names the counters
    that rose and the cooling devices that were at work.
    """
    found = record(before)
    first, last = sections(before), sections(after)
    samples = [sections(part) for part in during.split("== sample\n")[1:]]
    spans = {"before": [first], "during": samples, "after": [last]}
    hot = [temperatures(facts) for facts in (first, *samples, last)]
    rose = {name for name, n in counts(last).items() if n > counts(first).get(name, n)}
    worked = {name for facts in (*samples, last) for name, state in cooling(facts).items() if state > 0}
    degraded = [*found["degraded"], *({"what": w, "why": why} for w, _, why in (r.partition(": ") for r in refused))]
    if not samples:
        degraded.append({"what": "clocks during the run", "why": "no sample was taken"})
    of_clock = lambda name: {  # noqa: E731
        when: span(value for facts in all for value in clocks(facts).get(name, ())) for when, all in spans.items()
    }  # fmt: skip
    return {
        **found,
        "clocks_hz": {name: of_clock(name) for name in clocks(first)} or None,
        "temperatures_c": {
            zone: {"before": value, "highest": max(each[zone] for each in hot if zone in each)}
            for zone, value in hot[0].items()
        } or None,
        "throttled": sorted(rose | worked),
        "over_time": over_time(samples),
        "samples": len(samples),
        "load_average_after": _load(last),
        "degraded": degraded,
    }  # fmt: skip


def over_time(samples: Sequence[Facts], most: int = 60) -> list[dict[str, Any]]:
    """Seconds, temperatures and the highest clocks of up to `most` of the samples; empty where none tells either."""
    at = [float(facts.get("/proc/uptime", "0").split()[0]) for facts in samples]
    found = [
        {
            "s": round(s - at[0], 1), "temperatures_c": temperatures(facts),
            "clocks_hz": {name: span[1] for name, span in clocks(facts).items()},
        }
        for s, facts in list(zip(at, samples, strict=True))[:: max(1, -(-len(samples) // most))]
    ]  # fmt: skip
    return found if any(each["temperatures_c"] or each["clocks_hz"] for each in found) else []


# ----------------------------------------------------------------------------------------------------------- its parts


def clocks(facts: Facts, which: str = "cur") -> dict[str, Span]:
    """Hz: `cpu` over all cores, `emc` (memory), every devfreq device by name; `which` is cur, min or max."""
    cores = span(int(v) * 1000 for k, v in facts.items() if k.endswith(f"/scaling_{which}_freq") and v.isdigit())
    found = {} if cores is None else {"cpu": cores}
    for path, value in facts.items():
        if path.startswith(DEVFREQ) and path.endswith(f"/{which}_freq") and value.isdigit():
            found[path.split("/")[-2]] = [int(value)] * 2
    if which == "cur" and facts.get(EMC, "").isdigit():
        found["emc"] = [int(facts[EMC])] * 2
    return found


def temperatures(facts: Facts) -> dict[str, float]:
    """Degrees Celsius by zone; a sensor that is off reads nothing, or below zero."""
    return {name: value / 1000 for name, value in _readings(facts, "thermal_zone", "temp").items() if value > 0}


def trips(facts: Facts) -> dict[str, float]:
    """Degrees Celsius at which a zone makes the machine slow down, by zone."""
    found: dict[str, float] = {}
    for name, where in _devices(facts, "thermal_zone").items():
        for path, kind in facts.items():
            if path.startswith(f"{where}/trip_point_") and path.endswith("_type") and kind == "passive":
                at = _integer(facts.get(path.removesuffix("type") + "temp"))
                if at is not None and at > 0:
                    found[name] = min(at / 1000, found.get(name, float("inf")))
    return found


def cooling(facts: Facts) -> dict[str, int]:
    """State of each cooling device, 0 at rest. Fans cool without slowing anything down, so they are left out."""
    return {name: v for name, v in _readings(facts, "cooling_device", "cur_state").items() if "fan" not in name.lower()}


def counts(facts: Facts) -> dict[str, int]:
    """Throttling and over-current events since boot, by the last two parts of the file."""
    found = {"/".join(path.split("/")[-2:]): value for path, value in facts.items() if COUNTERS.search(path)}
    return {name: int(value) for name, value in found.items() if value.isdigit()}


def numbers(text: str) -> list[int]:
    """CPUs of a kernel list such as `0-3,6`."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def span(values: Iterable[int]) -> Span | None:
    values = list(values)
    return [min(values), max(values)] if values else None


def _devices(facts: Facts, device: str) -> dict[str, str]:
    """Folder of every such device of /sys/class/thermal, by its type (and its name, where types repeat)."""
    pattern = re.compile(rf"({THERMAL}({device}\d+))/type$")
    found = {match[2]: (match[1], kind) for path, kind in facts.items() if (match := pattern.match(path))}
    kinds = [kind for _, kind in found.values()]
    return {f"{kind} {name}" if kinds.count(kind) > 1 else kind: folder for name, (folder, kind) in found.items()}


def _readings(facts: Facts, device: str, file: str) -> dict[str, int]:
    read = {name: _integer(facts.get(f"{folder}/{file}")) for name, folder in _devices(facts, device).items()}
    return {name: value for name, value in read.items() if value is not None}


def _pairs(text: str) -> dict[str, str]:
    """`Key : value` lines, keys in lower case."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip().lower(): value.strip() for key, value in pairs}


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


def _kibibytes(words: Sequence[str]) -> int | None:
    """Bytes of `123 kB`, given as words."""
    found = _integer(words[0]) if words else None
    return None if found is None else found * 1024


def _load(facts: Facts) -> list[float] | None:
    return [float(value) for value in facts.get("/proc/loadavg", "").split()[:3]] or None


def _limit(facts: Facts, line: str, bit: int, status: Mapping[str, str]) -> int | str | None:
    """The soft limit; a process with the capability has none."""
    if int(status.get("capeff", "0"), 16) >> bit & 1:
        return UNLIMITED
    match = re.search(rf"^{line}\s+(\S+)", facts.get("/proc/self/limits", ""), re.MULTILINE)
    return None if match is None else UNLIMITED if match[1] == UNLIMITED else int(match[1])


def _l4t(text: str) -> str | None:
    """`# R36 (release), REVISION: 4.3, ...` -> 36.4.3"""
    match = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match[1]}.{match[2]}" if match else None


def _power_mode(text: str) -> dict[str, Any] | None:
    """`NV Power Mode: MODE_30W` and its number in the next line."""
    match = re.search(r"NV Power Mode: *(?:MODE_)?(\S+)\s+(\d+)", text)
    return {"name": match[1], "number": int(match[2])} if match else None

"""The doctor on made-up machines: each lacks one thing, and exactly that is found, with the line that mends it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import test_environment as made_up
from test_environment import CPU, THERMAL, orin

from edgewm import doctor
from edgewm.environment import gather, record
from edgewm.errors import EdgewmError

# The made-up Orin with everything that a measurement wants.
WELL = {
    f"{CPU}cpu0/cpufreq/scaling_governor": "performance\n", f"{CPU}cpu1/cpufreq/scaling_governor": "performance\n",
    f"{CPU}cpu0/cpufreq/scaling_min_freq": "1728000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "612000000\n",
    "proc/meminfo": "MemTotal: 64349952 kB\nMemAvailable: 60000000 kB\nSwapTotal: 0 kB\n",
    "proc/self/limits": "Max locked memory  unlimited unlimited bytes\nMax realtime priority  95 95\n",
}  # fmt: skip
MAXN = "#!/bin/sh\necho 'NV Power Mode: MAXN'\necho 0\n"
FULL = "#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available Capacity Mounted on\\n/dev/x 9 9 1000 90%% /\\n'\n"
LIMITS = "Max locked memory  {} {} bytes\nMax realtime priority  {} {}\n"


def examined(root: Path, files: Mapping[str, str | None], programs: Mapping[str, str]) -> dict[str, doctor.Check]:
    found = record(orin(root, {**WELL, **files}, {"nvpmodel": MAXN, **programs}))
    return {check.id: check for check in doctor.judge(found, {**doctor.MACHINE, **doctor.DEVICE})}


def wrong(checks: Mapping[str, doctor.Check]) -> dict[str, str]:
    return {id: check.state for id, check in checks.items() if check.state != "ok"}


def test_nothing_is_lacking(tmp_path: Path) -> None:
    assert wrong(examined(tmp_path, {}, {})) == {}


GPU = "sys/class/devfreq/17000000.gpu/"
LACKING: dict[str, tuple[dict[str, Any], dict[str, str], str, str]] = {
    "governor": ({f"{CPU}cpu1/cpufreq/scaling_governor": "schedutil\n"}, {}, "governor", "performance, schedutil"),
    "cpu clock free": ({f"{CPU}cpu0/cpufreq/scaling_min_freq": "729600\n"}, {}, "clocks", "free to change: cpu"),
    "gpu clock free": ({f"{GPU}min_freq": "306000000\n"}, {}, "clocks", "free to change: 17000000.gpu"),
    "boot mode": ({}, {"nvpmodel": made_up.NVPMODEL}, "power", "30W (JetPack 6.2)"),
    "hot": ({f"{THERMAL}thermal_zone0/temp": "99500\n"}, {}, "heat", "slowed by cpu-thermal"),
    "slowed": ({f"{THERMAL}cooling_device0/cur_state": "3\n"}, {}, "throttle", "cpufreq-cpu0 at work"),
    "over current": ({"sys/class/hwmon/hwmon1/oc1_event_cnt": "7\n"}, {}, "throttle", "oc1_event_cnt 7 times"),
    "throttled": ({f"{CPU}cpu0/thermal_throttle/core_throttle_count": "2\n"}, {}, "throttle", "core_throttle_count 2"),
    "memlock": ({"proc/self/limits": LIMITS.format(65536, 65536, 95, 95)}, {}, "memlock", "65536 bytes"),
    "rtprio": ({"proc/self/limits": LIMITS.format("unlimited", "unlimited", 0, 0)}, {}, "rtprio", "0"),
    "rtprio low": ({"proc/self/limits": LIMITS.format("unlimited", "unlimited", 79, 79)}, {}, "rtprio", "79"),
    "no rt kernel": ({"proc/version": "Linux version 5.15.148-tegra #1 SMP PREEMPT\n"}, {}, "rt-kernel", "5.15.148"),
    "no isolation": ({f"{CPU}isolated": "\n"}, {}, "isolation", "no core is kept free"),
    "busy": ({"proc/loadavg": "3.10 2.00 1.00 1/500 99\n"}, {}, "load", "3.10 busy"),
    "swap": ({"proc/meminfo": "MemTotal: 9999999 kB\nMemAvailable: 9999999 kB\nSwapTotal: 1048576 kB\n"}, {}, "swap",
             "1.0 GiB"),
    "no memory": ({"proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 524288 kB\nSwapTotal: 0 kB\n"}, {}, "memory",
                  "0.5 GiB free of 8.0 GiB"),
    "full disk": ({}, {"df": FULL}, "disk", "0.0 GiB free"),
    "slow clock": ({"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n"}, {}, "clock", "hpet"),
    "old cpu": ({"proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8\nFeatures\t: fp asimd\n\n"}, {}, "cpu", "scalar"),
    "no driver": ({"usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1": None}, {}, "driver", "no libcuda.so.1"),
    "musl": ({}, {"getconf": "#!/bin/sh\necho musl 1.2\n"}, "libc", "musl 1.2"),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_exactly_what_is_lacking_is_found(tmp_path: Path, name: str) -> None:
    files, programs, id, found = LACKING[name]
    checks = examined(tmp_path, files, programs)
    assert wrong(checks) == {id: "lacking"}
    assert found in checks[id].found and checks[id].fix


HIDDEN: dict[str, tuple[dict[str, Any], dict[str, str], set[str]]] = {
    "governor": ({f"{CPU}cpu{n}/cpufreq/scaling_governor": None for n in (0, 1)}, {}, {"governor"}),
    "heat": ({f"{THERMAL}thermal_zone0/temp": None}, {}, {"heat"}),
    "throttle": ({f"{THERMAL}cooling_device{n}/cur_state": None for n in (0, 1)}
                 | {"sys/class/hwmon/hwmon1/oc1_event_cnt": None}, {}, {"throttle"}),
    "clock": ({"sys/devices/system/clocksource/clocksource0/current_clocksource": None}, {}, {"clock"}),
    "limits": ({"proc/self/limits": None}, {}, {"memlock", "rtprio"}),
    "memory": ({"proc/meminfo": None}, {}, {"memory", "swap"}),
    "load": ({"proc/loadavg": None}, {}, {"load"}),
    "mode": ({}, {"nvpmodel": "#!/bin/sh\nexit 1\n"}, {"power"}),
    "kernel": ({"proc/sys/kernel/osrelease": None}, {}, {"rt-kernel"}),
    "disk": ({}, {"df": "#!/bin/sh\nexit 1\n"}, {"disk"}),
    "libc": ({}, {"getconf": "#!/bin/sh\nexit 1\n"}, {"libc"}),
    "machine": ({}, {"uname": "#!/bin/sh\nexit 1\n"}, {"cpu"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_hidden_is_unknown_and_never_well(tmp_path: Path, name: str) -> None:
    files, programs, ids = HIDDEN[name]
    assert wrong(examined(tmp_path, files, programs)) == dict.fromkeys(ids, "unknown")


def test_capabilities_lift_limits(tmp_path: Path) -> None:
    able = {"proc/self/status": "CapEff:\t0000000000804000\nCpus_allowed_list:\t0\n"}
    checks = examined(tmp_path, {"proc/self/limits": LIMITS.format(0, 0, 0, 0), **able}, {})
    assert wrong(checks) == {} and checks["rtprio"].found == checks["memlock"].found == "unlimited"


def test_what_mends_is_said_for_everything_that_is_wrong() -> None:
    checks = doctor.judge(record(""), {**doctor.MACHINE, **doctor.DEVICE})
    assert {check.id for check in checks} == {*doctor.MACHINE, *doctor.DEVICE}
    assert all(check.fix for check in checks if check.state != "ok")
    assert not {check.id for check in checks if check.state == "ok"} - {"driver", "power"}  # no board of that kind


def test_here_the_workshop_is_looked_at_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ids = {check.id for check in doctor.examine(skip=["torch", "load"])}
    assert ids == {*doctor.HERE, *doctor.MACHINE} - {"torch", "load"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._ssh().state == "lacking" and "openssh-client" in doctor._ssh().fix


def test_looking_changes_nothing(tmp_path: Path) -> None:
    orin(tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
    orin_again = made_up.text_of(tmp_path, {})
    assert orin_again and before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before}


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(EdgewmError, match="no check is named 'luck'") as fault:
        doctor.examine(["luck"])
    assert all(id in fault.value.fix for id in doctor.IDS)


def test_no_shell_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = made_up.subprocess.CompletedProcess([], 127, "", "sh: not found\n")
    with pytest.raises(EdgewmError, match="the machine cannot be looked at: sh: not found"):
        gather(lambda *words, stdin: failing)

"""What a machine says of itself: gathered by one script, here or on a made-up machine, and read by one parser."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgewm import environment
from edgewm.environment import SCRIPT, gather, measured, record, watching

CPU, THERMAL = "sys/devices/system/cpu/", "sys/class/thermal/"
# A Jetson AGX Orin in its boot mode, as files under a root.
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nFeatures\t: fp asimd asimddp\n\n"
                    "processor\t: 1\nFeatures\t: fp\n",
    "proc/meminfo": "MemTotal:   64349952 kB\nMemFree: 1 kB\nMemAvailable:   60000000 kB\nSwapTotal:    32174976 kB\n",
    "proc/self/limits": "Limit     Soft Limit  Hard Limit  Units\nMax locked memory         65536     65536     bytes\n"
                        "Max realtime priority     0         0\n",
    "proc/self/status": "Name:\tsh\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-5,7\n",
    "proc/sys/kernel/osrelease": "5.15.148-rt-tegra\n",
    "proc/version": "Linux version 5.15.148-rt-tegra (buildbrain) #1 SMP PREEMPT_RT Tue\n",
    "proc/sys/kernel/sched_rt_runtime_us": "950000\n",
    "proc/loadavg": "0.10 0.20 0.30 1/500 1234\n",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "arch_sys_counter\n",
    f"{CPU}isolated": "6-7\n",
    f"{CPU}cpu0/cpufreq/scaling_governor": "schedutil\n", f"{CPU}cpu1/cpufreq/scaling_governor": "schedutil\n",
    f"{CPU}cpu0/cpufreq/scaling_cur_freq": "729600\n", f"{CPU}cpu1/cpufreq/scaling_cur_freq": "1728000\n",
    f"{CPU}cpu0/cpufreq/scaling_min_freq": "729600\n", f"{CPU}cpu0/cpufreq/scaling_max_freq": "1728000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "612000000\n",
    "sys/kernel/debug/bpmp/debug/clk/emc/rate": "3199000000\n",
    f"{THERMAL}thermal_zone0/type": "cpu-thermal\n", f"{THERMAL}thermal_zone0/temp": "47250\n",
    f"{THERMAL}thermal_zone0/trip_point_0_type": "passive\n", f"{THERMAL}thermal_zone0/trip_point_0_temp": "99000\n",
    f"{THERMAL}thermal_zone0/trip_point_1_type": "critical\n", f"{THERMAL}thermal_zone0/trip_point_1_temp": "104500\n",
    f"{THERMAL}thermal_zone1/type": "cv0-thermal\n", f"{THERMAL}thermal_zone1/temp": "-256000\n",
    f"{THERMAL}cooling_device0/type": "cpufreq-cpu0\n", f"{THERMAL}cooling_device0/cur_state": "0\n",
    f"{THERMAL}cooling_device1/type": "pwm-fan\n", f"{THERMAL}cooling_device1/cur_state": "2\n",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "0\n",
    "dev/nvhost-gpu": "",
    "usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1": "",
}  # fmt: skip
NVPMODEL = "#!/bin/sh\necho 'NV Power Mode: MODE_30W'\necho 2\n"


def tree(root: Path, files: Mapping[str, str | None]) -> Path:
    for name, text in files.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text.encode())
    return root


def text_of(root: Path, programs: Mapping[str, str], *shell: str) -> str:
    """What the script says of a machine with these files and programs."""
    tree(root, {f"bin/{name}": text for name, text in programs.items()})
    for name in programs:
        (root / "bin" / name).chmod(0o755)
    path = {"PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    words = [*(shell or ["sh"]), SCRIPT, "environment", root]
    done = subprocess.run(words, capture_output=True, text=True, env=path, check=True)
    assert done.stderr == ""
    return done.stdout


def orin(
    root: Path, changed: Mapping[str, str | None] | None = None, programs: Mapping[str, str] | None = None, *shell: str
) -> str:
    own = {"uname": "#!/bin/sh\necho aarch64\n", "nvpmodel": NVPMODEL, "getconf": "#!/bin/sh\necho glibc 2.35\n"}
    return text_of(tree(root, {**ORIN, **(changed or {})}), {**own, **(programs or {})}, *shell)


@pytest.mark.parametrize("shell", [("sh",), ("bash", "--posix")], ids=" ".join)
def test_an_orin(tmp_path: Path, shell: tuple[str, ...]) -> None:
    found = record(orin(tmp_path, {}, {}, *shell))
    assert found["machine"] == "aarch64" and found["isa"] == "neon"
    assert found["board"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert "nvidia,p3701-0005" in found["board_ids"]
    assert (found["l4t"], found["jetpack"], found["os"]) == ("36.4.3", "6.2", "Ubuntu 22.04.5 LTS")
    assert found["power_mode"] == {"name": "30W", "number": 2} and found["preempt_rt"]
    assert found["cores"] == 7 and found["isolated_cores"] == [6, 7] and found["governor"] == "schedutil"
    assert found["clocks_hz"] == {
        "cpu": [729_600_000, 1_728_000_000], "17000000.gpu": [306_000_000] * 2, "emc": [3_199_000_000] * 2,
    }  # fmt: skip
    assert found["clock_limits_hz"]["max"] == {"cpu": [1_728_000_000] * 2, "17000000.gpu": [612_000_000] * 2}
    assert found["temperatures_c"] == {"cpu-thermal": 47.25} and found["slows_down_at_c"] == {"cpu-thermal": 99.0}
    assert found["cooling"] == {"cpufreq-cpu0": 0} and found["throttle_counts"] == {"hwmon1/oc1_event_cnt": 0}
    assert found["memory_bytes"] == 64349952 * 1024 and found["swap_bytes"] == 32174976 * 1024
    assert (found["memlock_bytes"], found["rtprio"], found["rt_runtime_us"]) == (65536, 0, 950000)
    assert found["libc"] == "glibc 2.35" and found["driver"].endswith("libcuda.so.1") and found["nvidia"]
    assert found["disk_free_bytes"] > 0 and found["lacks_tools"] == [] and found["degraded"] == []


@pytest.mark.parametrize(
    ("changed", "programs", "what", "why"),
    [
        ({f"{CPU}cpu{n}/cpufreq/scaling_governor": None for n in (0, 1)}, {}, "governor", "the kernel does not say"),
        ({"sys/class/devfreq/17000000.gpu/cur_freq": None}, {}, "GPU clock", "no GPU in /sys/class/devfreq/"),
        ({"sys/kernel/debug/bpmp/debug/clk/emc/rate": None}, {}, "memory clock", "is for root alone"),
        ({}, {"nvpmodel": "#!/bin/sh\necho 'NVPM ERROR: no' >&2\nexit 1\n"}, "power_mode", "NVPM ERROR: no"),
        ({}, {"nvpmodel": "#!/bin/sh\n"}, "power_mode", "nvpmodel says nothing"),
        ({"etc/nv_tegra_release": "# R99 (release), REVISION: 1.0, GCID: 1\n"}, {}, "jetpack", "L4T 99.1.0 is not in"),
        ({f"{THERMAL}thermal_zone0/temp": None}, {}, "temperatures_c", "the kernel does not say"),
        ({"proc/loadavg": None}, {}, "load_average", "/proc cannot be read"),
    ],
)
def test_what_cannot_be_had_is_told_with_its_reason(
    tmp_path: Path, changed: dict, programs: dict, what: str, why: str
) -> None:
    found = record(orin(tmp_path, changed, programs))["degraded"]
    assert [each["what"] for each in found] == [what] and why in found[0]["why"]


def test_a_machine_that_says_nothing_is_not_taken_to_be_well(tmp_path: Path) -> None:
    found = record(text_of(tmp_path, {}))
    missed = {each["what"] for each in found["degraded"]}
    assert {"governor", "clocks_hz", "temperatures_c", "throttle", "clock_source", "cores", "load_average"} <= missed
    assert record("")["machine"] is None


def test_what_a_gpu_beside_no_jetson_does_is_missed(tmp_path: Path) -> None:
    gpu = {"GPU clock", "GPU temperature", "GPU throttle"}
    for name, files in (("with", {"proc/driver/nvidia/version": "NVRM version\n"}), ("without", {})):
        found = record(text_of(tree(tmp_path / name, files), {}))
        assert found["nvidia"] == (name == "with")
        assert {each["what"] for each in found["degraded"]} & gpu == (gpu if found["nvidia"] else set())


def test_this_machine() -> None:
    found = record(gather())
    assert found["machine"] == platform.machine() and found["cores"] == len(os.sched_getaffinity(0))
    assert found["kernel"] == platform.release() and found["memory_bytes"] > 0 and found["lacks_tools"] == []


def samples(*parts: str) -> str:
    return "".join(f"== sample\n{part}" for part in parts)


def clock(khz: int, gpu: int, heat: int, fan: int = 0, slowed: int = 0, events: int = 0) -> str:
    lines = {
        f"/{CPU}cpu0/cpufreq/scaling_cur_freq": khz, "/sys/class/devfreq/17000000.gpu/cur_freq": gpu,
        f"/{THERMAL}thermal_zone0/type": "cpu-thermal", f"/{THERMAL}thermal_zone0/temp": heat,
        f"/{THERMAL}cooling_device0/type": "cpufreq-cpu0", f"/{THERMAL}cooling_device0/cur_state": slowed,
        f"/{THERMAL}cooling_device1/type": "pwm-fan", f"/{THERMAL}cooling_device1/cur_state": fan,
        "/sys/class/hwmon/hwmon1/oc1_event_cnt": events,
    }  # fmt: skip
    return "".join(f"== {name}\n{value}\n" for name, value in lines.items())


def test_clocks_and_heat_before_during_and_after() -> None:
    during = samples(clock(2_000_000, 900, 50_000, fan=1), clock(1_500_000, 1_300, 71_000, fan=3))
    found = measured(clock(800_000, 300, 40_000), during, clock(900_000, 301, 60_000))
    assert found["clocks_hz"]["cpu"] == {
        "before": [800_000_000] * 2, "during": [1_500_000_000, 2_000_000_000], "after": [900_000_000] * 2,
    }  # fmt: skip
    assert found["clocks_hz"]["17000000.gpu"]["during"] == [900, 1300]
    assert found["temperatures_c"] == {"cpu-thermal": {"before": 40.0, "highest": 71.0}}
    assert found["throttled"] == [] and found["samples"] == 2


def test_heat_and_clocks_over_a_long_run() -> None:
    parts = [f"{clock(2_000_000 - i, 900, 50_000 + 100 * i)}== /proc/uptime\n{1000 + i}.5 9\n" for i in range(200)]
    seen = measured(clock(1, 1, 1), samples(*parts), clock(1, 1, 1))["over_time"]
    assert len(seen) == 50 and [each["s"] for each in seen[:3]] == [0, 4, 8]  # every fourth of 200: 60 at most
    assert seen[1]["temperatures_c"] == {"cpu-thermal": 50.4} and seen[1]["clocks_hz"]["cpu"] == 1_999_996_000
    assert measured("", samples("", ""), "")["over_time"] == []


@pytest.mark.parametrize(
    ("during", "after", "seen"),
    [
        (clock(1, 1, 1), clock(1, 1, 1, events=1), ["hwmon1/oc1_event_cnt"]),
        (clock(1, 1, 1, slowed=2), clock(1, 1, 1), ["cpufreq-cpu0"]),
        (clock(1, 1, 1, fan=5), clock(1, 1, 1, fan=5), []),
    ],
)
def test_a_planted_throttle_is_seen_and_a_fan_is_none(during: str, after: str, seen: list[str]) -> None:
    assert measured(clock(1, 1, 1), samples(during), after)["throttled"] == seen


def test_what_was_refused_and_a_run_without_samples_are_degraded() -> None:
    found = measured("", "", "", ["--fifo 80: Operation not permitted", "--mlock: Cannot allocate memory"])["degraded"]
    assert {"what": "--fifo 80", "why": "Operation not permitted"} in found
    assert {"what": "clocks during the run", "why": "no sample was taken"} in found


def test_watching_samples_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "SAMPLE_S", 0.05)
    ends = time.monotonic() + 20
    with watching() as seen:
        while seen().count("== sample") < 3 and time.monotonic() < ends:
            time.sleep(0.01)
        parts = seen().split("== sample\n")[1:]
    assert len(parts) >= 3 and "/proc/uptime" in environment.sections(parts[0])


def test_zones_of_one_type_are_told_apart() -> None:
    zone = "== /{0}thermal_zone{1}/type\nsoc\n== /{0}thermal_zone{1}/temp\n4{1}000\n"
    text = "".join(zone.format(THERMAL, n) for n in (0, 1))
    assert record(text)["temperatures_c"] == {"soc thermal_zone0": 40.0, "soc thermal_zone1": 41.0}

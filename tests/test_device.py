"""Measuring over ssh, against a real sshd on this machine: what comes back, what is refused, what is left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import loopback
import pytest
import runtime_fixture as fixture

from edgewm import cli, doctor, toolchain
from edgewm import format as ewm
from edgewm import profile as clock
from edgewm.console import profile_table
from edgewm.device import address, ssh
from edgewm.device.place import COPIED
from edgewm.environment import SCRIPT
from edgewm.errors import EdgewmError
from edgewm.program import Planner

RATE_HZ = 500.0
Start = Callable[..., loopback.Device]
needs_sshd = pytest.mark.needs("sshd")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a device (see `loopback.device`) that the user's `ssh` knows until the test ends."""
    with ExitStack() as devices:

        def begin(**options) -> loopback.Device:
            made = devices.enter_context(loopback.device(tmp_path / "device", **options))
            monkeypatch.setenv("PATH", f"{made.folder}/client{os.pathsep}{os.environ['PATH']}")
            return made

        yield begin


def with_manifest(folder: Path, source: Path | None = None, golden: bytes | None = None) -> Path:
    """The fixture's bundle as `edgewm build` would leave it; `golden` replaces its recorded answers."""
    shutil.copytree(source or fixture.bundle(), folder)
    manifest = {
        "target": "host", "mode": "AS_IS", "precision": "fp32", "rate_hz": RATE_HZ, "threads": 1, "ports": [],
        "planner": dataclasses.asdict(Planner()),
    }  # fmt: skip
    sections = {**fixture.tables(), "manifest": json.dumps(manifest).encode()}
    sections |= {} if golden is None else {"golden": golden}
    (folder / "model.ewm").write_bytes(ewm.pack(sections, fixture.TARGET, fixture.KERNELS_SHA256))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return with_manifest(tmp_path / "bundle")


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def refusal(bundle: Path, device: loopback.Device) -> EdgewmError:
    """What `profile` says; the bundle here must be untouched and nothing be left there."""
    before = contents(bundle)
    with pytest.raises(EdgewmError) as fault:
        clock.profile(bundle, ticks=50, device=device.address)
    assert contents(bundle) == before
    assert device.left == []
    return fault.value


# -------------------------------------------------------------------------------------------------------- it works


@needs_sshd
def test_a_bundle_is_verified_timed_and_gone(start: Start, bundle: Path) -> None:
    there = start()
    found = clock.profile(bundle, ticks=100, device=there.address)
    assert found["golden"] == {"identical": True, "answers": 2}
    assert (found["source"], found["address"]) == ("measured-on-device", there.address)
    assert found["device"] != "local" and found["peak_fraction"] is None
    assert found["ticks"] == 100 and sum(n for _, n in found["histograms"]["act_late_ms"]) == 100
    assert found["environment"]["machine"] == platform.machine() and found["environment"]["samples"] >= 1
    assert {d["what"] for d in found["environment"]["degraded"]} <= {
        "governor", "clocks_hz", "temperatures_c", "throttle", "clock_source",
    }  # fmt: skip
    assert json.loads((bundle / "report.json").read_text())["profile"]["address"] == there.address
    assert there.left == []
    found["environment"] |= {"throttled": ["soc"], "degraded": [{"what": "GPU clock", "why": "no GPU"}]}
    shown = "\n".join(map(str, profile_table(found).renderables))
    assert "golden answers: all 2 the same, bit for bit, on the device" in shown
    assert "slowed down while it ran: soc" in shown and "not had: GPU clock (no GPU)" in shown


@needs_sshd
def test_load_on_the_device_ends_with_it(start: Start, bundle: Path) -> None:
    there = start()
    found = clock.profile(bundle, ticks=50, device=there.address, load="cpu")
    assert found["loaded"]["load"] == "cpu" and there.left == []


@needs_sshd
def test_doctor_looks_at_the_device(start: Start, capsys: pytest.CaptureFixture) -> None:
    there = start()
    assert cli.execute(["doctor", "--device", there.address, "--skip", "libc", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    checks = {check["id"]: check for check in found["checks"]}
    assert found["device"] == there.address
    assert set(checks) == {"place", "tools", *doctor.MACHINE}
    assert checks["place"]["found"] == f"{there.folder}/tmp" and checks["tools"]["state"] == "ok"
    assert there.left == []


@needs_sshd
def test_doctor_finds_what_a_device_lacks(start: Start, capsys: pytest.CaptureFixture) -> None:
    there = start(tools={"sha256sum": None})
    assert cli.execute(["doctor", "--device", there.address, "--json", "-"]) == 1
    checks = {check["id"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["tools"]["found"] == "no sha256sum" and checks["tools"]["fix"]


# exec of a foreign program goes to the emulator, as binfmt_misc would have it.
BINFMT = r"""
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT int execve(const char* path, char* const* argv, char* const* envp) {
  unsigned char head[20] = {};
  int file = open(path, O_RDONLY);
  bool whole = file >= 0 && read(file, head, sizeof(head)) == sizeof(head);
  if (whole && memcmp(head, "\177ELF", 4) == 0 && head[18] == 0xb7) {
    char* words[64] = {WORDS, const_cast<char*>(path)};
    int n = COUNT + 1;
    for (int i = 1; argv[i] != nullptr && n < 63; i++) words[n++] = argv[i];
    unsetenv("LD_PRELOAD");
    return int(syscall(SYS_execve, words[0], words, environ));
  }
  return int(syscall(SYS_execve, path, argv, envp));
}
EXPORT int execvp(const char* name, char* const* argv) {
  if (strchr(name, '/') != nullptr) return execve(name, argv, environ);
  return reinterpret_cast<int (*)(const char*, char* const*)>(dlsym(RTLD_NEXT, "execvp"))(name, argv);
}
"""


@needs_sshd
@pytest.mark.needs("qemu-aarch64")
@pytest.mark.skipif(platform.machine() == "aarch64", reason="aarch64 is not foreign here")
def test_a_foreign_device(tmp_path: Path, start: Start, qemu_orin: list[str]) -> None:
    flags = ("-target", "aarch64-linux-gnu.2.31")
    (tmp_path / "made").mkdir()
    bundle = with_manifest(tmp_path / "bundle", fixture.write(tmp_path / "made", flags=flags))
    with pytest.raises(EdgewmError, match="the bundle is for aarch64, this machine is x86_64"):
        clock.profile(bundle)
    words = ", ".join(f"const_cast<char*>({json.dumps(word)})" for word in qemu_orin)
    text = BINFMT.replace("WORDS", words).replace("COUNT", str(len(qemu_orin)))
    preload = toolchain.compile_library({"binfmt.cc": text}, [], flags=fixture.FLAGS, out=tmp_path / "binfmt.so")
    there = start(before=f"export LD_PRELOAD={preload}", tools={"uname": "echo aarch64"})
    found = clock.profile(bundle, ticks=50, rate_hz=50.0, device=there.address)
    assert found["golden"] == {"identical": True, "answers": 2} and found["environment"]["machine"] == "aarch64"
    assert found["ticks"] == 50 and there.left == []


# ------------------------------------------------------------------------------------------------------ it is refused


@needs_sshd
@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"login": False}, "the device does not let this user in", "ssh-copy-id"),
        ({"known": ""}, "the device's host key is not known here", "compare the fingerprint and accept it"),
        ({"known": "other"}, "the device shows another host key than it did before", "ssh-keygen -R 127.0.0.1"),
        ({"before": "echo Welcome"}, "the login shell there prints of its own accord: 'Welcome'", "bashrc"),
        ({"before": "exit 1"}, "ssh failed: it says nothing", " true"),
        ({"tools": {"sha256sum": None}}, "the device has no sha256sum", "install coreutils"),
        ({"tools": {"sha256sum": "echo $(printf %064d 1) $1"}}, "model.ewm arrived damaged: SHA-256 000", "copy again"),
        ({"tools": {"uname": "echo riscv64"}}, "the device 127.0.0.1 is riscv64", "that machine's --target"),
        ({"tools": {"df": "echo x; echo /dev/x 9 9 1 90% /"}}, "the device's disk is full: the bundle needs", "free"),
        ({"before": "ulimit -f 8"}, ".ewm cannot be copied: ", "ulimit -f"),
        ({"settings": "MaxSessions 1"}, "the device refuses a command: ", "MaxSessions"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_refusal_has_its_own_words(start: Start, bundle: Path, options: dict, what: str, fix: str) -> None:
    fault = refusal(bundle, start(**options))
    assert what in fault.what and fix in fault.fix and fault.where


@needs_sshd
def test_nobody_answers(start: Start, bundle: Path) -> None:
    there = start()
    fault = refusal(bundle, dataclasses.replace(there, address="ssh://127.0.0.1:1"))
    assert fault.what == "nothing answers on that port"


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("ssh: Could not resolve hostname orin: Name or service not known", "no host of that name"),
        ("ssh: connect to host orin port 22: Connection timed out", "the device cannot be reached"),
        ("ssh: connect to host orin port 22: No route to host", "the device cannot be reached"),
        ("/home/me/.ssh/config: line 3: Bad configuration option: prot", "ssh failed: /home/me/.ssh/config: line 3"),
    ],
)
def test_what_ssh_says_is_told(said: str, what: str) -> None:
    assert ssh.refused(address.Address("orin"), f"a banner\n{said}\n").what.startswith(what)


def test_no_ssh_at_all(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgewmError, match="ssh does not start") as fault:
        clock.profile(bundle, device="ssh://robot")
    assert "openssh-client" in fault.value.fix


def patched(bundle: Path, old: bytes, new: bytes) -> Path:
    """The runner with a name inside it replaced by one as long."""
    runner = bundle / "edgewm-tick"
    data = runner.read_bytes()
    assert old in data and len(old) == len(new)
    runner.write_bytes(data.replace(old, new))
    return bundle


@needs_sshd
def test_a_library_is_missing(start: Start, bundle: Path) -> None:
    fault = refusal(patched(bundle, b"libpthread.so.0", b"libnothere.so.0"), start())
    assert fault.what == "the device lacks the library libnothere.so.0"


@needs_sshd
def test_there_is_no_loader(start: Start, bundle: Path) -> None:
    fault = refusal(patched(bundle, b"/ld-linux", b"/ld-nowhe"), start())
    assert fault.what == "the device has no loader for the runner: it uses another C library"


@needs_sshd
@pytest.mark.parametrize(
    ("runner", "what"),
    [
        ("echo \"./edgewm-tick: version \\`GLIBC_2.38' not found\" >&2; exit 1", "C library is too old: the bundle"),
        ("printf 'error: no AVX2\\n  where: cpu\\n  fix: --isa scalar\\n' >&2; exit 2", "no AVX2"),
        ("kill -4 $$", "edgewm-tick ended with status 132"),
    ],
)
def test_the_runner_does_not_run(start: Start, bundle: Path, runner: str, what: str) -> None:
    loopback.script(bundle / "edgewm-tick", runner)
    assert what in refusal(bundle, start()).what


@needs_sshd
def test_a_device_that_computes_otherwise_is_not_timed(start: Start, tmp_path: Path) -> None:
    wrong = bytearray(fixture.golden())
    wrong[-1] ^= 1
    fault = refusal(with_manifest(tmp_path / "bundle", golden=bytes(wrong)), start())
    assert fault.what.startswith("the device gives other answers than the bundle's golden ones: golden 1: entry plan")


def may_mount() -> bool:
    return os.getuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not may_mount(), reason="only root may mount: run as root to test other disks")


@needs_sshd
@needs_mounts
@pytest.mark.parametrize("honest", [True, False])
def test_a_full_disk(start: Start, bundle: Path, tmp_path: Path, honest: bool) -> None:
    """Seen before the copy where df says so, else while copying."""
    tools = {} if honest else {"df": "echo x; echo /dev/x 9 9 999999 90% /"}
    there = start(mounts=f"mount -t tmpfs -o size=64k tmpfs {tmp_path}/device/tmp", tools=tools)
    fault = refusal(bundle, there)
    assert fault.what.startswith("the device's disk is full: the bundle needs ")
    assert ("are free" in fault.what) == honest


@needs_sshd
@needs_mounts
def test_no_place_where_programs_may_run(
    start: Start, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "device"
    noexec = [f"mount -t tmpfs -o noexec tmpfs {folder}/{name}" for name in ("tmp", "home")]
    whole = ["mount --rbind /tmp /tmp", "mount -o remount,bind,noexec /tmp"]
    there = start(mounts="\n".join([f"mount --bind {folder} {folder}", *noexec, *whole]))
    fault = refusal(bundle, there)
    assert fault.what.startswith("no place for the bundle on the device: ") and "TMPDIR" in fault.fix
    for place in (f"{folder}/tmp", "/tmp", f"{folder}/home"):
        assert f"{place}: no program may run there (mounted noexec)" in fault.what
    assert cli.execute(["doctor", "--device", there.address, "--json", "-"]) == 1
    checks = {check["id"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["place"]["state"] == "lacking" and "noexec" in checks["place"]["found"]


@needs_sshd
@needs_mounts
def test_the_next_place_is_taken(start: Start, tmp_path: Path) -> None:
    there = start(mounts=f"mount -t tmpfs -o noexec tmpfs {tmp_path}/device/tmp")
    with ssh.connect(address.parse_address(there.address)) as connection:
        assert connection.folder.startswith("/tmp/edgewm-") and "noexec" in connection.why
        assert Path(connection.folder).is_dir()
    assert not Path(connection.folder).exists()


# ---------------------------------------------------------------------------------------------- it ends before its time


@needs_sshd
def test_a_connection_that_dies_is_told_and_leaves_nothing(
    start: Start, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    there, before, cut = start(), contents(bundle), []

    def progress(stage: str, done: float) -> None:
        if stage == "ticking" and not cut:
            cut.append(there.left)
            there.cut()

    monkeypatch.setattr("edgewm.console.progress_bar", lambda: nullcontext(progress))
    assert cli.execute(["profile", str(bundle), "--ticks", "100000", "--device", there.address]) == 2
    first, where, fix = capsys.readouterr().err.splitlines()
    assert first == "error: the connection to the device ended" and there.address in where and "removes" in fix
    assert cut[0] and contents(bundle) == before  # there was something to leave
    assert there.cleared(10) == []


@needs_sshd
@pytest.mark.parametrize("stage", ["connected", "copying", "golden answers", "ticking"])
def test_an_interrupt_leaves_nothing(start: Start, bundle: Path, stage: str) -> None:
    there, before = start(), contents(bundle)

    def interrupt(reached: str, done: float) -> None:
        if reached == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clock.profile(bundle, ticks=100_000, device=there.address, progress=interrupt)
    assert there.left == [] and contents(bundle) == before


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ssh://robot", ["--", "robot"]),
        ("ssh://me@robot.local:2222", ["-p", "2222", "--", "me@robot.local"]),
        ("ssh://me@[fe80::1%eth0]:22", ["-p", "22", "--", "me@fe80::1%eth0"]),
        ("ssh://me@10.0.0.7/", ["--", "me@10.0.0.7"]),
    ],
)
def test_addresses(text: str, words: list[str]) -> None:
    found = address.parse_address(text)
    assert found.words == words and str(found) == text.rstrip("/")


@pytest.mark.parametrize(
    "text", ["", "robot", "me@robot", "http://robot", "ssh://", "ssh://me@", "ssh://me:secret@robot", "ssh://-oProxyCommand=x",
             "ssh://me@-x", "ssh://robot:0", "ssh://robot:70000", "ssh://robot/path", "ssh://-l@robot", "ssh://a b"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(EdgewmError, match="is no device"):
        address.parse_address(text)


def test_local_is_here() -> None:
    assert address.parse_address("local") is None


def test_what_is_copied_is_what_a_build_makes() -> None:
    assert set(COPIED) <= {p.name for p in fixture.bundle().iterdir()} and SCRIPT.is_file()

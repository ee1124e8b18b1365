"""What a GPU charges, by a driver that stands in: its clock goes on by a fixed time a node, so figures are known."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import cuda_standin
import loopback
import pytest
import runtime_fixture as fixture
from cuda_cpu import Device

from edgewm import headroom, profile
from edgewm.abi import elf_machine
from edgewm.cuda import compile as compile_module
from edgewm.cuda.source import HEADERS
from edgewm.doctor import qemu_command
from edgewm.errors import EdgewmError
from edgewm.estimate import calibration, gpu_probe, machine, verb
from edgewm.estimate.gpu_probe import ceilings_text, measure_gpu
from edgewm.estimate.site import site
from edgewm.estimate.table import gpu_lines
from edgewm.estimate.verb import estimate
from edgewm.target import resolve

NODE_NS, PROCESSORS, THREADS = 2000, 1, 256
ROUNDS, STREAM_BYTES, NODES = 2, 1 << 17, 4


@functools.cache
def kernels() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="edgewm-ceilings-"))
    Device(ceilings_text(), folder, watched=False)
    return folder / "kernels.so"


def ptx(text: str, headers: Mapping[str, str]) -> str:
    names = re.findall(r"^EWM_(?:KERNEL|THREAD)\((\w+),", text + headers["round.cu"], re.M)
    return ".version 8.5\n.target sm_87\n" + "".join(f".visible .entry {name}()\n" for name in names)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """The environment in which a program finds the stand-in; `driver(**machine)` sets it for programs here."""
    monkeypatch.setattr(gpu_probe, "compile_ptx", ptx)
    for name, value in (("RUNS", 3), ("ROUNDS", ROUNDS), ("STREAM_BYTES", STREAM_BYTES), ("NODES", NODES)):
        monkeypatch.setattr(gpu_probe, name, value)

    def begin(**more: object) -> dict[str, str]:
        machine = {"aborts": 1, "processors": PROCESSORS, "node_ns": NODE_NS, "clock_step": 1, **more}
        there = {
            "LD_LIBRARY_PATH": str(cuda_standin.folder()), "EWM_STANDIN": cuda_standin.settings(kernels(), **machine),
        }  # fmt: skip
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        return there

    return begin


def measured(folder: Path, device: str = "local") -> dict:
    board = resolve("host")[0]
    with site(device, board) as there:
        return measure_gpu(board, there, folder / "gpu")


def check(found: dict) -> None:
    """Figures of a GPU each of whose nodes takes NODE_NS: a stamp follows what is timed."""
    us = [(nodes + 1) * NODE_NS / 1e3 for nodes in range(NODES + 1)]
    blocks, streamed = 8 * PROCESSORS, 4 * STREAM_BYTES
    warps = blocks * THREADS // 32 * ROUNDS
    wanted = {
        "fp32_gflops": blocks * THREADS * ROUNDS * 32 * 2 / us[1] / 1e3,
        "bf16_gflops": warps * 8 * (2 * 16 * 8 * 16) / us[1] / 1e3,
        "int8_gops": warps * 8 * (2 * 16 * 8 * 32) / us[1] / 1e3,
        "dram_gbps": streamed / us[4] / 1e3, "copy_gbps": 2 * streamed / us[4] / 1e3,
        "graph_node_us": NODE_NS / 1e3, "barrier_us": us[1] / NODES,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-3)  # a clock's read takes 1 ns
    assert 0 < found["launch_us"] <= found["answer_us"] and found["answer_napping_us"] > 20
    assert (found["name"], found["sm"], found["driver"], found["processors"]) == ("Stand-in 0", 87, 12060, PROCESSORS)
    assert len(gpu_lines(found)) == len(machine.OF_GPU)


def test_its_kernels_compile() -> None:
    text = compile_module.compile_ptx(ceilings_text(), HEADERS)
    names = re.findall(r"^\.visible \.entry (\w+)\(", text, re.M)
    assert {f"ceiling_{name}" for name in ("f32", "bf16", "i8", "read", "copy", "nothing", "meet")} <= {*names}
    assert "ewm_stamp" in names


def test_what_is_measured_is_what_the_clock_says(driver: Callable, tmp_path: Path) -> None:
    driver()
    check(measured(tmp_path))


@pytest.mark.needs("sshd")
def test_a_device_is_measured_without_python(driver: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = driver()
    for name in there:
        monkeypatch.delenv(name)
    before = "".join(f"export {name}='{value}'\n" for name, value in there.items())
    with ExitStack() as devices:
        device = devices.enter_context(loopback.device(tmp_path / "device", before=before))
        monkeypatch.setenv("PATH", f"{device.folder}/client{os.pathsep}{os.environ['PATH']}")
        check(measured(tmp_path, device.address))
        assert device.left == []


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        ({"devices": 0}, "init: CUDA_ERROR_NO_DEVICE"),
        ({"fail": "cuInit:803:1"}, "init: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ({"fail": "cuMemAlloc_v2:2:2"}, "allocate: CUDA_ERROR_OUT_OF_MEMORY"),
        ({"fail": "cuEventQuery:700:5"}, "query: CUDA_ERROR_ILLEGAL_ADDRESS"),
        ({"sm": 72}, "load_module: CUDA_ERROR_NO_BINARY_FOR_GPU"),
        ({"driver": 12020}, "load_module: CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
        ({"node_ns": 0, "clock_step": 0, "fail": "cuGraphLaunch:9999:1"}, "launch_graph: an error without a name"),
    ],
)
def test_a_driver_that_refuses_says_why(driver: Callable, tmp_path: Path, machine: dict, why: str) -> None:
    driver(**machine)
    found = measured(tmp_path)
    assert found["why"] == why and "dram_gbps" not in found
    (line,) = gpu_lines(found)
    assert line.endswith(f"not measured: {why}")


def test_a_driver_without_a_function_is_told_by_its_name(
    driver: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver()
    cuda_standin.library(tmp_path, [*fixture.FLAGS, "-DSTANDIN_WITHOUT_UPLOAD"])
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert measured(tmp_path) == {"why": "no such function in libcuda.so.1: cuGraphUpload"}


def test_blocks_that_cannot_meet_are_not_timed(driver: Callable, tmp_path: Path) -> None:
    driver(cooperative=0)
    found = measured(tmp_path)
    assert found["barrier_us"] is None and len(gpu_lines(found)) == len(machine.OF_GPU) - 1


def test_a_machine_without_a_driver_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = measured(tmp_path)
    assert found.keys() == {"why"} and found["why"].startswith("no NVIDIA driver: libcuda.so.1: cannot open")
    assert gpu_lines(found)[0].startswith("no GPU: not measured: no NVIDIA driver")


@pytest.mark.needs("qemu-aarch64")
def test_its_program_runs_on_a_board(tmp_path: Path) -> None:
    """Orin's own, under an emulator that has no driver."""
    program = gpu_probe.compiled(resolve("orin")[0], tmp_path / "gpu")
    before = qemu_command("cortex-a76")
    assert before is not None and elf_machine(program) == "aarch64"
    done = subprocess.run([*before, program, "look"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["why"].startswith("no NVIDIA driver: libcuda.so.1: cannot open")
    done = subprocess.run([*before, program, "measure"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: not so")


def test_without_the_compiler_it_says_what_to_install(
    driver: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver()
    lacking = compile_module.Tool("no-such-package", "1.0", "none")
    monkeypatch.setattr(compile_module, "FRONT_END", lacking)
    monkeypatch.setattr(gpu_probe, "compile_ptx", compile_module.compile_ptx)
    found = measured(tmp_path)
    assert found["name"] == "Stand-in 0" and "no-such-package" in found["why"] and "pip install" in found["why"]


# ------------------------------------------------------------------------------------------------ what rests on it

GPU = {
    "name": "a GPU", "sm": 87, "driver": 12060, "processors": 16, "fp32_gflops": 5000.0, "bf16_gflops": 40_000.0,
    "int8_gops": 60_000.0, "dram_gbps": 150.0, "copy_gbps": 140.0, "graph_node_us": 9.0, "barrier_us": 1.5,
    "launch_us": 5.0, "answer_us": 20.0, "answer_napping_us": 60.0,
}  # fmt: skip


def facts(board: str, tmp_path: Path, **gpu: object) -> Path:
    """A file of facts whose GPU is as given; the rest is what ships as a reference."""
    target = resolve(board, "MAXN")[0]
    found = dict(machine.reference()["facts"][machine.ALIKE.get(target.isa, target.isa)])
    found["machine"] = {**found["machine"], "isa": target.isa}
    file = tmp_path / "facts.json"
    file.write_text(json.dumps({**found, "schema_version": 2, "gpu": {**GPU, **gpu}}))
    return file


def test_estimates_rest_on_what_was_measured(tmp_path: Path) -> None:
    board, mode = resolve("orin", "MAXN")
    gpu = machine.gpu_of(board, mode, facts("orin", tmp_path))
    plain, made = calibration.coefficients(board, mode), calibration.coefficients(board, mode, probed=gpu)
    assert (made.node_us, made.node_mhz, made.barrier_us) == (9.0, mode.gpu_mhz, 1.5)
    assert made.stream == pytest.approx(150.0 / mode.dram_gbps) and made.tensor == plain.tensor
    own = calibration.of_own_kernels(made, board, mode, gpu)
    peak = 4096 * 16 * 1300.5e6
    assert own.tensor["int8"] == pytest.approx(plain.tensor["int8"] * 60_000e9 / peak)
    assert own.tensor["fp8"] == plain.tensor["fp8"] and calibration.of_own_kernels(made, board, mode, None) == made
    assert "measured by `edgewm targets probe` on a GPU" in own.sources[-1]


def test_the_verb_takes_measured_facts_of_a_gpu(tmp_path: Path) -> None:
    asked = {"subject": "shape:product,m=1,n=4096,k=4096", "target": "orin", "mode": "MAXN"}
    plain, made = estimate(**asked), estimate(**asked, measured=facts("orin", tmp_path))
    assert made["plan_ms"]["point"] > plain["plan_ms"]["point"]
    assert any("on a GPU" in source for source in made["provenance"])
    with pytest.raises(EdgewmError, match=r"the facts hold nothing of .*: a GPU is sm_90") as caught:
        estimate(**asked, measured=facts("orin", tmp_path, sm=90))
    assert "edgewm targets probe --target jetson_agx_orin_64gb --out FILE" in caught.value.fix
    with pytest.raises(EdgewmError, match=r"the facts hold nothing of .*: no NVIDIA driver"):
        estimate(**asked, measured=facts("orin", tmp_path, why="no NVIDIA driver"))


def test_figures_stand_beside_the_boards_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = resolve("orin", "MAXN")[0]
    monkeypatch.setattr(machine, "kept_files", lambda board: {"MAXN": facts("orin", tmp_path)})
    rows = {row.what: row.value for row in machine.with_measured(board).measured if row.mode == "MAXN"}
    assert rows["GPU: a node of a replayed graph"] == 9.0 and rows["GPU: reads out of memory"] == 150.0
    assert machine.gpu_of(board, board.mode_named("MAXN"))["name"] == "a GPU"
    assert machine.gpu_of(board, board.mode_named("30W")) is None


def test_a_profile_holds_a_gpus_plan_to_what_was_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = SimpleNamespace(raw={"runs": {"plan": "gpu"}}, target="orin", mode="MAXN")
    local, device = SimpleNamespace(device="local"), SimpleNamespace(device="ssh")
    monkeypatch.setattr(machine, "kept_files", lambda board: {})
    assert profile.peaks_of(manifest, local, 2) is None
    monkeypatch.setattr(machine, "kept_files", lambda board: {"MAXN": facts("orin", tmp_path)})
    wanted = {name: GPU[name] for name in ("fp32_gflops", "bf16_gflops", "int8_gops", "dram_gbps")}
    assert profile.peaks_of(manifest, local, 2) == wanted and profile.peaks_of(manifest, device, 2) is None
    asked = []

    def estimated(bundle: str, **options: object) -> dict:
        asked.append(options)
        return {"plan_ms": {"point": 2.0 if options["mode"] == "MAXN" else 3.0}, "provenance": ["facts"]}

    monkeypatch.setattr(verb, "estimate", estimated)
    changes = headroom._estimates(manifest, tmp_path, 1)
    assert [change for change, _, _ in changes] == [f"mode {name} instead of MAXN" for name in ("15W", "30W", "50W")]
    assert all("threads" not in options for options in asked)

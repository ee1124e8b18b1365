"""A model's bundle for a GPU, whole: through libedgewm.so and a driver that stands in, its kernels as fibers.

What runs is the very CUDA source that is compiled for boards; only the module's machine code is not looked at here.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import cuda_standin
import numpy as np
import pytest
import runtime_fixture as fixture
import tiny
from cuda_cpu import Device

from edgewm import build as build_module
from edgewm import bundle as bundle_module
from edgewm import format as ewm
from edgewm.binding import Runtime
from edgewm.build import build
from edgewm.bundle import compile_bundle, compile_gpu_bundle, pack
from edgewm.cuda.compile import Compiled, KernelFacts
from edgewm.cuda.schedule import calls_of, launched, schedule_gpu
from edgewm.cuda.source import cuda_text
from edgewm.emit import emit, schedule_program
from edgewm.errors import EdgewmError
from edgewm.estimate import gpu as gpu_model
from edgewm.estimate.placed import choose, estimate_gpu, kernel_of, parts_of
from edgewm.golden import allowed_difference, example_inputs, record
from edgewm.host import host
from edgewm.manifest import read_manifest
from edgewm.passes import LOWERING, run
from edgewm.place import place_program
from edgewm.program import Program
from edgewm.quantize import recipe_of
from edgewm.rounding import BF16_STEP, UNIT_ROUNDOFF, rounding_steps
from edgewm.target import Mode, Target, resolve

EXACT_PRECISIONS = ("fp32", "w8a8")  # nothing in bf16, whose sums tensor cores order otherwise


@functools.cache
def program(precision: str) -> Program:
    """The plan alone; no product of it in bf16 where the precision is one of EXACT_PRECISIONS."""
    exact = tiny.exact()
    recipe = {name: "w8a8" if held == "bf16" and precision == "w8a8" else held
              for name, held in recipe_of(exact, precision).items()}  # fmt: skip
    lowered = run(exact.with_(recipe=recipe), LOWERING)
    return lowered.with_(entries={"plan": lowered.entries["plan"]})


def board() -> tuple[Target, Mode]:
    """This machine with Orin's GPU."""
    orin, mode = resolve("orin", "MAXN")
    return replace(host(), gpu=orin.gpu, mode=orin.mode, default_mode=orin.default_mode), mode


def uncompiled(text: str, headers: Mapping[str, str], sm: str, tools: str, registers: int | None = None) -> Compiled:
    """A module in name alone, for tests whose kernels run from source."""
    names = re.findall(r"^\s*EWM_(?:(?:WIDE_)?KERNEL|THREAD|APART)\((\w+)", headers["stamp.cu"] + text, re.M)
    kinds = {"IMMA.16832.S8.S8": 1, "HMMA.16816.F32.BF16": 1}
    facts = tuple(KernelFacts(name, 32, 0, 0, 0, 7, "8.5", kinds) for name in names)
    return Compiled(sm, cuda_standin.cubin(names, int(sm[3:])), "// .version 8.5\n// .target sm_87\n", facts)


def kernels(whole: Program, folder: Path, persistent: bool = False) -> Path:
    """The bundle's kernels as fibers, where the stand-in finds them."""
    _, source = emit(whole, schedule_gpu(whole), {})
    Device(cuda_text(source, persistent), folder, watched=False)
    return folder / "kernels.so"


@functools.cache
def bundles(precision: str) -> tuple[Path, Path]:
    """(for the GPU, for this processor) of `program`, built once in a process; the first with golden answers. In w8a8
    launches that follow on each other are one."""
    whole, (target, mode) = program(precision), board()
    gpu, cpu = (Path(tempfile.mkdtemp(prefix="edgewm-cuda-")) for _ in range(2))
    persistent = precision == "w8a8"
    sections, paths = compile_gpu_bundle(whole, schedule_gpu(whole), {}, target, mode, gpu, persistent, uncompiled)
    sections |= record(whole, sections, target, 0, paths)
    (gpu / "model.ewm").write_bytes(pack(sections, target, paths))
    kernels(whole, gpu, persistent)
    sections, paths = compile_bundle(whole, schedule_program(whole, host().isa), {}, host(), cpu)
    (cpu / "model.ewm").write_bytes(pack(sections, host(), paths))
    return gpu, cpu


@pytest.fixture
def driver() -> Iterator[Callable[..., cuda_standin.StandIn]]:
    """Configures the stand-in for a bundle's kernels; nothing it noted may be left at the end."""
    found = cuda_standin.standin()

    def begin(folder: Path, **machine: object) -> cuda_standin.StandIn:
        found.configure(folder / "kernels.so", **machine)
        return found

    yield begin
    assert found.faults == []


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("precision", EXACT_PRECISIONS)
def test_a_plan_has_the_bits_of_the_processor(driver: Callable, precision: str, seed: int) -> None:
    gpu, cpu = bundles(precision)
    driver(gpu, seed=seed)  # of the order in which threads run
    given = example_inputs(program(precision), "plan", seed)
    with Runtime(gpu) as there, Runtime(cpu) as here:
        assert (there.info["persistent"], here.info["persistent"]) == (precision == "w8a8", 0)
        calls = (ctypes.c_uint64 * there.info["calls"])()
        if seed:  # while it is measured each launch stands alone
            assert there._c.ewm_profile(there._loop, None, calls, None) == 0
        mine, theirs = there.run_entry("plan", **given), here.run_entry("plan", **given)
        assert any(calls) == bool(seed)
    assert {name: a.tobytes() for name, a in mine.items()} == {name: a.tobytes() for name, a in theirs.items()}


class Ticking:
    """A clock that goes on by a step each time it is read, from `start`."""

    def __init__(self, start: int, step: int):
        self.now, self.step = start, step

    def __call__(self) -> int:
        self.now += self.step
        return self.now


def planned(folder: Path, deadline_ns: int, clock: Ticking) -> tuple[int, np.ndarray]:
    """Rounds of a plan with a deadline, and the first actions it plays."""
    given = example_inputs(program("fp32"), "plan", 3)
    with Runtime(folder, period_ns=20_000_000, clock=clock) as robot:
        ports = {p.name: p for p in robot.ports("plan")}
        robot.set_goal(**{n: given[n] for n, p in ports.items() if p.kind in ("goal", "noise")})
        robot.reset(seed=5)
        robot.observe(**{n: given[n] for n, p in ports.items() if p.kind == "observation"}, stamp_ns=clock.now)
        told = robot.plan(clock.now + deadline_ns if deadline_ns else 0)
        return told.iterations, np.array([robot.act(clock.now + k * 20_000_000)[0] for k in range(4)])


@pytest.mark.parametrize("precision", EXACT_PRECISIONS)
def test_a_deadline_keeps_the_rounds_and_actions_of_the_processor(driver: Callable, precision: str) -> None:
    gpu, cpu = bundles(precision)
    step, found = 1000, []
    for there_ns, here_ns in ((0, 0), (5 * step, 5 * step // 2), (1, 1)):  # who paces looks at the clock more often
        driver(gpu)
        mine = planned(gpu, there_ns, Ticking(10**9, step if there_ns else 0))
        theirs = planned(cpu, here_ns, Ticking(10**9, step if here_ns else 0))
        assert mine[0] == theirs[0] and mine[1].tobytes() == theirs[1].tobytes()
        found.append(mine[0])
    assert found == [tiny.PLANNER.iterations, 1, 0]


def test_the_runner_replays_its_answers_and_keeps_a_pace() -> None:
    gpu, _ = bundles("fp32")
    there = {
        **os.environ, "LD_LIBRARY_PATH": str(cuda_standin.folder()),
        "EWM_STANDIN": cuda_standin.settings(gpu / "kernels.so", aborts=1),
    }  # fmt: skip
    command = [gpu / "edgewm-tick", gpu]
    done = subprocess.run([*command, "--golden"], env=there, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"golden 0: entry plan, \d+ results, bit-identical\n", done.stdout)
    paced = [*command, "--ticks", "8", "--rate-hz", "2", "--warmup", "1", "--json", "-"]
    done = subprocess.run(paced, env=there, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plans"] > 0 and found["plan_error"] == 0 and found["target"] == f"{host().machine}-sm_87"


def test_a_compiled_module_is_one_that_a_driver_takes(driver: Callable, tmp_path: Path) -> None:
    """The real compiler's cubin and PTX, as far as the stand-in reads them; a small entry, for the time it takes."""
    whole, (target, mode) = tiny.lowered(), board()
    whole = whole.with_(entries={"predict_1": whole.entries["predict_1"]})
    sections, paths = compile_gpu_bundle(whole, schedule_gpu(whole), {}, target, mode, tmp_path)
    (tmp_path / "model.ewm").write_bytes(pack(sections, target, paths))
    assert {f.name for f in paths["compiled"].facts} == {
        row["name"].decode() for row in np.frombuffer(sections["functions"], ewm.FUNCTION)
    }
    kernels(whole, tmp_path)
    for sm in (87, 90):  # its own, and one that the PTX is compiled for
        noted = driver(tmp_path, sm=sm)
        with Runtime(tmp_path) as there:
            there.run_entry("predict_1", **example_inputs(whole, "predict_1", 0))
        assert noted.count("cuModuleLoadData") == (1 if sm == 87 else 2)


# ------------------------------------------------------------------------------------------------------- the verb


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds without the compiler of the [gpu] extra."""
    monkeypatch.setattr(bundle_module, "compile_cuda", uncompiled)
    monkeypatch.setattr("edgewm.place.check_tools", lambda tools: None)


def test_the_verb_builds_for_a_gpu_and_says_so(named: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = build_module.capture

    def without_a_plan(*given: object) -> tuple:  # its bits are looked at above
        whole, *rest = captured(*given)
        return whole.with_(entries={name: whole.entries[name] for name in ("encode", "predict", "score")}), *rest

    monkeypatch.setattr(build_module, "capture", without_a_plan)
    out = tmp_path / "out"
    told = build("tiny:lewm", target="h100", precision="bf16", place="gpu", out=out)
    assert (told["place"], told["why"], told["threads"]) == ("gpu", "asked for: --place gpu", 1)
    assert told["estimate_ms"]["point"] > 0 and "H100" in told["estimate_ms"]["source"]
    manifest = read_manifest(out)
    assert set(manifest.raw["runs"].values()) == {"gpu"} and manifest.raw["placement"]["place"] == "gpu"
    sections = ewm.unpack((out / "model.ewm").read_bytes())
    assert "counts" not in sections and (out / "libedgewm.so").stat().st_size < 200_000
    (gpu,) = np.frombuffer(sections["gpu"], ewm.GPU)
    assert (gpu["sm"], gpu["driver"], gpu["elf_abi"]) == (90, 12000, 7)
    encode, predict, score = np.frombuffer(sections["tolerances"], "<f4")
    assert encode == 0 and 0 < predict < score < 1
    if host().machine != "x86_64":
        return
    lowered = tiny.lowered("bf16")
    lowered = lowered.with_(entries={name: lowered.entries[name] for name in ("encode", "predict", "score")})
    path = kernels(lowered, tmp_path, manifest.raw["placement"]["persistent"])
    there = {
        **os.environ, "LD_LIBRARY_PATH": str(cuda_standin.folder()),
        "EWM_STANDIN": cuda_standin.settings(path, aborts=1, sm=90, integrated=0),
    }  # fmt: skip
    done = subprocess.run(
        [out / "edgewm-tick", out, "--golden"], env=there, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    ends = [line.split(", ", 2)[2].split(" ")[0] for line in done.stdout.splitlines()]
    assert ends == ["bit-identical", "within", "within"]


def test_auto_takes_the_smaller_estimate_and_says_both() -> None:
    _, counts, told = place_program(program("fp32"), *resolve("orin", "30W"), "auto", 12)
    assert told.place == "cpu" and counts is not None  # so small a plan is over before its launches are
    parts = r"\(encode (\S+), score (\S+), refit (\S+)\)"
    said = re.fullmatch(rf"a plan is estimated at \S+ ms {parts} on the CPU, \S+ {parts} on the GPU", told.why)
    assert said is not None
    for estimate, numbers in ((told.cpu_ms, said.groups()[:3]), (told.gpu_ms, said.groups()[3:])):
        assert [f"{ms:.3g}" for ms in estimate["parts_ms"].values()] == list(numbers)
    # a sum of parts is the plan, but for threads that wake for each of them
    assert sum(told.cpu_ms["parts_ms"].values()) >= told.cpu_ms["point"]
    _, _, thor = place_program(program("fp32"), *resolve("thor"), "auto", 1)  # in a mode whose clocks are not known
    assert thor.place == "cpu" and "clocks in 120W are not known" in thor.why


def test_parts_are_the_whole_plan_once() -> None:
    schedule = schedule_gpu(program("w8a8"))
    whole, parts = schedule.entries["plan"].steps, parts_of(schedule)
    assert list(parts) == ["encode", "score", "refit"]
    times = {id(region.calls[0]): region.times for region in launched(whole)}
    found = [(id(r.calls[0]), r.times) for part in parts.values() for r in launched(part.entries["plan"].steps)]
    assert dict(found) == times and len(found) == len(times)
    families = {n: {c.family for c in calls_of(part.entries["plan"].steps)} for n, part in parts.items()}
    assert "topk" in families["refit"] and not any("topk" in families[n] for n in ("encode", "score"))
    orin = resolve("orin", "MAXN")
    both = estimate_gpu(schedule, *orin)[0]
    assert sum(both["parts_ms"].values()) == pytest.approx(both["point"], rel=0.05)


def test_queries_that_share_their_keys_read_them_once() -> None:
    """An encoder's lanes are its queries, a predictor's its candidates with keys of their own."""
    calls = [c for c in calls_of(schedule_gpu(program("fp32")).entries["plan"].steps) if c.family == "attention"]
    kernels = [(call, kernel_of(call)) for call in calls]
    shared = [call.groups["packed"][0][1].lane_stride == (0, 0) for call in calls]
    assert {True, False} == set(shared)
    for (call, kernel), is_shared in zip(kernels, shared, strict=True):
        assert kernel.m * kernel.batch == np.prod(call.dims[:-3]) * call.lanes
        assert kernel.batch == np.prod(call.dims[:-4]) * (1 if is_shared else call.lanes)


def gpu_ms(point: float, persistent: bool = False) -> dict[str, float]:
    return {"point": point, "persistent": persistent}


def test_one_launch_is_taken_where_it_was_estimated() -> None:
    assert [choose("gpu", None, gpu_ms(1.0, one)).persistent for one in (False, True)] == [False, True]
    assert not choose("cpu", None, gpu_ms(1.0, True)).persistent and not choose("gpu", None, None).persistent
    assert not choose("auto", {"point": 0.5}, gpu_ms(1.0, True)).persistent


def test_one_launch_is_estimated_where_barriers_cost_less_than_nodes_and_fewer_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule, orin = schedule_gpu(program("w8a8")), resolve("orin", "MAXN")
    regions = launched(schedule.entries["plan"].steps)
    assert 1 < sum(r.times * r.nodes for r in regions) < sum(r.times * r.launches for r in regions)
    one, _ = estimate_gpu(schedule, *orin)
    assert one is not None and one["persistent"]
    board, mode = orin
    apart_only, _ = estimate_gpu(schedule, replace(board, gpu=replace(board.gpu, toolkit="13.0")), mode)
    assert apart_only is not None and not apart_only["persistent"] and apart_only["point"] > one["point"]
    for what, price in (("BARRIER_CLOCKS", 10**6), ("FLIGHT_BYTES", 1e-6)):
        with monkeypatch.context() as dear:
            dear.setattr(gpu_model, what, price)
            many, _ = estimate_gpu(schedule, *orin)
        assert many is not None and not many["persistent"] and many["point"] > one["point"]
        assert many["launch_share"] > one["launch_share"]


@pytest.mark.parametrize(
    ("wanted", "cpu", "gpu", "place", "why"),
    [
        ("auto", {"point": 2.0}, gpu_ms(1.0), "gpu", "1 ms on the GPU, 2 on the CPU"),
        ("auto", {"point": 1.0}, gpu_ms(1.0), "cpu", "1 ms on the CPU, 1 on the GPU"),
        ("auto", {"point": 1.0}, None, "cpu", "nothing is known of how long the GPU takes: no clocks"),
        ("auto", None, gpu_ms(1.0), "gpu", "nothing is known of how long the CPU takes"),
        ("gpu", {"point": 1.0}, None, "gpu", "asked for: --place gpu"),
    ],
)
def test_a_place_is_chosen_and_why(wanted: str, cpu: dict | None, gpu: dict | None, place: str, why: str) -> None:
    found = choose(wanted, cpu, gpu, "no clocks")
    assert found.place == place and why in found.why


def test_without_its_compiler_both_ways_on_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(tools: str) -> None:
        raise EdgewmError("kernels for a GPU need nvidia-cuda-nvrtc-cu12, which is not installed", "w", "f")

    monkeypatch.setattr("edgewm.place.check_tools", missing)
    for options in ({"place": "gpu"}, {"mode": "MAXN", "planner": {"samples": 20_000}}):
        with pytest.raises(EdgewmError) as said:
            build("tiny:lewm", target="orin", out=tmp_path / "out", **options)
        assert said.value.what == "kernels for a GPU need nvidia-cuda-nvrtc-cu12, which is not installed"
        assert said.value.where == f"--place {options.get('place', 'auto')} for jetson_agx_orin_64gb"
        assert said.value.fix == "pip install 'edgewm[gpu]', or give --place cpu"
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["host", "jetson_xavier_nx"])
def test_a_board_without_a_gpu_to_compile_for_is_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(EdgewmError, match="has no GPU that kernels can be compiled for"):
        build("tiny:lewm", target=target, place="gpu", out=tmp_path / "out")


def test_a_kernel_that_breaks_a_gate_is_refused(tmp_path: Path) -> None:
    def spilling(*given: object) -> Compiled:
        made = uncompiled(*given)
        return replace(made, facts=(*made.facts[:-1], replace(made.facts[-1], spill_bytes=4)))

    whole = program("fp32")
    with pytest.raises(EdgewmError, match="4 bytes a thread are spilled"):
        compile_gpu_bundle(whole, schedule_gpu(whole), {}, *board(), tmp_path, compiler=spilling)


# ------------------------------------------------------------------------------------------- how near is near enough


def test_what_may_differ_follows_from_formats_and_lengths() -> None:
    fp32, bf16 = tiny.lowered("fp32").entries, tiny.lowered("bf16").entries
    assert [allowed_difference(fp32[name]) for name in ("encode", "score", "plan")] == [0, 0, 0]
    steps = rounding_steps(bf16["predict_1"]) * UNIT_ROUNDOFF
    products = (allowed_difference(bf16["predict_1"]) - steps) / BF16_STEP
    assert products == pytest.approx(round(products)) and products >= 1
    assert allowed_difference(bf16["plan"]) == float("inf")


def replayed(folder: Path, tmp_path: Path, by: float, allowed: list[float]) -> subprocess.CompletedProcess[str]:
    """The fixture's first answer recorded so far off, and what is allowed of each."""
    sections = fixture.tables()
    x = np.linspace(-2, 2, fixture.LANES * 3, dtype=np.float32).reshape(fixture.LANES, 3)
    y = fixture.affine(x)
    y[3, 1] += np.float32(by) * np.abs(y).max()
    golden = ewm.golden_record("affine", [(0, x), (1, y)]) + fixture.golden()
    sections |= {"golden": golden, "tolerances": np.array(allowed, "<f4").tobytes()}
    (tmp_path / "model.ewm").write_bytes(ewm.pack(sections, fixture.TARGET, fixture.KERNELS_SHA256))
    command = [folder / "edgewm-tick", tmp_path / "model.ewm", "--golden"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_answers_are_held_to_what_is_allowed(tmp_path: Path) -> None:
    folder = fixture.bundle()
    done = replayed(folder, tmp_path, 0.01, [0.02, 0, 0])
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert re.fullmatch(r"golden 0: entry affine, 1 results, within 0\.0\d+ of the largest, 0\.02 allowed", first)
    assert all(line.endswith("bit-identical") for line in rest)
    done = replayed(folder, tmp_path, 0.03, [0.02, 0, 0])
    assert done.returncode == 1 and "port y differs by 0.0" in done.stderr and "0.02 allowed" in done.stderr
    assert replayed(folder, tmp_path, 0.03, [0, 0, 0]).returncode == 1
    done = replayed(folder, tmp_path, 0.03, [np.inf, 0, 0])
    assert done.returncode == 0 and done.stdout.splitlines()[0].endswith("rounded otherwise here")

"""The runtime on a GPU, against a driver that stands in: what it asks for, what it refuses, what it leaves behind."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cuda_standin as cuda
import numpy as np
import pytest
import runtime_fixture as fixture

from edgewm import abi
from edgewm import format as ewm
from edgewm.binding import Runtime
from edgewm.doctor import qemu_command
from edgewm.errors import EdgewmError

STATE, WARM = np.linspace(-1, 1, 6, dtype=np.float32), np.full((fixture.STEPS, fixture.AXES), 0.5, np.float32)
GOAL, IMAGE = np.float32([0.25]), np.arange(5, dtype=np.uint8)
PLAN = {
    "state": STATE, "image": IMAGE, "goal": GOAL, "seed": np.uint32([7, 0]), "counter": np.uint32([0]),
    "warm_mean": WARM,
}  # fmt: skip
HEAD, ROUND, TAIL = 1 + 1, 5, 2 + 1  # nodes: ports, a call; calls; calls, ports
COUNTER = 1  # the node that writes the round
NODES = HEAD + fixture.ROUNDS * (COUNTER + ROUND) + TAIL  # of the plan


@pytest.fixture
def driver() -> Iterator[cuda.StandIn]:
    """The stand-in as it begins; nothing it noted may be left at the end of a test."""
    found = cuda.standin()
    found.configure(kernels())
    yield found
    assert found.faults == []


def kernels() -> Path:
    return cuda.folder() / "bundle" / "kernels.so"


def bundle() -> Path:
    return cuda.folder() / "bundle"


def refusal(folder: Path | None = None, /, **machine: object) -> EdgewmError:
    """What opening says on such a machine; nothing must be left on it."""
    cuda.standin().configure(kernels(), **machine)
    with pytest.raises(EdgewmError) as fault:
        Runtime(folder or bundle())
    return fault.value


# ------------------------------------------------------------------------------------------------------- it answers


@pytest.mark.parametrize("integrated", [0, 1])
def test_entries_answer_as_on_the_processor(driver: cuda.StandIn, integrated: int) -> None:
    driver.configure(kernels(), integrated=integrated)
    x = np.linspace(-2, 2, 3 * fixture.LANES, dtype=np.float32).reshape(-1, 3)
    with Runtime(bundle()) as gpu, Runtime(fixture.bundle()) as cpu:
        assert (gpu.info["gpu"], cpu.info["gpu"]) == (cuda.SM, 0)
        for _ in range(2):
            for entry, given in (("affine", {"x": x}), ("plan", PLAN)):
                mine, theirs = gpu.run_entry(entry, **given), cpu.run_entry(entry, **given)
                assert {k: v.tobytes() for k, v in mine.items()} == {k: v.tobytes() for k, v in theirs.items()}
    assert driver.count("cuMemcpyDtoDAsync_v2") == (6 if integrated else 0)
    assert driver.count("cuMemcpyHtoDAsync_v2") == (0 if integrated else 3)


MADE = ("cuMemAlloc_v2", "cuMemHostAlloc", "cuGraphInstantiateWithFlags")


def test_a_plan_is_one_launch_of_a_graph_made_at_the_start(driver: cuda.StandIn) -> None:
    with Runtime(bundle()) as gpu:
        made = {name: driver.count(name) for name in MADE}
        assert made["cuGraphInstantiateWithFlags"] == 4  # whole; up to the rounds, a round, what follows
        launched, waited = driver.count("cuLaunchKernel"), driver.count("cuCtxSynchronize")
        for n in range(1, 4):
            before = driver.nodes_run
            gpu.run_entry("plan", **PLAN)
            assert (driver.graphs_run, driver.nodes_run - before) == (n, NODES)
            assert (driver.count("cuGraphLaunch"), driver.count("cuEventRecord")) == (n, n)
        assert {name: driver.count(name) for name in made} == made
        for n in (1, 1):  # another entry's graph is made when it is first run
            gpu.run_entry("affine", x=np.zeros((fixture.LANES, 3), np.float32))
            assert driver.count("cuGraphInstantiateWithFlags") == 4 + n
        launched += 2
        waited += 1
        assert (driver.count("cuLaunchKernel"), driver.count("cuCtxSynchronize")) == (launched, waited)


def loop(folder: Path, **options: object) -> Runtime:
    """A runtime that has seen its goal and an observation of time 0."""
    robot = Runtime(folder, period_ns=fixture.PERIOD_NS, clock=lambda: 10**9, **options)
    robot.set_goal(goal=GOAL)
    robot.reset(seed=7)
    robot.observe(stamp_ns=10**9, state=STATE, image=IMAGE)
    return robot


def test_plans_and_actions_are_those_of_the_processor_and_acting_asks_nothing(driver: cuda.StandIn) -> None:
    with loop(bundle()) as gpu, loop(fixture.bundle()) as cpu:
        for robot in (gpu, cpu):
            robot.plan()
            robot.plan()  # from the mean of the first
        asked = [driver.count(f"cu{name}") for name in ("CtxPushCurrent_v2", "GraphLaunch", "EventRecord")]
        for period in range(8):
            (mine, told), (theirs, _) = (robot.act(10**9 + period * fixture.PERIOD_NS) for robot in (gpu, cpu))
            assert mine.tobytes() == theirs.tobytes() and told.generation == 2
        assert asked == [driver.count(f"cu{name}") for name in ("CtxPushCurrent_v2", "GraphLaunch", "EventRecord")]


def test_spinning_looks_again_until_it_is_done(driver: cuda.StandIn) -> None:
    with Runtime(bundle(), spin=True) as gpu:
        assert gpu.run_entry("plan", **PLAN)["mean"].tobytes() == fixture.plan(WARM, 0.25, STATE).tobytes()
        assert driver.count("cuEventQuery") == 3


def test_the_first_gpu_that_fits_is_taken(driver: cuda.StandIn) -> None:
    driver.configure(kernels(), devices=3)
    with Runtime(bundle()):
        assert driver.count("cuDeviceGetName") == 1


# ------------------------------------------------------------------------------------------------------- deadlines


NODE_NS, LAUNCH_NS = 100, 30
HEAD_NS, ROUND_NS, TAIL_NS = HEAD * NODE_NS, (COUNTER + ROUND) * NODE_NS, TAIL * NODE_NS


def timed(driver: cuda.StandIn, folder: Path, **machine: int) -> Runtime:
    """A loop whose clock is the machine's: each node takes NODE_NS, each launch of a graph LAUNCH_NS of the host."""
    driver.configure(kernels(), **{"node_ns": NODE_NS, "launch_ns": LAUNCH_NS} | machine)
    robot = Runtime(folder, period_ns=fixture.PERIOD_NS, clock=lambda: 10**9 + driver.clock_ns)
    robot.set_goal(goal=GOAL)
    robot.reset(seed=7)
    robot.observe(stamp_ns=10**9, state=STATE, image=IMAGE)
    return robot


@pytest.mark.parametrize("rounds", [0, 1, 2, 5, fixture.ROUNDS])
def test_a_plan_with_a_deadline_ends_in_time_with_whole_rounds(driver: cuda.StandIn, rounds: int) -> None:
    """Once the tail is known, as many rounds are done as end in time, and nothing at all is launched for the others."""
    with timed(driver, bundle()) as gpu:
        gpu.plan(10**18)
        before, nodes = driver.clock_ns, driver.nodes_run
        budget_ns = HEAD_NS + rounds * ROUND_NS + TAIL_NS + (rounds + 2) * LAUNCH_NS
        told = gpu.plan(10**9 + before + budget_ns + (ROUND_NS // 2 if rounds else 0))  # none is done by half
        assert (told.iterations, told.of, told.late) == (rounds, fixture.ROUNDS, False)
        assert driver.nodes_run - nodes == HEAD + rounds * (COUNTER + ROUND) + TAIL
        assert driver.clock_ns - before == budget_ns


def test_the_launch_of_a_plan_is_counted_in_its_time(driver: cuda.StandIn) -> None:
    slow_ns = 10 * ROUND_NS
    with timed(driver, bundle(), launch_ns=slow_ns) as gpu:
        gpu.plan(10**18)
        told = gpu.plan(10**9 + driver.clock_ns + HEAD_NS + TAIL_NS + 2 * slow_ns + 3 * (slow_ns + ROUND_NS) + 1)
        assert told.iterations == 3 and not told.late


def test_a_deadline_keeps_the_actions_of_as_many_rounds(driver: cuda.StandIn) -> None:
    for rounds in (0, 3):
        with timed(driver, bundle(), launch_ns=0) as gpu:
            # The tail is not known yet: it is taken to be as long as a round.
            end = HEAD_NS + ((rounds + 1) * ROUND_NS + 1 if rounds else 0)
            assert gpu.plan(10**9 + end).iterations == rounds
            wanted = fixture.robot(fixture.plan(np.zeros_like(WARM), 0.25, STATE, rounds))
            action, _ = gpu.act(10**9)
            assert action.tobytes() == np.clip(wanted[0], -100, 100).astype(np.float32).tobytes()
            assert gpu.plan().iterations == fixture.ROUNDS  # the next plan begins anew


def test_rounds_are_launched_one_ahead_once_their_time_is_known(driver: cuda.StandIn) -> None:
    """No more than one waits behind the one that runs, so that a stop is never more than a round away."""
    with timed(driver, bundle()) as gpu:
        assert gpu.plan(10**18).iterations == fixture.ROUNDS
        assert driver.most_waiting == 2
        assert driver.count("cuGraphLaunch") == 1 + fixture.ROUNDS + 1


def test_a_deadline_that_has_passed_leaves_the_warm_start(driver: cuda.StandIn) -> None:
    with loop(bundle()) as gpu:
        gpu.warm_start(WARM)
        assert gpu.plan(1).iterations == 0
        assert gpu.act(10**9)[0].tobytes() == fixture.robot(WARM)[0].tobytes()


# ------------------------------------------------------------------------------------------------------- measuring


def test_measuring_runs_a_graph_of_its_own_and_names_every_call(driver: cuda.StandIn) -> None:
    driver.configure(kernels(), node_ns=NODE_NS, clock_step=7)
    with loop(bundle()) as gpu:
        steps, calls = (ctypes.c_uint64 * gpu.info["steps"])(), (ctypes.c_uint64 * gpu.info["calls"])()
        plain = gpu.plan()
        before = driver.nodes_run
        gpu._c.ewm_profile(gpu._loop, steps, calls, None)
        measured = gpu.plan()
        stamps = 2 + 3 + 5 * fixture.ROUNDS
        assert driver.nodes_run - before == NODES + stamps
        assert (plain.iterations, measured.iterations) == (fixture.ROUNDS, fixture.ROUNDS)
        inside = [NODE_NS * fixture.ROUNDS] * 5  # what the stamps took is taken off; the round's counter is not
        inside[0] += NODE_NS * fixture.ROUNDS
        assert list(calls) == [0, 0, NODE_NS, *inside, NODE_NS, NODE_NS]
        assert gpu.stats()["stamp_ns"] == NODE_NS + 7
        assert sum(steps) == sum(calls) and [ns > 0 for ns in steps] == [
            False,
            True,
            False,
            True,
            True,
            True,
            False,
            True,
        ]
        gpu._c.ewm_profile(gpu._loop, None, None, None)
        before = driver.nodes_run
        gpu.plan()
        assert driver.nodes_run - before == NODES


@pytest.mark.parametrize("failing", ["cuMemHostAlloc:2:2", "cuGraphInstantiateWithFlags:2:5"])
def test_where_measuring_has_no_room_it_is_told_and_may_be_asked_again(driver: cuda.StandIn, failing: str) -> None:
    driver.configure(kernels(), fail=failing, node_ns=NODE_NS)
    with loop(bundle()) as gpu:
        steps, fault = (ctypes.c_uint64 * gpu.info["steps"])(), abi.sized(abi.Fault)
        assert gpu._c.ewm_profile(gpu._loop, steps, None, ctypes.byref(fault)) == 301
        assert b"OUT_OF_MEMORY" in fault.found or b"bytes free" in fault.found
        gpu.plan()
        assert sum(steps) == 0
        assert gpu._c.ewm_profile(gpu._loop, steps, None, ctypes.byref(fault)) == 0
        gpu.plan()
        assert sum(steps) > 0


def test_what_graphs_take_is_told(driver: cuda.StandIn) -> None:
    driver.configure(kernels(), node_bytes=1000)
    with loop(bundle()) as gpu:
        told, nodes = gpu.stats(), NODES + HEAD + ROUND + TAIL
        assert (told["graph_nodes"], told["graph_bytes"], told["ptx"]) == (nodes, 1000 * nodes, 0)
        assert told["graph_ns"] > 0
        gpu.run_entry("affine", x=np.zeros((fixture.LANES, 3), np.float32))
        assert gpu.stats()["graph_nodes"] == nodes + 4


# ------------------------------------------------------------------------------------------------------- refusals

PORTS = fixture.MEAN + 64  # the last port's end
REFUSALS = [
    ({"driver": 11040}, "libcuda.so.1", "found a driver of CUDA 11.4", "a driver that knows CUDA 12.0"),
    ({"devices": 0}, "libcuda.so.1", "found no GPU", "expected a GPU"),
    ({"fail": "cuInit:803:1"}, "libcuda.so.1", "found init: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "success"),
    ({"sm": 72}, "GPU", "found Stand-in 0, sm_72", "sm_87, which the kernels were compiled for"),
    ({"sm": 90, "devices": 2}, "GPU", "found Stand-in 0, sm_90", "sm_87, which the kernels were compiled for"),
    ({"maps": 0}, "Stand-in 0", "found it sees no memory of the processor", "which its ports lie in"),
    (
        {"memory": PORTS + 2000},
        "GPU, arena",
        f"out of memory: found 2000 of {PORTS + 2000} bytes free",
        "expected 2496",
    ),
    ({"memory": PORTS + 2600}, "GPU, scratch", f"found 104 of {PORTS + 2600} bytes free", "expected 192"),
    ({"resident": 0}, "call 0, mul", "found no block fits on a multiprocessor", "room for 256 threads"),
    ({"fail": "cuMemHostAlloc:2:1"}, "memory for ports", "CUDA_ERROR_OUT_OF_MEMORY", "bytes that stay in place"),
    ({"fail": "cuModuleLoadData:209:1"}, "cubin", "found load_module: CUDA_ERROR_NO_BINARY_FOR_GPU", "ELF ABI 7"),
    ({"fail": "cuModuleGetFunction:500:3"}, "function mul", "CUDA_ERROR_NOT_FOUND", "success"),
    ({"fail": "cuGraphInstantiateWithFlags:2:2"}, "graph", "of 8589934592 bytes free", "graph of 2 nodes"),
    ({"fail": "cuLaunchKernel:700:9"}, "graph", "found launch: CUDA_ERROR_ILLEGAL_ADDRESS", "success"),
]


@pytest.mark.parametrize(("machine", "where", "found", "expected"), REFUSALS)
def test_a_machine_that_does_not_fit_is_refused_by_its_reason(
    driver: cuda.StandIn, machine: dict, where: str, found: str, expected: str
) -> None:
    said = refusal(**machine)
    assert said.where == f"{bundle()}, {where}"
    assert found in said.what and expected in said.fix
    assert said.fix.endswith("use a machine that has it")


CALLED = (
    "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuCtxSynchronize", "cuMemAlloc_v2", "cuMemcpyHtoD_v2",
    "cuMemsetD8_v2", "cuMemHostAlloc", "cuMemHostGetDevicePointer_v2", "cuModuleLoadData", "cuModuleGetFunction",
    "cuStreamCreate", "cuEventCreate", "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuLaunchKernel",
    "cuMemsetD32Async", "cuMemcpyDtoDAsync_v2", "cuGraphInstantiateWithFlags", "cuGraphUpload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
)  # fmt: skip


@pytest.mark.parametrize("name", CALLED)
def test_whatever_fails_at_the_start_is_named_and_leaves_nothing(driver: cuda.StandIn, name: str) -> None:
    with Runtime(bundle()):
        calls = driver.count(name)
    assert calls > 0
    for nth in {1, (calls + 1) // 2}:
        assert "CUDA_ERROR_INVALID_VALUE" in refusal(fail=f"{name}:1:{nth}").what
        assert driver.faults == []


@pytest.mark.parametrize("name", ["cuGraphLaunch", "cuEventRecord", "cuEventQuery"])
def test_what_fails_at_a_run_is_an_error_and_publishes_nothing(driver: cuda.StandIn, name: str) -> None:
    driver.configure(kernels(), fail=f"{name}:700:{4 if name == 'cuEventQuery' else 2}")
    with loop(bundle()) as gpu:
        gpu.plan()
        before = gpu.act(10**9)[0]
        with pytest.raises(EdgewmError, match=r"the GPU failed: found .*CUDA_ERROR_ILLEGAL_ADDRESS"):
            gpu.plan()
        assert driver.graphs_run == (1 if name == "cuGraphLaunch" else 2)  # nothing of it is still under way
        action, told = gpu.act(10**9)
        assert told.generation == 1 and action.tobytes() == before.tobytes()
        gpu.plan()


@pytest.mark.parametrize(("spin", "deadline_ns"), [(False, 0), (True, 0), (False, 10**9 + 1)])
def test_a_run_that_does_not_end_is_given_up_and_told(driver: cuda.StandIn, spin: bool, deadline_ns: int) -> None:
    with loop(bundle(), spin=spin, gpu_wait_ns=200_000_000) as gpu:
        driver.configure(kernels(), hangs=1)
        for _ in range(2):  # nor is the next one begun
            with pytest.raises(EdgewmError, match=r"the GPU failed: found a run that has not ended after \d+ ms"):
                gpu.plan(deadline_ns)
        assert driver.count("cuGraphLaunch") == 1
        assert gpu.act(10**9)[1].state == "waiting"
        driver.configure(kernels())  # it was only slow
        assert gpu.plan().iterations == fixture.ROUNDS


def test_an_entry_whose_graph_finds_no_room_says_so_and_may_be_run_again(driver: cuda.StandIn) -> None:
    x = np.zeros((fixture.LANES, 3), np.float32)
    for failing in ("cuGraphInstantiateWithFlags:2:5", "cuGraphUpload:2:5"):
        driver.configure(kernels(), fail=failing)
        with Runtime(bundle()) as gpu:
            with pytest.raises(EdgewmError, match=r"out of memory: found \d+ of \d+ bytes free") as said:
                gpu.run_entry("affine", x=x)
            assert "room for a graph of 4 nodes" in said.value.fix
            gpu.run_entry("affine", x=x)


def test_a_context_that_cannot_be_entered_is_told(driver: cuda.StandIn) -> None:
    with loop(bundle()) as gpu:
        driver.configure(kernels(), fail="cuCtxPushCurrent_v2:201:1")
        with pytest.raises(EdgewmError, match="found push_context: CUDA_ERROR_INVALID_CONTEXT"):
            gpu.plan()


def test_a_kernel_that_dies_takes_the_device_with_it_and_is_told(driver: cuda.StandIn, tmp_path: Path) -> None:
    driver.configure(tmp_path / "no-kernels.so")
    with loop(bundle()) as gpu:
        for _ in range(2):
            with pytest.raises(EdgewmError, match="the GPU failed") as said:
                gpu.plan()
        assert "end every use of this GPU's context in the process, then open the bundle again" in said.value.fix
        assert gpu.act(10**9)[1].state == "waiting"
    assert "no kernels to run" in driver.faults[0]
    driver.configure(kernels())


def variant(tmp_path: Path, **changed: bytes) -> Path:
    """The bundle with other sections; its library is compiled for them."""
    folder = tmp_path / "variant"
    folder.mkdir()
    sections = cuda.tables() | changed
    (folder / "model.ewm").write_bytes(ewm.pack(sections, fixture.TARGET, fixture.KERNELS_SHA256))
    cuda.toolchain.build_runtime(
        {"kernels.cc": cuda.names_text(sections)}, [], flags=list(fixture.FLAGS), folder=folder, engine="gpu"
    )
    return folder


def launches(**changed: int) -> bytes:
    rows = np.frombuffer(cuda.tables()["launches"], ewm.LAUNCH).copy()
    for name, value in changed.items():
        rows[name][3] = value
    return rows.tobytes()


def test_blocks_that_wait_for_each_other_must_all_be_resident(driver: cuda.StandIn, tmp_path: Path) -> None:
    folder = variant(tmp_path, launches=launches(cooperative=1, blocks=32))
    driver.configure(kernels())
    Runtime(folder).close()
    assert driver.count("cuLaunchCooperativeKernel") == fixture.ROUNDS + 1  # and in the graph of one round
    said = refusal(folder, processors=8)  # as in a power mode that gates the others
    assert "found 8 multiprocessors, 16 blocks resident at once" in said.what
    assert said.where == f"{folder}, call 3, tally" and "expected 32: a power mode with more" in said.fix
    assert "blocks cannot wait for each other" in refusal(folder, cooperative=0).what


def test_shared_memory_beyond_the_usual_is_asked_for_or_refused(driver: cuda.StandIn, tmp_path: Path) -> None:
    folder = variant(tmp_path, launches=launches(shared_bytes=100_000))
    driver.configure(kernels())
    Runtime(folder).close()
    assert driver.count("cuFuncSetAttribute") == 1
    said = refusal(folder, shared=65536)
    assert "found 65536 bytes of shared memory for a block" in said.what and "expected 100000" in said.fix


PTX = (
    b"//\n.version 8.5\n.target sm_87\n" + b"".join(b".entry %s(\n" % name.encode() for name in cuda.FUNCTIONS) + b"\0"
)


def test_ptx_serves_a_newer_gpu_where_the_driver_knows_it(driver: cuda.StandIn, tmp_path: Path) -> None:
    folder = variant(tmp_path, ptx=PTX)
    driver.configure(kernels(), sm=90)
    with Runtime(folder) as gpu:
        assert gpu.run_entry("plan", **PLAN)["mean"].tobytes() == fixture.plan(WARM, 0.25, STATE).tobytes()
        assert gpu.stats()["ptx"] == 1
    assert driver.count("cuModuleLoadData") == 2
    said = refusal(folder, fail="cuModuleLoadData:2:1")  # not for lack of code, so nothing is compiled
    assert "out of memory: found load_module: CUDA_ERROR_OUT_OF_MEMORY" in said.what
    assert driver.count("cuModuleLoadData") == 1
    assert "sm_72" in refusal(folder, sm=72).what
    said = refusal(folder, sm=90, driver=12020)
    assert said.where == f"{folder}, PTX" and "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" in said.what


def test_a_module_of_newer_tools_wants_a_newer_driver(driver: cuda.StandIn, tmp_path: Path) -> None:
    gpu = np.frombuffer(cuda.tables()["gpu"], ewm.GPU).copy()
    gpu["elf_abi"], gpu["driver"] = 8, 13000
    folder = variant(tmp_path, gpu=gpu.tobytes(), cubin=cuda.cubin(cuda.FUNCTIONS, abi=8))
    assert "found a driver of CUDA 12.6" in refusal(folder).what
    driver.configure(kernels(), driver=13000)
    Runtime(folder).close()


# --------------------------------------------------------------------------------- the stand-in sees what it should


def test_the_stand_in_notes_what_is_wrong() -> None:
    """Each of its checks, by a call that breaks it."""
    driver = cuda.standin()
    driver.configure(kernels())
    c = driver.c
    at, host, context, stream, graph = (ctypes.c_uint64() for _ in range(5))
    c.cuMemAlloc_v2(ctypes.byref(at), 16)
    c.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    c.cuCtxPushCurrent_v2(context)
    c.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(16))
    ctypes.memset(at.value + 16, 0, 1)
    c.cuMemFree_v2(at)
    c.cuMemFree_v2(at)
    c.cuMemcpyHtoD_v2(at, b"abcd", ctypes.c_size_t(4))
    c.cuMemHostAlloc(ctypes.byref(host), ctypes.c_size_t(64), 0)
    c.cuStreamCreate(ctypes.byref(stream), 1)
    c.cuMemsetD32Async(host, 0, ctypes.c_size_t(1), stream)
    c.cuLaunchKernel(stream, 1, 1, 1, 1, 1, 1, 0, stream, ctypes.byref(host), None)
    c.cuStreamBeginCapture_v2(stream, 1)
    c.cuCtxSynchronize()
    c.cuMemcpyHtoDAsync_v2(host, b"abcd", ctypes.c_size_t(4), stream)
    c.cuStreamEndCapture(stream, ctypes.byref(graph))
    c.cuGraphDestroy(graph)
    c.cuGraphDestroy(graph)
    c.cuGraphLaunch(stream, stream)
    c.cuDevicePrimaryCtxRelease_v2(0)
    c.cuCtxPopCurrent_v2(ctypes.byref(context))
    assert driver.faults == [
        "cuMemAlloc_v2: no context is current",
        "cuMemFree_v2: written beyond 16 bytes",
        "cuMemFree_v2: no such memory, or freed before",
        "cuMemcpyHtoD_v2: not memory of the device",
        "cuMemHostAlloc: not mapped",
        "cuMemsetD32Async: not memory of the device",
        "cuLaunchKernel: not a handle of that kind",
        "cuLaunchKernel: outside of a capture",
        "cuCtxSynchronize: called while a stream is captured",
        "cuMemcpyHtoDAsync_v2: not memory of the device",
        "cuGraphDestroy: used after its end",
        "cuGraphLaunch: not a handle of that kind",
        "left behind: a stream",
        "left behind: 64 bytes of mapped memory",
    ]
    driver.configure(kernels())


# ------------------------------------------------------------------------------------------------ a process of its own


def tick(
    folder: Path, *arguments: str, before: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess:
    command = [*before, str(folder / "edgewm-tick"), str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )  # fmt: skip


def test_the_runner_replays_and_paces(tmp_path: Path) -> None:
    there = {"LD_LIBRARY_PATH": str(cuda.folder()), "EWM_STANDIN": cuda.settings(kernels(), aborts=1)}
    done = tick(bundle(), "--golden", **there)
    assert done.returncode == 0, done.stderr
    assert [line.endswith("bit-identical") for line in done.stdout.splitlines()] == [True, True]
    there["EWM_STANDIN"] += " node_ns=100 clock_step=1"
    there["EWM_STANDIN"] += f" cpus={len(os.sched_getaffinity(0))}"  # the driver's threads keep all of them
    first = min(os.sched_getaffinity(0))
    for kernels_too in (("--pin", str(first)), ("--kernels",)):
        done = tick(bundle(), "--ticks", "40", "--rate-hz", "200", "--json", "-", *kernels_too, **there)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["plans"] > 0 and found["plan_error"] == 0 and found["stats"]["futex_calls"] == 0
        timed = kernels_too == ("--kernels",)
        assert [row["call"] for row in found["calls"]] == (list(range(2, 10)) if timed else [])
        assert [row["step"] for row in found["steps"]] == ([1, 3, 4, 5, 7] if timed else [])
        assert timed or found["scheduler"]["cpus"] == [first]
        assert (found["gpu"]["module"], found["gpu"]["launched"]) == ("cubin", "apart")
        assert found["gpu"]["measured"] == ("apart" if timed else "not") and found["gpu"]["graph_nodes"] > 0


def test_a_machine_without_a_driver_is_refused(tmp_path: Path) -> None:
    done = tick(bundle(), "--golden", LD_LIBRARY_PATH=str(tmp_path))
    what, where, fix = done.stderr.splitlines()
    assert done.returncode == 2 and where == "  where: libcuda.so.1"
    assert what.startswith("error: no GPU or driver that the model was built for: found libcuda.so.1: cannot open")
    assert what.endswith("expected a driver that knows CUDA 12.0")
    assert fix == "  fix: run it on a machine that has what it needs"


def test_a_driver_without_a_function_is_refused_by_its_name(tmp_path: Path) -> None:
    cuda.library(tmp_path, [*fixture.FLAGS, "-DSTANDIN_WITHOUT_UPLOAD"])
    done = tick(bundle(), "--golden", LD_LIBRARY_PATH=str(tmp_path), EWM_STANDIN=cuda.settings(kernels()))
    assert done.returncode == 2 and "found no cuGraphUpload in it; expected a driver" in done.stderr


@pytest.mark.needs("qemu-aarch64")
def test_on_aarch64_it_finds_the_driver_and_runs(tmp_path: Path) -> None:
    flags = ("-target", "aarch64-linux-gnu.2.31")
    folder = cuda.write(tmp_path / "bundle", flags)
    cuda.library(tmp_path, flags)
    before = qemu_command("cortex-a76")
    assert before is not None
    words = [*before, "-E", f"LD_LIBRARY_PATH={tmp_path}", "-E"]
    settings = cuda.settings(folder / "kernels.so", aborts=1)
    done = tick(folder, "--golden", before=(*words, f"EWM_STANDIN={settings}"))
    assert done.returncode == 0, done.stderr
    assert [line.endswith("bit-identical") for line in done.stdout.splitlines()] == [True, True]
    done = tick(folder, "--golden", before=(*words, f"EWM_STANDIN={settings} sm=72"))
    assert done.returncode == 2 and "found Stand-in 0, sm_72; expected sm_87" in done.stderr


# --------------------------------------------------------------------------------------------- sections for a GPU

MUTATIONS = [
    ("gpu", ewm.GPU, 0, "sm", 49, "sm_49"),
    ("gpu", ewm.GPU, 0, "driver", 6, "driver 6"),
    ("gpu", ewm.GPU, 0, "elf_abi", 9, "ELF ABI 9"),
    ("gpu", ewm.GPU, 0, "elf_abi", 8, "OS/ABI 0x33, version 7"),
    ("gpu", ewm.GPU, 0, "threads", 33, "33 threads"),
    ("gpu", ewm.GPU, 0, "threads", 2048, "2048 threads"),
    ("gpu", ewm.GPU, 0, "functions", 5, "160 bytes"),
    ("gpu", ewm.GPU, 0, "launches", 9, "240 bytes"),
    ("gpu", ewm.GPU, 0, "stamp", 4, "stamp function 4"),
    ("gpu", ewm.GPU, 0, "stamp", 0xFFFFFFFF, "stamp function 4294967295"),
    ("gpu", ewm.GPU, 0, "persistent", 4, "persistent function 4"),
    ("functions", ewm.FUNCTION, 3, "name", b"a-b", "a bad name"),
    ("functions", ewm.FUNCTION, 3, "name", b"", "a bad name"),
    ("functions", ewm.FUNCTION, 3, "name", b"a" * 40, "a bad name"),
    ("launches", ewm.LAUNCH, 3, "call", 5, "call 4 after call 5"),
    ("launches", ewm.LAUNCH, 3, "call", 4, "call 4, phase 0"),
    ("launches", ewm.LAUNCH, 9, "call", 8, "call 8, phase 0"),
    ("launches", ewm.LAUNCH, 9, "call", 10, "call 10"),
    ("launches", ewm.LAUNCH, 2, "phase", 1, "call 2, phase 1"),
    ("launches", ewm.LAUNCH, 2, "function", 4, "function 4"),
    ("launches", ewm.LAUNCH, 2, "blocks", 0, "0 blocks"),
    ("launches", ewm.LAUNCH, 2, "blocks", 1 << 31, "2147483648 blocks"),
    ("launches", ewm.LAUNCH, 2, "shared_bytes", 300_000, "300000 bytes of shared memory"),
    ("launches", ewm.LAUNCH, 2, "cooperative", 2, "cooperative 2"),
    ("cubin", np.dtype("u1"), 0, None, 0, "no ELF of 64 bits"),
    ("cubin", np.dtype("u1"), 18, None, 62, "ELF machine 62"),
    ("cubin", np.dtype("u1"), 8, None, 8, "OS/ABI 0x33, version 8"),
]


def opened(sections: dict[str, bytes]) -> tuple[int, str, str]:
    """(error, where, found) of opening a file of these sections with the bundle's library."""
    c = abi.library(bundle() / "libedgewm.so")
    data = ewm.pack(sections, fixture.TARGET, fixture.KERNELS_SHA256)
    model, fault = ctypes.c_void_p(), abi.sized(abi.Fault)
    error = c.ewm_open_bytes(data, len(data), ctypes.byref(model), ctypes.byref(fault))
    if model:
        c.ewm_close(model)
    return error, fault.where.decode(), fault.found.decode()


@pytest.mark.parametrize(("section", "dtype", "row", "column", "value", "message"), MUTATIONS)
def test_a_broken_rule_is_refused_with_good_digests(
    section: str, dtype: np.dtype, row: int, column: str | None, value: object, message: str
) -> None:
    sections = cuda.tables()
    rows = np.frombuffer(sections[section], dtype).copy()
    (rows if column is None else rows[column])[row] = value
    error, where, found = opened({**sections, section: rows.tobytes()})
    assert error == 206 and message in found and where


@pytest.mark.parametrize("name", ewm.GPU_SECTIONS)
def test_a_missing_section_is_refused(name: str) -> None:
    sections = {k: v for k, v in cuda.tables().items() if k != name}
    assert opened(sections) == (206, f"section {name}", "not there")


@pytest.mark.parametrize("name", ewm.GPU_SECTIONS)
def test_another_program_is_refused(name: str) -> None:
    """What breaks no rule, but is not what this library was compiled for."""
    sections = cuda.tables()
    changed = {
        "gpu": lambda rows: rows[:4] + (12010).to_bytes(4, "little") + rows[8:],
        "functions": lambda rows: rows.replace(b"tally\0", b"other\0"),
        "launches": lambda rows: launches(blocks=9),
        "cubin": lambda rows: rows + b"\0",
        "ptx": lambda rows: PTX,
    }[name](sections[name])
    assert opened({**sections, name: changed})[:2] == (205, "tables")


def test_ptx_without_an_end_is_refused() -> None:
    assert opened({**cuda.tables(), "ptx": PTX[:-1]})[::2] == (206, "text without an end")


def test_a_file_for_a_gpu_and_a_library_for_the_processor_do_not_meet() -> None:
    with pytest.raises(EdgewmError, match="do not belong together"):
        c = Runtime.__new__(Runtime)
        c.__init__(mixed())


def mixed() -> Path:
    folder = cuda.folder() / "mixed"
    folder.mkdir(exist_ok=True)
    (folder / "libedgewm.so").write_bytes((fixture.bundle() / "libedgewm.so").read_bytes())
    (folder / "model.ewm").write_bytes((bundle() / "model.ewm").read_bytes())
    return folder

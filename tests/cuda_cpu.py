"""CUDA kernels of a bundle on a CPU: the very source that is compiled for GPUs, every CUDA thread a fiber.

`Device` builds a translation unit for this machine; `Bundle` is an emitted program on one, run entry by entry in the
order of its sections, as the runtime launches it. Spaces lie between guards: what strays is reported.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from edgewm import format as ewm
from edgewm.codegen import Source
from edgewm.cuda.schedule import schedule_gpu
from edgewm.cuda.source import cuda_text, launch_rows
from edgewm.emit import emit
from edgewm.host import host
from edgewm.paths import KERNELS, RUNTIME
from edgewm.program import Program
from edgewm.toolchain import compile_library

HERE = Path(__file__).parent / "cuda"
THREADS = 256
GUARD_BYTES = 1 << 12
CPU = {"x86_64": ("-mcpu=x86_64_v3",), "aarch64": ()}
NUMPY = {0: np.float32, 1: np.int32, 2: np.uint32, 3: np.int8, 4: np.uint8}
# Memory accesses are reported one by one, so none may be joined to a vector.
WATCHED = ("-O1", "-fno-vectorize", "-fno-slp-vectorize", "-fsanitize-coverage=func,trace-loads,trace-stores")
PLAIN = ("-O2", "-Wno-pass-failed", "-fno-strict-aliasing")
BLOCK_BARRIER, GRID_BARRIER, LATE_WAIT, WARP_BARRIER, WRONG_LANE = range(5)  # faults that `cuda_cpu_break` plants


class LaunchError(Exception):
    """A launch that ended with a fault."""


class Device:
    """The kernels of one translation unit, as fibers."""

    def __init__(self, text: str, folder: Path, watched: bool = True, kernels: Path = KERNELS):
        machine = host().machine
        target = ("-target", f"{machine}-linux-gnu.2.31")
        flags = (*target, *CPU[machine], *PLAIN, *(WATCHED if watched else ()))
        fibers = {"fibers.cc": (HERE / "fibers.cc").read_text()}
        includes = [HERE, kernels, kernels / "gpu", RUNTIME]
        objects = {"kernels.cc": text} | fibers
        self.library = ctypes.CDLL(str(compile_library(objects, includes, flags=flags, out=folder / "kernels.so")))
        self.seed = 0

    def launch(
        self, name: str, blocks: int, shared_bytes: int, parameter: np.ndarray, threads: int = THREADS,
        cooperative: bool = False,
    ) -> None:  # fmt: skip
        fault = ctypes.create_string_buffer(300)
        grid, block = (ctypes.c_uint32 * 3)(blocks, 1, 1), (ctypes.c_uint32 * 3)(threads, 1, 1)
        call = self.library.cuda_cpu_launch_cooperative if cooperative else self.library.cuda_cpu_launch
        given = parameter.ctypes.data_as(ctypes.c_void_p)
        if call(name.encode(), grid, block, shared_bytes, given, ctypes.c_uint64(self.seed), fault, 300):
            raise LaunchError(fault.value.decode())

    @contextlib.contextmanager
    def planted(self) -> Iterator[Callable[[int, int], None]]:
        """A function that plants one fault at a time, of a kind at a site; none is left afterwards."""
        self.library.cuda_cpu_break(-1, 0)
        try:
            yield lambda kind, site: self.library.cuda_cpu_break(kind, site)
        finally:
            self.library.cuda_cpu_break(-1, 0)

    def sites(self, kind: int) -> int:
        """Sites of a kind of fault that were met since `planted` began."""
        return self.library.cuda_cpu_sites(kind)

    def watch(self, memory: np.ndarray, forbidden: bool = False) -> None:
        at = memory.ctypes.data_as(ctypes.c_void_p)
        self.library.cuda_cpu_watch(at, ctypes.c_uint64(memory.nbytes), forbidden)

    def forget(self) -> None:
        self.library.cuda_cpu_watch(None, ctypes.c_uint64(0), False)


LAUNCH = np.dtype([("calls", "<u8"), ("operands", "<u8"), ("base", "<u8", 3), ("call", "<u4"), ("phase", "<u4")])

PERSISTENT = np.dtype([("launch", LAUNCH), ("rows", "<u8"), ("first", "<u4"), ("count", "<u4"), ("barrier", "<u8")])


class Memory:
    """The three spaces between guards, and what a launch is given."""

    def __init__(self, device: Device, sizes: tuple[int, int, int], calls: np.ndarray, operands: np.ndarray):
        starts, at = [], GUARD_BYTES
        for size in sizes:
            starts.append(at)
            at += -(-size // 128) * 128 + GUARD_BYTES
        raw = np.full(at + 128, 0xFF, np.uint8)  # f32 NaN, so that a stray read shows
        whole = raw[-raw.ctypes.data % 128 :][:at]
        self.spaces = [whole[s : s + n] for s, n in zip(starts, sizes, strict=True)]
        self.calls, self.operands = np.array(calls), np.array(operands)
        self.parameter = np.zeros((), LAUNCH)
        for key, array in (("calls", self.calls), ("operands", self.operands)):
            self.parameter[key] = array.ctypes.data
        self.parameter["base"] = [s.ctypes.data for s in self.spaces]
        device.forget()
        end = 0
        for space, start in zip(self.spaces, starts, strict=True):
            device.watch(whole[end:start], forbidden=True)
            if space.size:
                device.watch(space)
            end = start + space.size
        device.watch(whole[end:], forbidden=True)
        self.device, self.whole = device, whole

    def launch(self, row: np.void, functions: tuple[str, ...]) -> None:
        self.parameter["call"], self.parameter["phase"] = row["call"], row["phase"]
        name = functions[int(row["function"])]
        self.device.launch(name, int(row["blocks"]), int(row["shared_bytes"]), self.parameter)


class Bundle:
    """An emitted program on a device."""

    def __init__(self, program: Program, folder: Path, watched: bool = False, persistent: bool = False):
        self.sections, self.source = emitted(program)
        self.functions, self.rows = launch_rows(self.sections, self.source)
        self.device = Device(cuda_text(self.source, persistent), folder, watched)
        (sizes,) = np.frombuffer(self.sections["sizes"], ewm.SIZES)
        calls, operands = self.table("calls", ewm.CALL), self.table("operands", ewm.OPERAND)
        spaces = tuple(int(sizes[f"{name}_bytes"]) for name in ("arena", "scratch", "weight"))
        self.memory = Memory(self.device, spaces, calls, operands)
        self.memory.spaces[2][:] = np.frombuffer(self.sections["weights"], np.uint8)

    def table(self, name: str, dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(self.sections[name], dtype)

    def run(self, entry_name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of an entry by name."""
        (entry,) = (e for e in self.table("entries", ewm.ENTRY) if e["name"].decode() == entry_name)
        mine = self.table("entry_ports", np.dtype("<u4"))[int(entry["first_port"]) :][: int(entry["ports"])]
        ports = [self.table("ports", ewm.PORT)[i] for i in mine]
        arena, workspaces, _ = self.memory.spaces
        arena[:] = workspaces[:] = 0xFF
        results = {}
        for port in ports:
            name, at, dtype = port["name"].decode(), int(port["offset"]), NUMPY[int(port["dtype"])]
            here = arena[at : at + int(port["elements"]) * np.dtype(dtype).itemsize].view(dtype)
            here = here.reshape([int(d) for d in port["dim"][: int(port["rank"])]])
            if port["kind"] in (ewm.KINDS["action"], ewm.KINDS["result"]):
                results[name] = here
            else:
                here[...] = inputs[name]
        first = int(entry["first_step"])
        self.walk(first, first + int(entry["steps"]))
        return {name: here.copy() for name, here in results.items()}

    def rows_of(self, entry: int) -> list[int]:
        """Launches of an entry, by index."""
        row = self.table("entries", ewm.ENTRY)[entry]
        steps = self.table("steps", ewm.STEP)[int(row["first_step"]) :][: int(row["steps"])]
        calls = {c for s in steps for c in range(int(s["first_call"]), int(s["first_call"]) + int(s["calls"]))}
        return [i for i, call in enumerate(self.rows["call"]) if int(call) in calls]

    def walk(self, at: int, end: int) -> None:
        """Steps [at, end), loops round by round."""
        steps, arena = self.table("steps", ewm.STEP), self.memory.spaces[0]
        while at < end:
            step = steps[at]
            if step["kind"] == ewm.REGION:
                self.region(step)
                at += 1
                continue
            close = at + 1
            while steps[close]["kind"] != ewm.END or close - int(steps[close]["count"]) != at:
                close += 1
            for turn in range(int(step["count"])):
                arena[int(step["counter"]) :][:4].view(np.uint32)[0] = turn
                self.walk(at + 1, close)
            at = close + 1

    def region(self, step: np.void) -> None:
        first, count = int(step["first_call"]), int(step["calls"])
        own = (first <= self.rows["call"]) & (self.rows["call"] < first + count)
        for row in self.rows[own]:
            self.memory.launch(row, self.functions)


class Persistent(Bundle):
    """The same, runs of regions as one cooperative launch of `blocks` blocks."""

    def __init__(self, program: Program, folder: Path, blocks: int):
        super().__init__(program, folder, watched=True, persistent=True)
        self.blocks, self.barrier = blocks, np.zeros(1, np.uint32)

    def walk(self, at: int, end: int) -> None:
        steps = self.table("steps", ewm.STEP)
        while at < end:
            until = at
            while until < end and steps[until]["kind"] == ewm.REGION:
                until += 1
            if until > at:
                self.together(int(steps[at]["first_call"]), sum(int(s["calls"]) for s in steps[at:until]))
                at = until
            else:
                close = at + next(i for i in range(1, end - at) if steps[at + i]["kind"] == ewm.END
                                  and int(steps[at + i]["count"]) == i)  # fmt: skip
                super().walk(at, close + 1)
                at = close + 1

    def together(self, first: int, calls: int) -> None:
        own = np.flatnonzero((first <= self.rows["call"]) & (self.rows["call"] < first + calls))
        parameter = np.zeros((), PERSISTENT)
        parameter["launch"] = self.memory.parameter
        parameter["rows"], parameter["first"], parameter["count"] = self.rows.ctypes.data, own[0], own.size
        parameter["barrier"] = self.barrier.ctypes.data
        shared = int(self.rows["shared_bytes"][own].max())
        self.device.launch("ewm_persistent", self.blocks, shared, parameter, cooperative=True)


def emitted(program: Program) -> tuple[Mapping[str, bytes], Source]:
    """Sections and source of a fused program, scheduled for a GPU."""
    return emit(program, schedule_gpu(program), {})

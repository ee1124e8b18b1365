"""libcuda.so.1 as the tests have it (`cuda/libcuda.cc`), and the hand-made bundle of `runtime_fixture` for a GPU."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import runtime_fixture as fixture

from edgewm import format as ewm
from edgewm import toolchain

HERE = Path(__file__).with_name("cuda")
SM, DRIVER, ABI = 87, 12000, 7
THREADS = 256  # of a block
FUNCTIONS = ("ewm_stamp", "add", "mul", "tally")

# What a launch computes is what the fixture's kernels compute, a block a tile of as many lanes as it has threads.
KERNELS = r"""
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "launch.h"
#define EXPORT extern "C" __attribute__((visibility("default")))
static uint64_t (*clock_of)(void*);
static void* clock_state;
EXPORT void cuda_cpu_clock(uint64_t (*ns)(void*), void* state) { clock_of = ns, clock_state = state; }
static uint64_t now() {
  timespec t;
  if (clock_of != nullptr) return clock_of(clock_state);
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}
EXPORT int cuda_cpu_launch(const char* name, const uint32_t* grid, const uint32_t* block, uint32_t, const void* given,
                           uint64_t, char* fault, size_t room) {
  const auto& l = *static_cast<const ewm::Launch*>(given);
  if (strcmp(name, "ewm_stamp") == 0) *static_cast<const ewm::Stamp*>(given)->at_ns = now();
  else {
    ewm::Kernel kernel = nullptr;
    for (uint32_t i = 0; i < ewm::kernel_count; i++)
      if (strcmp(name, ewm::kernel_names[i]) == 0) kernel = ewm::kernels[i];
    if (kernel == nullptr) return snprintf(fault, room, "no kernel of that name"), 1;
    const ewm::Call& c = l.calls[l.call];
    if (uint64_t(grid[0]) * block[0] < c.lanes)
      return snprintf(fault, room, "%u blocks for %u lanes", grid[0], c.lanes), 1;
    for (uint32_t b = 0; b < grid[0]; b++) {
      ewm::Tile t{b * block[0], block[0], c.lanes - b * block[0]};
      if (t.valid > t.lanes) t.valid = t.lanes;
      kernel(c, l.operands + c.first_operand, ewm::Frame{{l.base[0], l.base[1], l.base[2]}}, t);
    }
  }
  return 0;
}
"""
BETWEEN, BETWEEN_BYTES = fixture.ARENA_BYTES, 3 * 48 * 4  # what the processor's tiles keep in their scratch


def tables(ptx: bytes = b"", port_rows: np.ndarray | None = None) -> dict[str, bytes]:
    """The fixture's sections, its tile-local value in the arena, and those of a GPU beside them."""
    sections = fixture.tables(port_rows)
    operands, sizes, calls = (
        np.frombuffer(sections[name], dtype).copy()
        for name, dtype in (("operands", ewm.OPERAND), ("sizes", ewm.SIZES), ("calls", ewm.CALL))
    )
    for row in operands[operands["space"] == ewm.SCRATCH]:
        row["space"] = ewm.ARENA
    local = operands["bytes"] == fixture.SCRATCH_BYTES
    operands["space"][local], operands["offset"][local], operands["bytes"][local] = ewm.ARENA, BETWEEN, BETWEEN_BYTES
    operands["stride"][local, 0] = 48
    sizes["arena_bytes"] += BETWEEN_BYTES
    names = [FUNCTIONS.index(name) for name in ("add", "mul", "tally")]
    rows = [(i, 0, names[call["kernel"]], -(-int(call["lanes"]) // THREADS), 0, 0) for i, call in enumerate(calls)]
    functions = np.array([(name.encode(),) for name in FUNCTIONS], ewm.FUNCTION)
    gpu = np.array([(SM, DRIVER, ABI, THREADS, len(FUNCTIONS), len(rows), 0, ewm.NONE)], ewm.GPU)
    return sections | {
        "operands": operands.tobytes(), "sizes": sizes.tobytes(), "gpu": gpu.tobytes(),
        "functions": functions.tobytes(), "launches": np.array(rows, ewm.LAUNCH).tobytes(),
        "cubin": cubin(FUNCTIONS), "ptx": ptx,
    }  # fmt: skip


def cubin(functions: Iterable[str], sm: int = SM, abi: int = ABI) -> bytes:
    """The head of a module as NVIDIA's tools write it, names of its functions behind it: no code."""
    names = b"".join(b".text." + name.encode() + b"\0" for name in functions)
    flags = sm if abi == 7 else sm << 8
    ident = b"\x7fELF\2\1\1" + {7: b"\x33", 8: b"\x41"}[abi] + bytes([abi]) + bytes(7)
    return ident + struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, 64 + len(names), flags, 64, 56, 0, 64, 0, 0) + names


def names_text(sections: Mapping[str, bytes]) -> str:
    """What the library of a bundle for a GPU is compiled with: no kernel, only which they are."""
    text = fixture.kernels(sections)
    return text[: text.index("static char* at")] + "\n".join(
        line for line in text[text.index("const char* const kernel_names") :].splitlines()
    )


def write(folder: Path, flags: Iterable[str] = fixture.FLAGS, ptx: bytes = b"") -> Path:
    """A whole bundle in `folder`, and beside it `kernels.so`, which runs its launches."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = tables(ptx)
    (folder / "model.ewm").write_bytes(ewm.pack(sections, fixture.TARGET, fixture.KERNELS_SHA256))
    toolchain.build_runtime({"kernels.cc": names_text(sections)}, [], flags=list(flags), folder=folder, engine="gpu")
    sources = {"kernels.cc": fixture.kernels(sections) + KERNELS}
    toolchain.compile_library(sources, [toolchain.RUNTIME], flags=list(flags), out=folder / "kernels.so")
    return folder


def library(folder: Path, flags: Iterable[str] = fixture.FLAGS) -> Path:
    """libcuda.so.1 in `folder`."""
    sources = {name: (HERE / name).read_text() for name in ("libcuda.cc", "libcuda_graphs.cc", "standin.cc")}
    return toolchain.compile_library(sources, [toolchain.RUNTIME, HERE], flags=list(flags), out=folder / "libcuda.so.1")


@functools.cache
def folder() -> Path:
    """libcuda.so.1 and the bundle as it is, built once in a process and gone with it."""
    made = Path(tempfile.mkdtemp(prefix="edgewm-cuda-"))
    atexit.register(shutil.rmtree, made)
    library(made)
    write(made / "bundle")
    return made


class StandIn:
    """The stand-in loaded into this process, where the runtime's dlopen then finds it."""

    def __init__(self, path: Path):
        self.c = ctypes.CDLL(str(path))
        self.c.standin_faults.restype = ctypes.c_char_p
        self.c.standin_count.argtypes, self.c.standin_count.restype = [ctypes.c_char_p], ctypes.c_uint64
        for name in ("graphs_run", "nodes_run", "clock_ns", "most_waiting"):
            getattr(self.c, f"standin_{name}").restype = ctypes.c_uint64

    def configure(self, kernels: Path, **machine: object) -> None:
        """A machine as Orin is, but for what is given; everything noted so far is forgotten."""
        self.c.standin_configure(settings(kernels, **machine).encode())

    @property
    def faults(self) -> list[str]:
        return self.c.standin_faults().decode().splitlines()

    def count(self, name: str) -> int:
        """How often a function of the driver was called."""
        return self.c.standin_count(name.encode())

    @property
    def graphs_run(self) -> int:
        return self.c.standin_graphs_run()

    @property
    def nodes_run(self) -> int:
        return self.c.standin_nodes_run()

    @property
    def most_waiting(self) -> int:
        """Graphs launched and not run yet, at most."""
        return self.c.standin_most_waiting()

    @property
    def clock_ns(self) -> int:
        """What its nodes and launches have taken since it was configured."""
        return self.c.standin_clock_ns()


def settings(kernels: Path, **machine: object) -> str:
    """What EWM_STANDIN holds for another process."""
    return " ".join(f"{key}={value}" for key, value in {"kernels": kernels, **machine}.items())


@functools.cache
def standin() -> StandIn:
    return StandIn(folder() / "libcuda.so.1")

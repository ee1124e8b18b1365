"""What a GPU charges, for `edgewm targets probe`: peaks, memory, launches, nodes of a graph, barriers of all blocks.

`gpu_probe.cc` runs where the GPU is and needs its driver alone; its kernels (`gpu_ceilings.cu`) go there as PTX, which
that driver compiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cuda.compile import compile_ptx
from ..cuda.launches import RESIDENT
from ..cuda.source import HEADERS, sizes_text
from ..errors import EdgewmError
from ..paths import RUNTIME
from ..target import Target, compile_flags
from ..toolchain import compile_program
from .site import Site

HERE = Path(__file__).parent
PROGRAM, KERNELS = "edgewm-gpu-probe", "ceilings.ptx"
RUNS = 15
ROUNDS = 4096  # of each thread: milliseconds, however many multiprocessors there are
STREAM_BYTES = 1 << 28  # several times the L2 of the largest GPUs
NODES = 1000


def ceilings_text() -> str:
    """The translation unit of `gpu_ceilings.cu`."""
    return f'{sizes_text()}#include "round.cu"\n{(HERE / "gpu_ceilings.cu").read_text()}'


def compiled(board: Target, folder: Path) -> Path:
    """The program in `folder`, for any CPU of the board's kind."""
    folder.mkdir(parents=True)
    flags = [flag for flag in compile_flags(board) if not flag.startswith("-mcpu=")]
    source = {"gpu_probe.cc": (HERE / "gpu_probe.cc").read_text()}
    return compile_program(source, [RUNTIME], flags=flags, out=folder / PROGRAM)


def measure_gpu(board: Target, there: Site, folder: Path) -> dict[str, Any]:
    """Facts of the first GPU of the machine at `there`; {"why"} with what is known of it where nothing was measured.

    `name`, `sm` (87), `driver` (its CUDA, 12060 for 12.6) and `processors` are the driver's words. Rates in 10^9 a
    second: `fp32_gflops`, `bf16_gflops`, `int8_gops` of the instructions that our kernels use (a multiply-add as two),
    `dram_gbps` (reads), `copy_gbps` (reads and writes). Times in us: `graph_node_us` a node of a replayed graph,
    `barrier_us` until all resident blocks of a launch have met (None: they cannot), `launch_us` the call that launches
    a graph, `answer_us` until the end of one with an empty kernel is seen by looking again and again, or by naps
    (`answer_napping_us`). Raises EdgewmError where a program fails.
    """
    compiled(board, folder)
    found = there.run(folder, PROGRAM, "look")
    if "why" in found:
        return found
    try:
        ptx = compile_ptx(ceilings_text(), HEADERS)
    except EdgewmError as fault:
        return {**found, "why": f"{fault.what}: {fault.fix}"}
    (folder / KERNELS).write_text(ptx)
    words = map(str, (RUNS, ROUNDS, STREAM_BYTES, NODES, RESIDENT))
    return {**found, **there.run(folder, PROGRAM, "measure", KERNELS, *words)}

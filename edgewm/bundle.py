"""A scheduled program as files: the sections of `model.ewm`, and the library, runner and header compiled for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import format as ewm
from .codegen import identity_text
from .cuda import gates, launches
from .cuda.compile import Compiled, compile_cuda
from .cuda.source import HEADERS, OWN, cuda_text, launch_rows
from .emit import emit
from .kernel import features, load
from .paths import KERNELS
from .program import Program
from .schedule import Schedule
from .target import Mode, Target, compile_flags
from .toolchain import build_runtime

PERSISTENT = "ewm_persistent"
PERSISTENT_SPILL_BYTES = 32 * 4  # of each function that it calls: those which alone may have more registers, 32 of them
LEAST_DRIVER = {7: 12000, 8: 13000}  # CUDA that knows cubins of an ELF ABI
# What tensor cores must have been asked to do, by the beginning of a function's name.
TENSOR = {
    f"ewm_product_{form}_{what}_": code
    for form, code in (("i8", "IMMA"), ("rounded", "IMMA"), ("bf16", "HMMA"), ("fp16", "HMMA"))
    for what in ("multiply", "attention", "rows")
}


def target_name(board: Target, place: str = "cpu") -> str:
    """What file and library call the machine they are for."""
    return f"{board.machine}-{board.isa if place == 'cpu' else board.gpu.sm}"


def compile_bundle(
    program: Program, schedule: Schedule, manifest: Mapping, board: Target, folder: Path
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The file's sections without golden answers, and the library, runner and header in `folder`."""
    sections, source = emit(program, schedule, manifest)
    kernels_sha256 = source.sha256()
    identity = identity_text(target_name(board), kernels_sha256, ewm.program_sha256(sections))
    flags = (*compile_flags(board, *features(source.families)), *load("product").TILING[board.isa].defines)
    units = {"kernels.cc": source.kernels_text(), "identity.cc": identity}
    build_runtime(units, [KERNELS], flags=flags, folder=folder)
    return sections, {"folder": folder, "kernels_sha256": kernels_sha256, "place": "cpu"}


def compile_gpu_bundle(
    program: Program, schedule: Schedule, manifest: Mapping, board: Target, mode: Mode, folder: Path,
    persistent: bool = False, compiler: Callable[..., Compiled] | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[dict[str, bytes], dict[str, Any]]:  # fmt: skip
    """As `compile_bundle`, for a schedule of `cuda.schedule`; the library holds no kernels. EdgewmError where a kernel
    does not keep to what the board asks for (`cuda.gates`). `persistent`: launches that follow on each other are run as
    one. `compiler` takes the place of `compile_cuda`; `meanwhile` is done by this thread while it runs."""
    sections, source = emit(program, schedule, manifest)
    text = cuda_text(source, persistent)
    with ThreadPoolExecutor(1) as beside:
        registers = launches.REGISTERS if persistent else None
        compiling = beside.submit(compiler or compile_cuda, text, HEADERS, board.gpu.sm, board.gpu.toolkit, registers)
        meanwhile()
        compiled = compiling.result()
    functions, rows = launch_rows(sections, source)
    functions = (*functions, PERSISTENT) if persistent else functions
    check_launches(compiled, functions, rows, board, mode)
    sections |= gpu_sections(compiled, functions, rows, board)
    digest = hashlib.sha256(text.encode())
    for name, header in sorted(HEADERS.items()):
        digest.update(name.encode() + header.encode())
    kernels_sha256 = digest.digest()
    identity = identity_text(target_name(board, "gpu"), kernels_sha256, ewm.program_sha256(sections))
    units = {"kernels.cc": source.names_text(), "identity.cc": identity}
    build_runtime(units, [], flags=compile_flags(board), folder=folder, engine="gpu")
    return sections, {"folder": folder, "kernels_sha256": kernels_sha256, "place": "gpu", "compiled": compiled}


def check_launches(compiled: Compiled, functions: tuple[str, ...], rows: np.ndarray, board: Target, mode: Mode) -> None:
    """The gates, over every launch of the file."""
    one = PERSISTENT in functions
    uses = [
        gates.Use(
            PERSISTENT if one else functions[function],
            int(blocks),
            launches.THREADS,
            int(shared_bytes),
            bool(cooperative),
        )
        for function, blocks, shared_bytes, cooperative in np.unique(
            rows[["function", "blocks", "shared_bytes", "cooperative"]]
        )
    ]
    if one:
        shared_bytes = int(rows["shared_bytes"].max())
        uses.append(gates.Use(PERSISTENT, 1, launches.THREADS, shared_bytes, True, launches.RESIDENT))
    names = [facts.name for facts in compiled.facts]  # where launches are one, a chain calls functions of its own
    ran = {name: name if one else name.replace("_chain_", "_", 1) for name in names}
    wanted = {name: code for name, what in ran.items() for begin, code in TENSOR.items() if what.startswith(begin)}
    gates.check(compiled, uses, wanted, board, mode, dict.fromkeys(names, PERSISTENT_SPILL_BYTES) if one else {})


def gpu_sections(compiled: Compiled, functions: tuple[str, ...], rows: np.ndarray, board: Target) -> dict[str, bytes]:
    """The sections that only a file for a GPU has."""
    abi = compiled.cubin[8]  # EI_ABIVERSION
    (stamp,) = map(functions.index, OWN)
    persistent = functions.index(PERSISTENT) if PERSISTENT in functions else ewm.NONE
    sm = int(board.gpu.sm.removeprefix("sm_"))
    gpu = (sm, LEAST_DRIVER[abi], abi, launches.THREADS, len(functions), len(rows), stamp, persistent)
    return {
        "gpu": np.array([gpu], ewm.GPU).tobytes(),
        "functions": np.array([(name.encode(),) for name in functions], ewm.FUNCTION).tobytes(),
        "launches": rows.tobytes(), "cubin": compiled.cubin, "ptx": compiled.ptx.encode() + b"\0",
        "facts": json.dumps([asdict(f) for f in compiled.facts], sort_keys=True, separators=(",", ":")).encode(),
    }  # fmt: skip


def pack(sections: Mapping[str, bytes], board: Target, paths: Mapping[str, Any]) -> bytes:
    return ewm.pack(sections, target_name(board, paths["place"]), paths["kernels_sha256"])

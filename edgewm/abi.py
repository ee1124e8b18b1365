"""`edgewm.h` for ctypes: its structs, its signatures, and the library that speaks them."""

from __future__ import annotations

import ctypes
import platform
from ctypes import POINTER, c_char, c_char_p, c_float, c_int, c_int32, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from .errors import EdgewmError

ABI = 1
NONE = 0xFFFFFFFF
ELF_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}

Clock = ctypes.CFUNCTYPE(c_uint64, c_void_p)


def _struct(name: str, /, **fields: Any) -> type[ctypes.Structure]:
    """A struct of edgewm.h; each begins with its own size."""
    return type(name, (ctypes.Structure,), {"_fields_": [("size", c_uint32), *fields.items()]})


def _many(names: str, of: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), of)


Fault = _struct("Fault", error=c_int32, where=c_char * 96, found=c_char * 128, expected=c_char * 128)
ModelInfo = _struct(
    "ModelInfo",
    **_many("entries ports steps calls kernels plan_entry action_port", c_uint32),
    **_many("arena_bytes scratch_bytes weight_bytes file_bytes", c_uint64),
    gpu=c_uint32,
    persistent=c_uint32,
)
EntryInfo = _struct("EntryInfo", **_many("ports first_step steps", c_uint32), name=c_char * 24)
PortInfo = _struct(
    "PortInfo",
    **_many("kind dtype rank", c_uint32),
    dim=c_uint32 * 6,
    elements=c_uint32,
    bytes=c_uint64,
    **_many("low high", c_float),
    max_age_ns=c_uint64,
    **_many("axes action_block commit_steps", c_uint32),
    name=c_char * 24,
)
Options = _struct(
    "Options",
    spin=c_uint32,
    period_ns=c_uint64,
    **_many("max_hold_periods ramp_periods", c_uint32),
    clock=Clock,
    clock_state=c_void_p,
    anywhere=c_uint32,
    gpu_wait_ns=c_uint64,
)
PlanStruct = _struct(
    "PlanStruct",
    **_many("late iterations of", c_uint32),
    **_many("generation start_ns end_ns stamp_ns due_ns", c_uint64),
)
ActStruct = _struct(
    "ActStruct", **_many("state index limited skipped", c_uint32), **_many("generation age_ns", c_uint64)
)
Counts = _struct(
    "Counts",
    reserved=c_uint32,
    **_many("plans published late stale missing refused_input result_non_finite", c_uint64),
    **_many("observed wrong_size non_finite out_of_range bad_stamp", c_uint64),
    **_many("acts waiting fresh hold ramp stopped skipped limited chunks", c_uint64),
    **_many("futex_calls held_up begun_late begun_anew moved", c_uint64),
    **_many("graph_nodes graph_bytes graph_ns ptx stamp_ns", c_uint64),
)


class Buffer(ctypes.Structure):
    _fields_ = (("port", c_uint32), ("data", c_void_p), ("bytes", c_uint64))


_FAULT = POINTER(Fault)
_SIGNATURES = (
    ("abi", c_uint32),
    ("target", c_char_p),
    ("strerror", c_char_p, c_int),
    ("open", c_int, c_char_p, POINTER(c_void_p), _FAULT),
    ("open_bytes", c_int, c_char_p, c_uint64, POINTER(c_void_p), _FAULT),
    ("close", None, c_void_p),
    ("describe", c_int, c_void_p, POINTER(ModelInfo)),
    ("entry", c_int, c_void_p, c_uint32, POINTER(EntryInfo)),
    ("entry_port", c_uint32, c_void_p, c_uint32, c_uint32),
    ("port", c_int, c_void_p, c_uint32, POINTER(PortInfo)),
    ("arena_bytes", c_uint64, c_void_p, c_uint32),
    ("init", c_int, c_void_p, c_void_p, c_uint64, c_uint32, POINTER(Options), POINTER(c_void_p), _FAULT),
    ("end", None, c_void_p),
    ("set_goal", c_int, c_void_p, c_uint32, c_void_p, c_uint64, _FAULT),
    ("reset", c_int, c_void_p, c_uint64, _FAULT),
    ("warm_start", c_int, c_void_p, c_void_p, c_uint64, _FAULT),
    ("observe", c_int, c_void_p, c_uint32, c_void_p, c_uint64, c_uint64, _FAULT),
    ("plan", c_int, c_void_p, c_uint64, POINTER(PlanStruct), _FAULT),
    ("act", c_int, c_void_p, c_uint64, POINTER(c_float), POINTER(ActStruct)),
    ("run_entry", c_int, c_void_p, c_uint32, POINTER(Buffer), c_uint32, POINTER(Buffer), c_uint32, _FAULT),
    ("stats", c_int, c_void_p, POINTER(Counts)),
)


def elf_machine(path: Path) -> str:
    """What an ELF file is made for, in the kernel's words (`uname -m`); `unknown` for anything else."""
    with path.open("rb") as file:
        head = file.read(20)
    return ELF_MACHINES.get(int.from_bytes(head[18:20], "little"), "unknown") if head[:4] == b"\x7fELF" else "unknown"


def library(path: Path) -> ctypes.CDLL:
    """libedgewm.so with its signatures; EdgewmError when it cannot be loaded here or speaks another ABI."""
    machine = elf_machine(path) if path.is_file() else "unknown"
    if machine not in ("unknown", platform.machine()):  # the dynamic linker would only say that there is no such file
        raise EdgewmError(
            f"the bundle is for {machine}, this machine is {platform.machine()}",
            str(path),
            "copy the bundle to its target and run edgewm-tick there, or build with --target host",
        )
    try:
        c = ctypes.CDLL(str(path.resolve()))
    except OSError as fault:
        raise EdgewmError(
            f"cannot load the runtime: {fault}", str(path), "use a bundle built for this machine (--target host)"
        ) from fault
    for name, result, *arguments in _SIGNATURES:
        function = getattr(c, f"ewm_{name}")
        function.restype, function.argtypes = result, arguments
    if c.ewm_abi() != ABI:
        raise EdgewmError(
            f"the runtime speaks ABI {c.ewm_abi()}, this edgewm speaks {ABI}", str(path), "build the bundle again"
        )
    return c


def sized(kind: type) -> Any:
    """A struct of this kind with its size filled in, as every call wants it."""
    made = kind()
    made.size = ctypes.sizeof(kind)
    return made


def fields(struct: ctypes.Structure, skip: tuple[str, ...] = ("size", "reserved")) -> dict[str, Any]:
    """What a struct holds, by name."""
    return {name: getattr(struct, name) for name, _ in struct._fields_ if name not in skip}

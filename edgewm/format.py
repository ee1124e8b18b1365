"""model.ewm from Python: the structs of `runtime/format.h` as numpy dtypes, and `pack` and `unpack` of whole files.

The file is a header, a table of sections, and the sections, each 64-byte aligned with zeros between; every section
and the table carry a SHA-256. It holds no time, name or path: the same sections give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from .errors import EdgewmError

MAGIC = b"EDGEWM\r\n"
FORMAT = 1
ALIGN = 64
MAX_RANK = 6
MAX_OPERANDS = 32
NONE = 0xFFFFFFFF  # an index that points nowhere

KINDS = {"observation": 0, "goal": 1, "action": 2, "noise": 3, "state": 4, "result": 5}
DTYPES = {"f32": 0, "i32": 1, "u32": 2, "i8": 3, "u8": 4, "bf16": 5}
CONTROLS = {"position": 0, "velocity": 1, "torque": 2}
REGION, REPEAT, END = 0, 1, 2
ARENA, SCRATCH, WEIGHTS = 0, 1, 2

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("format", "<u4"),
        ("sections", "<u4"),
        ("file_bytes", "<u8"),
        ("table_sha256", "V32"),
        ("kernels_sha256", "V32"),
        ("target", "S32"),
    ]
)
SECTION = np.dtype([("name", "S16"), ("offset", "<u8"), ("bytes", "<u8"), ("sha256", "V32")])
SIZES = np.dtype(
    [
        ("arena_bytes", "<u8"),
        ("scratch_bytes", "<u8"),
        ("weight_bytes", "<u8"),
        *((name, "<u4") for name in ("entries", "ports", "steps", "calls", "operands", "plan_entry")),
    ]
)
PORT = np.dtype(
    [
        ("name", "S24"),
        ("kind", "u1"),
        ("dtype", "u1"),
        ("control", "u1"),
        ("rank", "u1"),
        ("dim", "<u4", 6),
        ("elements", "<u4"),
        ("offset", "<u8"),
        ("low", "<f4"),
        ("high", "<f4"),
        ("max_age_ns", "<u8"),
        ("feedback", "<u4"),
        ("axes", "<u4"),
        ("slew", "<f4"),
        ("action_block", "<u4"),
        ("safe", "<f4", 16),
        ("scale", "<f4", 16),
        ("offset_", "<f4", 16),
        ("has_safe", "<u4"),
        ("commit_steps", "<u4"),
    ]
)
ENTRY = np.dtype([("name", "S24"), ("first_step", "<u4"), ("steps", "<u4"), ("first_port", "<u4"), ("ports", "<u4")])
STEP = np.dtype(
    [
        *((name, "<u4") for name in ("kind", "first_call", "calls", "lanes", "tile", "count", "anytime", "reserved")),
        ("counter", "<u8"),
    ]
)
OPERAND = np.dtype(
    [
        ("space", "u1"),
        ("dtype", "u1"),
        ("is_output", "u1"),
        ("gathered", "u1"),
        ("bytes", "<u4"),
        ("offset", "<u8"),
        ("lane_stride", "<i4"),
        ("stride", "<i4", MAX_RANK),
        ("reserved2", "<u4"),
    ]
)
CALL = np.dtype(
    [
        ("kernel", "<u4"),
        ("first_operand", "<u4"),
        ("operands", "<u4"),
        ("rank", "<u4"),
        ("dim", "<u4", MAX_RANK),
        ("lanes", "<u4"),
        ("cut", "<u4"),
    ]
)
# Of a file whose calls run on a GPU.
GPU_FIELDS = ("sm", "driver", "elf_abi", "threads", "functions", "launches", "stamp", "persistent")
GPU = np.dtype([(name, "<u4") for name in GPU_FIELDS])
FUNCTION = np.dtype([("name", "S40")])
LAUNCH = np.dtype([(name, "<u4") for name in ("call", "phase", "function", "blocks", "shared_bytes", "cooperative")])

# What a library is compiled for: its kernels index and trust these sections, so it carries their SHA-256.
PROGRAM_SECTIONS = ("sizes", "ports", "entries", "entry_ports", "steps", "calls", "operands")
GPU_SECTIONS = ("gpu", "functions", "launches", "cubin", "ptx")  # trusted too, where a library runs them


def program_sha256(sections: Mapping[str, bytes]) -> bytes:
    """Identity of the program in a file: SHA-256 over the SHA-256s of the sections that kernels trust, in order."""
    names = (*PROGRAM_SECTIONS, *GPU_SECTIONS) if "gpu" in sections else PROGRAM_SECTIONS
    return hashlib.sha256(b"".join(hashlib.sha256(sections[name]).digest() for name in names)).digest()


def pack(sections: Mapping[str, bytes], target: str, kernels_sha256: bytes) -> bytes:
    """The file that holds these sections, in the order given.

    `target` is the library's `target_name` (at most 31 ASCII characters), `kernels_sha256` its 32 bytes. Raises
    EdgewmError for a name that does not fit.
    """
    for what, name, limit in [("section name", n, 15) for n in sections] + [("target", target, 31)]:
        if not name.isascii() or not 0 < len(name) <= limit:
            raise EdgewmError(f"{what} {name!r} does not fit", "model.ewm", f"use 1 to {limit} ASCII characters")
    if len(kernels_sha256) != 32:
        raise EdgewmError(f"kernels_sha256 has {len(kernels_sha256)} bytes", "model.ewm", "give a SHA-256 of 32 bytes")
    table = np.zeros(len(sections), SECTION)
    blobs: list[bytes] = []
    at = HEADER.itemsize + table.nbytes
    for row, (name, data) in zip(table, sections.items(), strict=True):
        gap = -at % ALIGN
        blobs += [bytes(gap), bytes(data)]
        row["name"], row["offset"], row["bytes"] = name.encode(), at + gap, len(data)
        row["sha256"] = hashlib.sha256(data).digest()
        at += gap + len(data)
    header = np.zeros((), HEADER)
    header["magic"], header["format"], header["sections"], header["file_bytes"] = MAGIC, FORMAT, len(table), at
    header["table_sha256"] = hashlib.sha256(table.tobytes()).digest()
    header["kernels_sha256"], header["target"] = kernels_sha256, target.encode()
    return header.tobytes() + table.tobytes() + b"".join(blobs)


def read_header(data: bytes) -> np.void:
    """The header of a file, its magic and format checked; EdgewmError when it is not one of ours."""
    if len(data) < HEADER.itemsize:
        raise _refused(f"the file has {len(data)} bytes", f"a header of {HEADER.itemsize}")
    if data[:8] != MAGIC:
        raise _refused(f"the file begins with {data[:8]!r}", f"{MAGIC!r}")
    header = np.frombuffer(data, HEADER, 1)[0]
    if header["format"] != FORMAT:
        raise _refused(f"the file is of format {header['format']}", f"format {FORMAT}")
    return header


def unpack(data: bytes) -> dict[str, bytes]:
    """The sections of a file by name, in its order, after checking every byte of it.

    Raises EdgewmError naming what was found and what was expected.
    """
    header = read_header(data)
    if header["file_bytes"] != len(data):
        raise _refused(f"the file has {len(data)} bytes", f"{header['file_bytes']}, as its header says")
    end = HEADER.itemsize + int(header["sections"]) * SECTION.itemsize
    if end > len(data):
        raise _refused(f"the header claims {header['sections']} sections", "a section table inside the file")
    raw = data[HEADER.itemsize : end]
    _digest("the section table", raw, header["table_sha256"].tobytes())
    sections: dict[str, bytes] = {}
    for row in np.frombuffer(raw, SECTION):
        name, offset, size = row["name"].decode("ascii", "replace"), int(row["offset"]), int(row["bytes"])
        begin = end + -end % ALIGN
        if offset != begin or offset + size > len(data):
            raise _refused(
                f"section {name!r} lies at {offset}, {size} bytes", f"offset {begin}, inside {len(data)} bytes"
            )
        if any(data[end:begin]):
            raise _refused(f"bytes before section {name!r} are not zero", "zeros between sections")
        if name in sections:
            raise _refused(f"two sections named {name!r}", "each name once")
        _digest(f"section {name!r}", data[begin : begin + size], row["sha256"].tobytes())
        sections[name] = data[begin : begin + size]
        end = begin + size
    if end != len(data):
        raise _refused(f"{len(data) - end} bytes after the last section", "nothing after it")
    return sections


def _digest(what: str, data: bytes, expected: bytes) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected.hex():
        raise _refused(f"{what} has SHA-256 {found[:16]}...", f"{expected.hex()[:16]}...")


def _refused(found: str, expected: str) -> EdgewmError:
    return EdgewmError(f"{found}; expected {expected}", "model.ewm", "copy or build the bundle again")


def golden_record(entry: str, values: list[tuple[int, np.ndarray]]) -> bytes:
    """One record of section `golden`: an entry, then for each port its index, bytes and data; inputs before results."""
    out = [entry.encode().ljust(24, b"\0"), np.uint32(len(values)).tobytes()]
    for port, array in values:
        out += [np.array([port, array.nbytes], "<u4").tobytes(), np.ascontiguousarray(array).tobytes()]
    return b"".join(out)

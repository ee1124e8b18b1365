"""Opening model.ewm in C++: whatever is damaged, foreign or breaks a rule is refused, and says what was found."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

import cuda_standin
import numpy as np
import pytest
import runtime_fixture as fixture

from edgewm import abi, toolchain
from edgewm import format as ewm
from edgewm.binding import Runtime
from edgewm.errors import EdgewmError

INVALID, OTHER_PROGRAM = 206, 205


class Opener:
    """ewm_open_bytes without a loop: (error, where, found, expected)."""

    def __init__(self, bundle: Path):
        self.c = abi.library(bundle / "libedgewm.so")

    def __call__(self, data: bytes) -> tuple[int, str, str, str]:
        model, fault = ctypes.c_void_p(), abi.sized(abi.Fault)
        error = self.c.ewm_open_bytes(data, len(data), ctypes.byref(model), ctypes.byref(fault))
        assert (error == 0) == bool(model)
        if model:
            self.c.ewm_close(model)
        return error, *(getattr(fault, name).decode(errors="replace") for name in ("where", "found", "expected"))


@pytest.fixture(scope="module")
def opens() -> Opener:
    return Opener(fixture.bundle())


@pytest.fixture(scope="module")
def whole() -> bytes:
    return (fixture.bundle() / "model.ewm").read_bytes()


def test_accepts_the_file_as_it_is(opens: Opener, whole: bytes) -> None:
    assert opens(whole)[0] == 0


def test_refuses_every_truncation(opens: Opener, whole: bytes) -> None:
    for n in range(len(whole)):
        error, where, found, expected = opens(whole[:n])
        assert error == 202 and where == "file" and found == f"{n} bytes" and expected


def test_refuses_every_flipped_bit_of_header_and_table_and_one_of_each_byte_after(opens: Opener, whole: bytes) -> None:
    tables = ewm.HEADER.itemsize + len(fixture.tables()) * ewm.SECTION.itemsize
    draw = random.Random(0)
    bits = [*range(8 * tables), *(8 * at + draw.randrange(8) for at in range(tables, len(whole)))]
    changed = bytearray(whole)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
        error, where, found, expected = opens(bytes(changed))
        changed[bit // 8] ^= 1 << bit % 8
        assert 200 <= error <= 206, f"bit {bit} of byte {bit // 8} was accepted"
        assert where and found and expected


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"\x7fELF" + bytes(300), 200, "7f 45 4c 46"),
        (b"EDGEWM\n\n" + bytes(300), 200, "0a 0a"),
        (ewm.MAGIC + (2).to_bytes(4, "little") + bytes(300), 201, "format 2"),
    ],
)
def test_refuses_a_foreign_file(opens: Opener, data: bytes, error: int, message: str) -> None:
    got, _, found, expected = opens(data)
    assert got == error and message in found and expected


def test_refuses_another_target_other_kernels_and_another_program(opens: Opener) -> None:
    sections = fixture.tables()
    error, where, found, expected = opens(ewm.pack(sections, "aarch64-neon", fixture.KERNELS_SHA256))
    assert (error, where, found) == (204, "header", "target aarch64-neon") and fixture.TARGET in expected
    error, where, found, expected = opens(ewm.pack(sections, fixture.TARGET, bytes(32)))
    assert (error, found) == (205, "kernels 0000000000000000...")
    rows = np.frombuffer(sections["ports"], ewm.PORT).copy()
    rows["max_age_ns"][2] += 1  # breaks no rule, but is not the program this library was built for
    error, where, found, expected = opens(
        ewm.pack({**sections, "ports": rows.tobytes()}, fixture.TARGET, fixture.KERNELS_SHA256)
    )
    assert (error, where) == (205, "tables")


def test_refuses_a_huge_claim_at_once(opens: Opener, whole: bytes) -> None:
    header = np.frombuffer(whole, ewm.HEADER, 1).copy()
    header["sections"] = 0xFFFFFFFF
    assert opens(header.tobytes() + whole[ewm.HEADER.itemsize :])[:3] == (206, "header", "4294967295 sections")
    header["file_bytes"] = 1 << 62
    assert opens(header.tobytes() + whole[ewm.HEADER.itemsize :])[0] == 202


MUTATIONS = [
    ("sizes", ewm.SIZES, 0, "arena_bytes", 1 << 41, "arena 2199023255552"),
    ("sizes", ewm.SIZES, 0, "arena_bytes", 1024, "offset 1024"),
    ("sizes", ewm.SIZES, 0, "plan_entry", 2, "plan_entry 2"),
    ("sizes", ewm.SIZES, 0, "weight_bytes", 100, "576 bytes"),
    ("sizes", ewm.SIZES, 0, "calls", 11, "480 bytes"),
    ("sizes", ewm.SIZES, 0, "entries", 0, "80 bytes"),
    ("ports", ewm.PORT, 0, "name", b"X", "a bad name"),
    ("ports", ewm.PORT, 0, "kind", 9, "kind 9"),
    ("ports", ewm.PORT, 0, "elements", 121, "121 elements"),
    ("ports", ewm.PORT, 0, "offset", 32, "offset 32"),
    ("ports", ewm.PORT, 1, "offset", 1856, "offset 1856"),
    ("ports", ewm.PORT, 2, "low", np.nan, "range [nan, 10]"),
    ("ports", ewm.PORT, 7, "feedback", 0, "feedback from port 0"),
    ("ports", ewm.PORT, 0, "feedback", 9, "feedback 9"),
    ("ports", ewm.PORT, 8, "axes", 17, "17 axes"),
    ("ports", ewm.PORT, 8, "action_block", 2, "block 2 x axes 2"),
    ("ports", ewm.PORT, 8, "commit_steps", 4, "commit_steps 4"),
    ("ports", ewm.PORT, 8, "slew", -1.0, "slew -1"),
    ("ports", ewm.PORT, 8, "safe", 1000.0, "safe value 1000"),
    ("ports", ewm.PORT, 8, "scale", np.inf, "scale inf"),
    ("ports", ewm.PORT, 8, "kind", 5, "0 action ports"),
    ("entries", ewm.ENTRY, 0, "steps", 99, "steps 0 + 99"),
    ("entries", ewm.ENTRY, 1, "name", b"affine", "there twice"),
    ("entries", ewm.ENTRY, 1, "ports", 9, "ports 2 + 9"),
    ("entries", ewm.ENTRY, 1, "steps", 4, "1 repeats left open"),
    ("entries", ewm.ENTRY, 0, "steps", 0, "no region"),
    ("entry_ports", np.dtype("<u4"), 0, None, 10, "port 10"),
    ("entry_ports", np.dtype("<u4"), 1, None, 0, "port x twice"),
    ("steps", ewm.STEP, 0, "kind", 3, "kind 3"),
    ("steps", ewm.STEP, 0, "tile", 24, "tiles of 24"),
    ("steps", ewm.STEP, 0, "lanes", 0, "0 lanes"),
    ("steps", ewm.STEP, 0, "calls", 11, "calls 0 + 11"),
    ("steps", ewm.STEP, 2, "count", 0, "0 rounds"),
    ("steps", ewm.STEP, 2, "counter", 1918, "counter at 1918"),
    ("steps", ewm.STEP, 2, "counter", 1920, "counter at 1920"),
    ("steps", ewm.STEP, 2, "kind", 2, "an end without a repeat"),
    ("steps", ewm.STEP, 6, "count", 2, "2 steps back"),
    ("calls", ewm.CALL, 0, "kernel", 3, "kernel 3"),
    ("calls", ewm.CALL, 0, "rank", 7, "rank 7"),
    ("calls", ewm.CALL, 0, "operands", 33, "33 operands"),
    ("calls", ewm.CALL, 9, "first_operand", 28, "operands 28 + 3"),
    ("calls", ewm.CALL, 0, "lanes", 41, "41 lanes"),
    ("calls", ewm.CALL, 0, "dim", 0, "dim 0 is 0"),
    ("calls", ewm.CALL, 1, "dim", 4, "strides that reach"),
    ("calls", ewm.CALL, 1, "dim", 0xFFFFFFFF, "strides that reach"),
    ("operands", ewm.OPERAND, 0, "space", 3, "space 3"),
    ("operands", ewm.OPERAND, 1, "is_output", 1, "an output in the weights"),
    ("operands", ewm.OPERAND, 2, "offset", 4, "offset 4"),
    ("operands", ewm.OPERAND, 0, "offset", 2, "offset 2"),
    ("operands", ewm.OPERAND, 0, "offset", 1 << 40, "offset 1099511627776"),
    ("operands", ewm.OPERAND, 0, "bytes", 479, "strides that reach 480 bytes"),
    ("operands", ewm.OPERAND, 0, "bytes", 1921, "extent 1921"),
    ("operands", ewm.OPERAND, 0, "lane_stride", -3, "strides that reach before its offset"),
    ("operands", ewm.OPERAND, 2, "stride", 17, "strides that reach 200 bytes"),
    ("operands", ewm.OPERAND, 0, "gathered", 2, "space 0"),
    ("operands", ewm.OPERAND, 0, "reserved2", 1, "space 0"),
]


@pytest.mark.parametrize(("section", "dtype", "row", "column", "value", "message"), MUTATIONS)
def test_refuses_a_broken_rule_with_good_digests(
    opens: Opener, section: str, dtype: np.dtype, row: int, column: str | None, value: object, message: str
) -> None:
    sections = fixture.tables()
    rows = np.frombuffer(sections[section], dtype).copy()
    if column is None:
        rows[row] = value
    elif rows[column].ndim > 1:
        rows[column][row][0] = value
    else:
        rows[column][row] = value
    error, where, found, expected = opens(
        ewm.pack({**sections, section: rows.tobytes()}, fixture.TARGET, fixture.KERNELS_SHA256)
    )
    assert error == INVALID
    assert message in found
    assert where and expected


@pytest.mark.parametrize("name", ewm.PROGRAM_SECTIONS)
def test_refuses_a_missing_section(opens: Opener, name: str) -> None:
    sections = {k: v for k, v in fixture.tables().items() if k != name}
    error, where, found, _ = opens(ewm.pack(sections, fixture.TARGET, fixture.KERNELS_SHA256))
    assert (error, where, found) == (INVALID, f"section {name}", "not there")


def test_refuses_drawn_mutations_with_good_digests(opens: Opener) -> None:
    draw, sections = random.Random(1), fixture.tables()
    for _ in range(3000):
        name = draw.choice(ewm.PROGRAM_SECTIONS)
        data = bytearray(sections[name])
        at = draw.randrange(len(data) // 4) * 4
        data[at : at + 4] = draw.choice([draw.randbytes(4), bytes(4), b"\xff" * 4, b"\1\0\0\0", b"\0\0\0\x80"])
        if data != sections[name]:
            changed = ewm.pack({**sections, name: bytes(data)}, fixture.TARGET, fixture.KERNELS_SHA256)
            assert opens(changed)[0] in (INVALID, OTHER_PROGRAM)


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_under_sanitizers_mutations_are_refused_without_a_fault(tmp_path: Path, whole: bytes, engine: str) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is missing (zig has no address sanitizer); apt-get install g++")
    text, own = fixture.kernels(fixture.tables()), toolchain.LIBRARY_SOURCES
    if engine == "gpu":
        text, own = cuda_standin.names_text(cuda_standin.tables()), toolchain.GPU_LIBRARY_SOURCES
        whole = ewm.pack(cuda_standin.tables(), fixture.TARGET, fixture.KERNELS_SHA256)
    (tmp_path / "kernels.cc").write_text(text)
    (tmp_path / "model.ewm").write_bytes(whole)
    sources = [tmp_path / "kernels.cc", Path(__file__).with_name("fuzz_open.cc")]
    sources += [toolchain.RUNTIME / name for name in own]
    flags = ["-std=c++17", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread", "-ldl"]
    build = [compiler, *flags, "-I", toolchain.RUNTIME, "-o", tmp_path / "fuzz", *sources]
    built = subprocess.run(build, capture_output=True, text=True)
    if "cannot find" in built.stderr and "asan" in built.stderr:
        pytest.skip("libasan is missing; apt-get install g++")
    assert built.returncode == 0, built.stderr
    for fix in ("0", "1"):
        done = subprocess.run(
            [tmp_path / "fuzz", tmp_path / "model.ewm", "2000", "7", fix], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(fixture.bundle(), folder)
    (folder / "model.ewm").unlink()
    with pytest.raises(EdgewmError, match="cannot read the file: found No such file or directory"):
        Runtime(folder)
    (folder / "model.ewm").mkdir()
    with pytest.raises(EdgewmError, match="not a regular file"):
        Runtime(folder)
    (folder / "libedgewm.so").write_bytes(b"not a library")
    with pytest.raises(EdgewmError, match="cannot load the runtime"):
        Runtime(folder)

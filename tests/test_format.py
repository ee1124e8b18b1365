"""model.ewm in Python: the same structs as the header, the same bytes twice, and nothing damaged accepted."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
import runtime_fixture as fixture
from hypothesis import given
from hypothesis import strategies as st

from edgewm import format as ewm
from edgewm import toolchain
from edgewm.errors import EdgewmError

STRUCTS = {
    "Header": ewm.HEADER,
    "Section": ewm.SECTION,
    "Sizes": ewm.SIZES,
    "Port": ewm.PORT,
    "Entry": ewm.ENTRY,
    "Step": ewm.STEP,
    "Operand": ewm.OPERAND,
    "Call": ewm.CALL,
    "Gpu": ewm.GPU,
    "Function": ewm.FUNCTION,
    "GpuLaunch": ewm.LAUNCH,
}
SECTIONS = {"sizes": b"12345678", "empty": b"", "weights": bytes(range(100))}


def packed() -> bytes:
    return ewm.pack(SECTIONS, "x86_64-test", bytes(32))


def test_dtypes_lie_as_the_header_says(tmp_path: Path) -> None:
    lines = [
        f'printf("{struct} {name} %zu %zu\\n", offsetof({struct}, {name}), sizeof({struct}::{name}));'
        for struct, dtype in STRUCTS.items()
        for name in dtype.names
    ] + [f'printf("{struct} . 0 %zu\\n", sizeof({struct}));' for struct in STRUCTS]
    text = '#include <stddef.h>\n#include <stdio.h>\n#include "format.h"\nusing namespace ewm;\nint main() {\n'
    program = toolchain.compile_program(
        {"offsets.cc": text + "\n".join(lines) + "\n}\n"},
        [toolchain.RUNTIME],
        flags=fixture.FLAGS,
        out=tmp_path / "offsets",
    )
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    for line in printed.splitlines():
        struct, name, offset, size = line.split()
        dtype = STRUCTS[struct]
        found = (0, dtype.itemsize) if name == "." else (dtype.fields[name][1], dtype.fields[name][0].itemsize)
        assert found == (int(offset), int(size)), line


def test_packs_aligned_with_zero_gaps_and_the_same_bytes_twice() -> None:
    data = packed()
    assert data == packed()
    assert ewm.unpack(data) == SECTIONS
    table = np.frombuffer(data, ewm.SECTION, len(SECTIONS), ewm.HEADER.itemsize)
    assert [int(row["offset"]) % 64 for row in table] == [0, 0, 0]
    assert int(table[-1]["offset"]) + int(table[-1]["bytes"]) == len(data)


@given(st.data())
def test_every_flipped_bit_is_refused_or_names_another_library(data: st.DataObject) -> None:
    whole = bytearray(packed())
    at = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[at // 8] ^= 1 << at % 8
    identity = range(ewm.HEADER.fields["kernels_sha256"][1], ewm.HEADER.itemsize)  # compared by the library, not here
    if at // 8 in identity:
        assert ewm.unpack(bytes(whole)) == SECTIONS
    else:
        with pytest.raises(EdgewmError):
            ewm.unpack(bytes(whole))


def test_every_truncation_is_refused() -> None:
    whole = packed()
    for n in range(len(whole)):
        with pytest.raises(EdgewmError):
            ewm.unpack(whole[:n])


def refixed(whole: bytes, change) -> bytes:
    """The file with its table changed and the table's digest made good again."""
    count = int(np.frombuffer(whole, ewm.HEADER, 1)[0]["sections"])
    end = ewm.HEADER.itemsize + count * ewm.SECTION.itemsize
    table = np.frombuffer(whole[ewm.HEADER.itemsize : end], ewm.SECTION).copy()
    change(table)
    header = np.frombuffer(whole, ewm.HEADER, 1).copy()
    header["table_sha256"] = hashlib.sha256(table.tobytes()).digest()
    return header.tobytes() + table.tobytes() + whole[end:]


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("offset", 0, 0, "section 'sizes' lies at 0, 8 bytes; expected offset 320"),
        ("bytes", 2, 10**12, "section 'weights' lies at 384, 1000000000000 bytes"),
        ("bytes", 2, 99, "section 'weights' has SHA-256"),
        ("name", 1, b"sizes", "two sections named 'sizes'"),
        ("sha256", 0, bytes(32), "section 'sizes' has SHA-256"),
    ],
)
def test_a_bad_table_is_refused_by_name(column: str, row: int, value: object, message: str) -> None:
    def change(table: np.ndarray) -> None:
        table[column][row] = value

    with pytest.raises(EdgewmError) as refusal:
        ewm.unpack(refixed(packed(), change))
    assert message in refusal.value.what
    assert "expected" in refusal.value.what


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file has 0 bytes; expected a header of 120"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "the file begins with b'\\x89PNG"),
        (ewm.MAGIC + (7).to_bytes(4, "little") + bytes(200), "the file is of format 7; expected format 1"),
    ],
)
def test_a_foreign_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(EdgewmError) as refusal:
        ewm.unpack(data)
    assert message in refusal.value.what


def test_trailing_bytes_and_dirty_gaps_are_refused() -> None:
    whole = bytearray(packed())
    whole[ewm.HEADER.itemsize + 3 * ewm.SECTION.itemsize] = 1
    with pytest.raises(EdgewmError, match="bytes before section 'sizes' are not zero"):
        ewm.unpack(bytes(whole))


@pytest.mark.parametrize(
    ("sections", "target", "digest", "message"),
    [
        ({"a-name-of-sixteen": b""}, "t", bytes(32), "section name 'a-name-of-sixteen' does not fit"),
        ({"a": b""}, "t" * 32, bytes(32), "does not fit"),
        ({"a": b""}, "t", bytes(31), "kernels_sha256 has 31 bytes"),
    ],
)
def test_pack_refuses_what_does_not_fit(sections: dict, target: str, digest: bytes, message: str) -> None:
    with pytest.raises(EdgewmError) as refusal:
        ewm.pack(sections, target, digest)
    assert message in refusal.value.what

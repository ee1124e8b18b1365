"""The compiler in the wheel: what it links, that it repeats itself, and how it refuses."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
import runtime_fixture as fixture

from edgewm import toolchain
from edgewm.errors import EdgewmError

ORIN = ("-target", "aarch64-linux-gnu.2.31", "-mcpu=cortex_a78ae")
MACHINES = {62: "x86_64", 183: "aarch64"}
LIBRARY_LIMIT_BYTES = 300_000


def elf(path: Path) -> tuple[str, list[str], bytes]:
    """Machine, NEEDED libraries and the whole of a 64-bit little-endian ELF file (System V ABI, chapters 4 and 5)."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\2\1"
    machine, at, count = (
        struct.unpack_from("<H", data, 18)[0],
        *struct.unpack_from("<Q", data, 32),
        struct.unpack_from("<H", data, 56)[0],
    )
    segments = [struct.unpack_from("<IIQQQQQQ", data, at + 56 * i) for i in range(count)]
    (dynamic,) = (s for s in segments if s[0] == 2)
    tags = list(struct.iter_unpack("<QQ", data[dynamic[2] : dynamic[2] + dynamic[5]]))
    strings = next(value for tag, value in tags if tag == 5)
    (offset,) = (s[2] + strings - s[3] for s in segments if s[0] == 1 and s[3] <= strings < s[3] + s[5])
    names = [data[offset + v : data.index(b"\0", offset + v)].decode() for tag, v in tags if tag == 1]
    return MACHINES[machine], names, data


def test_the_library_needs_libc_and_libm_alone_and_is_small() -> None:
    machine, needed, data = elf(fixture.bundle() / "libedgewm.so")
    assert machine == fixture.HOST
    assert set(needed) <= {"libc.so.6", "libm.so.6"}
    assert len(data) <= LIBRARY_LIMIT_BYTES
    assert b".note.gnu.build-id" not in data and b".symtab" not in data


def test_the_runner_needs_its_library_beside_it() -> None:
    _, needed, data = elf(fixture.bundle() / "edgewm-tick")
    assert set(needed) <= {"libedgewm.so", "libc.so.6", "libpthread.so.0"}
    assert b"$ORIGIN" in data


def test_an_aarch64_target_gives_aarch64_files(tmp_path: Path) -> None:
    paths = toolchain.build_runtime({"kernels.cc": fixture.kernels(fixture.tables())}, [], flags=ORIN, folder=tmp_path)
    assert sorted(paths) == ["edgewm-tick", "edgewm.h", "libedgewm.so"]
    machine, needed, data = elf(paths["libedgewm.so"])
    assert machine == "aarch64" and set(needed) <= {"libc.so.6", "libm.so.6"} and len(data) <= LIBRARY_LIMIT_BYTES
    assert elf(paths["edgewm-tick"])[0] == "aarch64"


def test_the_aarch64_runtime_answers_the_same_bits(tmp_path: Path, qemu_orin: list[str]) -> None:
    folder = fixture.write(tmp_path, flags=ORIN)
    for threads in ("1", "2"):
        done = subprocess.run(
            [*qemu_orin, folder / "edgewm-tick", folder, "--golden", "--threads", threads],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("bit-identical") == 2


def test_the_same_sources_give_the_same_bytes_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    for name in ("a", "somewhere/else/entirely"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        header = folder / "twice.h"
        header.write_text("inline int twice(int x) { return 2 * x; }\ninline const char* file() { return __FILE__; }\n")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(toolchain, "_objects", lambda cache, folder=folder: folder / "objects")
        visible = 'extern "C" __attribute__((visibility("default")))'
        source = f'#include "twice.h"\n{visible} int f(int x) {{ return twice(x) + *file(); }}\n'
        out = toolchain.compile_library({"f.cc": source}, [folder], flags=fixture.FLAGS, out=folder / "libf.so")
        assert list((folder / "objects").iterdir())  # compiled here, not taken from another place
        built.append(out.read_bytes())
    assert built[0] == built[1]


def test_a_second_build_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = lambda: toolchain.compile_library({"g.cc": "int g;\n"}, [], flags=fixture.FLAGS, out=tmp_path / "g.so")  # noqa: E731
    first = build().read_bytes()
    monkeypatch.setattr(toolchain, "_zig", lambda *arguments: pytest.fail(f"ran the compiler: {arguments}"))
    assert build().read_bytes() == first


def test_what_is_included_is_part_of_what_a_source_is(tmp_path: Path) -> None:
    """However deep, beside the file that includes it or in a folder of its own; a name in brackets as one in quotes."""
    near, far = tmp_path / "near", tmp_path / "far"
    for folder in (near, far):
        folder.mkdir()
    visible = 'extern "C" __attribute__((visibility("default")))'
    source = f"#include <outer.h>\n{visible} int f() {{ return VALUE; }}\n"
    (far / "outer.h").write_text('#include <stdint.h>\n#  include "inner.h"\n')

    def built() -> bytes:
        out = toolchain.compile_library({"f.cc": source}, [near, far], flags=fixture.FLAGS, out=tmp_path / "libf.so")
        return out.read_bytes()

    (far / "inner.h").write_text("#define VALUE 1\n")
    one = built()
    (far / "inner.h").write_text("#define VALUE 2\n")
    two = built()
    (near / "inner.h").write_text("#define VALUE 3\n")
    assert built() == two != one  # the file beside comes first
    (far / "inner.h").write_text("#define VALUE 1\n")
    assert built() == one


def test_a_program_is_linked_to_the_library_that_lies_there(tmp_path: Path) -> None:
    """The same name and another library: what was linked to the first is not taken for the second."""
    visible = 'extern "C" __attribute__((visibility("default")))'
    for name in ("f", "g"):
        toolchain.compile_library({"l.cc": f"{visible} int {name}() {{ return 0; }}\n"}, [], flags=fixture.FLAGS,
                                  out=tmp_path / "libl.so")  # fmt: skip
        link = lambda calls: toolchain.compile_program(  # noqa: E731
            {"m.cc": f'extern "C" int {calls}();\nint main() {{ return {calls}(); }}\n'}, [], flags=fixture.FLAGS,
            libraries=[tmp_path / "libl.so"], out=tmp_path / "m",
        )  # fmt: skip
        link(name)
    with pytest.raises(EdgewmError, match="undefined symbol: f"):
        link("f")


def test_a_failing_compile_shows_the_compilers_own_lines(tmp_path: Path) -> None:
    with pytest.raises(EdgewmError) as refusal:
        toolchain.compile_library(
            {"bad.cc": "int f() { return nothing; }\n"}, [], flags=fixture.FLAGS, out=tmp_path / "bad.so"
        )
    assert "bad.cc:1:18: error: use of undeclared identifier 'nothing'" in refusal.value.what
    assert refusal.value.where == "compiling bad.cc"
    assert not list(tmp_path.iterdir())


def test_warnings_are_errors_and_a_missing_symbol_is_found_when_linking(tmp_path: Path) -> None:
    with pytest.raises(EdgewmError, match="unused variable"):
        toolchain.compile_library({"w.cc": "void f() { int x; }\n"}, [], flags=fixture.FLAGS, out=tmp_path / "w.so")
    with pytest.raises(EdgewmError) as refusal:
        toolchain.compile_library(
            {"u.cc": 'int g(); extern "C" __attribute__((visibility("default"))) int f() { return g(); }\n'},
            [],
            flags=fixture.FLAGS,
            out=tmp_path / "u.so",
        )
    assert "g()" in refusal.value.what and refusal.value.where == "linking u.so"


def test_flags_must_name_a_target(tmp_path: Path) -> None:
    with pytest.raises(EdgewmError, match="the compile flags name no target"):
        toolchain.compile_library({}, [], flags=["-O2"], out=tmp_path / "x.so")


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with toolchain._cache() as folder:
        assert folder.is_dir() and tmp_path not in folder.parents
    assert not folder.exists()

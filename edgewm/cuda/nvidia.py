"""Run as a process of its own, for these libraries may abort: `python nvidia.py compile|link FOLDER LIBRARY OPTION...`.

`compile`: NVRTC makes FOLDER/out.ptx of FOLDER/in.cu and the headers in FOLDER/include. `link`: nvJitLink makes
FOLDER/out.cubin of FOLDER/out.ptx. What the tool says goes to standard error; exit status 1 where it refused.
"""

import ctypes
import sys
from pathlib import Path

PTX_INPUT = 2  # nvJitLinkInputType


def _strings(values: list[str]) -> ctypes.Array:
    return (ctypes.c_char_p * len(values))(*[v.encode() for v in values])


def _fetch(size_of, copy, handle: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(handle, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value + 1)
    copy(handle, text)
    return text.raw[: size.value]


def compile_ptx(library: ctypes.CDLL, folder: Path, options: list[str]) -> int:
    """NVRTC's result code; the PTX in `folder` where it is 0."""
    program = ctypes.c_void_p()
    headers = sorted((folder / "include").iterdir())
    texts, names = ([read(p) for p in headers] for read in (Path.read_text, lambda p: p.name))
    text = (folder / "in.cu").read_bytes()
    code = library.nvrtcCreateProgram(
        ctypes.byref(program), text, b"bundle.cu", len(headers), _strings(texts), _strings(names)
    )
    if code == 0:
        code = library.nvrtcCompileProgram(program, len(options), _strings(options))
        log = _fetch(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
        sys.stderr.write(log.rstrip(b"\0").decode(errors="replace"))
    if code == 0:
        ptx = _fetch(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program)
        (folder / "out.ptx").write_bytes(ptx.rstrip(b"\0"))
    return code


def link_cubin(library: ctypes.CDLL, folder: Path, options: list[str]) -> int:
    """nvJitLink's result code; the cubin in `folder` where it is 0."""
    handle = ctypes.c_void_p()
    ptx = (folder / "out.ptx").read_bytes() + b"\0"

    def call(name: str):  # exported with the release in their names
        major, minor = library.release
        return getattr(library, f"__nvJitLink{name}_{major}_{minor}")

    code = call("Create")(ctypes.byref(handle), len(options), _strings(options))
    if code == 0:
        code = call("AddData")(handle, PTX_INPUT, ptx, len(ptx), b"bundle.ptx") or call("Complete")(handle)
        for log in ("Error", "Info"):
            said = _fetch(call(f"Get{log}LogSize"), call(f"Get{log}Log"), handle)
            sys.stderr.write(said.rstrip(b"\0").decode(errors="replace"))
    if code == 0:
        cubin = _fetch(call("GetLinkedCubinSize"), call("GetLinkedCubin"), handle)
        (folder / "out.cubin").write_bytes(cubin)
    return code


def main(doing: str, folder: str, path: str, *options: str) -> int:
    library = ctypes.CDLL(path)
    if doing == "compile":
        return compile_ptx(library, Path(folder), list(options))
    major, minor = ctypes.c_uint(), ctypes.c_uint()
    library.nvJitLinkVersion(ctypes.byref(major), ctypes.byref(minor))
    library.release = (major.value, minor.value)
    return link_cubin(library, Path(folder), list(options))


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)

"""The C++ compiler: the clang inside the `ziglang` wheel, pinned, from pip alone, native and cross alike.

`build_runtime` makes what a bundle carries (libedgewm.so, edgewm-tick, edgewm.h) from a bundle's generated kernels.
The same input gives the same bytes from any folder. What was compiled or linked is kept under `~/.cache/edgewm`, named
by the SHA-256 of its texts, flags and compiler, so that building again is instant; nothing depends on what lies there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import EdgewmError

RUNTIME = Path(__file__).resolve().parent / "runtime"
_LIBRARY = ("act", "cpu", "describe", "fault", "gate", "loop", "open", "plan", "run", "sha256", "threads", "verify")
# What runs calls, by where: threads of the processor, or a GPU.
ENGINES = {"cpu": ("tiles",), "gpu": ("cuda", "cuda_device", "cuda_driver", "cuda_graph", "cuda_run", "cuda_verify")}
LOADS = {"cpu": (), "gpu": ("-ldl",)}  # before glibc 2.34 dlopen is in a library of its own
LIBRARY_SOURCES, GPU_LIBRARY_SOURCES = (tuple(f"{n}.cc" for n in (*_LIBRARY, *engine)) for engine in ENGINES.values())
PROGRAM_SOURCES = ("tick.cc", "arguments.cc", "golden.cc", "realtime.cc")
ERROR_LINES = 8  # of the compiler's own output, shown to the user

# No C++ runtime library: no exceptions, RTTI, guarded statics or standard headers, so that libc and libm suffice.
# No contraction: fused multiply-adds are explicit. Traps of zig's own (-fsanitize) off.
COMPILE = (
    *(
        "-std=c++17",
        "-O3",
        "-fno-unroll-loops",
        "-fPIC",
        "-fno-exceptions",
        "-fno-rtti",
        "-nostdinc++",
        "-fno-threadsafe-statics",
    ),
    *("-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-fno-sanitize=all", "-ffunction-sections"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-psabi"),
)
# Without the support libraries that zig compiles for each target before its first link, in seconds: nothing calls them.
SYSTEM = ("-nostdlib", "-lc", "-lm")
LINK = ("-s", "-Wl,-z,defs", "-Wl,--build-id=none", "-Wl,--gc-sections", "-Wl,--as-needed")

Unit = tuple[str, str, Sequence[str]]  # file name, C++ text, flags


def build_runtime(
    kernels: Mapping[str, str],
    include_dirs: Sequence[Path],
    *,
    flags: Sequence[str],
    folder: Path,
    engine: str = "cpu",
) -> dict[str, Path]:
    """Build libedgewm.so with these kernel sources, edgewm-tick and edgewm.h into `folder`; their paths by name.

    `kernels` maps file names to C++ text. `flags` must name the target (`-target aarch64-linux-gnu.2.31`), the
    processor (`-mcpu=...`) and the instruction set for `kernels/` (`-DEWM_NEON`). Only kernels are compiled for that
    processor; the runtime itself runs on any of the architecture, so that it can refuse a machine that lacks something.
    `engine` is one of ENGINES; for a GPU `kernels` hold no kernel, only their names and identity.
    Raises EdgewmError with the compiler's first lines.
    """
    general = [f for f in flags if not f.startswith(("-mcpu=", "-march="))]
    library_sources = {"cpu": LIBRARY_SOURCES, "gpu": GPU_LIBRARY_SOURCES}[engine]
    own, tick = ({name: (RUNTIME / name).read_text() for name in names} for names in (library_sources, PROGRAM_SOURCES))
    library, program, header = (folder / name for name in ("libedgewm.so", "edgewm-tick", "edgewm.h"))
    units = [(n, t, flags) for n, t in kernels.items()] + [(n, t, general) for n, t in own.items()]
    _build(
        units,
        [RUNTIME, *include_dirs],
        ["-shared", *_target(flags), "-Wl,-soname,libedgewm.so", "-Wl,-Bsymbolic", *LOADS[engine]],
        library,
    )
    compile_program(tick, [RUNTIME], flags=general, libraries=[library], out=program)
    shutil.copyfile(RUNTIME / "edgewm.h", header)
    return {p.name: p for p in (library, program, header)}


def compile_library(
    sources: Mapping[str, str], include_dirs: Sequence[Path], *, flags: Sequence[str], out: Path
) -> Path:
    """Compile C++ texts (by file name) and link them into the shared library `out`; EdgewmError if that fails."""
    link = ["-shared", *_target(flags), f"-Wl,-soname,{out.name}", "-ldl"]
    return _build([(n, t, flags) for n, t in sources.items()], include_dirs, link, out)


def compile_program(
    sources: Mapping[str, str],
    include_dirs: Sequence[Path],
    *,
    flags: Sequence[str],
    libraries: Sequence[Path] = (),
    out: Path,
) -> Path:
    """As `compile_library`, for an executable that finds `libraries` beside itself."""
    link = [*_target(flags), "-lpthread", "-ldl", "-Wl,-rpath,$ORIGIN"]
    return _build([(n, t, flags) for n, t in sources.items()], include_dirs, link, out, libraries)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/edgewm`, by default `~/.cache/edgewm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgewm"


def _target(flags: Sequence[str]) -> list[str]:
    for i, flag in enumerate(flags[:-1]):
        if flag == "-target":
            return ["-target", flags[i + 1], *(f for f in flags if f.startswith("-fsanitize="))]
    raise EdgewmError(
        "the compile flags name no target",
        f"flags {' '.join(flags)!r}",
        "add -target, e.g. -target x86_64-linux-gnu.2.31",
    )


def _build(
    units: Sequence[Unit], include_dirs: Sequence[Path], link: Sequence[str], out: Path, libraries: Sequence[Path] = ()
) -> Path:
    folders = [Path(p).resolve() for p in include_dirs]
    checked = any(word.startswith("-fsanitize=") for word in link)  # by code in those libraries
    link = [*link, *(() if checked else SYSTEM), *LINK]
    with _cache() as cache:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda unit: _object(*unit, folders, cache), units))

        def linked(scratch: Path) -> Path:
            paths = [str(path) for path in (*objects, *(p.resolve() for p in libraries))]
            _zig([*paths, *link, "-o", out.name], scratch, cache, f"linking {out.name}")
            return scratch / out.name

        read = [hashlib.sha256(p.read_bytes()).hexdigest() for p in libraries]
        identity = [str(_zig_binary()), *link, *(path.stem for path in objects), *read, out.name]
        made = _kept(cache, identity, linked)
        beside = out.with_name(f".{out.name}.{os.getpid()}")
        shutil.copy(made, beside)
        beside.replace(out)
    return out


def _object(name: str, text: str, flags: Sequence[str], folders: Sequence[Path], cache: Path) -> Path:
    """The object file of one source, compiled unless it lies in the cache."""
    command = ["-x", "c++", *COMPILE, *flags]

    def compiled(scratch: Path) -> Path:
        (scratch / name).write_text(text)
        paths = [word for p in folders for word in (f"-I{p}", f"-ffile-prefix-map={p}=.")]
        _zig([*command, *paths, "-c", name, "-o", "out.o"], scratch, cache, f"compiling {name}")
        return scratch / "out.o"

    included = [word for file in _included(text, folders) for word in file]
    identity = [str(_zig_binary()), *command, name, text, *included]
    return _kept(cache, identity, compiled)


_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)


def _included(text: str, folders: Sequence[Path]) -> list[tuple[str, str]]:
    """What a source includes from these folders, and what that includes: the names it goes by and texts, in order of
    names. A name that is in none of them is the compiler's own."""
    found: dict[Path, tuple[str, str]] = {}
    left = [(name, folders) for name in _INCLUDE.findall(text)]
    while left:
        name, places = left.pop()
        path = next((p / name for p in places if (p / name).is_file()), None)
        if path is not None and path not in found:
            found[path] = name, path.read_text()
            left += [(more, (path.parent, *folders)) for more in _INCLUDE.findall(found[path][1])]
    return sorted(found.values())


def _kept(cache: Path, identity: Sequence[str], make: Callable[[Path], Path]) -> Path:
    """The cached file of this identity; what `make` leaves in the folder it is given, where there is none yet."""
    kept = _objects(cache) / f"{hashlib.sha256(chr(0).join(identity).encode()).hexdigest()}.o"
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix="edgewm-") as scratch:
            made = make(Path(scratch))
            kept.parent.mkdir(parents=True, exist_ok=True)
            beside = kept.with_suffix(f".{os.getpid()}.{Path(scratch).name}")
            shutil.copy(made, beside)
            beside.replace(kept)
    return kept


def _objects(cache: Path) -> Path:
    return cache / "objects"


@contextlib.contextmanager
def _cache() -> Iterator[Path]:
    """The cache folder; a temporary one where it cannot be written."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if writable:
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="edgewm-cache-") as temporary:
            yield Path(temporary)


def _zig_binary() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise EdgewmError("no C++ compiler", "the Python package ziglang is not installed", "pip install ziglang")
    return Path(spec.origin).parent / "zig"


def _zig(arguments: Sequence[str], cwd: Path, cache: Path, doing: str) -> str:
    """Standard output of `zig cc`."""
    # Absolute paths of the wheel's own headers and caches stay out of the objects (nothing is compiled with -g).
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache / "zig"), "LC_ALL": "C"}
    done = subprocess.run(
        [str(_zig_binary()), "cc", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()][:ERROR_LINES]
        raise EdgewmError(
            "the C++ compiler refused:\n    " + "\n    ".join(lines or [f"exit status {done.returncode}"]),
            doing,
            "mend the first line it names; generated sources are written by the build, so report it if you wrote none",
        )
    return done.stdout

"""Other runtimes for the same program: a file each, functions on data.

build.py         `edgewm build --backend`: the program as ONNX files, golden answers, a manifest
files.py         what such a bundle holds
golden.py        recorded answers with computed tolerances, and how a graph is held to them
host.py          the planner's loop in Python, around graphs that a backend runs
paced.py         `edgewm profile` of such a bundle
onnxruntime.py   ONNX Runtime on the CPU
tensorrt.py      TensorRT on the device: which version, engines, their cache
onnx_parser.py   and its parser and builder, which tensorrt-rtx has as well
device_memory.py and buffers on a GPU, through pycuda or cuda-bindings

A backend is a module with these names: `OPSET`; `recipe(board)`, what the manifest says of how it is to be built, and
EdgewmError for a board that cannot run it; `check(folder, manifest, board)` of what was written, as far as it can be
done here, and what it was checked by; `open_graphs(bundle, manifest, threads, verify)`, which gives a compiled graph by
name, after `verify(name, graph)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import EdgewmError
from ..manifest import Manifest
from ..options import BACKENDS, NATIVE


def backend(name: str) -> ModuleType:
    """The backend's module. EdgewmError for a name that is none, or native."""
    if name not in BACKENDS or name == NATIVE:
        raise EdgewmError(f"no backend {name!r}", "--backend", f"use one of {', '.join(BACKENDS)}")
    return importlib.import_module(f".{name}", __name__)


def opened(
    bundle: Path, manifest: Manifest, threads: int, period_ns: int, clock: Callable[[], int] | None = None
) -> Any:
    """The bundle ready to run, whatever runs it: a `binding.Runtime`, or a `host.HostLoop` with the same methods.

    A backend's files are checked first, and each graph is held to its golden answers when it is first used.
    """
    if manifest.backend == NATIVE:
        from ..binding import Runtime

        return Runtime(bundle, threads, period_ns=period_ns, clock=clock)
    from . import files, host

    bundle = Path(bundle)
    files.check_files(bundle, manifest.raw)
    verify = files.verifier(bundle, manifest)
    compiled = backend(manifest.backend).open_graphs(bundle, manifest, threads, verify)
    return host.HostLoop(manifest, compiled, period_ns, clock)

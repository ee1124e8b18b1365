"""ONNX Runtime on the CPU of this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import EdgewmError
from ..manifest import Manifest
from ..target import Target
from .files import verifier
from .host import Arrays, Call

OPSET = 20


def recipe(board: Target) -> dict[str, Any]:
    """ONNX Runtime takes the files as they are."""
    return {"opset": OPSET}


def check(folder: Path, manifest: Manifest, board: Target) -> dict[str, str]:
    """Every file meets its golden answers here; which ONNX Runtime says so."""
    compiled = open_graphs(folder, manifest, 1, verifier(folder, manifest))
    for name in manifest.raw["graphs"]:
        compiled(name)
    return {"onnxruntime": _onnxruntime().__version__}


def open_graphs(
    bundle: Path, manifest: Manifest, threads: int, verify: Callable[[str, Call], None]
) -> Callable[[str], Call]:
    """Graphs by name, each a session of its own with that many threads. EdgewmError where ONNX Runtime is missing."""
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3

    def compiled(name: str) -> Call:
        file = bundle / f"{name}.onnx"
        try:
            session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as fault:  # its own exceptions share no other base
            raise EdgewmError(
                f"ONNX Runtime {ort.__version__} cannot load it: {fault}", str(file),
                "install onnxruntime 1.18 or later: pip install 'edgewm[onnx]'",
            ) from fault  # fmt: skip
        outputs = [port.name for port in session.get_outputs()]

        def call(inputs: Arrays) -> dict[str, Any]:
            return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))

        verify(name, call)
        return call

    return compiled


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as missing:
        raise EdgewmError(
            "onnxruntime is not installed", "--backend onnxruntime", "pip install 'edgewm[onnx]'"
        ) from missing
    return onnxruntime

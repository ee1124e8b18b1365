"""An ONNX file through NVIDIA's parser and builder, as `tensorrt` and `tensorrt_rtx` both have them.

TensorRT for RTX builds engines without a GPU, so where it is installed a build for TensorRT is checked by it: for SM86
in the place of Orin's SM87, for SM120 in the place of Thor's SM110, which it does not have. It stands in for them and
no more: JetPack's parser is older, and its kernels are others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import EdgewmError

RTX = "tensorrt_rtx"
STANDS_IN = {"8.7": "SM86", "11.0": "SM120"}  # by compute capability, of what TensorRT for RTX builds for


def logger(trt: Any) -> Any:
    """A logger that keeps what TensorRT calls an error, in `errors`."""

    class Kept(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(text)

    return Kept()


def serialized(trt: Any, file: Path, settings: Callable[[Any], None] = lambda config: None) -> bytes:
    """The engine of an ONNX file, strongly typed and without TF32: precision is in the file alone.

    EdgewmError with each node that the parser refuses, or with what the builder says.
    """
    log = logger(trt)
    builder = trt.Builder(log)
    # TensorRT 11 knows no other kind of network; 10 has to be told.
    is_told = int(trt.__version__.split(".")[0]) < 11 or trt.__name__ == RTX
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if is_told else 0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(file)):
        refused = [parser.get_error(i) for i in range(parser.num_errors)]
        told = "; ".join(f"{e.node_operator()} {e.node_name()!r}: {e.desc()}" for e in refused)
        raise EdgewmError(
            f"TensorRT {trt.__version__} cannot read {told or 'the file'}", str(file),
            "build for a board whose JetPack has a later TensorRT, or with --backend native",
        )  # fmt: skip
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    settings(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EdgewmError(
            f"TensorRT {trt.__version__} builds no engine: {'; '.join(log.errors) or 'it does not say why'}", str(file),
            "free memory and build again, or build the bundle with --backend native",
        )  # fmt: skip
    return bytes(plan)


def checked(files: Sequence[Path], capability: str | None) -> dict[str, str]:
    """What TensorRT for RTX read and built for the stand-in of a compute capability; empty where it is not installed.

    EdgewmError for a file that it does not take.
    """
    try:
        rtx = importlib.import_module(RTX)
    except ImportError:
        return {}
    name = STANDS_IN.get(capability or "", "SM86")

    def for_stand_in(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(rtx.ComputeCapability, name), 0)

    for file in files:
        serialized(rtx, file, for_stand_in)
    return {RTX: rtx.__version__, "built_for": name, "in_place_of": capability or ""}

"""TensorRT on the device: engines are built there, from the bundle's ONNX files, and kept.

An engine belongs to the GPU and the TensorRT that built it, and no other machine can build it; so a bundle ships ONNX
and says which TensorRT it is for. Builds are not reproducible: each engine is held to the golden answers before it is
kept. A kept engine is code, and is only loaded where its bytes are those that were kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EdgewmError
from ..manifest import Manifest
from ..ops import NUMPY
from ..target import Target
from ..toolchain import cache_folder
from . import onnxruntime
from .device_memory import Gpu, gpu
from .files import WEIGHTS, sha256
from .host import Arrays, Call
from .onnx_parser import checked, logger, serialized

OPSET = 18  # TensorRT 10.0 reads up to 20; at 18 nothing depends on operators that came later
MAJORS = (10, 11)
# TensorRT by JetPack: NVIDIA's release notes of JetPack, and the support matrix of TensorRT 11.4.1, which serves
# JetPack 7.2 by the package for Arm servers.
OF_JETPACK: Mapping[str, tuple[str, ...]] = {
    "6.1": ("10.3",), "6.2": ("10.3",), "7.0": ("10.13",), "7.1": ("10.13",), "7.2": ("10.16", "11.4"),
}  # fmt: skip


def recipe(board: Target) -> dict[str, Any]:
    """How the engines are to be built: TensorRT by JetPack, the GPU. EdgewmError for a board without TensorRT 10.

    For a board that names no JetPack (host) any TensorRT 10 or 11 will do.
    """
    versions = {name: list(OF_JETPACK[name]) for name in board.software.jetpack if name in OF_JETPACK}
    if board.software.jetpack and not versions:
        raise EdgewmError(
            f"no JetPack of {board.name} has TensorRT {MAJORS[0]} or later", "--backend tensorrt",
            "build with --backend native",
        )  # fmt: skip
    return {
        "opset": OPSET, "tensorrt": versions, "majors": list(MAJORS), "network": "strongly typed", "tf32": False,
        "sm": board.gpu.compute_capability if board.gpu else None,
    }  # fmt: skip


def check(folder: Path, manifest: Manifest, board: Target) -> dict[str, str]:
    """Every file meets its golden answers in ONNX Runtime, and a stand-in for the board's parser and builder takes it
    (`onnx_parser.checked`)."""
    found = onnxruntime.check(folder, manifest, board)
    files = [folder / f"{name}.onnx" for name in manifest.raw["graphs"]]
    return found | checked(files, board.gpu.compute_capability if board.gpu else None)


def open_graphs(
    bundle: Path, manifest: Manifest, threads: int, verify: Callable[[str, Call], None]
) -> Callable[[str], Call]:
    """Graphs by name, each an engine of this device, kept or built. EdgewmError for another TensorRT or GPU than the
    manifest names, a file it does not take, an engine that is not what was kept."""
    trt = _tensorrt(manifest)
    device = gpu()
    wanted = manifest.raw["build"]["sm"]
    if wanted is not None and wanted != device.sm:
        raise EdgewmError(
            f"this GPU is SM {device.sm}, the bundle is for SM {wanted}", str(bundle),
            f"run it on {manifest.target}, or build with --target host",
        )  # fmt: skip

    def compiled(name: str) -> Call:
        file, files = bundle / f"{name}.onnx", manifest.raw["files"]
        source = sha256((files[file.name] + files[WEIGHTS]).encode())
        kept = cache_folder() / "tensorrt" / f"sm{device.sm}-{trt.__version__}-{source}.plan"
        is_kept = kept.is_file()
        plan = read_kept(kept) if is_kept else serialized(trt, file)
        call = _call(trt, device, plan, manifest.raw["graphs"][name], file)
        verify(name, call)
        if not is_kept:
            keep(kept, plan)
        return call

    return compiled


def read_kept(file: Path) -> bytes:
    """A kept engine. EdgewmError where its bytes are not those that were kept."""
    plan, said = file.read_bytes(), file.with_suffix(".json")
    if not said.is_file() or json.loads(said.read_text()).get("sha256") != sha256(plan):
        raise EdgewmError("the kept engine is not what was kept", str(file), "delete it: it will be built again")
    return plan


def keep(file: Path, plan: bytes) -> None:
    """Write the engine, and what it is; each in one rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    said = json.dumps({"sha256": sha256(plan)}).encode()
    for place, data in ((file.with_suffix(".json"), said), (file, plan)):
        beside = place.with_name(f".{place.name}.{os.getpid()}")
        beside.write_bytes(data)
        beside.replace(place)


def _call(trt: Any, device: Gpu, plan: bytes, ports: Mapping[str, Any], file: Path) -> Call:
    """The engine with its buffers: inputs are copied there, outputs back, once a call."""
    log = logger(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EdgewmError(
            f"TensorRT {trt.__version__} does not load its engine: {'; '.join(log.errors)}", str(file),
            "see that the GPU has memory left",
        )  # fmt: skip
    context = engine.create_execution_context()
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    if found != {*ports["inputs"], *ports["outputs"]}:
        raise EdgewmError(f"the engine has the ports {', '.join(sorted(found))}", str(file), "build the bundle again")
    host: dict[str, np.ndarray] = {}
    address: dict[str, int] = {}
    for name, port in {**ports["inputs"], **ports["outputs"]}.items():
        host[name] = device.pinned(tuple(port["shape"]), NUMPY[port["dtype"]])
        address[name] = device.allocated(max(host[name].nbytes, 1))
        context.set_tensor_address(name, address[name])

    def call(inputs: Arrays) -> dict[str, np.ndarray]:
        for name in ports["inputs"]:
            host[name][...] = inputs[name]
            device.to_device(address[name], host[name])
        if not context.execute_async_v3(device.stream):
            raise EdgewmError(
                f"TensorRT could not run: {'; '.join(log.errors)}", str(file), "see that the GPU has memory left"
            )
        for name in ports["outputs"]:
            device.to_host(host[name], address[name])
        device.wait()
        return {name: host[name].copy() for name in ports["outputs"]}

    call.engine = (runtime, engine)  # they have to outlive the context
    return call


def _tensorrt(manifest: Manifest) -> Any:
    """The module, of a version that the bundle is for."""
    try:
        import tensorrt
    except ImportError as missing:
        raise EdgewmError(
            "tensorrt is not installed", "--backend tensorrt",
            "it comes with JetPack: sudo apt install python3-libnvinfer; a virtual environment sees it when made by "
            "python3 -m venv --system-site-packages",
        ) from missing  # fmt: skip
    said = manifest.raw["build"]
    version = tensorrt.__version__
    expected = [v for versions in said["tensorrt"].values() for v in versions]
    if expected and ".".join(version.split(".")[:2]) not in expected:
        by_jetpack = ", ".join(f"{' or '.join(v)} (JetPack {name})" for name, v in said["tensorrt"].items())
        raise EdgewmError(
            f"this is TensorRT {version}, the bundle is for {by_jetpack}", "--backend tensorrt",
            "install a JetPack of these, or build with --target host, which takes TensorRT 10 and 11",
        )
    if int(version.split(".")[0]) not in said["majors"]:
        raise EdgewmError(
            f"this is TensorRT {version}", "--backend tensorrt", f"install TensorRT {' or '.join(map(str, MAJORS))}"
        )
    return tensorrt

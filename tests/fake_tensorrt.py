"""Stand-ins for `tensorrt` and for what reaches a GPU: every call is recorded, engines run in ONNX Runtime.

Copies and executions happen when the stream is waited for, and not before: what is read too early is what was there.
A network that is not strongly typed builds no engine from QuantizeLinear, as TensorRT 10 without its int8 flag.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest


@dataclass
class Device:
    """What the stand-ins share: the recorded `calls`, memory by address, work that is queued; and planted faults."""

    version: str = "10.3.0"
    sm: tuple[int, int] = (8, 7)
    refuses: str = ""  # an operator that the parser does not know
    off: float = 0.0  # added to every float that an engine gives
    builds: bool = True
    loads: bool = True
    runs: bool = True
    named: bool = True  # ports as the file names them
    calls: list[tuple] = field(default_factory=list)
    memory: dict[int, bytearray] = field(default_factory=dict)
    queue: list[Callable[[], None]] = field(default_factory=list)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def allocate(self, count: int) -> int:
        address = 4096 * (1 + len(self.memory))
        self.memory[address] = bytearray(b"\xff" * count)
        self.calls.append(("allocate", count))
        return address

    def wait(self) -> None:
        work, self.queue = self.queue, []
        for each in work:
            each()

    def write(self, address: int, read: Callable[[], bytes]) -> None:
        self.queue.append(lambda: self.memory[address].__setitem__(slice(None), read()))

    def read(self, address: int, write: Callable[[bytes], None]) -> None:
        self.queue.append(lambda: write(bytes(self.memory[address])))


def install(monkeypatch: pytest.MonkeyPatch, device: Device, by: str = "pycuda") -> Device:
    """Put the stand-ins where `import tensorrt` and `by` (pycuda or cuda) find them; the other one is not there."""
    modules = {"tensorrt": tensorrt(device), "pycuda.driver": None, "cuda.bindings.driver": None}
    if by == "pycuda":
        modules |= {"pycuda.driver": pycuda(device), "pycuda": package("pycuda")}
    elif by == "cuda":
        modules |= {"cuda": package("cuda"), "cuda.bindings": package("cuda.bindings")}
        modules["cuda.bindings.driver"] = modules["cuda.bindings"].driver = cuda_driver(device)
    for name, module in modules.items():
        if module is not None:
            module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    if by == "pycuda":
        modules["pycuda"].driver = modules["pycuda.driver"]
    return device


def package(name: str) -> ModuleType:
    made = ModuleType(name)
    made.__path__ = []
    return made


# ------------------------------------------------------------------------------------------------------------ tensorrt


def tensorrt(device: Device) -> ModuleType:
    """The module of that version: 10 knows networks that are not strongly typed, 11 has but one kind."""
    trt = ModuleType("tensorrt")
    trt.__version__ = device.version
    is_strong_always = int(device.version.split(".")[0]) >= 11
    flags = {"STRONGLY_TYPED": 0} if is_strong_always else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
    trt.BuilderFlag = enum.Enum("BuilderFlag", ["TF32"] if is_strong_always else ["FP16", "INT8", "TF32"])
    record = device.calls.append

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class Network:
        def __init__(self, flags: int):
            self.is_strong = is_strong_always or bool(flags & 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            self.file = ""

    class Refused:
        def __init__(self, node: Any):
            self.node = node

        def node_name(self) -> str:
            return self.node.name

        def node_operator(self) -> str:
            return self.node.op_type

        def desc(self) -> str:
            return "no importer for it"

    class OnnxParser:
        def __init__(self, network: Network, log: ILogger):
            self.network, self.errors = network, []

        def parse_from_file(self, file: str) -> bool:
            record(("parse", Path(file).name))
            nodes = onnx.load(file, load_external_data=False).graph.node
            self.errors = [Refused(node) for node in nodes if node.op_type == device.refuses]
            self.network.file = file
            return not self.errors

        @property
        def num_errors(self) -> int:
            return len(self.errors)

        def get_error(self, i: int) -> Refused:
            return self.errors[i]

    class Builder:
        def __init__(self, log: ILogger):
            self.log = log

        def create_network(self, flags: int = 0) -> Network:
            record(("create_network", flags))
            return Network(flags)

        def create_builder_config(self) -> Any:
            def clear(flag: Any) -> None:
                record(("clear_flag", flag.name))

            def set_flag(flag: Any) -> None:
                record(("set_flag", flag.name))

            return SimpleNamespace(clear_flag=clear, set_flag=set_flag)

        def build_serialized_network(self, network: Network, config: Any) -> bytes | None:
            record(("build", Path(network.file).name))
            nodes = onnx.load(network.file, load_external_data=False).graph.node
            if not device.builds or (not network.is_strong and any(n.op_type == "QuantizeLinear" for n in nodes)):
                self.log.log(ILogger.WARNING, "a warning is no reason")
                self.log.log(ILogger.ERROR, "no tactic for " + nodes[0].name)
                return None
            return json.dumps({"file": network.file, "version": device.version, "sm": device.sm}).encode()

    class Engine:
        def __init__(self, said: dict[str, Any], log: ILogger):
            self.log = log
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            self.session = onnxruntime.InferenceSession(said["file"], options, providers=["CPUExecutionProvider"])
            self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()

        @property
        def num_io_tensors(self) -> int:
            return len(self.inputs) + len(self.outputs)

        def get_tensor_name(self, i: int) -> str:
            return [*self.inputs, *self.outputs][i].name if i or device.named else "other"

        def create_execution_context(self) -> Context:
            return Context(self, self.log)

    class Context:
        def __init__(self, engine: Engine, log: ILogger):
            self.engine, self.log, self.address = engine, log, {}

        def set_tensor_address(self, name: str, address: int) -> None:
            self.address[name] = address

        def execute_async_v3(self, stream: int) -> bool:
            record(("execute", stream))
            if not device.runs:
                self.log.log(ILogger.ERROR, "illegal access")
                return False
            device.queue.append(self._run)
            return True

        def _run(self) -> None:
            kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int32)": np.int32}
            given = {
                p.name: np.frombuffer(device.memory[self.address[p.name]], kinds[p.type]).reshape(p.shape)
                for p in self.engine.inputs
            }
            for port, value in zip(self.engine.outputs, self.engine.session.run(None, given), strict=True):
                wrong = value + np.float32(device.off) if value.dtype == np.float32 else value
                device.memory[self.address[port.name]][:] = np.ascontiguousarray(wrong).tobytes()

    class Runtime:
        def __init__(self, log: ILogger):
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            record(("deserialize",))
            said = json.loads(plan)
            if not device.loads:
                self.log.log(ILogger.ERROR, "out of memory")
                return None
            if (said["version"], tuple(said["sm"])) != (device.version, device.sm):
                self.log.log(ILogger.ERROR, "an engine of another TensorRT or GPU")
                return None
            return Engine(said, self.log)

    trt.ILogger, trt.OnnxParser, trt.Builder, trt.Runtime = ILogger, OnnxParser, Builder, Runtime
    return trt


# ------------------------------------------------------------------------------------------------------ ways to a GPU


def pycuda(device: Device) -> ModuleType:
    cuda = ModuleType("pycuda.driver")

    def store(array: np.ndarray) -> Callable[[bytes], None]:
        return lambda data: array.reshape(-1).view(np.uint8).__setitem__(slice(None), np.frombuffer(data, np.uint8))

    context = SimpleNamespace(push=lambda: device.calls.append(("push",)))
    cuda.init = lambda: None
    cuda.Device = lambda index: SimpleNamespace(
        retain_primary_context=lambda: context, compute_capability=lambda: device.sm
    )
    cuda.Stream = lambda: SimpleNamespace(handle=7, synchronize=device.wait)
    cuda.mem_alloc = device.allocate
    cuda.pagelocked_empty = np.empty
    cuda.memcpy_htod_async = lambda address, array, stream: device.write(address, array.tobytes)
    cuda.memcpy_dtoh_async = lambda array, address, stream: device.read(address, store(array))
    return cuda


def cuda_driver(device: Device) -> ModuleType:
    cuda = ModuleType("cuda.bindings.driver")
    kept = []
    cuda.CUresult = enum.Enum("CUresult", ["CUDA_SUCCESS", "CUDA_ERROR_NO_DEVICE"])
    ok = cuda.CUresult.CUDA_SUCCESS
    which = ["CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR"]
    cuda.CUdevice_attribute = enum.IntEnum("CUdevice_attribute", which, start=0)
    cuda.CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def host(count: int) -> tuple:
        kept.append(ctypes.create_string_buffer(count))
        return ok, ctypes.addressof(kept[-1])

    def queued(work: Callable[[], None]) -> tuple:
        work()
        return (ok,)

    cuda.cuInit = lambda flags: (ok,) if device.sm[0] else (cuda.CUresult.CUDA_ERROR_NO_DEVICE,)
    cuda.cuDeviceGet = lambda index: (ok, index)
    cuda.cuDevicePrimaryCtxRetain = lambda index: (ok, object())
    cuda.cuCtxSetCurrent = lambda context: (ok,)
    cuda.cuStreamCreate = lambda flags: (ok, 9)
    cuda.cuDeviceGetAttribute = lambda attribute, index: (ok, device.sm[attribute])
    cuda.cuMemAllocHost, cuda.cuMemAlloc = host, lambda count: (ok, device.allocate(count))
    cuda.cuMemcpyHtoDAsync = lambda address, source, count, stream: queued(
        lambda: device.write(address, lambda: ctypes.string_at(source, count))
    )
    cuda.cuMemcpyDtoHAsync = lambda target, address, count, stream: queued(
        lambda: device.read(address, lambda data: ctypes.memmove(target, data, count) and None)
    )
    cuda.cuStreamSynchronize = lambda stream: queued(device.wait)
    return cuda

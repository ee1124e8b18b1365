"""One GPU through the few functions of its driver that edgewm's runtime calls (edgewm/runtime/cuda.h), from Python.

What is timed is a graph, and the GPU itself reads the clock: `ewm_stamp` stands before and behind what is repeated, so
no launch from here and no wait is in a time. Every parameter of a kernel is given by value, as bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p

import numpy as np

from edgewm.errors import EdgewmError

LIBRARY = "libcuda.so.1"
PROCESSORS, MAJOR, MINOR = 16, 75, 76  # CUdevice_attribute
DYNAMIC_SHARED_BYTES, SHARED_BYTES_OF_ANY = 8, 48 << 10
NON_BLOCKING, CAPTURE_OF_THIS_THREAD, EVENT_FLAGS, MAPPED = 1, 1, 3, 2  # events: they sleep, and keep no time

U, P, A = c_uint, c_void_p, c_uint64
SIGNATURES = {
    "cuInit": (U,), "cuDriverGetVersion": (POINTER(c_int),), "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int), "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(P), c_int), "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (P,), "cuCtxPopCurrent_v2": (POINTER(P),), "cuCtxSynchronize": (),
    "cuModuleLoadData": (POINTER(P), P), "cuModuleUnload": (P,), "cuModuleGetFunction": (POINTER(P), P, c_char_p),
    "cuFuncSetAttribute": (P, c_int, c_int), "cuMemAlloc_v2": (POINTER(A), c_size_t), "cuMemFree_v2": (A,),
    "cuMemHostAlloc": (POINTER(P), c_size_t, U), "cuMemFreeHost": (P,),
    "cuMemHostGetDevicePointer_v2": (POINTER(A), P, U), "cuMemcpyHtoD_v2": (A, P, c_size_t),
    "cuMemcpyDtoHAsync_v2": (P, A, c_size_t, P), "cuMemcpyDtoDAsync_v2": (A, A, c_size_t, P),
    "cuMemsetD8_v2": (A, ctypes.c_ubyte, c_size_t), "cuMemsetD32Async": (A, U, c_size_t, P),
    "cuStreamCreate": (POINTER(P), U), "cuStreamDestroy_v2": (P,), "cuStreamBeginCapture_v2": (P, c_int),
    "cuStreamEndCapture": (P, POINTER(P)), "cuLaunchKernel": (P, U, U, U, U, U, U, U, P, POINTER(P), P),
    "cuGraphInstantiateWithFlags": (POINTER(P), P, c_ulonglong), "cuGraphUpload": (P, P), "cuGraphLaunch": (P, P),
    "cuGraphDestroy": (P,), "cuGraphExecDestroy": (P,), "cuEventCreate": (POINTER(P), U), "cuEventDestroy_v2": (P,),
    "cuEventRecord": (P, P), "cuEventSynchronize": (P,), "cuGetErrorName": (c_int, POINTER(c_char_p)),
}  # fmt: skip


class Gpu:
    """The first GPU of this machine. `with Gpu() as gpu` gives everything back at the end.

    `name`, `sm` (90) and `processors` are the device's own words; `driver` its CUDA, 13000 for 13.0. Raises EdgewmError
    with the driver's name of the error.
    """

    def __init__(self) -> None:
        try:
            self._c = ctypes.CDLL(LIBRARY)
        except OSError as fault:
            raise EdgewmError(
                f"no NVIDIA driver: {fault}", LIBRARY, "run this on a machine with an NVIDIA GPU"
            ) from None
        for name, kinds in SIGNATURES.items():
            getattr(self._c, name).argtypes = kinds
        self._held: list[tuple[str, object]] = []  # what gives each thing back, in the order they were taken
        self._images: list[object] = []
        self.call("cuInit", 0)
        self.driver, self._device = self._int("cuDriverGetVersion"), self._int("cuDeviceGet", 0)
        text = ctypes.create_string_buffer(96)
        self.call("cuDeviceGetName", text, len(text), self._device)
        self.name = text.value.decode()
        self.sm = 10 * self.attribute(MAJOR) + self.attribute(MINOR)
        self.processors = self.attribute(PROCESSORS)
        self.context = self._taken(
            "cuDevicePrimaryCtxRetain", self._device, back=("cuDevicePrimaryCtxRelease_v2", self._device)
        )
        self.call("cuCtxPushCurrent_v2", self.context)
        self.stream = self._taken("cuStreamCreate", NON_BLOCKING, back="cuStreamDestroy_v2")
        self._done = self._taken("cuEventCreate", EVENT_FLAGS, back="cuEventDestroy_v2")

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *_: object) -> None:
        self.call("cuCtxSynchronize")
        while self._held:
            name, thing = self._held.pop()
            if name == "cuDevicePrimaryCtxRelease_v2":
                self.call("cuCtxPopCurrent_v2", byref(c_void_p()))
            self.call(name, thing)

    def call(self, name: str, *arguments: object) -> None:
        error = getattr(self._c, name)(*arguments)
        if error:
            said = c_char_p()
            self._c.cuGetErrorName(error, byref(said))
            told = (said.value or b"error %d" % error).decode()
            raise EdgewmError(
                f"{name}: {told}", "the GPU", "see the driver's manual for that error; nothing is measured"
            )

    def _int(self, name: str, *arguments: object) -> int:
        value = c_int()
        self.call(name, byref(value), *arguments)
        return value.value

    def attribute(self, which: int) -> int:
        return self._int("cuDeviceGetAttribute", which, self._device)

    def _taken(self, name: str, *arguments: object, back: str | tuple[str, object]) -> c_void_p:
        made = c_void_p()
        self.call(name, byref(made), *arguments)
        self._held.append(back if isinstance(back, tuple) else (back, made))
        return made

    # ---- memory

    def allocate(self, size: int) -> int:
        """Address of device memory that the GPU's end frees."""
        at = c_uint64()
        self.call("cuMemAlloc_v2", byref(at), max(size, 1))
        self._held.append(("cuMemFree_v2", at.value))
        return at.value

    def upload(self, array: np.ndarray | bytes, at: int | None = None) -> int:
        """Where the array's bytes lie on the device."""
        data = np.ascontiguousarray(np.frombuffer(array, np.uint8) if isinstance(array, bytes) else array)
        at = self.allocate(data.nbytes) if at is None else at
        if data.nbytes:
            self.call("cuMemcpyHtoD_v2", at, data.ctypes.data, data.nbytes)
        return at

    def shared(self, dtype: str, count: int) -> tuple[np.ndarray, int]:
        """Memory that both sides see: the array here, its address there."""
        here, there = c_void_p(), c_uint64()
        size = np.dtype(dtype).itemsize * count
        self.call("cuMemHostAlloc", byref(here), size, MAPPED)
        self._held.append(("cuMemFreeHost", here))
        self.call("cuMemHostGetDevicePointer_v2", byref(there), here, 0)
        return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(here.value)).view(dtype), there.value

    # ---- code

    def module(self, image: bytes) -> c_void_p:
        """A cubin, or PTX that ends with a zero byte, which the driver compiles."""
        kept = ctypes.create_string_buffer(image, len(image))
        self._images.append(kept)
        return self._taken("cuModuleLoadData", ctypes.cast(kept, c_void_p), back="cuModuleUnload")

    def function(self, module: c_void_p, name: str, shared_bytes: int = 0) -> c_void_p:
        found = c_void_p()
        self.call("cuModuleGetFunction", byref(found), module, name.encode())
        if shared_bytes > SHARED_BYTES_OF_ANY:
            self.call("cuFuncSetAttribute", found, DYNAMIC_SHARED_BYTES, shared_bytes)
        return found

    def launch(self, function: c_void_p, blocks: int, threads: int, shared_bytes: int, parameter: np.ndarray) -> None:
        """Into the graph that is being recorded."""
        given = (c_void_p * 1)(parameter.ctypes.data)
        self.call("cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, shared_bytes, self.stream, given, None)

    def graph(self, record: Callable[[], None]) -> c_void_p:
        """What `record` launches, one after the other, ready to run."""
        self.call("cuStreamBeginCapture_v2", self.stream, CAPTURE_OF_THIS_THREAD)
        plain = c_void_p()
        try:
            record()
        finally:
            self.call("cuStreamEndCapture", self.stream, byref(plain))
        made = self._taken("cuGraphInstantiateWithFlags", plain, 0, back="cuGraphExecDestroy")
        self.call("cuGraphDestroy", plain)
        self.call("cuGraphUpload", made, self.stream)
        self.call("cuCtxSynchronize")
        return made

    def run(self, graph: c_void_p) -> None:
        """Once, to its end."""
        self.call("cuGraphLaunch", graph, self.stream)
        self.call("cuEventRecord", self._done, self.stream)
        self.call("cuEventSynchronize", self._done)

    def forget(self, graph: c_void_p) -> None:
        self._held.remove(("cuGraphExecDestroy", graph))
        self.call("cuGraphExecDestroy", graph)


class Watch:
    """Reads the GPU's clock between what a graph repeats. `module` is any that edgewm compiled: it has `ewm_stamp`."""

    def __init__(self, gpu: Gpu, module: c_void_p):
        self.gpu, self._stamp = gpu, gpu.function(module, "ewm_stamp")
        self._at, address = gpu.shared("<u8", 2)
        self._parameters = [np.array([address + 8 * i], "<u8") for i in range(2)]

    def us(self, record: Callable[[int], None], count: int, rounds: int) -> list[float]:
        """us of one `record(i)`, i < count, in each run of a graph of them all; one more run before is not told."""

        def whole() -> None:
            self.gpu.launch(self._stamp, 1, 1, 0, self._parameters[0])
            for i in range(count):
                record(i)
            self.gpu.launch(self._stamp, 1, 1, 0, self._parameters[1])

        graph = self.gpu.graph(whole)
        found = []
        for _ in range(rounds + 1):
            self.gpu.run(graph)
            began, ended = map(int, self._at)
            found.append((ended - began) / count / 1e3)
        self.gpu.forget(graph)
        return found[1:]

    def apart_us(self, record: Callable[[], None], between: Callable[[], None], count: int) -> float:
        """us of one `record()` where `between()` runs before each, untimed; mean of `count` in one graph."""
        stamps, address = self.gpu.shared("<u8", 3 * count)
        parameters = [np.array([address + 8 * i], "<u8") for i in range(3 * count)]

        def whole() -> None:
            for i in range(count):
                between()
                self.gpu.launch(self._stamp, 1, 1, 0, parameters[3 * i])
                self.gpu.launch(self._stamp, 1, 1, 0, parameters[3 * i + 1])
                record()
                self.gpu.launch(self._stamp, 1, 1, 0, parameters[3 * i + 2])

        graph = self.gpu.graph(whole)
        self.gpu.run(graph)
        self.gpu.forget(graph)
        nothing, something = np.diff(stamps.astype(np.int64).reshape(count, 3)).T
        return float(something.mean() - nothing.mean()) / 1e3

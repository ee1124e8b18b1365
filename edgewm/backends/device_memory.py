"""Buffers on a GPU from Python: pycuda, or cuda-bindings where pycuda cannot be built; neither until one is needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EdgewmError

Array = np.ndarray


@dataclass(frozen=True)
class Gpu:
    """One device with one stream. `sm` is its compute capability, like 8.7; addresses are integers.

    `pinned(shape, dtype)` is page-locked host memory; `to_device(address, array)` and `to_host(array, address)` copy
    without waiting, `wait()` waits for all that was begun; `allocated(bytes)` lives as long as the process.
    """

    sm: str
    stream: int
    allocated: Callable[[int], int]
    pinned: Callable[[tuple[int, ...], Any], Array]
    to_device: Callable[[int, Array], None]
    to_host: Callable[[Array, int], None]
    wait: Callable[[], None]


def gpu() -> Gpu:
    """The first device. EdgewmError where there is no module to reach it by, or no device."""
    for module, make in (("pycuda.driver", _by_pycuda), ("cuda.bindings.driver", _by_cuda_bindings)):
        try:
            __import__(module)
        except ImportError:
            continue
        try:
            return make()
        except EdgewmError:
            raise
        except Exception as fault:  # each module has exceptions of its own
            raise EdgewmError(
                f"no GPU: {module} says {fault or type(fault).__name__}", "--backend tensorrt",
                "run this on the device; on a Jetson see that the user is in the group `video`",
            ) from fault  # fmt: skip
    raise EdgewmError(
        "neither pycuda nor cuda-bindings is installed", "--backend tensorrt",
        "on a Jetson: sudo apt install build-essential python3-dev; PATH=/usr/local/cuda/bin:$PATH pip install pycuda; "
        "or pip install cuda-bindings of JetPack's CUDA (12.6 for JetPack 6)",
    )  # fmt: skip


def _by_pycuda() -> Gpu:
    import pycuda.driver as cuda

    cuda.init()
    device = cuda.Device(0)
    device.retain_primary_context().push()  # TensorRT's own
    stream = cuda.Stream()
    kept = []

    def allocated(count: int) -> int:
        kept.append(cuda.mem_alloc(count))
        return int(kept[-1])

    return Gpu(
        sm="{}.{}".format(*device.compute_capability()), stream=stream.handle, allocated=allocated,
        pinned=cuda.pagelocked_empty,
        to_device=lambda address, array: cuda.memcpy_htod_async(address, array, stream),
        to_host=lambda array, address: cuda.memcpy_dtoh_async(array, address, stream),
        wait=stream.synchronize,
    )  # fmt: skip


def _by_cuda_bindings() -> Gpu:
    from cuda.bindings import driver as cuda

    def done(result: tuple) -> Any:
        """The value of a call, which comes after its status."""
        status, *values = result
        if status != cuda.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{status}")
        return values[0] if values else None

    done(cuda.cuInit(0))
    device = done(cuda.cuDeviceGet(0))
    done(cuda.cuCtxSetCurrent(done(cuda.cuDevicePrimaryCtxRetain(device))))
    stream = done(cuda.cuStreamCreate(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
    attribute = cuda.CUdevice_attribute
    major, minor = (
        done(cuda.cuDeviceGetAttribute(which, device))
        for which in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )

    def pinned(shape: tuple[int, ...], dtype: Any) -> Array:
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        address = int(done(cuda.cuMemAllocHost(count)))
        return np.frombuffer((ctypes.c_char * count).from_address(address), dtype).reshape(shape)

    return Gpu(
        sm=f"{major}.{minor}", stream=int(stream), allocated=lambda count: int(done(cuda.cuMemAlloc(count))),
        pinned=pinned,
        to_device=lambda address, array: done(cuda.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, stream)),
        to_host=lambda array, address: done(cuda.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, stream)),
        wait=lambda: done(cuda.cuStreamSynchronize(stream)),
    )  # fmt: skip

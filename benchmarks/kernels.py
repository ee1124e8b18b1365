"""Every kernel family on the shapes of LeWM, one tile of lanes on one thread, beside this machine's measured peaks.

    python benchmarks/kernels.py [--json FILE]

LeWM's predictor: 3 frames, width 192, 16 heads of 64, hidden 2048; its encoder is a ViT of 257 tokens, 3 heads of 64.
Times are processor time of the thread, the best of a few rounds. FLOPs are the formula's: padding does not count.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import struct
import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from edgewm.codegen import expanded_functions
from edgewm.host import host
from edgewm.kernel import features, load
from edgewm.ops import TABLE
from edgewm.paths import KERNELS, RUNTIME
from edgewm.peaks import measure_peaks
from edgewm.target import compile_flags
from edgewm.toolchain import compile_library

ISA = host().isa
PRODUCT, ATTENTION = load("product"), load("attention")
TILE = PRODUCT.TILING[ISA].tile
ROUNDS, ROUND_S = 9, 0.02
GELU_FLOPS = TABLE["gelu"].flops
FRAMES, TOKENS = 3, 257


@dataclass(frozen=True)
class Work:
    """One call: a kernel of `kernels.cc` by index, its loops, its operands, and its FLOPs for one lane."""

    name: str
    kernel: int
    dims: tuple[int, ...]
    operands: tuple[tuple, ...]
    flops: int
    peak: str = "fp32_gflops"


def strides_of(*extents: int) -> tuple[int, ...]:
    """Element strides of [extents...][TILE] in row-major order."""
    return tuple(prod(extents[i + 1 :]) * TILE for i in range(len(extents)))


# By what holds the numbers: the first of its kernels in kernels.cc, its peak, and the bytes of its workspace.
PRODUCTS = {
    "f32": (0, "fp32_gflops", PRODUCT.workspace_bytes),
    "bf16": (10, "bf16_gflops", PRODUCT.workspace_bf16_bytes),
    "i8": (3, "int8_gops", PRODUCT.workspace_i8_bytes),
}


def product_work(name: str, k: int, n: int, dtype: str, prologue: str = "plain", gelu: bool = False) -> Work:
    first, peak, workspace_bytes = PRODUCTS[dtype]
    kernel = first + (2 if gelu else 1 if prologue == "modulated" else 0)
    (t_x, k_x), (t_y, n_y) = strides_of(FRAMES, k), strides_of(FRAMES, n)
    x = ("f32", FRAMES * k * TILE, 1, (t_x, 0, k_x))
    row = ("f32", FRAMES * TILE, 1, (TILE, 0, 0))
    inputs = (x, row, row, x, x) if prologue == "modulated" else (x,)
    weights = (("i8", PRODUCT.packed_bytes(dtype, k, n, ISA), 0, ()),)
    scales = (("f32", n, 0, (0, 1, 0)),) * 2 if dtype == "i8" else ()
    workspace = workspace_bytes((FRAMES,), k, ISA, prologue == "plain")
    outputs = (("f32", n, 0, (0, 1, 0)), ("f32", FRAMES * n * TILE, 1, (t_y, n_y, 0)))
    scratch = (("f32", workspace // 4, 1, ()),) if workspace else ()
    flops = FRAMES * n * (2 * k + 1 + (GELU_FLOPS if gelu else 0))
    return Work(name, kernel, (FRAMES, n, k), (*inputs, *weights, *scales, *outputs, *scratch), flops, peak)


def attention_work(name: str, heads: int, queries: int, keys: int, depth: int, shared: bool) -> Work:
    def array(length: int, loops: tuple[int, ...], lanes: bool) -> tuple:
        unit = TILE if lanes else 1
        return ("f32", heads * length * depth * unit, int(lanes), tuple(s * unit for s in loops))

    h, i, j, d, dv = 0, 1, 2, 3, 4

    def along(length: int, outer: int, inner: int) -> tuple[int, ...]:
        strides = [0] * 5
        strides[h], strides[outer], strides[inner] = length * depth, depth, 1
        return tuple(strides)

    q, y = array(queries, along(queries, i, d), True), array(queries, along(queries, i, dv), True)
    k, v = array(keys, along(keys, j, d), not shared), array(keys, along(keys, j, dv), not shared)
    size = ATTENTION.workspace_bytes(keys, depth, TILE, direct=True)
    flops = heads * queries * keys * (4 * depth + TABLE["exp"].flops + 4)
    return Work(
        name, 7 if shared else 6, (heads, queries, keys, depth, depth), (q, k, v, y, ("f32", size // 4, 1, ())), flops
    )


def row_work(name: str, kernel: int, outer: int, inner: int, flops: int, reduces: bool) -> Work:
    whole = ("f32", outer * inner * TILE, 1, strides_of(outer, inner))
    result = ("f32", outer * TILE, 1, (TILE, 0)) if reduces else whole
    return Work(name, kernel, (outer, inner), (whole, result), outer * inner * flops)


def works() -> list[Work]:
    rows = []
    for dtype in PRODUCTS:
        kind = "product" if dtype == "f32" else f"product_{dtype}"
        rows += [
            product_work(f"{kind} norm+modulation 192 -> 3072", 192, 3072, dtype, "modulated"),
            product_work(f"{kind} 192 -> 3072", 192, 3072, dtype),
            product_work(f"{kind} 1024 -> 192", 1024, 192, dtype),
            product_work(f"{kind} 192 -> 2048", 192, 2048, dtype),
            product_work(f"{kind} 192 -> 2048 gelu", 192, 2048, dtype, gelu=True),
            product_work(f"{kind} 2048 -> 192", 2048, 192, dtype),
            product_work(f"{kind} 2048 -> 2048", 2048, 2048, dtype),
        ]
    return [
        *rows,
        attention_work(f"attention {FRAMES} frames, 16 heads, own keys", 16, FRAMES, FRAMES, 64, False),
        attention_work(f"attention {TOKENS} tokens, 3 heads, shared keys", 3, 1, TOKENS, 64, True),
        row_work("reduce sum 3 x 192", 8, FRAMES, 192, 1, True),
        row_work("map gelu 3 x 2048", 9, FRAMES, 2048, GELU_FLOPS, False),
    ]


def library(folder: Path) -> ctypes.CDLL:
    target = host()
    flags = [*compile_flags(target, *features(["product_bf16"])), *PRODUCT.TILING[ISA].defines]
    text = (Path(__file__).parent / "kernels.cc").read_text()
    text = f'#include "lanes.h"\nnamespace ewm {{\n{expanded_functions()}\n}}\n{text}'
    return ctypes.CDLL(
        str(compile_library({"kernels.cc": text}, [RUNTIME, KERNELS], flags=flags, out=folder / "kernels.so"))
    )


CODES, SIZES = {"f32": 0, "i8": 3}, {"f32": 4, "i8": 1}


def encode(work: Work) -> tuple[bytes, bytes, int]:
    """The call and its operands (one after the other in one buffer), and that buffer's bytes."""
    operands, end = b"", 0
    for dtype, elements, lane, strides in work.operands:
        size = elements * SIZES[dtype]
        padded = (*strides, *(0,) * (6 - len(strides)))
        operands += struct.pack("<4BIQi6iI", 0, CODES[dtype], 0, 0, size, end, lane, *padded, 0)
        end += -(-size // 64) * 64
    dims = (*work.dims, *(0,) * (6 - len(work.dims)))
    return struct.pack("<4I6I2I", 0, 0, len(work.operands), len(work.dims), *dims, TILE, 0), operands, end


def seconds(kernels: ctypes.CDLL, work: Work) -> float:
    """Processor time of one call."""
    call, operands, size = encode(work)
    memory = np.random.default_rng(0).random(size // 4 + 16, np.float32)
    base = memory.ctypes.data + -memory.ctypes.data % 64

    def run(rounds: int) -> float:
        begin = time.thread_time()
        kernels.ewm_run(work.kernel, call, operands, ctypes.c_void_p(base), ctypes.c_void_p(base), rounds)
        return (time.thread_time() - begin) / rounds

    rounds = max(1, int(ROUND_S / run(3)))
    return min(run(rounds) for _ in range(ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the figures there as well")
    path = parser.parse_args().json
    cores = len(os.sched_getaffinity(0))
    peaks = {str(threads): measure_peaks(threads) for threads in dict.fromkeys((1, cores))}
    for threads, found in peaks.items():
        print(f"{threads} thread(s): " + ", ".join(f"{name} {value:.0f}" for name, value in found.items()))
    print(f"\n{ISA}, one tile of {TILE} lanes, one thread")
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        kernels = library(Path(folder))
        for work in works():
            took = seconds(kernels, work)
            rate = work.flops * TILE / took / 1e9
            fraction = rate / peaks["1"][work.peak]
            rows.append(
                {
                    "name": work.name,
                    "us": took * 1e6,
                    "flops": work.flops * TILE,
                    "gflops": rate,
                    "peak_fraction": fraction,
                }
            )
            print(f"  {work.name:48s} {took * 1e6:9.1f} us {rate:8.1f} G/s  {fraction:6.1%} of {work.peak}", flush=True)
    if path:
        report = {"schema_version": 1, "isa": ISA, "tile": TILE, "cpu": host().cpu.name, "peaks": peaks, "rows": rows}
        Path(path).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What the machine at hand can do at best, measured: the ceiling that every reported fraction refers to.

Each figure comes from a loop of the instructions that the kernels themselves use (`kernels/peaks.cc`), compiled as they
are. The best of a few rounds counts: other processes can only make a machine look slower than it is.
"""

from __future__ import annotations

import ctypes
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from .host import host
from .kernel import features, load
from .paths import KERNELS, RUNTIME
from .target import compile_flags, with_isa
from .toolchain import compile_library

ROUNDS = 15
ROUND_S = 0.01  # long beside a clock's read, short beside a scheduler's mood
CACHES = 4  # the buffers that reads stream through, in multiples of the last-level cache
SMALLEST_BYTES = 1 << 26


@cache
def _library(isa: str | None = None) -> ctypes.CDLL:
    target = host() if isa is None else with_isa(host(), isa)
    flags = [*compile_flags(target, *features(["product_bf16"])), *load("product").TILING[target.isa].defines]
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        source = (KERNELS / "peaks.cc").read_text()
        path = compile_library({"peaks.cc": source}, [RUNTIME, KERNELS], flags=flags, out=Path(folder) / "peaks.so")
        library = ctypes.CDLL(str(path))
    for name in ("ewm_peak_fp32", "ewm_peak_bf16", "ewm_peak_int8", "ewm_peak_read"):
        getattr(library, name).restype = ctypes.c_int64
    return library


def _rate(work: Callable[[int], int], threads: int) -> float:
    """Units a second of `work(thread)` on that many threads at once (ctypes lets go of the GIL); best round.

    Seconds are those a thread was on a processor, so that what else runs here does not count as slowness.
    """
    best = 0.0
    for _ in range(ROUNDS):
        rates = [0.0] * threads
        ready = threading.Barrier(threads)

        def one(i: int, rates: list[float] = rates, ready: threading.Barrier = ready) -> None:
            ready.wait()
            begin = time.thread_time()
            units = work(i)
            rates[i] = units / (time.thread_time() - begin)

        running = [threading.Thread(target=one, args=(i,)) for i in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        best = max(best, sum(rates))
    return best


def measure_peaks(threads: int = 1, isa: str | None = None) -> dict[str, float]:
    """Peaks of this machine with `threads` threads: `fp32_gflops` (a multiply-add counts two), `bf16_gflops` and
    `int8_gops` (likewise, of the instructions its kernels use) and `dram_gbps` (reads, 10^9 bytes a second).

    `isa` measures a lesser instruction set than the machine's own. Takes about a second, and the compiler on first use.
    Raises EdgewmError when that fails, or for an instruction set there is not.
    """
    library = _library(isa)
    found = {}
    for name in ("fp32_gflops", "bf16_gflops", "int8_gops"):
        function = getattr(library, f"ewm_peak_{name.partition('_')[0]}")
        begin = time.thread_time()
        function(ctypes.c_int64(10_000))
        rounds = ctypes.c_int64(max(1, int(10_000 * ROUND_S / (time.thread_time() - begin))))
        found[name] = _rate(lambda _, function=function, rounds=rounds: function(rounds), threads) / 1e9
    size = max(SMALLEST_BYTES, CACHES * (host().cpu.l3_bytes or 0) // threads)
    buffers = [np.ones(size, np.uint8) for _ in range(threads)]
    address = [ctypes.c_void_p(b.ctypes.data) for b in buffers]
    found["dram_gbps"] = _rate(lambda i: library.ewm_peak_read(address[i], ctypes.c_int64(size)), threads) / 1e9
    return found

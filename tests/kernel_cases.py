"""Kernel calls as data: laid out in memory, run by the program of kernels/*.cc, compared bit for bit."""

from __future__ import annotations

import math
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from edgewm import arithmetic
from edgewm import expr as e
from edgewm.host import host
from edgewm.interp import run
from edgewm.kernel import load
from edgewm.paths import KERNELS, RUNTIME
from edgewm.program import Graph, Node
from edgewm.target import ISAS, X86_CPU
from edgewm.toolchain import compile_program

P = load("product")
SOURCES = Path(__file__).parent / "kernels"  # a file a family: a planted fault compiles few again
CODES = {"f32": 0, "i32": 1, "u32": 2, "i8": 3, "u8": 4}
DTYPES = {"float32": "f32", "int32": "i32", "uint32": "u32", "int8": "i8", "uint8": "u8", "bfloat16": "bf16",
          "float16": "f16"}  # fmt: skip
MACHINES = {isa: ("x86_64-linux-gnu.2.31", cpu) for isa, cpu in X86_CPU.items()}
MACHINES["neon"] = ("aarch64-linux-gnu.2.31", "cortex_a78ae")


def runs_here(isa: str) -> bool:
    """Whether this CPU executes the x86 program of an instruction set."""
    levels = ISAS["x86_64"]
    return host().machine == "x86_64" and isa in levels and levels.index(isa) >= levels.index(host().isa)


def build(isa: str, folder: Path, kernels: Path = KERNELS, features: Sequence[str] = ()) -> Path:
    """The program of `SOURCES` for one instruction set, and with what a processor may have beyond it."""
    target, cpu = MACHINES[isa]
    constants = {"LOG2_E": math.log2(math.e), "LN2_HIGH": arithmetic.LN2_HIGH, "LN2_LOW": arithmetic.LN2_LOW}
    header = "".join(f"#define {name} {np.float32(value).item().hex()}f\n" for name, value in constants.items())
    header += f"#define EXP_COEFFICIENTS {', '.join(np.float32(c).item().hex() + 'f' for c in arithmetic.EXP)}\n"
    flags = ["-target", target, "-mcpu=" + "+".join((cpu, *features)), *P.TILING[isa].defines]
    flags += [f"-DEWM_{feature.upper()}" for feature in features]
    out = folder / "-".join(("cases", isa, *features))
    texts = {source.name: header + source.read_text() for source in sorted(SOURCES.glob("*.cc"))}
    return compile_program(texts, [RUNTIME, kernels, SOURCES], flags=flags, out=out)


def e4m3_numbers() -> np.ndarray:
    """f32 that are hard to round to E4M3: all it has, the middles between them and their neighbours, ends, NaN."""
    held = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    finite = np.sort(held[np.isfinite(held)])
    middles = (finite[1:] + finite[:-1]) / np.float32(2)
    edges = np.float32([464, 480, 512, 65504, 2.0**-11, 2.0**-126, 2.0**-149, 0])
    beside = [np.nextafter(m, np.float32(to)) for m in (middles, edges) for to in (-1e30, 1e30)]
    ends = np.float32([np.finfo(np.float32).max, np.inf])
    return np.concatenate([held, middles, edges, -edges, *beside, ends, -ends])


class Case:
    """One kernel call: loops named by one letter each, arrays by the letters of their axes, `l` being the lanes."""

    def __init__(self, isa: str, kernel: str, loops: str, dims: tuple[int, ...], lanes: int):
        self.tiling, self.isa = P.TILING[isa], isa
        self.kernel, self.loops, self.dims, self.lanes = kernel, loops, dims, lanes
        self.operands: list[bytes] = []
        self.spaces = [bytearray(), bytearray(), bytearray()]
        self.outputs: list[tuple[int, np.dtype, tuple[int, ...], str, str]] = []
        self.expected: list[np.ndarray] = []

    def extent(self, letter: str) -> int:
        return self.lanes if letter == "l" else self.dims[self.loops.index(letter)]

    def _operand(
        self, space: int, dtype: str, is_output: int, size: int, offset: int, lane: int, strides: list[int]
    ) -> None:
        strides = strides + [0] * (6 - len(strides))
        self.operands.append(
            struct.pack("<4BIQi6iI", space, CODES[dtype], is_output, 0, size, offset, lane, *strides, 0)
        )

    def _place(self, space: int, data: bytes) -> int:
        memory = self.spaces[space]
        memory.extend(b"\xff" * (-len(memory) % 64))  # f32 NaN, so that a stray read shows
        memory.extend(data)
        return len(memory) - len(data)

    def put(self, values: np.ndarray, axes: str, order: str | None = None, output: bool = False) -> None:
        """Lay `values` (its axes named by `axes`) into the arena; `order` is theirs in memory, lanes last by default.

        Lanes that come last are padded to whole tiles (with NaN).
        """
        order = order or axes.replace("l", "") + ("l" if "l" in axes else "")
        stored = values.transpose([axes.index(a) for a in order])
        if order.endswith("l"):
            filler = np.full((*stored.shape[:-1], -self.lanes % self.tiling.tile), -1, np.int64).astype(stored.dtype)
            filler = np.full_like(filler, np.nan) if stored.dtype.kind == "f" else filler
            stored = np.concatenate([stored, filler], -1)
        stored = np.ascontiguousarray(stored)
        strides = dict(zip(order, (s // stored.itemsize for s in stored.strides), strict=True))
        offset = self._place(0, stored.tobytes())
        loops = [strides.get(a, 0) for a in self.loops]
        self._operand(0, DTYPES[str(stored.dtype)], output, stored.nbytes, offset, strides.get("l", 0), loops)
        if output:
            self.outputs.append((offset, stored.dtype, stored.shape, order, axes))

    def expect(self, values: np.ndarray, axes: str, order: str | None = None) -> None:
        """An output operand (all ones before the call) and what it must hold after it."""
        blank = np.full(values.shape, -1, np.int64).astype(values.dtype)
        self.put(blank, axes, order, output=True)
        self.expected.append(values)

    def weights(self, packed: np.ndarray, dtype: str, batch: str = "") -> None:
        size = packed.shape[-1] // (1 if dtype == "i8" else 4)
        strides = [size if a in batch else 0 for a in self.loops]
        self._operand(2, dtype, 0, packed.nbytes, self._place(2, packed.tobytes()), 0, strides)

    def workspace(self, size: int) -> None:
        """SCRATCH of exactly that size, followed by what must not be written."""
        self._operand(1, "f32", 1, size, self._place(1, b"\xff" * size), 1, [])

    def encode(self) -> bytes:
        call = struct.pack(
            "<4I6I2I",
            0,
            0,
            len(self.operands),
            len(self.loops),
            *(self.dims + (0,) * (6 - len(self.dims))),
            self.lanes,
            0,
        )
        name = self.kernel.encode().ljust(64, b"\0")
        sizes = struct.pack("<3Q", *map(len, self.spaces))
        return name + call + b"".join(self.operands) + sizes + b"".join(self.spaces)

    def results(self, arena: bytes) -> list[np.ndarray]:
        found = []
        for offset, dtype, shape, order, axes in self.outputs:
            stored = np.frombuffer(arena, dtype, math.prod(shape), offset).reshape(shape)
            if order.endswith("l"):
                stored = stored[..., : self.lanes]
            found.append(stored.transpose([order.index(a) for a in axes]))
        return found


def answers(command: list[str], cases: list[Case]) -> list[bytes]:
    """The arena of each case after its call."""
    done = subprocess.run(command, input=b"".join(c.encode() for c in cases), capture_output=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr.decode()}"
    arenas, at = [], 0
    for case in cases:
        arenas.append(done.stdout[at : at + len(case.spaces[0])])
        at += len(case.spaces[0])
    assert at == len(done.stdout)
    return arenas


def differences(command: list[str], cases: list[Case]) -> list[str]:
    """One line for each output that is not, bit for bit, what it should be."""
    lines = []
    for case, arena in zip(cases, answers(command, cases), strict=True):
        for got, want in zip(case.results(arena), case.expected, strict=True):
            bad = np.ascontiguousarray(got).view(f"u{got.itemsize}") != np.ascontiguousarray(want).view(
                f"u{want.itemsize}"
            )
            if bad.any():
                first = tuple(int(i) for i in np.argwhere(bad)[0])
                loops = dict(zip(case.loops, case.dims, strict=True))
                lines.append(
                    f"{case.kernel} {loops} lanes {case.lanes}: {bad.sum()} of {bad.size} differ, "
                    f"first at {first}: {got[first]!r} for {want[first]!r}"
                )
    return lines


def canonical(node: Node, **inputs: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(run(Graph({"y": node}), inputs, {})["y"])


def leaf(name: str, x: np.ndarray) -> Node:
    return e.input(name, x.shape, DTYPES[str(x.dtype)])


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """f32 over a few magnitudes, with zeros of both signs."""
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)
    x = np.where(rng.random(shape) < 0.05, np.where(rng.random(shape) < 0.5, 0.0, -0.0), x)
    return x.astype(np.float32)

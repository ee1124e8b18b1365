"""A tiny bundle made by hand: three kernels in C++, two entries, so that the runtime is tested without the compiler.

`affine`  y = x * w + b over 40 lanes in tiles of 16, through scratch.
`plan`    mean = warm_mean; 10 times: mean = mean / 2 + (base + round + 1) + goal + observation; an anytime loop.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from edgewm import format as ewm
from edgewm import toolchain

HOST = os.uname().machine  # x86_64 or aarch64
FLAGS = ("-target", f"{HOST}-linux-gnu.2.31")
TARGET = f"{HOST}-fixture"
ROUNDS, AXES, STEPS, COMMIT = 10, 2, 3, 2
PERIOD_NS = 20_000_000
LANES, TILE = 40, 16

KERNELS = r"""
#include <unistd.h>
#include <stdlib.h>
#include "kernel.h"
namespace ewm {
static char* at(const Operand& o, const Frame& f, Tile t, uint32_t i, uint32_t l) {
  return start(o, f, t) + (int64_t(i) * o.stride[0] + int64_t(l) * o.lane_stride) * SIZE[o.dtype];
}
static float& num(const Operand& o, const Frame& f, Tile t, uint32_t i, uint32_t l) {
  return *reinterpret_cast<float*>(at(o, f, t, i, l));
}
static void add(const Call& c, const Operand* o, const Frame& f, Tile t) {
#ifdef EWM_PLANT_CALL
  getppid();
#endif
#ifdef EWM_PLANT_ALLOCATION
  void* volatile p = malloc(100);
  free(p);
#endif
  for (uint32_t i = 0; i < c.dim[0]; i++)
    for (uint32_t l = 0; l < t.valid; l++) num(o[2], f, t, i, l) = num(o[0], f, t, i, l) + num(o[1], f, t, i, l);
}
static void mul(const Call& c, const Operand* o, const Frame& f, Tile t) {
  for (uint32_t i = 0; i < c.dim[0]; i++)
    for (uint32_t l = 0; l < t.valid; l++) num(o[2], f, t, i, l) = num(o[0], f, t, i, l) * num(o[1], f, t, i, l);
}
static void tally(const Call& c, const Operand* o, const Frame& f, Tile t) {
  for (uint32_t i = 0; i < c.dim[0]; i++)
    for (uint32_t l = 0; l < t.valid; l++)
      num(o[2], f, t, i, l) = num(o[1], f, t, i, l) + float(*reinterpret_cast<uint32_t*>(at(o[0], f, t, i, l)) + 1);
}
const Kernel kernels[] = {add, mul, tally};
const char* const kernel_names[] = {"add", "mul", "tally"};
const uint32_t kernel_count = 3;
const uint8_t kernels_sha256[32] = {@KERNELS@};
const uint8_t program_sha256[32] = {@PROGRAM@};
const char target_name[32] = "@TARGET@";
}  // namespace ewm
"""
ADD, MUL, TALLY = range(3)
KERNELS_SHA256 = hashlib.sha256(KERNELS.encode()).digest()

# arena
X, Y, OBS, IMAGE, GOAL, SEED, COUNTER, WARM, ACTION, MEAN = 0, 512, 1024, 1088, 1152, 1216, 1280, 1344, 1408, 1472
CARRY, WORK, ROUND, ARENA_BYTES = 1536, 1600, 1856, 1920
# weights
W, B, BASE, HALF, ONE, ZERO, WEIGHT_BYTES = 0, 64, 128, 384, 448, 512, 576
SCRATCH_BYTES = 3 * TILE * 4


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    w, b, base = (rng.standard_normal(n).astype(np.float32) for n in (3, 3, 64))
    return {"w": w, "b": b, "base": base}


def _rows(dtype: np.dtype, rows: Iterable[Mapping]) -> np.ndarray:
    rows = list(rows)
    out = np.zeros(len(rows), dtype)
    for row, values in zip(out, rows, strict=True):
        for key, value in values.items():
            row[key] = value
    return out


def _port(name: str, kind: str, dtype: str, shape: tuple[int, ...], offset: int, **more) -> dict:
    dim = (*shape, *[0] * (6 - len(shape)))
    return {
        "name": name, "kind": ewm.KINDS[kind], "dtype": ewm.DTYPES[dtype], "rank": len(shape), "dim": dim,
        "elements": int(np.prod(shape)), "offset": offset, "low": -np.inf, "high": np.inf, "feedback": ewm.NONE, **more,
    }  # fmt: skip


def _operand(
    space: int, offset: int, size: int, stride: int, lane: int, output: bool = False, dtype: str = "f32"
) -> dict:
    strides = (stride, 0, 0, 0, 0, 0)
    return {
        "space": space, "dtype": ewm.DTYPES[dtype], "is_output": output, "bytes": size, "offset": offset,
        "lane_stride": lane, "stride": strides,
    }  # fmt: skip


def ports() -> np.ndarray:
    limits = {"low": -10.0, "high": 10.0}
    sixteen = lambda *values: np.array([*values, *[0] * (16 - len(values))], np.float32)  # noqa: E731
    return _rows(
        ewm.PORT,
        [
            _port("x", "observation", "f32", (LANES, 3), X),
            _port("y", "result", "f32", (LANES, 3), Y),
            _port("state", "observation", "f32", (6,), OBS, max_age_ns=50_000_000, **limits),
            _port("image", "observation", "u8", (5,), IMAGE),
            _port("goal", "goal", "f32", (1,), GOAL, **limits),
            _port("seed", "state", "u32", (2,), SEED),
            _port("counter", "state", "u32", (1,), COUNTER),
            _port("warm_mean", "state", "f32", (STEPS, AXES), WARM, feedback=9),
            _port(
                "action", "action", "f32", (STEPS, AXES), ACTION, axes=AXES, action_block=1, low=-100.0, high=100.0,
                slew=0.0, commit_steps=COMMIT, has_safe=1, safe=sixteen(1, -1), scale=sixteen(2, 0.5),
                offset_=sixteen(0.25, 0),
            ),
            _port("mean", "result", "f32", (STEPS, AXES), MEAN),
        ],
    )  # fmt: skip


def tables(port_rows: np.ndarray | None = None) -> dict[str, bytes]:
    """Every section of the file, in order."""
    n = STEPS * AXES
    scratch = lambda out: _operand(ewm.SCRATCH, 0, SCRATCH_BYTES, TILE, 1, out)  # noqa: E731
    weight = lambda at, size, stride, lane=0: _operand(ewm.WEIGHTS, at, size, stride, lane)  # noqa: E731
    arena = lambda at, size, lane=1, out=False: _operand(ewm.ARENA, at, size, 0, lane, out)  # noqa: E731
    counter = _operand(ewm.ARENA, ROUND, 4, 0, 0, dtype="u32")
    lanes_of_port = lambda at, out: _operand(ewm.ARENA, at, LANES * 12, 1, 3, out)  # noqa: E731
    calls: list[tuple[int, int, int, list[dict]]] = [
        (MUL, 3, LANES, [lanes_of_port(X, False), weight(W, 12, 1), scratch(True)]),
        (ADD, 3, LANES, [scratch(False), weight(B, 12, 1), lanes_of_port(Y, True)]),
        (ADD, 1, n, [arena(WARM, 64), weight(ZERO, 4, 0), arena(CARRY, 64, out=True)]),
        (TALLY, 1, 64, [counter, weight(BASE, 256, 0, 1), arena(WORK, 256, out=True)]),
        (MUL, 1, n, [arena(CARRY, 64), weight(HALF, 4, 0), arena(CARRY, 64, out=True)]),
        (ADD, 1, n, [arena(CARRY, 64), arena(WORK, 64), arena(CARRY, 64, out=True)]),
        (ADD, 1, n, [arena(CARRY, 64), arena(GOAL, 4, 0), arena(CARRY, 64, out=True)]),
        (ADD, 1, n, [arena(CARRY, 64), arena(OBS, 64), arena(CARRY, 64, out=True)]),
        (MUL, 1, n, [arena(CARRY, 64), weight(ONE, 4, 0), arena(ACTION, 64, out=True)]),
        (MUL, 1, n, [arena(CARRY, 64), weight(ONE, 4, 0), arena(MEAN, 64, out=True)]),
    ]
    region = lambda first, count, lanes: {  # noqa: E731
        "kind": ewm.REGION, "first_call": first, "calls": count, "lanes": lanes, "tile": TILE,
    }  # fmt: skip
    steps = _rows(
        ewm.STEP,
        [
            region(0, 2, LANES),
            region(2, 1, n),
            {"kind": ewm.REPEAT, "count": ROUNDS, "anytime": 1, "counter": ROUND},
            region(3, 1, 64),
            region(4, 2, n),
            region(6, 2, n),
            {"kind": ewm.END, "count": 4},
            region(8, 2, n),
        ],
    )
    entry_ports = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "<u4")
    entries = _rows(
        ewm.ENTRY,
        [
            {"name": "affine", "first_step": 0, "steps": 1, "first_port": 0, "ports": 2},
            {"name": "plan", "first_step": 1, "steps": 7, "first_port": 2, "ports": 8},
        ],
    )
    operands = [o for call in calls for o in call[3]]
    call_rows, first = [], 0
    for kernel, dim, lanes, given in calls:
        call_rows.append(
            {
                "kernel": kernel,
                "first_operand": first,
                "operands": len(given),
                "rank": 1,
                "dim": (dim, 0, 0, 0, 0, 0),
                "lanes": lanes,
            }
        )
        first += len(given)
    blob = np.zeros(WEIGHT_BYTES // 4, np.float32)
    for at, values in zip((W, B, BASE), weights().values(), strict=True):
        blob[at // 4 : at // 4 + len(values)] = values
    blob[HALF // 4], blob[ONE // 4] = 0.5, 1.0
    sizes = {"arena_bytes": ARENA_BYTES, "scratch_bytes": SCRATCH_BYTES, "weight_bytes": blob.nbytes, "plan_entry": 1}
    port_rows = ports() if port_rows is None else port_rows
    counts = {
        "entries": 2,
        "ports": len(port_rows),
        "steps": len(steps),
        "calls": len(calls),
        "operands": len(operands),
    }
    return {
        "sizes": _rows(ewm.SIZES, [sizes | counts]).tobytes(),
        "ports": port_rows.tobytes(),
        "entries": entries.tobytes(),
        "entry_ports": entry_ports.tobytes(),
        "steps": steps.tobytes(),
        "calls": _rows(ewm.CALL, call_rows).tobytes(),
        "operands": _rows(ewm.OPERAND, operands).tobytes(),
        "weights": blob.tobytes(),
        "golden": golden(),
    }


def affine(x: np.ndarray) -> np.ndarray:
    w = weights()
    return (x * w["w"]).astype(np.float32) + w["b"]


def plan(warm: np.ndarray, goal: float, state: np.ndarray, rounds: int = ROUNDS) -> np.ndarray:
    """Mean after the loop, (STEPS, AXES), in float32 and the kernels' order."""
    mean, base = warm.astype(np.float32).reshape(-1), weights()["base"][: STEPS * AXES]
    for r in range(rounds):
        mean = ((mean * np.float32(0.5) + (base + np.float32(r + 1))) + np.float32(goal)) + state.astype(np.float32)
    return mean.reshape(STEPS, AXES)


def robot(mean: np.ndarray) -> np.ndarray:
    """Model actions in the robot's units: scale, then offset."""
    return (mean * np.array([2, 0.5], np.float32)) + np.array([0.25, 0], np.float32)


def golden() -> bytes:
    state, warm = np.linspace(-1, 1, 6, dtype=np.float32), np.full((STEPS, AXES), 0.5, np.float32)
    mean = plan(warm, 0.25, state)
    x = np.linspace(-2, 2, LANES * 3, dtype=np.float32).reshape(LANES, 3)
    given = [state, np.arange(5, dtype=np.uint8), np.float32([0.25]), np.uint32([7, 0]), np.uint32([0]), warm]
    plan_values = list(enumerate([*given, mean, mean], start=2))
    return ewm.golden_record("affine", [(0, x), (1, affine(x))]) + ewm.golden_record("plan", plan_values)


def kernels(sections: Mapping[str, bytes], target: str = TARGET) -> str:
    number = lambda digest: ",".join(map(str, digest))  # noqa: E731
    text = KERNELS.replace("@KERNELS@", number(KERNELS_SHA256)).replace("@TARGET@", target)
    return text.replace("@PROGRAM@", number(ewm.program_sha256(sections)))


def write(folder: Path, port_rows: np.ndarray | None = None, flags: Iterable[str] = FLAGS) -> Path:
    """A whole bundle in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = tables(port_rows)
    (folder / "model.ewm").write_bytes(ewm.pack(sections, TARGET, KERNELS_SHA256))
    toolchain.build_runtime({"kernels.cc": kernels(sections)}, [], flags=list(flags), folder=folder)
    return folder


@functools.cache
def bundle() -> Path:
    """The bundle as it is, built once in a process and gone with it."""
    folder = Path(tempfile.mkdtemp(prefix="edgewm-fixture-"))
    atexit.register(shutil.rmtree, folder)
    return write(folder)

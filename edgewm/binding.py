"""A bundle's own runtime from Python: ctypes over `edgewm.h`, numpy arrays in and out.

with Runtime("out/", threads=2) as robot:
    robot.reset(seed=0)
    robot.set_goal(goal=goal_pixels)
    robot.observe(pixels=frame)
    robot.plan()
    action, info = robot.act(now_ns)
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import mmap
import time
from collections.abc import Callable
from ctypes import POINTER, byref, c_char, c_float, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .abi import (
    NONE,
    ActStruct,
    Buffer,
    Clock,
    Counts,
    EntryInfo,
    Fault,
    ModelInfo,
    Options,
    PlanStruct,
    PortInfo,
    fields,
    library,
    sized,
)
from .errors import EdgewmError

KINDS = ("observation", "goal", "action", "noise", "state", "result")
DTYPES = (np.float32, np.int32, np.uint32, np.int8, np.uint8)
STATES = ("waiting", "fresh", "hold", "ramp", "stopped")
MISSING, RESULT_NON_FINITE = 105, 400


@dataclass(frozen=True)
class PortView:
    """A port as the caller sees it: shape, dtype, range, and its index in the file."""

    index: int
    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    low: float
    high: float
    max_age_ns: int
    axes: int
    action_block: int
    commit_steps: int

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def is_input(self) -> bool:
        return self.kind not in ("action", "result")


@dataclass(frozen=True)
class PlanInfo:
    """One plan: `iterations` of the `of` rounds that its anytime loop has; times in ns of the loop's clock. Its first
    action is to play at `due_ns`; 0: as soon as it is there."""

    late: bool
    iterations: int
    of: int
    generation: int
    start_ns: int
    end_ns: int
    stamp_ns: int
    due_ns: int


@dataclass(frozen=True)
class ActInfo:
    """One control period: rung of the ladder, periods since the chunk's first action, its observation's age."""

    state: str
    index: int
    limited: int
    skipped: int
    generation: int
    age_ns: int


class Runtime:
    """A bundle, opened and ready to run.

    `bundle` is the directory that holds model.ewm and libedgewm.so; `threads` counts the planning thread; `spin` keeps
    workers busy between plans; `anywhere` lets them wake on the planning thread's processor, else they are kept off it;
    `period_ns` is the control period of `act`; `clock`, where given, returns ns and replaces CLOCK_MONOTONIC;
    `gpu_wait_ns` bounds the wait for a GPU beyond a deadline (0: 10 s). Every method raises EdgewmError with what the
    runtime found and what it expected.
    """

    def __init__(
        self,
        bundle: str | Path,
        threads: int = 1,
        *,
        spin: bool = False,
        anywhere: bool = False,
        period_ns: int = 20_000_000,
        max_hold_periods: int = 3,
        ramp_periods: int = 10,
        clock: Callable[[], int] | None = None,
        gpu_wait_ns: int = 0,
    ):
        self.bundle = Path(bundle)
        self._model, self._loop, self._closed = c_void_p(), c_void_p(), True
        self._c = library(self.bundle / "libedgewm.so")
        self._closed = False
        self._fault = sized(Fault)
        self._now = clock or time.monotonic_ns
        options = sized(Options)
        options.spin, options.anywhere, options.period_ns = spin, anywhere, period_ns
        options.gpu_wait_ns = gpu_wait_ns
        options.max_hold_periods, options.ramp_periods = max_hold_periods, ramp_periods
        options.clock = self._clock = Clock(lambda _: clock()) if clock else Clock()  # kept: the C side calls it
        try:
            self._open(threads, options)
        except BaseException:
            self.close()
            raise

    def _open(self, threads: int, options: ctypes.Structure) -> None:
        self._check(self._c.ewm_open(str(self.bundle / "model.ewm").encode(), byref(self._model), byref(self._fault)))
        info = sized(ModelInfo)
        self._c.ewm_describe(self._model, byref(info))
        self.info: dict[str, int] = fields(info)
        self.target: str = self._c.ewm_target().decode()
        self._ports = [self._read_port(i) for i in range(info.ports)]
        self._entries = dict(self._read_entry(i) for i in range(info.entries))
        size = self._c.ewm_arena_bytes(self._model, threads)
        self._arena = mmap.mmap(-1, max(size, 1))  # page aligned
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self._arena.madvise(mmap.MADV_HUGEPAGE)
        at = ctypes.addressof(c_char.from_buffer(self._arena))
        self._check(
            self._c.ewm_init(self._model, at, size, threads, byref(options), byref(self._loop), byref(self._fault))
        )

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and give the memory back; twice is once."""
        if self._closed:
            return
        self._closed = True
        if self._loop:
            self._c.ewm_end(self._loop)
        if self._model:
            self._c.ewm_close(self._model)
        _ctypes.dlclose(self._c._handle)  # else a bundle built again at this place would meet the old code

    @property
    def entries(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def plan_entry(self) -> str | None:
        """Name of the entry that `plan` runs."""
        return None if self.info["plan_entry"] == NONE else self.entries[self.info["plan_entry"]]

    def ports(self, entry: str | None = None) -> tuple[PortView, ...]:
        """Ports of one entry; of the whole file without one."""
        return tuple(self._ports) if entry is None else tuple(self._ports[i] for i in self._entry(entry)[1])

    def run_entry(self, name: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Run one entry on its inputs, all of them, by port name; its results by name."""
        index, indices = self._entry(name)
        ports = [self._ports[i] for i in indices]
        given = [(self._port(key, name), value) for key, value in arrays.items()]
        data = [self._array(port, value) for port, value in given]
        results = {p.name: np.zeros(p.shape, p.dtype) for p in ports if not p.is_input}
        inputs = (Buffer * max(len(data), 1))(
            *(Buffer(p.index, a.ctypes.data, a.nbytes) for (p, _), a in zip(given, data, strict=True))
        )
        outputs = (Buffer * max(len(results), 1))(
            *(Buffer(p.index, results[p.name].ctypes.data, p.bytes) for p in ports if not p.is_input)
        )
        done = self._c.ewm_run_entry(self._alive(), index, inputs, len(data), outputs, len(results), byref(self._fault))
        self._check(done)
        return results

    def set_goal(self, **arrays: np.ndarray) -> None:
        """Goal and noise ports by name; they stay until set again."""
        for name, value in arrays.items():
            port = self._port(name)
            data = self._array(port, value)
            self._check(
                self._c.ewm_set_goal(self._alive(), port.index, data.ctypes.data, data.nbytes, byref(self._fault))
            )

    def observe(self, stamp_ns: int | None = None, **arrays: np.ndarray) -> None:
        """Newest observations by port name, taken at `stamp_ns` of the loop's clock (now, when left out)."""
        for name, value in arrays.items():
            port = self._port(name)
            data = self._array(port, value)
            stamp = self._now() if stamp_ns is None else stamp_ns
            done = self._c.ewm_observe(
                self._alive(), port.index, data.ctypes.data, data.nbytes, stamp, byref(self._fault)
            )
            self._check(done)

    def reset(self, seed: int = 0) -> None:
        """Forget observations, plans, state between plans and a latched stop."""
        self._check(self._c.ewm_reset(self._alive(), seed, byref(self._fault)))

    def warm_start(self, mean: np.ndarray) -> None:
        """Mean that the next plan starts from, shape and units of the state port `warm_mean`."""
        data = self._array(self._port("warm_mean"), mean)
        self._check(self._c.ewm_warm_start(self._alive(), data.ctypes.data, data.nbytes, byref(self._fault)))

    def plan(self, deadline_ns: int = 0) -> PlanInfo:
        """Plan from the newest observations and publish the actions. `deadline_ns` on the loop's clock; 0: none."""
        info = sized(PlanStruct)
        self._check(self._c.ewm_plan(self._alive(), deadline_ns, byref(info), byref(self._fault)))
        return PlanInfo(**{**fields(info), "late": bool(info.late)})

    def act(self, now_ns: int | None = None) -> tuple[np.ndarray, ActInfo]:
        """The action (axes,) for the control period beginning at `now_ns`, in the robot's units."""
        action, info = np.zeros(16, np.float32), sized(ActStruct)
        now = self._now() if now_ns is None else now_ns
        error = self._c.ewm_act(self._alive(), now, action.ctypes.data_as(POINTER(c_float)), byref(info))
        if error:
            raise EdgewmError(
                "no action yet: nothing is planned, and the action port has no safe value"
                if error == MISSING
                else self._text(error),
                str(self.bundle),
                "plan first, or build with a safe action",
            )
        axes = self._ports[self.info["action_port"]].axes
        return action[:axes], ActInfo(**{**fields(info), "state": STATES[info.state]})

    def stats(self) -> dict[str, int]:
        """Counters since the start: plans, refusals by cause, control periods by rung, futex calls."""
        counts = sized(Counts)
        self._c.ewm_stats(self._alive(), byref(counts))
        return fields(counts)

    def _alive(self) -> c_void_p:
        if self._closed:
            raise EdgewmError("this runtime is closed", str(self.bundle), "open it again")
        return self._loop

    def _entry(self, name: str) -> tuple[int, tuple[int, ...]]:
        if name not in self._entries:
            raise EdgewmError(f"no entry {name!r}", str(self.bundle), f"use one of {', '.join(self._entries)}")
        return self._entries[name]

    def _port(self, name: str, entry: str | None = None) -> PortView:
        """The input port of that name: of an entry, by default of the one that plans."""
        entry = entry or self.plan_entry
        ports = self._ports if entry is None else self.ports(entry)
        for port in ports:
            if port.name == name and port.is_input:
                return port
        names = ", ".join(p.name for p in ports if p.is_input)
        raise EdgewmError(f"no input port {name!r}", f"{self.bundle}, entry {entry}", f"use one of {names}")

    def _array(self, port: PortView, value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != port.shape or array.dtype != port.dtype:
            raise EdgewmError(
                f"port {port.name!r} was given {array.dtype}{list(array.shape)}",
                f"{self.bundle}, {port.kind} port",
                f"give {port.dtype}{list(port.shape)}",
            )
        return np.ascontiguousarray(array)

    def _read_port(self, index: int) -> PortView:
        p = sized(PortInfo)
        self._c.ewm_port(self._model, index, byref(p))
        return PortView(
            index, p.name.decode(), KINDS[p.kind], tuple(p.dim[: p.rank]), np.dtype(DTYPES[p.dtype]), p.low, p.high,
            p.max_age_ns, p.axes, p.action_block, p.commit_steps,
        )  # fmt: skip

    def _read_entry(self, index: int) -> tuple[str, tuple[int, tuple[int, ...]]]:
        e = sized(EntryInfo)
        self._c.ewm_entry(self._model, index, byref(e))
        return e.name.decode(), (index, tuple(self._c.ewm_entry_port(self._model, index, k) for k in range(e.ports)))

    def _text(self, error: int) -> str:
        return self._c.ewm_strerror(error).decode()

    def _check(self, error: int) -> None:
        if error == 0:
            return
        told = fields(self._fault)
        where, found, expected = (told[n].decode("utf-8", "replace") for n in ("where", "found", "expected"))
        raise EdgewmError(
            f"{self._text(error)}: found {found}", f"{self.bundle}, {where}", f"expected {expected}; {_fix(error)}"
        )


def _fix(error: int) -> str:
    """What to do, by who is to blame."""
    if error >= RESULT_NON_FINITE:
        return "check the observation and the weights; nothing of this result was used"
    blame = {1: "mend what is handed over", 2: "copy or build the bundle again", 3: "use a machine that has it"}
    return blame[error // 100]

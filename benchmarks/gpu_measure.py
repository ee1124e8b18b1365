"""What a GPU is measured by: its own ceilings, each kernel case, whole plans; every answer checked before it is timed.

Cases are timed by the GPU's clock in a graph that repeats them (warm: everything they read may be in the L2; cold: the
L2 is overwritten between). Plans are timed as a robot meets them, through the runtime: one graph launch, one wait.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import gpu_cases
import numpy as np
from gpu_build import opened, piece
from gpu_driver import Gpu, Watch

from edgewm import format as ewm
from edgewm.binding import Runtime
from edgewm.cuda import bound
from edgewm.cuda.launches import THREADS
from edgewm.kernel_times import rates
from edgewm.manifest import read_manifest
from edgewm.target import Mode, Target

LAUNCH = np.dtype(
    [("calls", "<u8"), ("operands", "<u8"), ("base", "<u8", 3), ("call", "<u4"), ("phase", "<u4")]
)  # edgewm/runtime/launch.h
FLOPS_A_ROUND = {"f32": 32 * 2 * THREADS, "bf16": 8 * 4096 * THREADS // 32, "i8": 8 * 8192 * THREADS // 32}  # a block
RATES = {"f32": "fp32_gflops", "bf16": "bf16_gflops", "i8": "int8_gops"}
KIND = {"fp32": "f32", "bf16": "bf16", "w8a8": "i8"}
RUN_US, CASE_US = 2e4, 3e5  # that one run of repeats, and all runs of a case, are to take at the most
Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much is done: runs that a median is of, repeats within one, rounds and MiB of a ceiling, the L2's bytes."""

    rounds: int = 15
    repeats: int = 50
    ceiling_rounds: int = 4096
    ceiling_mib: int = 2048
    nodes: int = 1000
    l2_bytes: int = 50 << 20


# ---------------------------------------------------------------------------------------------- ceilings


def ceilings(gpu: Gpu, cubin: bytes, effort: Effort) -> dict[str, float]:
    """Rates of the instructions that our kernels use (dense, a multiply-add as two), of DRAM and the L2, and what a
    launch costs: `node_us` each in a graph, `launch_us` for a graph of one from the call to the end of the wait."""
    module = gpu.module(cubin)
    watch = Watch(gpu, module)
    size = effort.ceiling_mib << 20
    tables, two = gpu.upload(bytes(256)), (gpu.allocate(size), gpu.allocate(size))
    given = np.zeros((), LAUNCH)
    given["calls"] = given["operands"] = tables
    given["base"] = (*two, tables)
    kept = []  # parameters are read when a graph is recorded

    def rate(name: str, blocks: int, rounds: int, count: int = 4) -> float:
        parameter = given.copy()
        parameter["phase"] = rounds
        kept.append(parameter)
        function = gpu.function(module, f"ceiling_{name}")
        return median(watch.us(lambda _: gpu.launch(function, blocks, THREADS, 0, parameter), count, effort.rounds))

    found = {}
    blocks = 8 * gpu.processors
    for kind, flops in FLOPS_A_ROUND.items():
        took = rate(kind, blocks, effort.ceiling_rounds)
        found[RATES[kind]] = flops * blocks * effort.ceiling_rounds / took / 1e3
    each = 16
    wide = size // (THREADS * 16 * each)
    found["dram_gbps"] = 2 * size / rate("copy", wide, each) / 1e3
    found["dram_read_gbps"] = size / rate("read", wide, each) / 1e3
    half = max(effort.l2_bytes // 4 // (THREADS * 16 * each), 1)
    found["l2_gbps"] = half * THREADS * 16 * each / rate("read", half, each, 20) / 1e3
    found["node_us"] = rate("nothing", 1, 0, effort.nodes)
    nothing = gpu.function(module, "ceiling_nothing")
    graph = gpu.graph(lambda: gpu.launch(nothing, 1, THREADS, 0, given))
    found["launch_us"] = median(seconds(lambda: gpu.run(graph), effort.rounds)) * 1e6
    return found


def seconds(step: Callable[[], object], rounds: int) -> list[float]:
    """Of each round by this machine's clock; one before is not told."""
    step()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return found


# ---------------------------------------------------------------------------------------------- calls on their own


class Loaded:
    """A bundle's calls on the GPU, launched one by one: what the runtime does for an entry, in pieces."""

    def __init__(self, gpu: Gpu, sections: Mapping[str, bytes]):
        self.gpu = gpu
        (facts,) = np.frombuffer(sections["gpu"], ewm.GPU)
        (sizes,) = np.frombuffer(sections["sizes"], ewm.SIZES)
        self.module = gpu.module(sections["cubin"] if int(facts["sm"]) // 10 == gpu.sm // 10 else sections["ptx"])
        self.rows = np.frombuffer(sections["launches"], ewm.LAUNCH)
        names = [row["name"].decode() for row in np.frombuffer(sections["functions"], ewm.FUNCTION)]
        self.functions = {
            i: gpu.function(self.module, names[i], int(self.rows["shared_bytes"][self.rows["function"] == i].max()))
            for i in map(int, np.unique(self.rows["function"]))
        }  # none is looked for while a graph is recorded
        self.steps, self.entries = (
            np.frombuffer(sections[n], d) for n, d in (("steps", ewm.STEP), ("entries", ewm.ENTRY))
        )
        self.given = np.zeros((), LAUNCH)
        for key in ("calls", "operands"):
            self.given[key] = gpu.upload(sections[key])
        self.given["base"] = (
            gpu.allocate(int(sizes["arena_bytes"])), gpu.allocate(int(sizes["scratch_bytes"])),
            gpu.upload(sections["weights"]),
        )  # fmt: skip
        self.kept: list[np.ndarray] = []

    def fill(self, sections: Mapping[str, bytes], entry: str, inputs: Mapping[str, np.ndarray]) -> None:
        """An entry's inputs where its calls read them."""
        row = self._entry(entry)
        mine = np.frombuffer(sections["entry_ports"], "<u4")[int(row["first_port"]) :][: int(row["ports"])]
        for port in np.frombuffer(sections["ports"], ewm.PORT)[mine]:
            if port["name"].decode() in inputs and port["kind"] not in (ewm.KINDS["result"], ewm.KINDS["action"]):
                self.gpu.upload(inputs[port["name"].decode()], int(self.given["base"][0]) + int(port["offset"]))

    def calls(self, entry: str) -> list[int]:
        """Of an entry without loops, in order."""
        row = self._entry(entry)
        steps = self.steps[int(row["first_step"]) :][: int(row["steps"])]
        return [c for s in steps for c in range(int(s["first_call"]), int(s["first_call"] + s["calls"]))]

    def launch(self, calls: Iterable[int]) -> None:
        """All phases of these calls, into the graph that is being recorded."""
        for call in calls:
            for row in self.rows[self.rows["call"] == call]:
                parameter = self.given.copy()
                parameter["call"], parameter["phase"] = row["call"], row["phase"]
                self.kept.append(parameter)
                function, shared = self.functions[int(row["function"])], int(row["shared_bytes"])
                self.gpu.launch(function, int(row["blocks"]), THREADS, shared, parameter)

    def _entry(self, name: str) -> np.void:
        return next(e for e in self.entries if e["name"].decode() == name)


class Sweeper:
    """Overwrites the L2."""

    def __init__(self, gpu: Gpu, effort: Effort):
        self.gpu, self.words = gpu, effort.l2_bytes // 2
        self.at = gpu.allocate(4 * self.words)
        self.graph = gpu.graph(self.record)

    def record(self) -> None:
        self.gpu.call("cuMemsetD32Async", self.at, 0x3F800000, self.words, self.gpu.stream)

    def now(self) -> None:
        self.gpu.run(self.graph)


# ---------------------------------------------------------------------------------------------- cases


def case_rows(
    gpu: Gpu, folder: Path, name: str, index: Mapping[str, Any], answers: Mapping[str, np.ndarray], work: Path,
    machine: Mapping[str, float], effort: Effort, cases: Mapping[str, gpu_cases.Case],
) -> list[Row]:  # fmt: skip
    """Every case of one bundle: checked through the runtime, then timed without the copy that hands its answer over."""
    facts = index["bundles"][name]
    sections = opened(folder, name, index, work)
    began = time.perf_counter()
    checks = {}
    with Runtime(work) as runtime:
        opening_s = time.perf_counter() - began
        for entry, told in facts["cases"].items():
            y = runtime.run_entry(entry, **gpu_cases.inputs_of(cases[entry]))["y"]
            stored = f"{facts['key']}/{entry}"
            checks[entry] = checked_case(
                y, told["sha256"], {k: answers[f"{stored}/{k}"] for k in ("at", "y", "rounding")}
            )
    loaded, sweeper = Loaded(gpu, sections), Sweeper(gpu, effort)
    watch = Watch(gpu, loaded.module)
    rows: list[Row] = []
    manifest = json.loads(sections["manifest"])
    does = [work["does"] for work in manifest["calls"]]
    kernels = np.frombuffer(sections["calls"], ewm.CALL)["kernel"]
    families = [manifest["kernels"][int(k)].partition("<")[0] for k in kernels]
    for entry, told in facts["cases"].items():
        loaded.fill(sections, entry, gpu_cases.inputs_of(cases[entry]))
        calls = loaded.calls(entry)
        core = [c for c in calls if timed(told["kind"], families[c], does[c])]
        once = gpu.graph(lambda calls=calls: loaded.launch(calls))
        gpu.run(once)
        (once_us,) = watch.us(lambda _, core=core: loaded.launch(core), 1, 1)
        repeats = max(1, min(effort.repeats, int(RUN_US / once_us)))
        rounds = max(1, min(effort.rounds, int(CASE_US / (once_us * repeats))))
        warm = watch.us(lambda _, core=core: loaded.launch(core), repeats, rounds)
        cold = watch.apart_us(lambda core=core: loaded.launch(core), sweeper.record, max(repeats // 5, 2))
        us, kind = median(warm), KIND[facts["precision"]]
        gflops = told["flops"] / us / 1e3
        rows.append({
            "table": "gpu-cases", "name": f"{told['name']} {facts['precision']} {facts['sm']}", "kind": told["kind"],
            "us": us, "min_us": min(warm), "cold_us": cold, "launches": int(np.isin(loaded.rows["call"], core).sum()),
            "tflops": gflops / 1e3 if told["flops"] else None,
            "of_ceiling": gflops / machine[RATES[kind]] if told["flops"] else None, **checks[entry],
            "opening_s": opening_s,
        })  # fmt: skip
        loaded.kept.clear()
    return rows


def timed(kind: str, family: str, does: str) -> bool:
    """Whether a call is of what a case is about: all but copies that hand over, of an attention only itself."""
    return family == "attention" if kind == "attention" else does != "copy"


def checked_case(y: np.ndarray, sha256: str | None, stored: Mapping[str, np.ndarray]) -> Row:
    """`answer` "same bits", "within rounding" or what is wrong; `worst` difference as a share of what is allowed."""
    if sha256 is not None and hashlib.sha256(y.tobytes()).hexdigest() == sha256:
        return {"answer": "same bits", "worst": 0.0}
    apart = np.abs(y.reshape(-1)[stored["at"]].astype(np.float64) - stored["y"])
    if sha256 is not None:
        return {"answer": f"WRONG: {float(np.nanmax(apart)):.3g} away where bits were promised", "worst": None}
    worst = float((apart / stored["rounding"]).max()) if np.isfinite(y).all() else float("inf")
    return {"answer": "within rounding" if worst <= 1 else f"WRONG: {worst:.3g} times the rounding", "worst": worst}


# ---------------------------------------------------------------------------------------------- plans


def plan_rows(
    gpu: Gpu, folder: Path, name: str, index: Mapping[str, Any], answers: Mapping[str, np.ndarray], work: Path,
    machine: Mapping[str, float], effort: Effort, board: Target, mode: Mode,
) -> list[Row]:  # fmt: skip
    """A model's bundle: its entries checked and timed, and the plan's kernels by the GPU's clock."""
    facts = index["bundles"][name]
    opened(folder, name, index, work)
    flops = read_manifest(work).raw["flops"]
    began = time.perf_counter()
    rows = []
    with Runtime(work, spin=True) as runtime:
        opening_s = time.perf_counter() - began
        sweeper = Sweeper(gpu, effort)
        for entry, told in facts["entries"].items():
            given, wanted = (
                {k.rpartition("/")[2]: answers[k] for k in answers if k.startswith(f"{facts['key']}/{entry}/{way}/")}
                for way in ("in", "out")
            )
            deviation = facts["deviation"] if facts["iterations"] == 1 else None
            check = checked_entry(runtime.run_entry(entry, **given), wanted, told["tensor_rounding"], deviation)
            warm = seconds(lambda entry=entry, given=given: runtime.run_entry(entry, **given), effort.rounds)
            cold = []
            for _ in range(max(effort.rounds // 3, 1)):
                sweeper.now()
                began = time.perf_counter()
                runtime.run_entry(entry, **given)
                cold.append(time.perf_counter() - began)
            ms = median(warm) * 1e3
            rows.append({
                "table": "gpu-plans", "name": f"{name} {entry}", "code": facts["sm"],
                "persistent": facts["persistent"], "ms": ms, "min_ms": min(warm) * 1e3,
                "cold_ms": median(cold) * 1e3, "launches": launches_of(work, entry), "gflop": flops[entry] / 1e9,
                "tflops": flops[entry] / ms / 1e9, **check, "opening_s": opening_s,
            })  # fmt: skip
        ns = None if facts["persistent"] else profiled(runtime, given, max(effort.rounds // 5, 1))
    # a launch that stays is not split into calls
    kernels = [] if ns is None else kernel_rows(work, name, ns, machine, board, mode)
    rows[-1] |= estimate_of(work, board, mode)
    return rows + kernels


def checked_entry(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], rounding: float, deviation: float | None
) -> Row:
    """Bits where nothing is rounded by tensor cores. Else a refit by other elites is no fault: after one iteration the
    mean must lie within one `deviation` of what is drawn, after more (None) it is told how far it lies."""
    if all(found[k].tobytes() == wanted[k].tobytes() for k in wanted):
        return {"answer": "same bits", "worst": 0.0}
    if not all(np.isfinite(a).all() for a in found.values()):
        return {"answer": "WRONG: not finite", "worst": None}
    scale = {k: np.abs(a.astype(np.float64)).max() for k, a in wanted.items()}
    apart = {k: np.abs(found[k].astype(np.float64) - a).max() / (scale[k] or 1.0) for k, a in wanted.items()}
    worst = float(max(apart.values()))
    if rounding == 0:
        return {"answer": f"WRONG: {worst:.3g} away where bits were promised", "worst": worst}
    if "mean" in wanted and deviation is not None:
        moved = float(np.abs(found["mean"] - wanted["mean"]).max()) / deviation
        if moved >= 1:
            return {"answer": f"WRONG: {moved:.3g} deviations away after one iteration", "worst": worst}
    return {"answer": "as far as rounding takes it", "worst": worst}


def launches_of(bundle: Path, entry: str) -> int:
    """Kernels that one run of an entry launches, loops multiplied out."""
    sections = ewm.unpack((bundle / "model.ewm").read_bytes())
    rows, steps, entries = (
        np.frombuffer(sections[n], d)
        for n, d in (("launches", ewm.LAUNCH), ("steps", ewm.STEP), ("entries", ewm.ENTRY))
    )
    row = next(e for e in entries if e["name"].decode() == entry)
    own = np.bincount(rows["call"])
    whole, times = 0, [1]
    for step in steps[int(row["first_step"]) :][: int(row["steps"])]:
        if step["kind"] == ewm.REPEAT:
            times.append(times[-1] * int(step["count"]))
        elif step["kind"] == ewm.END:
            times.pop()
        else:
            whole += times[-1] * int(own[int(step["first_call"]) :][: int(step["calls"])].sum())
    return whole


def profiled(runtime: Runtime, given: Mapping[str, np.ndarray], rounds: int) -> np.ndarray:
    """ns of every call of the plan by the GPU's clock: of each the least of some plans."""
    least: np.ndarray | None = None
    for _ in range(rounds):
        calls = (ctypes.c_uint64 * runtime.info["calls"])()
        runtime._check(runtime._c.ewm_profile(runtime._loop, None, calls, ctypes.byref(runtime._fault)))
        runtime.run_entry("plan", **given)
        ns = np.array(calls, np.uint64)
        least = ns if least is None else np.minimum(least, ns)
    runtime._c.ewm_profile(runtime._loop, None, None, None)
    return least


def kernel_rows(
    bundle: Path, name: str, ns: np.ndarray, machine: Mapping[str, float], board: Target, mode: Mode
) -> list[Row]:
    """Kernels of a plan that take a noticeable share, beside what was estimated for them from the board's facts."""
    rows = []
    for row in bound.bundle_rows(bundle, board, mode):
        ms = float(ns[row["indices"]].sum()) / 1e6
        reached = rates(row["work"], ms, machine)
        rows.append({
            "table": "gpu-kernels", "name": f"{name}: {row['what']}", "calls": row["calls"], "ms": ms,
            "us_a_call": ms * 1e3 / row["calls"], "launches": row["launches"],
            **{key: reached[key] for key in ("gflops", "gbps", "of_limit", "bound")},
            "estimated_ms": row["estimate_us"] / 1e3, "bound_ms": max(row["bound_us"].values()) / 1e3,
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["ms"])


def estimate_of(bundle: Path, board: Target, mode: Mode) -> Row:
    told = bound.whole(bound.bundle_rows(bundle, board, mode), board, mode)
    ms = told["estimate_ms"]
    return {"estimated_ms": ms["point"], "estimated_low_ms": ms["low"], "estimated_high_ms": ms["high"]}


def wrong(rows: Sequence[Row]) -> list[str]:
    """What was checked and is not right."""
    return [f"{row['name']}: {row['answer']}" for row in rows if str(row.get("answer", "")).startswith("WRONG")]


def ceiling_rows(gpu: Gpu, folder: Path, index: Mapping[str, Any], effort: Effort) -> list[Row]:
    found = ceilings(gpu, piece(folder, index["ceilings"]), effort)
    return [{"table": "gpu-ceilings", "name": gpu.name, **found}]

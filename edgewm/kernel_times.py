"""Where a plan's time goes: each kernel's time on one thread, the rates it reached, and its own limits.

`edgewm-tick --kernels` times every call; what a call does is in the bundle (`call_work.py`). Calls of one kernel on one
shape are one row. Each call's least time of a few plans counts, since whatever else the machine does can only add to
it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import format as ewm
from .errors import EdgewmError
from .manifest import read_manifest
from .peaks import measure_peaks

RUNS, BUDGET_S = 7, 20.0  # plans timed; no further one is begun after so long, but two are always timed
PEAKS = {"f32": "fp32_gflops", "f16": "fp32_gflops", "bf16": "bf16_gflops", "i8": "int8_gops"}
NOTICEABLE = 0.004  # share below which a kernel has no line of its own
FASTEST_HZ = 1e3  # one period only: a plan that takes longer is not held up by it

Machine = Mapping[str, float]
Tick = Callable[..., Mapping[str, Any]]


def kernel_rows(
    bundle: Path, run: Tick | None = None, is_here: bool = True, peaks: Callable[[int], Machine] = measure_peaks
) -> list[dict[str, Any]]:
    """One row for each kernel and shape of a plan, largest share first.

    `run(rate_hz, ticks, threads, *flags)` runs the bundle's edgewm-tick where it is to be timed, by default here.
    Times in ms of one plan; `limit_ms` is the work over the peaks of one thread, measured in the same run: tensor
    (products), vector (all else, at the rate of multiply-adds) and bytes (weights and arena, each once, as if they came
    from memory: those of a small model stay in caches, and it may be faster than that). Where the bundle is not timed
    here the peaks are not known, and limits and shares of them are None.

    Raises EdgewmError for a bundle without its calls' work, and a runner that does not run.
    """
    if run is None:
        from .profile import run_tick

        run = partial(run_tick, bundle)
    least_ns, began = {}, time.monotonic()
    for done in range(RUNS):
        if done >= 2 and time.monotonic() - began > BUDGET_S:
            break
        tick = run(FASTEST_HZ, 1, 1, "--kernels", "--inline", "--warmup", "1")
        for timed in tick["calls"]:
            ns = timed["ns"] / tick["plans"]
            least_ns[timed["call"]] = min(ns, least_ns.get(timed["call"], ns))
    return grouped(calls_of(bundle), least_ns, peaks(1) if is_here else {})


def calls_of(bundle: Path) -> list[dict[str, Any]]:
    """The calls of the bundle's plan: `call`, `step` (indices), `kernel`, `dims`, `lanes`, `times`, `work`."""
    manifest = read_manifest(bundle)
    sections = ewm.unpack((bundle / "model.ewm").read_bytes())
    (sizes,) = np.frombuffer(sections["sizes"], ewm.SIZES)
    steps, calls = (np.frombuffer(sections[n], d) for n, d in (("steps", ewm.STEP), ("calls", ewm.CALL)))
    entry = np.frombuffer(sections["entries"], ewm.ENTRY)[int(sizes["plan_entry"])]
    first = int(entry["first_step"])
    if "calls" not in manifest.raw:
        raise EdgewmError("the bundle does not say what its calls do", str(bundle), "build the bundle again")
    names, work = manifest.raw["kernels"], manifest.raw["calls"]
    found, times = [], [1]
    for at, step in enumerate(steps[first : first + int(entry["steps"])], first):
        if step["kind"] == ewm.REPEAT:
            times.append(times[-1] * int(step["count"]))
        elif step["kind"] == ewm.END:
            times.pop()
        else:
            for i in range(int(step["first_call"]), int(step["first_call"] + step["calls"])):
                call = calls[i]
                found.append({
                    "call": i, "step": at, "kernel": names[int(call["kernel"])], "lanes": int(call["lanes"]),
                    "times": times[-1],
                    "dims": [int(d) for d in call["dim"][: call["rank"]]], "work": work[i],
                })  # fmt: skip
    return found


def grouped(
    calls: Sequence[Mapping[str, Any]], least_ns: Mapping[int, float], machine: Machine
) -> list[dict[str, Any]]:
    """The rows; a call that was not timed took no time."""
    rows: dict[tuple, dict[str, Any]] = {}
    for call in calls:
        key = (call["kernel"], tuple(call["dims"]), call["lanes"])
        row = rows.setdefault(key, {
            "kernel": call["kernel"], "family": call["kernel"].partition("<")[0], "dims": call["dims"],
            "lanes": call["lanes"], "does": call["work"]["does"], "calls": 0, "ms": 0.0, "work": Counter(),
        })  # fmt: skip
        row["calls"] += call["times"]
        row["ms"] += least_ns.get(call["call"], 0.0) / 1e6
        row["work"].update({k: v * call["times"] for k, v in call["work"].items() if k != "does"})
    whole = sum(row["ms"] for row in rows.values())
    for row in rows.values():
        row |= {"share": row["ms"] / whole if whole else 0.0, **rates(row.pop("work"), row["ms"], machine)}
    return sorted(rows.values(), key=lambda row: -row["ms"])


def rates(work: Mapping[str, int], ms: float, machine: Machine) -> dict[str, Any]:
    """`flops`, `bytes`, what was reached of both a second, and the limits."""
    flops = {kind: work.get(kind, 0) for kind in (*PEAKS, "vector")}
    memory = work.get("weights", 0) + work.get("arena", 0)
    touched = memory + work.get("scratch", 0)
    found = {
        "flops": sum(flops.values()), "bytes": touched, "gflops": sum(flops.values()) / ms / 1e6 if ms else None,
        "gbps": touched / ms / 1e6 if ms else None,
    }  # fmt: skip
    if not machine:
        return {**found, "limit_ms": None, "bound": None, "of_limit": None, "peak_fraction": None}
    limit = {
        "tensor": sum(flops[kind] / machine[peak] for kind, peak in PEAKS.items()) / 1e6,
        "vector": flops["vector"] / machine["fp32_gflops"] / 1e6,
        "bytes": memory / machine["dram_gbps"] / 1e6,
    }  # fmt: skip
    return {
        **found, "limit_ms": limit, "bound": max(limit, key=lambda k: limit[k]) if any(limit.values()) else None,
        "of_limit": sum(limit.values()) / ms if ms else None,
        "peak_fraction": limit["tensor"] / ms if ms and limit["tensor"] else None,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- for people


def kernel_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table: what takes a noticeable share, then all else together."""
    text = ["  share       ms  calls   GFLOP/s    GB/s  tensor  vector   bytes  of limit  kernel"]
    shown = [row for row in rows if row["share"] >= NOTICEABLE]
    for row in shown:
        limit = row["limit_ms"] or {}
        limits = " ".join(f"{number(limit.get(k)):>7s}" for k in ("tensor", "vector", "bytes"))
        of_limit = "-" if row["of_limit"] is None else f"{row['of_limit']:.0%}"
        text.append(
            f"  {row['share']:5.1%} {row['ms']:8.3f} {row['calls']:6d} {number(row['gflops']):>9s} "
            f"{number(row['gbps']):>7s} {limits} {of_limit:>9s}  "
            f"{row['family']} {'x'.join(map(str, row['dims']))}, {row['lanes']} lanes: {row['does']}"
        )
    rest = [row for row in rows if row["share"] < NOTICEABLE]
    for part, word in ((rest, "all others"), (rows, "together")):
        share, ms, calls = (sum(row[key] for row in part) for key in ("share", "ms", "calls"))
        text.append(f"  {share:5.1%} {ms:8.3f} {calls:6d} {word:>53s}")
    return text


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"

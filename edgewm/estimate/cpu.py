"""Time of a plan on a CPU: what its calls do (`counts.py`) times what each of it costs on a machine.

A machine is a price list in ns, measured by `edgewm targets probe` or derived from a board's facts; the sum over a
call is its time on one tile, unless its weights take longer to come out of memory: reading ahead hides the shorter of
the two. Tiles of a region go to whichever thread is there, and threads meet between regions of several; a plan that is
over before the others are awake was made by one thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp
from typing import Any

from .counts import COUNTS

COVERAGE = 0.9  # of the printed interval
SIGMAS = 1.645  # of a normal distribution, to either side, for that


@dataclass(frozen=True)
class Machine:
    """What a machine charges, in ns: `costs_ns` for each of COUNTS, one thread; from region to region `step_ns` on one
    thread, `meet_ns` where several meet; `wake_ns` for the call that wakes the others, `late_ns` lost while they do.

    Weights that are read again within `cache_bytes` of others do not come out of memory, at `dram_gbps` for all
    threads; `slowdown` is what a thread loses when so many work; `sigma` the standard deviation of
    ln(measured / estimated); `source` says where all this is from.
    """

    costs_ns: Mapping[str, float]
    step_ns: float
    meet_ns: float
    wake_ns: float
    dram_gbps: float
    cache_bytes: int
    sigma: float
    source: str
    late_ns: float = 0.0
    slowdown: Mapping[int, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_measured: bool = False  # on that machine, with these kernels


def priced(call: Mapping[str, Any], tile: str, footprint_bytes: int, machine: Machine, threads: int) -> Counter[str]:
    """ns of one call on one tile (`work` or `last`), by what it spends them on (the limits of COUNTS)."""
    spent: Counter[str] = Counter()
    for name, count in call[tile].items():
        spent[COUNTS[name][0]] += count * machine.costs_ns.get(name, 0.0)
    if footprint_bytes > machine.cache_bytes // 2:  # the other half holds activations
        reading = call["weight_bytes"] * threads / machine.dram_gbps
        if reading > sum(spent.values()):
            return Counter({"memory": reading})
    return spent


def price_plan(work: Mapping[str, Any], machine: Machine, threads: int) -> dict[str, Any]:
    """`plan_ms` {point, low, high}, `bound`, and `kernels` [{name, ms, bound, calls}] of the work of `plan_counts`."""
    whole, rows = _spent(work, machine, threads)
    if threads > 1:
        alone, own_rows = _spent(work, machine, 1)
        alone["sync"] += machine.wake_ns
        if sum(alone.values()) < sum(whole.values()):
            whole, rows = alone, own_rows
    point = sum(whole.values()) / 1e6
    kernels = [
        {"name": name, "ms": sum(row["ns"].values()) / 1e6, "bound": bound_of(row["ns"]), "calls": row["calls"]}
        for name, row in rows.items()
    ]
    return {
        "plan_ms": interval(point, machine.sigma), "bound": bound_of(whole),
        "shares": {limit: ns / 1e6 / point for limit, ns in whole.most_common() if ns},
        "kernels": sorted(kernels, key=lambda row: -row["ms"]),
    }  # fmt: skip


def _spent(work: Mapping[str, Any], machine: Machine, threads: int) -> tuple[Counter[str], dict[str, dict[str, Any]]]:
    """ns of the whole plan by limit, and {ns by limit, calls} of each kernel, where so many threads work throughout."""
    slowdown = machine.slowdown.get(threads, 1.0) if threads > 1 else 1.0
    rows: dict[str, dict[str, Any]] = {}
    whole: Counter[str] = Counter()
    meetings = 0
    for region in work["regions"]:
        footprint = region["weight_bytes"] if region["tiles"] > 1 else work["weight_bytes"]
        meetings += region["times"] if threads > 1 and region["tiles"] > 1 else 0
        for call in region["calls"]:
            name = f"{call['family']} {'x'.join(map(str, call['dims']))}, {call['lanes']} lanes"
            row = rows.setdefault(name, {"ns": Counter(), "calls": 0})
            row["calls"] += region["times"] * call["count"]
            for tile, turns in turns_of(region["tiles"], threads, "last" in call).items():
                times = turns * region["times"] * call["count"] * slowdown
                for limit, ns in priced(call, tile, footprint, machine, threads).items():
                    row["ns"][limit] += ns * times
                    whole[limit] += ns * times
    whole["memory"] += 2 * work["port_bytes"] / machine.dram_gbps  # read once, written once
    whole["launch"] += (work["steps"] - meetings) * machine.step_ns
    if threads > 1:
        whole["sync"] += meetings * machine.meet_ns + machine.wake_ns + machine.late_ns
    return whole, rows


def turns_of(tiles: int, threads: int, is_last_less: bool) -> dict[str, int]:
    """How many whole tiles the busiest thread runs one after the other, and whether it ends with the last one alone."""
    turns = -(-tiles // threads)
    if is_last_less and (tiles - 1) % threads == 0:
        return {"work": turns - 1, "last": 1}
    return {"work": turns}


def bound_of(spent: Mapping[str, float]) -> str:
    """What most of the time goes to."""
    return max(spent, key=lambda limit: spent[limit])


def interval(point_ms: float, sigma: float) -> dict[str, float]:
    """The point with the interval that holds COVERAGE of what is measured, for errors normal in the logarithm."""
    return {"point": point_ms, "low": point_ms * exp(-SIGMAS * sigma), "high": point_ms * exp(SIGMAS * sigma)}

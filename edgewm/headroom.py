"""What a control engineer asks of the clock: which rate holds, what budget is left, where it goes, what to change.

Everything is computed from the run: bounds of its samples, its times of each call, the bundle's schedule, and peaks or
estimates of the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import Any

from .clock import CONFIDENCE, bound_ns, sample_of
from .errors import EdgewmError
from .format import unpack
from .kernel_times import calls_of
from .manifest import Manifest
from .target import Mode, Target, resolve

STAGES = ("observe", "preprocess", "encode", "plan", "publish")
PRODUCTS = ("product", "attention")  # families whose time goes down with the width of a number
NARROWER = {"fp32": ("bf16", "w8a8"), "fp16": ("bf16", "w8a8"), "bf16": ("w8a8",)}
PEAK_OF = {"bf16": "bf16_gflops", "w8a8": "int8_gops"}  # of the products of a recipe
PEAK_OF_FAMILY = {
    "product": "fp32_gflops", "product_fp16": "fp32_gflops", "product_bf16": "bf16_gflops",
    "product_i8": "int8_gops", "product_rounded": "int8_gops",
}  # fmt: skip
WIDEST_FIRST = ("fp32_gflops", "bf16_gflops", "int8_gops")


def rate_that_holds(steady: Mapping[str, Any], rate_hz: float, commit_steps: int, miss: float) -> dict[str, Any]:
    """The highest control rate at which, with 95 % confidence, no more than `miss` of plans and of actions are late.

    A plan is late where the next one is due before it is there, `commit_steps` periods after it was begun; an action,
    where it comes a period late. None where the samples cannot carry the claim; `needs` says how many would.
    """
    plans, late = (sample_of(steady[name]) for name in ("plan_ns", "act_late_ns"))
    each = 1 - (1 - CONFIDENCE) / 2  # so that both hold at once with CONFIDENCE
    bounds = {"plan": bound_ns(plans, 1 - miss, each), "action": bound_ns(late, 1 - miss, each)}
    period_ms = 1e3 / rate_hz
    rates = {
        name: None if bound.value is None else (commit_steps if name == "plan" else 1) * 1e9 / max(bound.value, 1.0)
        for name, bound in bounds.items()
    }  # fmt: skip
    needs = {name: bound.needs for name, bound in bounds.items() if bound.value is None}
    held = None if needs else min(rates.values())
    plan_ms = None if bounds["plan"].value is None else bounds["plan"].value / 1e6
    budget_ms = commit_steps * period_ms
    return {
        "miss": miss, "confidence": CONFIDENCE, "highest_rate_hz": held, "rates_hz": rates,
        "bound_by": None if held is None else min(rates, key=lambda name: rates[name]), "needs": needs,
        "plan_budget_ms": budget_ms, "plan_bound_ms": plan_ms,
        "plan_left_ms": None if plan_ms is None else budget_ms - plan_ms,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ stages


def stages_ms(timed: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """[{stage, ms, share, kernels}] of one plan, in order, from a run that timed each region and call.

    `calls`: `kernel_times.calls_of`. What no iteration repeats and comes before those that are is preprocessing, up to
    the first region with a product, then encoding. `waiting`: what a region took beyond the planning thread's own
    calls. `publish`: what a plan took beyond its regions: checks of its inputs and answers, and handing it over.
    """
    spent: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
    stage = "preprocess"
    for members, own, ns in regions(timed, calls):
        if members[0]["times"] > 1 or stage == "plan":
            stage = "plan"
        elif any(family_of(call).startswith(PRODUCTS) for call in members):
            stage = "encode"
        for call, each in zip(members, own, strict=True):
            spent[stage][family_of(call)] = spent[stage].get(family_of(call), 0.0) + each
        spent[stage]["waiting"] = spent[stage].get("waiting", 0.0) + ns - sum(own)
    inside = sum(sum(kernels.values()) for kernels in spent.values())
    if inside:
        spent["publish"]["checks and handing over"] = max(0.0, mean_ns(timed["plan_ns"]) - inside)
    if inside and timed.get("observe_ns"):
        acts = max(1, int(timed["ticks"]) - int(timed.get("skipped", 0)))
        spent["observe"]["copy"] = timed["observe_ns"] / acts
    whole = sum(sum(kernels.values()) for kernels in spent.values())
    return [
        {
            "stage": name, "ms": sum(kernels.values()) / 1e6, "share": sum(kernels.values()) / whole,
            "kernels": {k: v / 1e6 for k, v in sorted(kernels.items(), key=lambda kv: -kv[1]) if v > 0},
        }
        for name, kernels in spent.items()
        if whole > 0 and sum(kernels.values()) > 0
    ]  # fmt: skip


def regions(
    timed: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[list[Mapping[str, Any]], list[float], float]]:
    """(calls, their ns on the planning thread, ns of the whole region) of each region, of one plan."""
    plans = max(1, int(timed["plans"]))
    own = {each["call"]: each["ns"] / plans for each in timed["calls"]}
    whole = {each["step"]: each["ns"] / plans for each in timed["steps"]}
    for step, group in groupby(calls, key=lambda call: call["step"]):
        members = list(group)
        spent = [own.get(call["call"], 0.0) for call in members]
        yield members, spent, max(whole.get(step, 0.0), sum(spent))


def family_of(call: Mapping[str, Any]) -> str:
    return call["kernel"].partition("<")[0]


def mean_ns(histogram: Mapping[str, Any]) -> float:
    if histogram.get("series"):
        return sum(histogram["series"]) / len(histogram["series"])
    return sum(top * n for top, n in histogram["buckets"]) / max(1, histogram["count"])


# ------------------------------------------------------------------------------------------------------------- gains


def gains(
    manifest: Manifest, bundle: Path, timed: Mapping[str, Any], stages: Sequence[Mapping[str, Any]],
    held: Mapping[str, Any], threads: int, peaks: Mapping[str, float] | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """[{change, share, plan_ms, highest_rate_hz, from}], the largest gain first: what a plan would take after a change.

    `share` of the present time. Fewer samples or iterations: from the measured time of each call. Another precision:
    products at the ratio of this machine's measured `peaks`. Threads and power modes: from estimates of the schedule.
    Whether the plans stay good enough is for `edgewm validate` to say.
    """
    planner, whole = manifest.planner, sum(each["ms"] for each in stages)
    if not whole:
        return []
    looped = sum(each["ms"] for each in stages if each["stage"] == "plan") / whole
    found = []
    if planner.iterations > 1 and looped:
        fewer = planner.iterations // 2
        share = 1 - looped * (1 - fewer / planner.iterations)
        found.append((f"{fewer} iterations instead of {planner.iterations}", share, "measured time of the loop"))
    if planner.samples > 1:
        fewer = planner.samples // 2
        share = 1 - _saved_by_samples(bundle, timed, planner.samples, fewer, threads) / (whole * 1e6)
        source = "measured time of each call, in whole tiles"
        found.append((f"{fewer} samples instead of {planner.samples}", share, source))
    found += _precisions(manifest.precision, stages, whole, peaks)
    found += _estimates(manifest, bundle, threads)
    plan_ms, rate = held["plan_bound_ms"], held["highest_rate_hz"]
    by_plan = (held["rates_hz"] or {}).get("plan")
    action = (held["rates_hz"] or {}).get("action")
    return [
        {
            "change": change, "share": share, "plan_ms": None if plan_ms is None else plan_ms * share,
            "highest_rate_hz": None if rate is None else min(by_plan / share, action), "from": source,
        }
        for change, share, source in sorted(found, key=lambda each: each[1])
        if share < 1
    ]  # fmt: skip


def _saved_by_samples(bundle: Path, timed: Mapping[str, Any], samples: int, fewer: int, threads: int) -> float:
    """ns a plan saves where calls over all samples have `fewer`: whole tiles, dealt to the threads."""
    section = unpack((bundle / "model.ewm").read_bytes()).get("counts")
    tile = json.loads(section)["tile"] if section else 1
    saved = 0.0
    for members, own, ns in regions(timed, calls_of(bundle)):
        kept = [_kept(call["lanes"], samples, fewer, tile, threads) for call in members]
        weights = own if sum(own) else [1.0] * len(own)  # another thread ran all of its tiles
        saved += ns * (1 - sum(w * k for w, k in zip(weights, kept, strict=True)) / sum(weights))
    return saved


def _kept(lanes: int, samples: int, fewer: int, tile: int, threads: int) -> float:
    """Share of a call's turns that are left; all of them where its lanes are not the samples."""
    turns = lambda n: ceil(ceil(n / tile) / threads)  # noqa: E731
    return turns(lanes // samples * fewer) / turns(lanes) if lanes >= samples and lanes % samples == 0 else 1.0


def _precisions(
    precision: str, stages: Sequence[Mapping[str, Any]], whole: float, peaks: Mapping[str, float] | None
) -> list[tuple[str, float, str]]:
    looped = next((each["kernels"] for each in stages if each["stage"] == "plan"), {})
    products = [(ms, PEAK_OF_FAMILY[family]) for family, ms in looped.items() if family in PEAK_OF_FAMILY]
    found = []
    for other in NARROWER.get(precision, ()):
        to = PEAK_OF[other]
        wider = [(ms, own) for ms, own in products if WIDEST_FIRST.index(own) < WIDEST_FIRST.index(to)]
        if wider and peaks and all(peaks.get(name) for name in (to, *(own for _, own in wider))):
            saved = sum(ms * (1 - peaks[own] / peaks[to]) for ms, own in wider)
            source = "products at the ratio of this machine's measured peaks"
            found.append((f"{other} instead of {precision}", 1 - saved / whole, source))
    return found


def on_gpu(manifest: Manifest) -> bool:
    """Whether the bundle's calls run on a GPU."""
    return "gpu" in manifest.raw.get("runs", {}).values()


def _known_mode(manifest: Manifest) -> tuple[Target, Mode] | None:
    """The bundle's board and the mode it ran in; None where that is not known, or none of the board's."""
    board = resolve(manifest.target)[0]
    mode = next((each for each in board.mode if manifest.mode and each.is_named(manifest.mode)), None)
    return None if mode is None else (board, mode)


def gpu_peaks(manifest: Manifest) -> dict[str, float] | None:
    """What `targets probe` measured of the GPU of the bundle's board in its mode; None where it was not probed."""
    from .estimate.machine import PEAKS, gpu_of

    where = _known_mode(manifest)
    found = None if where is None else gpu_of(*where)
    return None if found is None else {name: found[name] for name in PEAKS}


def estimated(manifest: Manifest, bundle: Path, threads: int, **other: Any) -> dict[str, Any] | None:
    """{point, low, high, source} in ms of the bundle's plan, on its own target unless told; None: nothing is known."""
    from .estimate.verb import estimate

    if _known_mode(manifest) is None:
        return None
    asked = {"target": manifest.target, "mode": manifest.mode, "threads": threads, **other}
    if on_gpu(manifest):
        del asked["threads"]
    try:
        found = estimate(str(bundle), **asked)
    except EdgewmError:  # nothing is known of it: nothing is claimed
        return None
    return {**found["plan_ms"], "source": "; ".join(map(str, found["provenance"]))}


def _estimates(manifest: Manifest, bundle: Path, threads: int) -> list[tuple[str, float, str]]:
    """Other threads and other modes of the same board, where they can be estimated at all."""
    own, where = estimated(manifest, bundle, threads), _known_mode(manifest)
    if own is None or where is None:
        return []
    board, power = where
    cores = power.cpu_cores or board.cpu.cores
    more = cores > threads and not on_gpu(manifest)
    others = [(f"{cores} threads instead of {threads}", {"threads": cores})] if more else []
    modes = [mode.name for mode in board.mode if mode != power]
    others += [(f"mode {name} instead of {power.name}", {"mode": name}) for name in modes]
    found = [(change, estimated(manifest, bundle, **{"threads": threads, **other})) for change, other in others]
    return [(change, each["point"] / own["point"], "estimated from the schedule") for change, each in found if each]

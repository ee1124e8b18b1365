"""`edgewm profile` of a backend's bundle: the planner's loop, paced at the control rate, timed from each release.

The loop is Python's: what it says of a plan's time is true of this machine, but it is no control loop, so how late an
action would be is not said.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..clock import CONFIDENCE, histogram, quantiles_ms, sample_of
from ..device import LOCAL
from ..errors import EdgewmError
from ..golden import drawn_for
from ..manifest import Manifest
from ..options import Progress
from . import opened
from .host import ENCODE, GIVEN, ITERATE

SCHEMA_VERSION = 1
NONE_MS = {"p50": None, "p99": None, "p999": None, "max": None}


def profile(
    bundle: Path, manifest: Manifest, rate_hz: float, ticks: int, threads: int,
    progress: Progress | None, not_here: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Plan every `commit_steps` periods for `ticks` periods on drawn observations: the JSON of
    `profile`, with null for what a loop in Python cannot say. A plan that takes longer delays those after it, and
    counts for it.

    EdgewmError for an option (`not_here`: flag -> whether it was given) that only native bundles have.
    """
    for flag in (flag for flag, is_given in not_here.items() if is_given):
        raise EdgewmError(
            f"{flag} is of native bundles", f"{bundle}, a bundle for {manifest.backend}", "leave it out, or profile a "
            "bundle that was built with --backend native",
        )  # fmt: skip
    commit, period_ns = manifest.planner.commit_steps, round(1e9 / rate_hz)
    plan_ns, busy_ns, spent = [], 0, {ENCODE: 0, ITERATE: 0}
    with opened(bundle, manifest, threads, period_ns) as loop:
        ports = [p for p in loop.ports(GIVEN) if p.is_input]
        bounds = {p.name: (p.low, p.high) for p in manifest.ports}
        rng = np.random.default_rng(0)
        kinds = {kind: {p.name for p in manifest.ports_of(kind)} for kind in ("observation", "goal")}

        def drawn(kind: str) -> dict[str, np.ndarray]:
            return {p.name: drawn_for(rng, p.shape, p.dtype, *bounds[p.name]) for p in ports if p.name in kinds[kind]}

        _watch(loop, spent)
        loop.set_goal(**drawn("goal"))
        loop.observe(**drawn("observation"))
        begun = time.monotonic_ns()
        loop.plan()
        first_ms = (time.monotonic_ns() - begun) / 1e6
        spent.update(dict.fromkeys(spent, 0))
        start = time.monotonic_ns()
        for tick in range(0, ticks, commit):
            release = start + tick * period_ns
            loop.observe(**drawn("observation"))
            time.sleep(max(release - time.monotonic_ns(), 0) / 1e9)
            begun = time.monotonic_ns()
            loop.plan()
            ended = time.monotonic_ns()
            plan_ns.append(ended - release)
            busy_ns += ended - begun
            if progress:
                progress("ticking", min(1.0, (tick + commit) / ticks))
        took_ns = time.monotonic_ns() - start
    withheld: dict[str, Any] = {}
    values, counts = np.unique(plan_ns, return_counts=True)
    sample = sample_of({"buckets": np.stack([values, counts], 1), "max": int(values[-1]), "series": plan_ns})
    shares = {name: ns / busy_ns for name, ns in spent.items()}
    return {
        "schema_version": SCHEMA_VERSION, "device": LOCAL, "source": "measured", "target": manifest.target,
        "mode": manifest.mode, "precision": manifest.precision, "backend": manifest.backend,
        "bundle_sha256": manifest.sha256, "rate_hz": rate_hz, "threads": threads, "ticks": ticks,
        "plans": len(plan_ns), "plans_per_s": len(plan_ns) / (took_ns / 1e9), "first_plan_ms": first_ms,
        "plan_ms": quantiles_ms(sample, withheld, "plan_ms"), "act_late_ms": NONE_MS, "plan_age_ms": NONE_MS,
        "misses": None, "miss_rate_upper": None, "stages": shares | {"host": max(0.0, 1 - sum(shares.values()))},
        "histograms": {"plan_ms": histogram(sample)}, "confidence": CONFIDENCE, "withheld": withheld,
        "peak_fraction": None,
    }  # fmt: skip


def _watch(loop: Any, spent: dict[str, int]) -> None:
    """Add up what each graph of a plan takes."""
    run = loop.run_graph

    def timed(name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        begun = time.monotonic_ns()
        found = run(name, inputs)
        spent[name] += time.monotonic_ns() - begun
        return found

    loop.run_graph = timed

"""The whole road, once: what `make demo` runs.

The reference model is built for this machine (exact and in int8) and for Jetson AGX Orin, timed, judged and let loose
in its own world. Everything is the public functions of edgewm: read it as an example.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from .console import number, size, table
from .errors import EdgewmError
from .options import Progress, part

MODEL = "reference"
TARGETS = {"host": ("host", "w8a8"), "host-fp32": ("host", "fp32"), "orin": ("orin", "w8a8")}
PACED_S = 30
EPISODES = 3


def demo(out: Path, *, seed: int, progress: Progress | None = None) -> dict[str, Any]:
    """Build, profile, validate and run the reference model in `out`; the results by step.

    `passed` is what `validate` says, and False where the clock does not hold the rate (see `clock_of`). Raises
    EdgewmError where `out` cannot be written or Pillow is missing.
    """
    from .act import run
    from .build import build
    from .profile import profile
    from .reference import DEFAULT, PATH, planner_of
    from .reference.worlds import WORLDS
    from .validate import validate

    begun = time.perf_counter()
    if importlib.util.find_spec("PIL") is None:
        raise EdgewmError("the film needs Pillow", "edgewm demo", "pip install 'edgewm[torch]', or pip install pillow")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise EdgewmError(f"cannot make the folder: {fault.strerror}", str(out), "give -o a writable folder") from fault

    rate_hz = 1 / WORLDS[DEFAULT].period_s  # the simulator's own
    own = dict.fromkeys(("samples", "iterations", "elites", "horizon", "commit_steps"))
    builds = {}
    for i, (folder, (target, precision)) in enumerate(TARGETS.items()):
        builds[folder] = build(
            MODEL, target=target, mode=None, rate_hz=rate_hz, precision=precision, planner=own, heads=None,
            place="auto", threads=None, isa=None, out=out / folder, seed=seed, dry_run=False,
            progress=part(progress, 0.1 * i, 0.1, f"build {folder}"),
        )  # fmt: skip
    bundle, exact, film = out / "host", out / "host-fp32", out / "demo.gif"
    paced = {
        "ticks": round(PACED_S * rate_hz), "rate_hz": rate_hz, "threads": None, "device": "local", "load": None,
        "kernels": False, "slo": None,
    }  # fmt: skip
    profiles = {
        folder.name: profile(folder, progress=part(progress, at, 0.15, "profile"), **paced)
        for at, folder in ((0.3, bundle), (0.45, exact))
    }
    gates = validate(
        bundle, against=MODEL, episodes=None, contexts=None, suite=["plan"], seed=seed,
        progress=part(progress, 0.6, 0.25, "validate"),
    )  # fmt: skip
    seen = run(
        bundle, env="reference", episodes=EPISODES, seed=seed, gif=film, progress=part(progress, 0.85, 0.15, "act")
    )
    report = out / "report.html"
    shutil.copyfile(bundle / "report.html", report)
    clock = clock_of(profiles["host"], builds["host"]["planner"]["commit_steps"])
    return {
        "passed": gates["passed"] if clock["holds"] else False, "rate_hz": rate_hz, "planner": planner_of(PATH),
        "clock": clock, "builds": builds, "profiles": profiles,
        "validate": gates, "run": seen, "files": {"report": str(report), "gif": str(film), "bundle": str(bundle)},
        "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def clock_of(timed: Mapping[str, Any], commit_steps: int) -> dict[str, Any]:
    """Whether a bundle held its rate: no period missed, and every plan ready before the last was played out.

    Quantiles stand beside it, where so few plans support one.
    """
    p50, p99, slowest = (timed["plan_ms"][key] for key in ("p50", "p99", "max"))
    until_ms = 1e3 * commit_steps / timed["rate_hz"]
    return {
        "holds": timed["misses"] == 0 and slowest is not None and slowest < until_ms, "rate_hz": timed["rate_hz"],
        "plan_p50_ms": p50, "plan_p99_ms": p99, "plan_max_ms": slowest, "until_next_plan_ms": until_ms,
        "misses": timed["misses"],
    }  # fmt: skip


def demo_table(result: dict[str, Any]) -> Table:
    """The one table: what was promised, what it cost, what it is worth, and where to look."""
    budget = result["planner"]
    made = table("", "", "")
    made.add_row("control rate", number(result["rate_hz"], "Hz"))
    made.add_row(
        "planner",
        f"CEM, {budget['samples']} samples x {budget['horizon']} actions, {budget['iterations']} iterations, "
        f"{budget['elites']} elites; {result['builds']['host']['planner']['commit_steps']} periods played of each plan",
    )
    clock = result["clock"]
    made.add_row(
        f"holds {number(clock['rate_hz'], 'Hz')}",
        f"{'yes' if clock['holds'] else 'NO'}: slowest plan {number(clock['plan_max_ms'])} (p99 "
        f"{number(clock['plan_p99_ms'])}) of {number(clock['until_next_plan_ms'], 'ms')} to the next plan, "
        f"{number(clock['misses'])} misses",
    )
    for folder, built in result["builds"].items():
        weight = f"{size(built['bytes'])} + {size(built['arena_bytes'])} arena"
        made.add_row(f"bundle {folder}", f"{built['target']}, {built['precision']}: {weight}")
    for folder, timed in result["profiles"].items():
        plan, late = timed["plan_ms"], timed["act_late_ms"]
        made.add_row(f"{folder}: plan", f"p50 {number(plan['p50'], 'ms')}, p99 {number(plan['p99'], 'ms')}")
        made.add_row(
            f"{folder}: action late",
            f"p99 {number(late['p99'], 'ms')}, {number(timed['misses'])} misses in {number(timed['ticks'])} periods",
        )
    plan = result["validate"].get("plan") or {}
    for name, key in (
        ("same ranking (least Spearman)", "spearman_min"), ("same elites", "elite_overlap"), ("plan regret", "regret"),
    ):  # fmt: skip
        made.add_row(name, number(plan.get(key), digits=4))
    made.add_row("gates", {True: "passed", False: "FAILED", None: "not enough evidence"}[result["passed"]])
    seen = result["run"]
    made.add_row("acting", f"{number(seen.get('successes'))} of {number(seen.get('episodes'))} reached the goal")
    for name, file in result["files"].items():
        made.add_row(name, file)
    made.add_row("took", number(result["seconds"], "s"))
    return made

"""What a proposal is worth: success in closed loop against the number of candidates that a plan tries.

    python benchmarks/proposals.py DIRECTORY [--model reference] [--episodes 40] [--shares 1/20,1/100]

DIRECTORY is what `edgewm distill MODEL --proposal-only` wrote. Bundles of it plan in fp32 with all of the planner's
candidates, with those shares of them, in as many iterations as the planner has and in two, and with one, which is the
proposal itself; blind and from the proposal. All play the same episodes; the difference is to the full search, with
90 % bootstrap intervals over episodes. Plans are timed in one alternating run.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from distill import times
from recording import add_flags, finish

from edgewm import statistics
from edgewm.act import period_of
from edgewm.binding import Runtime
from edgewm.build import build
from edgewm.distill.shapes import smaller
from edgewm.judge.closed_loop import starts_of
from edgewm.judge.loops import of_world
from edgewm.judge.sources import source_of
from edgewm.manifest import read_manifest
from edgewm.models import load
from edgewm.program import Planner

FEWEST = 4  # candidates that an iteration can refit from


def budgets(planner: Planner, share: Fraction) -> list[Planner]:
    """The planner with a share of its candidates, 0 for one: in all of its iterations, in two, in one where there are
    too few for more."""
    if share == 1:
        return [planner]
    whole = planner.samples * planner.iterations * share
    rounds = [n for n in (planner.iterations, 2) if whole / n >= FEWEST and whole / planner.iterations >= 1] or [1]
    return [smaller(planner, max(1, round(whole / n)), n) for n in rounds]


@cache
def begun(make: Any, start: int) -> tuple[Any, Any]:
    """A world and what is seen of it at first; to find a task takes longer than to play it."""
    world = make(start)
    return world, world.reset(start)


def successes(bundle: Path, make: Any, starts: list[int], threads: int) -> np.ndarray:
    """Of a bundle's episodes (n,), which succeeded."""
    manifest, clock, wins = read_manifest(bundle), [0], []
    with Runtime(bundle, threads, period_ns=period_of(manifest), clock=lambda: clock[0]) as runtime:
        for start in starts:
            world, observation = copy.deepcopy(begun(make, start))
            wins.append(of_world(runtime, clock, manifest, world, observation, start) is not None)
    return np.array(wins)


def proposals(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a budget, blind and from the proposal; the full search first."""
    model = load(str(given.directory))
    whole = replace(model.planner, proposal=False)
    shares = [Fraction(1), *map(Fraction, given.shares.split(",")), Fraction(0)]
    settings = [(p, is_from) for share in shares for p in budgets(whole, share) for is_from in (False, True)]
    settings = [(p, is_from) for p, is_from in settings if p.samples > 1 or is_from]
    make, starts = source_of(given.model, model).make, starts_of(given.episodes, 0)
    rows: list[dict[str, Any]] = []
    first = None
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        bundles = [Path(folder) / str(i) for i in range(len(settings))]
        for (planner, is_from), out in zip(settings, bundles, strict=True):
            own = {key: getattr(planner, key) for key in ("samples", "iterations", "elites")}
            build(str(given.directory), planner={**own, "proposal": is_from}, threads=given.threads, out=out)
        seconds = times(given.model, bundles, given.threads)
        for (planner, is_from), out in zip(settings, bundles, strict=True):
            wins = successes(out, make, starts, given.threads)
            first = wins if first is None else first
            rows.append(row(planner, is_from, wins, first, seconds[str(out)], given))
            print({k: v for k, v in rows[-1].items() if k not in ("table", "command")}, flush=True)
    return rows


def row(
    planner: Planner, is_from: bool, wins: np.ndarray, first: np.ndarray, seconds: list[float],
    given: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    candidates = planner.samples * planner.iterations
    low, high = statistics.bootstrap((wins * 1.0 - first)[:, None], lambda d: float(d.mean()), 0.9)
    begun = "from the proposal" if is_from else "blind"
    least, most = statistics.wilson(int(wins.sum()), len(wins), 0.9)
    return {
        "table": "proposals", "name": f"{candidates} ({planner.samples} x {planner.iterations}), {begun}",
        "episodes": len(wins), "successes": int(wins.sum()), "interval": f"{least:.0%} to {most:.0%}",
        "difference": None if wins is first else f"{low:+.2f} to {high:+.2f}", "plan_ms": 1e3 * median(seconds),
        "best_plan_ms": 1e3 * min(seconds), "threads": given.threads,
        "command": f"python benchmarks/proposals.py DIRECTORY --episodes {given.episodes} --shares {given.shares}",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default="reference", help="whose simulator")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--shares", default="1/20,1/100", help="of the planner's candidates")
    parser.add_argument("--threads", type=int, default=2)
    add_flags(parser)
    given = parser.parse_args()
    finish(proposals(given), given)
    return 0


if __name__ == "__main__":
    sys.exit(main())

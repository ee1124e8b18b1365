"""Students of a model: what plans at a rate, and what that is worth beside its teacher.

    python benchmarks/distill.py rates RESULT.json... [--episodes 400] [--kept FOLDER]

rates      what `edgewm distill --json RESULT.json` found at several rates: a student, or the model itself in another
           precision or with fewer candidates. Bundles of each are judged by the judge's own suites `plan` and
           `closed-loop` (pairs of episodes from the same starts, the full model with its own search; at most
           `--episodes`), and timed in one alternating run: the median, and the best round. What was judged is kept in
           FOLDER, by what a bundle computes, so that another run only has to time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from recording import add_flags, finish
from timing import alternate

from edgewm.binding import Runtime
from edgewm.build import build
from edgewm.distill.verb import name_of
from edgewm.format import unpack
from edgewm.judge.sides import named
from edgewm.judge.sources import source_of
from edgewm.models import load
from edgewm.student import search_of
from edgewm.validate import validate

ROUNDS = 25


# ----------------------------------------------------------------------------------------------------------- rates


def rates(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a rate; the teacher's in fp32 comes first."""
    results = [json.loads(file.read_text()) for file in given.results]
    teacher = results[0]["asked"]["teacher"]
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        bundles = [Path(folder) / str(i) for i in range(len(results) + 1)]
        built = [build(teacher, threads=given.threads, out=bundles[0])]
        for found, out in zip(results, bundles[1:], strict=True):
            best = found["chosen"]
            made, searched = found["student"] or teacher, search_of(found)
            built.append(build(made, precision=best["precision"], planner=searched, threads=given.threads, out=out))
        seconds = times(teacher, bundles, given.threads)
        rows = [row("the full model", "fp32", built[0], seconds[str(bundles[0])], {}, given.episodes)]
        for found, out, facts in zip(results, bundles[1:], built[1:], strict=True):
            key = f"{answers_sha256(out)}-{given.episodes}"
            told = remembered(given.kept, key, lambda out=out: judged(teacher, out, given))
            rate, best = f"{found['asked']['rate_hz']:g} Hz", name_of(found["chosen"])
            rows.append(row(rate, best, facts, seconds[str(out)], told, given.episodes))
            print({k: v for k, v in rows[-1].items() if k not in ("table", "command")}, flush=True)
    return rows


def times(model: str, bundles: Sequence[Path], threads: int) -> dict[str, list[float]]:
    """Seconds of a plan of each bundle, round by round, from the same picture to the same goal."""
    loaded = load(model)
    observations, goals = loaded.ports_of("observation"), loaded.ports_of("goal")
    observation, goal = next(iter(source_of(model, loaded).contexts(1, 0)))
    given = named(observations, observation, observations) | named(goals, goal, observations)
    runtimes = [Runtime(bundle, threads) for bundle in bundles]
    try:
        steps = {}
        for bundle, runtime in zip(bundles, runtimes, strict=True):
            inputs = {p.name: np.zeros(p.shape, p.dtype) for p in runtime.ports("plan") if p.is_input} | given
            steps[str(bundle)] = lambda runtime=runtime, inputs=inputs: runtime.run_entry("plan", **inputs)
        return alternate(steps, ROUNDS)
    finally:
        for runtime in runtimes:
            runtime.close()


def answers_sha256(bundle: Path) -> str:
    """Of all that a bundle computes, weights and golden answers among it, whatever its kernels are called."""
    sections = unpack((bundle / "model.ewm").read_bytes())
    kept = (name.encode() + sections[name] for name in sorted(sections) if name != "manifest")
    return hashlib.sha256(b"".join(kept)).hexdigest()


def remembered(folder: Path | None, key: str, judge: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was judged, here or in an earlier run."""
    kept = None if folder is None else folder / f"{key}.json"
    if kept is not None and kept.is_file():
        return json.loads(kept.read_text())
    told = judge()
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(told))
    return told


def judged(teacher: str, bundle: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The judge's figures of a bundle, beside the teacher with its own search."""
    suites = ["plan", "closed-loop"] if given.episodes else ["plan"]
    told = validate(
        bundle, against=teacher, suite=suites, preset="student", episodes=given.episodes or None,
        contexts=given.contexts,
    )  # fmt: skip
    plan, loop = told["plan"], told["closed_loop"]
    found = {
        "contexts": plan["contexts"], "least_spearman": plan["spearman_min"], "elite_overlap": plan["elite_overlap"],
        "regret": plan["regret"], "regret_to_its_own_search": plan.get("search_regret"),
    }  # fmt: skip
    if loop:
        for who in ("compressed", "full"):
            found[f"successes_{who}"] = "{} of {}".format(loop[who]["successes"], loop[who]["episodes"])
        found["difference_points"] = "{:+.1f} to {:+.1f}".format(*(100 * x for x in loop["difference_95"]))
        found["loses_less_than"] = loop["margin"]
        found["decided"] = next((g["passed"] for g in told["gates"] if g["name"] == "closed_loop_loss"), None)
    return found


def row(
    name: str, plans_with: str, built: dict[str, Any], seconds: Sequence[float], told: dict[str, Any], episodes: int
) -> dict[str, Any]:
    return {
        "table": "rates", "name": name, "plans_with": plans_with, "weights_mib": built["weight_bytes"] / 2**20,
        "plan_ms": 1e3 * median(seconds), "best_plan_ms": 1e3 * min(seconds), **told,
        "command": f"python benchmarks/distill.py rates RESULT.json... --episodes {episodes}",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("rates")
    one.add_argument("results", type=Path, nargs="+")
    one.add_argument("--episodes", type=int, default=400)
    one.add_argument("--contexts", type=int)
    one.add_argument("--kept", type=Path, metavar="FOLDER")
    one.add_argument("--threads", type=int, default=2)
    one.set_defaults(run=rates)
    add_flags(one)
    given = parser.parse_args()
    finish(given.run(given), given)
    return 0


if __name__ == "__main__":
    sys.exit(main())

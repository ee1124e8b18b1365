"""What `--precision auto` is worth: its points beside the named recipe w8a8, on contexts that the search has not seen.

    edgewm build MODEL --target orin --place cpu --precision auto --rate-hz 200 --dry-run --json auto.json
    python benchmarks/auto.py --auto auto.json [--model reference] [--rates 267,237,200] [--contexts 100] [--json FILE]

The front is read from that file: times are estimates for its target. Of each rate the point that holds it, and w8a8,
are built for this machine, where they give the same bits as there, and judged by the figures of suite `plan`: the same
contexts, the same noise, one search of the full model for all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recording import add_flags, finish

from edgewm import models
from edgewm.binding import Runtime
from edgewm.build import build
from edgewm.judge import plan
from edgewm.judge.sides import Side, compiled, upstream
from edgewm.judge.sources import source_of
from edgewm.quantize.search import held

SEED = 0
BESIDE = "w8a8"


def points_of(auto: Mapping[str, Any], rates: list[float]) -> dict[str, Mapping[str, Any]]:
    """What to judge, by name: w8a8, and the point of the front that holds each rate. SystemExit where none does."""
    commit = auto["budget_ms"] * auto["rate_hz"]
    found = {p["name"]: p for p in (*auto["front"], *auto["beaten"]) if p["name"] == BESIDE}
    for rate in rates:
        index = held(auto["front"], commit / rate)
        if index is None:
            raise SystemExit(f"no point holds {rate:g} Hz")
        found[f"auto at {rate:g} Hz"] = auto["front"][index]
    return found


def seen_by(
    full: Side, sides: Mapping[str, Side], planner: Any, action_dim: int, pairs: Any
) -> dict[str, list[plan.Context]]:
    """What each side shows in each context, beside one and the same search of the full model."""
    found: dict[str, list[plan.Context]] = {name: [] for name in sides}
    for i, (observation, goal) in enumerate(pairs):
        noises = plan.noises_of(planner, action_dim, SEED, i)
        bank = plan.bank_of(full, planner, observation, goal, noises)
        for name, side in sides.items():
            found[name].append(plan.beside(full, bank, side, observation, goal, noises[0]))
        print(f"{i + 1} contexts", file=sys.stderr, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--auto", type=Path, required=True, help="what build --precision auto --json wrote")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--rates", default="267,237,200")
    parser.add_argument("--contexts", type=int, default=100)
    add_flags(parser)
    given = parser.parse_args()
    told = json.loads(given.auto.read_text())
    auto, rates = told["auto"], [float(rate) for rate in given.rates.split(",")]
    points, model, rows = points_of(auto, rates), models.load(given.model), []
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        runtimes = {}
        for i, (name, point) in enumerate(points.items()):
            recipe, out = Path(folder) / f"{i}.json", Path(folder) / str(i)
            recipe.write_text(json.dumps(point["recipe"]))
            build(given.model, precision=str(recipe), out=out, threads=1)
            runtimes[name] = Runtime(out, 1)
            print(f"built {name}", file=sys.stderr, flush=True)
        planner = model.planner
        sides = {name: compiled(runtime, model, planner) for name, runtime in runtimes.items()}
        pairs = source_of(given.model, model).contexts(given.contexts, SEED)
        seen = seen_by(upstream(model, planner), sides, planner, model.action_dim, pairs)
        for runtime in runtimes.values():
            runtime.close()
    command = f"python benchmarks/auto.py --auto auto.json --model {given.model} --rates {given.rates}"
    for name, contexts in seen.items():
        figures, _ = plan.judge(contexts, planner)
        point = points[name]
        row = {
            "table": "auto", "name": f"{given.model} on {told['target']}: {name}",
            "estimated_ms": point["plan_ms"]["point"], "up_to_ms": point["plan_ms"]["high"],
            "products": ", ".join(f"{n} {form}" for form, n in point["forms"].items()),
            "contexts": figures["contexts"], "least_spearman": figures["spearman_min"],
            "elite_overlap": figures["elite_overlap"], "regret": figures["regret"],
            "cost_error": figures["cost_error"], "command": f"{command} --contexts {given.contexts}",
        }  # fmt: skip
        print({key: value for key, value in row.items() if key not in ("table", "command")}, flush=True)
        rows.append(row)
    finish(rows, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())

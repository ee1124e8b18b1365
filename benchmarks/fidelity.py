"""How far from upstream: an fp32 bundle against the full model in float64, on the same noise.

    python benchmarks/fidelity.py [--model reference] [--plans 10] [--json FILE] [--record]

For each held-out context both sides run the same cross-entropy search: the same candidates as long as they choose the
same elites. Printed: the worst relative cost error with the tolerance computed for it, in how many plans the elites are
the same in every iteration (and where the first difference is, with the gap in cost it hangs on), and the error of the
first action of the bundle's own whole plan. The tolerance is not chosen: each cost is a chain of products, and rounding
in a chain of n terms is within n eps of the sum of magnitudes; the reduction lengths of the program are added up along
its longest path.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from step import machine_name

from edgewm import models
from edgewm.binding import Runtime
from edgewm.build import build, capture
from edgewm.judge.sides import compiled, search, upstream
from edgewm.judge.sources import source_of
from edgewm.ops import TABLE
from edgewm.program import Graph

EPS = float(np.finfo(np.float32).eps)


def rounding_steps(graph: Graph) -> int:
    """Roundings on the longest path of a graph: one an op, the reduction length for products and sums."""
    steps: dict[Any, int] = {}
    for node in graph.order():
        kind = TABLE[node.op].kind
        own = 0 if kind in ("leaf", "view", "concat") else 1
        if node.op == "matmul":
            own = node.sources[0].shape[-1]
        elif kind == "reduction":
            own = node.sources[0].shape[node["axis"]]
        steps[node] = own + max((steps[s] for s in node.sources), default=0)
    return max(steps[n] for n in graph.outputs.values())


def measure(model: str, plans: int, seed: int = 0) -> dict[str, Any]:
    """The figures, by name."""
    loaded = models.load(model)
    planner = loaded.planner
    program, _, _ = capture(model, {}, None, None)
    tolerance = rounding_steps(program.entries["score"]) * EPS
    full = upstream(loaded, planner, "float64")
    worst, first_action, same, partings = 0.0, 0.0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        build(model, precision="fp32", out=Path(folder) / "out")
        with Runtime(Path(folder) / "out", threads=2) as runtime:
            ours = compiled(runtime, loaded, planner)
            for i, (observation, goal) in enumerate(source_of(model, loaded).contexts(plans, seed)):
                shape = (planner.iterations, planner.samples, planner.horizon, loaded.action_dim)
                noise = np.random.default_rng([seed, i]).standard_normal(shape).astype(np.float32)
                z, target = full.encode(observation), full.encode(goal)
                own, own_target = ours.encode(observation), ours.encode(goal)
                a = search(lambda c: full.score(z, target, c), planner, noise)  # noqa: B023
                b = search(lambda c: ours.score(own, own_target, c), planner, noise)  # noqa: B023
                bank = np.stack([ours.score(own, own_target, c) for c in a.candidates])
                worst = max(worst, float(np.abs(bank - a.costs).max() / np.abs(a.costs).max()))
                equal = [np.array_equal(x, y) for x, y in zip(a.elites, b.elites, strict=True)]
                same += all(equal)
                if not all(equal):
                    at = equal.index(False)
                    ranked = np.sort(a.costs[at])
                    gap = float(ranked[planner.elites] - ranked[planner.elites - 1]) / float(ranked[planner.elites])
                    partings.append({"plan": i, "iteration": at, "relative_gap": gap})
                plan = ours.plan(observation, goal, noise)
                first_action = max(first_action, float(np.abs(plan[0] - a.mean[0]).max()))
    return {
        "plans": plans, "worst_relative_cost_error": worst, "tolerance": tolerance,
        "plans_with_identical_elites": same, "first_action_error": first_action, "partings": partings,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference")
    parser.add_argument("--plans", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args()
    result = measure(given.model, given.plans, given.seed)
    row = {"table": "fidelity", "name": f"{given.model} fp32 against float64", **result,
           "command": f"python benchmarks/fidelity.py --model {given.model} --plans {given.plans}"}  # fmt: skip
    text = json.dumps(row, indent=2)
    if given.json:
        given.json.write_text(text + "\n")
    print(text)
    if given.record:
        results = Path(__file__).resolve().parent / "results" / f"{machine_name()}.jsonl"
        with results.open("a") as file:
            file.write(json.dumps({k: v for k, v in row.items() if k != "partings"}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

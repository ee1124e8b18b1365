"""How far from upstream: an fp32 bundle against the full model in float64, on the same noise.

    python benchmarks/fidelity.py [--model reference] [--plans 10] [--json FILE] [--no-record]

For each held-out context both sides run the same cross-entropy search: the same candidates as long as they choose the
same elites. Printed: the worst cost error, of a candidate's own cost and of its iteration's largest, with the tolerance
computed for it; in how many plans the elites are the same in every iteration (and where the first difference is, with
the gap in cost it hangs on); and the error of the first action of the bundle's own whole plan. The tolerance is not
chosen: each cost is a chain of products, and rounding in a chain of n terms is within n units of the sum of magnitudes;
the reduction lengths of the program are added up along its longest path, from the pixels on.

Ends with 1 where a cost is off by more than that, fewer than 9 plans of 10 have the same elites throughout, or a first
action differs by more than 1e-5. Figures are appended to `benchmarks/results/<machine>.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from recording import add_flags, finish
from rounding import UNIT_ROUNDOFF, rounding_steps

from edgewm import models
from edgewm.binding import Runtime
from edgewm.build import build, capture
from edgewm.judge.sides import compiled, search, upstream
from edgewm.judge.sources import source_of

SAME_ELITES, FIRST_ACTION = 0.9, 1e-5


def measure(model: str, plans: int, seed: int = 0) -> dict[str, Any]:
    """The figures, by name."""
    loaded = models.load(model)
    planner = loaded.planner
    program, _, _ = capture(model, {}, None, None)
    handed_over = 1  # candidates reach the bundle rounded to float32
    steps = handed_over + sum(rounding_steps(program.entries[name]) for name in ("encode", "score"))
    tolerance = steps * UNIT_ROUNDOFF
    full = upstream(loaded, planner, "float64")
    of_own, of_largest, first_action, same, partings = 0.0, 0.0, 0.0, 0, []
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
                error = np.abs(bank - a.costs)
                of_own = max(of_own, float((error / np.abs(a.costs)).max()))
                of_largest = max(of_largest, float((error.max(1) / np.abs(a.costs).max(1)).max()))
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
        "plans": plans, "cost_error_of_own": of_own, "cost_error_of_largest": of_largest, "tolerance": tolerance,
        "within_tolerance": of_own <= tolerance, "plans_with_identical_elites": same,
        "first_action_error": first_action, "partings": partings,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference")
    parser.add_argument("--plans", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    add_flags(parser)
    given = parser.parse_args()
    result = measure(given.model, given.plans, given.seed)
    row = {"table": "fidelity", "name": f"{given.model} fp32 against float64", **result,
           "command": f"python benchmarks/fidelity.py --model {given.model} --plans {given.plans}"}  # fmt: skip
    print(json.dumps(row, indent=2))
    del row["partings"]
    finish([row], given)
    alike = result["plans_with_identical_elites"] >= SAME_ELITES * given.plans
    return int(not (result["within_tolerance"] and alike and result["first_action_error"] <= FIRST_ACTION))


if __name__ == "__main__":
    sys.exit(main())

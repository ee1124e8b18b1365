"""What each precision costs in fidelity: the judge's verdict on a model with trained weights, and success beside it.

    python benchmarks/precisions.py [--model reference] [--precisions bf16,w8a8,...] [--episodes 70] [--json FILE]

Contexts and gates are the judge's own (`edgewm validate --preset default`). At most `--episodes` pairs are played side
by side from the same starts (0: none), until the margin is decided; successes are of those played.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from recording import add_flags, finish

from edgewm.build import build
from edgewm.quantize import NAMED
from edgewm.validate import validate


def judged(model: str, precision: str, episodes: int, folder: Path) -> dict[str, Any]:
    """One row: figures of suite `plan`, and successes of both models."""
    built = build(model, precision=precision, out=folder / precision)
    suites = ["plan", "closed-loop"] if episodes else ["plan"]
    found = validate(folder / precision, against=model, suite=suites, episodes=episodes or None)
    plan, loop = found["plan"], found["closed_loop"]
    row = {
        "table": "precisions", "name": f"{model} {precision}", "weights_mib": built["weight_bytes"] / 2**20,
        "contexts": plan["contexts"], "least_spearman": plan["spearman_min"], "elite_overlap": plan["elite_overlap"],
        "regret": plan["regret"], "cost_error": plan["cost_error"],
    }  # fmt: skip
    for who in ("compressed", "full"):
        row[f"successes_{who}"] = loop and "{} of {} ({:.0%} to {:.0%})".format(
            loop[who]["successes"], loop[who]["episodes"], *loop[who]["wilson_95"]
        )
    asked = "" if precision in NAMED else f" --precisions {precision}"
    row["command"] = f"python benchmarks/precisions.py --model {model} --episodes {episodes}{asked}"
    return row | {"gates": {True: "passed", False: "failed", None: "undecided"}[found["passed"]]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--precisions", default=",".join(NAMED))
    parser.add_argument("--episodes", type=int, default=70)
    add_flags(parser)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        for precision in given.precisions.split(","):
            rows.append(judged(given.model, precision, given.episodes, Path(folder)))
            print({key: value for key, value in rows[-1].items() if key not in ("table", "command")}, flush=True)
    finish(rows, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())

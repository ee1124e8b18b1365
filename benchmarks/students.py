"""Students of several shapes and precisions, trained alike: how they plan beside their teacher, and how long it takes.

    python benchmarks/students.py --kept FOLDER depth=1 depth=3,jump=5 depth=1,precision=w4a8,trained=fp32 ...

Each is said by what differs from one layer, one action a call, in w8a8: fields of a student's `Shape`, its
`precision`, the one it was `trained` for, and `learning_rate`. All learn from the same answers for as many steps, and
are looked at in the same held-out contexts and episodes; plans are timed in one alternating run. Intervals (90 %) are
of the difference to the first, by bootstrap over contexts and over episodes; the luck of one training is not in them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from distill import times
from losses import asked_of, fresh, measured
from recording import add_flags, finish

from edgewm import statistics
from edgewm.distill.material import Settings
from edgewm.distill.shapes import Shape
from edgewm.distill.targets import write_bytes
from edgewm.distill.teacher import held_out

SIZES = {field.name: int for field in fields(Shape)} | {"encoder_mlp_ratio": float}


def settings_of(spec: str, usual: Settings) -> tuple[Settings, str]:
    """What `spec` asks for: how it is trained, and the precision it is built in."""
    said = dict(part.split("=") for part in spec.split(","))
    precision = said.pop("precision", usual.precision)
    trained = said.pop("trained", precision)
    rate = said.pop("learning_rate", None)
    shape = replace(usual.shape, **{key: SIZES[key](value) for key, value in said.items()})
    found = replace(usual, shape=shape, precision=trained)
    return (found if rate is None else replace(found, learning_rate=(float(rate), float(rate) / 100))), precision


def students(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a student."""
    asked = asked_of(given.model, 1, given.samples, "w8a8", given)
    usual = asked.base
    held, found = None, []
    for spec in given.students:
        file = given.kept / f"{spec}.json"
        if not file.is_file():
            held = held or held_out(asked.teacher, asked.contexts, fresh(usual.seed))
            settings, precision = settings_of(spec, usual)
            told = measured(asked, settings, precision, held, given.kept / "answers", given.kept / spec)
            write_bytes(file, json.dumps(told).encode())
        found.append(json.loads(file.read_text()))
        print(spec, {key: float(np.mean(found[-1][key])) for key in ("rank", "elites", "success")}, flush=True)
    bundles = [given.kept / spec / "bundle" for spec in given.students]
    seconds = times(given.model, bundles, 1)
    return [
        row(spec, one, found[0], seconds[str(bundle)], given)
        for spec, one, bundle in zip(given.students, found, bundles, strict=True)
    ]


def row(
    spec: str, found: dict[str, Any], first: dict[str, Any], seconds: list[float], given: argparse.Namespace
) -> dict[str, Any]:
    out = {
        "table": "students", "name": spec.replace(",", ", ").replace("=", " "), "plan_ms": 1e3 * median(seconds),
        "best_plan_ms": 1e3 * min(seconds), "contexts": len(found["rank"]), "rank": float(np.mean(found["rank"])),
        "elites": float(np.mean(found["elites"])), "regret": float(np.sum(found["lost"]) / np.sum(found["gained"])),
        "success": f"{int(np.sum(found['success']))} of {len(found['success'])}",
    }  # fmt: skip
    for key in ("rank", "elites", "success"):
        apart = np.subtract(found[key], first[key])
        low, high = statistics.bootstrap(apart[:, None], lambda d: float(d.mean()), 0.9)
        out[f"{key}_to_first"] = None if found is first else f"{low:+.3f} to {high:+.3f}"
    command = f"python benchmarks/students.py --steps {given.steps} --step-contexts {given.step_contexts} "
    command += f"--samples {given.samples}"
    return {**out, "command": command, "run": " ".join([command, *given.students])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", metavar="SPEC")
    parser.add_argument("--kept", type=Path, required=True, help="the teacher's answers, and the students")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--step-contexts", type=int, default=8, help="that a step learns from")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=200)
    add_flags(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.kept.mkdir(parents=True, exist_ok=True)
    finish(students(given), given)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What each loss of `edgewm distill` adds to a student: to ranks, elites, regret and success in closed loop.

    python benchmarks/losses.py --kept FOLDER [--model reference] [--seeds 2] [--steps 400] [--only NAME,...]

One small student is trained with all losses but `cost` and `features`, without each of them, without those that compare
costs, with `cost`, with those of the default, without its own searches and without rounding, and compiled. Students of
one seed begin with the same weights, learn from the same answers in the same batches, are looked at in the same
held-out contexts and play the same episodes on the same noise; those of another seed share none of that. What became of
each is kept in FOLDER: a run that was cut off goes on, and with more `--seeds` only those are added.

Differences are to the first row, with 90 % intervals from the two-way analysis of variance, students by seeds
(randomised blocks; Montgomery, "Design and Analysis of Experiments", chapter 4): what is left of a figure after its
student's mean and its seed's says how much luck is in it, of training, contexts and episodes alike. It counts as equal
for all rows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from proposals import successes
from recording import add_flags, finish
from safetensors.numpy import save_file

from edgewm import statistics
from edgewm.binding import Runtime
from edgewm.build import build
from edgewm.distill import fidelity, losses
from edgewm.distill.material import LEARNING, TUNING, Settings
from edgewm.distill.prune import begins_as
from edgewm.distill.shapes import of_teacher, shapes, smaller
from edgewm.distill.targets import write_bytes
from edgewm.distill.teacher import HELD_OUT, Teacher, contexts, held_out, teacher_of
from edgewm.distill.train import train
from edgewm.judge.closed_loop import starts_of
from edgewm.judge.sides import compiled
from edgewm.judge.sources import source_of
from edgewm.models import load
from edgewm.options import CALIBRATED

TABLE, BESIDE = "distillation-losses", "distillation-losses-beside"  # the other: of those that are given by --only
FIRST, DEFAULT = "all but cost", "the default: latent and counterfactual"
APART = "cost"  # measured by adding it
LAST = "features"  # by adding it to the default
LEVEL = 0.9
CALIBRATED_BY = 16  # contexts
FRESH = 1 << 10  # between seeds of contexts that a run looks at itself and those of this page
FIGURES = ("rank", "elites", "success")


@dataclass(frozen=True)
class Asked:
    """Who is trained by whom and how: `base` but for its seed, `contexts` and `episodes` of each seed."""

    teacher: Teacher
    base: Settings
    contexts: int
    episodes: int


def students(base: Settings) -> dict[str, Settings]:
    """The settings that are compared, by name; those that the others differ from first."""

    def weighing(**given: float) -> Settings:
        return replace(base, weights={**base.weights, **given})

    # a student with its teacher's encoder has nothing to learn from pictures
    terms = [name for name, weight in base.weights.items() if weight and name != "encode"]
    return {
        FIRST: base,
        **{f"without {name}": weighing(**{name: 0.0}) for name in terms},
        "without rank and elite": weighing(rank=0.0, elite=0.0),
        f"with {APART}": weighing(**{APART: losses.WEIGHTS[APART]}),
        "without its own searches": replace(base, round_steps=base.steps),
        "without rounding in training": replace(base, precision="fp32"),
        DEFAULT: replace(base, weights=losses.weighing(losses.DEFAULT)),
        f"the default and {LAST}": replace(base, weights=losses.weighing((*losses.DEFAULT, LAST))),
    }


def measured(
    asked: Asked, settings: Settings, precision: str, held: Mapping[str, np.ndarray], answers: Path, out: Path
) -> dict[str, Any]:
    """One student, trained and compiled in `out`: `rank` and `elites` (contexts,), `success` (episodes,), the two parts
    of regret."""
    teacher, seed, bundle = asked.teacher, settings.seed, out / "bundle"
    run = train(settings, teacher, out, cache=answers)
    data = None if settings.precision == precision else recorded(teacher, out / ".contexts", fresh(seed) + 1)
    build(str(out), precision=precision, calibration=data if precision in CALIBRATED else None, threads=1, out=bundle)
    with Runtime(bundle, 1) as runtime:
        side = compiled(runtime, load(str(out)), settings.planner)
        found = fidelity.by_context(teacher, side, held, fresh(seed))
    wins = successes(bundle, teacher.source.make, starts_of(asked.episodes, fresh(seed)), 1)
    plan = {key: found[key].tolist() for key in ("rank", "elites", "lost", "gained")}
    return {**plan, "success": wins.astype(float).tolist(), "seconds": run["elapsed_s"]}


def recorded(teacher: Teacher, file: Path, seed: int) -> Path:
    """Contexts, as `build --calibration` takes them: a student that was not trained for few bits is calibrated."""
    found = contexts(teacher, CALIBRATED_BY, seed)
    (camera,), (goal,) = (teacher.model.ports_of(kind) for kind in ("observation", "goal"))
    pictures = {camera.name: found["observation"], goal.name: found["goal"]}
    save_file({name: x.reshape(-1, *camera.shape[1:]) for name, x in pictures.items()}, file)
    return file


def asked_of(name: str, depth: int, samples: int, precision: str, given: argparse.Namespace) -> Asked:
    """Students of one model: of `depth` layers, as wide as it, that look at one latent, with all losses but one."""
    model = load(name)
    model = replace(model, proposal=None, planner=replace(model.planner, proposal=False))
    shape = next(s for s in shapes(of_teacher(model)) if (s.depth, s.window) == (depth, 1))
    base = Settings(
        shape, smaller(model.planner, samples, model.planner.iterations), precision,
        {**losses.WEIGHTS, APART: 0.0, LAST: 0.0}, steps=given.steps,
        round_steps=-(-given.steps // 2), step_contexts=given.step_contexts, round_contexts=4 * given.step_contexts,
        learning_rate=TUNING if begins_as(shape, model) else LEARNING,
    )  # fmt: skip
    teacher = teacher_of(name, model, base.planner, source_of(name, model))
    return Asked(teacher, base, given.contexts, given.episodes)


def fresh(seed: int) -> int:
    """Of contexts and episodes that no run with this seed looks at."""
    return HELD_OUT + seed * 4096 + FRESH


def blocks(asked: Asked, seeds: int, only: Sequence[str], kept: Path) -> dict[str, list[dict[str, Any]]]:
    """What became of each student, with one seed after another."""
    found: dict[str, list[dict[str, Any]]] = {}
    held = cache(lambda seed: held_out(asked.teacher, asked.contexts, fresh(seed)))
    for name in only or students(asked.base):
        for seed in range(seeds):
            settings = students(replace(asked.base, seed=seed))[name]
            file = kept / f"{seed}-{name.replace(' ', '-')}.json"
            if not file.is_file():
                with tempfile.TemporaryDirectory(prefix="edgewm-") as out:
                    answers, precision = kept / f"answers-{seed}", asked.base.precision
                    told = measured(asked, settings, precision, held(seed), answers, Path(out))
                write_bytes(file, json.dumps(told).encode())
            found.setdefault(name, []).append(json.loads(file.read_text()))
            means = {key: round(float(np.mean(found[name][-1][key])), 3) for key in FIGURES}
            print(name, seed, means, round(found[name][-1]["seconds"]), flush=True)
    return found


def luck(means: np.ndarray, level: float = LEVEL) -> float | None:
    """Half the width of the interval of a difference between two rows of `means` (students, seeds) over seeds; None
    where one seed tells nothing of luck."""
    rows, seeds = means.shape
    freedom = (rows - 1) * (seeds - 1)
    if not freedom:
        return None
    left = means - means.mean(1, keepdims=True) - means.mean(0, keepdims=True) + means.mean()
    quantile = 0.5 + level / 2
    student = NormalDist().inv_cdf(quantile) * statistics.student_ratio(freedom, quantile)
    return student * math.sqrt(2 * float(np.square(left).sum()) / freedom / seeds)


def table(found: Mapping[str, list[dict[str, Any]]], command: str) -> list[dict[str, Any]]:
    """One row a student; its figures over all seeds, and how far they lie from the first's."""
    means = {key: np.array([[np.mean(one[key]) for one in each] for each in found.values()]) for key in FIGURES}
    halves = {key: luck(values) for key, values in means.items()}
    rows = []
    for i, (name, each) in enumerate(found.items()):
        wins = np.concatenate([one["success"] for one in each])
        lost, gained = (sum(np.sum(one[key]) for one in each) for key in ("lost", "gained"))
        row = {
            "table": TABLE, "run": command, "name": name, "seeds": len(each),
            "contexts": sum(len(one["rank"]) for one in each), "rank": float(means["rank"][i].mean()),
            "elites": float(means["elites"][i].mean()), "regret": float(lost / gained),
            "success": f"{int(wins.sum())} of {len(wins)}",
        }  # fmt: skip
        for key in FIGURES:
            apart, half = float(means[key][i].mean() - means[key][0].mean()), halves[key]
            if half is None or i == 0:
                row[f"{key}_to_first"] = None
            elif key == "success":
                row["points_to_first"] = f"{100 * (apart - half):+.1f} to {100 * (apart + half):+.1f}"
            else:
                row[f"{key}_to_first"] = f"{apart - half:+.3f} to {apart + half:+.3f}"
        rows.append({k: v for k, v in row.items() if v is not None} | {"command": command})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, required=True, help="the teacher's answers, and what became of students")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--step-contexts", type=int, default=8, help="that a step learns from")
    parser.add_argument("--depth", type=int, default=1, help="of the student, as wide as its teacher, window 1")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--precision", default="w8a8")
    parser.add_argument("--contexts", type=int, default=24, help="of each seed")
    parser.add_argument("--episodes", type=int, default=150, help="of each seed")
    parser.add_argument("--only", default="", help="of these rows, beside the first of them")
    add_flags(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    asked = asked_of(given.model, given.depth, given.samples, given.precision, given)
    given.kept.mkdir(parents=True, exist_ok=True)
    found = blocks(asked, given.seeds, [name for name in given.only.split(",") if name], given.kept)
    command = (
        f"python benchmarks/losses.py --seeds {given.seeds} --steps {given.steps} --depth {given.depth} "
        f"--step-contexts {given.step_contexts} --samples {given.samples} --precision {given.precision}"
    )
    rows = table(found, command + (f" --only '{given.only}'" if given.only else ""))
    finish([{**row, "table": BESIDE if given.only else TABLE} for row in rows], given)
    return 0


if __name__ == "__main__":
    sys.exit(main())

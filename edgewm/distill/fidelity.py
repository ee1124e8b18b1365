"""Does a student plan as its teacher does? The judge's figures, on few held-out contexts and without a bundle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import statistics
from ..judge.sides import Side, elites_of
from ..program import Planner
from .teacher import Teacher, encoded, noise, searched

Array = np.ndarray


def by_context(
    teacher: Teacher, student: Side, held: Mapping[str, Array], seed: int, own: Planner | None = None
) -> dict[str, Array]:
    """Of `teacher.held_out(teacher, n, seed)`, each (n,): `spearman` over all that the teacher's planner looked at,
    `rank`, the same within an iteration (mean), `elites` kept, and what the student's plan `lost` of what planning
    `gained`, where it searches as the teacher does, or with a planner of its `own`. A student to whom all cost the same
    ranks nothing: 0."""
    planner, action = teacher.planner, teacher.model.action_dim
    searcher = own or planner
    z, goal = (encoded(student, teacher.camera, held[key]) for key in ("observation", "goal"))
    rows = []
    for i, (candidates, costs) in enumerate(zip(held["candidates"], held["costs"], strict=True)):
        flat = np.array(candidates).reshape(-1, *candidates.shape[2:])
        told = student.score(z[i], goal[i], flat).reshape(costs.shape)
        pairs = list(zip(costs, told, strict=True))
        shared = [len(np.intersect1d(*(elites_of(c, planner.elites) for c in pair))) for pair in pairs]
        plan = searched(student, searcher, z[i], goal[i], noise(searcher, action, seed, i)).mean
        from_to = (np.array(held[key][i]) for key in ("latent", "goal_latent"))
        cost = float(teacher.side.score(*from_to, plan[None])[0])
        rows.append((
            statistics.spearman(costs.ravel(), told.ravel()), np.mean([statistics.spearman(*pair) for pair in pairs]),
            np.mean(shared) / planner.elites, cost - held["plan_cost"][i], held["blind_cost"][i] - held["plan_cost"][i],
        ))  # fmt: skip
    found = np.nan_to_num(np.array(rows, np.float64).T, nan=0.0)
    return dict(zip(("spearman", "rank", "elites", "lost", "gained"), found, strict=True))


def look(
    teacher: Teacher, student: Side, held: Mapping[str, Array], seed: int, own: Planner | None = None
) -> dict[str, float]:
    """The same over contexts: least and median Spearman, mean rank and elites, regret."""
    found = by_context(teacher, student, held, seed, own)
    return {
        "spearman_min": float(found["spearman"].min()), "spearman_median": float(np.median(found["spearman"])),
        "rank": float(found["rank"].mean()), "elite_overlap": float(found["elites"].mean()),
        "regret": float(found["lost"].sum() / found["gained"].sum()),
    }  # fmt: skip

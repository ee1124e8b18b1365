"""Does a student plan as its teacher does? The judge's figures, on few held-out contexts and without a bundle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import statistics
from ..judge.sides import Side, elites_of
from .teacher import Teacher, encoded, noise, searched

Array = np.ndarray


def look(teacher: Teacher, student: Side, held: Mapping[str, Array], seed: int) -> dict[str, float]:
    """Of `teacher.held_out(teacher, n, seed)`: rank correlation of the bank (least and median) and within iterations
    (mean), overlap of elites, and regret over what planning gains."""
    planner, action = teacher.planner, teacher.model.action_dim
    z, goal = (encoded(student, teacher.camera, held[key]) for key in ("observation", "goal"))
    bank, within, overlap, lost, gained = [], [], [], [], []
    for i, (candidates, costs) in enumerate(zip(held["candidates"], held["costs"], strict=True)):
        flat = np.array(candidates).reshape(-1, *candidates.shape[2:])
        own = student.score(z[i], goal[i], flat).reshape(costs.shape)
        bank.append(statistics.spearman(costs.ravel(), own.ravel()))
        within += [statistics.spearman(a, b) for a, b in zip(costs, own, strict=True)]
        pairs = [(elites_of(a, planner.elites), elites_of(b, planner.elites)) for a, b in zip(costs, own, strict=True)]
        overlap.append(np.mean([len(np.intersect1d(a, b)) / planner.elites for a, b in pairs]))
        plan = searched(student, planner, z[i], goal[i], noise(planner, action, seed, i)).mean
        from_to = (np.array(held[key][i]) for key in ("latent", "goal_latent"))
        cost = float(teacher.side.score(*from_to, plan[None])[0])
        lost.append(cost - held["plan_cost"][i])
        gained.append(held["blind_cost"][i] - held["plan_cost"][i])
    return {
        "spearman_min": float(np.min(bank)), "spearman_median": float(np.median(bank)),
        "rank": float(np.mean(within)), "elite_overlap": float(np.mean(overlap)),
        "regret": float(np.sum(lost) / np.sum(gained)),
    }  # fmt: skip

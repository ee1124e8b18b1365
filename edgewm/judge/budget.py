"""What a smaller search costs: plans of the bundle beside those of the full model with as large a search as its own.

Suite `plan` compares both on the same noise, so with the same planner; a robot that had the full model would search on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .gates import finite, judged, ratio_interval
from .imagine import Subjects
from .sides import blind_cost, search, start_of
from .sources import Pairs

_NOISE = 0xB0D6E7


def run(
    subjects: Subjects, action_dim: int, pairs: Pairs, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Figures and gate: `search_regret` and its two one-sided 95 % bounds, what plans of the bundle cost more, at the
    full model's cost, over what the full model's own plans gain on the median of blind candidates. Noises are apart."""
    full, whole = subjects.full, subjects.whole
    rows = []
    for i, (observation, goal) in enumerate(pairs):
        z, target = full.encode(observation), full.encode(goal)
        rng = np.random.default_rng([_NOISE, seed, i])
        noises = [
            rng.standard_normal((p.iterations, p.samples, p.horizon, action_dim), np.float32)
            for p in (whole, subjects.planner)
        ]
        begin = start_of(full, z, target)
        found = search(lambda c, z=z, target=target: full.score(z, target, c), whole, noises[0], *begin)
        plan = subjects.compressed.plan(observation, goal, noises[1])
        own, other = np.asarray(full.score(z, target, np.stack([found.mean, plan])), np.float64)
        rows.append((other - own, blind_cost(full, whole, z, target, noises[0]) - own))
    lost, gained = np.array(rows, np.float64).reshape(-1, 2).T
    regret, *bounds = ratio_interval(lost, gained)
    searched = {"samples": whole.samples, "iterations": whole.iterations, "elites": whole.elites}
    figures = {"search_regret": finite(regret), "search_regret_95": [finite(b) for b in bounds]}
    figures["full_search"] = searched
    return figures, [judged("search_regret", regret, len(rows), bounds)]

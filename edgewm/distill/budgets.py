"""How much planning a rate needs: planners with fewer samples, and what their plans lose at the full model's cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..judge.gates import NAMED
from ..judge.sources import Source
from ..models import Model
from ..program import Planner
from .shapes import planners
from .teacher import HELD_OUT, Teacher, check_gain, contexts, encoded, noise, searched, teacher_of

CONTEXTS = 48
LIMIT = NAMED["student"].limits["regret"] / 2  # the other half of what plans may lose is left to the student


def groups(name: str, model: Model, source: Source, seed: int) -> Iterator[list[Planner]]:
    """Planners by preference: the model's own together with smaller ones whose plans are nearly as good, then each that
    is smaller still. Where nothing tells how good plans are, or a student cannot be taught, the model's own stands
    alone."""
    own, *smaller = planners(model.planner)
    as_good = 0
    is_taught = own.history == 1 and own.objective == "final" and source.rollouts is not None
    if is_taught and source.contexts is not None:
        loses = regret(teacher_of(name, model, own, source), seed)
        while as_good < len(smaller) and loses(smaller[as_good]) <= LIMIT:
            as_good += 1
    yield [own, *smaller[:as_good]]
    for planner in smaller[as_good:]:
        yield [planner]


def regret(teacher: Teacher, seed: int) -> Callable[[Planner], float]:
    """What plans of another planner for the same model cost more than its own planner's, over what those gain on the
    median of blind candidates; means over held-out contexts. EdgewmError where those gain nothing."""
    drawn = contexts(teacher, CONTEXTS, HELD_OUT + seed)
    starts, goals = (encoded(teacher.side, teacher.camera, drawn[key]) for key in ("observation", "goal"))

    def plan_costs(planner: Planner) -> tuple[float, float]:
        """Means over contexts of a plan's cost and of the median blind candidate's."""
        found = []
        for i, (z, goal) in enumerate(zip(starts, goals, strict=True)):
            white = noise(planner, teacher.model.action_dim, HELD_OUT + seed, i)
            looked = searched(teacher.side, planner, z, goal, white)
            found.append((teacher.side.score(z, goal, looked.mean[None])[0], np.median(looked.costs[0])))
        plan, blind = np.mean(found, 0)
        return float(plan), float(blind)

    own, blind = plan_costs(teacher.planner)
    check_gain(blind - own, teacher.name)
    return lambda planner: (plan_costs(planner)[0] - own) / (blind - own)

"""How much planning a rate needs: planners with fewer samples, and what their plans lose at the full model's cost.

Where fewer samples alone are not enough, a search may begin at a proposal: a network that imitates the planner's own
plans is trained in minutes, a student is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..judge.gates import NAMED
from ..judge.sides import Side, blind_cost
from ..judge.sources import Source
from ..models import Model
from ..program import Planner
from .devices import HOST
from .teacher import HELD_OUT, Teacher, check_gain, contexts, encoded, noise, searched, teacher_of

Array = np.ndarray
CONTEXTS = 48
LIMIT = NAMED["student"].limits["regret"] / 2  # the other half of what plans may lose is left to the student


@dataclass(frozen=True)
class Budgets:
    """What `model`, which has the proposal where any planner begins at one, may plan with.

    `groups` are planners by preference: its own together with smaller ones whose plans are nearly as good, then each
    that is smaller still. `regrets` are what plans of those that were tried lose; `proposal` says what a proposal that
    was trained for this is worth.
    """

    model: Model
    groups: list[list[Planner]]
    regrets: dict[Planner, float]
    proposal: dict[str, Any] | None = None


def budgets(
    name: str, model: Model, sizes: Sequence[Planner], source: Source, seed: int,
    holds: Callable[[Model, Planner], bool], trained: Callable[[], tuple[Model, dict[str, Any]]] | None,
    device: torch.device = HOST,
) -> Budgets:  # fmt: skip
    """Planners of these sizes, its own first, for the model `name`. Where it does not hold the rate with any that is as
    good, those follow that begin at a proposal: the model's, or what `trained` gives, if anything does. Where nothing
    tells how good plans are, or a student cannot be taught, the model's own planner stands alone. Plans are tried on
    the device."""
    (own, *smaller), worth = sizes, None
    if own.proposal and model.proposal is None:
        model, worth = trained()
    if not smaller or own.history != 1 or own.objective != "final" or None in (source.rollouts, source.contexts):
        return Budgets(model, [[own]], {}, worth)
    teacher, regrets = teacher_of(name, model.on(device), own, source), {}
    loses = regret(teacher, seed)

    def as_good(side: Side, tried: Sequence[Planner]) -> Iterator[Planner]:
        for planner in tried:
            regrets[planner] = loses(side, planner)
            if regrets[planner] > LIMIT:
                return
            yield planner

    group = [own, *as_good(teacher.side, smaller)]
    left = smaller[len(group) - 1 :]
    if left and not own.proposal and (model.proposal or trained) and not holds(model, group[-1]):
        if model.proposal is None:
            model, worth = trained()
        left = [replace(planner, proposal=True, warm_start=False) for planner in left]
        begun = list(as_good(teacher_of(name, model.on(device), own, source).side, left))
        group, left = [*group, *begun], left[len(begun) :]
    return Budgets(model, [group, *([planner] for planner in left)], regrets, worth)


def regret(teacher: Teacher, seed: int) -> Callable[[Side, Planner], float]:
    """What plans of another planner cost more than the teacher's own, over what those gain on the median of blind
    candidates; means over held-out contexts. The side is the same model, which may have a proposal. EdgewmError where
    the teacher's plans gain nothing."""
    drawn = contexts(teacher, CONTEXTS, HELD_OUT + seed)
    starts, goals = (encoded(teacher.side, teacher.camera, drawn[key]) for key in ("observation", "goal"))

    def mean(cost: Callable[..., float], side: Side, planner: Planner) -> float:
        """Over contexts."""
        whites = (noise(planner, teacher.model.action_dim, HELD_OUT + seed, i) for i in range(CONTEXTS))
        return float(np.mean([cost(side, planner, *row) for row in zip(starts, goals, whites, strict=True)]))

    own, blind = (mean(cost, teacher.side, teacher.planner) for cost in (plan_cost, blind_cost))
    check_gain(blind - own, teacher.name)
    return lambda side, planner: (mean(plan_cost, side, planner) - own) / (blind - own)


def plan_cost(side: Side, planner: Planner, z: Array, goal: Array, white: Array) -> float:
    """Of the plan that a search finds, to the model that searched."""
    found = searched(side, planner, z, goal, white).mean
    return float(side.score(z, goal, found[None])[0])

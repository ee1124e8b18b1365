"""What a plan does once and what it does each round, run apart, give the plan's own bits."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from programs import inputs_of, numbers

from edgewm import expr as e
from edgewm import interp
from edgewm.iteration import NOISE, split
from edgewm.planner import KINDS, plan_graph, plan_weights
from edgewm.program import Graph, Planner

Arrays = dict[str, np.ndarray]


def rounds(plan: Graph, given: Arrays, weights: Arrays, count: int) -> Arrays:
    """The state after so many rounds, and the costs of the last."""
    prepare, iterate = split(plan)
    state = dict(interp.run(prepare, given, weights))
    read = iterate.inputs()
    for i in range(count):
        own = {NOISE: given[NOISE][i], "counter": np.asarray(i, np.uint32)}
        found = interp.run(iterate, {k: v for k, v in {**state, **own}.items() if k in read}, weights)
        state |= {k.removeprefix("next_"): v for k, v in found.items()}
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_the_rounds_of_every_kind_of_planner(kind: str) -> None:
    planner = Planner(kind=kind, samples=12, iterations=3, elites=4, horizon=3, low=-1.5, high=1.5)
    z, goal, candidates = e.input("z", (1, 4)), e.input("goal", (1, 4)), e.input("candidates", (12, 3, 2))
    apart = e.sub(e.add(e.matmul(candidates, e.weight("w", (2, 4))), z), goal)
    score = Graph({"cost": e.reshape(e.reduce_sum(e.reduce_sum(e.mul(apart, apart), 2), 1), (12,))})
    plan = plan_graph(Graph({"z": e.input("seen", (1, 4))}), score, planner, injected_noise=True)
    weights = {"w": numbers("w", (2, 4)), **plan_weights(planner)}
    given = inputs_of(plan)
    wanted, found = interp.run(plan, given, weights), rounds(plan, given, weights, planner.iterations)
    for name in ("mean", "std", "cost", "elites"):
        assert np.array_equal(found[name], wanted[name]), name
    assert found["costs"].shape == (12,)


def test_the_rounds_of_lewm_after_the_exact_passes() -> None:
    program = tiny.exact()
    plan = program.entries["plan_with_noise"]
    given = inputs_of(plan)
    wanted = interp.run(plan, given, program.weights)
    found = rounds(plan, given, program.weights, program.planner.iterations)
    assert np.array_equal(found["mean"], wanted["mean"]) and np.array_equal(found["std"], wanted["std"])
    assert found["costs"].shape == (program.planner.samples,)


def test_neither_part_draws_its_own_noise() -> None:
    prepare, iterate = split(tiny.exact().entries["plan_with_noise"])
    assert NOISE not in prepare.inputs() and iterate.inputs()[NOISE].shape == (40, 3, 4)
    assert {"next_mean", "next_std", "costs"} <= iterate.outputs.keys()

"""The judge's own planner: upstream's searches in numpy, from the same context as a bundle's plans."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fixtures_models as fixtures
import numpy as np
import pytest
from fixtures_models import exact_constants  # noqa: F401
from planning import asked, drawn, mppi_tolerances, no_state, noise_for, plan_rounding, program_of, remembering

from edgewm.interp import run
from edgewm.judge import sides
from edgewm.program import Planner, Program

pytestmark = pytest.mark.usefixtures("exact_constants")
SETTINGS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "cem": (2, 2, {"roll_committed": True, "commit_steps": 4, "warm_start": True}),
    "icem": (3, 1, {"kind": "icem", "history": 3, "roll_committed": True, "return_mean": False, "n_elite_keep": 2}),
    "icem path": (3, 1, {"kind": "icem", "history": 2, "objective": "path", "warm_start": True}),
    "mppi": (2, 1, {"kind": "mppi", "history": 2, "temperature": 5.0}),
}


class Oracle:
    """A runtime that answers by `interp`, in real arithmetic."""

    def __init__(self, program: Program):
        self.program = program

    def run_entry(self, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        graph = self.program.entries[name]
        assert set(graph.inputs()) == set(inputs)
        return run(graph, inputs, self.program.weights, real=True)

    def ports(self, entry: str) -> list[Any]:
        return [SimpleNamespace(name=name, is_input=True) for name in self.program.entries[entry].inputs()]


def tolerance(program: Program, side: sides.Side, z: np.ndarray, goal: np.ndarray, noise: np.ndarray) -> float:
    """Of a plan in float64, absolute."""
    planner, unit = program.planner, fixtures.UNIT_ROUNDOFF[np.float64]
    if planner.kind != "mppi":
        return plan_rounding(planner, unit, np.abs(noise).max()) * np.abs(noise).max()
    rounding = sum(fixtures.rounding(program.entries[entry], np.float64) for entry in ("encode", "encode", "score"))
    warm = np.zeros(noise.shape[2:])
    return mppi_tolerances(lambda c: side.score(z, goal, c), planner, noise, warm, rounding, unit)[-1]


@pytest.mark.parametrize("name", SETTINGS)
def test_plans_that_follow_on_each_other_are_the_bundles(name: str) -> None:
    """Warm start, frames before, and what is committed: plan by plan, as the state ports carry them."""
    window, block, settings = SETTINGS[name]
    program, model = program_of(window, block, **settings), remembering(window, block)
    planner, state, memory = program.planner, no_state(program, model), sides.Memory()
    side = sides.upstream(model, planner, "float64")
    goal = drawn(model.ports_of("goal"), 5)
    for plan, begun in enumerate((0, 1, 2, 1)):
        seen, noise = drawn(model.ports_of("observation"), plan), noise_for(program, plan)
        if planner.history > 1 and plan == 2:  # the runtime's word that frames are not one model action apart
            state["frames_seen"] = np.uint32([0])
            memory.forget_frames()
        if planner.roll_committed:
            state["periods_begun"] = np.uint32([begun])
        inputs = asked(program, "plan_with_noise", seen | goal | state | {"noise": noise})
        wanted = run(program.entries["plan_with_noise"], inputs, program.weights, real=True)
        state |= {key: wanted[key] for key in wanted if key in state}
        target = side.encode({"state": goal["goal"]})
        found = sides.replan(side, planner, seen, target, noise, memory, begun)
        allowed = tolerance(program, side, side.encode(seen), target, noise)
        assert np.abs(found - wanted["actions"]).max() <= allowed, plan


@pytest.mark.parametrize("name", SETTINGS)
def test_a_first_plan_and_its_scores_are_asked_of_both_sides_alike(name: str) -> None:
    window, block, settings = SETTINGS[name]
    program, model = program_of(window, block, **settings), remembering(window, block)
    planner = program.planner
    full = sides.upstream(model, planner, "float64")
    bundle = sides.compiled(Oracle(program), model, planner)
    seen, goal = drawn(model.ports_of("observation"), 1), {"state": drawn(model.ports_of("goal"), 2)["goal"]}
    z, target = full.encode(seen), full.encode(goal)
    rng = np.random.default_rng(0)
    candidates = rng.standard_normal((planner.samples + 3, planner.horizon, model.action_dim)).astype(np.float32)
    handed_over = 2.0**-24  # a bundle is given float32
    bound = handed_over * 4 + fixtures.rounding(program.entries["score"], np.float32)
    assert fixtures.relative_error(bundle.score(z, target, candidates), full.score(z, target, candidates)) <= bound
    frames = rng.standard_normal((planner.history, len(z)))
    past = np.repeat(rng.standard_normal((1, planner.history - 1, model.action_dim)), len(candidates), 0)
    actions = np.concatenate([past, candidates], 1)
    assert fixtures.relative_error(bundle.score(frames, target, actions), full.score(frames, target, actions)) <= bound
    noise = noise_for(program, 3)
    allowed = tolerance(program, full, z, target, noise)
    assert np.abs(bundle.plan(seen, goal, noise) - full.plan(seen, goal, noise)).max() <= allowed


def test_noise_is_coloured_along_the_horizon() -> None:
    """Its power falls with frequency as noise_beta says, and white noise stays white but for its deviation."""
    white = np.random.default_rng(0).standard_normal((4000, 16, 1))
    planner = Planner(kind="icem", horizon=16, noise_beta=2.0)
    power = np.square(np.abs(np.fft.rfft(sides.coloured(planner, white), axis=1))).mean(0)[:, 0]
    assert (np.diff(power[1:]) < 0).all() and power[1] > 10 * power[8]
    plain = sides.coloured(Planner(kind="icem", noise_beta=0.0), white)
    wanted = white / white.std(1, ddof=1, keepdims=True)
    units = 3 * planner.horizon + 4  # there and back, and the deviation along the horizon
    assert np.abs(plain - wanted).max() <= units * fixtures.UNIT_ROUNDOFF[np.float64] * np.abs(wanted).max()
    assert np.array_equal(sides.coloured(planner, white[:, :1]), white[:, :1])

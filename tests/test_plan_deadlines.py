"""What a deadline leaves of a plan: the best mean so far, and for the next plan the state that goes with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from plan_robot import KINDS, MS, Robot
from planning import drawn


def ticking() -> tuple[Callable[[], int], list[int]]:
    """A clock that moves 1 ms at each look."""
    at = [1000 * MS]

    def look() -> int:
        at[0] += MS
        return at[0]

    return look, at


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_leaves_the_plan_of_the_iterations_done(kind: str, rounds: int, threads: int) -> None:
    """The clock moves 1 ms a look; the loop looks once an iteration and does not begin one that would end too late.
    What the next plan takes is then that of the iterations done, too."""
    look, at = ticking()
    with Robot(kind, threads, clock=look) as robot:
        warm = drawn(tuple(p for p in robot.program.ports if p.name == "warm_mean"), 9)["warm_mean"] / 4
        robot.runtime.warm_start(warm)
        robot.state["warm_mean"] = warm
        robot.now = at[0]
        looks = 3  # ewm_observe, ewm_plan's own start, and the one that opens the first iteration
        deadline = robot.now + (looks + rounds) * MS + (MS if rounds else 0)
        info = robot.plan(0, deadline, rounds)
        assert (info.iterations, info.of) == (rounds, robot.planner.iterations)
        if not rounds:
            assert np.array_equal(robot.wanted[0].reshape(warm.shape), warm)
        robot.act()
        at[0] = robot.now
        assert robot.plan(1).iterations == robot.planner.iterations
        robot.acts(robot.planner.commit_steps)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_deadline_the_work_is_fixed(kind: str) -> None:
    """A clock that leaps between looks ends nothing early, and the plan is that of a clock that stands still."""
    at = [1000 * MS]

    def leaping() -> int:
        at[0] += 400 * MS  # observations may be a second old
        return at[0]

    with Robot(kind, clock=leaping) as robot:
        robot.now = at[0]
        info = robot.plan(0)
        assert (info.iterations, info.of) == (robot.planner.iterations, robot.planner.iterations)
        robot.acts(3)

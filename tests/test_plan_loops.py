"""Whole plans of every kind in the runtime's two loops: what is planned, and which action plays when. Every answer is
the oracle's, bit for bit."""

from __future__ import annotations

import json
import subprocess
import threading
import time

import numpy as np
import pytest
from plan_robot import KINDS, PERIOD, SETTINGS, Robot, bundle, captured, exact
from planning import Arrays, drawn, program_of, remembering

from edgewm import act
from edgewm.binding import Runtime
from edgewm.errors import EdgewmError
from edgewm.interp import run
from edgewm.judge import sides
from edgewm.judge.latency import of_model, timed
from edgewm.judge.noise import philox
from edgewm.manifest import Manifest
from edgewm.ops import graph_flops

# ------------------------------------------------------------------------------------------------ exact, then compiled


@pytest.mark.parametrize("kind", KINDS)
def test_passes_and_kernels_change_no_bit_of_a_plan(kind: str) -> None:
    program, fewer = captured(kind), exact(kind)
    assert graph_flops(fewer.entries["plan"]) < graph_flops(program.entries["plan"])
    assert all(line.flops[1] <= line.flops[0] for line in fewer.log)
    leaves = program.entries["plan"].inputs()
    with Runtime(bundle(kind), 1) as one, Runtime(bundle(kind), 2) as two:
        for seed in range(3):
            rng = np.random.default_rng(seed)
            inputs = {
                name: rng.integers(0, 9, leaf.shape).astype(np.uint32) if leaf.dtype == "u32"
                else rng.standard_normal(leaf.shape, np.float32)
                for name, leaf in leaves.items()
            }  # fmt: skip
            wanted = run(program.entries["plan"], inputs, program.weights)
            answers = [run(fewer.entries["plan"], inputs, fewer.weights)]
            answers += [runtime.run_entry("plan", **inputs) for runtime in (one, two)]
            for found in answers:
                assert {k for k in wanted if found[k].tobytes() != np.ascontiguousarray(wanted[k]).tobytes()} == set()


# -------------------------------------------------------------------------------------------------- which action, when


def test_a_chunk_begins_where_the_committed_part_of_the_last_one_ends() -> None:
    with Robot("cem") as robot:
        start = robot.now
        assert robot.plan(0).due_ns == 0  # nothing to follow on: at once
        assert robot.acts(1) == [(1, 0)]
        robot.now = start  # planned from the observation that the chunk began with
        assert robot.plan(1).due_ns == start + 4 * PERIOD
        robot.now = start + PERIOD
        assert robot.acts(4) == [(1, 1), (1, 2), (1, 3), (2, 0)]
        assert robot.now == start + 5 * PERIOD
        assert robot.plan(2).due_ns == start + 9 * PERIOD  # seen a period later: so is what is committed
        assert robot.acts(6) == [(2, 1), (2, 2), (2, 3), (2, 4), (3, 0), (3, 1)]
        assert robot.runtime.stats()["begun_late"] == 0


def test_a_chunk_that_comes_late_begins_when_it_comes_and_is_counted() -> None:
    with Robot("cem") as robot:
        robot.plan(0)
        robot.acts(1)
        robot.now -= PERIOD
        observation = robot.now
        seen = drawn(robot.model.ports_of("observation"), 101)
        robot.runtime.observe(observation, **seen)
        robot.now += PERIOD
        assert robot.acts(5) == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]  # it goes on past what was committed
        now, robot.now = robot.now, observation
        robot.follow(seen)
        robot.now = now
        assert robot.runtime.plan().due_ns == observation + 4 * PERIOD
        assert robot.acts(2) == [(2, 0), (2, 1)]
        assert robot.runtime.stats()["begun_late"] == 1
        robot.plan(2)  # what is committed is counted from where it really began
        assert robot.acts(5) == [(2, 2), (2, 3), (2, 4), (2, 5), (3, 0)]


def test_nothing_is_rolled_once_the_chunk_has_run_out() -> None:
    with Robot("cem") as robot:
        robot.plan(0)
        robot.acts(9)
        assert robot.plan(1).due_ns == 0
        assert robot.acts(1) == [(2, 0)]


def test_a_plan_waits_for_the_last_one_to_be_played() -> None:
    with Robot("cem") as robot:
        robot.plan(0)
        for _ in range(2):
            with pytest.raises(EdgewmError) as refusal:
                robot.runtime.plan()
            assert "the last chunk has not begun: found chunk 1 not in play" in refusal.value.what
            assert "ewm_act to begin it before the next plan" in refusal.value.fix
        robot.acts(1)
        robot.plan(1)
        with pytest.raises(EdgewmError, match="the last chunk has not begun: found chunk 2"):
            robot.runtime.plan()
        assert robot.acts(5)[-2:] == [(1, 4), (2, 0)]  # it was seen a period after its chunk began
        robot.plan(2)
        assert robot.runtime.stats()["published"] == 3


def test_after_a_reset_nothing_of_before_is_rolled_or_waited_for() -> None:
    with Robot("cem") as robot:
        robot.plan(0)
        robot.acts(2)
        robot.plan(1)  # never begun
        robot.reset()
        assert robot.act().state == "waiting"
        assert robot.plan(2).due_ns == 0
        assert robot.acts(1) == [(3, 0)]
        assert robot.plan(3).due_ns != 0
        assert robot.acts(5)[-1] == (4, 0)


def test_a_stopped_robot_is_reset_before_it_is_planned_for() -> None:
    with Robot("cem") as robot:
        robot.plan(0)
        while robot.act().state != "stopped":
            pass
        robot.plan(1)
        assert robot.act().state == "stopped"
        with pytest.raises(EdgewmError, match="the last chunk has not begun"):
            robot.runtime.plan()
        robot.reset()
        robot.plan(2)
        assert robot.act().state == "fresh"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_history_and_rolling_go_on_for_many_plans(threads: int) -> None:
    """One model action of each plan is played, and each is planned while the one before it is."""
    with Robot("icem", threads) as robot:
        robot.plan(0)
        for k in range(8):
            assert robot.acts(1) == [(k + 1, 0)]
            robot.now -= PERIOD
            robot.plan(k + 1)
            robot.now += PERIOD
        assert robot.state["frames_seen"].tolist() == [2]


def test_frames_that_are_not_one_model_action_apart_begin_the_history_anew() -> None:
    with Robot("mppi") as robot:
        seen = []
        for k, wait in enumerate((1, 1, 3, 1, 0, 1)):
            robot.plan(k)
            seen.append([*robot.state["frames_seen"].tolist(), robot.act().index])
            robot.now += (wait - 1) * PERIOD
        assert seen == [[1, 0]] * 6
        assert robot.runtime.stats()["begun_anew"] == 2  # after three model actions, and at the same time again
        # the same observations without a history differ from the second plan on: it is really looked at
        robot.now += 7 * PERIOD
        robot.plan(1)
        assert not np.array_equal(robot.wanted[1], robot.wanted[-1])


def test_acting_and_planning_on_two_threads_keep_to_what_was_committed() -> None:
    """A chunk is left after its committed periods and not before, whatever the threads do."""
    commit, changes, faults, before, done = 4, [], [], 0, threading.Event()
    with Robot("cem") as robot:
        robot.plan(0)

        def plan() -> None:
            try:
                robot.runtime.plan()
            except EdgewmError as fault:
                if "the last chunk has not begun" not in fault.what:
                    raise

        def control() -> None:
            last = None
            while not done.is_set():
                _, info = robot.runtime.act(robot.now)
                going_on = last is not None and last.state not in ("waiting", "stopped")
                if going_on and info.generation != last.generation:
                    changes.append(last.index)
                    if last.index + 1 < commit or info.index:
                        faults.append((last, info))
                last = info
                robot.now += PERIOD
                time.sleep(1e-4)

        thread = threading.Thread(target=control)
        thread.start()
        seen = drawn(robot.model.ports_of("observation"), 0)
        try:
            while len(changes) < 50:
                if (stopped := robot.runtime.stats()["stopped"]) > before:  # the clock ran away from the planner
                    before = stopped
                    robot.runtime.reset()
                robot.runtime.observe(robot.now, **seen)
                plan()
        finally:
            done.set()
            thread.join()
    assert not faults


# ------------------------------------------------------------------------------------------------ in a simulator, paced


class Drift:
    """A world whose state is what the actions add up to, with a little drift."""

    max_steps, success = 12, False

    def __init__(self) -> None:
        self.state = np.zeros(4, np.float32)

    def step(self, action: np.ndarray) -> Arrays:
        self.state = self.state + np.float32(0.1) * np.tile(action, 2) + np.float32(0.01)
        return {"state": self.state}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_around_a_bundle_and_around_the_full_model_play_alike(kind: str) -> None:
    """On the bundle's own noise: of all that the full model plays, each period's action is the nearest."""
    window, block, settings = SETTINGS[kind]
    program, model, clock = program_of(window, block, **settings), remembering(window, block), [0]
    planner, planned, played, world = program.planner, [], [], Drift()
    manifest = Manifest("ab", "host", "AS_IS", "fp32", 50.0, 1, planner, model.ports, {})
    goal = {"state": drawn(model.ports_of("goal"), 5)["goal"]}

    def noise(plan: int) -> np.ndarray:
        planned.append(plan)
        return philox(planner, model.action_dim, 7, plan)

    full = of_model(sides.upstream(model, planner, "float64"), manifest, goal, noise)
    ours, observation = timed(full, planner, lambda: 0), {"state": world.state}
    for period in range(world.max_steps):
        before = len(planned)
        action = ours(observation, period)
        played.append((action, len(planned) > before))
        observation = world.step(action)
    with Runtime(bundle(kind), clock=lambda: clock[0], period_ns=PERIOD) as runtime:
        theirs, world = act.compiled_policy(runtime, clock, manifest, goal, 7), Drift()
        observation, wanted = {"state": world.state}, np.stack([action for action, _ in played])
        for period, (_, is_planned) in enumerate(played):
            step = theirs(observation, period)
            assert (step.plan_ms is not None) == is_planned == (period % planner.commit_steps == 0)
            assert np.abs(wanted - step.action).sum(1).argmin() == period
            observation = world.step(step.action)
        assert runtime.stats()["begun_late"] == 0


@pytest.mark.parametrize("mode", ["--inline", "--async"])
def test_the_runner_plans_right_after_a_chunk_has_begun(mode: str) -> None:
    ticks, folder = 60, bundle("cem")
    command = [folder / "edgewm-tick", folder, "--rate-hz", "100", "--ticks", str(ticks), mode, "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["replan"], report["commit_steps"], report["plan_error"]) == ("follow", 4, 0)
    assert 2 <= report["plans"] <= ticks // 4 + 2 and report["stats"]["waiting"] == 0
    warmup = 3 + 1
    assert report["stats"]["begun_late"] <= report["stats"]["chunks"] <= report["plans"] + warmup

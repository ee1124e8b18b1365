"""The C++ runtime on a hand-made bundle: what it computes, what it refuses, and what it does when plans are late."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import runtime_fixture as fixture

from edgewm import abi
from edgewm.binding import Runtime
from edgewm.errors import EdgewmError

MS = 1_000_000
STATE = np.linspace(-1, 1, 6, dtype=np.float32)
IMAGE = np.zeros(5, np.uint8)
GOAL = np.float32([0.25])
CHUNKS = 100  # seen by the control thread before a test of handing over ends
COLD = np.zeros((fixture.STEPS, fixture.AXES), np.float32)


@contextlib.contextmanager
def opened(clock: list[int], **options) -> Iterator[Runtime]:
    """A loop on a clock that stands still until the test moves it."""
    with Runtime(fixture.bundle(), clock=lambda: clock[0], period_ns=fixture.PERIOD_NS, **options) as runtime:
        runtime.set_goal(goal=GOAL)
        yield runtime


def observe(runtime: Runtime, stamp_ns: int | None = None) -> None:
    runtime.observe(stamp_ns, state=STATE, image=IMAGE)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_entries_are_bit_identical_for_any_number_of_threads(threads: int) -> None:
    x = np.random.default_rng(0).standard_normal((fixture.LANES, 3)).astype(np.float32)
    with Runtime(fixture.bundle(), threads) as runtime:
        for _ in range(20):
            assert runtime.run_entry("affine", x=x)["y"].tobytes() == fixture.affine(x).tobytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_plans_feed_their_mean_back(threads: int) -> None:
    with opened([1000 * MS], threads=threads) as runtime:
        observe(runtime)
        mean = COLD
        for generation in (1, 2, 3):
            info = runtime.plan()
            mean = fixture.plan(mean, GOAL[0], STATE)
            assert (info.generation, info.iterations, info.of) == (generation, fixture.ROUNDS, fixture.ROUNDS)
            action, _ = runtime.act()
            assert action.tobytes() == fixture.robot(mean)[0].tobytes()


def test_entries_do_not_disturb_the_state_between_plans() -> None:
    with opened([1000 * MS]) as runtime:
        observe(runtime)
        runtime.plan()
        runtime.run_entry("affine", x=np.ones((fixture.LANES, 3), np.float32))
        runtime.plan()
        twice = fixture.plan(fixture.plan(COLD, GOAL[0], STATE), GOAL[0], STATE)
        assert runtime.act()[0].tobytes() == fixture.robot(twice)[0].tobytes()


def test_warm_start_and_reset() -> None:
    with opened([1000 * MS]) as runtime:
        warm = np.full((fixture.STEPS, fixture.AXES), 3, np.float32)
        observe(runtime)
        runtime.warm_start(warm)
        runtime.plan()
        assert runtime.act()[0].tobytes() == fixture.robot(fixture.plan(warm, GOAL[0], STATE))[0].tobytes()
        runtime.reset(seed=2**63)
        with pytest.raises(EdgewmError, match="no observation since the reset"):
            runtime.plan()
        observe(runtime)
        runtime.plan()
        assert runtime.act()[0].tobytes() == fixture.robot(fixture.plan(COLD, GOAL[0], STATE))[0].tobytes()


@pytest.mark.parametrize("rounds", [0, 1, 4, 9])
def test_a_deadline_ends_the_loop_between_rounds(rounds: int) -> None:
    """The clock moves 1 ms a look; the loop looks once a round and does not begin one that would end too late."""
    clock = [1000 * MS]

    def tick() -> int:
        clock[0] += MS
        return clock[0]

    with Runtime(fixture.bundle(), clock=tick, period_ns=fixture.PERIOD_NS) as runtime:
        runtime.set_goal(goal=GOAL)
        observe(runtime, clock[0])
        looks_before_round_0 = 2  # ewm_plan's own start, and the one that opens the round
        deadline = clock[0] + (looks_before_round_0 + rounds) * MS + (MS if rounds else 0)
        info = runtime.plan(deadline)
        assert (info.iterations, info.of) == (rounds, fixture.ROUNDS)
        mean = fixture.plan(COLD, GOAL[0], STATE, rounds)
        assert runtime.act(clock[0])[0].tobytes() == fixture.robot(mean)[0].tobytes()
        assert runtime.plan(deadline).late and runtime.stats()["late"] >= 1


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("value", "message", "counter"),
    [
        (np.nan, "NaN or infinity in the input: found nan", "non_finite"),
        (np.inf, "found inf", "non_finite"),
        (-np.inf, "found -inf", "non_finite"),
        (10.000001, "input outside its port's range: found 10", "out_of_range"),
        (np.float32(-3e38), "found -3e+38", "out_of_range"),
    ],
)
def test_a_bad_number_is_refused_and_withdraws_the_last_observation(value: float, message: str, counter: str) -> None:
    with opened([1000 * MS]) as runtime:
        for at in range(6):
            observe(runtime)
            runtime.plan()
            bad = STATE.copy()
            bad[at] = value
            with pytest.raises(EdgewmError) as refusal:
                runtime.observe(state=bad)
            assert message in refusal.value.what
            assert f"port state, element {at}" in refusal.value.where
            with pytest.raises(EdgewmError, match="its newest observation was refused"):
                runtime.plan()
        stats = runtime.stats()
        assert (stats[counter], stats["refused_input"], stats["published"]) == (6, 6, 6)


def test_wrong_shape_and_size_are_refused() -> None:
    with opened([1000 * MS]) as runtime:
        with pytest.raises(EdgewmError, match=r"port 'state' was given float32\[5\]"):
            runtime.observe(state=STATE[:5])
        with pytest.raises(EdgewmError, match=r"was given float64\[6\]"):
            runtime.observe(state=STATE.astype(float))
        with pytest.raises(EdgewmError, match="no input port 'camera'"):
            runtime.observe(camera=STATE)
        fault = abi.sized(abi.Fault)  # a C caller has no shapes: the length alone
        arguments = runtime._loop, 2, STATE.ctypes.data, 20, 0, ctypes.byref(fault)
        assert runtime._c.ewm_observe(*arguments) == 101
        assert (fault.found, fault.expected) == (b"20 bytes", b"24 bytes, 6 elements")
        assert runtime.stats()["wrong_size"] == 1


def test_stale_and_future_stamps_are_refused() -> None:
    clock = [1000 * MS]
    with opened(clock) as runtime:
        observe(runtime)
        clock[0] += 50 * MS
        runtime.plan()
        clock[0] += 1
        with pytest.raises(EdgewmError, match="stale observation: found 50000001 ns old"):
            runtime.plan()
        with pytest.raises(EdgewmError, match="stamped 1 ns in the future"):
            observe(runtime, clock[0] + 1)
        stats = runtime.stats()
        assert (stats["stale"], stats["bad_stamp"], stats["published"]) == (1, 1, 1)


def test_missing_goal_input_and_entry_are_named() -> None:
    with Runtime(fixture.bundle(), clock=lambda: 1) as runtime:
        observe(runtime, 0)
        with pytest.raises(EdgewmError, match="never set"):
            runtime.plan()
        with pytest.raises(EdgewmError, match="no port x"):
            runtime.run_entry("affine")
        with pytest.raises(EdgewmError, match="no entry 'nothing'"):
            runtime.run_entry("nothing")
    with pytest.raises(EdgewmError, match="this runtime is closed"):
        runtime.plan()
    with pytest.raises(EdgewmError, match="found 65 threads"):
        Runtime(fixture.bundle(), 65)


def test_a_plan_that_overflows_is_not_published() -> None:
    with opened([1000 * MS]) as runtime:
        observe(runtime)
        runtime.warm_start(np.full((3, 2), 3.4e38, np.float32))
        with pytest.raises(EdgewmError, match="the result has NaN or infinity"):
            runtime.plan(deadline_ns=1)  # no round: the mean stays as it is, and scaling it overflows
        assert runtime.stats()["result_non_finite"] == 1
        assert runtime.act()[1].state == "waiting"


# -------------------------------------------------------------------------------------------------- the ladder


def play(runtime: Runtime, clock: list[int], periods: int) -> list[tuple[str, list[float]]]:
    played = []
    for _ in range(periods):
        action, info = runtime.act(clock[0])
        played.append((info.state, action.tolist()))
        clock[0] += fixture.PERIOD_NS
    return played


def test_the_ladder_holds_ramps_and_stops_until_reset() -> None:
    clock = [1000 * MS]
    with opened(clock, max_hold_periods=2, ramp_periods=3) as runtime:
        assert runtime.act()[1].state == "waiting"
        assert runtime.act()[0].tolist() == [1, -1]
        observe(runtime)
        runtime.plan()
        rows = fixture.robot(fixture.plan(COLD, GOAL[0], STATE))
        played = play(runtime, clock, 12)
        assert [state for state, _ in played] == ["fresh"] * 3 + ["hold"] * 2 + ["ramp"] * 3 + ["stopped"] * 4
        assert [a for _, a in played[:5]] == rows[[0, 1, 2, 2, 2]].tolist()
        safe, last = np.float32([1, -1]), rows[2]
        for k, (_, action) in enumerate(played[5:8], 1):
            assert action == (last + (safe - last) * np.float32(k / 4)).tolist()
        assert all(a == [1, -1] for _, a in played[8:])
        observe(runtime)
        runtime.plan()  # a stop is latched: a fresh plan does not lift it
        assert play(runtime, clock, 2)[-1] == ("stopped", [1, -1])
        runtime.reset()
        assert play(runtime, clock, 1)[0][0] == "waiting"
        observe(runtime)
        runtime.plan()
        assert play(runtime, clock, 1)[0] == ("fresh", rows[0].tolist())


@pytest.mark.parametrize("wait", range(1, 8))
def test_a_fresh_plan_lifts_hold_and_ramp(wait: int) -> None:
    clock = [1000 * MS]
    with opened(clock, max_hold_periods=2, ramp_periods=3) as runtime:
        observe(runtime)
        runtime.plan()
        play(runtime, clock, wait)
        observe(runtime)
        runtime.plan()
        assert play(runtime, clock, 1)[0][0] == "fresh"


def test_skipped_periods_move_along_the_chunk_and_are_counted() -> None:
    clock = [1000 * MS]
    with opened(clock, max_hold_periods=2, ramp_periods=3) as runtime:
        observe(runtime)
        runtime.plan()
        play(runtime, clock, 1)
        clock[0] += 1 * fixture.PERIOD_NS + 3 * MS  # one period lost, and a little late
        _, info = runtime.act(clock[0])
        assert (info.state, info.index, info.skipped) == ("fresh", 2, 1)
        clock[0] += 50 * fixture.PERIOD_NS
        _, info = runtime.act(clock[0])
        assert (info.state, info.skipped) == ("stopped", 49)
        assert runtime.stats()["skipped"] == 50


def test_limits_and_slew_hold_for_every_action(tmp_path: Path) -> None:
    ports = fixture.ports()
    ports["low"][8], ports["high"][8], ports["slew"][8] = -2.0, 30.0, 4.0
    clock = [1000 * MS]
    with Runtime(fixture.write(tmp_path, ports), clock=lambda: clock[0], period_ns=fixture.PERIOD_NS) as runtime:
        runtime.set_goal(goal=GOAL)
        observe(runtime)
        runtime.plan()
        last, limited = np.array([1.0, -1.0]), 0
        for _ in range(40):
            action, info = runtime.act(clock[0])
            limited += info.limited
            assert np.all(np.abs(action - last) <= 4.0) and np.all(action >= -2.0) and np.all(action <= 30.0)
            last = action
            clock[0] += fixture.PERIOD_NS
        assert info.state == "stopped" and last.tolist() == [1, -1]
        assert limited > 0 and runtime.stats()["limited"] == limited


def test_no_safe_value_and_no_plan_gives_no_position(tmp_path: Path) -> None:
    ports = fixture.ports()
    ports["has_safe"][8] = 0
    clock = [1000 * MS]
    with Runtime(fixture.write(tmp_path, ports), clock=lambda: clock[0], period_ns=fixture.PERIOD_NS) as runtime:
        with pytest.raises(EdgewmError, match="no action yet"):
            runtime.act()
        runtime.set_goal(goal=GOAL)
        observe(runtime)
        runtime.plan()
        played = play(runtime, clock, 30)
        assert played[-1] == ("stopped", played[2][1])  # a position without a safe value is held


def test_observing_planning_and_acting_on_three_threads_never_tear() -> None:
    """Observations are constant vectors; a torn one would give an action that no constant gives."""
    values = np.arange(-8, 9, dtype=np.float32)
    possible = {fixture.robot(fixture.plan(COLD, GOAL[0], np.full(6, v)))[0].tobytes() for v in values}
    done = threading.Event()
    faults, seen = [], set()
    # A clock that stands still: always the first period of the newest chunk, and nothing ever stale.
    with Runtime(fixture.bundle(), clock=lambda: 1000 * MS, period_ns=fixture.PERIOD_NS) as runtime:
        runtime.set_goal(goal=GOAL)
        runtime.observe(state=np.full(6, values[0]), image=IMAGE)

        def sense() -> None:
            while not done.is_set():
                for v in values:
                    runtime.observe(state=np.full(6, v), image=IMAGE)

        def control() -> None:
            while not done.is_set():
                action, info = runtime.act()
                seen.add(info.generation)
                if info.state == "fresh" and action.tobytes() not in possible:
                    faults.append(str(action))

        others = [threading.Thread(target=sense), threading.Thread(target=control)]
        for thread in others:
            thread.start()
        for _ in range(50_000):
            runtime.warm_start(COLD)
            runtime.plan()
            if len(seen) > CHUNKS:
                break
        done.set()
        for thread in others:
            thread.join()
    assert not faults and len(seen) > CHUNKS


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
@pytest.mark.parametrize("anywhere", [False, True])
def test_workers_wake_off_the_planning_threads_processor_unless_told(anywhere: bool) -> None:
    """From outside: what the kernel says of the thread that the runtime made."""
    tasks = Path("/proc/self/task")
    allowed, before = os.sched_getaffinity(0), {task.name for task in tasks.iterdir()}
    with Runtime(fixture.bundle(), 2, anywhere=anywhere):
        (worker,) = {task.name for task in tasks.iterdir()} - before
        found = os.sched_getaffinity(int(worker))
    assert len(allowed - found) == (0 if anywhere else 1)

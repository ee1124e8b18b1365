"""Latency in the loop: plans are there as much later as they took, for the bundle and for the full model alike."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from test_validate import ACTION, PLANNER, PORTS, Toy, quiet, side

from edgewm import ladder
from edgewm.errors import EdgewmError
from edgewm.judge import closed_loop, gates, latency, loops
from edgewm.judge.imagine import Subjects
from edgewm.judge.noise import philox
from edgewm.program import Planner, Port

PERIODS = 24


def trace(planner: Planner, late: int, periods: int = PERIODS) -> tuple[list[tuple[str, int]], list[int | None]]:
    """What the loop did when, and which plan's chunk was in play in each period (by the period it was asked in)."""
    did, playing, asked, newest = [], [], [], None

    def begin(observation, period):
        did.append(("begin", period))
        asked.append(period)

    def land(period):
        nonlocal newest
        did.append(("land", period))
        newest = asked[-1]

    def act(period):
        playing.append(newest)
        return np.zeros(2), newest is not None and newest == asked[-1]

    policy = latency.timed(latency.Parts(begin, land, act), planner, lambda: late)
    for period in range(periods):
        policy({}, period)
    return did, playing


def planner(commit_steps: int = 8, **replaced) -> Planner:
    return dataclasses.replace(PLANNER, horizon=8, action_block=1, commit_steps=commit_steps, **replaced)


def test_without_latency_a_plan_is_there_in_the_period_it_was_asked_in():
    did, playing = trace(planner(), 0)
    assert did == [(what, period) for period in (0, 8, 16) for what in ("begin", "land")]
    assert playing == [period // 8 * 8 for period in range(PERIODS)]


def test_a_late_plan_lets_the_last_chunk_play_on():
    did, playing = trace(planner(), 3)
    assert did == [("begin", 0), ("land", 3), ("begin", 8), ("land", 11), ("begin", 16), ("land", 19)]
    assert playing == [None] * 3 + [0] * 8 + [8] * 8 + [16] * 5


def test_a_plan_that_takes_longer_than_its_turn_puts_the_next_one_off():
    did, playing = trace(planner(4), 6)
    assert did[:6] == [("begin", 0), ("land", 6), ("begin", 6), ("land", 12), ("begin", 12), ("land", 18)]
    assert playing[5] is None and playing[6] == 0


def test_a_plan_that_follows_begins_when_the_last_chunk_comes_into_play():
    did, _ = trace(planner(4, roll_committed=True), 2, 8)
    assert did[:4] == [("begin", 0), ("land", 2), ("begin", 2), ("land", 4)]


def test_latencies_are_drawn_from_what_was_measured_and_rounded_up():
    rng = np.random.default_rng(0)
    half = latency.Latency("measured", (20.0, 60.0), (1.0, 1.0))
    drawn = [half.periods(rng, 50.0) for _ in range(400)]
    assert set(drawn) == {1, 2} and 150 < drawn.count(1) < 250 and half.median_ms == 20.0
    assert latency.Latency("", (50.0,), (1.0,)).periods(rng, 50.0) == 1
    assert latency.AT_ONCE.periods(rng, 50.0) == 0 and latency.Latency("", (50.1,), (1.0,)).periods(rng, 50.0) == 2


def test_words_for_latencies(tmp_path):
    given = latency.latencies(["0", "12.5"], tmp_path, "")
    assert [(g.name, g.median_ms) for g in given] == [("0 ms", 0.0), ("12.5 ms", 12.5)]
    for word in ("-1", "fast", "nan", "inf"):
        with pytest.raises(EdgewmError, match=f"no latency '{word}'"):
            latency.latencies([word], tmp_path, "")


def test_the_measured_latency_is_that_of_these_very_bytes(tmp_path):
    with pytest.raises(EdgewmError, match="no profile of this bundle") as fault:
        latency.latencies(["measured"], tmp_path, "abc")
    assert "edgewm profile" in fault.value.fix
    found = {"bundle_sha256": "abc", "profile": {"histograms": {"plan_ms": [[30.0, 5], [40.0, 1]]}}}
    (tmp_path / "report.json").write_text(json.dumps(found))
    (measured,) = latency.latencies(["measured"], tmp_path, "abc")
    assert measured == latency.Latency("measured", (30.0, 40.0), (5.0, 1.0), True)
    for text, sha256 in ((json.dumps(found), "another"), ('{"bundle_sha256": "abc", "prof', "abc"), ("[]", "abc")):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(EdgewmError, match="no profile of this bundle"):
            latency.latencies(["measured"], tmp_path, sha256)


def test_latencies_of_files_and_of_the_estimate(tmp_path, monkeypatch):
    file = tmp_path / "board.json"
    file.write_text(json.dumps({"plan_ms": {"p50": 30.0}, "histograms": {"plan_ms": [[30.0, 5], [40.0, 1]]}}))
    assert latency.latencies([str(file)], tmp_path, "") == [latency.Latency("board", (30.0, 40.0), (5.0, 1.0), True)]
    band = {"plan_ms": {"point": 20.0, "low": 15.0, "high": 30.0}}
    file.write_text(json.dumps(band))
    monkeypatch.setattr("edgewm.estimate.verb.estimate", lambda subject: band)
    for word, name in ((str(file), "board"), ("estimated", "estimated")):
        found = latency.latencies([word, "5"], tmp_path, "")
        assert [(f.name, f.median_ms, f.is_gated) for f in found] == [
            (f"{name}, low", 15.0, False), (name, 20.0, False), (f"{name}, high", 30.0, True), ("5 ms", 5.0, False),
        ]  # fmt: skip
    no_times = '{"plan_ms": {"point": 1, "low": -1, "high": 2}}', '{"plan_ms": {"p50": 3}}', "[1]", "{"
    for text in (*no_times, '{"plan_ms": {"point": 1, "low": "?", "high": 2}}'):
        file.write_text(text)
        with pytest.raises(EdgewmError, match="no time of a plan in it") as fault:
            latency.latencies([str(file)], tmp_path, "")
        assert "edgewm estimate --json" in fault.value.fix


# ------------------------------------------------------------------------------------------------ the full model's loop


def manifest(safe: tuple[float, ...] = (0.5, 0.5), **replaced) -> SimpleNamespace:
    action = Port("action", "action", (2,), low=-1.0, high=1.0, safe=safe)
    ports = {"action": (action,), "observation": PORTS[:1], "goal": PORTS[1:2]}
    return SimpleNamespace(planner=dataclasses.replace(PLANNER, **replaced), ports_of=lambda k: ports[k], rate_hz=20.0)


def seen(seed: int = 0) -> dict[str, np.ndarray]:
    return {"pixels": np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)}


def noise(plan: int) -> np.ndarray:
    shape = (PLANNER.iterations, PLANNER.samples, PLANNER.horizon, ACTION)
    return np.random.default_rng(plan).standard_normal(shape, np.float32)


def test_the_full_model_plays_its_plans_and_then_walks_the_ladder():
    parts = latency.of_model(side(Toy()), manifest(), seen(1), noise)
    safe, rows = np.float32([0.5, 0.5]), PLANNER.horizon * PLANNER.action_block
    assert np.array_equal(parts.act(0)[0], safe) and not parts.act(0)[1]
    parts.begin(seen(2), 0)
    parts.land(3)
    played = [parts.act(period) for period in range(3, 3 + rows + 20)]
    chunk = side(Toy()).plan(seen(2), seen(1), noise(0)).reshape(rows, 2)
    assert np.allclose([a for a, _ in played[:rows]], chunk, rtol=0, atol=4 * np.finfo(np.float32).eps)
    assert [fresh for _, fresh in played[:rows]] == [True] * rows
    held, ramp = ladder.HOLD_PERIODS, ladder.RAMP_PERIODS
    assert all(np.array_equal(a, played[rows - 1][0]) and not fresh for a, fresh in played[rows : rows + held])
    distance = [float(np.abs(a - safe).max()) for a, _ in played[rows + held - 1 : rows + held + ramp + 1]]
    assert all(b < a for a, b in itertools.pairwise(distance)) and distance[-1] == 0
    parts.begin(seen(3), 60)
    parts.land(60)
    assert np.array_equal(parts.act(60)[0], safe)  # stopped until a reset


def test_a_chunk_that_follows_waits_for_its_turn():
    rolled = manifest(roll_committed=True)
    parts = latency.of_model(side(Toy()), rolled, seen(1), noise)
    parts.begin(seen(2), 0)
    parts.land(0)
    first, _ = parts.act(0)
    parts.begin(seen(2), 0)
    parts.land(0)
    assert parts.act(0)[1] is False  # the follower is there and waits
    assert parts.act(PLANNER.commit_steps)[1] is True and not np.array_equal(parts.act(PLANNER.commit_steps)[0], first)


# --------------------------------------------------------------------------------------------------------- the curve


class Countdown:
    """Succeeds when the safe value has not been played for too long."""

    max_steps, period_s = 40, 0.05

    @property
    def family(self) -> str:
        return "patient" if self.patience > 2 else "hasty"

    def __init__(self, patience: int):
        self.patience, self.lost, self.moved, self.success = patience, 0, 0, False

    def reset(self, seed: int):
        return seen(seed)

    @property
    def goal(self):
        return seen(1)

    def step(self, action):
        idle = np.array_equal(action, np.float32([0.5, 0.5]))
        self.lost, self.moved = self.lost + idle, self.moved + (not idle)
        self.success = self.success or (self.moved >= 3 and self.lost <= self.patience)
        return seen(0)


def loop(preset=gates.DEFAULT) -> loops.Loop:
    toy = side(Toy())
    subjects = Subjects(toy, toy, PLANNER, "pixels", PORTS[2])
    return loops.Loop(subjects, manifest(), None, [0], preset, 0, quiet, str)


@pytest.fixture
def alike(monkeypatch):
    """The bundle is the full model here."""
    monkeypatch.setattr(loops.Loop, "with_compressed", loops.Loop.with_full)
    monkeypatch.setattr(loops.Loop, "noise", lambda self, seed, plan, planner=None: noise(plan))


def test_the_full_model_searches_as_far_as_it_would(monkeypatch):
    """Not only as far as the bundle does."""
    seen = []
    whole = dataclasses.replace(PLANNER, samples=2 * PLANNER.samples)
    toy = side(Toy())
    monkeypatch.setattr(
        loops, "philox", lambda planner, width, seed, plan: seen.append(planner) or philox(planner, width, seed, plan)
    )
    for larger, expected in ((None, PLANNER), (whole, whole)):
        seen.clear()
        subjects = Subjects(toy, toy, PLANNER, "pixels", PORTS[2], larger)
        loops.Loop(subjects, manifest(), None, [0], gates.DEFAULT, 0, quiet, str).with_full(patient)(3)
        assert seen and set(seen) == {expected}


def patient(seed: int) -> Countdown:
    return Countdown(patience=seed % 5)


def by_latency(late, episodes: int, preset=gates.DEFAULT):
    made = loop(preset)
    return loops.by_latency(made, patient, made.pair(patient), late, episodes)


def test_success_falls_with_latency_and_the_break_even_lies_between(alike):
    late = [
        latency.Latency(name, (ms,), (1.0,), name == "measured")
        for name, ms in (("100 ms", 100.0), ("measured", 150.0), ("1", 400.0))
    ]
    figures, rows = by_latency(late, 40)
    rates = [p["compressed"]["successes"] / p["compressed"]["episodes"] for p in figures["points"]]
    assert [p["ms"] for p in figures["points"]] == [0.0, 100.0, 150.0, 400.0]
    assert rates[0] == 1.0 > rates[1] > rates[2] > rates[3] == 0.0
    edge = figures["break_even_ms"]
    assert 0 < edge < 100 and rows[0]["name"] == "late_loss" and rows[0]["passed"] is False
    assert figures["break_even_periods"] == edge / 50 and figures["fastest_rate_hz"] == 20 * edge / 150


@pytest.mark.parametrize("episodes", [30, 200])
def test_the_verdict_on_the_late_plans_takes_as_many_episodes_as_it_needs(alike, monkeypatch, episodes):
    monkeypatch.setattr(loops, "CURVE_EPISODES", 6)
    in_time = [latency.Latency("estimated, high", (1e-3,), (1.0,), True), latency.Latency("9 ms", (9.0,), (1.0,))]
    made = loop()

    def always(seed: int) -> Countdown:
        return Countdown(patience=9)

    figures, rows = loops.by_latency(made, always, made.pair(always), in_time, episodes)
    assert [p["full"]["episodes"] for p in figures["points"]] == [6, 6, 6] and figures["gated"] == "estimated, high"
    assert figures["break_even_ms"] is None is figures["fastest_rate_hz"]
    played = figures["late"]["full"]["episodes"]
    assert (rows[0]["passed"], played) == (None, 30) if episodes == 30 else rows[0]["passed"] is True and played < 60


def test_the_verdict_is_on_the_slowest_latency_that_is_gated(alike):
    late = [latency.Latency(n, (ms,), (1.0,), gated) for n, ms, gated in
            (("a", 20.0, True), ("b", 150.0, True), ("400 ms", 400.0, False))]  # fmt: skip
    assert by_latency(late, 5)[0]["gated"] == "b"


def test_no_verdict_on_latencies_that_are_nobodys(alike):
    figures, rows = by_latency([latency.Latency("100 ms", (100.0,), (1.0,))], 5)
    assert rows == [] and len(figures["points"]) == 2


def test_success_is_counted_by_family_of_tasks(alike):
    figures, _ = loops.closed_loop(loop(), SimpleNamespace(make=patient, shifts=None), 12, False, ())
    families = figures["closed_loop"]["families"]
    assert families.keys() == {"patient", "hasty"}
    assert sum(f["full"]["episodes"] for f in families.values()) == figures["closed_loop"]["full"]["episodes"]
    assert loops.family_of(lambda seed: SimpleNamespace(reset=seen), 0) is None


@pytest.mark.parametrize(
    ("rates", "expected"), [((1.0, 1.0, 1.0), None), ((1.0, 0.95, 0.75), 125.0), ((0.5, 0.4, 0.3), 0.0)]
)
def test_break_even_is_interpolated(rates, expected):
    points = [
        {"ms": ms, "full": {"successes": 20, "episodes": 20}, "compressed": {"successes": 20 * rate, "episodes": 20}}
        for ms, rate in zip((0.0, 100.0, 200.0), rates, strict=True)
    ]
    assert latency.break_even(points, 0.1) == (None if expected is None else pytest.approx(expected))


def test_shifted_scenes_take_turns_and_are_counted_apart(alike):
    made = loop(gates.NAMED["explore"])
    patience = {"near": 9, "far": -1}
    shifts = {n: SimpleNamespace(make=lambda seed, p=p: Countdown(p)) for n, p in patience.items()}
    source = SimpleNamespace(make=lambda seed: Countdown(9), shifts=lambda: shifts)
    told = []
    made = dataclasses.replace(made, notice=told.append)
    figures, rows = loops.closed_loop(made, source, 30, True, ())
    found = figures["closed_loop"]["shifts"]
    near, far = found["near"]["full"], found["far"]["full"]
    assert near["successes"] == near["episodes"] > 0 == far["successes"]
    assert [(r["name"], r["passed"]) for r in rows] == [("closed_loop_loss", True), ("shifted_loss", True)]
    assert "closed loop: " in told[0] and "30 pairs of episodes, shifted scenes" in told[0]
    assert "passes where a loss of 20 points is excluded with 95 % confidence" in told[0]
    assert abs(near["episodes"] - far["episodes"]) <= 1


def test_periods_to_success_of_one_episode():
    assert loops.played(Countdown(9), seen(), lambda observation, period: np.zeros(2)) == 3
    assert loops.played(Countdown(9), seen(), lambda observation, period: np.float32([0.5, 0.5])) is None
    assert [closed_loop.change(pair) for pair in ((None, 3), (3, None), (3, 4))] == [1, -1, 0]

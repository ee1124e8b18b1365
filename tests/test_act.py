"""The closed loop: what a robot does with a bundle, on a clock of its own, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from functools import partial

import numpy as np
import pytest

from edgewm import act, film
from edgewm import format as ewm_format
from edgewm.errors import EdgewmError
from edgewm.manifest import Manifest
from edgewm.program import Planner, Port
from edgewm.reference import DEFAULT
from edgewm.reference.base import Episode
from edgewm.reference.two_room.arena import STEP_M
from edgewm.reference.two_room.world import TwoRoom

ROOMS = TwoRoom()
PIXELS = Port("pixels", "observation", (1, 64, 64, 3), "u8")
GOAL = Port("goal", "goal", (1, 64, 64, 3), "u8")
ACTION = Port("action", "action", (2,), low=-1.0, high=1.0)
PLANNER = Planner(samples=32, iterations=3, elites=4, horizon=2, action_block=5, commit_steps=5, low=-1.0, high=1.0)
MANIFEST = Manifest("ab", "host", "AS_IS", "fp32", 20.0, 1, PLANNER, (PIXELS, GOAL, ACTION), {})


def disc_of(pixels) -> np.ndarray:
    """Where the red disc is, in metres."""
    red = (pixels.reshape(64, 64, 3).astype(int) @ [1, -1, -1]) > 20
    y, x = np.nonzero(red)
    return (np.array([x.mean(), y.mean()]) + 0.5) / 64


class Seeing:
    """A runtime that looks for the disc and steers straight to the goal; it notes what it was asked."""

    def __init__(self, clock):
        self.clock, self.plans, self.stamps = clock, [], []

    def reset(self, seed):
        self.seed = seed

    def set_goal(self, *, goal):
        assert goal.shape == (1, 64, 64, 3) and goal.dtype == np.uint8
        self.goal = disc_of(goal)

    def observe(self, stamp_ns, *, pixels):
        self.stamps.append(stamp_ns)
        self.at = disc_of(pixels)

    def plan(self):
        self.plans.append(self.clock[0])
        self.direction = self.goal - self.at

    def act(self, now_ns):
        assert now_ns == self.clock[0]
        return np.clip(self.direction / STEP_M, -1, 1).astype(np.float32), None


def open_room(seed: int) -> Episode:
    """A world whose start and goal share a room."""
    while True:
        made = ROOMS.make(seed)
        if not ROOMS.in_subset(made.state[None], made.goal_state[None]):
            return made
        seed += 1000


def test_a_loop_that_sees_reaches_the_goal_and_plans_when_its_chunk_is_played():
    made, clock = open_room(1), [0]
    seed = next(s for s in (1 + 1000 * k for k in range(99)) if np.array_equal(ROOMS.make(s).state, made.state))
    runtime = Seeing(clock)
    steps = list(act.play(made, seed, act.compiled_policy(runtime, clock, MANIFEST, made.goal, seed)))
    assert made.success and len(steps) < made.max_steps
    assert runtime.seed == seed and runtime.stamps == [50_000_000 * (k + 1) for k in range(len(steps))]
    assert runtime.plans == runtime.stamps[::5]
    assert [step.plan_ms is not None for _, step in steps] == [k % 5 == 0 for k in range(len(steps))]


def test_the_full_models_loop_plays_its_plan_in_the_robots_units():
    from edgewm.judge.latency import of_model, timed
    from edgewm.judge.sides import Side

    port = Port("action", "action", (2,), low=-3.0, high=9.0, scale=(2.0, 2.0), offset=(1.0, 0.0))
    side = Side(
        encode=lambda o: np.zeros(1), predict=lambda z, a: z[:, -1], plan=lambda o, g, n: None, window=1,
        score=lambda z, g, c: np.square(c - 1.0).sum((1, 2)),
    )  # fmt: skip
    manifest, seen, planned = dataclasses.replace(MANIFEST, ports=(PIXELS, GOAL, port)), {"pixels": np.zeros(1)}, []
    shape = (PLANNER.iterations, PLANNER.samples, PLANNER.horizon, PLANNER.action_block * 2)

    def noise(plan: int) -> np.ndarray:
        planned.append(plan)
        return np.random.default_rng(plan).standard_normal(shape, np.float32)

    policy = timed(of_model(side, manifest, seen, noise), PLANNER, lambda: 0)
    played = [(policy(seen, period), len(planned)) for period in range(6)]
    assert [plans for _, plans in played] == [1, 1, 1, 1, 1, 2]
    mean = np.mean([action for action, _ in played], 0)
    assert 2 * 0.3 + 1 < mean[0] <= 3.0 and 2 * 0.3 < mean[1] <= 2.0


def test_simulators_by_name(monkeypatch):
    assert act.world_of("reference").__self__.name == DEFAULT
    assert act.world_of("reference/two_room").__self__.name == "two_room"

    def make(seed: int) -> Episode:
        return ROOMS.make(seed)

    mine = types.ModuleType("mine")
    mine.arena = make
    monkeypatch.setitem(sys.modules, "mine", mine)
    assert act.world_of("mine:arena") is make
    for env, words in (
        ("maze", "no simulator 'maze'"),
        ("mine:other", "mine has no 'other'"),
        ("nowhere9:x", "no module named nowhere9"),
        (":x", "'' is no name of a module"),
        ("test_act:", "no simulator 'test_act:'"),
        ("mine:__name__", "'__name__' of mine is no function"),
    ):
        with pytest.raises(EdgewmError, match=words):
            act.world_of(env)


def test_a_world_that_does_not_fit_the_bundle_is_refused():
    other = Manifest(
        "ab", "host", "AS_IS", "fp32", 20.0, 1, PLANNER, (Port("pixels", "observation", (1, 32, 32, 3), "u8"),), {}
    )
    with pytest.raises(
        EdgewmError, match=r"shows shape \(64, 64, 3\) on port 'pixels', the bundle wants \(1, 32, 32, 3\)"
    ):
        act.fits(ROOMS.make(0), "reference", other)
    slow = Manifest("ab", "host", "AS_IS", "fp32", 10.0, 1, PLANNER, (PIXELS,), {})
    with pytest.raises(EdgewmError, match="simulator runs at 20 Hz, the bundle at 10 Hz") as fault:
        act.fits(ROOMS.make(0), "reference", slow)
    assert fault.value.fix.endswith("or build with --rate-hz 20")
    act.fits(ROOMS.make(0), "reference", MANIFEST)
    blank = types.SimpleNamespace(reset=ROOMS.make(0).reset, goal={}, period_s=0.05)
    with pytest.raises(EdgewmError, match="the simulator's goal shows nothing on port 'pixels'"):
        act.fits(blank, "mine:blank", MANIFEST)


def test_the_verb_acts_films_and_reports(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    manifest = {
        "target": "host", "mode": "AS_IS", "precision": "fp32", "rate_hz": 20.0, "threads": 1,
        "planner": dataclasses.asdict(PLANNER), "ports": [dataclasses.asdict(p) for p in MANIFEST.ports],
    }  # fmt: skip
    bundle = tmp_path / "out"
    bundle.mkdir()
    (bundle / "model.ewm").write_bytes(ewm_format.pack({"manifest": json.dumps(manifest).encode()}, "t", bytes(32)))

    class Opened(Seeing):
        def __init__(self, path, threads, period_ns, clock):
            assert (path, threads, period_ns) == (bundle, 1, 50_000_000)
            self.tell = clock
            super().__init__([0])

        def act(self, now_ns):
            self.clock = [self.tell()]
            return super().act(now_ns)

        def stats(self):
            return {"plans": len(self.plans)}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("edgewm.binding.Runtime", Opened)
    monkeypatch.setattr(TwoRoom, "max_steps", 12)
    done = []
    gif = tmp_path / "acts.gif"
    act_two = partial(act.run, bundle, env="reference/two_room", episodes=2)
    found = act_two(gif=gif, progress=lambda stage, share: done.append(share))
    assert found["episodes"] == 2 and 0 <= found["successes"] <= 2 and done == [0.5, 1.0]
    assert found["plan_ms"]["plans"] == found["counts"]["plans"] > 0
    for place, words in ((tmp_path, "place is a directory"), (tmp_path / "no" / "a.gif", "film cannot be written")):
        done.clear()
        with pytest.raises(EdgewmError, match=words):
            act_two(gif=place, progress=lambda stage, share: done.append(share))
        assert not done
    assert gif.stat().st_size > 1000 and "episodes reached the goal" in (bundle / "report.html").read_text()


def test_a_film_that_fails_to_be_written_leaves_nothing(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    made = film.Film(MANIFEST)
    made.add(ROOMS.make(0), ROOMS.make(0).reset(0), made._every, 1.0)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image.Image, "save", full)
    with pytest.raises(EdgewmError, match="the film cannot be written: No space left on device"):
        made.save(tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_contexts_is_told_which_arrays_to_record(tmp_path):
    from safetensors.numpy import save_file

    from edgewm import validate
    from edgewm.judge import recorded, sources

    model = types.SimpleNamespace(
        ports_of=lambda kind: {"observation": (PIXELS,), "goal": (GOAL,), "action": (ACTION,)}[kind]
    )
    words = "pixels (N, 64, 64, 3) uint8, goal (N, 64, 64, 3) uint8"
    assert recorded.wanted(model) == words
    fault = validate.lacking("plan", model, sources.Source())
    assert fault.what == "no recorded observations and goals to plan from for this model"
    assert f"--data FILE.safetensors with the arrays {words}" in fault.fix
    save_file({"pixels": np.zeros((0, 64, 64, 3), np.uint8)}, tmp_path / "a.safetensors")
    with pytest.raises(EdgewmError, match="array 'pixels' has no rows"):
        recorded.recorded(tmp_path / "a.safetensors", model)

"""The reference models: their worlds, their recipe, their checkpoints."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewm import reference
from edgewm.errors import EdgewmError
from edgewm.reference.base import PIXELS
from edgewm.reference.pushing import physics, policy
from edgewm.reference.pushing.physics import PUCK, TEE
from edgewm.reference.pushing.world import AHEAD, PUSH_T, turn
from edgewm.reference.two_room import arena, data
from edgewm.reference.worlds import WORLDS, world_by_word, world_named, world_of

SHIPPED = tuple(name for name in WORLDS if (reference.checkpoint_of(name) / "weights.safetensors").is_file())
every_world = pytest.mark.parametrize("world", WORLDS.values(), ids=lambda world: world.name)
PLACES = ("x", "y", "disc_x", "disc_y", "puck_x", "puck_y", "tee_x", "tee_y")
every_model = pytest.mark.parametrize("shipped", SHIPPED, indirect=True)


@pytest.fixture
def one_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shipped(request):
    """The name of a world and its model."""
    pytest.importorskip("torch_world")
    from edgewm.reference import model

    return request.param, model.load(reference.checkpoint_of(request.param))


def config_of(path: Path) -> dict:
    return json.loads((path / "config.json").read_text())


# --- any world ------------------------------------------------------------------------------------------------


def test_importing_the_worlds_needs_no_torch():
    code = "import sys, edgewm.reference.worlds; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@every_world
def test_same_seed_same_episode_other_seed_other_episode(world):
    def play(seed: int) -> np.ndarray:
        episode = world.make(seed)
        actions = np.random.default_rng(0).uniform(-1, 1, (6, 2)).astype(np.float32)
        return np.stack([episode.goal["pixels"], *(episode.step(a)["pixels"] for a in actions)])

    assert np.array_equal(play(1), play(1))
    assert not np.array_equal(play(1), play(2))


@every_world
def test_an_episode_starts_over_is_drawn_for_people_and_refuses_what_is_no_action(world):
    episode = world.make()
    first = episode.reset(5)["pixels"]
    assert first.shape == (PIXELS, PIXELS, 3) and first.dtype == np.uint8
    for _ in range(3):
        episode.step(np.float32([1, 1]))
    assert episode.steps == 3 and not np.array_equal(episode.state, episode.goal_state)
    large = episode.render(200)
    assert large.shape == (200, 200, 3) and large.dtype == np.uint8 and large.std() > 1
    assert np.array_equal(episode.reset(5)["pixels"], first) and episode.steps == 0
    for action in (np.zeros(3), [np.nan, 0]):
        with pytest.raises(EdgewmError, match="pass two finite numbers"):
            episode.step(action)


@every_world
def test_tasks_ask_for_something_and_no_start_is_a_goal(world):
    starts, goals = world.sample_tasks(np.random.default_rng(0), 40)
    assert not world.reached(starts, goals).any() and world.reached(goals, goals).all()
    assert 0 < world.in_subset(starts, goals).mean() < 1
    for observation, goal in world.contexts(4, seed=3):
        assert not np.array_equal(observation["pixels"], goal["pixels"])


@every_world
def test_random_and_idle_hands_stay_under_a_fifth(world):
    starts, goals = world.sample_tasks(np.random.default_rng(1), 80)
    rng = np.random.default_rng(2)
    for size in (0.0, 1.0):
        at, done = starts, np.zeros(len(starts), bool)
        for _ in range(world.max_steps):
            at = world.move(at, rng.uniform(-size, size, (len(at), 2)))
            done |= world.reached(at, goals)
        assert done.mean() < 0.2


@every_world
def test_held_out_data_have_the_declared_shapes_and_repeat(world):
    (pixels, actions, states), *_ = world.rollouts(2, 7, seed=1)
    assert pixels.shape == (8, PIXELS, PIXELS, 3) and pixels.dtype == np.uint8
    assert actions.shape == (7, 2) and np.abs(actions).max() <= 1 and len(states) == 8
    assert world.features(states).shape == (8, len(world.names))
    again, *_ = world.rollouts(2, 7, seed=1)
    assert np.array_equal(pixels, again[0])
    frames, actions, shown = world.gallery(10, 0)
    assert frames.shape[0] == 11 and len(actions) == 10 and len(shown) > 100 and shown.dtype == np.uint8


@every_world
def test_training_windows_are_a_function_of_seed_and_step(world):
    first, again = world.batch(0, 3, 1, 4, 3, 5), world.batch(0, 3, 1, 4, 3, 5)
    other, before = world.batch(0, 4, 1, 4, 3, 5), world.batch(0, -1, 1, 4, 3, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1]) and not np.array_equal(first[1], before[1])
    pixels, actions, states = first
    assert pixels.shape == (4, 3, PIXELS, PIXELS, 3) and actions.shape == (4, 3, 10)
    assert np.array_equal(pixels[:, 1], world.observe(states[:, 1]))
    at = states[:, 0]
    for k in range(5):
        at = world.move(at, actions[:, 0, 2 * k : 2 * k + 2])
    assert np.array_equal(at, states[:, 1])


def test_words_name_worlds_and_paths_lead_to_them():
    assert world_by_word("reference") is WORLDS[reference.DEFAULT]
    assert [world_by_word(f"reference/{name}") for name in WORLDS] == list(WORLDS.values())
    assert [world_by_word(word) for word in ("references", "reference/maze", "puck", "", "reference/")] == [None] * 5
    for name, world in WORLDS.items():
        folder = reference.checkpoint_of(name)
        assert world_of(str(folder)) is world_of(str(folder / "weights.safetensors")) is world_named(name) is world
    assert world_of("elsewhere") is None
    with pytest.raises(EdgewmError, match="no world 'maze'"):
        world_named("maze")


# --- TwoRoom --------------------------------------------------------------------------------------------------


def drive(layout: np.ndarray, start: list[float], action: list[float], periods: int = 40) -> np.ndarray:
    at, layout = np.float32([start]), layout[None]
    for _ in range(periods):
        at = arena.move(layout, at, np.float32([action]))
        assert not arena.blocked(layout, at).any()
    return at[0]


@pytest.mark.parametrize("direction", [1, -1])
def test_the_wall_blocks_and_the_door_lets_pass(direction: int):
    layout = np.float32([0.5, 0.5])
    near, far = 0.5 - 0.3 * direction, 0.5 + 0.3 * direction
    stopped = drive(layout, [near, 0.1], [direction, 0])
    assert abs(stopped[0] - (0.5 - direction * (arena.WALL_HALF_M + arena.RADIUS_M))) < 1e-3
    passed = drive(layout, [near, 0.5], [direction, 0])
    assert direction * (passed[0] - far) > 0


def test_a_disc_in_the_doorway_stops_at_the_jamb_and_none_leaves_the_arena():
    layout = np.float32([0.5, 0.5])
    in_door = drive(layout, [0.5, 0.5], [0, 1])
    assert abs(in_door[1] - (0.5 + arena.DOOR_HALF_M - arena.RADIUS_M)) < 1e-3
    corner = drive(layout, [0.2, 0.2], [-1, -1])
    assert np.allclose(corner, arena.RADIUS_M)


def test_no_policy_enters_a_wall():
    layouts, actions, states = data.trajectories(np.random.default_rng(0), 300, 60)
    for t in range(61):
        assert not arena.blocked(layouts, states[:, t]).any()
    assert np.abs(actions).max() <= 1
    assert (np.abs(np.diff(states, axis=1)) <= arena.STEP_M + 1e-5).all()
    left = states[:, :, 0] < layouts[:, None, 0]
    assert (left[:, 1:] != left[:, :-1]).any(1).mean() > 0.5  # the door is used


def test_goals_are_far_from_starts_and_mostly_in_the_other_room():
    layouts, starts, goals = arena.sample_tasks(np.random.default_rng(0), 1000)
    assert (np.linalg.norm(starts - goals, axis=1) >= arena.MIN_TASK_M).all()
    other = (starts[:, 0] < layouts[:, 0]) != (goals[:, 0] < layouts[:, 0])
    assert other.mean() > 0.5


def test_success_is_sticky_and_needs_the_goal():
    episode = WORLDS["two_room"].make(4)
    while not episode.success and episode.steps < episode.max_steps:
        at, layout, goal = episode.state[None, :2], episode.state[None, 2:], episode.goal_state[None, :2]
        episode.step(data.steer(layout, at, goal)[0])
    assert episode.success
    episode.step(np.float32([1, 0]))
    episode.step(np.float32([1, 0]))
    assert episode.success


# --- pushing --------------------------------------------------------------------------------------------------


def push(body: physics.Body, state: list[float], action: list[float], periods: int) -> np.ndarray:
    """`(periods + 1, 5)` states."""
    path = [np.float32([state])]
    for _ in range(periods):
        path.append(physics.move(body, path[-1], np.float32([action])))
    return np.concatenate(path)


def test_a_centred_push_moves_the_puck_straight_and_no_further_than_the_disc():
    path = push(PUCK, [0.2, 0.5, 0.4, 0.5, 0], [1, 0], 20)
    assert np.allclose(path[:, [1, 3]], 0.5, atol=1e-5) and path[-1, 0] == pytest.approx(0.2 + 20 * physics.STEP_M)
    gap = path[:, 2] - path[:, 0]
    assert gap[-1] == pytest.approx(PUCK.reach_m + PUCK.disc_m, abs=1e-5)
    assert (np.diff(path[:, 2]) >= 0).all() and path[0, 2] == path[1, 2] < path[-1, 2]


def test_a_push_beside_the_centre_turns_the_tee_the_right_way():
    for side in (-1, 1):  # on the bar, from above: the right end turns it clockwise, as y is down
        path = push(TEE, [0.5 + side * 0.09, 0.30, 0.5, 0.5, 0], [0, 1], 12)
        assert side * path[-1, 4] > 0.1 and path[-1, 3] > 0.5


def test_the_puck_never_turns():
    _, states = policy.trajectories(PUCK, np.random.default_rng(0), 64, 40)
    assert np.abs(states[:, :, 4]).max() < 1e-5


@pytest.mark.parametrize("body", [PUCK, TEE], ids=lambda b: b.name)
def test_nothing_leaves_the_table_nothing_moves_untouched_and_bodies_stay_apart(body):
    _, states = policy.trajectories(body, np.random.default_rng(3), 200, 60)
    flat = states.reshape(-1, 5)
    assert physics.depth(body, flat).max() < 0.1 * body.disc_m
    corners = flat[:, None, 2:4] + physics.rotate(
        body.corners[None], np.cos(flat[:, 4, None]), np.sin(flat[:, 4, None])
    )
    slack = body.rounding_m - 0.1 * body.disc_m
    assert corners.min() >= slack and corners.max() <= 1 - slack
    assert flat[:, :2].min() >= body.disc_m - 1e-6 and flat[:, :2].max() <= 1 - body.disc_m + 1e-6
    moved = np.abs(np.diff(states[:, :, 2:], axis=1)).max(2) > 1e-4
    apart = physics.depth(body, states[:, :-1].reshape(-1, 5)).reshape(moved.shape) < -np.sqrt(2) * physics.STEP_M
    assert not (moved & apart).any() and moved.mean() > 0.1


@given(
    x=st.floats(-0.2, 0.2), y=st.floats(-0.2, 0.2), angle=st.floats(-7, 7), other=st.floats(-7, 7),
)  # fmt: skip
@settings(deadline=None)
def test_a_shapes_distance_turns_with_it_and_points_outwards(x, y, angle, other):
    point = np.float32([[x, y]])
    distance, normal = physics.surface(TEE, point)
    assert np.linalg.norm(normal) == pytest.approx(1, abs=1e-4)
    boxes = [np.maximum(np.abs(point[0] - [bx, by]) - [w, h], 0) for bx, by, w, h in TEE.boxes]
    outside = min(np.hypot(*b) for b in boxes)
    assert max(float(distance[0]), 0) == pytest.approx(outside, abs=1e-6)
    further, _ = physics.surface(TEE, point + 0.001 * normal)
    assert further[0] > distance[0] or distance[0] < 0.001 - 0.015  # inside, the nearest face may be another box's
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    there_and_back = physics.rotate(physics.rotate(point, cos, sin), cos, -sin)
    assert np.allclose(there_and_back, point, atol=1e-6)
    assert 0 <= turn(np.float64(angle), np.float64(other)) <= np.pi
    assert turn(np.float64(angle), np.float64(angle + 2 * np.pi)) == pytest.approx(0, abs=1e-9)


def test_a_goal_of_push_t_asks_for_the_angle_too():
    goal = np.float32([[0.1, 0.1, 0.5, 0.5, 3.0]])
    for place, angle, reached in ((0.0, 0.0, True), (0.03, 0.3, True), (0.05, 0.0, False), (0.0, 0.4, False)):
        at = goal + np.float32([[0.5, 0.5, place, 0, angle - 2 * np.pi]])
        assert PUSH_T.reached(at, goal)[0] == reached


def test_a_task_is_two_moments_of_one_push():
    world = WORLDS["puck"]
    starts, goals = world.sample_tasks(np.random.default_rng(0), 50)
    assert (world.distance(starts, goals) >= world.min_move_m).all()
    assert (np.abs(goals[:, :2] - starts[:, :2]).max(1) <= AHEAD * physics.STEP_M + 1e-4).all()


def test_contact_agrees_with_pymunk():
    """gym-pusht's T under a kinematic disc, speed damped away in each step: pymunk's solver, where it is installed.

    The two may differ by what the disc moves in one substep, as an impulse solver removes an overlap a step later.
    """
    pymunk = pytest.importorskip("pymunk")
    finer = 10 * physics.SUBSTEPS
    unit, substep_s, slack_m = physics.UNIT_M, physics.PERIOD_S / finer, physics.STEP_M / physics.SUBSTEPS
    for start, action in (([0.59, 0.30], [0, 0.6]), ([0.30, 0.47], [0.6, 0]), ([0.44, 0.75], [0.1, -0.6])):
        space = pymunk.Space()
        space.damping, space.iterations, space.collision_slop = 0, 50, 0
        space.collision_bias = 0  # all overlap is removed in the next step, as here
        tee = pymunk.Body(1, 3000)
        space.add(tee)
        for x, y, w, h in TEE.boxes:
            corners = [((x + i * w) / unit, (y + j * h) / unit) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            space.add(pymunk.Poly(tee, corners))
        tee.position = 256, 256
        disc = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        disc.position = start[0] / unit, start[1] / unit
        space.add(disc, pymunk.Circle(disc, TEE.disc_m / unit))
        disc.velocity = tuple(a * physics.STEP_M / unit / physics.PERIOD_S for a in action)
        for _ in range(15 * finer):
            space.step(substep_s)
        ours = push(TEE, [*start, 0.5, 0.5, 0], action, 15)
        assert np.hypot(*(ours[-1, 2:4] - 0.5)) > 3 * slack_m and abs(ours[-1, 4]) > 3 * slack_m / TEE.gyration_m
        assert np.hypot(*(np.array(tee.position) * unit - ours[-1, 2:4])) < slack_m
        assert abs(tee.angle - ours[-1, 4]) < slack_m / TEE.gyration_m


# --- training -------------------------------------------------------------------------------------------------


def tiny_config(world: str = "two_room") -> dict:
    config = copy.deepcopy(config_of(reference.checkpoint_of("two_room")))
    config["world"] = world
    config["model"] |= {
        "embed_dim": 16,
        "encoder": {"depth": 1, "num_heads": 1, "mlp_ratio": 1.0},
        "predictor": {"depth": 1, "num_heads": 2, "head_dim": 8, "mlp_dim": 16},
        "proj_dim": 16,
        "sigreg": {"lamb": 0.09, "num_slices": 16},
    }
    phases = [
        {"steps": 2, "learning_rate": [1e-3, 1e-3], "sigreg_weight": 0.09, "chained_weight": 0.0},
        {"steps": 2, "learning_rate": [1e-3, 1e-5], "sigreg_weight": 0.02, "chained_weight": 1.0, "frames": 6},
    ]
    config["training"] |= {"phases": phases, "layouts_per_batch": 2, "windows_per_layout": 2, "save_every_steps": 3}
    config["training"]["batch_norm_batches"] = 1
    return config


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("world", "precision"), [("two_room", "fp32"), ("puck", "bf16"), ("push_t", "bf16")])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, one_thread, world: str, precision: str):
    pytest.importorskip("torch_world")
    from edgewm.reference import train

    config = tiny_config(world)
    config["training"]["precision"] = precision
    train.train(config, tmp_path / "whole")
    assert train.settings(config["training"], 3)["sigreg_weight"] == 0.02
    train.train(config, tmp_path / "cut", stop_after=2)
    (tmp_path / "cut" / ".step-000003.partial").mkdir()  # what a kill while saving leaves behind
    train.train(config, tmp_path / "cut", resume=True)
    for name in ("weights.safetensors", "step-000004/model.safetensors"):
        assert sha256(tmp_path / "whole" / name) == sha256(tmp_path / "cut" / name)
    assert config_of(tmp_path / "cut")["world"] == world


def test_the_command_takes_the_recipe_from_a_config_and_a_second_run_is_refused(tmp_path: Path, capsys):
    pytest.importorskip("torch_world")
    from edgewm.reference import train

    config = tiny_config("puck")
    config["training"]["phases"] = config["training"]["phases"][:1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run"), "--seed", "7"]
    assert train.main(command) == 0
    found = config_of(tmp_path / "run")
    assert found["training"]["seed"] == 7 and found["trained"]["steps_done"] == 2
    assert train.main(command) == 2 and "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize("name", SHIPPED)
def test_its_planner_is_that_of_robot_json(name: str):
    folder, world = reference.checkpoint_of(name), WORLDS[name]
    robot, planner = json.loads((folder / "robot.json").read_text()), reference.planner_of(folder)
    assert planner["commit_steps"] * robot["action_block"] == robot["planner"]["commit_steps"]
    assert planner["bounds"] == (world.action_low, world.action_high)
    assert robot["rate_hz"] == 1 / world.period_s
    step_m = {"two_room": arena.STEP_M}.get(name, physics.STEP_M)
    assert robot["action"]["unit"] == f"{step_m / world.period_s:g} m/s"


# --- checkpoints ----------------------------------------------------------------------------------------------


def test_what_ships_is_small_and_named_by_its_recipe():
    assert reference.DEFAULT in SHIPPED and reference.checkpoint_of(reference.DEFAULT) == reference.PATH
    sizes = [(reference.checkpoint_of(name) / "weights.safetensors").stat().st_size for name in SHIPPED]
    assert sum(sizes) <= 8 * 2**20
    for name in SHIPPED:
        config = config_of(reference.checkpoint_of(name))
        assert config["world"] == name
        assert config["trained"]["steps_done"] == sum(p["steps"] for p in config["training"]["phases"])


@every_model
def test_the_checkpoint_has_the_declared_shapes(shipped):
    import torch

    from edgewm.reference.model import normalise

    name, model = shipped
    m = config_of(reference.checkpoint_of(name))["model"]
    assert m["action_block"] == reference.planner_of(reference.checkpoint_of(name))["action_block"]
    pixels = torch.from_numpy(np.stack([c["pixels"] for c, _ in WORLDS[name].contexts(2)]))
    x = normalise(pixels)
    assert x.shape == (2, 3, 64, 64) and x.min() >= -1 and x.max() <= 1
    z = model.encode(x[:, None])
    assert z.shape == (2, 1, m["embed_dim"])
    actions = torch.zeros(2, 5, m["action_block"] * m["env_action_dim"])
    out = model.rollout(z, actions)
    assert out.shape == (2, 6, m["embed_dim"]) and torch.isfinite(out).all()
    assert not model.training and all(p.dtype == torch.float32 for p in model.parameters())


@every_model
def test_latents_say_where_things_are(shipped):
    from edgewm.reference.evaluate import probe

    name, model = shipped
    r2 = probe(model, WORLDS[name], seed=1, n_fit=400, n_test=100)
    assert min(v for k, v in r2.items() if k in PLACES) > 0.9


@every_model
def test_encode_and_predict_can_be_exported(shipped):
    import torch

    name, model = shipped

    class Encode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            return self.model.encode(pixels)

    class Predict(Encode):
        def forward(self, z, actions):
            return self.model.predict(z, actions)

    d, a = config_of(reference.checkpoint_of(name))["model"]["embed_dim"], 10
    torch.export.export(Encode(), (torch.zeros(1, 1, 3, 64, 64),))
    torch.export.export(Predict(), (torch.zeros(4, 3, d), torch.zeros(4, 3, a)))


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_load_refuses_weights_that_do_not_fit(tmp_path: Path, fault: str):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    from edgewm.reference import model

    shutil.copytree(reference.PATH, tmp_path / "c")
    weights = load_file(tmp_path / "c" / "weights.safetensors")
    if fault == "missing":
        del weights["pos_embed"]
    elif fault == "unexpected":
        weights["another"] = torch.zeros(1)
    else:
        weights["pos_embed"] = torch.zeros(1)
    save_file(weights, tmp_path / "c" / "weights.safetensors")
    with pytest.raises(EdgewmError, match=fault):
        model.load(tmp_path / "c")


def test_load_names_the_missing_file(tmp_path: Path):
    pytest.importorskip("torch_world")
    from edgewm.reference import model

    with pytest.raises(EdgewmError, match=r"no config\.json"):
        model.load(tmp_path)


# --- evaluation -----------------------------------------------------------------------------------------------


def test_wilson_interval_matches_known_values():
    pytest.importorskip("torch_world")
    from edgewm.reference.evaluate import wilson

    assert wilson(0, 200) == pytest.approx((0.0, 0.01885), abs=1e-4)
    assert wilson(180, 200) == pytest.approx((0.8506, 0.9344), abs=1e-3)


def test_a_loop_over_all_episodes_counts_as_one_episode_does():
    pytest.importorskip("torch_world")
    from edgewm.reference.base import HELD_OUT
    from edgewm.reference.evaluate import closed_loop

    world = WORLDS["puck"]

    def straight(at: np.ndarray, goals: np.ndarray) -> np.ndarray:
        return policy.push(PUCK, at, goals[:, 2:4], np.zeros(len(at)))

    found = closed_loop(world, lambda at, goals: straight(at, goals)[:, None], 12, 3)
    starts, goals = world.sample_tasks(np.random.default_rng([HELD_OUT, 3, 3]), 12)
    alone = 0
    for at, goal in zip(starts[:, None], goals[:, None], strict=True):
        for _ in range(world.max_steps):
            at = world.move(at, straight(at, goal))
            if world.reached(at, goal)[0]:
                alone += 1
                break
    assert found["successes"] == alone > 6 and found["episodes"] == 12 and found["plans"] <= 12 * world.max_steps


def test_the_card_holds_every_figure(tmp_path: Path):
    pytest.importorskip("torch_world")
    from edgewm.reference import evaluate, train

    config = tiny_config("puck")
    train.train(config, tmp_path / "checkpoint")
    shutil.copy(reference.checkpoint_of("two_room") / "robot.json", tmp_path / "checkpoint" / "robot.json")
    small = ["--samples", "4", "--elites", "2", "--iterations", "1", "--horizon", "2", "--commit-steps", "2"]
    path = ["--path", str(tmp_path / "checkpoint"), "--json", str(tmp_path / "found.json")]
    assert evaluate.main([*path, "--episodes", "3", "--card", *small]) == 0
    found, text = json.loads((tmp_path / "found.json").read_text()), (tmp_path / "MODEL_CARD.md").read_text()
    assert found["world"] == "puck" and set(found["closed_loop"]) == set(evaluate.POLICIES)
    assert "a pushed puck" in text and f"{found['parameters']:,} parameters" in text
    assert all(f"{name} {value:.4f}" in text for name, value in found["probe_r2"].items())
    assert all(f"| {name} | {c['successes']}/3 |" in text for name, c in found["closed_loop"].items())
    assert max(map(len, text.splitlines())) <= 120

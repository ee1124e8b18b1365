"""The reference model: its world, its recipe, its checkpoint."""

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

from edgewm import reference
from edgewm.errors import EdgewmError
from edgewm.reference import data, world


@pytest.fixture
def one_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shipped():
    pytest.importorskip("torch_world")
    from edgewm.reference import model

    return model.load(reference.PATH)


def config_of(path: Path) -> dict:
    return json.loads((path / "config.json").read_text())


# --- world ----------------------------------------------------------------------------------------------------


def test_importing_the_reference_needs_no_torch():
    code = "import sys, edgewm.reference, edgewm.reference.world; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_seed_same_episode_other_seed_other_episode():
    def play(seed: int) -> np.ndarray:
        w = world.make(seed)
        actions = np.random.default_rng(0).uniform(-1, 1, (10, 2)).astype(np.float32)
        return np.stack([w.goal["pixels"], *(w.step(a)["pixels"] for a in actions)])

    assert np.array_equal(play(1), play(1))
    assert not np.array_equal(play(1), play(2))


def test_reset_by_seed_repeats_the_observation():
    w = world.make()
    first = w.reset(5)["pixels"]
    w.step(np.float32([1, 1]))
    assert np.array_equal(w.reset(5)["pixels"], first)
    assert first.shape == (world.PIXELS, world.PIXELS, 3) and first.dtype == np.uint8


def push(layout: np.ndarray, start: list[float], action: list[float], periods: int = 40) -> np.ndarray:
    at, layout = np.float32([start]), layout[None]
    for _ in range(periods):
        at = world.move(layout, at, np.float32([action]))
        assert not world.blocked(layout, at).any()
    return at[0]


@pytest.mark.parametrize("direction", [1, -1])
def test_the_wall_blocks_and_the_door_lets_pass(direction: int):
    layout = np.float32([0.5, 0.5])
    near, far = 0.5 - 0.3 * direction, 0.5 + 0.3 * direction
    stopped = push(layout, [near, 0.1], [direction, 0])
    assert abs(stopped[0] - (0.5 - direction * (world.WALL_HALF_M + world.RADIUS_M))) < 1e-3
    passed = push(layout, [near, 0.5], [direction, 0])
    assert direction * (passed[0] - far) > 0


def test_a_disc_in_the_doorway_stops_at_the_jamb_and_none_leaves_the_arena():
    layout = np.float32([0.5, 0.5])
    in_door = push(layout, [0.5, 0.5], [0, 1])
    assert abs(in_door[1] - (0.5 + world.DOOR_HALF_M - world.RADIUS_M)) < 1e-3
    corner = push(layout, [0.2, 0.2], [-1, -1])
    assert np.allclose(corner, world.RADIUS_M)


def test_no_policy_enters_a_wall():
    layouts, actions, states = data.trajectories(np.random.default_rng(0), 300, 60)
    for t in range(61):
        assert not world.blocked(layouts, states[:, t]).any()
    assert np.abs(actions).max() <= 1
    assert (np.abs(np.diff(states, axis=1)) <= world.STEP_M + 1e-5).all()
    left = states[:, :, 0] < layouts[:, None, 0]
    assert (left[:, 1:] != left[:, :-1]).any(1).mean() > 0.5  # the door is used


def test_goals_are_far_from_starts_and_mostly_in_the_other_room():
    layouts, starts, goals = world.sample_tasks(np.random.default_rng(0), 1000)
    assert (np.linalg.norm(starts - goals, axis=1) >= world.MIN_TASK_M).all()
    other = (starts[:, 0] < layouts[:, 0]) != (goals[:, 0] < layouts[:, 0])
    assert other.mean() > 0.5
    for observation, goal in world.contexts(8, seed=3):
        assert not np.array_equal(observation["pixels"], goal["pixels"])


def test_success_is_sticky_and_needs_the_goal():
    w = world.make(4)
    while not w.success and w.steps < w.max_steps:
        w.step(data.steer(w._layout, w._at, w.goal_state[None])[0])
    assert w.success
    w.step(np.float32([1, 0]))
    w.step(np.float32([1, 0]))
    assert w.success
    assert w.render(200).shape == (200, 200, 3)


def test_held_out_rollouts_have_the_declared_shapes_and_repeat():
    (pixels, actions, states), *_ = world.rollouts(2, 7, seed=1)
    assert pixels.shape == (8, 64, 64, 3) and pixels.dtype == np.uint8
    assert actions.shape == (7, 2) and states.shape == (8, 2)
    again, *_ = world.rollouts(2, 7, seed=1)
    assert np.array_equal(pixels, again[0])


# --- training -------------------------------------------------------------------------------------------------


def tiny_config() -> dict:
    from edgewm.reference.train import CONFIG

    config = copy.deepcopy(CONFIG)
    config["model"] |= {
        "embed_dim": 16,
        "encoder": {"depth": 1, "num_heads": 1, "mlp_ratio": 1.0},
        "predictor": {"depth": 1, "num_heads": 2, "head_dim": 8, "mlp_dim": 16},
        "proj_dim": 16,
        "sigreg": {"lamb": 0.09, "num_slices": 16},
    }
    phases = [
        {"steps": 2, "learning_rate": [1e-3, 1e-3], "sigreg_weight": 0.09, "chained_weight": 0.0},
        {"steps": 2, "learning_rate": [1e-3, 1e-5], "sigreg_weight": 0.02, "chained_weight": 1.0},
    ]
    config["training"] |= {"phases": phases, "layouts_per_batch": 2, "windows_per_layout": 2, "save_every_steps": 3}
    config["training"]["batch_norm_batches"] = 1
    return config


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, one_thread):
    pytest.importorskip("torch_world")
    from edgewm.reference import train

    config = tiny_config()
    train.train(config, tmp_path / "whole")
    assert train.settings(config["training"], 3)["sigreg_weight"] == 0.02
    train.train(config, tmp_path / "cut", stop_after=2)
    (tmp_path / "cut" / ".step-000003.partial").mkdir()  # what a kill while saving leaves behind
    train.train(config, tmp_path / "cut", resume=True)
    for name in ("weights.safetensors", "step-000004/model.safetensors"):
        assert sha256(tmp_path / "whole" / name) == sha256(tmp_path / "cut" / name)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path):
    pytest.importorskip("torch_world")
    from edgewm.reference import train

    train.train(tiny_config(), tmp_path, stop_after=1)
    with pytest.raises(EdgewmError, match="already holds a run"):
        train.train(tiny_config(), tmp_path)


def test_its_planner_is_that_of_robot_json():
    robot = json.loads((reference.PATH / "robot.json").read_text())
    assert reference.PLANNER["commit_steps"] * robot["action_block"] == robot["planner"]["commit_steps"] == 25
    assert reference.PLANNER["bounds"] == (world.World.action_low, world.World.action_high)
    assert robot["rate_hz"] == 1 / world.PERIOD_S
    assert robot["action"]["unit"] == f"{world.STEP_M / world.PERIOD_S:g} m/s"


# --- checkpoint -----------------------------------------------------------------------------------------------


def test_the_checkpoint_has_the_declared_shapes(shipped):
    import torch

    from edgewm.reference.model import normalise

    m = config_of(reference.PATH)["model"]
    assert (reference.PATH / "weights.safetensors").stat().st_size <= 8 * 2**20
    assert m["action_block"] == reference.PLANNER["action_block"]
    pixels = torch.from_numpy(np.stack([c["pixels"] for c, _ in world.contexts(2)]))
    x = normalise(pixels)
    assert x.shape == (2, 3, 64, 64) and x.min() >= -1 and x.max() <= 1
    z = shipped.encode(x[:, None])
    assert z.shape == (2, 1, m["embed_dim"])
    actions = torch.zeros(2, 5, m["action_block"] * m["env_action_dim"])
    out = shipped.rollout(z, actions)
    assert out.shape == (2, 6, m["embed_dim"]) and torch.isfinite(out).all()
    assert not shipped.training and all(p.dtype == torch.float32 for p in shipped.parameters())


def test_latents_say_where_the_disc_is(shipped):
    from edgewm.reference.evaluate import probe

    r2 = probe(shipped, seed=1, n_fit=400, n_test=100)
    assert min(r2["x"], r2["y"]) > 0.95


def test_encode_and_predict_can_be_exported(shipped):
    import torch

    class Encode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = shipped

        def forward(self, pixels):
            return self.model.encode(pixels)

    class Predict(Encode):
        def forward(self, z, actions):
            return self.model.predict(z, actions)

    d, a = config_of(reference.PATH)["model"]["embed_dim"], 10
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


def test_wilson_interval_matches_known_values():
    pytest.importorskip("torch_world")
    from edgewm.reference.evaluate import wilson

    assert wilson(0, 200) == pytest.approx((0.0, 0.01885), abs=1e-4)
    assert wilson(180, 200) == pytest.approx((0.8506, 0.9344), abs=1e-3)

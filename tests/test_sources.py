"""Where evidence comes from: recorded data, the worlds that ship, and what can be derived from either."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_validate import model

from edgewm.errors import EdgewmError
from edgewm.judge import derived, recorded, sources
from edgewm.program import Port


def test_recorded_trajectories_serve_the_horizon_suite_and_are_checked(tmp_path):
    file, rng = tmp_path / "recorded.safetensors", np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 13, 4, 4, 3), dtype=np.uint8)
    actions = rng.uniform(-1, 1, (5, 12, 2)).astype(np.float32)
    save_file({"rollout_pixels": frames, "rollout_action": actions}, file)
    found = sources.source_of("some/checkpoint", model(), file)
    assert found.contexts is None
    for seen, played, _ in found.rollouts(3, 8, 0):
        (which,) = {i for i in range(5) for t in range(5) if np.array_equal(frames[i, t : t + 9], seen)}
        assert any(np.array_equal(actions[which, t : t + 8], played) for t in range(5))
    with pytest.raises(EdgewmError, match="trajectories of 12 periods"):
        next(found.rollouts(3, 13, 0))
    save_file({"rollout_pixels": frames, "rollout_action": actions[:, :9].copy()}, file)
    with pytest.raises(EdgewmError, match="5 trajectories of 13 frames and 5 of 9 actions") as fault:
        recorded.recorded(file, model())
    assert fault.value.fix == "record T + 1 frames for T actions of each trajectory"
    save_file({"rollout_pixels": frames}, file)
    with pytest.raises(EdgewmError, match="no array 'rollout_action'"):
        recorded.recorded(file, model())
    save_file({"rollout_pixels": frames, "rollout_action": np.zeros((5, 12, 3), np.float32)}, file)
    with pytest.raises(EdgewmError, match="rows of 'rollout_action' have shape"):
        recorded.recorded(file, model())


def test_recorded_data_serve_as_contexts_and_are_checked(tmp_path):
    file = tmp_path / "recorded.safetensors"
    frames = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    save_file({"pixels": frames, "goal": frames[::-1].copy()}, file)
    found = list(sources.source_of("some/checkpoint", model(), file).contexts(5, 0))
    assert len(found) == 5 and found[0][0]["pixels"].shape == (4, 4, 3)
    save_file({"pixels": frames}, file)
    with pytest.raises(EdgewmError, match="no array 'goal'"):
        recorded.recorded(file, model())
    save_file({"pixels": frames[:, :2].copy(), "goal": frames}, file)
    with pytest.raises(EdgewmError, match="rows of 'pixels' have shape"):
        recorded.recorded(file, model())
    for other, message in (
        (frames.transpose(0, 3, 1, 2).copy(), r"rows of 'pixels' have shape \(3, 4, 4\)"),
        (frames.astype(np.float32) / 255, "rows of 'pixels' are float32"),
        (frames[:5].copy(), "contexts do not match: 5 of 'pixels', 7 of 'goal'"),
    ):
        save_file({"pixels": other, "goal": frames}, file)
        with pytest.raises(EdgewmError, match=message):
            recorded.recorded(file, model())
    save_file({"pixels": frames[:, None].copy(), "goal": frames}, file)
    assert len(list(recorded.recorded(file, model())["contexts"](9, 0))) == 7
    file.write_bytes(b"no")
    with pytest.raises(EdgewmError, match="not a safetensors file"):
        recorded.recorded(file, model())


def test_states_beside_recorded_trajectories_are_checked_and_probed(tmp_path):
    file, rng = tmp_path / "recorded.safetensors", np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 13, 4, 4, 3), dtype=np.uint8)
    arrays = {"rollout_pixels": frames, "rollout_action": rng.uniform(-1, 1, (5, 12, 2)).astype(np.float32)}
    values = frames.reshape(5, 13, -1)[..., :3].astype(np.float32)
    save_file(arrays | {"rollout_state": values}, file)
    found = sources.source_of("some/checkpoint", model(), file)
    assert found.longest == 12 and found.branches is None
    seen, shown, of = found.states(21, 0)
    assert seen.shape == (21, 4, 4, 3) and np.array_equal(seen.reshape(21, -1)[:, :3], shown)
    assert sorted(np.bincount(of)) == [4, 4, 4, 4, 5]  # of all trajectories as many
    frame = {(*shown,): which for which in range(5) for shown in values[which]}
    assert len({(of[i], frame[(*shown[i],)]) for i in range(21)}) == 5
    save_file(arrays | {"rollout_state": values[:, :9].copy()}, file)
    with pytest.raises(EdgewmError, match=r"'rollout_state' has shape \(5, 9, 3\)"):
        recorded.recorded(file, model())


@pytest.mark.parametrize("world", ["two_room", "puck", "push_t"])
def test_a_world_brings_everything_the_judge_asks_for(world):
    found = sources.source_of(f"reference/{world}", model())
    observation, goal = next(iter(found.contexts(1, 0)))
    assert observation["pixels"].shape == goal["pixels"].shape == (64, 64, 3)
    frames, actions, gallery = found.gallery(20, 0)
    assert frames.shape == (21, 64, 64, 3) and actions.shape == (20, 2) and len(gallery) > 500
    pictures, states = found.states(4, 0)
    _, _, along = next(iter(found.rollouts(1, 10, 0)))
    assert pictures.shape == (4, 64, 64, 3) and states.shape == (4, len(found.names)) == (4, along.shape[1])
    clips = list(found.impossible(8, 20, 0))
    assert len(clips) == 8 and {"teleport", "frozen", "pass-through"} <= {c.kind for c in clips}
    for clip in clips:
        assert clip.actions.shape == (20, 2) and np.array_equal(clip.possible[0], clip.impossible[0])
        assert (clip.possible != clip.impossible).any()
    branch = next(iter(found.branches(1, 10, 0)))
    assert branch.frames.shape == (2, 11, 64, 64, 3) and np.array_equal(*branch.frames[:, 0])
    assert (branch.actions[0] != branch.actions[1]).any() and (branch.frames[0, -1] != branch.frames[1, -1]).any()
    shifts = found.shifts()
    assert shifts.keys() == {"colours", "size", "speed", "starts"}
    for shift in shifts.values():
        assert len(list(shift.contexts(2, 0))) == 2 and next(iter(shift.rollouts(1, 5, 0)))[0].shape == (6, 64, 64, 3)
        episode = shift.make(0)
        assert episode.step(np.float32([0.5, 0]))["pixels"].shape == (64, 64, 3) and not episode.success


# ----------------------------------------------------------------------------------------------------------- derived


def made(n: int, steps: int, seed: int = 0):
    """Trajectories whose first pixel counts the periods and whose second names the trajectory."""
    for i in range(n):
        frames = np.zeros((steps + 1, 4, 4, 3), np.uint8)
        frames[:, 0, 0, 0], frames[:, 0, 0, 1] = np.arange(steps + 1), i
        yield frames, np.zeros((steps, 2)), None


def test_impossible_clips_are_cut_together_from_recorded_ones_or_stand_still():
    found = derived.completed(sources.Source(rollouts=made), model())
    clips = list(found.impossible(6, 12, 0))
    assert [c.kind for c in clips] == ["cut", "frozen"] * 3
    for i, clip in enumerate(clips):
        assert np.array_equal(clip.possible[:3], clip.impossible[:3])
        if clip.kind == "cut":
            assert clip.impossible[-1, 0, 0].tolist() == [12, (i - 1) % 6, 0]
        else:
            assert clip.impossible[-1, 0, 0, 0] in range(3, 7) and np.ptp(clip.impossible[7:, 0, 0, 0]) == 0
    assert found.states(3, 0) is None  # nothing lies beside the frames


def test_recorded_frames_show_what_is_imagined():
    found = derived.completed(sources.Source(rollouts=made), model())
    frames, actions, shown = found.gallery(7, 0)
    assert len(frames) == 8 == len(actions) + 1 and frames[-1, 0, 0, 0] == 7
    assert shown.shape == (derived.SHOWN, 4, 4, 3) and len({frame[0, 0, 1] for frame in shown}) == derived.SHOWN // 8
    two = SimpleNamespace(ports_of=lambda kind: (Port("a", "observation", (1, 4, 4, 3), "u8"),) * 2)
    assert derived.completed(sources.Source(rollouts=made), two).gallery is None


def test_pictures_are_shifted_where_nobody_shifts_a_scene():
    frames = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pair = {"a": frames, "b": np.ones(3)}, {"a": frames}
    found = derived.completed(sources.Source(contexts=lambda n, seed: [pair]), model())
    shifts = found.shifts()
    seen = {name: next(iter(shift.contexts(1, 0))) for name, shift in shifts.items()}
    assert seen.keys() == {"darker", "colours", "camera"}
    assert seen["darker"][0]["a"].mean() < frames.mean() and np.array_equal(seen["colours"][0]["a"], frames[..., ::-1])
    assert np.array_equal(seen["camera"][1]["a"][1:, 1:], frames[:-1, :-1])
    assert all(o["b"].tolist() == [1, 1, 1] for o, _ in seen.values())
    assert all(shift.rollouts is None and shift.make is None for shift in shifts.values())


def test_a_model_without_a_camera_has_no_shifted_pictures():
    vector = SimpleNamespace(ports_of=lambda kind: (Port("state", "observation", (1, 3)),))
    assert derived.completed(sources.Source(contexts=lambda n, seed: []), vector).shifts is None


def test_a_module_of_ones_own_gives_what_it_declares(tmp_path, monkeypatch):
    lines = "names = 'not these'", "longest = 25", "states = 3", "def contexts(n, seed): ...", "def make(seed): ..."
    (tmp_path / "own_source.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    found = sources.source_of("own_source:model", model())
    assert found.contexts is not None and found.make is not None and found.longest == 25
    assert found.names == () and found.states is None and found.rollouts is None and found.shifts is not None


def test_what_somebody_brought_is_not_derived():
    given = {"states": made, "impossible": made, "gallery": made, "shifts": dict}
    mine = sources.Source(contexts=lambda n, seed: [], rollouts=made, **given)
    assert derived.completed(mine, model()) == mine


def test_recorded_data_replace_the_scenes_that_belong_to_a_world(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    save_file({"pixels": frames, "goal": frames}, tmp_path / "a.safetensors")
    found = sources.source_of("reference", model(), tmp_path / "a.safetensors")
    assert found.shifts().keys() == derived.PICTURES.keys() and found.make is not None
    own = sources.source_of("reference", model()).gallery.__self__
    assert found.gallery.__self__ == own  # nothing was recorded to show instead
    rolled = {"rollout_pixels": frames[None], "rollout_action": np.zeros((1, 6, 2), np.float32)}
    save_file(rolled, tmp_path / "b.safetensors")
    shown = sources.source_of("reference", model(), tmp_path / "b.safetensors").gallery(6, 0)[0]
    assert np.array_equal(shown, frames)

"""Recorded episodes: every layout gives what was recorded, draws are honest, and what does not fit is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import HZ, as_lerobot, as_npz, as_robomimic, as_rows, recorded
from safetensors.numpy import save_file

from edgewm.data import identity, is_recording, opened
from edgewm.data.pictures import sized
from edgewm.errors import EdgewmError
from edgewm.judge import episodes as judged
from edgewm.judge.sources import learned_from, source_of
from edgewm.program import Planner, Port

PLANNER = Planner(horizon=2, action_block=1)
LAYOUTS: dict[str, Callable[[Path, list], None]] = {
    "npz": as_npz,
    "rows by length": as_rows,
    "rows by end": partial(as_rows, ends=True),
    "robomimic": as_robomimic,
    "lerobot v2.1": partial(as_lerobot, version="v2.1"),
    "lerobot v3.0": partial(as_lerobot, version="v3.0"),
}


def model(side: int = 4, planner: Planner = PLANNER, camera: str = "u8", **action) -> SimpleNamespace:
    ports = (
        Port("pixels", "observation", (1, side, side, 3), camera), Port("goal", "goal", (1, side, side, 3), camera),
        Port("action", "action", (2,), **action),
    )  # fmt: skip
    return SimpleNamespace(planner=planner, ports_of=lambda kind: tuple(p for p in ports if p.kind == kind))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_what_was_recorded(layout, tmp_path):
    written = recorded()
    LAYOUTS[layout](tmp_path, written)
    assert is_recording(tmp_path)
    found = opened(tmp_path)
    assert len(found) == len(written)
    for one, was in zip(found, written, strict=True):
        n = len(was.action)
        assert np.array_equal(one.pictures(0, n), was.pixels) and np.array_equal(one.pictures(2, 4), was.pixels[2:4])
        assert one.action.dtype == np.float32 and np.array_equal(one.action, was.action[:-1])
        assert one.state is None if layout == "robomimic" else np.array_equal(one.state, was.state)
        assert one.rate_hz == (HZ if "lerobot" in layout else 0)


def test_rows_without_an_end_are_no_episode(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is missing; pip install 'edgewm[data]'")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["pixels"], file["action"] = np.zeros((4, 4, 4, 3), np.uint8), np.zeros((4, 2))
        file["episode_ends"] = np.zeros(0, np.int64)
    assert opened(tmp_path) == []
    with pytest.raises(EdgewmError, match="0 episodes, none of 1 periods"):
        source_of("some/checkpoint", model(), tmp_path)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_frames_of_a_video_are_those_of_the_rows(version, tmp_path):
    """Each picture is of one grey, so that what a codec loses cannot make one into another."""
    written = [one._replace(pixels=np.empty((len(one.action), 16, 16, 3), np.uint8)) for one in recorded()]
    for i, one in enumerate(written):
        one.pixels[:] = (80 * i + 8 * np.arange(len(one.action)))[:, None, None, None]
    as_lerobot(tmp_path, written, version, is_video=True)
    for one, was in zip(opened(tmp_path), written, strict=True):
        for start, stop in ((0, len(was.action)), (3, 4), (1, 5)):
            seen = one.pictures(start, stop).astype(int)
            assert seen.shape == was.pixels[start:stop].shape and np.abs(seen - was.pixels[start:stop]).max() < 4
    file = min(tmp_path.rglob("*.mp4"))
    file.write_bytes(file.read_bytes()[:64])
    with pytest.raises(EdgewmError, match="video cannot be decoded"):
        opened(tmp_path)[0].pictures(0, 1)


# -------------------------------------------------------------------------------------------------------------- draws


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-2, 9), min_size=1, max_size=6), st.integers(0, 40), st.booleans())
def test_no_moment_is_drawn_twice_and_evidence_is_of_different_episodes(room, n, apart):
    found = judged.drawn(np.random.default_rng(0), np.array(room), n, apart)
    there = sum(r > 0 for r in room) if apart else sum(max(r, 0) for r in room)
    assert len(found) == len(set(found)) == min(n, there)
    assert all(0 <= start < room[i] for i, start in found)
    assert not apart or len({i for i, _ in found}) == len(found)


def test_contexts_and_trajectories_are_cut_out_of_episodes(tmp_path):
    written = recorded((7, 5, 9, 3))
    as_npz(tmp_path, written)
    source = source_of("some/checkpoint", model(), tmp_path)
    pairs = list(source.contexts(9, 0))
    assert len(pairs) == 4  # one of each episode
    reach = PLANNER.horizon * PLANNER.action_block
    for observation, goal in pairs:
        (i, at), (j, later) = (x["pixels"][0, 0, :2].astype(int) for x in (observation, goal))
        assert i == j and PLANNER.action_block <= later - at <= reach
        assert np.array_equal(goal["pixels"], written[i].pixels[later])
    again = [(o["pixels"].tobytes(), g["pixels"].tobytes()) for o, g in source.contexts(9, 0)]
    assert again == [(o["pixels"].tobytes(), g["pixels"].tobytes()) for o, g in pairs]
    for seen, played, shown in source.rollouts(9, 3, 0):
        i, at = seen[0, 0, 0, :2].astype(int)
        assert np.array_equal(seen, written[i].pixels[at : at + 4])
        assert np.array_equal(played, written[i].action[at : at + 3])
        assert np.array_equal(shown, written[i].state[at : at + 4])
    assert len(list(source.rollouts(9, 3, 0))) == 3 and len(list(source.rollouts(9, 8, 0))) == 1
    assert source.longest == 2 and source.shifts is not None and source.impossible is not None
    pictures, states, episode = source.states(12, 0)
    assert np.array_equal(pictures[:, 0, 0, :2], states[:, :2]) and len(states) == 12
    assert np.array_equal(pictures[:, 0, 0, 0], episode) and np.bincount(episode).tolist() == [3] * 4  # all of them
    learning = source_of("some/checkpoint", model(), tmp_path, learning=True)
    assert len(list(learning.contexts(100, 0))) == sum(len(e.action) - 1 for e in written)
    with pytest.raises(EdgewmError, match="the longest of 4 episodes has 8 periods") as fault:
        list(source.rollouts(1, 9, 0))
    assert fault.value.fix == "record 9 at least: as far as a plan looks ahead"


def test_one_episode_in_eight_is_held_out_and_the_others_learned_from(tmp_path):
    written = recorded((7,) * 17)
    as_npz(tmp_path, written)

    def seen(source) -> set[int]:
        pictures = [o["pixels"] for o, _ in source.contexts(999, 0)] + [p for p, *_ in source.rollouts(999, 2, 0)]
        return {int(p.reshape(-1, 4, 4, 3)[0, 0, 0, 0]) for p in pictures}

    source = learned_from("some/checkpoint", model(), tmp_path)
    assert seen(source.apart) == {0, 8, 16} and seen(source) == set(range(17)) - {0, 8, 16}
    assert seen(source_of("some/checkpoint", model(), tmp_path, apart=True)) == {0, 8, 16}
    assert source.moments == {"contexts": 14 * 6, "frames": 14 * 7}
    one = tmp_path / "one"
    as_npz(one, written[:1])
    with pytest.raises(EdgewmError, match="one episode cannot be learned from and held out") as fault:
        learned_from("some/checkpoint", model(), one)
    assert fault.value.fix == "record more: 8 at least"


def test_rows_of_arrays_are_held_out_too(tmp_path):
    file, pictures = tmp_path / "a.safetensors", np.zeros((9, 4, 4, 3), np.uint8)
    pictures += np.arange(9, dtype=np.uint8)[:, None, None, None]
    moving = {"rollout_pixels": np.stack([pictures] * 9, 1), "rollout_action": np.zeros((9, 8, 2), np.float32)}
    save_file({"pixels": pictures, "goal": pictures, **moving}, file)

    def seen(source) -> tuple[set[int], set[int]]:
        trajectories = source.rollouts(99, 2, 0)
        return {int(o["pixels"].max()) for o, _ in source.contexts(99, 0)}, {int(p.max()) for p, *_ in trajectories}

    source = learned_from("some/checkpoint", model(), file)
    assert seen(source.apart) == ({0, 8}, {0, 8}) and seen(source) == (set(range(1, 8)), set(range(1, 8)))
    assert source.moments == {"contexts": 7, "frames": 7 * 9} and learned_from("a/b", model(), None).apart is None


def test_pictures_are_resized_to_the_camera(tmp_path):
    as_npz(tmp_path, recorded((5,), side=6))
    observation, goal = next(source_of("some/checkpoint", model(side=3), tmp_path).contexts(1, 0))
    assert observation["pixels"].shape == goal["pixels"].shape == (3, 3, 3)
    stripes = np.repeat(np.arange(0, 250, 50, dtype=np.uint8), 3).reshape(1, 1, 5, 3).repeat(8, 1)
    assert np.array_equal(sized(stripes, 4, 5), stripes[:, :4]) and sized(stripes, 8, 5).base is None
    assert np.ptp(sized(stripes, 8, 1)) == 0 and abs(int(sized(stripes, 8, 1)[0, 0, 0, 0]) - 100) <= 1  # all of them


def test_a_recording_is_known_by_its_contents(tmp_path):
    as_npz(tmp_path / "a", recorded())
    as_npz(tmp_path / "b", recorded())
    assert is_recording(tmp_path / "a.npz") and not is_recording(tmp_path / "a.safetensors")
    assert len(opened(tmp_path / "a" / "0001.npz")) == 1
    (tmp_path / "b" / ".hidden").write_text("of a file manager")
    assert identity(tmp_path / "a") == identity(tmp_path / "b") != identity(Path(f"{tmp_path}/a#front"))
    as_npz(tmp_path / "b", recorded(seed=1))
    assert identity(tmp_path / "a") != identity(tmp_path / "b")
    with pytest.raises(EdgewmError, match="no such file or directory"):
        identity(tmp_path / "c")


# ----------------------------------------------------------------------------------------------------------- refusals


def refused(path: Path | str, **given) -> EdgewmError:
    with pytest.raises(EdgewmError) as fault:
        source_of("some/checkpoint", model(**given), Path(path))
    return fault.value


@pytest.mark.parametrize(("changed", "what"), [
    ({"action": np.zeros((7, 3))}, "actions have 3 numbers, the model's have 2"),
    ({"action": np.zeros((5, 2))}, "7 pictures and 5 actions"),
    ({"action": np.full((7, 2), "x")}, "'action' holds <U1"),
    ({"action": np.float32([[0, 0], [0, np.inf], *[[0, 0]] * 5])}, "action 1 is not finite"),
    ({"state": np.full((7, 1), np.nan)}, "state 0 is not finite"),
    ({"state": np.zeros((6, 1))}, "7 pictures and 6 states"),
    ({"pixels": np.zeros((7, 4, 4, 4), np.uint8)}, "pictures of shape (4, 4, 4)"),
    ({"pixels": np.zeros((7, 4, 4, 3), np.float32)}, "pictures of float32"),
    ({"pixels": np.zeros((1, 4, 4, 3), np.uint8), "action": np.zeros((1, 2))}, "1 episodes, none of 1 periods"),
])  # fmt: skip
def test_episodes_that_do_not_fit_are_told(changed, what, tmp_path):
    (one,) = recorded((7,))
    arrays = {"pixels": one.pixels, "action": one.action, **changed}
    np.savez(tmp_path / "0.npz", **arrays)
    assert what in refused(tmp_path).what


def test_what_is_there_is_told_where_something_is_missing(tmp_path):
    fault = refused(tmp_path)
    assert fault.what == "no recorded episodes in a layout that is read: there are none"
    assert all(words in fault.fix for words in ("*.npz", "ep_len", "robomimic", "v2.0, v2.1 or v3.0"))
    np.savez(tmp_path / "0.npz", image=np.zeros(3), action=np.zeros(3))
    assert refused(tmp_path).what == "no 'pixels': there are action, image"
    assert refused(f"{tmp_path}#front").what == "no 'front': there are action, image"
    (tmp_path / "0.npz").write_bytes(b"no archive")
    assert "npz file cannot be read" in refused(tmp_path).what
    np.savez(tmp_path / "0.npz", pixels=recorded((3,))[0].pixels, action=np.array([{}, {}, {}]))
    assert "npz file cannot be read" in refused(tmp_path).what  # objects are never loaded
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"codebase_version": "v1.6", "features": {}, "data_path": ""}')
    assert "episodes in several layouts" in refused(tmp_path).what
    (tmp_path / "0.npz").unlink()
    fault = refused(tmp_path)
    assert fault.what == "a LeRobot dataset of version v1.6" and "v2.0, v2.1, v3.0 are read" in fault.fix


def test_a_model_of_other_senses_or_another_rate_is_told(tmp_path):
    as_npz(tmp_path / "npz", recorded())
    fault = refused(tmp_path / "npz", planner=replace(PLANNER, action_block=9))
    assert "3 episodes, none of 9 periods" in fault.what
    assert "a model that sees a picture and whose goal is another" in refused(tmp_path / "npz", camera="f32").what
    as_lerobot(tmp_path / "lerobot", recorded(), "v3.0")
    fault = refused(tmp_path / "lerobot", rate_hz=25.0)
    assert fault.what == "recorded at 10 Hz, the model acts at 25 Hz"


def test_damaged_hdf5_is_told(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is missing; pip install 'edgewm[data]'")
    as_rows(tmp_path, recorded())
    with h5py.File(tmp_path / "expert.h5", "a") as file:
        file["ep_len"][0] = 99
    assert "reach beyond the 21 rows" in refused(tmp_path).what
    with h5py.File(tmp_path / "expert.h5", "a") as file:
        del file["ep_len"]
    assert refused(tmp_path).what == "no 'ep_len': there are action, ep_offset, pixels, state"
    with h5py.File(tmp_path / "expert.h5", "a") as file:
        file["ep_len"], held = [7, 5, 9], file["pixels"][:]
        del file["pixels"]
        file.create_dataset("pixels", data=held, chunks=held.shape, compression=300, allow_unknown_filter=True)
    fault = refused(tmp_path)
    assert "HDF5 filter that is missing: number 300" in fault.what and fault.fix == "pip install hdf5plugin"
    (tmp_path / "expert.h5").write_bytes(b"no")
    assert "HDF5 file cannot be read" in refused(tmp_path).what


def test_a_camera_of_several_is_named(tmp_path):
    written = recorded()
    as_robomimic(tmp_path, written, ("left_image", "right_image"))
    fault = refused(tmp_path)
    assert fault.what == "2 cameras: left_image, right_image" and "--data PATH#CAMERA" in fault.fix
    assert "no camera 'top'" in refused(f"{tmp_path}#top").what
    assert np.array_equal(opened(Path(f"{tmp_path}#right_image"))[1].pictures(0, 5), written[1].pixels)
    as_robomimic(tmp_path, written, ())
    assert refused(tmp_path).what == "no pictures: there are robot0_eef_pos"


def test_damaged_lerobot_datasets_are_told(tmp_path):
    as_lerobot(tmp_path, recorded(), "v2.1")
    listed, info = tmp_path / "meta" / "episodes.jsonl", tmp_path / "meta" / "info.json"
    whole = listed.read_text()
    listed.write_text(whole.replace('"length": 5', '"length": 6'))
    assert refused(tmp_path).what == "5 rows, 6 are listed, in order"
    listed.write_text("no")
    assert "list of episodes cannot be read" in refused(tmp_path).what
    listed.write_text(whole)
    facts = json.loads(info.read_text())
    info.write_text(json.dumps({**facts, "data_path": "data/{nobody_knows}"}))
    assert "data_path is 'data/{nobody_knows}'" in refused(tmp_path).what
    info.write_text(json.dumps({**facts, "features": {}}))
    assert refused(tmp_path).what == "no 'action': there are none"
    info.write_text(json.dumps({**facts, "fps": 0}))
    assert refused(tmp_path).what == "info.json lacks features or fps"
    info.write_text("[]")
    assert "info.json is damaged" in refused(tmp_path).what
    info.write_text(json.dumps(facts))
    rows = tmp_path / "data" / "chunk-000" / "episode_000001.parquet"
    rows.write_bytes(rows.read_bytes()[:50])
    assert "parquet file cannot be read" in refused(tmp_path).what


def test_what_is_not_installed_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    fault = refused(tmp_path)
    assert fault.what == "an HDF5 file needs h5py" and fault.fix == "pip install 'edgewm[data]'"

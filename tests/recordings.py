"""Small recordings of one world in every layout that is read, as people's own tools write them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

Array = np.ndarray
HZ = 10


class Recorded(NamedTuple):
    """pixels (T, H, W, 3), action (T, 2) and state (T, 3); the last action leads nowhere."""

    pixels: Array
    action: Array
    state: Array


def recorded(lengths: tuple[int, ...] = (7, 5, 9), side: int = 4, seed: int = 0) -> list[Recorded]:
    """Episodes whose first bytes and first state tell which picture of which episode it is."""
    rng, made = np.random.default_rng(seed), []
    for i, n in enumerate(lengths):
        pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        state = rng.normal(size=(n, 3)).astype(np.float32)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = i, np.arange(n)
        state[:, 0], state[:, 1] = i, np.arange(n)
        made.append(Recorded(pixels, rng.uniform(-1, 1, (n, 2)).astype(np.float32), state))
    return made


def as_npz(path: Path, episodes: list[Recorded]) -> None:
    path.mkdir(exist_ok=True)
    for i, one in enumerate(episodes):
        np.savez_compressed(path / f"{i:04d}.npz", **one._asdict())


def as_rows(path: Path, episodes: list[Recorded], ends: bool = False) -> None:
    """stable-worldmodel: its last action of an episode is no number, its pictures may have the channels first."""
    h5py = pytest.importorskip("h5py", reason="h5py is missing; pip install 'edgewm[data]'")
    path.mkdir(exist_ok=True)
    lengths = np.array([len(e.action) for e in episodes])
    action = np.concatenate([np.concatenate([e.action[:-1], [[np.nan, np.nan]]]) for e in episodes])
    with h5py.File(path / "expert.h5", "w") as file:
        file["pixels"] = np.moveaxis(np.concatenate([e.pixels for e in episodes]), -1, 1 if ends else -1)
        file["action"], file["state"] = action, np.concatenate([e.state for e in episodes])
        if ends:
            file["episode_ends"] = np.cumsum(lengths)
        else:
            file["ep_len"], file["ep_offset"] = lengths, np.cumsum(lengths) - lengths


def as_robomimic(path: Path, episodes: list[Recorded], cameras: tuple[str, ...] = ("agentview_image",)) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is missing; pip install 'edgewm[data]'")
    path.mkdir(exist_ok=True)
    with h5py.File(path / "demo.hdf5", "w") as file:
        for i, one in enumerate(episodes):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"], demo["states"] = one.action.astype(np.float64), one.state
            demo["obs/robot0_eef_pos"] = one.state
            for name in cameras:
                demo[f"obs/{name}"] = one.pixels


def as_lerobot(path: Path, episodes: list[Recorded], version: str, is_video: bool = False) -> None:
    """v2.1 or v3.0; in v3.0 all episodes share a file."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is missing; pip install 'edgewm[data]'")
    parquet, camera, is_v3 = pytest.importorskip("pyarrow.parquet"), "observation.image", version == "v3.0"
    feature = {"dtype": "video" if is_video else "image", "shape": list(episodes[0].pixels.shape[1:])}
    info = {
        "codebase_version": version, "fps": HZ, "chunks_size": 1000, "total_episodes": len(episodes),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            camera: feature, "action": {"dtype": "float32", "shape": [2]},
            "observation.state": {"dtype": "float32", "shape": [3]},
            "observation.depth": {**feature, "info": {"video.is_depth_map": True}},
        },
    }  # fmt: skip
    if is_v3:
        info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    lengths = [len(e.action) for e in episodes]
    rows = [range(a, a + n) for a, n in zip(np.cumsum([0, *lengths]), lengths, strict=False)]
    tables = []
    for i, one in enumerate(episodes):
        columns = {
            "action": one.action.tolist(), "observation.state": one.state.tolist(),
            "episode_index": [i] * lengths[i], "frame_index": list(range(lengths[i])),
        }  # fmt: skip
        if not is_video:
            columns[camera] = [{"bytes": png(p), "path": f"frame-{t}.png"} for t, p in enumerate(one.pixels)]
        tables.append(pa.table(columns))
    listed = [{"episode_index": i, "length": n, "tasks": ["push"]} for i, n in enumerate(lengths)]
    _write(path / "meta/info.json", json.dumps(info))
    if not is_v3:
        _write(path / "meta/episodes.jsonl", "\n".join(map(json.dumps, listed)) + "\n")
        files = [([i], {"episode_chunk": 0, "episode_index": i}) for i in range(len(episodes))]
    else:
        files = [(list(range(len(episodes))), {"chunk_index": 0, "file_index": 0})]
        for one, span in zip(listed, rows, strict=True):
            one |= {"data/chunk_index": 0, "data/file_index": 0}
            one |= {f"videos/{camera}/{k}": 0 for k in ("chunk_index", "file_index")} if is_video else {}
            one |= {f"videos/{camera}/from_timestamp": span.start / HZ} if is_video else {}
        parquet.write_table(pa.Table.from_pylist(listed), _folder(path / "meta/episodes/chunk-000/file-000.parquet"))
    for those, names in files:
        file = _folder(path / info["data_path"].format(**names))
        parquet.write_table(pa.concat_tables([tables[i] for i in those]), file)
        if is_video:
            seen = np.concatenate([episodes[i].pixels for i in those])
            as_video(_folder(path / info["video_path"].format(video_key=camera, **names)), seen)


def as_video(file: Path, pixels: Array) -> None:
    """Frames (N, H, W, 3) at HZ, all of them differences to a first one but every fifth."""
    av = pytest.importorskip("av", reason="av is missing; pip install 'edgewm[data]'")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=HZ)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt, stream.bit_rate, stream.codec_context.gop_size = "yuv420p", 4_000_000, 5
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def png(picture: Array, mode: str = "RGB") -> bytes:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(held, "png")
    return held.getvalue()


def _folder(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _write(file: Path, text: str) -> None:
    _folder(file).write_text(text)

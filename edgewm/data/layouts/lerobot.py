"""LeRobot's datasets, v2.0, v2.1 and v3.0: rows in parquet, pictures in videos or beside the rows, facts in meta/.

meta/info.json gives the version, the rate, the features and the templates of paths. In v2 an episode is a file of rows
and a file for each camera; meta/episodes.jsonl lists them. In v3.0 a file holds several episodes, of rows or of video;
meta/episodes/*/*.parquet says for each which files, and at what second of a video it begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EdgewmError
from ..episode import Episode, Pictures, episode, lacking, needed, picked
from ..pictures import decoded
from ..video import frames

Array = np.ndarray
LOOKS_FOR = "meta/info.json with codebase_version v2.0, v2.1 or v3.0 (LeRobot)"
ENDINGS = ()
INFO, EPISODES = Path("meta/info.json"), Path("meta/episodes.jsonl")
ACTION, STATE, EPISODE, FRAME = "action", "observation.state", "episode_index", "frame_index"
CAMERAS = ("image", "video")
KEPT = 2  # files in memory: episodes that follow on each other lie in the same
AGAIN = "copy or download the dataset again"


@dataclass(frozen=True)
class Listed:
    """Where an episode is: its rows, and for a video its file and the second it begins at."""

    index: int
    length: int
    rows: Path
    video: Path | None
    begins_s: float


def found(path: Path) -> bool:
    return (path / INFO).is_file()


def episodes(path: Path, camera: str | None) -> list[Episode]:
    info = _info(path / INFO)
    features = info["features"]
    if ACTION not in features:
        raise lacking(ACTION, features, str(path / INFO), AGAIN)
    cameras = [k for k, v in features.items() if v.get("dtype") in CAMERAS and not _is_depth(v)]
    camera = picked(camera, cameras, features, str(path / INFO))
    is_video = features[camera]["dtype"] == "video"
    listed = _READ[info["codebase_version"]](path, info, camera if is_video else None)
    names = [ACTION, EPISODE, FRAME, *([STATE] if STATE in features else [])]
    rate_hz, made = float(info["fps"]), []
    read, pictures_in = lru_cache(maxsize=KEPT)(_columns), lru_cache(maxsize=KEPT)(_column)
    for one in listed:
        where, columns = f"{one.rows}, episode {one.index}", read(one.rows, tuple(names))
        at = np.flatnonzero(columns[EPISODE] == one.index)
        first, order = int(at[0]) if len(at) else 0, np.arange(one.length)
        if not (np.array_equal(at, first + order) and np.array_equal(columns[FRAME][at], order)):
            raise EdgewmError(f"{len(at)} rows, {one.length} are listed, in order", where, AGAIN)
        seen = _from_video(one, rate_hz) if is_video else _from_rows(path, one, camera, first, pictures_in)
        state = columns[STATE][at] if STATE in columns else None
        made.append(episode(where, one.length, seen, columns[ACTION][at], state, rate_hz))
    return made


def _is_depth(feature: Mapping[str, Any]) -> bool:
    told = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(told.get("is_depth_map") or told.get("video.is_depth_map"))


def _info(file: Path) -> dict[str, Any]:
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        version = str(info.get("codebase_version"))
    except (ValueError, AttributeError, OSError) as fault:
        raise EdgewmError(f"info.json is damaged: {fault}", str(file), AGAIN) from fault
    if version not in _READ:
        raise EdgewmError(
            f"a LeRobot dataset of version {version}", str(file),
            f"convert it by LeRobot's own scripts: {', '.join(_READ)} are read",
        )  # fmt: skip
    features, rate_hz = info.get("features"), info.get("fps")
    has_features = isinstance(features, dict) and all(isinstance(v, dict) for v in features.values())
    if not has_features or not isinstance(rate_hz, (int, float)) or not rate_hz > 0:
        raise EdgewmError("info.json lacks features or fps", str(file), AGAIN)
    return info


# -------------------------------------------------------------------------------------------- where episodes are


def _listed_v2(path: Path, info: Mapping[str, Any], video: str | None) -> Iterator[Listed]:
    file = path / EPISODES
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [(int(line[EPISODE]), int(line["length"])) for line in lines]
    except (ValueError, KeyError, TypeError, OSError) as fault:
        raise EdgewmError(f"the list of episodes cannot be read: {fault!r}", str(file), AGAIN) from fault
    for index, length in sorted(found):
        chunk = index // int(info.get("chunks_size", 1000))
        names = {"episode_chunk": chunk, EPISODE: index, "video_key": video}
        rows, seen = _filled(path, info, "data_path", names), None
        if video is not None:
            seen = _filled(path, info, "video_path", names)
        yield Listed(index, length, rows, seen, 0.0)


def _listed_v3(path: Path, info: Mapping[str, Any], video: str | None) -> Iterator[Listed]:
    files = sorted((path / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise EdgewmError("no list of episodes", str(path / "meta/episodes"), AGAIN)
    at_data, at_video = (f"data/{k}_index" for k in ("chunk", "file")), ()
    names = [EPISODE, "length", *at_data]
    if video is not None:
        at_video = tuple(f"videos/{video}/{k}" for k in ("chunk_index", "file_index", "from_timestamp"))
    for file in files:
        table = _columns(file, (*names, *at_video))
        for row in zip(*(table[name].tolist() for name in (*names, *at_video)), strict=True):
            index, length, chunk, number = map(int, row[:4])
            rows, seen, begins_s = _filled(path, info, "data_path", _in_v3(chunk, number, video)), None, 0.0
            if video is not None:
                seen, begins_s = _filled(path, info, "video_path", _in_v3(int(row[4]), int(row[5]), video)), row[6]
            yield Listed(index, length, rows, seen, begins_s)


def _in_v3(chunk: int, number: int, video: str | None) -> dict[str, Any]:
    return {"chunk_index": chunk, "file_index": number, "video_key": video}


def _filled(path: Path, info: Mapping[str, Any], template: str, names: Mapping[str, Any]) -> Path:
    """A template of info.json with these names in it."""
    try:
        return path / info[template].format(**names)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as fault:
        raise EdgewmError(f"{template} is {info.get(template)!r}: {fault!r}", str(path / INFO), AGAIN) from fault


_READ: Mapping[str, Callable[..., Iterator[Listed]]] = {"v2.0": _listed_v2, "v2.1": _listed_v2, "v3.0": _listed_v3}


# ------------------------------------------------------------------------------------------------------ what they hold


def _columns(file: Path, names: Sequence[str]) -> dict[str, Array]:
    """Columns of a parquet file: numbers (N,), or (N, ...) where a row holds several."""
    table = _table(file, names)
    found = {}
    for name in names:
        rows = table.column(name).to_numpy()
        if rows.dtype == object and len({np.shape(row) for row in rows}) > 1:
            raise EdgewmError(f"rows of {name!r} differ in shape", str(file), AGAIN)
        found[name] = np.stack(rows) if rows.dtype == object and len(rows) else rows
    return found


def _column(file: Path, name: str) -> Any:
    """Of pictures, encoded as they lie there."""
    return _table(file, (name,)).column(name)


def _table(file: Path, names: Sequence[str]) -> Any:
    parquet, lib = (needed(f"pyarrow.{m}", "a LeRobot dataset", str(file)) for m in ("parquet", "lib"))
    try:
        with parquet.ParquetFile(file) as opened:
            there = opened.schema_arrow.names
            if missing := [name for name in names if name not in there]:
                raise lacking(missing[0], there, str(file), AGAIN)
            return opened.read(columns=list(names))
    except (lib.ArrowException, OSError) as fault:
        raise EdgewmError(f"the parquet file cannot be read: {fault}", str(file), AGAIN) from fault


def _from_video(one: Listed, rate_hz: float) -> Pictures:
    first = round(one.begins_s * rate_hz)
    return lambda start, stop: frames(one.video, first + start, stop - start, rate_hz)


def _from_rows(path: Path, one: Listed, camera: str, first: int, column: Callable[[Path, str], Any]) -> Pictures:
    """Pictures that lie in the rows, or in a file that a row names."""

    def pictures(start: int, stop: int) -> Array:
        where = f"{one.rows}, {camera}"
        rows = column(one.rows, camera)[first + start : first + stop].to_pylist()
        try:
            held = [row["bytes"] or (path / row["path"]).read_bytes() for row in rows]
        except (KeyError, TypeError, OSError) as fault:
            raise EdgewmError(f"a picture is missing: {fault!r}", where, AGAIN) from fault
        return np.stack([decoded(picture, where) for picture in held])

    return pictures

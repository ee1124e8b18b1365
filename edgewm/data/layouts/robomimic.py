"""robomimic's HDF5: a group `data/demo_<i>` for each episode, with `actions` and, under `obs`, what was seen.

Its `states` are those of the simulator, velocities and all: no picture shows them, so they are not read.
"""

from __future__ import annotations

import re
from pathlib import Path

from .. import hdf5
from ..episode import Episode, episode, lacking, picked

LOOKS_FOR = "*.hdf5 with data/demo_0/obs/<camera>_image and data/demo_0/actions (robomimic)"
ENDINGS = hdf5.ENDINGS
DATA, OBSERVED, ACTIONS = "data", "obs", "actions"
PICTURES = 4  # axes


def found(path: Path) -> bool:
    def is_one(file: Path) -> bool:
        with hdf5.open_file(file) as there:
            return DATA in there and not hasattr(there[DATA], "shape")

    return any(map(is_one, hdf5.files(path)))


def episodes(path: Path, camera: str | None) -> list[Episode]:
    return [e for file in hdf5.files(path) for e in _episodes(file, camera)]


def _episodes(file: Path, camera: str | None) -> list[Episode]:
    made = []
    with hdf5.open_file(file) as there:
        if DATA not in there:
            raise lacking(DATA, there, str(file), "leave out files of other layouts")
        for name in sorted((k for k, demo in there[DATA].items() if hasattr(demo, "items")), key=_number):
            demo, where = there[DATA][name], f"{file}, {DATA}/{name}"
            for key in (OBSERVED, ACTIONS):
                if key not in demo:
                    raise lacking(key, demo, where, "extract observations with robomimic's dataset_states_to_obs.py")
            seen = hdf5.arrays(demo[OBSERVED])
            cameras = [key for key, shape in seen.items() if len(shape) == PICTURES]
            key = picked(camera, cameras, seen, f"{where}/{OBSERVED}")
            pictures = hdf5.pictures_of(file, f"{DATA}/{name}/{OBSERVED}/{key}")
            made.append(episode(where, seen[key][0], pictures, hdf5.rows(demo[ACTIONS])))
    return made


def _number(name: str) -> tuple[int, str]:
    """Of `demo_10`, which comes after `demo_9`."""
    digits = re.findall(r"\d+", name)
    return (int(digits[-1]) if digits else -1), name

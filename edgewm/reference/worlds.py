"""The worlds that ship, and the words for them: `reference`, or `reference/` and a world's name.

A world's checkpoint and model card lie in the folder of its name.
"""

from __future__ import annotations

from pathlib import Path

from edgewm.errors import EdgewmError
from edgewm.reference import DEFAULT, WORD, checkpoint_of
from edgewm.reference.base import World
from edgewm.reference.pushing.world import PUCK, PUSH_T
from edgewm.reference.two_room.world import TwoRoom

WORLDS: dict[str, World] = {world.name: world for world in (TwoRoom(), PUCK, PUSH_T)}


def world_named(name: str) -> World:
    """EdgewmError for a name that is none."""
    if name not in WORLDS:
        raise EdgewmError(f"no world {name!r}", "config.json", f"give one of {', '.join(WORLDS)}")
    return WORLDS[name]


def world_by_word(word: str) -> World | None:
    """The world that `reference` or `reference/NAME` stands for; None for any other word."""
    return WORLDS.get(DEFAULT if word == WORD else word.removeprefix(f"{WORD}/") if word.startswith(WORD) else "")


def world_of(spec: str) -> World | None:
    """The world that a word, a checkpoint or a file in it stands for; None for anything else."""
    path = Path(spec)
    folder = (path if path.is_dir() else path.parent).resolve()
    return world_by_word(spec) or next((w for name, w in WORLDS.items() if checkpoint_of(name) == folder), None)

"""World models that ship with edgewm, each trained from pixels by the recipe in this folder.

base.py      what a world is                   worlds.py    the worlds by name, the words for them
two_room/    navigation: a wall and a door     pushing/     contact: a disc pushes a puck or a T
model.py     build, load, normalise            train.py     the recipe
evaluate.py  success, probes, prediction       card.py      MODEL_CARD.md from these figures

<world>/checkpoint/  config.json, robot.json, weights.safetensors (fp16)      <world>/MODEL_CARD.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEFAULT = "puck"  # the world whose model the word `reference` means
WORD = "reference"


def checkpoint_of(world: str) -> Path:
    """The folder of a world's checkpoint."""
    return Path(__file__).resolve().parent / world / "checkpoint"


PATH = checkpoint_of(DEFAULT)


def planner_of(checkpoint: Path) -> dict[str, Any]:
    """The planner of robot.json under torch-world's names; `commit_steps` counts model actions here.

    One plan: `iterations` rounds of `samples` sequences of `horizon` model actions (each `action_block` periods long),
    refit to the `elites` cheapest; then `commit_steps` model actions are played before the next plan. `bounds` and
    `std` are in the environment's normalised action units.
    """
    robot = json.loads((checkpoint / "robot.json").read_text())
    block, found = robot["action_block"], robot["planner"]
    return {
        "kind": "cem",
        **{key: found[key] for key in ("samples", "iterations", "elites", "horizon")},
        "action_block": block,
        "commit_steps": found["commit_steps"] // block,
        "std": found["var_scale"],
        "bounds": (found["low"], found["high"]),
        "objective": "final",
    }

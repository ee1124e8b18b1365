"""The world model that ships with edgewm: TwoRoom from pixels, trained by the recipe in this folder.

world.py     the simulator (numpy)          data.py      trajectories of a scripted, noisy policy
model.py     build, load, normalise         train.py     the recipe
evaluate.py  success, probes, card          checkpoint/  config.json, robot.json, weights.safetensors (fp16)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent / "checkpoint"


def _planner() -> dict[str, Any]:
    """The planner of robot.json under torch-world's names; `commit_steps` counts model actions here."""
    robot = json.loads((PATH / "robot.json").read_text())
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


# One plan: `iterations` rounds of `samples` sequences of `horizon` model actions (each `action_block` periods long),
# refit to the `elites` cheapest; then `commit_steps` model actions are played before the next plan. `bounds` and `std`
# are in the environment's normalised action units.
PLANNER = _planner()

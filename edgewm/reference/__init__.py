"""The world model that ships with edgewm: TwoRoom from pixels, trained by the recipe in this folder.

world.py     the simulator (numpy)          data.py      trajectories of a scripted, noisy policy
model.py     build, load, normalise         train.py     the recipe
evaluate.py  success, probes, card          checkpoint/  config.json and weights.safetensors (fp16)
"""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).resolve().parent / "checkpoint"

# One plan: `iterations` rounds of `samples` sequences of `horizon` model actions (each `action_block` periods long),
# refit to the `elites` cheapest; then `commit_steps` model actions are played before the next plan. `bounds` and `std`
# are in the environment's normalised action units.
PLANNER = {
    "kind": "cem",
    "samples": 128,
    "iterations": 8,
    "elites": 12,
    "horizon": 5,
    "action_block": 5,
    "commit_steps": 5,
    "std": 1.0,
    "bounds": (-1.0, 1.0),
    "objective": "final",
}

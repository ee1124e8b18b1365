"""What a reference model is worth: closed-loop success, linear probes, prediction error; and its model card.

    python -m edgewm.reference.evaluate --path CHECKPOINT --episodes 200 --policy cem|random|idle --json -
    python -m edgewm.reference.evaluate --path CHECKPOINT --episodes 300 --card      every policy, then MODEL_CARD.md

An episode succeeds when the world's `reached` holds at any time in its first `max_steps` periods. Intervals are
Wilson's at 95 %. Every figure is measured on the weights as shipped (fp16, computed in fp32).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_world.models import LeWM
from torch_world.planning import CEM

from edgewm.errors import EdgewmError
from edgewm.reference import PATH, planner_of
from edgewm.reference.base import HELD_OUT, World
from edgewm.reference.card import card
from edgewm.reference.model import load, normalise, parameter_count
from edgewm.reference.worlds import world_named

Array = np.ndarray
Policy = Callable[[Array, Array], Array]  # states, goals, each (B, S) -> actions (B, periods, A)

_EPISODES_AT_ONCE = 8  # rows of one product: this times the planner's samples; stays in a core's cache
POLICIES = ("cem", "random", "idle")


# --- closed loop ----------------------------------------------------------------------------------------------


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a rate."""
    p, zz = successes / n, z * z
    middle, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return (middle - half) / (1 + zz / n), (middle + half) / (1 + zz / n)


def embed(model: LeWM, pixels: Array, frames_at_once: int = 64) -> Tensor:
    """uint8 `(N, 64, 64, 3)` to latents `(N, D)`."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        parts = [
            model.encode(normalise(torch.from_numpy(pixels[i : i + frames_at_once]).to(device))[:, None])[:, 0]
            for i in range(0, len(pixels), frames_at_once)
        ]
    return torch.cat(parts)


def cem_policy(model: LeWM, world: World, planner: dict[str, Any], seed: int) -> Policy:
    """Encodes the present frame and the goal, plans with one context frame, plays `commit_steps` model actions."""
    device = next(model.parameters()).device
    cem = CEM(
        horizon=planner["horizon"],
        action_dim=planner["action_block"] * world.action_dim,
        num_samples=planner["samples"],
        num_elites=planner["elites"],
        iterations=planner["iterations"],
        std=planner["std"],
        bounds=planner["bounds"],
        objective=planner["objective"],
    )
    generator = torch.Generator(device).manual_seed(seed)

    def act(states: Array, goals: Array) -> Array:
        z, goal = embed(model, world.observe(states)), embed(model, world.observe(goals))
        n = _EPISODES_AT_ONCE
        plans = [cem(model, z[i : i + n, None], goal[i : i + n], generator=generator) for i in range(0, len(z), n)]
        chunk = torch.cat(plans)[:, : planner["commit_steps"]]
        return chunk.reshape(len(z), -1, world.action_dim).cpu().numpy()

    return act


def plain_policy(name: str, world: World, seed: int) -> Policy:
    """`random`: a new uniform command every period. `idle`: none."""
    rng = np.random.default_rng([HELD_OUT, 4, seed])
    low, high = (world.action_low, world.action_high) if name == "random" else (0.0, 0.0)
    return lambda states, goals: rng.uniform(low, high, (len(states), 1, world.action_dim)).astype(np.float32)


def closed_loop(world: World, policy: Policy, episodes: int, seed: int) -> dict[str, Any]:
    """All episodes side by side; those that have arrived drop out."""
    at, goals = world.sample_tasks(np.random.default_rng([HELD_OUT, 3, seed]), episodes)
    subset = world.in_subset(at, goals)
    arrival = np.full(episodes, -1)
    began, plans, t = time.monotonic(), 0, 0
    while t < world.max_steps and (arrival < 0).any():
        live = np.flatnonzero(arrival < 0)
        chunk = policy(at[live], goals[live])
        plans += len(live)
        for k in range(min(chunk.shape[1], world.max_steps - t)):
            at[live] = world.move(at[live], chunk[:, k])
            t += 1
            new = live[world.reached(at[live], goals[live]) & (arrival[live] < 0)]
            arrival[new] = t
    done = arrival > 0
    return {
        "episodes": episodes,
        "successes": int(done.sum()),
        "rate": float(done.mean()),
        "wilson_95": [round(v, 4) for v in wilson(int(done.sum()), episodes)],
        "subset": {"episodes": int(subset.sum()), "successes": int((done & subset).sum())},
        "median_periods_to_goal": float(np.median(arrival[done])) if done.any() else None,
        "plans": plans,
        "seconds": round(time.monotonic() - began, 1),
    }


# --- latents --------------------------------------------------------------------------------------------------


def probe(model: LeWM, world: World, seed: int, n_fit: int = 3000, n_test: int = 1500) -> dict[str, float]:
    """R2 of ridge regressions from one frame's latent to what is in the picture."""
    states = world.sample_states(np.random.default_rng([HELD_OUT, 5, seed]), n_fit + n_test)
    latents = embed(model, world.observe(states)).double().cpu().numpy()
    x = np.concatenate([latents, np.ones((len(latents), 1))], 1)
    y = world.features(states).astype(np.float64)
    fit, test = slice(0, n_fit), slice(n_fit, None)
    w = np.linalg.solve(x[fit].T @ x[fit] + 1e-3 * np.eye(x.shape[1]), x[fit].T @ y[fit])
    residual = ((y[test] - x[test] @ w) ** 2).mean(0)
    r2 = 1 - residual / y[test].var(0)
    return dict(zip(world.names, r2.round(4).tolist(), strict=True))


def prediction(model: LeWM, world: World, action_block: int, horizon: int, seed: int, n: int = 256) -> dict[str, float]:
    """Mean squared error of predicted latents over the variance of latents, 1 and `horizon` model actions ahead.

    `copy` is the error of predicting no change. All from one context frame, as the planner uses the model.
    """
    device = next(model.parameters()).device
    actions, states = world.trajectories(np.random.default_rng([HELD_OUT, 6, seed]), n, horizon * action_block)
    kept = states[:, ::action_block].reshape(-1, states.shape[2])
    z = embed(model, world.observe(kept)).view(n, horizon + 1, -1)
    with torch.inference_mode():
        imagined = model.rollout(z[:, :1], torch.from_numpy(actions.reshape(n, horizon, -1)).to(device))
    spread = z.flatten(0, 1).var(0).mean()

    def error(a: Tensor, b: Tensor) -> float:
        return round(float((a - b).square().mean() / spread), 5)

    out = {f"steps_{k}": error(imagined[:, k], z[:, k]) for k in (1, horizon)}
    return out | {f"copy_{k}": error(z[:, 0], z[:, k]) for k in (1, horizon)}


# --- report ---------------------------------------------------------------------------------------------------


def evaluate(
    path: Path, planner: dict[str, Any], policies: tuple[str, ...], episodes: int, seed: int, device: str
) -> dict[str, Any]:
    """Every figure of the checkpoint at `path`. EdgewmError for one that cannot be loaded."""
    model, world = load(path).to(device), world_at(path)

    def policy(name: str) -> Policy:
        return cem_policy(model, world, planner, seed) if name == "cem" else plain_policy(name, world, seed)

    return {
        "schema_version": 1,
        "world": world.name,
        "parameters": parameter_count(model),
        "planner": planner,
        "seed": seed,
        "closed_loop": {name: closed_loop(world, policy(name), episodes, seed) for name in policies},
        "probe_r2": probe(model, world, seed),
        "prediction": prediction(model, world, planner["action_block"], planner["horizon"], seed),
    }


def world_at(path: Path) -> World:
    """The world that the checkpoint at `path` was trained in."""
    return world_named(json.loads((path / "config.json").read_text())["world"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgewm.reference.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--path", type=Path, default=PATH)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--policy", choices=POLICIES, default="cem")
    parser.add_argument(
        "--card", action="store_true", help="run every policy, write MODEL_CARD.md beside the checkpoint"
    )
    parser.add_argument("--json", metavar="FILE", help="where the figures go, - for stdout")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    for key in ("samples", "iterations", "elites", "horizon", "commit_steps"):
        parser.add_argument(f"--{key.replace('_', '-')}", type=int, help="instead of robot.json's")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        planner = planner_of(args.path)
        planner |= {k: v for k, v in vars(args).items() if k in planner and v is not None}
        policies = POLICIES if args.card else (args.policy,)
        result = evaluate(args.path, planner, policies, args.episodes, args.seed, args.device)
    except EdgewmError as error:
        print(error, file=sys.stderr)
        return 2
    text = json.dumps(result, indent=2) + "\n"
    if args.card:
        config = json.loads((args.path / "config.json").read_text())
        (args.path.resolve().parent / "MODEL_CARD.md").write_text(card(result, config))
    if args.json and args.json != "-":
        Path(args.json).write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What the reference model is worth: closed-loop success, linear probes, prediction error; and its model card.

    python -m edgewm.reference.evaluate --episodes 200 --policy cem|random|idle --json -
    python -m edgewm.reference.evaluate --episodes 300 --card        every policy, then MODEL_CARD.md

An episode succeeds when the disc's centre comes within `GOAL_RADIUS_M` of the goal at any time in its first `MAX_STEPS`
periods. Intervals are Wilson's at 95 %. Every figure is measured on the weights as shipped (fp16, computed in fp32).
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
from edgewm.reference import PATH, PLANNER, data, world
from edgewm.reference.model import load, normalise, parameter_count

Array = np.ndarray
Policy = Callable[[Array, Array, Array], Array]  # layouts, positions, goals, each (B, 2) -> actions (B, periods, 2)

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


def cem_policy(model: LeWM, planner: dict[str, Any], seed: int) -> Policy:
    """Encodes the present frame and the goal, plans with one context frame, plays `commit_steps` model actions."""
    device = next(model.parameters()).device
    cem = CEM(
        horizon=planner["horizon"],
        action_dim=planner["action_block"] * world.World.action_dim,
        num_samples=planner["samples"],
        num_elites=planner["elites"],
        iterations=planner["iterations"],
        std=planner["std"],
        bounds=planner["bounds"],
        objective=planner["objective"],
    )
    generator = torch.Generator(device).manual_seed(seed)

    def act(layouts: Array, positions: Array, goals: Array) -> Array:
        z, goal = embed(model, world.observe(layouts, positions)), embed(model, world.observe(layouts, goals))
        n = _EPISODES_AT_ONCE
        plans = [cem(model, z[i : i + n, None], goal[i : i + n], generator=generator) for i in range(0, len(z), n)]
        chunk = torch.cat(plans)[:, : planner["commit_steps"]]
        return chunk.reshape(len(z), -1, world.World.action_dim).cpu().numpy()

    return act


def plain_policy(name: str, seed: int) -> Policy:
    """`random`: a new uniform command every period. `idle`: none."""
    rng = np.random.default_rng([world.HELD_OUT, 4, seed])
    if name == "random":
        return lambda layouts, positions, goals: rng.uniform(-1, 1, (len(positions), 1, 2)).astype(np.float32)
    return lambda layouts, positions, goals: np.zeros((len(positions), 1, 2), np.float32)


def closed_loop(policy: Policy, episodes: int, seed: int) -> dict[str, Any]:
    """All episodes side by side; those that have arrived drop out."""
    layouts, at, goals = world.sample_tasks(np.random.default_rng([world.HELD_OUT, 3, seed]), episodes)
    crossing = (at[:, 0] < layouts[:, 0]) != (goals[:, 0] < layouts[:, 0])
    arrival = np.full(episodes, -1)
    began, plans, t = time.monotonic(), 0, 0
    while t < world.MAX_STEPS and (arrival < 0).any():
        live = np.flatnonzero(arrival < 0)
        chunk = policy(layouts[live], at[live], goals[live])
        plans += len(live)
        for k in range(min(chunk.shape[1], world.MAX_STEPS - t)):
            at[live] = world.move(layouts[live], at[live], chunk[:, k])
            t += 1
            new = live[world.reached(at[live], goals[live]) & (arrival[live] < 0)]
            arrival[new] = t
    done = arrival > 0
    return {
        "episodes": episodes,
        "successes": int(done.sum()),
        "rate": float(done.mean()),
        "wilson_95": [round(v, 4) for v in wilson(int(done.sum()), episodes)],
        "other_room": {"episodes": int(crossing.sum()), "successes": int((done & crossing).sum())},
        "median_periods_to_goal": float(np.median(arrival[done])) if done.any() else None,
        "plans": plans,
        "seconds": round(time.monotonic() - began, 1),
    }


# --- latents --------------------------------------------------------------------------------------------------


def probe(model: LeWM, seed: int, n_fit: int = 3000, n_test: int = 1500) -> dict[str, float]:
    """R2 of ridge regressions from one frame's latent to what is in the picture."""
    rng = np.random.default_rng([world.HELD_OUT, 5, seed])
    layouts = world.sample_layouts(rng, n_fit + n_test)
    at = world.sample_positions(rng, layouts)
    latents = embed(model, world.observe(layouts, at)).double().cpu().numpy()
    x = np.concatenate([latents, np.ones((len(latents), 1))], 1)
    y = np.concatenate([at, layouts], 1).astype(np.float64)
    fit, test = slice(0, n_fit), slice(n_fit, None)
    w = np.linalg.solve(x[fit].T @ x[fit] + 1e-3 * np.eye(x.shape[1]), x[fit].T @ y[fit])
    residual = ((y[test] - x[test] @ w) ** 2).mean(0)
    r2 = 1 - residual / y[test].var(0)
    return dict(zip(("x", "y", "wall_x", "door_y"), r2.round(4).tolist(), strict=True))


def prediction(model: LeWM, planner: dict[str, Any], seed: int, n: int = 256, horizon: int = 5) -> dict[str, float]:
    """Mean squared error of predicted latents over the variance of latents, 1 and `horizon` model actions ahead.

    `copy` is the error of predicting no change. All from one context frame, as the planner uses the model.
    """
    device = next(model.parameters()).device
    block = planner["action_block"]
    layouts, actions, states = data.trajectories(np.random.default_rng([world.HELD_OUT, 6, seed]), n, horizon * block)
    kept = states[:, ::block].reshape(-1, 2)
    z = embed(model, world.observe(np.repeat(layouts, horizon + 1, 0), kept)).view(n, horizon + 1, -1)
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
    model = load(path).to(device)

    def policy(name: str) -> Policy:
        return cem_policy(model, planner, seed) if name == "cem" else plain_policy(name, seed)

    return {
        "schema_version": 1,
        "parameters": parameter_count(model),
        "planner": planner,
        "seed": seed,
        "closed_loop": {name: closed_loop(policy(name), episodes, seed) for name in policies},
        "probe_r2": probe(model, seed),
        "prediction": prediction(model, planner, seed, horizon=planner["horizon"]),
    }


def card(result: dict[str, Any], config: dict[str, Any]) -> str:
    """MODEL_CARD.md from figures alone."""
    m, t, done = config["model"], config["training"], config["trained"]
    planner, errors, pre = result["planner"], result["prediction"], config["preprocessing"]
    horizon, block = planner["horizon"], planner["action_block"]
    encoder, predictor = m["encoder"], m["predictor"]
    rows = []
    for name, c in result["closed_loop"].items():
        low, high = (100 * v for v in c["wilson_95"])
        far, median = c["other_room"], c["median_periods_to_goal"]
        rows.append(
            f"| {name} | {c['successes']}/{c['episodes']} | {100 * c['rate']:.1f} % | {low:.1f} - {high:.1f} % "
            f"| {far['successes']}/{far['episodes']} | {'-' if median is None else f'{median:.0f}'} |"
        )
    probes = ", ".join(f"{k} {v:.4f}" for k, v in result["probe_r2"].items())
    windows = t["layouts_per_batch"] * t["windows_per_layout"]
    frames = done["steps_done"] * windows * (m["history"] + 1)
    terms = ("prediction", "chained", "sigreg")
    phases = [
        f"| {p['steps']} | {p['learning_rate'][0]:g} to {p['learning_rate'][1]:g} over {p.get('over', p['steps'])} "
        f"| {p['sigreg_weight']} | {p['chained_weight']} | {100 * p.get('straight_share', 0):.0f} % |"
        for p in t["phases"]
    ]
    return f"""# Reference model: LeWM on TwoRoom

Written by `python -m edgewm.reference.evaluate --card`; no figure here was typed by hand.

**World.** A disc {2 * world.RADIUS_M:.2f} m across in an arena of 1 m x 1 m: two rooms, one wall, one door; wall and
door stand elsewhere in every episode. An action is a velocity command in [-1, 1]^2; full scale is {world.STEP_M} m per
axis in one period of {world.PERIOD_S} s. The observation is {m["image_px"]}x{m["image_px"]} RGB and the goal is such a
picture. {100 * world.CROSSING_SHARE:.0f} % of the tasks end in the other room, all at least {world.MIN_TASK_M} m away.
Success: the disc's centre comes within {world.GOAL_RADIUS_M} m of the goal at any time in {world.MAX_STEPS} periods.

**Model.** `torch_world.models.LeWM`, {result["parameters"]:,} parameters. Encoder: ViT, patch {m["patch_px"]},
{m["embed_dim"]} wide, {encoder["depth"]} layers, {encoder["num_heads"]} heads. Predictor: {predictor["depth"]}
adaLN-zero layers, {predictor["num_heads"]} heads x {predictor["head_dim"]}, MLP {predictor["mlp_dim"]}, history
{m["history"]}. One model action is {block} environment actions. Weights are fp16 on disk. Preprocessing:
{pre["input"]} to {pre["layout"]}, `{pre["formula"]}`, scale 1/255, mean {pre["mean"][0]}, std {pre["std"][0]}.

**Training.** {done["steps_done"]:,} steps of {windows} windows of {m["history"] + 1} frames ({frames:,} frames drawn on
the fly from a scripted, noisy policy, none repeated); {done["seconds"] / 60:.0f} minutes on {done["hardware"]}, shared
with other work. Next-embedding error plus SIGReg within each layout, then also the error of predictions chained over
{m["history"]} model actions. Last step: {", ".join(f"{k} {done['last'][k]:.4f}" for k in terms)}. No pretrained
weights, no labels, no reward.

| steps | learning rate | SIGReg weight | chained weight | seekers that ignore the wall |
|---|---|---|---|---|
{chr(10).join(phases)}

**Planner.** {planner["kind"].upper()}: {planner["samples"]} samples, {planner["iterations"]} iterations,
{planner["elites"]} elites, std {planner["std"]}, horizon {horizon} model actions ({horizon * block} periods), a new
plan every {planner["commit_steps"] * block} periods. Cost: squared distance of the last imagined latent to the goal's.

## Closed loop

| policy | successes | rate | Wilson 95 % | of which other room | median periods to goal |
|---|---|---|---|---|---|
{chr(10).join(rows)}

## Latents (held-out)

- linear probes, R2: {probes}
- prediction error over latent variance, from one frame: {errors["steps_1"]:.4f} after 1 model action,
  {errors[f"steps_{horizon}"]:.4f} after {horizon}; predicting no change: {errors["copy_1"]:.4f} and
  {errors[f"copy_{horizon}"]:.4f}

**Limits.** It knows this world only: one disc, one wall, one door. It is made to be compiled, judged and shown, not to
be built upon. Success above is the torch model's; a bundle's is what `edgewm validate --suite closed-loop` finds.
Push-T, where the robot pushes in contact, has not been trained yet: this TwoRoom model is the hardest that passes so
far.
"""


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
        parser.add_argument(f"--{key.replace('_', '-')}", type=int, default=PLANNER[key])
    parser.add_argument("--objective", choices=("final", "path"), default=PLANNER["objective"])
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    planner = PLANNER | {k: v for k, v in vars(args).items() if k in PLANNER}
    try:
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

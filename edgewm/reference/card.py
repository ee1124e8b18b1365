"""MODEL_CARD.md, from figures alone."""

from __future__ import annotations

import textwrap
from typing import Any

from edgewm.reference.worlds import world_named


def card(result: dict[str, Any], config: dict[str, Any]) -> str:
    """The card of a checkpoint: `result` is what `evaluate` found, `config` its config.json."""
    m, t, done = config["model"], config["training"], config["trained"]
    world, planner = world_named(result["world"]), result["planner"]
    horizon, block = planner["horizon"], planner["action_block"]
    errors, pre = result["prediction"], config["preprocessing"]
    encoder, predictor = m["encoder"], m["predictor"]
    drawn = sum(p["steps"] * _windows(p, t) * p.get("frames", m["history"] + 1) for p in t["phases"])
    terms = ", ".join(f"{k} {done['last'][k]:.4f}" for k in ("prediction", "chained", "sigreg"))
    paragraphs = {
        "World": (
            f"{world.about} The observation is {m['image_px']}x{m['image_px']} RGB and the goal is such a picture."
        ),
        "Model": (
            f"`torch_world.models.LeWM`, {result['parameters']:,} parameters. Encoder: ViT, patch {m['patch_px']}, "
            f"{m['embed_dim']} wide, {encoder['depth']} layers, {encoder['num_heads']} heads. Predictor: "
            f"{predictor['depth']} adaLN-zero layers, {predictor['num_heads']} heads x {predictor['head_dim']}, MLP "
            f"{predictor['mlp_dim']}, history {m['history']}. One model action is {block} environment actions. "
            f"Weights are fp16 on disk. Preprocessing: {pre['input']} to {pre['layout']}, `{pre['formula']}`, scale "
            f"1/255, mean {pre['mean'][0]}, std {pre['std'][0]}."
        ),
        "Training": (
            f"{done['steps_done']:,} steps, {drawn:,} frames drawn on the fly from a scripted, noisy policy, none "
            f"repeated, products in {t.get('precision', 'fp32')}; {done['seconds'] / 60:.0f} minutes on "
            f"{done['hardware']}, shared with other work. Next-embedding error plus SIGReg within each layout, and the "
            f"error of predictions chained over the window. Last step: {terms}. No pretrained weights, no labels, no "
            f"reward."
        ),
        "Planner": (
            f"{planner['kind'].upper()}: {planner['samples']} samples, {planner['iterations']} iterations, "
            f"{planner['elites']} elites, std {planner['std']}, horizon {horizon} model actions ({horizon * block} "
            f"periods), a new plan every {planner['commit_steps'] * block} periods. Cost: squared distance of the last "
            f"imagined latent to the goal's."
        ),
        "Limits": (
            f"{world.limits} It is made to be compiled, judged and shown, not to be built upon. Success above is the "
            f"torch model's; a bundle's is what `edgewm validate --suite closed-loop` finds."
        ),
    }  # fmt: skip
    say = {head: textwrap.fill(f"**{head}.** {text}", 120, break_on_hyphens=False) for head, text in paragraphs.items()}
    probes = ", ".join(f"{k} {v:.4f}" for k, v in result["probe_r2"].items())
    return f"""# Reference model: LeWM on {world.title}

Written by `python -m edgewm.reference.evaluate --card`; no figure here was typed by hand.

{say["World"]}

{say["Model"]}

{say["Training"]}

| steps | learning rate | windows | frames | SIGReg weight | chained weight | data |
|---|---|---|---|---|---|---|
{chr(10).join(_phase(p, t, m["history"] + 1) for p in t["phases"])}

{say["Planner"]}

## Closed loop

| policy | successes | rate | Wilson 95 % | of which {world.subset} | median periods to goal |
|---|---|---|---|---|---|
{chr(10).join(_loop(name, c) for name, c in result["closed_loop"].items())}

## Latents (held-out)

- linear probes, R2: {probes}
- prediction error over latent variance, from one frame: {errors["steps_1"]:.4f} after 1 model action,
  {errors[f"steps_{horizon}"]:.4f} after {horizon}; predicting no change: {errors["copy_1"]:.4f},
  {errors[f"copy_{horizon}"]:.4f}

{say["Limits"]}
"""


def _windows(p: dict[str, Any], t: dict[str, Any]) -> int:
    return t["layouts_per_batch"] * p.get("windows_per_layout", t["windows_per_layout"])


def _phase(p: dict[str, Any], t: dict[str, Any], frames: int) -> str:
    first, last = p["learning_rate"]
    ignore = f"{100 * p['straight_share']:.0f} % of seekers ignore the wall" if "straight_share" in p else "as scripted"
    return (
        f"| {p['steps']} | {first:g} to {last:g} over {p.get('over', p['steps'])} | {_windows(p, t)} "
        f"| {p.get('frames', frames)} | {p['sigreg_weight']} | {p['chained_weight']} | {ignore} |"
    )


def _loop(name: str, c: dict[str, Any]) -> str:
    low, high = (100 * v for v in c["wilson_95"])
    hard, median = c["subset"], c["median_periods_to_goal"]
    return (
        f"| {name} | {c['successes']}/{c['episodes']} | {100 * c['rate']:.1f} % | {low:.1f} - {high:.1f} % "
        f"| {hard['successes']}/{hard['episodes']} | {'-' if median is None else f'{median:.0f}'} |"
    )

"""The recipe: LeWM from pixels, next-embedding error plus SIGReg, on whatever device there is.

    python -m edgewm.reference.train --config CHECKPOINT/config.json --out DIR [--resume] [--device cpu] [--threads 1]

The config names the world and the model's sizes, and lists the phases, one after another. In a phase the learning rate
goes from the first to the second number along half a cosine, `over` as many steps as the phase has unless it says
otherwise. A strong SIGReg finds what moves; a weak one then lets the latents lie flat, so that nearer in latents means
nearer in the world.

DIR afterwards holds `config.json` and `weights.safetensors` (fp16, what `model.load` reads), `log.jsonl` (one line a
logged step) and `step-NNNNNN/`, the newest resumable state. Every step seeds itself from `(seed, step)`, so a run that
was killed and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch_world.models import LeWM

from edgewm.errors import EdgewmError
from edgewm.reference import PATH
from edgewm.reference.model import PREPROCESSING, build, normalise, shipped_weights
from edgewm.reference.worlds import world_named

RECIPE = ("world", "model", "training")
DATA_OPTIONS = ("straight_share",)  # settings of a phase that go to the world's `batch`


def total_steps(t: dict[str, Any]) -> int:
    return sum(phase["steps"] for phase in t["phases"])


def settings(t: dict[str, Any], step: int) -> dict[str, Any]:
    """The phase that `step` is in, with `learning_rate` as the one number that holds there."""
    begins = 0
    for phase in t["phases"]:
        if step < begins + phase["steps"]:
            break
        begins += phase["steps"]
    first, last = phase["learning_rate"]
    progress = (step - begins) / phase.get("over", phase["steps"])
    rate = last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))
    return phase | {"learning_rate": rate * min(1.0, (step + 1) / t["warmup_steps"])}


def make_optimizer(model: LeWM, t: dict[str, Any]) -> torch.optim.AdamW:
    """Weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": t["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=t["phases"][0]["learning_rate"][0], betas=tuple(t["betas"]))


def precision(t: dict[str, Any], device: torch.device) -> contextlib.ExitStack:
    """Products in the training section's `precision`, fp32 unless it says bf16; weights and losses stay fp32.

    In bf16 on a CPU, torch 2.13's fused attention takes 25 times as long backward as its parts do.
    """
    stack = contextlib.ExitStack()
    if t.get("precision") == "bf16":
        stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    return stack


def loss_terms(model: LeWM, pixels: torch.Tensor, actions: torch.Tensor, t: dict[str, Any]) -> dict[str, torch.Tensor]:
    """LeWM's two terms, and the same error once more on predictions chained as a planner chains them, over the window.

    SIGReg is taken within each layout: `pixels` `(B, F, 3, 64, 64)` come layout by layout. Over mixed layouts the
    Gaussian could be filled by wall and door alone: they never move, so they are predicted for free, and the disc would
    be left out. Within one layout only the disc is left to fill it.
    """
    n = model.history
    with precision(t, pixels.device):
        z = model.encode(pixels)
        predicted = model.predict(z[:, :n], actions[:, :n])
        chained = model.rollout(z[:, :1], actions[:, :-1])[:, 1:]
    z = z.float()
    return {
        "prediction": (predicted.float() - z[:, 1 : n + 1]).square().mean(),
        "chained": (chained.float() - z[:, 1:]).square().mean(),
        "sigreg": model.sigreg(z.unflatten(0, (t["layouts_per_batch"], -1)).flatten(1, 2)),
    }


def train_step(
    model: LeWM, optimizer: torch.optim.Optimizer, config: dict[str, Any], step: int, device: torch.device
) -> dict[str, float]:
    """One update, a function of the weights, the optimizer state and `(seed, step)`."""
    t, m, now = config["training"], config["model"], settings(config["training"], step)
    windows, frames = now.get("windows_per_layout", t["windows_per_layout"]), now.get("frames", m["history"] + 1)
    options = {k: now[k] for k in DATA_OPTIONS if k in now}
    batch = world_named(config["world"]).batch
    pixels, actions, _ = batch(t["seed"], step, t["layouts_per_batch"], windows, frames, m["action_block"], **options)
    torch.manual_seed((t["seed"] << 32) + step)  # SIGReg's slices
    inputs = normalise(torch.from_numpy(pixels).to(device)), torch.from_numpy(actions).to(device)
    terms = loss_terms(model, *inputs, t)
    loss = terms["prediction"] + now["sigreg_weight"] * terms["sigreg"] + now["chained_weight"] * terms["chained"]
    for group in optimizer.param_groups:
        group["lr"] = now["learning_rate"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), t["gradient_clip"])
    optimizer.step()
    found = {"loss": loss, **terms, "gradient_norm": norm}
    return {k: v.item() for k, v in found.items()} | {"learning_rate": now["learning_rate"]}


# --- states on disk -------------------------------------------------------------------------------------------


def write_atomically(path: Path, write) -> None:
    """`write(temporary path)`, then rename: a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    temporary.replace(path)


def save_state(out: Path, model: LeWM, optimizer: torch.optim.Optimizer, step: int, elapsed_s: float) -> None:
    """`step-NNNNNN/` appears whole by one rename; older ones go afterwards."""
    final, partial = out / f"step-{step:06d}", out / f".step-{step:06d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial / "model.safetensors")
    state = {"optimizer": optimizer.state_dict(), "step": step, "elapsed_s": elapsed_s}
    torch.save(state, partial / "optimizer.pt")
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    for old in saved_states(out)[:-1]:
        shutil.rmtree(old)


def saved_states(out: Path) -> list[Path]:
    return sorted(p for p in out.glob("step-*") if (p / "optimizer.pt").is_file())


def load_state(path: Path, model: LeWM, optimizer: torch.optim.Optimizer, device: torch.device) -> tuple[int, float]:
    """The number of steps done and the seconds they took."""
    model.load_state_dict(load_file(path / "model.safetensors", device=str(device)))
    state = torch.load(path / "optimizer.pt", map_location=device, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["elapsed_s"]


def settle_batch_norm(model: LeWM, config: dict[str, Any], batches: int) -> LeWM:
    """A copy whose batch-norm statistics are plain averages over `batches` fresh batches of mixed layouts.

    The running ones lag behind the weights and remember a handful of layouts; they cost two thirds of the accuracy.
    """
    t, m = config["training"], config["model"]
    settled, device = copy.deepcopy(model).train(), next(model.parameters()).device
    for module in settled.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for i in range(batches):
            windows = t["layouts_per_batch"] * t["windows_per_layout"]
            batch = world_named(config["world"]).batch
            pixels, actions, _ = batch(t["seed"], -1 - i, windows, 1, m["history"] + 1, m["action_block"])
            z = settled.encode(normalise(torch.from_numpy(pixels).to(device)))
            settled.predict(z[:, :-1], torch.from_numpy(actions).to(device)[:, :-1])
    return settled.eval()


def keep_log(path: Path, step: int) -> None:
    """Drops the lines a killed run wrote after its last state."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_atomically(path, lambda p: p.write_text("".join(kept)))


def export(out: Path, model: LeWM, config: dict[str, Any], step: int, elapsed_s: float, last: dict[str, float]) -> None:
    """`config.json` and `weights.safetensors`, as shipped."""
    model = settle_batch_norm(model, config, config["training"]["batch_norm_batches"])
    done = {"steps_done": step, "seconds": round(elapsed_s, 1), "hardware": hardware(model), "last": last}
    text = json.dumps(config | {"trained": done}, indent=2) + "\n"
    write_atomically(out / "weights.safetensors", lambda p: save_file(shipped_weights(model), p))
    write_atomically(out / "config.json", lambda p: p.write_text(text))


def hardware(model: LeWM) -> str:
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} {platform.machine()} CPU cores" if device.type == "cpu" else device.type


# --- the run --------------------------------------------------------------------------------------------------


def train(
    config: dict[str, Any], out: Path, resume: bool = False, device: str = "cpu", stop_after: int | None = None
) -> LeWM:
    """Trains through all phases, or until `stop_after` steps are done, with a state saved there."""
    t = config["training"]
    out.mkdir(parents=True, exist_ok=True)
    states = saved_states(out)
    if states and not resume:
        raise EdgewmError("the folder already holds a run", str(states[-1]), "pass --resume, or another --out")
    torch.manual_seed(t["seed"])
    where = torch.device(device)
    model = build(config).to(where).train()
    optimizer = make_optimizer(model, t)
    start, before_s = load_state(states[-1], model, optimizer, where) if states else (0, 0.0)
    keep_log(out / "log.jsonl", start)
    began, stop = time.monotonic(), min(total_steps(t), stop_after or total_steps(t))
    for step in range(start, stop):
        last = train_step(model, optimizer, config, step, where)
        if not math.isfinite(last["loss"]):
            raise EdgewmError(f"the loss is {last['loss']} at step {step}", str(out), "lower learning_rate and resume")
        done, elapsed_s = step + 1, before_s + time.monotonic() - began
        if done % t["log_every_steps"] == 0 or done == stop:
            line = {"step": done, **last, "elapsed_s": round(elapsed_s, 2)}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if done % t["save_every_steps"] == 0 or done == stop:
            save_state(out, model, optimizer, done, elapsed_s)
            export(out, model, config, done, elapsed_s, last)
    return model


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgewm.reference.train", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="go on from the newest state in --out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--config", type=Path, default=PATH / "config.json", help="whose world, model and training to take"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    given = json.loads(args.config.read_text())
    config = {"schema_version": 1, "preprocessing": PREPROCESSING, **{k: given[k] for k in RECIPE}}
    if args.seed is not None:
        config["training"]["seed"] = args.seed
    try:
        train(config, args.out, args.resume, args.device)
    except EdgewmError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

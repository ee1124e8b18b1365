"""Where models come from: `load(MODEL)` gives a `Model`, `capture_model` its `Program`.

One file a family; a checkpoint's `config.json` says which one it is, its name never does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from ..capture import capture
from ..constants import Store
from ..errors import EdgewmError
from ..planner import check, plan_graph
from ..program import Planner, Port, Program
from . import own, stable_worldmodel, torch_world
from .checkpoint import read_config, weights_file
from .model import Model, example

FAMILIES: tuple[ModuleType, ...] = (torch_world, stable_worldmodel)

__all__ = ["Model", "capture_model", "example", "load"]


def load(spec: str) -> Model:
    """The model that MODEL names: a checkpoint directory (or a file in it), `module:function`, or `reference`.

    Raises EdgewmError when there is no such thing, when its family is unknown, or when a weight does not fit.
    """
    if spec == "reference":
        from ..reference import PATH

        return _checkpoint(PATH)
    path = Path(spec)
    if path.is_dir() or path.is_file():
        return _checkpoint(path)
    if ":" in spec:
        return own.load(spec)
    raise EdgewmError(
        f"no model {spec!r}",
        "MODEL",
        "give a checkpoint directory, module:function for your own, or the word reference",
    )


def _checkpoint(path: Path) -> Model:
    """The model in a directory, or in one weights file of it; any JSON file of a directory stands for the directory."""
    path = path.parent if path.suffix == ".json" and path.is_file() else path
    folder = path if path.is_dir() else path.parent
    config = read_config(folder)
    for family in FAMILIES:
        if family.recognises(config):
            return family.load(folder, config, weights_file(folder) if path.is_dir() else path)
    raise EdgewmError(
        f"config.json describes no known family (its keys: {', '.join(sorted(config)[:6])})",
        str(folder / "config.json"),
        "known are torch-world's LeWM and stable-worldmodel's LeWM; for your own model give module:function",
    )  # fmt: skip


def capture_model(model: Model, planner: Planner | None = None) -> Program:
    """The Program of a model: entries `encode`, `predict` (full window; `predict_<T>` for shorter ones), `score`,
    `decode_<head>`, `plan` (noise from Philox) and `plan_with_noise` (noise from a port); weights, ports, planner.

    Raises EdgewmError for planner settings that do not fit and for whatever `capture` refuses.
    """
    planner = planner or model.planner
    check(planner)
    if planner.history != 1:
        raise EdgewmError(f"history is {planner.history}", "planner settings", "plan from 1 context frame")
    if model.action_dim % planner.action_block:
        raise EdgewmError(
            f"a model action of {model.action_dim} numbers is no block of {planner.action_block} periods",
            "planner settings",
            "give the action_block the model was trained with (for a checkpoint in robot.json beside its config.json)",
        )  # fmt: skip
    weights: Store = {}
    entries = {}

    def enter(name: str, call, inputs: dict[str, torch.Tensor], output: str) -> None:
        entries[name], _ = capture(model.torch, [*inputs.values()], [*inputs], [output], call=call, weights=weights)

    samples, horizon, latent, action = planner.samples, planner.horizon, model.latent_dim, model.action_dim
    enter("encode", model.encode, {p.name: example(p) for p in model.ports_of("observation")}, "z")
    for length in range(1, model.window + 1):
        window = {"z": torch.zeros(samples, length, latent), "actions": torch.zeros(samples, length, action)}
        enter("predict" if length == model.window else f"predict_{length}", model.predict, window, "z_next")
    rollout = {
        "z": torch.zeros(planner.history, latent), "goal": torch.zeros(1, latent),
        "candidates": torch.zeros(samples, horizon, action),
    }  # fmt: skip
    enter("score", model.score, rollout, "cost")
    for name, head in model.heads.items():
        enter(f"decode_{name}", head, {"z": torch.zeros(1, latent)}, name)
    pairs = zip(model.ports_of("observation"), model.ports_of("goal"), strict=True)
    goals = {observation.name: goal.name for observation, goal in pairs}
    for name, injected in (("plan", False), ("plan_with_noise", True)):
        entries[name] = plan_graph(entries["encode"], entries["score"], planner, goals, injected)
    state = (
        Port("warm_mean", "state", (horizon, action)), Port("plan_counter", "state", (1,), "u32"),
        Port("seed", "state", (2,), "u32"), Port("noise", "noise", (planner.iterations, samples, horizon, action)),
    )  # fmt: skip
    ports = tuple(_bounded(p, planner) for p in model.ports)
    return Program(entries=entries, weights=weights, ports=ports + state, planner=planner)


def _bounded(port: Port, planner: Planner) -> Port:
    """An action port without limits of its own takes the planner's."""
    if port.kind != "action" or port.low is not None or port.high is not None or port.scale:
        return port
    return replace(port, low=planner.low, high=planner.high)

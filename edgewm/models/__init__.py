"""Where models come from: `load(MODEL)` gives a `Model`, `capture_model` its `Program`.

One file a family; a checkpoint's `config.json` says which one it is, its name never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from ..capture import capture
from ..constants import Store
from ..errors import EdgewmError
from ..planner import check, committed_actions, noise_port, plan_graph, plan_weights, state_ports
from ..program import Graph, Planner, Port, Program
from ..reference import checkpoint_of
from ..reference.worlds import world_by_word
from . import own, stable_worldmodel, torch_world
from .checkpoint import read_config, weights_file
from .model import Model, example
from .proposal import capture_proposal, with_proposal

FAMILIES: tuple[ModuleType, ...] = (torch_world, stable_worldmodel)

__all__ = ["Model", "capture_model", "capture_roll", "capture_score", "example", "folder_of", "load", "weights_of"]


def load(spec: str) -> Model:
    """The model that MODEL names: a checkpoint directory (or a file in it), `module:function`, or
    `reference`, of which `reference/two_room` and its like are the ones by name.

    Raises EdgewmError when there is no such thing, when its family is unknown, or when a weight does not fit.
    """
    path = _path_of(spec)
    if path is not None:
        return _checkpoint(path)
    if ":" in spec:
        return own.load(spec)
    raise EdgewmError(
        f"no model {spec!r}",
        "MODEL",
        "give a checkpoint directory, module:function for your own, or the word reference",
    )


def folder_of(spec: str) -> Path | None:
    """The checkpoint's directory that MODEL names; None where it names a function, or nothing."""
    path = _path_of(spec)
    return path if path is None or path.is_dir() else path.parent


def weights_of(spec: str) -> Path | None:
    """The weights file that `load` reads; None where MODEL names a function, or nothing."""
    path = _path_of(spec)
    return None if path is None else _weights(path)


def _path_of(spec: str) -> Path | None:
    shipped = world_by_word(spec)
    path = Path(spec) if shipped is None else checkpoint_of(shipped.name)
    return path if path.is_dir() or path.is_file() else None


def _checkpoint(path: Path) -> Model:
    """The model in a directory, or in one weights file of it; any JSON file of a directory stands for the directory."""
    folder = path if path.is_dir() else path.parent
    config = read_config(folder)
    for family in FAMILIES:
        if family.recognises(config):
            return with_proposal(family.load(folder, config, _weights(path)), folder)
    raise EdgewmError(
        f"config.json describes no known family (its keys: {', '.join(sorted(config)[:6])})",
        str(folder / "config.json"),
        "known are torch-world's LeWM and stable-worldmodel's LeWM; for your own model give module:function",
    )  # fmt: skip


def _weights(path: Path) -> Path:
    folder = path.parent if path.suffix == ".json" and path.is_file() else path
    return weights_file(folder) if folder.is_dir() else path


def capture_model(model: Model, planner: Planner | None = None, only: Sequence[str] | None = None) -> Program:
    """The Program of a model: entries `encode`, `predict` (full window; `predict_<T>` for shorter ones), `score`,
    `decode_<head>`, `propose` where the planner has its `proposal`, `plan` (noise from Philox) and `plan_with_noise`
    (noise from a port); weights, ports, planner.

    Of `only`, where given, these entries, and what they need. Raises EdgewmError for planner settings that do not fit
    and for whatever `capture` refuses.
    """
    planner = planner or model.planner
    _check(model, planner)
    weights: Store = {}
    entries = {}

    def enter(name: str, call, inputs: dict[str, torch.Tensor], output: str) -> None:
        if only is not None and name not in (*only, "encode"):
            return
        entries[name], _ = capture(model.torch, [*inputs.values()], [*inputs], [output], call=call, weights=weights)

    samples, latent, action = planner.samples, model.latent_dim, model.action_dim
    enter("encode", model.encode, {p.name: example(p) for p in model.ports_of("observation")}, "z")
    for length in range(1, model.window + 1):
        window = {"z": torch.zeros(samples, length, latent), "actions": torch.zeros(samples, length, action)}
        enter("predict" if length == model.window else f"predict_{length}", model.predict, window, "z_next")
    entries["score"] = capture_score(model, planner, weights)
    for name, head in model.heads.items():
        enter(f"decode_{name}", head, {"z": torch.zeros(1, latent)}, name)
    pairs = zip(model.ports_of("observation"), model.ports_of("goal"), strict=True)
    goals = {observation.name: goal.name for observation, goal in pairs}
    roll = capture_roll(model, planner, weights) if planner.roll_committed else None
    propose = capture_proposal(model, planner, weights) if planner.proposal else None
    if propose is not None and (only is None or "propose" in only):
        entries["propose"] = propose
    weights |= plan_weights(planner)
    for name, injected in (("plan", False), ("plan_with_noise", True)):
        if only is not None and name not in only:
            continue
        entries[name] = plan_graph(entries["encode"], entries["score"], planner, goals, injected, roll, propose)
    kept = (*state_ports(planner, latent, action), noise_port(planner, action))
    ports = tuple(_bounded(p, planner) for p in model.ports)
    return Program(entries=entries, weights=weights, ports=ports + kept, planner=planner)


def capture_score(model: Model, planner: Planner, weights: Store, dtype: torch.dtype = torch.float32) -> Graph:
    """The graph of `z` (history, latent), `goal` (1, latent), `candidates` (samples, horizon, action) and, with a
    history, `past_actions` (history - 1, action) to `cost` (samples,); its weights enter `weights`. `dtype` is that of
    the module."""
    score = model.scored(planner.objective)
    shapes = {
        "z": (planner.history, model.latent_dim), "goal": (1, model.latent_dim),
        "candidates": (planner.samples, planner.horizon, model.action_dim),
    }  # fmt: skip
    call = score
    if planner.history > 1:
        shapes["past_actions"] = (planner.history - 1, model.action_dim)

        def call(module, z, goal, candidates, past):
            return score(module, z, goal, torch.cat([past.expand(len(candidates), -1, -1), candidates], 1))

    inputs = [torch.zeros(shape, dtype=dtype) for shape in shapes.values()]
    return capture(model.torch, inputs, [*shapes], ["cost"], call=call, weights=weights)[0]


def capture_roll(model: Model, planner: Planner, weights: Store) -> Graph:
    """The graph of `z` (history, latent) and `actions` (history - 1 + committed, action) to the latents `z` (history,
    latent) when these actions have been played; its weights enter `weights`."""
    history, count = planner.history, planner.history - 1 + committed_actions(planner)

    def call(module: torch.nn.Module, z: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        latents = list(z.unbind(0))
        for t in range(history, count + 1):
            seen = slice(max(0, t - model.window), t)
            latents.append(model.predict(module, torch.stack(latents[seen])[None], actions[seen][None])[0])
        return torch.stack(latents[-history:])

    inputs = {"z": torch.zeros(history, model.latent_dim), "actions": torch.zeros(count, model.action_dim)}
    return capture(model.torch, [*inputs.values()], [*inputs], ["z"], call=call, weights=weights)[0]


def _check(model: Model, planner: Planner) -> None:
    """EdgewmError for settings that do not fit each other or the model."""
    check(planner, model.action_dim)
    if model.action_dim % planner.action_block:
        raise EdgewmError(
            f"a model action of {model.action_dim} numbers is no block of {planner.action_block} periods",
            "planner settings",
            "give the action_block the model was trained with (for a checkpoint in robot.json beside its config.json)",
        )  # fmt: skip
    if planner.history > model.window:
        raise EdgewmError(
            f"history is {planner.history}, the model looks at {model.window} frames at most", "planner settings",
            f"give a history of 1 to {model.window}",
        )  # fmt: skip


def _bounded(port: Port, planner: Planner) -> Port:
    """An action port without limits of its own takes the planner's."""
    if port.kind != "action" or port.low is not None or port.high is not None or port.scale:
        return port
    return replace(port, low=planner.low, high=planner.high)

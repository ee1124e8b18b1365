"""Which layer costs what fidelity: each product alone in the form that the recipe gives it, all others in full.

The full model runs in torch, but for one linear layer's product: that is the oracle's, quantized by the pass that a
build runs, weights rounded to nearest, channels as they come, constant steps those of what it is given at once. What is
compared are the costs of the last candidates of a search, which lie close together: there a small error is the largest
share of what tells one from another.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .. import expr as e
from .. import statistics
from ..interp import run as interpret
from ..options import WITH, Progress
from ..passes.quantize_products import HOLD, quantize_products
from ..program import Graph, Planner, Program
from .gates import finite
from .sides import search, start_of, upstream
from .sources import Pairs

Array = np.ndarray

CONTEXTS = 8
CANDIDATES = 32  # of the last iteration
_NOISE = 0x1A7E2


def with_one(module: Any, name: str, kind: str) -> Any | None:
    """A copy with the layer of the weight `name` held as `kind`; None where that is no linear layer's weight."""
    from torch.nn import Linear

    made = copy.deepcopy(module).eval()
    path, _, leaf = name.rpartition(".")
    layer = dict(made.named_modules()).get(path)
    if leaf != "weight" or not isinstance(layer, Linear):
        return None
    layer.register_forward_hook(held(layer, kind))
    return made


def held(layer: Any, kind: str) -> Callable[[Any, tuple, Any], Any]:
    """A forward hook of a torch linear layer that answers what it does with its weight held as `kind`."""
    import torch

    weight, form = np.ascontiguousarray(layer.weight.detach().numpy().T), HOLD[kind]

    @functools.cache
    def product(rows: int, *seen: float) -> Program:
        graph = Graph({"y": e.matmul(e.input("x", (rows, len(weight))), e.weight("w", weight.shape))})
        parts = zip(form.parts, form.hold(weight, np.array(seen)), strict=True) if seen else ()
        weights = {"w": weight, **{f"w/{part}": value for part, value in parts}}
        return quantize_products(Program({"product": graph}, weights, recipe={"w": kind}))

    def hook(layer: Any, given: tuple, answer: Any) -> Any:
        x = given[0].reshape(-1, given[0].shape[-1]).numpy()
        program = product(len(x), *((float(x.min()), float(x.max())) if form.by == "range" else ()))
        # Integer sums are exact. Those of floats, in canonical order, take long, and differ far less than bf16 rounds.
        is_exact = any(w.dtype == np.int8 for w in program.weights.values())
        y = interpret(program.entries["product"], {"x": x}, program.weights, real=not is_exact)["y"]
        found = torch.from_numpy(y.astype(np.float32)).reshape(answer.shape)
        return found if layer.bias is None else found + layer.bias

    return hook


def run(
    model: Any, planner: Planner, recipe: Mapping[str, str], pairs: Pairs, seed: int, progress: Progress
) -> dict[str, Any]:
    """`rows` of `name`, `form`, `cost_error` (rms over spread, mean over contexts) and `spearman_min`, the dearest
    first, those without a finite error before all; `not_told`, the products that are no whole linear layer of the
    model's. Values that a recipe holds between calls are no product's."""
    full, seen = upstream(model, planner), []
    shape = (planner.iterations, planner.samples, planner.horizon, model.action_dim)
    for i, (observation, goal) in enumerate(pairs):
        noise = np.random.default_rng([_NOISE, seed, i]).standard_normal(shape, np.float32)
        z, target = full.encode(observation), full.encode(goal)
        found = search(lambda c: full.score(z, target, c), planner, noise, *start_of(full, z, target))  # noqa: B023
        chosen = np.linspace(0, planner.samples - 1, min(CANDIDATES, planner.samples)).round().astype(int)
        seen.append((observation, goal, found.candidates[-1, chosen], found.costs[-1, chosen].astype(np.float64)))
    rows, not_told = [], []
    products = {name: kind for name, kind in recipe.items() if not name.startswith(WITH)}
    for i, (name, kind) in enumerate(products.items()):
        made = with_one(model.torch, name, kind)
        if made is None:
            not_told.append(name)
            continue
        side = upstream(replace(model, torch=made), planner)
        costs = [np.asarray(side.score(side.encode(o), side.encode(g), c), np.float64) for o, g, c, _ in seen]
        error = [np.sqrt(np.mean(np.square(c - own))) / own.std() for c, (*_, own) in zip(costs, seen, strict=True)]
        rank = [statistics.spearman(c, own) for c, (*_, own) in zip(costs, seen, strict=True)]
        rows.append({"name": name, "form": kind, "cost_error": finite(float(np.mean(error))),
                     "spearman_min": finite(float(np.min(rank)))})  # fmt: skip
        progress("layers", (i + 1) / len(products))
    rows.sort(key=lambda row: -np.inf if row["cost_error"] is None else -row["cost_error"])
    return {"contexts": len(seen), "rows": rows, "not_told": not_told}

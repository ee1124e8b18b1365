"""A bank of candidates that the planner itself looked at, and what recipes make of their costs.

The bank is the full model's: whole searches from a few contexts. Costs are those of the entry `score`, by `fast.py`,
full and quantized alike, so that they differ by what the formats round away. A product tried alone is computed from
there on; what it does not reach stays as the full model has it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import statistics
from ..judge.sides import elites_of, search
from ..options import WITH
from ..passes import LOWERING
from ..passes.quantize_products import quantize_products
from ..program import Graph, Planner, Program
from .calibrate import searches
from .fast import values_of

Array = np.ndarray
Recipe = Mapping[str, str]


@dataclass(frozen=True)
class Looked:
    """One context: inputs of `score` but the candidates; the noise of its search and where that begins, as
    `sides.search` takes them; what it looked at, (I, S, H, A); costs (I, S) of the full model; the cost of its plan;
    the median of the costs of blind candidates."""

    given: Mapping[str, Array]
    drawn: tuple[Array, ...]
    candidates: Array
    costs: Array
    plan_cost: float
    blind_cost: float


def gathered(
    program: Program, model: str, data: Path | None, count: int, rng: np.random.Generator, iterations: int | None = None
) -> list[Looked]:
    """`count` contexts of the model's source; of each search `iterations` of them, evenly spread up to the last (None:
    all). EdgewmError where there is nothing to plan from."""
    found = []
    for given, drawn, seen in searches(program, model, data, count, rng, "precisions are"):
        last = len(seen.candidates) - 1
        kept = np.unique(np.linspace(last, 0, iterations or last + 1, endpoint=iterations is None).round().astype(int))
        candidates = seen.candidates[kept].astype(np.float32)
        costs = np.stack([cost_of(program, given, c) for c in candidates])
        plan_cost = float(_cost_of_plan(program, given, seen.mean))
        found.append(Looked(given, drawn, candidates, costs, plan_cost, float(np.median(seen.costs[0]))))
    return found


def quantized(program: Program, recipe: Recipe) -> Program:
    """The entry `score` alone, its products held as the recipe says; and lowered, where it says more than that."""
    one = Program({"score": program.entries["score"]}, program.weights, recipe=dict(recipe))
    if not any(name.startswith(WITH) for name in recipe):
        return quantize_products(one)
    return functools.reduce(lambda held, step: step(held), LOWERING, one)


def cost_of(program: Program, given: Mapping[str, Array], candidates: Array) -> Array:
    """Costs (S,) of candidates (S, H, A), as many as the program scores at once."""
    graph = program.entries["score"]
    return values_of(graph, {**given, "candidates": candidates}, program.weights)[graph.outputs["cost"]]


def alone(program: Program, bank: Sequence[Looked], recipes: Sequence[Recipe]) -> list[list[Array]]:
    """Costs (I, S) of each context in `bank`, under each of many recipes that change little: those first."""
    graph = program.entries["score"]
    tried = [quantized(program, recipe) for recipe in recipes]
    found: list[list[list[Array]]] = [[[] for _ in bank] for _ in recipes]
    for i, looked in enumerate(bank):
        for candidates in looked.candidates:
            inputs = {**looked.given, "candidates": candidates}
            full = values_of(graph, inputs, program.weights)
            for each, own in zip(tried, found, strict=True):
                own[i].append(_from(each.entries["score"], inputs, each.weights, full))
    return [[np.stack(costs) for costs in own] for own in found]


def _from(graph: Graph, inputs: Mapping[str, Array], weights: Mapping[str, Array], full: Mapping[Any, Array]) -> Array:
    end = graph.outputs["cost"]
    return full[end] if end in full else values_of(graph, inputs, weights, full)[end]


def together(program: Program, bank: Sequence[Looked], recipe: Recipe, planner: Planner) -> dict[str, float]:
    """`fidelity` of a whole recipe on the bank, and `regret`, of its own plans from the same noise."""
    held = quantized(program, recipe)
    costs = [np.stack([cost_of(held, each.given, c) for c in each.candidates]) for each in bank]
    plans = [search(lambda c: cost_of(held, each.given, c), planner, *each.drawn).mean for each in bank]  # noqa: B023
    lost = [_cost_of_plan(program, each.given, plan) - each.plan_cost for each, plan in zip(bank, plans, strict=True)]
    gained = [each.blind_cost - each.plan_cost for each in bank]
    return fidelity(bank, costs, planner.elites) | {"regret": float(np.sum(lost) / np.sum(gained))}


def _cost_of_plan(program: Program, given: Mapping[str, Array], plan: Array) -> float:
    samples = program.entries["score"].outputs["cost"].shape[0]
    return float(cost_of(program, given, np.repeat(plan[None].astype(np.float32), samples, 0))[0])


def fidelity(bank: Sequence[Looked], costs: Sequence[Array], elites: int) -> dict[str, float]:
    """Of costs (I, S) for each context, beside the full model's.

    error           rms over the spread of costs, iteration by iteration: near its end a search compares what lies close
                    together, and there a small error is a large share of that. Squares of it add up over products
    spearman_min    rank correlation over the bank of a context, the least
    elite_overlap   the share of elites that stay, iteration by iteration
    elite_regret    what the elites cost more under the full model, as a share of what a plan gains over blind ones
    """
    pairs = [pair for each, own in zip(bank, costs, strict=True) for pair in zip(each.costs, own, strict=True)]
    told = [(full, own) for full, own in pairs if full.std() > 0]
    squares = [np.mean(np.square(own - full, dtype=np.float64)) / full.var(dtype=np.float64) for full, own in told]
    chosen = [(full, elites_of(full, elites), elites_of(own, elites)) for full, own in pairs]
    lost = sum(float(full[new].mean() - full[old].mean()) for full, old, new in chosen)
    gained = sum((each.blind_cost - each.plan_cost) * len(each.costs) for each in bank)
    ranks = [statistics.spearman(each.costs.ravel(), own.ravel()) for each, own in zip(bank, costs, strict=True)]
    return {
        "error": float(np.sqrt(np.mean(squares))) if squares else 0.0,
        "spearman_min": float(min(ranks)),
        "elite_overlap": float(np.mean([len(np.intersect1d(old, new)) / len(old) for _, old, new in chosen])),
        "elite_regret": lost / gained,
    }

"""Weights of few bits and constant steps, chosen for what the dynamics will really see: the candidates of the planner's
own searches.

A search with the full model from each of a few contexts; of the candidates of all its iterations, blind ones and late
ones, as many as the program scores at once run through it in float64, and what each product reads is summed up as
second moments, or as a range. Everything is drawn from the seed of the build, so two builds give one bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import interp
from ..errors import EdgewmError
from ..passes.quantize_products import HOLD, hold, is_on_levels
from ..program import Graph, Node, Program

if TYPE_CHECKING:
    from ..judge.sides import Search, Side

CONTEXTS = 8  # to plan from
MOST_ITERATIONS = 8  # of a search: later ones only draw closer together
MOST_ROWS = 1024  # of one product's inputs for each context
_NOISE = 0xCA11

Array = np.ndarray


def calibrated(program: Program, model: str, data: Path | None = None, seed: int = 0) -> Program:
    """The program with those weights beside it, already held, that its recipe has in few bits; itself where there are
    none, or where all lie on their levels as a student trained so has them. `program` is exact; MODEL and `data` are
    what `build` takes.

    A product in constant steps that no candidate runs through takes steps of each row's range: `w8a8`. Raises
    EdgewmError where there is nothing to plan from.
    """
    recipe = program.recipe or {}
    few = {by: sorted(name for name, form in recipe.items() if HOLD[form].by == by) for by in ("moments", "range")}
    few["moments"] = [name for name in few["moments"] if not is_on_levels(program.weights[name], recipe[name])]
    if not any(few.values()):
        return program
    inputs, score = list(searched(program, model, data, seed)), program.entries["score"]
    moments = second_moments(score, program.weights, few["moments"], inputs) if few["moments"] else {}
    ranges = ranges_of(score, program.weights, few["range"], inputs) if few["range"] else {}
    unseen = {name: "w8a8" for name in few["range"] if name not in ranges}
    weights = dict(program.weights)
    for name in (*few["moments"], *ranges):
        parts = (f"{name}/{part}" for part in HOLD[recipe[name]].parts)
        seen = ranges.get(name, moments.get(name))
        weights.update(zip(parts, hold(name, recipe[name], program.weights[name], seen), strict=True))
    return program.with_(weights=weights, recipe={**recipe, **unseen})


def second_moments(
    graph: Graph, weights: Mapping[str, Array], names: Iterable[str], inputs: Iterable[Mapping[str, Array]]
) -> dict[str, Array]:
    """Sum of x^T x (K, K) over what the product with each named weight reads; those the graph has no product with, or
    one for each of a batch, are left out."""
    found = {name: np.zeros((len(weights[name]),) * 2) for name in names if weights[name].ndim == 2}
    seen: set[str] = set()

    def watch(node: Node, sources: list[Array]) -> None:
        name = node.sources[1]["name"] if node.op == "matmul" and node.sources[1].op == "weight" else None
        if name in found:
            rows = sources[0].reshape(-1, len(found[name]))
            rows = rows[:: -(-len(rows) // MOST_ROWS)]
            found[name] += rows.T @ rows
            seen.add(name)

    for given in inputs:
        interp.run(graph, given, weights, real=True, watch=watch)
    return {name: found[name] for name in found if name in seen}


def ranges_of(
    graph: Graph, weights: Mapping[str, Array], names: Iterable[str], inputs: Iterable[Mapping[str, Array]]
) -> dict[str, Array]:
    """Least and greatest number (2,) that the product with each named weight reads; those the graph has no product with
    are left out. Products of one value have one range, so that they stay products of one value in steps."""
    found = {name: np.zeros(2) for name in names}
    readers: dict[Node, set[str]] = {}

    def watch(node: Node, sources: list[Array]) -> None:
        name = node.sources[1]["name"] if node.op == "matmul" and node.sources[1].op == "weight" else None
        if name in found:
            readers.setdefault(node.sources[0], set()).add(name)
            _widen(found[name], sources[0].min(), sources[0].max())

    for given in inputs:
        interp.run(graph, given, weights, real=True, watch=watch)
    for _ in found:  # one may pass on what another gave it
        for group in readers.values():
            low, high = np.array([found[name] for name in group]).T
            for name in group:
                _widen(found[name], low.min(), high.max())
    seen = set().union(*readers.values())
    return {name: both for name, both in found.items() if name in seen}


def _widen(both: Array, low: float, high: float) -> None:
    both[:] = min(both[0], low), max(both[1], high)


def searched(program: Program, model: str, data: Path | None, seed: int) -> Iterator[dict[str, Array]]:
    """Inputs of the entry `score`: for each context a selection of all candidates that one search looks at."""
    rng, planner = np.random.default_rng([_NOISE, seed]), program.planner
    for given, _, found in searches(program, model, data, CONTEXTS, rng, "weights of 4 bits and constant steps are"):
        everyone = found.candidates.reshape(-1, *found.candidates.shape[2:])
        yield given | {"candidates": everyone[rng.choice(len(everyone), planner.samples, replace=False)]}


def searches(
    program: Program, model: str, data: Path | None, count: int, rng: np.random.Generator, what: str
) -> Iterator[tuple[dict[str, Array], tuple[Array, ...], Search]]:
    """Searches of the full model from `count` contexts, of MOST_ITERATIONS at most: the inputs of the entry `score` but
    the candidates; the noise and where it begins, as `sides.search` takes them; what was looked at. EdgewmError, which
    says for `what`, where nothing is to plan from."""
    from .. import models
    from ..judge.sides import in_context, search, start_of, upstream
    from ..judge.sources import source_of

    loaded = models.load(model)
    contexts = source_of(model, loaded, data).contexts
    if contexts is None:
        raise EdgewmError(
            f"{what} chosen on the planner's own candidates, and there is nothing to plan from", model,
            "give recorded observations with --calibration FILE (the file that validate --data takes)",
        )  # fmt: skip
    planner = replace(program.planner, iterations=min(program.planner.iterations, MOST_ITERATIONS))
    side, older = upstream(loaded, planner), planner.history - 1
    shape = (planner.iterations, planner.samples, planner.horizon, loaded.action_dim)
    for observation, goal in contexts(count, int(rng.integers(2**31))):  # not those a judge draws by the same seed
        z, target = side.encode(observation), side.encode(goal)
        drawn = (rng.standard_normal(shape, np.float32), *start_of(side, z, target))
        found = search(_cost(side, z, target), planner, *drawn)
        latents, actions = in_context(planner, z, found.candidates[0])
        past = {"past_actions": actions[0, :older]} if older else {}
        yield {"z": latents, "goal": target[None], **past}, drawn, found


def _cost(side: Side, z: Array, target: Array) -> Callable[[Array], Array]:
    return lambda candidates: side.score(z, target, candidates)

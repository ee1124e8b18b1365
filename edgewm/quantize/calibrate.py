"""Weights of few bits and constant steps, chosen for what the dynamics will really see: the candidates of the planner's
own searches.

A search with the full model from each of a few contexts; of the candidates of all its iterations, blind ones and late
ones, as many as the program scores at once run through it in float64, and what each product reads is summed up as
second moments, or as a range, or some of it is kept. Everything is drawn from the seed of the build, so two builds give
one bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import interp
from ..errors import EdgewmError
from ..ops import graph_flops
from ..passes.quantize_products import HOLD, Moments, hold, is_on_levels
from ..program import Graph, Node, Program
from . import weight_of
from .smooth import POWERS, Smooth, smoothed

if TYPE_CHECKING:
    from ..judge.sides import Search, Side

CONTEXTS = (8, 32)  # to plan from, at least and at most: what few have in common is not what all have
OPERATIONS = 1e12  # of planning and looking in all of them, if fewer will do
MOST_ITERATIONS = 8  # of a search: later ones only draw closer together
MOST_ROWS = 1024  # of one product's inputs for each context
KEPT_ROWS = 512  # of them that are kept, where their sum does not do
WHAT = "weights of 4 bits, smooth channels and constant steps are"
_NOISE = 0xCA11

Array = np.ndarray


def calibrated(program: Program, model: str, data: Path | None = None, seed: int = 0) -> Program:
    """The program with those weights beside it, already held, that its recipe has in few bits; itself where there are
    none, or where all lie on their levels as a student trained so has them. `program` is exact; MODEL and `data` are
    what `build` takes.

    A product in constant steps, or of smooth channels, that no candidate runs through takes steps of each row's range:
    `w8a8`. Raises EdgewmError where there is nothing to plan from.
    """
    recipe, few = program.recipe or {}, chosen_by(program)
    if not any(few.values()):
        return program
    inputs, score = list(searched(program, model, data, seed)), program.entries["score"]
    look = {"moments": second_moments, "range": ranges_of, "rows": smooth_of}
    found = {by: look[by](score, program.weights, names, inputs) if names else {} for by, names in few.items()}
    seen = found["moments"] | found["range"] | found["rows"]
    without = {name: "w8a8" for name in (*few["range"], *few["rows"]) if name not in seen}
    weights = dict(program.weights)
    for name in (*few["moments"], *found["range"], *found["rows"]):
        parts = (f"{name}/{part}" for part in HOLD[recipe[name]].parts)
        weights.update(zip(parts, hold(name, recipe[name], program.weights[name], seen.get(name)), strict=True))
    return program.with_(weights=weights, recipe={**recipe, **without})


def chosen_by(program: Program) -> dict[str, list[str]]:
    """Names of the weights that are to be chosen on what their products read, by what is looked at there."""
    recipe = program.recipe or {}
    few = {by: sorted(n for n, form in recipe.items() if HOLD[form].by == by) for by in ("moments", "range", "rows")}
    few["moments"] = [name for name in few["moments"] if not is_on_levels(program.weights[name], recipe[name])]
    return few


def check_contexts(program: Program, model: str, data: Path | None) -> None:
    """EdgewmError where `calibrated` would find nothing to plan from."""
    from .. import models

    if any(chosen_by(program).values()):
        _contexts(model, models.load(model), data, WHAT)


def second_moments(
    graph: Graph, weights: Mapping[str, Array], names: Iterable[str], inputs: Iterable[Mapping[str, Array]]
) -> dict[str, Moments]:
    """Of what the product with each named weight reads; those the graph has no product with, or one for each of a
    batch, are left out."""
    depths = {name: len(weights[name]) for name in names if weights[name].ndim == 2}
    sums = {name: np.zeros((depth + 1,) * 2) for name, depth in depths.items()}  # with a column of ones: mean and count

    def watch(node: Node, sources: list[Array]) -> None:
        name = weight_of(node)
        if name in sums:
            rows = _some(sources[0], MOST_ROWS)
            rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
            sums[name] += rows.T @ rows

    for given in inputs:
        interp.run(graph, given, weights, real=True, watch=watch)
    found = {}
    for name, whole in sums.items():
        if (count := whole[-1, -1]) > 0:
            mean = whole[-1, :-1] / count
            found[name] = Moments(mean, whole[:-1, :-1] - count * np.outer(mean, mean), count)
    return found


def ranges_of(
    graph: Graph, weights: Mapping[str, Array], names: Iterable[str], inputs: Iterable[Mapping[str, Array]]
) -> dict[str, Array]:
    """Least and greatest number (2,) that the product with each named weight reads; those the graph has no product with
    are left out. Products of one value have one range, so that they stay products of one value in steps."""
    groups = _groups(graph, names)
    found = {group: np.zeros(2) for group in groups.values()}

    def watch(node: Node, sources: list[Array]) -> None:
        both = found.get(groups.get(weight_of(node)))
        if both is not None:
            both[:] = min(both[0], sources[0].min()), max(both[1], sources[0].max())

    for given in inputs:
        interp.run(graph, given, weights, real=True, watch=watch)
    return {name: found[group].copy() for name, group in groups.items()}


def smooth_of(
    graph: Graph, weights: Mapping[str, Array], names: Iterable[str], inputs: Iterable[Mapping[str, Array]],
    powers: Sequence[float] = POWERS,
) -> dict[str, Smooth]:  # fmt: skip
    """How channels of what the product with each named weight reads are made alike; those the graph has no product
    with, or one for each of a batch, are left out. Products of one value have one answer, so that they can be merged.
    """
    groups = _groups(graph, (name for name in names if weights[name].ndim == 2))
    values = {node.sources[0]: groups[weight_of(node)] for node in graph.order() if weight_of(node) in groups}
    share = {group: -(-KEPT_ROWS // count) for group, count in Counter(values.values()).items()}
    rows: dict[frozenset[str], list[Array]] = {group: [] for group in share}
    left: dict[Node, frozenset[str]] = {}

    def watch(node: Node, sources: list[Array]) -> None:
        group = left.pop(node.sources[0], None) if node.op == "matmul" else None
        if group is not None:
            rows[group].append(_some(sources[0], share[group]).astype(np.float32))

    for given in inputs:
        left.update(values)
        interp.run(graph, given, weights, real=True, watch=watch)
    found = {}
    for group, parts in rows.items():
        own = [weights[name] for name in sorted(group)]
        found |= dict.fromkeys(group, smoothed(np.concatenate(parts), own, powers))
    return found


def _groups(graph: Graph, names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Of each named weight that the graph has a product with, those among them that read the same values."""
    wanted, readers = set(names), {}
    for node in graph.order():
        if (name := weight_of(node)) in wanted:
            readers.setdefault(node.sources[0], set()).add(name)
    found: list[frozenset[str]] = []
    for group in map(frozenset, readers.values()):
        others = [other for other in found if not group & other]
        found = [*others, group.union(*(other for other in found if group & other))]
    return {name: group for group in found for name in sorted(group)}


def _some(x: Array, count: int) -> Array:
    """Rows (R, K) of x (..., K), evenly spread, `count` at most."""
    rows = x.reshape(-1, x.shape[-1])
    return rows[:: -(-len(rows) // count)]


def searched(program: Program, model: str, data: Path | None, seed: int) -> Iterator[dict[str, Array]]:
    """Inputs of the entry `score`: for each context a selection of all candidates that one search looks at."""
    rng, planner = np.random.default_rng([_NOISE, seed]), program.planner
    for given, _, found in searches(program, model, data, contexts_for(program), rng, WHAT):
        everyone = found.candidates.reshape(-1, *found.candidates.shape[2:])
        yield given | {"candidates": everyone[rng.choice(len(everyone), planner.samples, replace=False)]}


def contexts_for(program: Program) -> int:
    """How many contexts to plan from: fewer of a large model, which has as many rows of activations from each."""
    rounds = min(program.planner.iterations, MOST_ITERATIONS) + 1
    return int(np.clip(OPERATIONS / (rounds * graph_flops(program.entries["score"])), *CONTEXTS))


def searches(
    program: Program, model: str, data: Path | None, count: int, rng: np.random.Generator, what: str
) -> Iterator[tuple[dict[str, Array], tuple[Array, ...], Search]]:
    """Searches of the full model from `count` contexts, of MOST_ITERATIONS at most: the inputs of the entry `score` but
    the candidates; the noise and where it begins, as `sides.search` takes them; what was looked at. EdgewmError, which
    says for `what`, where nothing is to plan from."""
    from .. import models
    from ..judge.sides import in_context, search, start_of, upstream

    loaded = models.load(model)
    contexts = _contexts(model, loaded, data, what)
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


def _contexts(model: str, loaded: Any, data: Path | None, what: str) -> Callable[[int, int], Iterable]:
    from ..judge.sources import source_of

    contexts = source_of(model, loaded, data, learning=True).contexts
    if contexts is None:
        raise EdgewmError(
            f"{what} chosen on the planner's own candidates, and there is nothing to plan from", model,
            "give recorded observations with --calibration (what validate --data takes)",
        )  # fmt: skip
    return contexts


def _cost(side: Side, z: Array, target: Array) -> Callable[[Array], Array]:
    return lambda candidates: side.score(z, target, candidates)

"""Precision chosen by planning and by the clock: for each product what its formats cost in fidelity and save in time,
the Pareto front of both, and the most faithful point of it that holds a control rate.

Squares of the error of costs add up over products that are rounded on their own, and so do their times. So the front
is that of a sum: all products in their most faithful format, then step by step whatever saves most time for the error
it brings. What is offered in the end is not that sum: each point is priced by its own schedule, and judged whole, on
contexts that the search has not seen. Named recipes stand among the points.

Every draw follows from the seed. What runs once a plan stays exact, as in the named recipes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import EdgewmError
from ..ops import graph_flops
from ..options import WITH, Progress
from ..program import Program
from ..target import Target
from . import SMALLEST_K, products_of, recipe_of
from .bank import alone, fidelity, gathered, together
from .price import Clock, own_prices, priced

EXACT = "fp32"
CONTEXTS = 6  # on which points are judged
POINTS = 6  # found ones that are judged, beside that which the rate asks for
OPERATIONS = 1e12  # spent on trying products one by one
ROWS = (2, 16)  # iterations of candidates for that, at least and at most
DIGITS = 4  # of the figures kept: float32 sums of another machine's BLAS end in others
_TRIED, _JUDGED = 0x5EA, 0x5EB

Recipe = Mapping[str, str]


class Step(NamedTuple):
    """The next faster format of one product: ms that it saves, and what it adds to the square of the error."""

    name: str
    form: str
    saved_ms: float
    added: float


def chosen(
    program: Program, model: str, data: Path | None, clock: Clock, rate_hz: float, seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The recipe of the most faithful point that holds `rate_hz` by the clock, and what it was chosen from.

    `program` is exact; MODEL and `data` are what `build` takes. A plan holds the rate where the upper bound of its
    estimate is within the control periods that it commits. The result is plain JSON:

    recipe      weight name -> format
    budget_ms   those periods
    chosen      index into `front`
    front       the fastest first: {name, recipe, forms, plan_ms, error, spearman_min, elite_overlap, regret}, where
                each is slower and more faithful than the one before (`bank.fidelity` defines the figures)
    beaten      what was judged too, but is no faster and no more faithful than another
    nodes       for each product {name, form, products: {format: {error, spearman_min, elite_overlap, elite_regret,
                saved_ms}}, why}: alone in each format; `why` where it was left above the fastest one

    EdgewmError where there is nothing to plan from, or where no point holds the rate.
    """
    say = progress or (lambda stage, done: None)
    names = sorted(n for n in products_of(program.entries["score"]) if program.weights[n].shape[-2] >= SMALLEST_K)
    say("precision: each product alone", 0.0)
    tried = sensitivities(program, model, data, names, clock.forms, seed)
    say("precision: prices", 0.4)
    saved = {key: -ms for key, ms in own_prices(program, names, clock).items()}
    steps = steps_of(names, saved, tried)
    recipes = recipes_of(program, names, steps)

    def price(recipe: Recipe) -> dict[str, float]:
        return priced(program, recipe, clock)

    budget_ms = program.planner.commit_steps * 1e3 / rate_hz
    say("precision: points", 0.5)
    named = [*clock.forms, *(WITH.join((clock.forms[-1], *classes)) for classes in clock.values)]
    points = _offered(program, recipes, named, price, budget_ms)
    if held(points, budget_ms) is None:
        _refuse(min(point["plan_ms"]["high"] for point in points), clock.board, budget_ms, rate_hz)
    bank = gathered(program, model, data, CONTEXTS, np.random.default_rng([_JUDGED, seed]))
    for i, point in enumerate(points):
        point |= together(program, bank, point["recipe"], program.planner) if point["recipe"] else _WHOLE
        say("precision: points", 0.5 + 0.5 * (i + 1) / len(points))
    front = pareto(points)
    best = held(front, budget_ms)
    recipe = front[best]["recipe"]
    nodes = [
        {"name": name, "form": recipe.get(name, EXACT), "products": {
            form: {**tried[name, form], "saved_ms": saved[name, form]} for form in clock.forms
        }, "why": why(name, recipe, steps, saved)} for name in names
    ]  # fmt: skip
    shown = [_told(point, names, clock.forms) for point in front]
    beaten = [_told(point, names, clock.forms) for point in points if not any(point is other for other in front)]
    found = {"rate_hz": rate_hz, "budget_ms": budget_ms, "contexts": CONTEXTS, "chosen": best, "front": shown,
             "beaten": beaten, "nodes": nodes}  # fmt: skip
    return {"recipe": _everywhere(program, recipe, clock.forms[-1]), **_rounded(found)}


def _everywhere(program: Program, recipe: Recipe, named: str) -> dict[str, str]:
    """With the parts of the same weights that only other entries read, for tools: held as the whole is. All that may
    be are in the recipe of that name."""
    others = {name: recipe.get(name.partition("[")[0]) for name in recipe_of(program, named) if name not in recipe}
    planned = products_of(program.entries["plan"])
    return {**recipe, **{name: form for name, form in others.items() if form and name not in planned}}


_WHOLE = {"error": 0.0, "spearman_min": 1.0, "elite_overlap": 1.0, "elite_regret": 0.0, "regret": 0.0}


def sensitivities(
    program: Program, model: str, data: Path | None, names: Sequence[str], forms: Sequence[str], seed: int
) -> dict[tuple[str, str], dict[str, float]]:
    """`bank.fidelity` of each product alone in each format."""
    pairs = [(name, form) for name in names for form in forms]
    each = graph_flops(program.entries["score"]) * (1 + len(pairs))
    rows = int(np.clip(OPERATIONS / each, *ROWS))
    contexts = int(np.sqrt(rows))
    bank = gathered(program, model, data, contexts, np.random.default_rng([_TRIED, seed]), rows // contexts)
    costs = alone(program, bank, [{name: form} for name, form in pairs])
    elites = program.planner.elites
    return {pair: fidelity(bank, own, elites) for pair, own in zip(pairs, costs, strict=True)}


def steps_of(
    names: Sequence[str], saved: Mapping[tuple[str, str], float], tried: Mapping[tuple[str, str], Mapping[str, float]]
) -> list[Step]:
    """What to give up, in order: most time saved for the square of the error first; of each product the formats on the
    lower convex hull of both, in theirs."""
    found: list[Step] = []
    for name in names:
        ms, lost = 0.0, 0.0
        while True:
            ahead = [(form, saved[n, form] - ms, tried[n, form]["error"] ** 2 - lost) for n, form in saved if n == name]
            ahead = [Step(name, form, *gain) for form, *gain in ahead if gain[0] > 0]
            if not ahead:
                break
            step = min(ahead, key=lambda s: (max(s.added, 0.0) / s.saved_ms, -s.saved_ms))
            ms, lost = ms + step.saved_ms, max(lost, lost + step.added)
            found.append(step)
    return sorted(found, key=lambda s: (max(s.added, 0.0) / s.saved_ms, s.name, s.added))


def recipes_of(program: Program, names: Sequence[str], steps: Sequence[Step]) -> list[Recipe]:
    """All products exact, and the recipe after each step."""
    recipe: dict[str, str] = {}
    found: list[Recipe] = [{}]
    for step in steps:
        recipe = recipe | {step.name: step.form}
        found.append(recipe)
    return found


def _offered(
    program: Program, recipes: Sequence[Recipe], named: Sequence[str], price: Any, budget_ms: float
) -> list[dict[str, Any]]:
    """Points to judge, priced: some of the recipes evenly, the most faithful one that holds the budget, named ones."""
    last = len(recipes) - 1
    prices = {i: price(recipes[i]) for i in (0, last)}
    low, high = 0, last
    while high - low > 1 and prices[0]["high"] > budget_ms >= prices[last]["high"]:
        middle = (low + high) // 2
        prices[middle] = price(recipes[middle])
        low, high = (low, middle) if prices[middle]["high"] <= budget_ms else (middle, high)
    kept = {0, last, high, *np.linspace(0, last, POINTS).round().astype(int).tolist()}
    points = [
        {"name": "found" if i else EXACT, "recipe": recipes[i], "plan_ms": prices.get(i) or price(recipes[i])}
        for i in sorted(kept)
    ]
    inside = products_of(program.entries["plan"])
    for name in named:
        recipe = {n: form for n, form in recipe_of(program, name).items() if n in inside or n.startswith(WITH)}
        if all(recipe != point["recipe"] for point in points):
            points.append({"name": name, "recipe": recipe, "plan_ms": price(recipe)})
    return points


def pareto(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that none is both as fast and as faithful as, the fastest first: time and fidelity rise along them."""
    found: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: (p["plan_ms"]["point"], p["error"])):
        if not found or point["error"] < found[-1]["error"]:
            found.append(point)
    return found


def held(front: Sequence[Mapping[str, Any]], budget_ms: float) -> int | None:
    """Index of the most faithful point whose upper bound is within the budget; None where there is none."""
    within = [i for i, point in enumerate(front) if point["plan_ms"]["high"] <= budget_ms]
    return max(within, default=None)


def _refuse(least_ms: float, board: Target, budget_ms: float, rate_hz: float) -> None:
    raise EdgewmError(
        f"no precision holds {rate_hz:g} Hz: a plan has {budget_ms:.3g} ms, the fastest takes up to {least_ms:.3g} ms",
        f"--precision auto --rate-hz {rate_hz:g} for {board.name}",
        f"ask for {rate_hz * budget_ms / least_ms:.3g} Hz at most, for fewer --samples, or more --threads",
    )


def why(name: str, recipe: Recipe, steps: Sequence[Step], saved: Mapping[tuple[str, str], float]) -> str | None:
    """Why a product was left above the fastest of its formats; None where it was not."""
    form, forms = recipe.get(name, EXACT), [other for n, other in saved if n == name]
    ahead = [step for step in steps if step.name == name]
    below = [step for step in ahead if saved[name, step.form] > saved.get((name, form), 0.0)]
    if not below:
        slower = [other for other in forms if saved[name, other] <= saved.get((name, form), 0.0) and other != form]
        return f"no faster here in {' or '.join(slower)}" if form != forms[-1] else None
    whole = sum(step.added for step in steps)
    share = below[-1].added / whole if whole > 0 else 0.0
    return f"{below[-1].form} saves {below[-1].saved_ms:.2g} ms and brings {100 * share:.2g} % of what all bring"


def _told(point: Mapping[str, Any], names: Sequence[str], forms: Sequence[str]) -> dict[str, Any]:
    """A point with how many products it has in each format."""
    held = [point["recipe"].get(name, EXACT) for name in names]
    return {**point, "recipe": dict(point["recipe"]), "forms": {f: held.count(f) for f in (EXACT, *forms) if f in held}}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value

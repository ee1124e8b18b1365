"""What a recipe costs on a target: the time of a plan, from the schedule of exactly that recipe.

A product's own price is the difference that it makes alone, once for all products of the same shapes. That overlooks
what merging and fusing make of neighbours, so what is chosen by such prices is then priced whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..emit import schedule_program
from ..estimate.counts import plan_counts
from ..estimate.cpu import Machine, price_plan
from ..passes import LOWERING, run
from ..program import Program
from ..target import Target


def priced(
    program: Program, recipe: Mapping[str, str], board: Target, machine: Machine, threads: int, entry: str = "plan"
) -> dict[str, float]:
    """{point, low, high} in ms of one run of an entry of the exact program, its products held as the recipe says."""
    one = program.with_(entries={entry: program.entries[entry]}, recipe=dict(recipe), target=board)
    lowered = run(one, LOWERING)
    return price_plan(plan_counts(schedule_program(lowered, board.isa), board.isa, entry), machine, threads)["plan_ms"]


def own_prices(
    program: Program, names: Iterable[str], forms: Iterable[str], board: Target, machine: Machine, threads: int
) -> dict[tuple[str, str], float]:
    """ms that a plan takes more (less than 0: saves) where the product with a weight, alone, is held in a form."""
    sizes: dict[str, list[Any]] = {name: [] for name in names}
    for node in program.entries["score"].order():
        if node.op == "matmul" and node.sources[1].op == "weight" and node.sources[1]["name"] in sizes:
            sizes[node.sources[1]["name"]].append((node.sources[0].shape, node.sources[1].shape))
    exact = priced(program, {}, board, machine, threads, "score")["point"]
    iterations = program.planner.iterations
    known: dict[Any, float] = {}
    found = {}
    for name, shapes in sizes.items():
        for form in forms:
            like = (form, tuple(sorted(shapes)))
            if like not in known:
                known[like] = priced(program, {name: form}, board, machine, threads, "score")["point"] - exact
            found[name, form] = iterations * known[like]
    return found

"""What a recipe costs on a target: the time of a plan, from the schedule of exactly that recipe.

A product's own price is the difference that it makes alone, once for all products of the same shapes. That overlooks
what merging and fusing make of neighbours, so what is chosen by such prices is then priced whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..cuda.schedule import schedule_gpu
from ..emit import schedule_program
from ..estimate.counts import plan_counts
from ..estimate.cpu import Machine, price_plan
from ..estimate.machine import gpu_of
from ..estimate.placed import price_gpu
from ..options import VALUES
from ..passes import LOWERING, run
from ..program import Program
from ..target import Mode, Target

FASTEST = "w8a8"  # of the named recipes, on every target


@dataclass(frozen=True)
class Clock:
    """What recipes are priced by: threads of a board's processor, at what `machine` says of it; where that is None, the
    board's GPU."""

    board: Target
    mode: Mode
    threads: int
    machine: Machine | None

    @property
    def forms(self) -> tuple[str, ...]:
        """The formats that products may be faster in, each rounding more away than the one before. Halves are stored
        and multiplied as float32 by a CPU; weights of 4 bits are read as int8 or bf16 by both and gain no time."""
        return ("bf16", FASTEST) if self.machine else ("fp16", "bf16", FASTEST)

    @property
    def values(self) -> tuple[tuple[str, ...], ...]:
        """Classes of values between calls that may be faster in bf16: a CPU's stay in its caches."""
        return () if self.machine else (VALUES[:-1], VALUES)


def priced(program: Program, recipe: Mapping[str, str], clock: Clock, entry: str = "plan") -> dict[str, float]:
    """{point, low, high} in ms of one run of an entry of the exact program, its products held as the recipe says.
    EdgewmError for a GPU in a mode whose clocks nobody has confirmed."""
    board = clock.board
    one = program.with_(entries={entry: program.entries[entry]}, recipe=dict(recipe), target=board)
    lowered = run(one, LOWERING)
    if clock.machine is None:
        return price_gpu(schedule_gpu(lowered), board, clock.mode, gpu_of(board, clock.mode))[0]["plan_ms"]
    counts = plan_counts(schedule_program(lowered, board.isa), board.isa, entry)
    return price_plan(counts, clock.machine, clock.threads)["plan_ms"]


def own_prices(program: Program, names: Iterable[str], clock: Clock) -> dict[tuple[str, str], float]:
    """ms that a plan takes more (less than 0: saves) where the product with a weight, alone, is held in a form."""
    sizes: dict[str, list[Any]] = {name: [] for name in names}
    for node in program.entries["score"].order():
        if node.op == "matmul" and node.sources[1].op == "weight" and node.sources[1]["name"] in sizes:
            sizes[node.sources[1]["name"]].append((node.sources[0].shape, node.sources[1].shape))
    exact = priced(program, {}, clock, "score")["point"]
    iterations = program.planner.iterations
    known: dict[Any, float] = {}
    found = {}
    for name, shapes in sizes.items():
        for form in clock.forms:
            like = (form, tuple(sorted(shapes)))
            if like not in known:
                known[like] = priced(program, {name: form}, clock, "score")["point"] - exact
            found[name, form] = iterations * known[like]
    return found

"""What a plan would gain whose parts run on different devices: each part's time on a board's CPU and GPU, estimated.

    python benchmarks/placement.py [--precisions w8a8 fp32] [--no-record]

`edgewm build --place auto` puts a plan on one device. Its parts are `encode` (once a plan), `score` (each round, from
noise to costs) and `refit` (from their ranks on). The best mixture is the least over all ways to place them, with
hand-overs at no cost, so no mixture gains more; `with handovers` charges each what the same models charge for the
beginning of work on the other side: a node of a graph, or a thread of the CPU that wakes. Both sides of these boards
have the same memory, so nothing is copied. Of a board the mode in which a mixture gains most is kept, all are printed.
Nothing ran on a board.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import worlds
from recording import add_flags, finish

from edgewm.cuda.bound import coefficients
from edgewm.cuda.schedule import schedule_gpu
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.estimate.counts import plan_counts
from edgewm.estimate.cpu import Machine, price_plan
from edgewm.estimate.gpu import check_mode, launches_us
from edgewm.estimate.machine import machine_of
from edgewm.estimate.placed import parts_of, price_gpu
from edgewm.models import Model, capture_model, load, synthetic
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Planner, Program
from edgewm.quantize import recipe_of
from edgewm.target import Mode, Target, resolve

TARGETS = ("orin", "orin-nano", "thor")
PLACES = ("cpu", "gpu")
TDMPC2 = Planner("mppi", samples=512, iterations=6, elites=64, horizon=3)
PATCHES = Planner(samples=8, iterations=30, elites=2, horizon=5)
Row = dict[str, Any]


def subjects() -> dict[str, Callable[[], Model]]:
    """LeWM and the reference model as they plan, that one with few candidates, too; TD-MPC2 5M's layers and values; of
    DINO-WM 196 patches of one frame with 8 candidates, whose encoder here is one product."""
    reference, tokens = load("reference"), (196, 384, 400, 16, 10, 6)
    few = replace(reference.planner, samples=26, iterations=2, elites=3)
    return {
        "LeWM 18M": lambda: synthetic.lewm(0), "reference": lambda: reference,
        "reference, 26 x 2": lambda: replace(reference, planner=few),
        "TD-MPC2 5M": lambda: replace(worlds.model(worlds.Ensemble, 39, 6, 512, 512, 5), planner=TDMPC2),
        "DINO-WM, 8 candidates": lambda: replace(worlds.model(worlds.Tokens, *tokens), planner=PATCHES),
    }  # fmt: skip


def lowered(exact: Program, precision: str, board: Target) -> Program:
    return run(exact.with_(recipe=recipe_of(exact, precision), target=board), LOWERING)


def modes_of(board: Target) -> list[Mode]:
    """Whose GPU's clocks and CPU are known."""
    found = []
    for mode in board.mode:
        try:
            check_mode(board, mode)
        except EdgewmError:
            continue
        if machine_of(board, mode, mode.cpu_cores or board.cpu.cores) is not None:
            found.append(mode)
    return found


def parts_ms(program: Program, board: Target) -> Callable[[Mode], dict[str, dict[str, float]]]:
    """{place: {part: ms}} of the program's plan in a mode."""
    cpu = {name: plan_counts(part, board.isa) for name, part in parts_of(schedule_program(program, board.isa)).items()}
    gpu = parts_of(schedule_gpu(program))

    def of(mode: Mode) -> dict[str, dict[str, float]]:
        cores = mode.cpu_cores or board.cpu.cores
        machine = machine_of(board, mode, cores)
        return {
            "cpu": {name: price_plan(counts, machine, cores)["plan_ms"]["point"] for name, counts in cpu.items()},
            "gpu": {name: price_gpu(part, board, mode)[0]["plan_ms"]["point"] for name, part in gpu.items()},
        }  # fmt: skip

    return of


def mixtures(
    ms: Mapping[str, Mapping[str, float]], iterations: int, to_ms: Mapping[str, float]
) -> dict[tuple[str, ...], float]:
    """ms of a plan by where its parts run; `to_ms` of each hand-over to a place."""
    parts = list(ms["cpu"])
    found = {}
    for places in itertools.product(PLACES, repeat=len(parts)):
        moved = 0.0
        for i, (before, after) in enumerate(itertools.pairwise(places)):
            times = iterations if parts[i] == "score" else 1
            moved += times * to_ms[after] if before != after else 0.0
            if parts[i] == "score" and before != after:  # and back, before the next round
                moved += (iterations - 1) * to_ms[before]
        found[places] = sum(ms[place][part] for place, part in zip(places, parts, strict=True)) + moved
    return found


def row_of(ms: Mapping[str, Mapping[str, float]], iterations: int, to_ms: Mapping[str, float]) -> Row:
    """Parts, the better device, and the best mixture without and with hand-overs, in ms of a plan."""
    free = mixtures(ms, iterations, dict.fromkeys(PLACES, 0.0))
    paid = mixtures(ms, iterations, to_ms)
    whole = {place: sum(ms[place].values()) for place in PLACES}
    one, best = min(whole.values()), min(free, key=free.__getitem__)
    return {
        **{f"{part}_{place}_ms": ms[place][part] for part in ms["cpu"] for place in PLACES},
        "one_device": min(whole, key=whole.__getitem__), "one_device_ms": one, "best_mixture": "/".join(best),
        "saves_at_most": 1 - free[best] / one, "with_handovers": 1 - min(paid.values()) / one,
    }  # fmt: skip


def handovers_ms(board: Target, mode: Mode, machine: Machine) -> dict[str, float]:
    node_us = launches_us(1, 1, mode, coefficients(board, mode))["nodes"]
    return {"cpu": machine.wake_ns / 1e6, "gpu": node_us / 1e3}


def rows_of(name: str, model: Model, precision: str, targets: Sequence[str]) -> Iterator[list[Row]]:
    """Of each board, a row for each mode."""
    exact = run(capture_model(model, model.planner), EXACT)
    for target in targets:
        board, _ = resolve(target)
        of = parts_ms(lowered(exact, precision, board), board)
        rows = []
        for mode in modes_of(board):
            machine = machine_of(board, mode, mode.cpu_cores or board.cpu.cores)
            found = row_of(of(mode), model.planner.iterations, handovers_ms(board, mode, machine))
            rows.append({"name": f"{name} {precision}, {target}", "mode": mode.name, **found})
        yield rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=["w8a8"], help="default w8a8")
    add_flags(parser)
    given = parser.parse_args()
    run_, rows = f"{time.time_ns():x}", []
    command = f"python benchmarks/placement.py --precisions {' '.join(given.precisions)}"
    for name, make in subjects().items():
        model = make()
        for precision in given.precisions:
            for found in rows_of(name, model, precision, TARGETS):
                for row in found:
                    print(json.dumps(row), file=sys.stderr, flush=True)
                most = max(found, key=lambda row: row["saves_at_most"])
                told = {**most, "mode": f"{most['mode']}, of {len(found)}", "basis": "estimated", "command": command}
                rows.append({"table": "placement", **told, "run": run_})
    finish(rows, given)


if __name__ == "__main__":
    main()

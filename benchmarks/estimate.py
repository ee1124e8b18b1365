"""How far estimates are from measurements, on plans that nothing was fitted on.

    python benchmarks/estimate.py                 probe this machine, build and time plans, compare
    python benchmarks/estimate.py --calibration   the published rows of boards' GPUs, each estimated from the others
    python benchmarks/estimate.py --reference     probe instruction sets and write edgewm/estimate/reference.json

A case is a model, planner settings, a precision and a number of threads, drawn by `--seed`. None of their shapes is
among the probe's specimens, and prices are fitted on those alone. Whatever else a machine does can only make a plan
slower, so cases are timed in turn, round after round, and of each case the least round counts; a round is the lower
quartile of its plans, as in the probe. A case whose two least rounds differ by more than AGREE has further rounds. Time
is the runtime's own, from observation to actions, of plans in which no thread was sent off its processor and all ran at
once. Where a round has no such plan, one thread's processor time stands for it; with more threads the case is told as
disturbed, and a run in which more than DISTURBED of them are records nothing. So does `--quick`, with few small cases.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np
import torch
import worlds
from recording import add_flags, finish
from step import machine_name

from edgewm.binding import Runtime
from edgewm.build import manifest_of, with_overrides
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.estimate import calibration, machine, probe
from edgewm.estimate.counts import plan_counts
from edgewm.estimate.cpu import Machine, price_plan
from edgewm.host import host
from edgewm.models import Model, capture_model, synthetic
from edgewm.models import load as load_model
from edgewm.passes import EXACT, LOWERING, run
from edgewm.quantize import NAMED, recipe_of
from edgewm.target import Target, resolve

ROUND_S, LEAST_PLANS = 0.25, 4  # of a round
ROUNDS, MOST_ROUNDS = 4, 12
AGREE = 0.02
TOGETHER = 0.85  # of all threads' time on the clock that they spent on processors; they spin while they wait
SHARED = 0.9  # of one thread's estimate, below which there is work for more
DISTURBED = 0.1
QUANTILE = 0.25
SMALL = {
    "image_px": 56, "patch_px": 14, "latent": 96, "depth": 2, "heads": 4, "dim_head": 32, "mlp_dim": 256,
    "proj_dim": 256, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192,
}  # fmt: skip
MODELS: Mapping[str, Callable[[], Model]] = {
    "mlp 64": lambda: worlds.model(worlds.Mlp, 12, 3, 64, 128, 2),
    "mlp 288": lambda: worlds.model(worlds.Mlp, 40, 6, 288, 576, 3),
    "recurrent 48": lambda: worlds.model(worlds.Recurrent, 6, 2, 48),
    "recurrent 384": lambda: worlds.model(worlds.Recurrent, 32, 4, 384),
    "ensemble 96": lambda: worlds.model(worlds.Ensemble, 10, 3, 96, 128, 2),
    "ensemble 512": lambda: worlds.model(worlds.Ensemble, 24, 6, 512, 512, 5),
    "tokens 9 x 64": lambda: worlds.model(worlds.Tokens, 9, 12, 64, 4, 3, 2),
    "tokens 16 x 96": lambda: worlds.model(worlds.Tokens, 16, 48, 96, 3, 4, 1),
    "lewm small": lambda: synthetic.lewm(**SMALL),
    "lewm 18M": synthetic.lewm,
    "reference": lambda: load_model("reference"),
}
LARGE = ("lewm 18M",)  # few candidates and one iteration, so that a case takes a second or two


@dataclass(frozen=True)
class Case:
    model: str
    samples: int
    iterations: int
    horizon: int
    precision: str
    threads: int

    @property
    def name(self) -> str:
        search = f"{self.samples} x {self.horizon} x {self.iterations}"
        return f"{self.model}, {search}, {self.precision}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def cases(count: int, threads: Sequence[int], names: Sequence[str], seed: int) -> list[Case]:
    """So many different cases, models and precisions in turn."""
    draw = random.Random(seed)
    turns = itertools.cycle(itertools.product(NAMED, names))
    found: dict[Case, None] = {}
    while len(found) < count:
        precision, name = next(turns)
        large = name in LARGE
        found[Case(
            name, draw.choice((32, 48) if large else (24, 64, 100, 128, 300)), 1 if large else draw.choice((1, 2, 4)),
            draw.choice((3, 5) if large else (2, 3, 5)), precision, draw.choice(threads),
        )] = None  # fmt: skip
    return list(found)


# ------------------------------------------------------------------------------------------------------ measuring


@dataclass
class Built:
    """A case as a bundle in `folder`, what was estimated of it, and its rounds in ms."""

    case: Case
    folder: Path
    estimate: Mapping[str, Any]
    busy: int  # threads that there is work for
    rounds_ms: list[float]
    undisturbed: int = 0  # rounds with plans that ran alone

    @property
    def is_settled(self) -> bool:
        """Two rounds agree that nothing else was in the way."""
        least = sorted(self.rounds_ms)[:2]
        return len(least) == 2 and least[1] <= (1 + AGREE) * least[0]

    def row(self) -> dict[str, Any]:
        measured, plan = min(self.rounds_ms), self.estimate["plan_ms"]
        return {
            "table": "estimate_cases", "name": self.case.name, "measured_ms": measured, "estimated_ms": plan["point"],
            "error": plan["point"] / measured - 1, "inside": plan["low"] <= measured <= plan["high"],
            "bound": self.estimate["bound"], "rounds": len(self.rounds_ms), "settled": self.is_settled,
            "disturbed": self.busy > 1 and not self.undisturbed,
        }  # fmt: skip


def built(case: Case, model: Model, here: Machine, board: Target, folder: Path) -> Built:
    """Compiled and estimated."""
    settings = {"samples": case.samples, "iterations": case.iterations, "horizon": case.horizon}
    planner = with_overrides(model.planner, settings)
    program = capture_model(model, planner)
    program = program.with_(entries={name: program.entries[name] for name in ("encode", "plan")})
    program = run(program, EXACT)
    program = run(program.with_(recipe=recipe_of(program, case.precision), target=board), LOWERING)
    schedule = schedule_program(program, board.isa)
    mode = board.mode_named(None)
    manifest = manifest_of(program, board, mode, case.precision, 20.0, case.threads, 0, {})
    folder.mkdir()
    sections, paths = compile_bundle(program, schedule, manifest, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    work = plan_counts(schedule, board.isa)
    found, alone = (price_plan(work, here, n) for n in (case.threads, 1))
    is_shared = found["plan_ms"]["point"] < SHARED * alone["plan_ms"]["point"]
    return Built(case, folder, found, case.threads if is_shared else 1, [])


def round_ms(folder: Path, threads: int, busy: int) -> tuple[float, bool]:
    """One round of plans, and whether any of them ran alone."""
    with Runtime(folder, threads=threads) as robot:
        entry = robot.plan_entry
        kinds = {port.name: port.kind for port in robot.ports(entry)}
        data = inputs_of(robot, entry)
        robot.reset(0)
        robot.set_goal(**{name: value for name, value in data.items() if kinds[name] in ("goal", "noise")})
        seen = {name: value for name, value in data.items() if kinds[name] == "observation"}
        found = [timed_plan(robot, seen, threads, busy) for _ in range(LEAST_PLANS)][1:]  # the first one warms up
        end = time.monotonic() + ROUND_S
        while time.monotonic() < end:
            found.append(timed_plan(robot, seen, threads, busy))
    alone = [ms for ms, is_alone in found if is_alone]
    return float(np.quantile(alone or [ms for ms, _ in found], QUANTILE)), bool(alone)


def inputs_of(robot: Runtime, entry: str) -> dict[str, np.ndarray]:
    """Seeded values for every input of an entry."""
    draw = np.random.default_rng(0)
    found = {}
    for port in robot.ports(entry):
        if port.is_input:
            drawn = draw.standard_normal(port.shape, np.float32) if port.dtype == np.float32 else None
            found[port.name] = np.ones(port.shape, port.dtype) if drawn is None else np.clip(drawn, port.low, port.high)
    return found


def timed_plan(robot: Runtime, seen: Mapping[str, np.ndarray], threads: int, busy: int) -> tuple[float, bool]:
    """Its ms, and whether it ran alone; where one thread did not, the ms that it was on a processor."""
    robot.observe(**seen)
    sent_off = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    began = time.process_time_ns()
    plan = robot.plan()
    ran, took = time.process_time_ns() - began, plan.end_ns - plan.start_ns
    is_alone = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == sent_off and ran >= TOGETHER * busy * took
    return (took if is_alone or threads > 1 else ran) / 1e6, is_alone


def measure(found: Sequence[Built]) -> None:
    """Round after round of all cases, then of those that are not settled."""
    for i in range(MOST_ROUNDS):
        for one in found:
            if i < ROUNDS or not one.is_settled:
                ms, ran_alone = round_ms(one.folder, one.case.threads, one.busy)
                one.rounds_ms.append(ms)
                one.undisturbed += ran_alone


def summary(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the rows' errors: median of the sizes, largest, geometric mean, and the share inside the interval."""
    errors = [abs(row["error"]) for row in rows]
    ratios = [row["estimated_ms"] / row["measured_ms"] for row in rows]
    return {
        "table": "estimate", "name": name, "cases": len(rows), "median_error": median(errors), "worst": max(errors),
        "mean": geometric_mean(ratios) - 1, "inside_interval": sum(row["inside"] for row in rows) / len(rows),
    }  # fmt: skip


def plans(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Probe, build, measure, estimate: one row a case, then the summaries."""
    torch.set_num_threads(1)
    board, _ = resolve("host")
    if given.facts:
        facts = machine.read_facts(given.facts, board)
    else:
        print("probing this machine ...", flush=True)
        facts = probe.probe(threads=max(given.threads))
    here = machine.of_facts(facts)
    names = [n for n in MODELS if not given.quick or n in ("mlp 64", "recurrent 48")]
    chosen = cases(4 if given.quick else given.cases, given.threads, names, given.seed)
    made: dict[str, Model] = {}
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        print(f"building {len(chosen)} plans ...", flush=True)
        found = [
            built(case, made.setdefault(case.model, MODELS[case.model]()), here, board, Path(folder) / str(i))
            for i, case in enumerate(chosen)
        ]
        print("timing them ...", flush=True)
        measure(found)
    rows = [one.row() for one in found]
    for row in rows:
        unsure = ("" if row["settled"] else ", rounds differ") + (", disturbed" if row["disturbed"] else "")
        print(
            f"{row['name']:54s} measured {row['measured_ms']:9.3f} ms, estimated {row['estimated_ms']:9.3f}, "
            f"{100 * row['error']:+5.1f} %, {row['bound']}{unsure}"
        )
    told = [summary("our plans on this machine", rows)]
    parts = [(f"those in {precision}", f", {precision},") for precision in NAMED]
    parts += [(f"those on {n} thread{'s' if n > 1 else ''}", f", {n} thread") for n in given.threads]
    for name, mark in parts:
        own = [row for row in rows if mark in row["name"]]
        told += [summary(name, own)] if own else []
    for row in told:
        print(
            f"{row['name']}: {row['cases']} cases, median error {100 * row['median_error']:.1f} %, worst "
            f"{100 * row['worst']:.1f} %, inside the interval {100 * row['inside_interval']:.0f} %"
        )
    if disturbed := sum(row["disturbed"] for row in rows):
        print(f"{disturbed} cases were disturbed by what else runs here: ask again when it does not")
        given.record = given.record and disturbed <= DISTURBED * len(rows)
    command = (
        f"python benchmarks/estimate.py --cases {given.cases} --threads {' '.join(map(str, given.threads))} "
        f"--seed {given.seed}"
    )
    return [{**row, "command": command} for row in (*rows, *told)]


# ----------------------------------------------------------------------------------------------------- published rows


def published() -> list[dict[str, Any]]:
    """Each published row estimated from the others."""
    rows = calibration.left_out()
    for row in rows:
        outside = "" if row["inside"] else "  outside the interval"
        print(
            f"{row['id']} {row['what']:46s} {row['precision']:5s} measured {row['measured_ms']:8.3f} ms, estimated "
            f"{row['estimated_ms']:8.3f}, {100 * row['error']:+5.1f} %{outside}"
        )
    for name, why in calibration.skipped().items():
        print(f"{name} left out: {why}")
    told = summary("published rows of AGX Orin's GPU, each from the others", rows)
    print(
        f"{told['cases']} rows, median error {100 * told['median_error']:.1f} %, worst {100 * told['worst']:.1f} %, "
        f"inside the interval {100 * told['inside_interval']:.0f} % (nominal {100 * calibration.COVERAGE:.0f} %)"
    )
    return [{**told, "command": "python benchmarks/estimate.py --calibration"}]


# ----------------------------------------------------------------------------------------------------------- reference


def reference() -> dict[str, Any]:
    """Facts of each instruction set that has its own instructions here, and how well one tells the other's plans."""
    board, _ = resolve("host")
    facts = {}
    for isa in ("avx512", "avx2"):
        print(f"probing {isa} ...", flush=True)
        facts[isa] = {name: value for name, value in probe.probe(isa).items() if name != "environment"}
    errors = []
    for here, there in (("avx512", "avx2"), ("avx2", "avx512")):
        carried = machine.of_facts({**facts[there], "costs_ns": machine.carried(
            facts[there]["costs_ns"], *(probe.least_ns(facts[i]["peaks"]["1"], i) for i in (there, here))
        )})  # fmt: skip
        own = machine.of_facts(facts[here])
        for name in (n for n in MODELS if n not in LARGE):
            program = capture_model(MODELS[name]())
            program = run(program.with_(entries={"plan": program.entries["plan"]}), EXACT)
            for precision in NAMED:
                lowered = run(program.with_(recipe=recipe_of(program, precision), target=board), LOWERING)
                counts = plan_counts(schedule_program(lowered, here), here)
                points = [price_plan(counts, m, 1)["plan_ms"]["point"] for m in (own, carried)]
                errors.append(abs(log(points[0] / points[1])))
                print(f"{name}, {precision}, {there} -> {here}: {100 * (points[1] / points[0] - 1):+.1f} %", flush=True)
    return {
        "source": f"`python benchmarks/estimate.py --reference` on {machine_name()}",
        "transfer_sigma": calibration.reach(errors) / calibration.SIGMAS, "facts": facts,
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=44)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=1, help="which cases are drawn")
    parser.add_argument("--pin", type=int, metavar="CPU", help="where everything runs that has one thread")
    parser.add_argument("--facts", type=Path, help="what `edgewm targets probe --out` wrote, in the place of probing")
    parser.add_argument("--calibration", action="store_true")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--quick", action="store_true")
    add_flags(parser)
    given = parser.parse_args(arguments)
    given.record = given.record and not given.quick
    host()  # counts the cores, before it is held to one
    if given.pin is not None:
        if max(given.threads) > 1:
            parser.error("--pin is for one thread")
        os.sched_setaffinity(0, {given.pin})
    if given.reference:
        machine.REFERENCE.write_text(json.dumps(reference(), indent=1) + "\n")
        return 0
    finish(published() if given.calibration else plans(given), given)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

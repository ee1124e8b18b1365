"""How far estimates are from measurements, on plans that nothing was fitted on.

    python benchmarks/estimate.py                 probe this machine, build and time plans, compare
    python benchmarks/estimate.py --calibration   the published rows of boards' GPUs, each estimated from the others
    python benchmarks/estimate.py --reference     probe instruction sets and write edgewm/estimate/reference.json

A case is a model, planner settings, a precision and a number of threads, drawn by a seed; none of their shapes is among
the probe's specimens. With one thread the processor time of a plan is taken, with more the clock on the wall, so those
want a quiet machine; of a few plans the lower quartile counts, as in the probe. `--quick` takes few small cases and
records nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import median
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

SEED = 1
RUN_S, LEAST_RUNS = 1.5, 8
QUANTILE = probe.QUANTILE
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


def cases(count: int, threads: Sequence[int], names: Sequence[str], seed: int = SEED) -> list[Case]:
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


def compare(case: Case, model: Model, here: Machine, board: Target, folder: Path) -> dict[str, Any]:
    """One row: what was estimated and what was measured, in ms."""
    settings = {"samples": case.samples, "iterations": case.iterations, "horizon": case.horizon}
    planner = with_overrides(model.planner, settings)
    program = capture_model(model, planner)
    program = program.with_(entries={name: program.entries[name] for name in ("encode", "plan")})
    program = run(program, EXACT)
    program = run(program.with_(recipe=recipe_of(program, case.precision), target=board), LOWERING)
    schedule = schedule_program(program, board.isa)
    found = price_plan(plan_counts(schedule, board.isa), here, case.threads)
    mode = board.mode_named(None)
    manifest = manifest_of(program, board, mode, case.precision, 20.0, case.threads, 0, {})
    folder.mkdir()
    sections, paths = compile_bundle(program, schedule, manifest, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    measured, plan = measure_ms(folder, case.threads), found["plan_ms"]
    return {
        "table": "estimate_cases", "name": case.name, "measured_ms": measured, "estimated_ms": plan["point"],
        "error": plan["point"] / measured - 1, "inside": plan["low"] <= measured <= plan["high"],
        "bound": found["bound"],
    }  # fmt: skip


def measure_ms(folder: Path, threads: int) -> float:
    """A plan's processor time with one thread, its time on the clock with more."""
    with Runtime(folder, threads=threads) as robot:
        entry = robot.plan_entry
        kinds = {port.name: port.kind for port in robot.ports(entry)}
        data = probe.inputs_of(robot, entry)
        robot.reset(0)
        robot.set_goal(**{name: value for name, value in data.items() if kinds[name] in ("goal", "noise")})
        seen = {name: value for name, value in data.items() if kinds[name] == "observation"}
        took = []
        end = time.monotonic() + RUN_S
        while len(took) < LEAST_RUNS or time.monotonic() < end:
            robot.observe(**seen)
            began = time.thread_time()
            plan = robot.plan()
            took.append(time.thread_time() - began if threads == 1 else (plan.end_ns - plan.start_ns) / 1e9)
    return float(np.quantile(took[1:], QUANTILE)) * 1e3


def summary(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the rows' errors: median and worst, and the share inside the interval."""
    errors = [abs(row["error"]) for row in rows]
    return {
        "table": "estimate", "name": name, "cases": len(rows), "median error": median(errors), "worst": max(errors),
        "mean of ln": sum(log(row["estimated_ms"] / row["measured_ms"]) for row in rows) / len(rows),
        "inside interval": sum(row["inside"] for row in rows) / len(rows),
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
    chosen = cases(4 if given.quick else given.cases, given.threads, names)
    made: dict[str, Model] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        for i, case in enumerate(chosen):
            model = made.setdefault(case.model, MODELS[case.model]())
            row = compare(case, model, here, board, Path(folder) / str(i))
            rows.append(row)
            print(
                f"{row['name']:54s} measured {row['measured_ms']:9.3f} ms, estimated {row['estimated_ms']:9.3f}, "
                f"{100 * row['error']:+5.1f} %, {row['bound']}", flush=True,
            )  # fmt: skip
    told = [summary("our plans on this machine", rows)]
    for precision in NAMED:
        own = [row for row in rows if f", {precision}," in row["name"]]
        told += [summary(f"those in {precision}", own)] if own else []
    for row in told:
        print(
            f"{row['name']}: {row['cases']} cases, median error {100 * row['median error']:.1f} %, worst "
            f"{100 * row['worst']:.1f} %, inside the interval {100 * row['inside interval']:.0f} %"
        )
    command = f"python benchmarks/estimate.py --cases {given.cases} --threads {' '.join(map(str, given.threads))}"
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
        f"{told['cases']} rows, median error {100 * told['median error']:.1f} %, worst {100 * told['worst']:.1f} %, "
        f"inside the interval {100 * told['inside interval']:.0f} % (nominal {100 * calibration.COVERAGE:.0f} %)"
    )
    return [{**told, "command": "python benchmarks/estimate.py --calibration"}]


# ----------------------------------------------------------------------------------------------------------- reference


def reference() -> dict[str, Any]:
    """Facts of each instruction set that has its own instructions here, and how well one tells the other's plans."""
    board, _ = resolve("host")
    facts = {}
    for isa in ("avx512", "avx2"):
        print(f"probing {isa} ...", flush=True)
        facts[isa] = probe.probe(isa)
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
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
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

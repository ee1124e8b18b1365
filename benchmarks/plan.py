"""The planning step of LeWM (18.04M, seeded weights: speed only): edgewm beside its peers, in one alternating run.

    python benchmarks/plan.py [--samples 300 --horizon 5 --iterations 1 --threads 2 --rounds 15] [--kernels] [--json -]

One step is one iteration of the cross-entropy method: sample, roll out, score, select, refit. Everybody starts from the
same latents (`benchmarks/step.py` says why nothing has to be subtracted), and edgewm's answer is compared with
upstream's on the same noise before anything is timed. Every round runs every contestant once, in an order that rotates;
a figure is the median over rounds, a ratio the median of the ratios within rounds. Limits are work over the machine's
peaks, measured in the same run. `--quick` takes a small model, to see that everything works, and records nothing.

Figures are appended to `benchmarks/results/<machine>.jsonl`; `python benchmarks/tables.py` writes README's table.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peers import PEERS, iteration, started
from step import (
    Built,
    build_step,
    exact_program,
    kernel_rows,
    limits_ms,
    machine_name,
    needed_bytes,
    noise,
    planner_of,
    step_program,
    work,
)

from edgewm.binding import Runtime
from edgewm.host import host
from edgewm.models import Model, synthetic
from edgewm.peaks import measure_peaks
from edgewm.program import Planner, Program

RESULTS = Path(__file__).resolve().parent / "results"
PRECISIONS = ("fp32", "w8a8")
WARM_UPS = 2
PAUSE_S = 0.05  # until the threads of whoever ran before have gone to sleep
SEED = 0
NOTICEABLE = 0.004  # share below which a kernel has no line of its own
REFERENCE = "torch eager fp32"
PUBLISHED = {"samples": 300, "horizon": 5, "iterations": 1, "threads": 2}
SMALL = {
    "image_px": 28, "latent": 64, "depth": 2, "heads": 4, "dim_head": 16, "mlp_dim": 128, "proj_dim": 128,
    "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64,
}  # fmt: skip

Step = Callable[[], object]


# --------------------------------------------------------------------------------------------------------------- timing


def alternate(
    steps: Mapping[str, Step], rounds: int, clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], None] = time.sleep, say: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of every step in every round; the one that begins a round rotates."""
    names = list(steps)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(WARM_UPS):
        for step in steps.values():
            step()
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            first = done % len(names)
            for name in names[first:] + names[:first]:
                pause(PAUSE_S)
                began = clock()
                steps[name]()
                found[name].append(clock() - began)
            say(done + 1)
    finally:
        gc.enable()
    return found


def figures(seconds: Sequence[float], reference: Sequence[float] | None, iterations: int) -> dict[str, float | None]:
    """`ms` and `min_ms` of one iteration; `vs_eager`, how many times faster than the reference, paired by round."""
    ratios = [r / s for r, s in zip(reference, seconds, strict=True)] if reference else None
    return {
        "ms": median(seconds) * 1e3 / iterations,
        "min_ms": min(seconds) * 1e3 / iterations,
        "vs_eager": median(ratios) if ratios else None,
    }


def row(
    name: str, graph: str, precision: str, figure: Mapping[str, Any], done: Mapping[str, int], read: float,
    machine: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """One row of the report; `done` and `read` are the operations and bytes of one iteration."""
    limit = limits_ms(done, read, machine)
    whole = None if None in limit.values() else sum(limit.values())
    return {
        "name": name, "graph": graph, "precision": precision, **figure, "flops": sum(done.values()),
        "limit_ms": limit, "of_limit": None if whole is None else whole / figure["ms"],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- contestants


def example_inputs(model: Model, planner: Planner) -> dict[str, np.ndarray]:
    """Latents of unit variance, and a plan that starts from nothing."""
    rng = np.random.default_rng(SEED)
    return {
        "latent": rng.standard_normal((planner.history, model.latent_dim)).astype(np.float32),
        "goal": rng.standard_normal((1, model.latent_dim)).astype(np.float32),
        "warm_mean": np.zeros((planner.horizon, model.action_dim), np.float32),
    }


def disagreement(runtime: Runtime, model: Model, planner: Planner, inputs: Mapping[str, np.ndarray]) -> float:
    """Greatest difference between edgewm's mean and upstream's after a plan on the same noise, over the deviation."""
    seed = np.array([SEED, 0], np.uint32)
    ours = runtime.run_entry("plan", **inputs, plan_counter=np.zeros(1, np.uint32), seed=seed)
    z, goal, mean = (torch.from_numpy(inputs[name]) for name in ("latent", "goal", "warm_mean"))
    std = torch.full_like(mean, planner.var_scale)
    with torch.inference_mode():
        for i in range(planner.iterations):
            drawn = torch.from_numpy(noise(planner, model.action_dim, seed, 0, i))
            mean, std = iteration(model, planner, z, goal, mean, std, drawn)
    return float((np.abs(ours["mean"] - mean.numpy()) / std.numpy()).max())


def opened(built: Built, threads: int, inputs: Mapping[str, np.ndarray]) -> Runtime:
    runtime = Runtime(built.folder, threads)
    runtime.reset(SEED)
    runtime.set_goal(goal=inputs["goal"])
    runtime.observe(latent=inputs["latent"])
    return runtime


# --------------------------------------------------------------------------------------------------------------- report


def measure(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole run: DESIGN's JSON of `benchmarks/plan.py`, and more beside it."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    model = synthetic.lewm(SEED, **(SMALL if arguments.quick else {}))
    planner = planner_of(model, arguments.samples, arguments.horizon, arguments.iterations)
    inputs = example_inputs(model, planner)
    say("capture")
    upstream = step_program(model, planner)
    exact = exact_program(upstream)
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder, ExitStack() as open_now:
        bundles = {}
        for precision in PRECISIONS:
            say(f"build {precision}")
            bundles[precision] = build_step(exact, precision, Path(folder) / precision, arguments.threads)
        runtimes = {k: open_now.enter_context(opened(b, arguments.threads, inputs)) for k, b in bundles.items()}
        apart = {k: disagreement(r, model, planner, inputs) for k, r in runtimes.items()}
        wanted = tuple(p for p in PEERS if arguments.compile or not p.name.startswith("torch.compile"))
        ready, skipped = started(wanted, model, planner, inputs, say)
        skipped += [
            {"name": p.name, "precision": p.precision, "reason": "left out by --no-compile"}
            for p in PEERS if p not in wanted
        ]  # fmt: skip
        machine = machine_of(arguments.threads)
        steps: dict[str, Step] = {f"edgewm {k}": r.plan for k, r in runtimes.items()}
        steps |= {f"{peer.name} {peer.precision}": step for peer, step in ready.items()}
        seconds = alternate(steps, arguments.rounds, say=lambda done: say(f"round {done} of {arguments.rounds}"))
        found = {name: figures(s, seconds.get(REFERENCE), planner.iterations) for name, s in seconds.items()}
        rows = [
            row("edgewm", "exact", k, {**found[f"edgewm {k}"], "disagreement": apart[k]}, b.work, b.bytes, machine)
            for k, b in bundles.items()
        ]
        for p in ready:
            done, read = peer_work(upstream, p.precision)
            rows.append(row(p.name, p.graph, p.precision, found[f"{p.name} {p.precision}"], done, read, machine))
        report = {
            "schema_version": 1, "model": "lewm (small)" if arguments.quick else "lewm 18.04M", "machine": machine,
            **{k: getattr(arguments, k) for k in (*PUBLISHED, "rounds")}, "rows": rows, "skipped": skipped,
        }  # fmt: skip
        if arguments.kernels:
            say("kernels")
            alone = machine_of(1)
            report["kernels"] = {k: kernel_rows(b, alone) for k, b in bundles.items()}
            report["machine_1_thread"] = alone
    return report


def peer_work(upstream: Program, precision: str) -> tuple[dict[str, int], float]:
    """Operations of an iteration of upstream's graph by dtype, and the bytes it must read, in a peer's precision."""
    done, read = work(upstream), float(needed_bytes(upstream))
    if precision == "bf16":
        done["bf16"] = done.pop("f32")
        read /= 2
    return done, read


def machine_of(threads: int) -> dict[str, Any]:
    """The peaks of this machine now, with that many threads, and what it is."""
    cpu = host().cpu
    peaks: dict[str, Any] = {"bf16_gflops": None, **measure_peaks(threads)}
    return {**peaks, "threads": threads, "cpu": cpu.name, "cores": cpu.cores, "isa": host().isa}


def lines(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `benchmarks/results`; other settings than the published ones go to a table of their own."""
    settings = {k: report[k] for k in PUBLISHED}
    published = settings == PUBLISHED
    suffix = "" if published else " {samples}xH{horizon} x{iterations} {threads}t".format(**settings)
    return [
        {
            "table": "plan" if published else "plan-series", "name": f"{r['name']} {r['precision']}{suffix}",
            "graph": r["graph"], "GFLOP": r["flops"] / 1e9, "ms_an_iteration": r["ms"], "best_ms": r["min_ms"],
            "times_faster_than_eager": r["vs_eager"],
            **{f"{k}_limit_ms": r["limit_ms"][k] for k in ("tensor", "vector", "bytes")}, "of_limit": r["of_limit"],
            "command": "python benchmarks/plan.py",
        }
        for r in report["rows"]
    ]  # fmt: skip


def record(report: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Append the rows to this machine's file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{machine_name()}.jsonl"
    with file.open("a") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines(report))
    return file


def show(report: Mapping[str, Any]) -> str:
    """The report for people."""
    m = report["machine"]
    peaks = ", ".join(f"{k} {number(m[k], 0)}" for k in ("fp32_gflops", "bf16_gflops", "int8_gops", "dram_gbps"))
    text = [
        f"{report['model']}, CEM {report['samples']} x H{report['horizon']}, {report['threads']} threads; {peaks}",
        "",
        f"{'ms an iteration':32s}   GFLOP    median      best  x eager   tensor  vector  bytes of limit",
    ]
    for r in report["rows"]:
        limit = [number(r["limit_ms"][k]) for k in ("tensor", "vector", "bytes")]
        text.append(
            f"{r['name'] + ' ' + r['precision']:32s} {r['flops'] / 1e9:7.1f} {r['ms']:9.2f} {r['min_ms']:9.2f} "
            f"{number(r['vs_eager'], 2):>8s} {limit[0]:>8s} {limit[1]:>7s} {limit[2]:>6s} {percent(r['of_limit']):>8s}"
        )
    text += [f"{s['name']} {s['precision']}: not measured, {s['reason']}" for s in report["skipped"]]
    for precision, rows in report.get("kernels", {}).items():
        text += ["", f"edgewm {precision} on 1 thread, the kernels:", *kernel_lines(rows)]
    return "\n".join(text)


def kernel_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What takes a noticeable share, then all else together."""
    text = ["  share       ms calls  GFLOP  GFLOP/s  of peak  of limit  kernel"]
    for r in rows:
        if r["share"] >= NOTICEABLE:
            limit = sum(v or 0.0 for v in r["limit_ms"].values())
            text.append(
                f"  {r['share']:5.1%} {r['ms']:8.2f} {r['calls']:5d} {r['flops'] / 1e9:6.2f} {r['gflops']:8.1f} "
                f"{percent(r['peak_fraction']):>8s} {percent(limit / r['ms']):>9s}  "
                f"{r['family']} {'x'.join(map(str, r['dims']))}, {r['lanes']} lanes: {r['does']}"
            )
    rest = [r for r in rows if r["share"] < NOTICEABLE]
    spent, calls = sum(r["ms"] for r in rest), sum(r["calls"] for r in rest)
    text.append(f"  {sum(r['share'] for r in rest):5.1%} {spent:8.2f} {calls:5d}  all others")
    text.append(f"         {sum(r['ms'] for r in rows):8.2f} {sum(r['calls'] for r in rows):5d}  together")
    return text


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


# --------------------------------------------------------------------------------------------------------- command line


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**PUBLISHED, "rounds": 15}.items():
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"default {default}")
    parser.add_argument("--quick", action="store_true", help="a small model; nothing is recorded")
    parser.add_argument("--kernels", action="store_true", help="where edgewm's time goes, kernel by kernel")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="it takes minutes")
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="append the figures")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout, and nothing else there")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    report = measure(arguments, lambda text: print(text, file=sys.stderr, flush=True))
    if arguments.record and not arguments.quick:
        print(f"appended to {record(report)}", file=sys.stderr)
    if arguments.json != "-":
        print(show(report))
    text = json.dumps(report, indent=1) + "\n"
    if arguments.json == "-":
        sys.stdout.write(text)
    elif arguments.json:
        Path(arguments.json).write_text(text)


if __name__ == "__main__":
    main()

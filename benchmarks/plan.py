"""LeWM (18.04M, seeded weights: speed only): edgewm beside its peers, in one alternating run.

    python benchmarks/plan.py [--samples 300 --horizon 5 --iterations 1 --threads 2 --rounds 15]
                              [--parts iteration,encode,whole] [--peers openvino,...] [--kernels] [--json -]

iteration   one iteration of the cross-entropy method: sample, roll out, score, select, refit. Everybody starts from the
            same latents (`benchmarks/step.py` says why nothing has to be subtracted).
encode      one observation through the vision transformer.
whole       a whole plan of 30 iterations with both encodings, pixels to actions, beside upstream eager alone.

Every peer runs upstream's graph and, exported, edgewm's exact graph: what algebra wins and what kernels win stand
apart. Nobody is timed whose answers are not upstream's (`agreement.py`), edgewm neither. Every round runs everybody
once, in a drawn order, all threads placed alike (`timing.py`); a figure is the median over rounds, a ratio the median
of the ratios within rounds, beside it the ratio of everybody's best round. Limits are work over the machine's peaks,
measured in the same run, beside each contest. `--quick` takes a small model, to see that
everything works, and records nothing.

Figures are appended to `benchmarks/results/<machine>.jsonl`; `python benchmarks/tables.py` writes README's tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import agreeing, judged, reference
from contest import OURS, Entrant, Peaks, contest, entered
from peers import GRAPHS, NAMES, NOT_MEASURED, PEERS, Contestant, Peer, resident_mib, started
from plan_report import record, show
from step import (
    Built,
    build_program,
    build_step,
    exact_program,
    noise,
    peer_work,
    planner_of,
    recipe_everywhere,
    step_program,
)
from timing import Step
from works import Feeds, Run, Work, encode_work, iteration, iteration_work, plan

from edgewm.binding import Runtime
from edgewm.errors import EdgewmError
from edgewm.host import host
from edgewm.kernel_times import kernel_rows
from edgewm.models import Model, capture_model, synthetic
from edgewm.peaks import measure_peaks
from edgewm.program import Planner, Program
from edgewm.quantize import NAMED, recipe_of

SEED = 0
PUBLISHED = {"samples": 300, "horizon": 5, "iterations": 1, "threads": 2}
WHOLE_ITERATIONS = 30
PARTS = ("iteration", "encode", "whole")
SMALL = {
    "image_px": 28, "latent": 64, "depth": 2, "heads": 4, "dim_head": 16, "mlp_dim": 128, "proj_dim": 128,
    "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64,
}  # fmt: skip

Say = Callable[[str], None]


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
            mean, std, _ = iteration(model, planner, model.torch, drawn, mean, std, z, goal)
    deviation = np.where(std.numpy() > 0, std.numpy(), planner.var_scale)  # a single elite has none
    return float((np.abs(ours["mean"] - mean.numpy()) / deviation).max())


def opened(built: Built, threads: int, **seen: np.ndarray) -> Runtime:
    """A bundle's runtime that has been told its goal and its newest observation."""
    runtime = Runtime(built.folder, threads)
    runtime.reset(SEED)
    runtime.set_goal(**{name: array for name, array in seen.items() if name == "goal"})
    runtime.observe(**{name: array for name, array in seen.items() if name != "goal"})
    return runtime


def ours(built: Built, step: Step, **more: Any) -> Entrant:
    return Entrant(OURS, "exact", built.precision, step, built.work, built.bytes, more)


def built_steps(model: Model, planner: Planner, folder: Path, threads: int, say: Say) -> list[Built]:
    """The planning step compiled in every precision that edgewm has a name for."""
    exact = exact_program(step_program(model, planner))
    found = []
    for precision in NAMED:
        say(f"build {precision}")
        found.append(build_step(exact, precision, folder / precision, threads))
    return found


def ours_on(
    built: Built, model: Model, planner: Planner, inputs: Mapping[str, np.ndarray], threads: int, open_now: ExitStack
) -> Entrant:
    """A built step, opened with that many threads and held against upstream on the same noise.

    EdgewmError where it refits to something else: rounding may change elites, so their mean must lie within one
    deviation of upstream's.
    """
    runtime = open_now.enter_context(opened(built, threads, latent=inputs["latent"], goal=inputs["goal"]))
    if not (found := disagreement(runtime, model, planner, inputs)) < 1.0:
        raise EdgewmError(f"edgewm {built.precision} is {found:.2g} deviations from upstream", "plan.py", "report it")
    return ours(built, runtime.plan, disagreement=found)


def theirs(
    work: Work, peers: Sequence[Peer], graphs: Sequence[str], step: Callable[[str, Run], Step], say: Say
) -> tuple[list[Entrant], list[dict[str, str]]]:
    """The peers that run here and agree with upstream, and for each other one the reason."""
    ready, skipped = started(peers, work, graphs, say)
    kept, refused = agreeing(work, ready)
    entrants = [entered(each, work, lambda run, graph=each.graph: step(graph, run), figures) for each, figures in kept]
    return entrants, skipped + refused


# ------------------------------------------------------------------------------------------------------------ the parts


def time_iteration(
    model: Model, planner: Planner, given: argparse.Namespace, peers: Sequence[Peer], folder: Path, peaks: Peaks,
    say: Say,
) -> dict[str, Any]:  # fmt: skip
    """The planning step. With `--kernels` also where edgewm's time goes, on one thread."""
    inputs = example_inputs(model, planner)
    say("capture")
    bundles = built_steps(model, planner, folder, given.threads, say)
    with ExitStack() as open_now:
        entrants = [ours_on(built, model, planner, inputs, given.threads, open_now) for built in bundles]
        work = iteration_work(model, planner, inputs, given.threads, folder)
        others, skipped = theirs(work, peers, GRAPHS, lambda graph, run: plan(planner, work.feeds[graph], run), say)
        found = contest([*entrants, *others], given.rounds, peaks, planner.iterations, rounds_of(given.rounds, say))
        memory = resident_mib()
    if given.kernels:
        say("kernels")
        found["kernels"] = {built.precision: kernel_rows(built.folder) for built in bundles}
    return {**found, "skipped": skipped, "memory_mib": memory}


def time_encode(
    model: Model, given: argparse.Namespace, peers: Sequence[Peer], folder: Path, peaks: Peaks, say: Say
) -> dict[str, Any]:
    """One observation to its latent; in bf16 and w8a8 the encoder's own products are narrow too."""
    work = encode_work(model, given.threads, folder)
    exact = Program(
        entries={"encode": work.graphs["exact"]}, weights=work.weights["exact"], ports=model.ports,
        planner=model.planner,
    )  # fmt: skip
    wanted = reference(work)
    with ExitStack() as open_now:
        entrants = []
        for precision in NAMED:
            say(f"build encode {precision}")
            built = build_program(
                exact, recipe_everywhere(exact, precision), precision, lambda p: p.entries["encode"],
                folder / f"encode-{precision}", given.threads,
            )  # fmt: skip
            runtime = open_now.enter_context(Runtime(built.folder, given.threads))

            def encode(seen: Feeds = work.feeds["exact"], runtime: Runtime = runtime) -> Feeds:
                return runtime.run_entry("encode", **seen)

            figures, against = judged(work, Contestant(OURS, "exact", precision, encode), wanted)
            if against is not None:
                raise EdgewmError(f"edgewm's encoder in {precision} {against}", "plan.py", "report it")
            entrants.append(ours(built, encode, **figures))
        others, skipped = theirs(work, peers, GRAPHS, lambda graph, run: lambda: run(work.feeds[graph]), say)
        found = contest([*entrants, *others], given.rounds, peaks, 1, rounds_of(given.rounds, say))
    return {**found, "skipped": skipped}


def time_whole(model: Model, given: argparse.Namespace, folder: Path, peaks: Peaks, say: Say) -> dict[str, Any]:
    """Pixels to actions: both encodings and all iterations, the bundle as it ships beside upstream's own loop."""
    planner = replace(planner_of(model, given.samples, given.horizon, WHOLE_ITERATIONS), warm_start=False)
    program = capture_model(model, planner)
    exact = exact_program(program.with_(entries={name: program.entries[name] for name in ("encode", "score", "plan")}))
    shipped = exact.with_(entries={name: exact.entries[name] for name in ("encode", "plan")})
    work = encode_work(model, given.threads, folder)
    pixels = work.feeds["upstream"]
    (seen,) = pixels.values()

    def eager() -> object:
        with torch.inference_mode():
            z, goal = (model.encode(model.torch, torch.from_numpy(seen)) for _ in range(2))
            mean = torch.zeros(planner.horizon, model.action_dim)
            std = torch.full_like(mean, planner.var_scale)
            for _ in range(planner.iterations):
                drawn = torch.randn(planner.samples, *mean.shape)
                mean, std, _ = iteration(model, planner, model.torch, drawn, mean, std, z, goal)
            return mean

    with ExitStack() as open_now:
        entrants = []
        for precision in NAMED:
            say(f"build whole plan {precision}")
            built = build_program(
                shipped, recipe_of(exact, precision), precision, lambda p: p.entries["plan"],
                folder / f"whole-{precision}", given.threads,
            )  # fmt: skip
            runtime = open_now.enter_context(opened(built, given.threads, **pixels, goal=seen))
            entrants.append(ours(built, runtime.plan))
        done, read = peer_work(program.entries["plan"], program.weights, "fp32")
        entrants.append(Entrant("torch eager", "upstream", "fp32", eager, done, read))
        return contest(entrants, max(3, given.rounds // 5), peaks, 1, rounds_of(max(3, given.rounds // 5), say))


def rounds_of(rounds: int, say: Say) -> Callable[[int], None]:
    return lambda done: say(f"round {done} of {rounds}")


# --------------------------------------------------------------------------------------------------------------- report


def measure(given: argparse.Namespace, say: Say) -> dict[str, Any]:
    """The whole run: DESIGN's JSON of `benchmarks/plan.py`, and more beside it."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    model = synthetic.lewm(SEED, **(SMALL if given.quick else {}))
    planner = planner_of(model, given.samples, given.horizon, given.iterations)
    peers = [p for p in PEERS if p.name in given.peers and (given.compile or not p.name.startswith("torch.compile"))]
    report: dict[str, Any] = {
        "schema_version": 1, "model": "lewm (small)" if given.quick else "lewm 18.04M", "versions": versions(),
        **{key: getattr(given, key) for key in (*PUBLISHED, "rounds")}, "rows": [], "skipped": [],
    }  # fmt: skip
    peaks = peaks_so_far(given.threads)
    with tempfile.TemporaryDirectory(prefix="edgewm-") as name:
        folder = Path(name)
        if "iteration" in given.parts:
            report |= time_iteration(model, planner, given, peers, folder, peaks, say)
        if "encode" in given.parts:
            report["encode"] = time_encode(model, given, peers, folder, peaks, say)
        if "whole" in given.parts:
            report["whole_plan"] = time_whole(model, given, folder, peaks, say)
    left_out = [p for p in PEERS if p not in peers]
    report["skipped"] += [
        {"name": p.name, "graph": graph, "precision": p.precision, "reason": "left out by --peers or --no-compile"}
        for p in left_out for graph in GRAPHS
    ]  # fmt: skip
    report["skipped"] += NOT_MEASURED
    return report | {"machine": peaks()}


def versions() -> dict[str, str | None]:
    """Of the libraries that peers are made of; None for one that is not installed."""
    names = ("torch", "onnxruntime", "openvino", "nncf")
    return {name: metadata.version(name) if importlib.util.find_spec(name) else None for name in names}


def peaks_so_far(threads: int) -> Peaks:
    """Measures this machine's peaks with that many threads, each time it is called: the highest seen count."""
    seen: dict[str, float] = {}

    def peaks() -> Mapping[str, Any]:
        for name, value in measure_peaks(threads).items():
            seen[name] = max(value, seen.get(name, 0.0))
        cpu = host().cpu
        return {**seen, "threads": threads, "cpu": cpu.name, "cores": cpu.cores, "isa": host().isa}

    return peaks


# --------------------------------------------------------------------------------------------------------- command line


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def listed(*allowed: str) -> Callable[[str], list[str]]:
    """Words separated by commas, each one of `allowed`."""

    def words(text: str) -> list[str]:
        found = [word.strip() for word in text.split(",") if word.strip()]
        for word in found:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(allowed)}")
        return found

    return words


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**PUBLISHED, "rounds": 15}.items():
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"default {default}")
    parser.add_argument("--parts", type=listed(*PARTS), default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--peers", type=listed(*NAMES), default=list(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a small model; nothing is recorded")
    parser.add_argument("--kernels", action="store_true", help="where edgewm's time goes, kernel by kernel")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="it takes minutes")
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="append the figures")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout, and nothing else there")
    return parser.parse_args(arguments)


def main() -> None:
    given = parse()
    report = measure(given, lambda text: print(text, file=sys.stderr, flush=True))
    if given.record and not given.quick:
        print(f"appended to {record(report)}", file=sys.stderr)
    if given.json != "-":
        print(show(report))
    text = json.dumps(report, indent=1) + "\n"
    if given.json == "-":
        sys.stdout.write(text)
    elif given.json:
        Path(given.json).write_text(text)


if __name__ == "__main__":
    main()

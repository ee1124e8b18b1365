"""What int8 costs in fidelity, whoever does it: edgewm, its backends, and peers on the same graph, by the same judge.

    python benchmarks/peers_fidelity.py [--model reference] [--only edgewm,onnxruntime] [--contexts 59] [--json FILE]

Each scores candidates with the predictor in int8 and encodes in float32. Peers are given the exact graph of `score` and
are calibrated on the planner's own candidates: of searches from 8 contexts as many as are scored at once. Figures are
those of suite `plan` of `edgewm validate`, against the full model and on its contexts; what a peer plans is found by
the search that the full model is given. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx_peers import lacking, onnxruntime_ways, openvino_ways
from recording import add_flags, append
from works import Run, Work

from edgewm.act import period_of
from edgewm.backends import opened
from edgewm.build import build, capture
from edgewm.judge import gates, plan
from edgewm.judge.sides import Side, compiled, search, upstream
from edgewm.judge.sources import source_of
from edgewm.manifest import read_manifest
from edgewm.models import Model, load
from edgewm.options import BACKENDS, NATIVE
from edgewm.passes import EXACT, run
from edgewm.program import Program
from edgewm.quantize.calibrate import searched

GRAPH = "exact"
WAYS: dict[str, tuple[Callable[[], str | None], Callable[[Work, str], dict[str, Run]]]] = {
    "onnxruntime": (lacking("onnxruntime"), onnxruntime_ways),
    "openvino": (lacking("openvino", "nncf"), openvino_ways),
}
OWN = {"edgewm": NATIVE, **{f"edgewm-{name}": name for name in BACKENDS[1:2]}}


def work_of(model: str, program: Program, folder: Path) -> Work:
    """The exact graph of `score` for peers, with the planner's own candidates to calibrate on."""
    graph = program.entries["score"]
    ports = graph.inputs()
    given = tuple(
        {name: np.ascontiguousarray(value, np.float32).reshape(ports[name].shape) for name, value in each.items()}
        for each in searched(program, model, None, 0)
    )
    return Work(
        "score", None, tuple(ports), ("cost",), {GRAPH: graph}, {GRAPH: program.weights}, {GRAPH: given[0]},
        {GRAPH: given}, 1, folder,
    )  # fmt: skip


def peer_side(loaded: Model, program: Program, run: Run) -> Side:
    """The full model, but for what scores candidates."""
    full, ports = upstream(loaded, program.planner), program.entries["score"].inputs()

    def score(z: np.ndarray, goal: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        feeds = {"z": z, "goal": goal, "candidates": candidates}
        feeds = {n: np.ascontiguousarray(v, np.float32).reshape(ports[n].shape) for n, v in feeds.items()}
        return run(feeds)["cost"]

    def planned(observation: Any, goal: Any, noise: np.ndarray) -> np.ndarray:
        z, target = full.encode(observation), full.encode(goal)
        return search(lambda candidates: score(z, target, candidates), program.planner, noise).mean

    return Side(full.encode, full.predict, score, planned, full.window)


def sides(model: str, loaded: Model, only: list[str], folder: Path) -> Iterator[tuple[str, Side, Program]]:
    """Everybody's name and side; a bundle is open as long as its side is in use."""
    program = run(capture(model, {}, None, None)[0], EXACT)
    for name in (n for n in OWN if n in only):
        build(model, precision="w8a8", backend=OWN[name], out=folder / name)
        manifest = read_manifest(folder / name)
        with opened(folder / name, manifest, 1, period_of(manifest)) as runtime:
            yield f"{name} w8a8", compiled(runtime, loaded, program.planner), program
    work = None
    for name in (n for n in WAYS if n in only):
        reason, ways = WAYS[name]
        if (told := reason()) is not None:
            print(f"left out: {name}: {told}", file=sys.stderr)
            continue
        work = work or work_of(model, program, folder)
        for way, called in ways(work, GRAPH).items():
            yield f"{name} int8, {way}", peer_side(loaded, program, called), program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--only", default=",".join((*OWN, *WAYS)))
    parser.add_argument("--contexts", type=int, default=gates.DEFAULT.contexts)
    parser.add_argument("--folder", type=Path, help="keep what is built and quantized there for another run")
    add_flags(parser)
    given = parser.parse_args()
    loaded, rows = load(given.model), []
    with tempfile.TemporaryDirectory(prefix="edgewm-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, side, program in sides(given.model, loaded, given.only.split(","), folder):
            pairs = source_of(given.model, loaded).contexts(given.contexts, 0)
            full = upstream(loaded, program.planner)
            found, judged = plan.run(
                full, side, program.planner, loaded.action_dim, pairs, given.contexts, 0, lambda stage, done: None
            )
            judged = [row for row in judged if row["name"] != "drift"]  # a peer predicts by the full model
            rows.append({
                "table": "peers-fidelity", "name": name, "model": given.model, "contexts": found["contexts"],
                "least_spearman": found["spearman_min"], "elite_overlap": found["elite_overlap"],
                "regret": found["regret"], "cost_error": found["cost_error"],
                "gates": {True: "passed", False: "failed", None: "undecided"}[gates.verdict(judged)],
                "command": f"python benchmarks/peers_fidelity.py --contexts {given.contexts}",
            })  # fmt: skip
            if given.record:
                append(rows[-1:])  # each at once: it takes minutes
            print({key: value for key, value in rows[-1].items() if key not in ("table", "command")}, flush=True)
    if given.json:
        given.json.write_text(json.dumps({"schema_version": 1, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

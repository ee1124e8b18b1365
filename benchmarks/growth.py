"""How the planning step of LeWM (18.04M, seeded weights) grows: with samples, with the horizon, with threads.

    python benchmarks/growth.py [--samples 1,32,...] [--horizons 2,4,...] [--threads 1,2] [--rounds 7]

Samples vary at the published horizon, horizons at the published samples; one candidate is the end where latency is all
there is. Beside edgewm stand upstream's eager module and, on the exact graph, the peer that was the fastest in
`plan.py` in every precision. Everything else is as there. Figures are appended to `benchmarks/results/<machine>.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from contest import OURS, REFERENCE, contest, key_of
from peers import PEERS
from plan import SEED, SMALL, built_steps, example_inputs, ours_on, peaks_so_far, positive, rounds_of, theirs
from plan_report import PUBLISHED
from recording import append
from step import Built, planner_of
from works import iteration_work, plan

from edgewm.models import Model, synthetic
from edgewm.program import Planner

SAMPLES = (1, 32, 64, 128, 300, 512, 1024)
HORIZONS = (2, 4, 8, 16)
THREADS = (1, 2)
BESIDE = {"upstream": ("torch eager",), "exact": ("openvino",)}

Say = Callable[[str], None]


def settings(samples: Sequence[int], horizons: Sequence[int]) -> list[tuple[int, int]]:
    """(samples, horizon) of every point, each once."""
    points = [(n, PUBLISHED["horizon"]) for n in samples] + [(PUBLISHED["samples"], h) for h in horizons]
    return list(dict.fromkeys(points))


def point(
    model: Model, samples: int, horizon: int, threads: Sequence[int], rounds: int, say: Say
) -> list[dict[str, Any]]:
    """The lines of one setting, one for each number of threads."""
    planner = planner_of(model, samples, horizon, 1)
    found = []
    with tempfile.TemporaryDirectory(prefix="edgewm-") as name:
        bundles = built_steps(model, planner, Path(name), max(threads), say)
        for count in threads:
            timed = side_by_side(model, planner, bundles, count, rounds, Path(name), say)
            found.append(line(samples, horizon, count, timed))
            say(json.dumps(found[-1]))
    return found


def side_by_side(
    model: Model, planner: Planner, bundles: Sequence[Built], threads: int, rounds: int, folder: Path, say: Say
) -> Mapping[str, Any]:
    """edgewm in every precision beside BESIDE, with that many threads."""
    torch.set_num_threads(threads)
    inputs = example_inputs(model, planner)
    work = iteration_work(model, planner, inputs, threads, folder)
    with ExitStack() as open_now:
        entrants = [ours_on(built, model, planner, inputs, threads, open_now) for built in bundles]
        for graph, names in BESIDE.items():
            peers = [peer for peer in PEERS if peer.name in names]
            others, skipped = theirs(work, peers, (graph,), lambda of, run: plan(planner, work.feeds[of], run), say)
            for each in skipped:
                say(f"not measured: {each}")
            entrants += others
        return contest(entrants, rounds, peaks_so_far(threads), 1, rounds_of(rounds, say))


def line(samples: int, horizon: int, threads: int, timed: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table: every figure in ms an iteration."""
    rows = {key_of(row): row for row in timed["rows"]}
    own = {key[2]: row for key, row in rows.items() if key[0] == OURS}
    best = {r["precision"]: r for r in timed["ratios"] if r["graph"] == "exact"}
    narrowest = list(own)[-1]
    beaten = best.get(narrowest)
    return {
        "table": "growth", "name": f"{samples} x H{horizon}, {threads} thread{'s' if threads > 1 else ''}",
        **{f"edgewm_{precision}_ms": row["ms"] for precision, row in own.items()},
        "torch_eager_ms": rows[REFERENCE]["ms"] if REFERENCE in rows else None,
        "best_peer_on_the_exact_graph": beaten and f"{beaten['peer']}, {beaten['peer_ms']:.3g} ms",
        f"{narrowest}_times_as_fast_as_eager": own[narrowest]["vs_eager"],
        f"{narrowest}_times_as_fast_as_best_peer": beaten and beaten["times_faster"],
        "of_limit_fp32": own["fp32"]["of_limit"], f"of_limit_{narrowest}": own[narrowest]["of_limit"],
        "command": "python benchmarks/growth.py",
    }  # fmt: skip


def whole_numbers(text: str) -> list[int]:
    return [positive(word) for word in text.split(",") if word.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("samples", SAMPLES), ("horizons", HORIZONS), ("threads", THREADS)):
        shown = ",".join(map(str, default))
        parser.add_argument(f"--{name}", type=whole_numbers, default=list(default), help=f"default {shown}")
    parser.add_argument("--rounds", type=positive, default=7, help="default 7")
    parser.add_argument("--quick", action="store_true", help="a small model; nothing is recorded")
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="append the figures")
    given = parser.parse_args()
    torch.manual_seed(SEED)
    model = synthetic.lewm(SEED, **(SMALL if given.quick else {}))
    for samples, horizon in settings(given.samples, given.horizons):
        found = point(
            model, samples, horizon, given.threads, given.rounds, lambda text: print(text, file=sys.stderr, flush=True)
        )
        if given.record and not given.quick:
            append(found)
        for each in found:
            print(json.dumps(each))


if __name__ == "__main__":
    main()

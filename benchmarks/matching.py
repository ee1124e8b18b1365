"""How long kernels take to be found: one JSON line for a causal transformer of about 5,000 nodes.

    python benchmarks/matching.py [--layers 98] [--times 5] [--json FILE] [--no-record]

Appended to `benchmarks/results/<machine>.jsonl`. `seconds` is the median time of `fuse_kernels`, on a graph that no
earlier run has seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import programs
from recording import add_flags, finish

from edgewm.passes import EXACT, run
from edgewm.passes.fuse_kernels import fuse


def measure(layers: int, width: int) -> tuple[int, int, float]:
    """Nodes before, kernels after, and seconds of one fusion."""
    (graph,) = run(programs.transformer(4, 3, width, 2, 4, layers), EXACT).entries.values()
    began = time.perf_counter()
    fused = fuse(graph)
    seconds = time.perf_counter() - began
    return len(graph.order()), sum(n.op == "kernel" for n in fused.order()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=98)
    parser.add_argument("--times", type=int, default=5)
    add_flags(parser)
    given = parser.parse_args()
    runs = [measure(given.layers, 8 + i) for i in range(given.times)]  # another width: nothing is interned yet
    nodes, kernels, _ = runs[0]
    seconds = statistics.median(s for _, _, s in runs)
    row = {
        "table": "matching", "name": f"{given.layers} layers", "nodes": nodes, "kernels": kernels,
        "seconds": round(seconds, 3), "command": f"python benchmarks/matching.py --layers {given.layers}",
    }  # fmt: skip
    print(json.dumps(row))
    finish([row], given)


if __name__ == "__main__":
    main()

"""What the clock itself costs the loop that it times: nanoseconds a period, and allocations.

    python benchmarks/clock_cost.py [--periods 20000] [--rounds 30] [--json FILE] [--no-record]

The bookkeeping of a period of edgewm-tick alone, on the runtime's own headers. The median of the rounds counts, and the
least beside it. Ends with 1 where a period costs more than a microsecond or anything is allocated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from recording import add_flags, finish

from edgewm.host import host
from edgewm.paths import RUNTIME
from edgewm.toolchain import compile_program

LIMIT_NS = 1000.0


def measure(periods: int, rounds: int) -> dict[str, object]:
    source = Path(__file__).with_suffix(".cc")
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        program = compile_program(
            {source.name: source.read_text()}, [RUNTIME], flags=["-target", host().zig_triple], libraries=[],
            out=Path(folder) / "clock_cost",
        )  # fmt: skip
        done = subprocess.run([program, str(periods), str(rounds)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {
        "table": "clock-cost", "name": "bookkeeping of a period", "median_ns": median(found["ns"]),
        "least_ns": min(found["ns"]), "most_ns": max(found["ns"]), "allocations": found["allocations"],
        "command": f"python benchmarks/clock_cost.py --periods {periods} --rounds {rounds}",
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--periods", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=30)
    add_flags(parser)
    given = parser.parse_args()
    row = measure(given.periods, given.rounds)
    print(json.dumps(row))
    finish([row], given)
    sys.exit(int(row["median_ns"] > LIMIT_NS or row["allocations"] > 0))

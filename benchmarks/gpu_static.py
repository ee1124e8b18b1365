"""What is known of LeWM's GPU kernels without a GPU: how long a build takes, each kernel's facts, a bound for Orin.

    python benchmarks/gpu_static.py [--precisions w8a8 bf16] [--no-record]

Each build is `edgewm build` in a process of its own, with an empty cache and then with what the first left there; both
must give the same bytes. Seconds are of this machine, as it was loaded: the processor's beside the clock's. Bounds and
estimates are from the board's facts and published efficiencies (edgewm/cuda/bound.py); nothing ran on a board.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_build
import numpy as np
from recording import add_flags, finish

from edgewm import format as ewm
from edgewm.cuda import bound
from edgewm.cuda.compile import assembled, sees_calls
from edgewm.cuda.launches import REGISTERS
from edgewm.models import Model, synthetic
from edgewm.target import resolve, targets

HERE = Path(__file__).resolve().parent
TARGET, MODE = "orin", "MAXN"
NOTICEABLE = 0.02  # share of the estimate below which a kernel has no row of its own
Row = dict[str, Any]


def robot() -> Model:
    """LeWM 18M whose action port says what is safe: the MODEL that is built."""
    model = synthetic.lewm(gpu_build.SEED)
    ports = (replace(p, safe=(0.0,) * p.shape[-1]) if p.kind == "action" else p for p in model.ports)
    return replace(model, ports=tuple(ports))


def built(precision: str, out: Path, cache: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """What `edgewm build --json` says, and the seconds it took."""
    command = [
        sys.executable, "-m", "edgewm", "build", "gpu_static:robot", "--target", TARGET, "--mode", MODE,
        "--place", "gpu",
        "--precision", precision, "-o", str(out), "--json", "-",
    ]  # fmt: skip
    paths = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": paths}
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, cwd=HERE).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(said), {"s": time.perf_counter() - began, "processor_s": processor_s}


def build_row(precision: str, folder: Path) -> Row:
    """Twice: with nothing kept, with everything."""
    cache = folder / "cache"
    (first, cold), (second, warm) = (built(precision, folder / precision, cache) for _ in range(2))
    return {
        "table": "gpu-builds", "name": f"LeWM 18M {precision} for {TARGET}", "s": cold["s"],
        "processor_s": cold["processor_s"], "again_s": warm["s"], "again_processor_s": warm["processor_s"],
        "same_bytes": first["sha256"] == second["sha256"], "mib": first["bytes"] / 2**20,
    }  # fmt: skip


def fact_rows(precision: str, bundle: Path) -> list[Row]:
    """The kernels' facts by architecture that may be given this PTX: assembled for each."""
    sections = ewm.unpack((bundle / "model.ewm").read_bytes())
    ptx = sections["ptx"].rstrip(b"\0").decode()
    (gpu,) = np.frombuffer(sections["gpu"], ewm.GPU)
    registers = None if gpu["persistent"] == ewm.NONE else REGISTERS
    rows = []
    boards = {(t.gpu.sm, t.gpu.toolkit) for t in targets().values() if t.gpu and t.gpu.toolkit}
    for sm, toolkit in sorted(b for b in boards if registers is None or sees_calls(b[1])):
        facts = assembled(ptx, sm, toolkit, registers).facts
        codes = {code: sum(any(c.startswith(code) for c in f.instructions) for f in facts) for code in ("IMMA", "HMMA")}
        rows.append({
            "table": "gpu-kernel-facts", "name": f"LeWM 18M {precision}, {sm}, CUDA {toolkit}", "kernels": len(facts),
            "most_registers": max(f.registers for f in facts), "spilled_bytes": sum(f.spill_bytes for f in facts),
            "most_stack_bytes": max(f.local_bytes for f in facts),
            **{f"with {code}": count for code, count in codes.items()},
        })  # fmt: skip
    return rows


def bound_rows(precision: str, bundle: Path) -> list[Row]:
    """The plan's bound and estimate, and those of its kernels that matter."""
    board, mode = resolve(TARGET, MODE)
    rows = bound.bundle_rows(bundle, board, mode)
    told = bound.whole(rows, board, mode)
    by_limit = {
        limit: sum(max(r["bound_us"].values()) for r in rows if r["bound"] == limit) / 1e3 for limit in bound.LIMITS
    }
    basis = {"basis": "estimated"}
    plan = {
        "table": "orin-plan", "name": f"LeWM 18M {precision}", "estimate_ms": told["estimate_ms"]["point"],
        "low_ms": told["estimate_ms"]["low"], "high_ms": told["estimate_ms"]["high"], "bound_ms": told["bound_ms"],
        **{f"by_{limit}_ms": ms for limit, ms in by_limit.items()},
        **{key: told[key] for key in ("launches", "nodes", "nodes_ms", "nodes_share", "barriers_ms", "barriers_share")},
        "launch_share": told["nodes_share"] + told["barriers_share"], **basis,
    }  # fmt: skip
    whole_us = sum(row["estimate_us"] for row in rows)
    kernels = [
        {
            "table": "orin-kernels", "name": f"{precision}: {row['what']}", "calls": row["calls"],
            "launches": row["launches"], "estimate_ms": row["estimate_us"] / 1e3,
            "bound_ms": max(row["bound_us"].values()) / 1e3, "bound": row["bound"],
            "registers": max(f["registers"] for f in row["functions"]),
            "occupancy": min(f["occupancy"] for f in row["functions"]), **basis,
        }
        for row in rows if row["estimate_us"] >= NOTICEABLE * whole_us
    ]  # fmt: skip
    return [plan, *kernels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=["w8a8", "bf16"], help="default w8a8 bf16")
    add_flags(parser)
    given = parser.parse_args()
    rows: list[Row] = []
    for precision in given.precisions:
        with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
            print(f"{precision}: build", file=sys.stderr, flush=True)
            rows.append(build_row(precision, Path(folder)))
            rows += fact_rows(precision, Path(folder) / precision) + bound_rows(precision, Path(folder) / precision)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    command = f"python benchmarks/gpu_static.py --precisions {' '.join(given.precisions)}"
    run = f"{time.time_ns():x}"
    finish([{**row, "command": command, "run": run} for row in rows], given)


if __name__ == "__main__":
    main()

"""Fixed work: how many instructions a plan takes, over different observations, counted by callgrind.

    python benchmarks/instructions.py [--model reference] [--plans 100] [--samples 32] [--iterations 2] [--json FILE]

A plan without a deadline does the same work whatever it sees, so its time is the machine's doing alone. Only `ewm_plan`
is counted, on one thread; noise differs from plan to plan as the observations do. valgrind knows no AVX-512, so on
such a machine it is the AVX2 build that is counted. Ends with 1 where the counts are further apart than 0.1 %.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from recording import add_flags, finish

from edgewm.binding import PortView, Runtime
from edgewm.build import build
from edgewm.doctor import TOOLS, find_tool
from edgewm.errors import EdgewmError
from edgewm.host import host
from edgewm.paths import RUNTIME
from edgewm.toolchain import compile_program

APART = 1e-3  # largest over smallest count, less one
COUNTED = {"avx512": "avx2"}  # what stands in for an instruction set that valgrind does not know
TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


def counts(bundle: Path, plans: int, folder: Path, seed: int = 0) -> np.ndarray:
    """Instructions of each of `plans` plans of the bundle, each from another observation.

    Raises EdgewmError where valgrind is missing or what it runs fails.
    """
    valgrind = find_tool("valgrind")
    if valgrind is None:
        raise EdgewmError("valgrind is missing", "callgrind counts instructions", TOOLS["valgrind"].install)
    driver = compile_program(
        {"instructions.cc": (Path(__file__).parent / "instructions.cc").read_text()}, [RUNTIME],
        flags=["-target", host().zig_triple], libraries=[bundle / "libedgewm.so"], out=bundle / "instructions",
    )  # fmt: skip
    seen = folder / "observations"
    seen.write_bytes(observations(bundle, plans, seed))
    command = [
        valgrind, "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=ewm_plan", "--dump-after=ewm_plan",
        f"--callgrind-out-file={folder / 'counts'}", str(driver), str(bundle / "model.ewm"), str(seen),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise EdgewmError(f"the counted program ended with {done.returncode}", " ".join(command), done.stderr[-500:])
    # one file for each plan, numbered from 1, and one for what came after the last
    files = [folder / f"counts.{i + 1}" for i in range(plans)]
    return np.array([int(TOTALS.search(file.read_text())[1]) for file in files])


def observations(bundle: Path, plans: int, seed: int) -> bytes:
    """One record for each plan: every observation port's values, drawn evenly over its range (or of unit variance)."""
    rng = np.random.default_rng(seed)
    with Runtime(bundle) as runtime:
        ports = [p for p in runtime.ports(runtime.plan_entry) if p.kind == "observation"]
    return b"".join(drawn(rng, port).tobytes() for _ in range(plans) for port in ports)


def drawn(rng: np.random.Generator, port: PortView) -> np.ndarray:
    low, high = float(port.low), float(port.high)
    if np.isfinite(low) and np.isfinite(high):
        return rng.uniform(low, high, port.shape).astype(port.dtype)
    return rng.standard_normal(port.shape).astype(port.dtype)


def spread(found: np.ndarray) -> dict[str, Any]:
    """Least, greatest and mean count, and how far the first two are apart."""
    return {
        "plans": len(found), "least": int(found.min()), "mean": float(found.mean()), "greatest": int(found.max()),
        "apart": float(found.max() / found.min() - 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    for name, default in (("plans", 100), ("samples", 32), ("iterations", 2)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--precision", default="fp32")
    add_flags(parser)
    given = parser.parse_args()
    isa = COUNTED.get(host().isa, host().isa)
    with tempfile.TemporaryDirectory(prefix="edgewm-") as name:
        folder = Path(name)
        budget = {"samples": given.samples, "iterations": given.iterations}
        build(given.model, precision=given.precision, planner=budget, isa=isa, out=folder / "out")
        found = spread(counts(folder / "out", given.plans, folder))
    row = {
        "table": "instructions", "name": f"{given.model} {given.precision}, {isa}", **found,
        "command": f"python benchmarks/instructions.py --model {given.model} --plans {given.plans} --precision "
        f"{given.precision} --samples {given.samples} --iterations {given.iterations}",
    }  # fmt: skip
    print(f"{row['name']}: {found['least']:,} to {found['greatest']:,} instructions, {found['apart']:.2%} apart")
    finish([row], given)
    return int(found["apart"] > APART)


if __name__ == "__main__":
    sys.exit(main())

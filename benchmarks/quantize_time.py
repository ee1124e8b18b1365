"""How long weights and steps take to be chosen, and how much memory: LeWM 18M, seeded weights, drawn pictures.

    python benchmarks/quantize_time.py [--precisions w8a8_smooth,w8a8_static,w4a8,w4a16_g64] [--threads 2] [--json FILE]

Each recipe in a process of its own: searches of the full model by torch, its candidates through the oracle, and all
products held (`quantize.calibrate`, `passes.quantize_products`). Seconds are of that alone, those of the processor
beside those of the clock, which other work on the machine lengthens; the peak is of the whole process, capture and
exact passes included. Neither depends on what the weights are.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from recording import add_flags, finish

MODEL = "edgewm.models.synthetic:lewm"


def measured(precision: str, threads: int) -> dict[str, Any]:
    """One recipe, in this process."""
    import torch
    from safetensors.numpy import save_file

    from edgewm.build import capture
    from edgewm.passes import EXACT, run
    from edgewm.passes.quantize_products import quantize_products
    from edgewm.quantize import recipe_of
    from edgewm.quantize.calibrate import calibrated, contexts_for

    torch.set_num_threads(threads)
    program, _, _ = capture(MODEL, {}, None, None)
    program = run(program, EXACT)
    shape = next(port.shape for port in program.ports if port.kind == "observation")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "drawn.safetensors"
        save_file(
            {n: rng.integers(0, 256, (contexts_for(program), *shape[-3:]), np.uint8) for n in ("pixels", "goal")}, file
        )
        begun, worked = time.perf_counter(), time.process_time()
        held = calibrated(program.with_(recipe=recipe_of(program, precision)), MODEL, file)
        quantize_products(held)
    return {
        "seconds": time.perf_counter() - begun, "processor seconds": time.process_time() - worked,
        "products": len(held.recipe), "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", default="w8a8_smooth,w8a8_static,w4a8,w4a16_g64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    add_flags(parser)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one, given.threads)))
        return 0
    rows = []
    for precision in given.precisions.split(","):
        words = [sys.executable, __file__, "--one", precision, "--threads", str(given.threads)]
        told = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        rows.append({"table": "quantize-time", "name": f"LeWM 18M {precision}", "threads": given.threads, **told,
                     "command": "python benchmarks/quantize_time.py"})  # fmt: skip
        print({key: value for key, value in rows[-1].items() if key not in ("table", "command")}, flush=True)
    finish(rows, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())

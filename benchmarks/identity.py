"""The same bits everywhere: one model's plans by every set of CPU kernels, on one thread and on two.

    python benchmarks/identity.py [--model reference] [--plans 3] [--precisions fp32,...] [--json FILE] [--no-record]

In each precision the plan is compiled for each instruction set this machine has and for Jetson Orin, which qemu plays
where this is no aarch64 machine. Every bundle plans from the same observations, goals, seeds and counters; a plan is
identical when every bit of every result is: actions, mean, deviation, cost, elites, and the state that the next plan
takes. Orin's bundle carries the answers of the first one as golden vectors, and its own runner compares. The digest is
of all those bits: it is the same on any machine.

Figures are appended to `benchmarks/results/<machine>.jsonl`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recording import add_flags, finish

from edgewm import format as ewm
from edgewm import models
from edgewm.binding import Runtime
from edgewm.build import capture
from edgewm.bundle import compile_bundle, pack
from edgewm.doctor import TOOLS, qemu_command
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.golden import by_port, example_inputs
from edgewm.host import host
from edgewm.judge.sources import source_of
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Program
from edgewm.quantize import NAMED, recipe_of
from edgewm.quantize.calibrate import calibrated
from edgewm.target import ISAS, Target, resolve

THREADS, QEMU_CPU = (1, 2), "cortex-a76"
Arrays = Mapping[str, np.ndarray]


def questions(model: str, program: Program, plans: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Inputs of the plan: the model's own observations and goals where it has a world, everything else drawn."""
    loaded = models.load(model)
    drawn = [example_inputs(program, "plan", seed + i) for i in range(plans)]
    source = source_of(model, loaded)
    if source.contexts is None:  # no world to look at: drawn observations tell bits apart as well
        return drawn
    contexts = source.contexts(plans, seed)
    names = [[p.name for p in loaded.ports_of(kind)] for kind in ("observation", "goal")]
    for inputs, sides in zip(drawn, contexts, strict=True):
        for ports, seen in zip(names, sides, strict=True):
            for name, value in zip(ports, (seen[key] for key in names[0]), strict=True):
                inputs[name] = np.asarray(value).reshape(inputs[name].shape)
    return drawn


def bundle(program: Program, board: Target, folder: Path, asked: list[Arrays], answered: list[Arrays]) -> Path:
    """The plan compiled for a board, with these golden vectors."""
    folder.mkdir()
    sections, paths = compile_bundle(program, schedule_program(program, board.isa), {}, board, folder)
    pairs = zip(asked, answered, strict=False)
    sections["golden"] = b"".join(ewm.golden_record("plan", by_port(sections, "plan", i, o)) for i, o in pairs)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    return folder


def answers(folder: Path, threads: int, asked: list[Arrays]) -> list[dict[str, np.ndarray]]:
    with Runtime(folder, threads) as runtime:
        return [runtime.run_entry("plan", **inputs) for inputs in asked]


def digest(results: list[Arrays]) -> str:
    whole = hashlib.sha256()
    for arrays in results:
        for name in sorted(arrays):
            whole.update(name.encode() + arrays[name].tobytes())
    return whole.hexdigest()


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def replayed(command: list[str], folder: Path, threads: int) -> int:
    """How many golden vectors the bundle's own runner reproduces. EdgewmError when it cannot run."""
    done = subprocess.run(
        [*command, folder / "edgewm-tick", folder, "--golden", "--threads", str(threads)],
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise EdgewmError(f"edgewm-tick ended with {done.returncode}: {done.stderr.strip()}", str(folder), "report it")
    return len(re.findall(r"^golden \d+: .*bit-identical$", done.stdout, re.MULTILINE))


def measure(model: str, plans: int, seed: int, folder: Path, precisions: Sequence[str] = NAMED) -> list[dict[str, Any]]:
    """One row for each precision and set of kernels."""
    emulator = [] if host().machine == "aarch64" else qemu_command(QEMU_CPU)
    if emulator is None:
        raise EdgewmError("qemu-aarch64 is missing", "this machine", TOOLS["qemu-aarch64"].install)
    exact = run(capture(model, {}, None, None)[0], EXACT)
    rows = []
    levels = ISAS[host().machine]
    for precision in precisions:
        program = run(calibrated(exact.with_(recipe=recipe_of(exact, precision)), model, seed=seed), LOWERING)
        asked = questions(model, program, plans, seed)
        program = program.with_(entries={"plan": program.entries["plan"]})
        first: list[dict[str, np.ndarray]] = []
        for isa in levels[levels.index(host().isa) :]:
            made = bundle(program, resolve("host", isa=isa)[0], folder / f"{precision}-{isa}", asked, [])
            found = {threads: answers(made, threads, asked) for threads in THREADS}
            first = first or found[THREADS[0]]
            identical = {t: sum(map(same, first, results)) for t, results in found.items()}
            rows.append(row(model, precision, f"{host().machine} {isa}", plans, identical, digest(found[THREADS[0]])))
        orin, _ = resolve("orin")
        made = bundle(program, orin, folder / f"{precision}-orin", asked, first)
        identical = {threads: replayed(emulator, made, threads) for threads in THREADS}
        runs_on = f"{orin.machine} {orin.isa}" + (f" (qemu {QEMU_CPU})" if emulator else "")
        whole = all(n == plans for n in identical.values())
        rows.append(row(model, precision, runs_on, plans, identical, digest(first) if whole else None))
    return rows


def row(
    model: str, precision: str, kernels: str, plans: int, identical: Mapping[int, int], bits: str | None
) -> dict[str, Any]:
    counts = {f"identical_{threads}_threads": count for threads, count in identical.items()}
    return {
        "table": "identity", "name": f"{model} {precision} {kernels}", "precision": precision, "kernels": kernels,
        "plans": plans, **counts, "digest": bits and bits[:16],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference", help="what is planned with")
    parser.add_argument("--plans", type=int, default=3, help="how many (an emulated one takes half a minute)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precisions", default=",".join(NAMED), help="by name")
    add_flags(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgewm-identity-") as folder:
        rows = measure(given.model, given.plans, given.seed, Path(folder), given.precisions.split(","))
    print(f"{'precision':10s}{'kernels':32s}" + "".join(f"{t} thread{'s'[: t - 1]:8s}" for t in THREADS) + "digest")
    for r in rows:
        counts = (f"{r[f'identical_{t}_threads']} of {r['plans']}" for t in THREADS)
        print(
            f"{r['precision']:10s}{r['kernels']:32s}" + "".join(f"{c:16s}" for c in counts) + (r["digest"] or "differs")
        )
    command = f"python benchmarks/identity.py --model {given.model} --plans {given.plans}"
    command += "" if given.precisions == ",".join(NAMED) else f" --precisions {given.precisions}"
    finish([{**r, "command": command} for r in rows], given)
    return int(any(r[f"identical_{t}_threads"] != r["plans"] for r in rows for t in THREADS))


if __name__ == "__main__":
    sys.exit(main())

"""Does the judge refuse what is broken, and let good builds pass?

    python benchmarks/mutants.py [--seeds 5] [--faults NAME ...] [--good-only] [--faults-only] [--log FILE]

Every fault of `faults.py` is planted in a build of a reference model, compiled, and judged by the preset `default`:
each must be refused, by the first suite that finds it. Then good builds, which must all pass every suite that needs no
episodes: fp32, bf16, w8a8, and mixtures in which each product is held as one of these holds it, drawn at random; each
judged on contexts, noise and clips of its own seed. The full model's answers are remembered between judgements, so that
each costs what the compressed model costs. Ends with 1 where a fault passes or a good build does not. What a `--log`
already holds is not judged again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults import FAULTS, Fault
from recording import add_flags, finish

from edgewm import models, validate
from edgewm.act import period_of
from edgewm.binding import Runtime
from edgewm.build import manifest_of
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.judge import gates
from edgewm.judge.sides import Side, upstream
from edgewm.judge.sources import Source, source_of
from edgewm.manifest import read_manifest
from edgewm.models import Model
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Program
from edgewm.quantize import recipe_of
from edgewm.target import resolve

MODEL = "reference/puck"
SUITES = ("causality", "horizon", "physics", "plan", "general")  # the cheap ones first
PRECISIONS = ("fp32", "bf16", "w8a8")
GOOD_PER_SEED = 10


# -------------------------------------------------------------------------------------------------------------- builds


class Builder:
    """Bundles of one model; what they have in common is made once."""

    def __init__(self, model: Model):
        self.model = model
        self.board, self.power = resolve("host", None, None)
        self.captured = models.capture_model(self.model, self.model.planner)
        self.exact = run(self.captured, EXACT)

    def good(self, recipe: dict[str, str], precision: str, out: Path) -> None:
        self._finish(self.exact, recipe, precision, out, lambda p: p)

    def faulty(self, fault: Fault, out: Path) -> None:
        exact, late = self.exact, fault.edit if fault.stage == "quantized" else lambda p: p
        if fault.stage == "model":
            exact = run(models.capture_model(fault.edit(self.model), self.model.planner), EXACT)
        elif fault.stage == "captured":
            exact = run(fault.edit(self.captured), EXACT)
        elif fault.stage == "exact":
            exact = fault.edit(self.exact)
        self._finish(exact, recipe_of(exact, fault.precision), fault.precision, out, late)

    def _finish(
        self, exact: Program, recipe: Any, precision: str, out: Path, late: Callable[[Program], Program]
    ) -> None:
        quantize, *lowering = LOWERING
        quantized = late(run(exact.with_(recipe=recipe, target=self.board), [quantize]))
        program = run(quantized, lowering)
        manifest = manifest_of(program, self.board, self.power, precision, 20.0, 1, 0, dict(self.model.files))
        out.mkdir()
        sections, paths = compile_bundle(program, schedule_program(program, self.board.isa), manifest, self.board, out)
        (out / "model.ewm").write_bytes(pack(sections, self.board, paths))


def mixed(exact: Program, seed: int) -> dict[str, str]:
    """A recipe drawn at random: each product as one of the named recipes holds it."""
    rng = np.random.default_rng([0x313ED, seed])
    recipes = [recipe_of(exact, precision) for precision in PRECISIONS]
    names = sorted(set().union(*recipes))
    drawn = {name: recipes[int(rng.integers(len(recipes)))].get(name, "fp32") for name in names}
    return {name: kind for name, kind in drawn.items() if kind != "fp32"}


# ----------------------------------------------------------------------------------------------------------- judgements


def remembering(side: Side) -> Side:
    """The same side; what it was asked before it answers from memory."""
    known: dict[bytes, Any] = {}

    def kept(name: str, function: Callable) -> Callable:
        def ask(*given: Any) -> Any:
            key = hashlib.sha256(name.encode())
            for x in given:
                for part in x.values() if isinstance(x, dict) else [x]:
                    key.update(str(np.shape(part)).encode())
                    key.update(np.ascontiguousarray(part).tobytes())
            if key.digest() not in known:
                known[key.digest()] = function(*given)
            return known[key.digest()]

        return ask

    return replace(side, **{name: kept(name, getattr(side, name)) for name in ("encode", "predict", "score", "plan")})


def judged(
    folder: Path, builder: Builder, full: Side, source: Source, seed: int, preset: gates.Preset
) -> list[dict[str, Any]]:
    """The gates of one suite after another, up to the first suite that refuses."""
    manifest, clock = read_manifest(folder), [0]
    found: list[dict[str, Any]] = []
    with Runtime(folder, 1, period_ns=period_of(manifest), clock=lambda: clock[0]) as runtime:
        subjects = replace(validate.subjects_of(manifest, builder.model, runtime), full=full)
        for suite in (s for s in SUITES if validate.lacking(s, builder.model, source) is None):
            found += validate.judge(
                subjects, manifest, builder.model, runtime, clock, source, suite=[suite], preset=preset, episodes=0,
                contexts=preset.contexts, latency=(), seed=seed, progress=lambda stage, done: None,
                notice=lambda text: None,
            )["gates"]  # fmt: skip
            if gates.verdict(found) is False:
                break
    return found


def refusal(make: Callable[[Path], None], judge: Callable[[Path], list[dict[str, Any]]]) -> dict[str, Any]:
    """`refused` (True, False, None for undecided), by which gates, and how long it took to build and to judge.

    EdgewmError where it cannot be built: that is no judgement.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "out"
        make(folder)
        built = time.perf_counter()
        try:
            found = judge(folder)
        except EdgewmError as fault:
            return {"refused": True, "by": f"does not run: {fault.what}", "build_s": round(built - begun, 1),
                    "judge_s": round(time.perf_counter() - built, 1)}  # fmt: skip
    failed = [g["name"] for g in found if g["passed"] is False]
    open_ = [f"{g['name']} undecided" for g in found if g["passed"] is None]
    refused = {True: False, False: True, None: None}[gates.verdict(found)]
    return {
        "refused": refused, "by": ", ".join(failed or open_) or None, "build_s": round(built - begun, 1),
        "judge_s": round(time.perf_counter() - built, 1),
        "values": {g["name"]: g["value"] for g in found},
    }  # fmt: skip


Row = dict[str, Any]


def planted(
    builder: Builder, full_of: Callable[[int], Side], source: Source, faults: list[Fault], preset: gates.Preset,
    known: Mapping[str, Row],
) -> Iterator[Row]:  # fmt: skip
    full = full_of(0)
    for fault in faults:
        if fault.name in known:
            yield known[fault.name]
            continue
        found = refusal(
            lambda out: builder.faulty(fault, out),  # noqa: B023
            lambda out: judged(out, builder, full, source, 0, preset),
        )
        yield {"name": fault.name, "precision": fault.precision, **found}


def good(
    builder: Builder, full_of: Callable[[int], Side], source: Source, seeds: int, preset: gates.Preset,
    known: Mapping[str, Row],
) -> Iterator[Row]:  # fmt: skip
    for seed in range(seeds):
        full = full_of(seed)
        for i in range(GOOD_PER_SEED):
            precision = PRECISIONS[i] if i < len(PRECISIONS) else "mixed"
            number = seed * GOOD_PER_SEED + i
            if f"good {number}" in known:
                yield known[f"good {number}"]
                continue
            recipe = mixed(builder.exact, number) if precision == "mixed" else recipe_of(builder.exact, precision)
            found = refusal(
                lambda out: builder.good(recipe, precision, out),  # noqa: B023
                lambda out: judged(out, builder, full, source, seed, preset),  # noqa: B023
            )
            yield {"name": f"good {number}", "precision": precision, "seed": seed, **found}


def kept(rows: Iterator[Row], log: Path | None, known: Mapping[str, Row]) -> list[Row]:
    """The rows, printed and written to the log as they come."""
    found = []
    for row in rows:
        found.append(row)
        if row["name"] in known:
            continue
        print(json.dumps(row), flush=True)
        if log is not None:
            with log.open("a") as out:
                out.write(json.dumps(row) + "\n")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--faults", nargs="*", help="only those whose name holds one of these words")
    parser.add_argument("--faults-only", action="store_true")
    parser.add_argument("--good-only", action="store_true")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--model", default=MODEL, help="a reference model, whose layers faults.py names")
    parser.add_argument("--log", type=Path, help="rows as they come; with the same flags, a run goes on from there")
    add_flags(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    builder, preset = Builder(models.load(given.model)), gates.preset_of(given.preset)
    source = source_of(given.model, builder.model)
    lines = given.log.read_text().splitlines() if given.log and given.log.is_file() else []
    known = {row["name"]: row for row in map(json.loads, lines)}
    chosen = [f for f in FAULTS if not given.faults or any(word in f.name for word in given.faults)]

    @functools.lru_cache(maxsize=1)  # what is remembered of one seed is of no use for another
    def full_of(seed: int) -> Side:
        return remembering(upstream(builder.model, builder.model.planner))

    found: dict[str, list[Row]] = {"faults": [], "good": []}
    if not given.good_only:
        found["faults"] = kept(planted(builder, full_of, source, chosen, preset, known), given.log, known)
    if not given.faults_only:
        found["good"] = kept(good(builder, full_of, source, given.seeds, preset, known), given.log, known)
    command = f"python benchmarks/mutants.py --model {given.model} --preset {given.preset} --seeds {given.seeds}"
    summary = [
        {"table": "judge", "name": f"{name} in {given.model}, preset {preset.name}", "judged": len(rows),
         "command": command,
         **{word: sum(r["refused"] is state for r in rows)
            for word, state in (("refused", True), ("undecided", None), ("passed", False))}}
        for name, rows in (("planted faults", found["faults"]), ("good builds", found["good"])) if rows
    ]  # fmt: skip
    print(json.dumps(summary))
    each = [{k: v for k, v in r.items() if k != "values"} for r in found["faults"]]
    finish([*summary, *({"table": "faults", **r, "command": command} for r in each)], given)
    refused, passed = (sum(r["refused"] is want for r in found[k]) for k, want in (("faults", True), ("good", False)))
    return int(refused < len(found["faults"]) or passed < len(found["good"]))


if __name__ == "__main__":
    sys.exit(main())

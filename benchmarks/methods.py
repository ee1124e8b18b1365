"""What each method of quantization adds over rounding to the nearest, on trained weights, in compiled arithmetic.

    python benchmarks/methods.py [--model reference] [--contexts 100] [--widths w8a8,fp8,w4a16,w4a8,values]
                                 [--json FILE]

Each row holds the products that `w8a8` has in eight bits in a form of its own, straits in bf16, and compiles the entry
`score`. With it all candidates of the fp32 bundle's own searches from held-out contexts are scored; then it searches
itself, on the same noise. Methods are calibrated on candidates of other searches (`quantize.calibrate`). Elites are
shares that stay, iteration by iteration, beside them the difference to rounding and its standard error over contexts;
error is the variance of what costs are off by, over theirs; regret is a share of what planning gains over a blind
candidate. A run of one width leaves the other rows as they were.

nearest       weights rounded; activations of eight bits in steps of each row's own range (`product_i8`), or to E4M3
centred       means of channels go to the bias, exactly (Outlier Suppression+, Wei et al., 2023)
scaled        channels divided by a power of their deviation that loses least (SmoothQuant, Xiao et al., 2023; of four
              bits what AWQ does, Lin et al., 2024)
clipped       steps of weights shrunk where that loses least, by the magnitude of channels (as in AWQ)
compensated   GPTQ (Frantar et al., 2023)
bias          what the mean of all inputs loses by rounded weights, added (Nagel et al., 2019)

Of the width `values`, a table of its own, products are those of w8a8, and classes of what stands between calls are held
in bf16 (`passes/narrow_values.py`); elites are beside those of w8a8.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from recording import add_flags, finish

from edgewm import expr as e
from edgewm import models, statistics
from edgewm.binding import Runtime
from edgewm.build import capture
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.host import host
from edgewm.judge.sides import Search, elites_of, search, upstream
from edgewm.judge.sources import source_of
from edgewm.kernel import load
from edgewm.options import VALUES, WITH
from edgewm.passes import EXACT, LOWERING, run
from edgewm.passes.quantize_products import (
    HOLD,
    Form,
    Moments,
    corrected,
    levels_of,
    quantize_e4m3,
    quantize_groups,
    quantize_smooth,
    quantize_weight,
    round_weight,
)  # fmt: skip
from edgewm.program import Program
from edgewm.quantize import STORED, recipe_of, straits
from edgewm.quantize.calibrate import searched, second_moments, smooth_of
from edgewm.quantize.compensate import rounded
from edgewm.quantize.smooth import POWERS, Smooth

SEED, GROUP = 0, 64
SHRINKS = np.linspace(0.55, 1, 10)
Array = np.ndarray
Hold = Callable[..., tuple[Array, ...]]


class Method(NamedTuple):
    """A form, what it is told of a product's inputs (an index into `Bench.seen`), and classes of values in bf16."""

    form: Form
    seen: str = ""
    values: tuple[str, ...] = ()


def blind(hold: Hold) -> Hold:
    """`hold` told nothing: rounding to the nearest."""
    return lambda w, seen: hold(w, None)


def about_zero(hold: Hold) -> Hold:
    """`hold` told second moments that are not of the mean: nothing makes up for that where there is no bias."""

    def held(w: Array, seen: Moments) -> tuple[Array, ...]:
        return hold(w, seen._replace(about=seen.about + seen.count * np.outer(seen.mean, seen.mean)))

    return held


def eight_bits(w: Array, seen: Moments) -> tuple[Array, ...]:
    return quantize_weight(w, seen.about)


def four_bits(w: Array, seen: Moments | None) -> tuple[Array, ...]:
    return quantize_weight(w, seen and seen.about, bits=4)


def clipped(w: Array, seen: Moments) -> tuple[Array]:
    """Groups of 16 levels whose steps are shrunk where the magnitude of inputs says that this loses least."""
    steps, shape = levels_of(w, None, 4, GROUP)[1], (len(w) // GROUP, GROUP, w.shape[1])
    heavy = np.diag(seen.about)[:, None]
    lost = [((rounded(w, steps * f, -8, 7) * steps * f - w) ** 2 * heavy).reshape(shape).sum(1) for f in SHRINKS]
    best = np.repeat(SHRINKS[np.argmin(lost, 0)], GROUP, 0).astype(np.float32)
    return round_weight(rounded(w, steps * best, -8, 7).astype(np.float32) * steps * best)


def salient(w: Array, seen: Smooth) -> tuple[Array, ...]:
    """Weights of channels that stray multiplied before they are rounded, their inputs divided; GPTQ, and the mean as a
    bias."""
    held = (w / seen.inverse.astype(np.float64).T).astype(np.float32)
    mean = -seen.offset[0].astype(np.float64)  # of what the product reads, as nothing is shifted
    return *corrected(held, Moments(mean, seen.moments, 0.0), hold=groups), seen.inverse


def nearest_of(w: Array, seen: Smooth) -> tuple[Array, ...]:
    """`quantize_smooth` without compensation."""
    return quantize_smooth(w, seen._replace(moments=None))


def centred_e4m3(w: Array, seen: Smooth) -> tuple[Array, ...]:
    """E4M3 of inputs less their means, and what these make of the product."""
    return *quantize_e4m3(w), (-seen.offset.astype(np.float64) @ w).astype(np.float32), seen.offset


def own(family: str) -> Callable[..., Any]:
    return lambda x, *held: load(family).reference(x, *held)


EIGHT, FOUR, SMOOTH = HOLD["w8a8"], HOLD["w4a8"], HOLD["w8a8_smooth"]
GROUPED = HOLD["w4a16_g64"]
groups = functools.partial(quantize_groups, size=GROUP)
PLAIN = Form(own("product_bf16"), ("bf16",), blind(groups))
FEW = Form(own("product_i8"), EIGHT.parts, blind(four_bits))
SALIENT = Form(
    lambda x, w, bias, inverse: e.add(load("product_bf16").reference(e.mul(x, inverse), w), bias),
    ("bf16", "bias", "inverse"), salient,
)  # fmt: skip
WITH_BIAS = Form(FOUR.product, FOUR.parts, functools.partial(corrected, hold=eight_bits))
EIGHT_FLOATS = HOLD["fp8"]
WEIGHTS = EIGHT_FLOATS._replace(product=lambda x, w, scale: e.mul(own("product_bf16")(x, w), scale))
CENTRED = Form(
    lambda x, w, scale, bias, offset: e.add(EIGHT_FLOATS.product(e.add(x, offset), w, scale), bias),
    ("bf16", "scale", "bias", "offset"), centred_e4m3,
)  # fmt: skip
METHODS: dict[str, Method] = {
    "w8a8 nearest": Method(EIGHT),
    "w8a8 compensated, bias": Method(WITH_BIAS, "moments"),
    "w8a8 centred": Method(SMOOTH._replace(hold=nearest_of), "centred"),
    "w8a8 centred, scaled": Method(SMOOTH._replace(hold=nearest_of), "smooth"),
    "w8a8 centred, compensated": Method(SMOOTH, "centred"),
    "w8a8 centred, scaled, compensated: w8a8_smooth": Method(SMOOTH, "smooth"),
    "fp8 nearest: fp8": Method(EIGHT_FLOATS),
    "fp8 of weights alone": Method(WEIGHTS),
    "fp8 centred": Method(CENTRED, "centred"),
    "w4a16_g64 nearest": Method(PLAIN),
    "w4a16_g64 clipped": Method(PLAIN._replace(hold=about_zero(clipped)), "moments"),
    "w4a16_g64 compensated": Method(PLAIN._replace(hold=about_zero(groups)), "moments"),
    "w4a16_g64 compensated, bias: w4a16_g64": Method(GROUPED, "moments"),
    "w4a16_g64 scaled, compensated, bias": Method(SALIENT, "smooth"),
    "w4a8 nearest": Method(FEW),
    "w4a8 compensated, bias: w4a8": Method(FOUR, "moments"),
}
METHODS |= {
    f"values {WITH.join(('w8a8', *own))}": Method(EIGHT, values=own)
    for own in ((), *((one,) for one in VALUES), VALUES)
}


class Context(NamedTuple):
    """Inputs of `score` but candidates, noise, the fp32 bundle's search, and the cost of its plan."""

    given: Mapping[str, Array]
    noise: Array
    found: Search
    cost: float


class Bench:
    """A model's exact program, what its products are given while it plans, and its own searches to compare with."""

    def __init__(self, name: str, contexts: int, folder: Path):
        self.folder, self.planner = folder, models.load(name).planner
        self.program = run(capture(name, {}, None, None)[0], EXACT)
        score, weights = self.program.entries["score"], self.program.weights
        recipe = recipe_of(self.program, "w8a8")
        self.straits = straits(self.program)
        inputs = list(searched(self.program, name, None, SEED))
        named = [n for n in recipe if n not in self.straits]
        look = {
            "moments": second_moments, "smooth": functools.partial(smooth_of, powers=POWERS),
            "centred": functools.partial(smooth_of, powers=(0.0,)),
        }  # fmt: skip
        self.seen = {"": dict.fromkeys(named)} | {k: f(score, weights, named, inputs) for k, f in look.items()}
        self.contexts = list(self._searches(name, contexts))

    def _searches(self, name: str, count: int) -> Iterator[Context]:
        model, p = models.load(name), self.planner
        if p.history > 1 or p.proposal:
            raise SystemExit("a model that plans from several frames, or from a proposal, is not handled here")
        full, shape = upstream(model, p), (p.iterations, p.samples, p.horizon, model.action_dim)
        with self.scorer("fp32", self.program) as score:
            for i, (observation, goal) in enumerate(source_of(name, model).contexts(count, SEED)):
                given = {"z": full.encode(observation)[None], "goal": full.encode(goal)[None]}
                noise = np.random.default_rng([SEED, i]).standard_normal(shape, np.float32)
                found = search(functools.partial(score, given), p, noise)
                yield Context(given, noise, found, score(given, found.mean[None].repeat(p.samples, 0))[0])

    def scorer(self, name: str, program: Program) -> Any:
        """The entry `score` of an exact program, compiled as its recipe says."""
        return Scorer(program, self.folder / str(abs(hash(name))))

    def held(self, name: str, method: Method) -> Program:
        """The program with every product held as the method says."""
        HOLD[name] = method.form  # a format of this script's own
        weights, recipe = dict(self.program.weights), {}
        for product, seen in self.seen[method.seen].items():
            parts = method.form.hold(weights[product], seen)
            weights |= {f"{product}/{part}": value for part, value in zip(method.form.parts, parts, strict=True)}
            recipe[product] = name
        recipe |= dict.fromkeys(self.straits, "bf16") | {WITH + values: STORED for values in method.values}
        return self.program.with_(weights=weights, recipe=recipe)

    def row(self, name: str, method: Method) -> tuple[dict[str, Any], Array]:
        """Figures, and elites that stay in each context."""
        k, shared, ranks, errors, lost, gained = self.planner.elites, [], [], [], [], []
        with self.scorer("fp32", self.program) as full, self.scorer(name, self.held(name, method)) as score:
            for given, noise, found, cost in self.contexts:
                costs = np.stack([score(given, c) for c in found.candidates])
                both = list(zip(found.costs, costs, strict=True))
                shared.append(np.mean([len(np.intersect1d(elites_of(a, k), elites_of(b, k))) / k for a, b in both]))
                ranks.append(statistics.spearman(found.costs.ravel(), costs.ravel()))
                errors.append(np.mean([np.var(b - a, dtype=np.float64) / np.var(a, dtype=np.float64) for a, b in both]))
                plan = search(functools.partial(score, given), self.planner, noise).mean
                lost.append(full(given, plan[None].repeat(self.planner.samples, 0))[0] - cost)
                gained.append(np.median(found.costs[0]) - cost)
        figures = {
            "contexts": len(shared), "elite_overlap": float(np.mean(shared)), "least_spearman": float(min(ranks)),
            "regret": float(np.sum(lost) / np.sum(gained)), "error": float(np.mean(errors)),
        }  # fmt: skip
        return figures, np.array(shared)


class Scorer:
    """Costs of candidates (S, H, A), as many as the program scores at once, by a compiled `score`."""

    def __init__(self, program: Program, folder: Path):
        one = program.with_(entries={"score": program.entries["score"]})
        if not (folder / "model.ewm").is_file():
            folder.mkdir()
            lowered = run(one, LOWERING)
            sections, paths = compile_bundle(lowered, schedule_program(lowered, host().isa), {}, host(), folder)
            (folder / "model.ewm").write_bytes(pack(sections, host(), paths))
        self.runtime = Runtime(folder, 1)

    def __call__(self, given: Mapping[str, Array], candidates: Array) -> Array:
        return self.runtime.run_entry("score", **given, candidates=candidates.astype(np.float32))["cost"]

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.runtime.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--contexts", type=int, default=100)
    parser.add_argument("--widths", default="w8a8,fp8,w4a16,w4a8,values")
    add_flags(parser)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    command = f"python benchmarks/methods.py --model {given.model} --contexts {given.contexts}"
    with tempfile.TemporaryDirectory(prefix="edgewm-") as folder:
        bench = Bench(given.model, given.contexts, Path(folder))
        for width in given.widths.split(","):
            nearest = None
            for name, method in ((n, m) for n, m in METHODS.items() if n.startswith(width)):
                figures, shared = bench.row(name, method)
                nearest = shared if nearest is None else nearest
                apart = shared - nearest
                more = f"{apart.mean():+.4f} ± {apart.std(ddof=1) / len(apart) ** 0.5:.4f}" if apart.any() else None
                table, shown = ("values", name.removeprefix("values ")) if width == "values" else ("methods", name)
                row = {"table": table, "name": f"{given.model}: {shown}", **figures, "elites more": more}
                print({key: value for key, value in row.items() if key != "table"}, flush=True)
                rows.append({**row, "command": command})
    finish(rows, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())

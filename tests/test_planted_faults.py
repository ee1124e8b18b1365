"""Faults planted in compiled programs are refused, and good builds pass: a handful of benchmarks/faults.py on a LeWM of
a few thousand seeded weights. The whole matrix, on trained weights, is benchmarks/mutants.py."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch_world")

from fixtures_models import seeded
from tiny import ACTION, PLANNER
from torch_world.models import LeWM
from torch_world.nn import CLSEncoder

from edgewm.binding import Runtime
from edgewm.errors import EdgewmError
from edgewm.judge import exact, gates
from edgewm.judge.sides import compiled, upstream
from edgewm.judge.sources import Source
from edgewm.models import Model, torch_world

FAULTS = (
    "one layer's weights twice too large", "an encoder of another training run", "axes of the action swapped",
    "a stale row of keys and values", "a candidate leaks into the others", "the same noise in every plan",
    "integers that wrap round", "no causal mask",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    folder = str(Path(__file__).resolve().parent.parent / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("faults", "mutants")})
    finally:
        sys.path.remove(folder)


def lewm() -> Model:
    """torch-world's LeWM at width 16: 3 blocks, window 3, 16 px frames."""
    encoder = CLSEncoder(16, 8, 16, depth=1, num_heads=2, mlp_ratio=2.0)
    sizes = {"embed_dim": 16, "history": 3, "depth": 3, "num_heads": 2, "head_dim": 16, "mlp_dim": 66, "proj_dim": 68}
    module = seeded(LeWM(encoder, action_dim=4, dropout=0.0, **sizes))
    pixels = {"mean": (0.5, 0.4, 0.6), "std": (0.2, 0.3, 0.25)}
    made = torch_world.lewm(module, (16, 16), 4, PLANNER, ACTION, **pixels, rate_hz=50.0)
    return replace(made, files={"weights": "0" * 64})


def picture(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, (*shape, 16, 16, 3), dtype=np.uint8)


def contexts(n: int, seed: int):
    rng = np.random.default_rng([1, seed])
    return (({"pixels": picture(rng)}, {"pixels": picture(rng)}) for _ in range(n))


def rollouts(n: int, steps: int, seed: int):
    rng = np.random.default_rng([2, seed])
    return ((picture(rng, steps + 1), rng.uniform(-1, 1, (steps, 2)), None) for _ in range(n))


SOURCE = Source(contexts=contexts, rollouts=rollouts, states=lambda n, seed: None)


@pytest.fixture(scope="module")
def builder(bench: SimpleNamespace):
    return bench.mutants.Builder(lewm())


@pytest.fixture(scope="module")
def full(bench: SimpleNamespace, builder):
    return bench.mutants.remembering(upstream(builder.model, builder.model.planner))


def rows_of(bench, builder, full, make) -> dict:
    return bench.mutants.refusal(make, lambda out: bench.mutants.judged(out, builder, full, SOURCE, 0, gates.DEFAULT))


def test_a_good_build_passes(bench, builder, full) -> None:
    found = rows_of(bench, builder, full, lambda out: builder.good({}, "fp32", out))
    assert found["refused"] is False and found["values"]["exact_costs"] < 1, found


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_refused(bench, builder, full, name) -> None:
    fault = next(f for f in bench.faults.FAULTS if f.name == name)
    found = rows_of(bench, builder, full, lambda out: builder.faulty(fault, out))
    assert found["refused"] is True, found


def test_an_fp32_build_is_exact_but_for_rounding_and_a_little_more_is_told(bench, builder, full) -> None:
    """A fault too small for any other gate: one bias off by a thousandth of its size."""
    little = bench.faults.Fault("a little", "captured", bench.faults.weights(
        pred_proj__3__bias=lambda w: w * 1.001))  # fmt: skip
    planner = builder.model.planner
    rows = {}
    for name, make in (("good", lambda out: builder.good({}, "fp32", out)), ("off", partial(builder.faulty, little))):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "out"
            make(folder)
            with Runtime(folder) as runtime:
                side = compiled(runtime, builder.model, planner)
                _, (rows[name],) = exact.run(builder.model, planner, full, side, contexts(2, 3), 0)
    assert rows["good"]["passed"] is True and 0 < rows["good"]["value"] < 1
    assert rows["off"]["passed"] is False


def test_a_student_is_not_asked_for_its_teachers_very_costs(bench, builder, full) -> None:
    """Other files, so another model: fp32 promises nothing about these costs."""
    teacher = SimpleNamespace(**{**vars(builder), "model": replace(builder.model, files={"weights": "1" * 64})})

    def judge(out: Path) -> list[dict]:
        return bench.mutants.judged(out, teacher, full, SOURCE, 0, gates.DEFAULT)

    found = bench.mutants.refusal(lambda out: builder.good({}, "fp32", out), judge)
    assert found["refused"] is False and "exact_costs" not in found["values"]


def test_there_are_enough_faults_and_each_has_a_name_of_its_own(bench) -> None:
    names = [f.name for f in bench.faults.FAULTS]
    assert len(names) == len(set(names)) >= 24


def test_a_bundle_that_does_not_run_is_refused(bench, builder, full) -> None:
    def cut(out: Path) -> None:
        builder.good({}, "fp32", out)
        (out / "model.ewm").write_bytes((out / "model.ewm").read_bytes()[:-64])

    found = rows_of(bench, builder, full, cut)
    assert found["refused"] is True and "does not run" in found["by"]


def test_what_cannot_be_built_is_no_judgement(bench, builder, full) -> None:
    nothing = bench.faults.Fault("not a number", "captured", bench.faults.weights(
        pred_proj__3__bias=lambda w: np.full_like(w, np.nan)))  # fmt: skip
    with pytest.raises(EdgewmError):
        rows_of(bench, builder, full, lambda out: builder.faulty(nothing, out))

"""Faults planted in compiled programs are refused, and good builds pass: a handful of benchmarks/faults.py on a LeWM of
a few thousand seeded weights. The whole matrix, on trained weights, is benchmarks/mutants.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch_world")

from fixtures_models import seeded
from tiny import ACTION, PLANNER
from torch_world.models import LeWM
from torch_world.nn import CLSEncoder

from edgewm.judge import gates
from edgewm.judge.sides import upstream
from edgewm.judge.sources import Source
from edgewm.models import Model, torch_world

FAULTS = (
    "one layer's weights twice too large", "an encoder of another training run", "axes of the action swapped",
    "a stale row of keys and values", "a candidate leaks into the others", "the same noise in every plan",
    "integers that wrap round",
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
    return torch_world.lewm(module, (16, 16), 4, PLANNER, ACTION, **pixels, rate_hz=50.0)


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
    assert found["refused"] is False, found


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_refused(bench, builder, full, name) -> None:
    fault = next(f for f in bench.faults.FAULTS if f.name == name)
    found = rows_of(bench, builder, full, lambda out: builder.faulty(fault, out))
    assert found["refused"] is True, found


def test_there_are_enough_faults_and_each_has_a_name_of_its_own(bench) -> None:
    names = [f.name for f in bench.faults.FAULTS]
    assert len(names) == len(set(names)) >= 24


def test_a_bundle_that_does_not_run_is_refused(bench, builder, full) -> None:
    nothing = bench.faults.Fault("not a number", "captured", bench.faults.weights(
        pred_proj__3__bias=lambda w: np.full_like(w, np.nan)))  # fmt: skip
    found = rows_of(bench, builder, full, lambda out: builder.faulty(nothing, out))
    assert found["refused"] is True and "does not run" in found["by"]

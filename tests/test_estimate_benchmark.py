"""benchmarks/estimate.py: cases that nothing was fitted on, and rounds that other load cannot shorten; no timing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from edgewm.estimate.specimens import specimens
from edgewm.models import capture_model
from edgewm.quantize import NAMED

SMALL = ("mlp 64", "recurrent 48", "ensemble 96", "tokens 9 x 64")


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    folder = str(Path(__file__).resolve().parent.parent / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("estimate")
    finally:
        sys.path.remove(folder)


def built(bench: ModuleType, name: str = "a", threads: int = 1) -> object:
    case = bench.Case(name, 24, 1, 2, "fp32", threads)
    plan = {"plan_ms": {"low": 8.0, "point": 9.0, "high": 10.0}, "bound": "tensor"}
    return bench.Built(case, Path(name), plan, threads, [])


def test_cases_are_drawn_by_their_seed(bench: ModuleType) -> None:
    drawn = [bench.cases(40, (1, 2), tuple(bench.MODELS), seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 40
    assert {case.precision for case in drawn[0]} == set(NAMED) and {case.threads for case in drawn[0]} == {1, 2}
    assert {case.model for case in drawn[0]} == set(bench.MODELS)


def test_no_model_has_a_shape_that_prices_are_fitted_on(bench: ModuleType) -> None:
    fitted = {tuple(w.shape) for w in specimens().weights.values() if w.ndim == 2}
    for name in SMALL:
        held = {tuple(w.shape) for w in capture_model(bench.MODELS[name]()).weights.values() if w.ndim == 2}
        assert held and not (held | {shape[::-1] for shape in held}) & fitted, name


def test_the_least_round_counts_and_differing_rounds_are_timed_again(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, held_up = built(bench, "calm"), built(bench, "held up", 2)
    took = {"calm": iter([10.0, 10.1] + [50.0] * 20), "held up": iter(range(40, 0, -1))}
    alone = {"calm": True, "held up": False}
    monkeypatch.setattr(bench, "round_ms", lambda folder, *_: (float(next(took[str(folder)])), alone[str(folder)]))
    bench.measure([calm, held_up])
    assert len(calm.rounds_ms) == bench.ROUNDS and len(held_up.rounds_ms) == bench.MOST_ROUNDS
    row = calm.row()
    assert (row["measured_ms"], row["error"], row["inside"]) == (10.0, pytest.approx(-0.1), True)
    assert row["settled"] and not row["disturbed"]
    assert not held_up.row()["settled"] and held_up.row()["disturbed"] and not held_up.row()["inside"]


def test_a_summary_is_of_sizes(bench: ModuleType) -> None:
    rows = [
        {"error": error, "estimated_ms": 1 + error, "measured_ms": 1.0, "inside": error < 0.2}
        for error in (-0.5, 0.1, 0.3)
    ]
    told = bench.summary("s", rows)
    assert (told["cases"], told["median_error"], told["worst"]) == (3, 0.3, 0.5)
    assert told["inside_interval"] == pytest.approx(2 / 3)
    assert told["mean"] == pytest.approx((0.5 * 1.1 * 1.3) ** (1 / 3) - 1)

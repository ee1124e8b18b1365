"""Precision by planning and by the clock: what a product costs and saves, the front, and the point that is chosen."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from test_calibrate import contexts as contexts
from test_calibrate import exact as exact
from test_calibrate import model

from edgewm import interp
from edgewm.build import build, capture
from edgewm.console import build_table
from edgewm.errors import EdgewmError
from edgewm.estimate.machine import machine_of
from edgewm.models import Model
from edgewm.options import VALUES
from edgewm.passes import EXACT, run
from edgewm.program import Program
from edgewm.quantize import recipe_of
from edgewm.quantize.bank import Looked, alone, fidelity, gathered, quantized, together
from edgewm.quantize.fast import values_of
from edgewm.quantize.price import Clock, own_prices
from edgewm.quantize.search import Step, chosen, held, pareto, steps_of, why
from edgewm.target import resolve

MODEL = "test_calibrate:model"
BOARD, MODE = resolve("orin")
ON_CPU, ON_GPU = Clock(BOARD, MODE, 2, machine_of(BOARD, MODE, 2)), Clock(BOARD, MODE, 1, None)
SENSITIVE = "predictor.blocks.0.mlp.3.weight"


def planted() -> Model:
    """The tiny LeWM; one product has an input whose weights are far larger than the others: 8 bits lose those."""
    made = model()
    weight = dict(made.torch.named_parameters())[SENSITIVE]
    with torch.no_grad():
        weight[:, 3] *= 300
    return made


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of few contexts and points."""
    for name, value in (("CONTEXTS", 2), ("POINTS", 4), ("ROWS", (2, 4))):
        monkeypatch.setattr(f"edgewm.quantize.search.{name}", value)


def found_for(program: Program, name: str, rate_hz: float, seed: int = 0) -> dict:
    return chosen(program, name, None, ON_CPU, rate_hz, seed)


# ---------------------------------------------------------------------------------------------- values and costs


@pytest.mark.parametrize("precision", ("fp32", "bf16", "w8a8", "w8a8+hidden+attention+latents"))
def test_fast_values_are_those_of_the_oracle(exact: Program, precision: str) -> None:
    held_ = quantized(exact, recipe_of(exact, precision))
    graph, rng = held_.entries["score"], np.random.default_rng(0)
    inputs = {n: rng.uniform(-1, 1, leaf.shape).astype(np.float32) for n, leaf in graph.inputs().items()}
    fast = values_of(graph, inputs, held_.weights)[graph.outputs["cost"]]
    oracle = interp.run(graph, inputs, held_.weights)["cost"]
    full = interp.run(exact.entries["score"], inputs, exact.weights, real=True)["cost"]
    lost = np.abs(oracle - full).max()  # what the formats, or float32, lose: the order of a sum is less than that
    assert fast.dtype == np.float32 and np.abs(fast - oracle).max() <= max(lost, 2.0**-20 * np.abs(full).max())


def test_a_product_alone_costs_what_it_costs_in_a_whole_evaluation(exact: Program) -> None:
    (looked,) = gathered(exact, MODEL, None, 1, np.random.default_rng(0))
    recipe = {SENSITIVE: "w8a8"}
    own, nothing = alone(exact, [looked], [recipe, {}])
    whole = quantized(exact, recipe)
    end, inputs = whole.entries["score"].outputs["cost"], {**looked.given, "candidates": looked.candidates[-1]}
    np.testing.assert_array_equal(own[0][-1], values_of(whole.entries["score"], inputs, whole.weights)[end])
    np.testing.assert_array_equal(nothing[0], looked.costs)
    assert together(exact, [looked], {}, exact.planner)["error"] == 0 < together(
        exact, [looked], recipe, exact.planner)["error"]  # fmt: skip


def test_figures_of_costs_whose_order_is_known() -> None:
    full = np.array([[0.0, 1, 2, 3], [0, 1, 2, 3]])
    looked = Looked({}, (full,), full, full, plan_cost=0.0, blind_cost=2.0)
    same = fidelity([looked], [full], 2)
    assert (same["error"], same["spearman_min"], same["elite_overlap"], same["elite_regret"]) == (0, 1, 1, 0)
    turned = fidelity([looked], [np.stack([full[0], full[1, ::-1]])], 2)
    assert turned["elite_overlap"] == 0.5 and turned["spearman_min"] == pytest.approx(0)
    assert turned["elite_regret"] == (2.5 - 0.5) / 2 / 2  # of two iterations one lost 2, and there are 2 to gain
    assert turned["error"] == pytest.approx(np.sqrt(np.mean([9, 1, 1, 9]) / full[0].var() / 2))


# ---------------------------------------------------------------------------------------------- the front


def test_most_time_for_the_error_comes_first_and_what_saves_nothing_is_no_step() -> None:
    names = ["cheap", "dear", "slow"]
    saved = {("cheap", "bf16"): 1.0, ("cheap", "w8a8"): 2.0, ("dear", "bf16"): 1.0, ("dear", "w8a8"): 2.0,
             ("slow", "bf16"): -1.0, ("slow", "w8a8"): 0.0}  # fmt: skip
    error = {("cheap", "bf16"): 0.1, ("cheap", "w8a8"): 0.1, ("dear", "bf16"): 0.2, ("dear", "w8a8"): 3.0,
             ("slow", "bf16"): 0.0, ("slow", "w8a8"): 0.0}  # fmt: skip
    steps = steps_of(names, saved, {key: {"error": value} for key, value in error.items()})
    assert [(s.name, s.form) for s in steps] == [("cheap", "w8a8"), ("dear", "bf16"), ("dear", "w8a8")]
    assert [s.added for s in steps] == pytest.approx([0.01, 0.04, 8.96])
    recipe = {"cheap": "w8a8", "dear": "bf16"}
    told = [why(name, recipe, steps, saved) for name in names]
    assert told[0] is None and told[1] == "w8a8 saves 1 ms and brings 99 % of what all bring"
    assert told[2] == "no faster here in bf16 or w8a8"
    assert steps == sorted(steps, key=lambda s: s.added / s.saved_ms) and isinstance(steps[0], Step)


def test_a_front_is_monotone_and_the_most_faithful_that_holds_is_chosen() -> None:
    rng = np.random.default_rng(0)
    points = [{"plan_ms": {"point": ms, "high": 1.2 * ms}, "error": error} for ms, error in rng.random((50, 2))]
    front = pareto(points)
    ms, error = ([p["plan_ms"]["point"] for p in front], [p["error"] for p in front])
    assert ms == sorted(ms) and error == sorted(error, reverse=True) and len(set(error)) == len(front) > 2
    for point in points:
        assert any(a <= point["plan_ms"]["point"] and b <= point["error"] for a, b in zip(ms, error, strict=True))
    assert held(front, 1.2 * ms[1]) == 1 and held(front, ms[0]) is None and held(front, 9) == len(front) - 1


# ---------------------------------------------------------------------------------------------- the whole search


@pytest.mark.usefixtures("few")
def test_the_product_that_planning_needs_stays_high() -> None:
    program = run(capture("test_search:planted", {}, None, None)[0], EXACT)
    idle = found_for(program, "test_search:planted", 1.0)
    assert idle["recipe"] == {} and idle["front"][idle["chosen"]]["name"] == "fp32"  # there is time for all of it
    first, *_, last = (point["plan_ms"]["high"] for point in idle["front"])
    rate = program.planner.commit_steps * 1e3 / ((first + last) / 2)
    found = found_for(program, "test_search:planted", rate)
    assert found["recipe"] and found["recipe"].get(SENSITIVE) is None
    assert [n["products"] for n in found["nodes"]] == [n["products"] for n in idle["nodes"]]  # as the seed has it
    assert found["front"][-1] == idle["front"][-1] and found["front"][0] == idle["front"][0]
    (node,) = (node for node in found["nodes"] if node["name"] == SENSITIVE)
    others = [each["products"]["w8a8"]["error"] for each in found["nodes"] if each is not node]
    assert node["why"] and node["products"]["w8a8"]["error"] > 3 * max(others)
    point = found["front"][found["chosen"]]
    assert point["plan_ms"]["high"] <= found["budget_ms"] and point["recipe"].items() <= found["recipe"].items()
    times = [each["plan_ms"]["point"] for each in found["front"]]
    assert times == sorted(times) and found["front"][-1]["error"] == 0


@pytest.mark.usefixtures("few")
def test_a_rate_that_nothing_holds_is_refused_with_the_best_one(exact: Program) -> None:
    with pytest.raises(EdgewmError) as caught:
        found_for(exact, MODEL, 1e6)
    assert "no precision holds 1e+06 Hz" in caught.value.what and "for jetson_agx_orin_64gb" in caught.value.where
    best = 0.99 * float(caught.value.fix.split()[2])  # it is told to three digits
    found = found_for(exact, MODEL, best)
    high = [point["plan_ms"]["high"] for point in found["front"]]
    assert high[found["chosen"]] <= found["budget_ms"] < 1.02 * high[0]


def test_without_anything_to_plan_from_it_is_refused(exact: Program) -> None:
    with pytest.raises(EdgewmError) as caught:
        found_for(exact, "tiny:lewm", 1.0)
    assert "precisions are chosen on the planner's own candidates" in caught.value.what


@pytest.mark.usefixtures("few")
def test_a_build_says_what_it_chose_and_from_what(tmp_path: Path) -> None:
    from rich.console import Console

    found = build(MODEL, target="orin", precision="auto", rate_hz=1000.0, dry_run=True, out=tmp_path / "out")
    assert found["auto"]["rate_hz"] == 1000.0 and found["precision"] == "auto" and not (tmp_path / "out").exists()
    assert found["place"] == "cpu" and "on the CPU: in w8a8 a plan is estimated at" in found["why"]
    console = Console(width=200, file=io.StringIO())
    console.print(build_table(found))
    text = console.file.getvalue()
    assert "> " in text and "elites" in text and f"{found['auto']['budget_ms']:g} ms" in text
    for node in found["auto"]["nodes"]:
        assert node["why"] is None or (node["name"] in text and node["why"] in text)


def test_prices_are_those_of_the_place(exact: Program) -> None:
    """Halves are a GPU's format alone; and a product costs a GPU other than it costs a CPU."""
    assert "fp16" in ON_GPU.forms and "fp16" not in ON_CPU.forms and ON_GPU.forms[-1] == ON_CPU.forms[-1]
    for clock in (ON_CPU, ON_GPU):
        assert list(own_prices(exact, [SENSITIVE], clock)) == [(SENSITIVE, form) for form in clock.forms]
    assert own_prices(exact, [SENSITIVE], ON_CPU) != own_prices(exact, [SENSITIVE], ON_GPU)


@pytest.mark.usefixtures("few")
def test_formats_for_a_gpu_are_chosen_by_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewm.build.check_gpu_tools", lambda *_: None)
    options = {"target": "orin", "precision": "auto", "rate_hz": 1.0, "dry_run": True, "out": tmp_path / "out"}
    found = build(MODEL, place="gpu", **options)
    assert found["place"] == "gpu" and found["why"] == "formats are chosen by times on the GPU: asked for: --place gpu"
    forms = {form for node in found["auto"]["nodes"] for form in node["products"]}
    assert forms == set(ON_GPU.forms)
    points = {point["name"]: point for point in (*found["auto"]["front"], *found["auto"]["beaten"])}
    values = points["w8a8+hidden+attention+latents"]["recipe"]
    assert values.items() >= {f"+{name}": "bf16" for name in VALUES}.items() and len(values) > len(VALUES)
    assert found["estimate_ms"]["point"] == pytest.approx(
        found["auto"]["front"][found["auto"]["chosen"]]["plan_ms"]["point"], rel=1e-3)  # fmt: skip


def test_a_machine_that_nobody_measured_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewm.estimate.verb.machine_of", lambda *_: None)
    with pytest.raises(EdgewmError) as caught:
        build(MODEL, precision="auto", dry_run=True, out=tmp_path / "out")
    assert "nothing is known of how fast host is" in caught.value.what and "targets probe" in caught.value.fix

"""Weights of few bits: rounding that the rest of a column makes up for, and what it is chosen by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import programs
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewm import expr as e
from edgewm import interp
from edgewm.build import build
from edgewm.errors import EdgewmError
from edgewm.models import Model
from edgewm.options import CALIBRATED
from edgewm.passes import EXACT, LOWERING, run
from edgewm.passes.quantize_products import HOLD, Moments, levels_of, quantize_groups, quantize_weight
from edgewm.program import Graph, Program
from edgewm.quantize import recipe_of
from edgewm.quantize.calibrate import MOST_ROWS, calibrated, second_moments
from edgewm.quantize.compensate import BLOCK, DAMPING, compensated, rounded

BF16_UNIT = 2.0**-8  # of the largest rounding to bf16, twice over


def drawn(depth: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, their steps, and second moments of inputs that go together."""
    rng = np.random.default_rng([depth, width, seed])
    w = rng.standard_normal((depth, width)).astype(np.float32)
    x = rng.standard_normal((4 * depth, max(1, depth // 2))) @ rng.standard_normal((max(1, depth // 2), depth))
    x += 0.1 * rng.standard_normal(x.shape)
    return w, np.abs(w).max(0, keepdims=True) / np.float32(7), x.T @ x


def one_by_one(w: np.ndarray, step: np.ndarray, low: int, high: int, moments: np.ndarray) -> np.ndarray:
    """What GPTQ stands for: after each rounding, those left are solved anew so that x @ w changes least."""
    damped = moments + np.eye(len(w)) * DAMPING * np.diag(moments).mean()
    order = np.argsort(-np.diag(damped), kind="stable")
    real, left, steps = w.astype(np.float64), w.astype(np.float64), np.broadcast_to(step, w.shape)
    levels = np.zeros(w.shape, np.int8)
    for i, k in enumerate(order):
        levels[k] = np.clip(np.rint(left[k] / steps[k]), low, high)
        past, rest = order[: i + 1], order[i + 1 :]
        lost = real[past] - levels[past] * steps[past].astype(np.float64)
        if len(rest):
            left[rest] = real[rest] + np.linalg.solve(damped[np.ix_(rest, rest)], damped[np.ix_(rest, past)] @ lost)
    return levels


@pytest.mark.parametrize(("depth", "width"), ((1, 1), (2, 3), (7, 5), (33, 4), (BLOCK + 5, 3)))
def test_what_is_left_makes_up_for_what_was_rounded(depth: int, width: int) -> None:
    w, step, moments = drawn(depth, width)
    found = compensated(w, step, -7, 7, moments)
    assert found.dtype == np.int8 and np.abs(found).max() <= 7
    np.testing.assert_array_equal(found, one_by_one(w, step, -7, 7, moments))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000))
def test_inputs_that_do_not_go_together_are_rounded_alone(depth: int, width: int, seed: int) -> None:
    w, step, _ = drawn(depth, width, seed)
    alone = np.diag(np.random.default_rng(seed).random(depth) + 0.1)
    np.testing.assert_array_equal(compensated(w, step, -8, 7, alone), rounded(w.astype(np.float64), step, -8, 7))
    nothing = np.zeros((depth, depth))  # no input was ever other than 0
    np.testing.assert_array_equal(compensated(w, step, -8, 7, nothing), rounded(w.astype(np.float64), step, -8, 7))


def test_outputs_lose_less_than_by_rounding() -> None:
    w, step, moments = drawn(96, 24)

    def lost(levels: np.ndarray) -> float:
        error = levels * step - w
        return float(np.trace(error.T @ moments @ error))

    assert lost(compensated(w, step, -7, 7, moments)) < lost(rounded(w, step, -7, 7)) / 2


@pytest.mark.parametrize(("bits", "size"), ((8, 12), (4, 12), (4, 4), (4, 1)))
@pytest.mark.parametrize("lead", ((), (2,)))
def test_levels_are_the_nearest_of_their_group(bits: int, size: int, lead: tuple[int, ...]) -> None:
    w = np.random.default_rng(size).standard_normal((*lead, 12, 5)).astype(np.float32)
    w[..., 0] = 0
    held, step = levels_of(w, None, bits, size)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    assert held.shape == w.shape and step.shape == (*lead, 1 if size == 12 else 12, 5)
    assert held.min() >= low and held.max() <= high and not held[..., 0].any()
    error, unit = np.abs(held * step - w), np.abs(np.broadcast_to(step, w.shape))
    clipped = held == high  # what lies across from the largest weight of a group
    assert np.all(error <= unit * np.where(clipped & (bits == 4), 1, 0.5) * (1 + 1e-6) + 1e-30)
    of_group = np.abs(held.reshape(*lead, 12 // size, size, 5)).max(-2)[..., 1:]
    assert np.all(of_group == (127 if bits == 8 else 8))  # the largest weight of each group is kept


def test_weights_of_groups_are_levels_in_bf16() -> None:
    w = np.random.default_rng(0).standard_normal((96, 3)).astype(np.float32)
    (held,) = quantize_groups(w, size=64)
    levels, step = levels_of(w, None, 4, 32)  # of 96 inputs 64 are no whole share
    found, exact = held.astype(np.float32), levels * step
    assert str(held.dtype) == "bfloat16" and np.all(np.abs(found - exact) <= BF16_UNIT * np.abs(exact))


def test_sums_are_those_of_the_levels() -> None:
    w, _, moments = drawn(40, 6)
    for given_moments in (None, moments):
        held, scale, total = quantize_weight(w, given_moments, bits=4)
        np.testing.assert_array_equal(total, held.astype(np.float32).sum(0, keepdims=True) * scale)


@pytest.mark.parametrize("kind", ("w4a8", "w4a16_g32"))
def test_what_the_mean_of_all_inputs_loses_is_added(kind: str) -> None:
    """What is left of it is what f32 and bf16 round: nothing beside what four bits lose."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((64, 6)).astype(np.float32), 3 + rng.standard_normal((500, 64))
    mean = x.mean(0)
    *held, bias = HOLD[kind].hold(w, Moments(mean, (x - mean).T @ (x - mean), len(x)))
    levels = held[0].astype(np.float64) * (held[1] if len(held) > 1 else 1)
    lost = np.abs(mean @ levels - mean @ w).max()
    assert np.abs(mean @ levels + bias - mean @ w).max() < 1e-5 * lost
    assert not HOLD[kind].hold(w, None)[-1].any()


# ---------------------------------------------------------------------------------------------- calibration


def test_second_moments_are_those_of_what_products_read() -> None:
    rng = np.random.default_rng(0)
    rows, weights = 3 * MOST_ROWS - 1, {"w": rng.standard_normal((5, 2)), "batch": rng.standard_normal((2, 5, 2))}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    x = e.input("x", (rows, 5))
    doubled = e.matmul(e.mul(x, 2.0), e.weight("w", (5, 2)))
    apart = e.matmul(e.reshape(x, (1, rows, 5)), e.weight("batch", (2, 5, 2)))
    graph = Graph({"y": doubled, "z": apart})
    values = [rng.standard_normal((rows, 5)).astype(np.float32) for _ in range(2)]
    found = second_moments(graph, weights, ["w", "batch"], [{"x": v} for v in values])
    seen = [2.0 * v[::3].astype(np.float64) for v in values]
    assert found.keys() == {"w"}
    both = np.concatenate(seen)
    np.testing.assert_allclose(found["w"].mean, both.mean(0), rtol=1e-12)
    about = both - both.mean(0)
    np.testing.assert_allclose(found["w"].about, about.T @ about, rtol=1e-12)


def test_the_oracle_is_watched_and_lets_go_of_nothing_too_early() -> None:
    program = run(programs.transformer(4, 2, 16, 2, 4, 1), ())
    graph = program.entries["score"]
    rng = np.random.default_rng(0)
    inputs = {n: rng.standard_normal(leaf.shape).astype(np.float32) for n, leaf in graph.inputs().items()}
    seen = []
    found = interp.run(graph, inputs, program.weights, watch=lambda node, sources: seen.append((node, len(sources))))
    assert seen == [(node, len(node.sources)) for node in graph.order()]
    assert found.keys() == graph.outputs.keys()


def model() -> Model:
    """The tiny LeWM, with something to plan from: `contexts` below."""
    return replace(tiny.lewm(), planner=replace(tiny.PLANNER, samples=24))


def contexts(n: int, seed: int):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        pair = [
            {"pixels": rng.integers(0, 256, (16, 16, 3), np.uint8), "speed": rng.random((1, 2), np.float32)}
            for _ in range(2)
        ]
        yield tuple(pair)


MODEL = "test_calibrate:model"


@pytest.fixture(scope="module")
def exact() -> Program:
    from edgewm.build import capture

    return run(capture(MODEL, {}, None, None)[0], EXACT)


@pytest.mark.parametrize("precision", ("w4a8", "w4a16_g32"))
def test_weights_of_four_bits_are_chosen_by_planning_and_alike_twice(exact: Program, precision: str) -> None:
    named = exact.with_(recipe=recipe_of(exact, precision))
    first, again = (calibrated(named, MODEL, seed=3) for _ in range(2))
    chosen = sorted(first.weights.keys() - exact.weights.keys())
    assert chosen and all(np.array_equal(first.weights[n], again.weights[n]) for n in chosen)
    plain = run(named, LOWERING[:1])
    assert any(not np.array_equal(first.weights[n], plain.weights[n]) for n in chosen)
    lowered = run(first, LOWERING[:1])
    assert all(lowered.weights[n] is first.weights[n] for n in chosen)  # what was chosen is what is compiled
    by_name = [{n for n in each.weights if not n.startswith("constant/")} for each in (lowered, plain)]
    assert by_name[0] == by_name[1]


def test_a_recipe_without_few_bits_needs_nothing(exact: Program) -> None:
    named = exact.with_(recipe=recipe_of(exact, "w8a8"))
    assert calibrated(named, "no such model") is named


def test_without_anything_to_plan_from_it_is_refused(exact: Program) -> None:
    named = exact.with_(recipe=recipe_of(exact, "w4a8"))
    with pytest.raises(EdgewmError) as caught:
        calibrated(named, "tiny:lewm")
    assert "nothing to plan from" in caught.value.what and "--calibration" in caught.value.fix
    with pytest.raises(EdgewmError, match="nothing to plan from"):
        build("tiny:lewm", precision="w4a8", dry_run=True)


def test_named_recipes_of_few_bits_hold_straits_in_bf16(exact: Program) -> None:
    eight, four = recipe_of(exact, "w8a8"), recipe_of(exact, "w4a16_g64")
    assert four == {name: "w4a16_g64" if form == "w8a8" else form for name, form in eight.items()}
    assert {form for form in HOLD if HOLD[form].by} == set(CALIBRATED)

"""Formats beside bf16 and int8 of each row: half, constant steps, weights of eight bits; what recipes make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import test_calibrate
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewm import expr as e
from edgewm import interp
from edgewm.binding import Runtime
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.golden import example_inputs
from edgewm.host import host
from edgewm.kernel import load, match
from edgewm.ops import NUMPY
from edgewm.passes import LOWERING, run
from edgewm.passes.quantize_products import HOLD, hold, quantize_constant, quantize_products, quantize_weight
from edgewm.program import Graph, Program
from edgewm.quantize import recipe_of
from edgewm.quantize.calibrate import calibrated, ranges_of, smooth_of
from edgewm.quantize.smooth import Smooth, smoothed
from edgewm.rounding import nodes_of

EXACT_IN_F32 = 2.0**-24  # of a sum, each rounding at most


def one_product(kind: str, x: np.ndarray, w: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """x @ w, held so."""
    graph = Graph({"y": e.matmul(e.input("x", x.shape), e.weight("w", w.shape))})
    parts = zip(HOLD[kind].parts, HOLD[kind].hold(w, seen), strict=True) if seen is not None else ()
    held = {"w": w, **{f"w/{part}": value for part, value in parts}}
    program = run(Program({"f": graph}, held, recipe={"w": kind}), (quantize_products,))
    assert dict(quantize_products(program).entries) == dict(program.entries)
    return interp.run(program.entries["f"], {"x": x}, program.weights)["y"]


def drawn(k: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([k, n, seed])
    return (rng.standard_normal(shape).astype(np.float32) for shape in ((5, k), (k, n)))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 99), st.floats(0.1, 10), st.floats(-5, 5))
def test_constant_steps_err_by_half_a_step_at_most(k: int, n: int, seed: int, spread: float, middle: float) -> None:
    """Each activation by half a step of the range, each weight by half of its column's, and what f32 rounds."""
    x, w = drawn(k, n, seed)
    x = x * np.float32(spread) + np.float32(middle)
    seen = np.array([x.min(), x.max()], np.float64)
    half = max((max(seen[1], 0) - min(seen[0], 0)) / 254 / 2, 2.0**-100)
    of_w = np.abs(w).max(0) / 127 / 2
    found, exact = one_product("w8a8_static", x, w, seen), x.astype(np.float64) @ w
    magnitude = np.abs(x).astype(np.float64) @ np.abs(w) + np.abs(w).sum(0) * 127 * 2 * half
    bound = half * (np.abs(w) + of_w).sum(0) + np.abs(x).sum(1)[:, None] * of_w + 8 * (k + 4) * EXACT_IN_F32 * magnitude
    assert np.all(np.abs(found - exact) <= bound)


def test_what_lies_beyond_the_range_counts_as_its_end() -> None:
    w, seen = np.eye(3, dtype=np.float32), np.array([-1.0, 3.0])
    x = np.float32([[-9, 0, 3], [1e30, -np.inf, np.inf], [2.9999, -1, 7]])
    found = one_product("w8a8_static", x, w, seen)
    np.testing.assert_allclose(found, np.clip(x, -1, 3), atol=4 / 254 / 2 + 1e-6)


def test_what_a_row_is_rounded_by_stands_in_no_kernel_of_its_own() -> None:
    """Steps of the activation join what precedes the product, those of the result what follows it."""
    x, w = drawn(66, 6, 0)
    graph = Graph({"y": e.gelu(e.matmul(e.tanh(e.input("x", x.shape)), e.weight("w", w.shape)))})
    program = run(Program({"f": graph}, {"w": w}, recipe={"w": "w8a8_static"}), LOWERING)
    kernels = [node for node in program.entries["f"].order() if node.op == "kernel"]
    assert [node["family"] for node in kernels] == ["product_rounded"]


@pytest.mark.parametrize("family", ["product_rounded", "product_fp16"])
def test_the_reference_matches_itself_and_nothing_like_it(family: str) -> None:
    module = load(family)
    x, w = module.placeholders(2)
    y = module.reference(x, w)
    assert match(family, y) == {"x": x, "w": w}
    dtype, wide = (w.dtype, e.maximum(x, -1.0))
    other = e.matmul(e.cast(wide if dtype == "f16" else e.rint(wide), dtype), w)
    assert match(family, e.cast(other, "f32")) is None


def test_products_of_one_value_in_steps_are_merged() -> None:
    """They have one range, whatever else one of them reads."""
    x, w = drawn(64, 4, 0)
    other, weights = 3 * x, {"a": w, "b": w + 1, "c": w - 1}
    a, b, c = (e.weight(name, w.shape) for name in weights)
    leaf, beside = e.input("x", x.shape), e.input("other", x.shape)
    graph = Graph({"a": e.matmul(leaf, a), "b": e.matmul(leaf, b), "b2": e.matmul(beside, b), "c": e.matmul(beside, c)})
    ranges = ranges_of(graph, weights, ["a", "b", "absent"], [{"x": x, "other": other}] * 2)
    assert ranges.keys() == {"a", "b"}
    for both in ranges.values():
        np.testing.assert_array_equal(both, [min(other.min(), 0), max(other.max(), 0)])
    assert ranges_of(graph, weights, ["a"], [{"x": x, "other": other}])["a"].tolist() == [x.min(), x.max()]
    named = dict.fromkeys("ab", "w8a8_static")
    held = {f"{n}/{p}": v for n in named for p, v in
            zip(HOLD["w8a8_static"].parts, quantize_constant(weights[n], ranges[n]), strict=True)}  # fmt: skip
    program = run(Program({"f": graph}, weights | held, recipe=named), LOWERING)
    kernels = [n for n in program.entries["f"].order() if n.op == "kernel" and n["family"] == "product_rounded"]
    assert sorted(n.shape[-1] for n in kernels) == [4, 8]


# ---------------------------------------------------------------------------------------------- smooth channels


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 99), st.floats(-5, 5))
def test_smooth_channels_err_by_half_a_step_at_most(k: int, n: int, seed: int, middle: float) -> None:
    """Each activation by half a step of its row's range, each weight by half of its column's, and what f32 rounds."""
    x, w = drawn(k, n, seed)
    x = x * np.linspace(0.1, 3, k, dtype=np.float32) + np.float32(middle)
    inverse = np.exp2(np.random.default_rng(seed).integers(-2, 3, (1, k))).astype(np.float32)
    offset = (-x.mean(0) * inverse).astype(np.float32)
    found, exact = one_product("w8a8_smooth", x, w, Smooth(inverse, offset, None)), x.astype(np.float64) @ w
    read, held = x * inverse.astype(np.float64) + offset, np.abs(w / inverse.T).astype(np.float64)
    half = (np.maximum(read.max(1), 0) - np.minimum(read.min(1), 0))[:, None] / 254 / 2
    of_w = held.max(0) / 127 / 2
    magnitude = np.abs(read) @ held + 127 * 2 * half * held.sum(0) + np.abs(offset / inverse) @ np.abs(w)
    bound = half * (held + of_w).sum(0) + np.abs(read).sum(1)[:, None] * of_w + 8 * (k + 4) * EXACT_IN_F32 * magnitude
    assert np.all(np.abs(found - exact) <= bound)


def test_a_channel_far_from_the_others_takes_no_steps_from_them() -> None:
    rng = np.random.default_rng(0)
    rows, w = rng.standard_normal((2000, 48)).astype(np.float32), rng.standard_normal((48, 8)).astype(np.float32)
    rows[:, 3] += 40
    rows[:, 5] *= 30
    rows[:, 7] = 2  # and one that stands still

    def lost(*seen: Smooth) -> float:
        return float((one_product("w8a8_smooth", rows, w, *seen) - rows @ w).var(0).mean())

    found = smoothed(rows, [w[:, :3], w[:, 3:]])
    assert np.isfinite(found.inverse).all() and found.inverse[0, 5] < found.inverse[0, 4]
    centred = Smooth(np.ones_like(found.inverse), -rows.mean(0, keepdims=True), None)
    assert lost(found) < lost(centred) / 2 < lost() / 4


def test_products_of_smooth_channels_are_merged_and_add_one_bias() -> None:
    """They read a value as one of them does, whatever else that reads; what follows stays one addition."""
    x, w = drawn(64, 4, 0)
    weights = {"a": w, "b": w + 1, "c": w - 1, "unread": w, "bias": np.arange(8, dtype=np.float32)}
    a, b, c = (e.weight(name, w.shape) for name in "abc")
    leaf, beside = (e.gelu(e.input(name, x.shape)) for name in ("x", "other"))
    halves = [e.narrow(e.weight("bias", (8,)), 0, i, i + 4) for i in (0, 4)]
    graph = Graph({"a": e.add(e.matmul(leaf, a), halves[0]), "b": e.add(halves[1], e.matmul(leaf, b)),
                   "b2": e.matmul(beside, b), "c": e.matmul(beside, c)})  # fmt: skip
    inputs = {"x": x, "other": 3 * x - 1}
    seen = smooth_of(graph, weights, ["a", "b", "unread"], [inputs] * 2)
    assert seen.keys() == {"a", "b"} and seen["a"] is seen["b"]
    named = dict.fromkeys("ab", "w8a8_smooth")
    held = {f"{n}/{p}": v for n in named for p, v in
            zip(HOLD["w8a8_smooth"].parts, HOLD["w8a8_smooth"].hold(weights[n], seen[n]), strict=True)}  # fmt: skip
    exact = Program({"f": graph}, weights | held, recipe=named)
    program = run(exact, LOWERING)
    kernels = [n for n in program.entries["f"].order() if n.op == "kernel" and n["family"] == "product_i8"]
    assert sorted(n.shape[-1] for n in kernels) == [4, 8]
    quantized = quantize_products(exact)
    added = [n for n in quantized.entries["f"].order() if n.op == "add" and n.sources[1].op in ("weight", "slice")]
    assert len(added) == 3  # of a, of b, and of b2, which nothing follows
    for name, value in interp.run(program.entries["f"], inputs, program.weights).items():
        full = interp.run(graph, inputs, weights, real=True)[name]
        assert np.abs(value - full).max() < 0.02 * np.abs(full).max()


# ---------------------------------------------------------------------------------------------- half


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 99))
def test_half_errs_by_its_rounding_at_most(k: int, n: int, seed: int) -> None:
    x, w = drawn(k, n, seed)
    factors = (1 + 2.0**-11) ** 2 * (1 + k * EXACT_IN_F32) - 1
    magnitude = np.abs(x).astype(np.float64) @ np.abs(w)
    small = 2.0**-25 * (np.abs(x).sum(1)[:, None] + np.abs(w).sum(0) + k)  # below 2^-14 halves are 2^-24 apart
    assert np.all(np.abs(one_product("fp16", x, w) - x.astype(np.float64) @ w) <= factors * magnitude + small)


def test_a_weight_beyond_the_largest_half_is_refused_by_name() -> None:
    w = np.ones((64, 2), np.float32)
    assert hold("w", "fp16", w * np.float32(65504))[0].dtype == NUMPY["f16"]
    w[3, 1] = -65505
    graph = Graph({"y": e.matmul(e.input("x", (3, 64)), e.weight("mlp.w", w.shape))})
    with pytest.raises(EdgewmError) as caught:
        run(Program({"f": graph}, {"mlp.w": w}, recipe={"mlp.w": "fp16"}), LOWERING)
    assert "mlp.w cannot be held in fp16" in caught.value.what and "65504" in caught.value.what
    assert '"mlp.w": "bf16"' in caught.value.fix


# ---------------------------------------------------------------------------------------------- recipes and bundles


def test_weights_of_eight_bits_are_levels_in_bf16() -> None:
    _, w = drawn(96, 3, 0)
    (found,), (levels, step, _) = HOLD["w8a16"].hold(w, None), quantize_weight(w)
    exact = levels * step
    assert found.dtype == NUMPY["bf16"]
    assert np.all(np.abs(found.astype(np.float32) - exact) <= 2.0**-8 * np.abs(exact))


def test_recipes_by_name() -> None:
    eight, bf16 = recipe_of(tiny.exact(), "w8a8"), recipe_of(tiny.exact(), "bf16")
    assert recipe_of(tiny.exact(), "fp16") == dict.fromkeys(bf16, "fp16")
    assert recipe_of(tiny.exact(), "fp16_all").keys() > bf16.keys()
    for form in ("w8a16", "fp8", "w8a8_static", "w8a8_smooth"):
        assert recipe_of(tiny.exact(), form) == {n: form if kind == "w8a8" else kind for n, kind in eight.items()}


@pytest.mark.parametrize("form", ("w8a8_static", "w8a8_smooth"))
def test_steps_are_chosen_by_planning_and_alike_twice(form: str) -> None:
    exact = tiny.exact()
    named = exact.with_(recipe={**recipe_of(exact, form), UNSEEN: form})
    first, again = (calibrated(named, test_calibrate.MODEL, seed=3) for _ in range(2))
    chosen = sorted(first.weights.keys() - exact.weights.keys())
    assert chosen and all(np.array_equal(first.weights[n], again.weights[n]) for n in chosen)
    assert first.recipe == {**named.recipe, UNSEEN: "w8a8"}  # no candidate runs through it
    plain = run(named, LOWERING[:1])
    steps = [n for n in chosen if n.endswith("/inverse")]
    assert steps and all(np.any(first.weights[n] != plain.weights[n]) for n in steps)


UNSEEN = next(iter(recipe_of(tiny.exact(), "w8a8_all").keys() - recipe_of(tiny.exact(), "w8a8").keys()))


def test_a_compiled_plan_is_the_oracles(tmp_path: Path) -> None:
    exact = tiny.exact()
    names = sorted(recipe_of(exact, "fp16"))
    forms = ("w8a8_static", "fp16", "fp8", "w8a8_smooth")  # w8a16 and w4 are of the kernels of bf16 and w8a8
    assert len(names) >= len(forms)
    mixed = {name: forms[i % len(forms)] for i, name in enumerate(names)}
    lowered = run(calibrated(exact.with_(recipe=mixed), test_calibrate.MODEL), LOWERING)
    nodes = list(nodes_of(lowered.entries["plan"]))
    families = {node["family"] for node in nodes if node.op == "kernel"}
    assert {"product_rounded", "product_fp16", "product_bf16", "product_i8"} <= families
    assert any(node.op == "e4m3" for node in nodes)
    program = lowered.with_(entries={"plan": lowered.entries["plan"]})
    sections, paths = compile_bundle(program, schedule_program(program, host().isa), {}, host(), tmp_path)
    (tmp_path / "model.ewm").write_bytes(pack(sections, host(), paths))
    inputs = example_inputs(program, "plan", seed=0)
    with Runtime(tmp_path) as runtime:
        found = runtime.run_entry("plan", **inputs)
    wanted = interp.run(program.entries["plan"], inputs, program.weights)
    assert {n: v.tobytes() for n, v in found.items()} == {n: np.asarray(wanted[n]).tobytes() for n in found}


def test_constant_steps_need_something_to_plan_from() -> None:
    named = tiny.exact().with_(recipe=recipe_of(tiny.exact(), "w8a8_static"))
    with pytest.raises(EdgewmError) as caught:
        calibrated(named, "tiny:lewm")
    assert "nothing to plan from" in caught.value.what and "constant steps" in caught.value.what

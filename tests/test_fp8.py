"""fp8: E4M3's rounding against other implementations of it, on every instruction set; products and plans held in it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import test_schedule
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import e4m3_numbers

from edgewm import expr as e
from edgewm import interp
from edgewm.arithmetic import E4M3_LARGEST
from edgewm.binding import Runtime
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.golden import allowed_difference
from edgewm.ops import NUMPY
from edgewm.passes import LOWERING, run
from edgewm.passes.quantize_products import HOLD, SMALLEST_STEP, quantize_products, value_of
from edgewm.program import Graph, Node, Program
from edgewm.rounding import BF16_STEP, E4M3_STEP, UNIT_ROUNDOFF, rounding_steps
from edgewm.target import resolve

F8 = ml_dtypes.float8_e4m3fn
HELD = np.arange(256, dtype=np.uint8).view(F8).astype(np.float32)
EXACT_IN_F32 = 2.0**-24  # of a sum, each rounding at most


def rounded(x: np.ndarray, real: bool = False) -> np.ndarray:
    return interp.run(Graph({"y": e.e4m3(e.input("x", x.shape))}), {"x": x}, {}, real)["y"]


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """To the bit, but for those of NaN."""
    nan = np.isnan(wanted)
    return np.array_equal(np.isnan(found), nan) and found[~nan].tobytes() == wanted[~nan].tobytes()


def cast(x: np.ndarray) -> np.ndarray:
    """ml_dtypes' rounding, which makes NaN of what does not fit."""
    with np.errstate(invalid="ignore"):
        return np.clip(x, -E4M3_LARGEST, E4M3_LARGEST).astype(F8).astype(np.float32)


# ---------------------------------------------------------------------------------------------- the op


def test_all_256_stay_as_they_are() -> None:
    assert same(rounded(HELD), HELD) and np.isnan(HELD).sum() == 2 and np.nanmax(HELD) == E4M3_LARGEST


def test_middles_go_to_the_even_neighbour_and_all_else_to_the_nearer_one() -> None:
    codes = np.arange(0x7E, dtype=np.uint8)  # from 0 to the last but one
    low, high = (c.view(F8).astype(np.float32) for c in (codes, codes + np.uint8(1)))
    middle = (low + high) / 2
    for sign in (1, -1):
        assert same(rounded(sign * middle), sign * np.where(codes % 2 == 0, low, high))
        assert same(rounded(sign * np.nextafter(middle, np.float32(-1))), sign * low)
        assert same(rounded(sign * np.nextafter(middle, np.float32(500))), sign * high)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-14, 12))
def test_drawn_numbers_are_rounded_as_elsewhere(seed: int, exponent: int) -> None:
    """Any bits, and numbers of the format's own magnitude: as ml_dtypes and torch do, but for what does not fit."""
    rng = np.random.default_rng(seed)
    any_ = rng.integers(0, 2**32, 3000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([any_, np.float32(2.0**exponent) * rng.standard_normal(3000, np.float32), e4m3_numbers()])
    found = rounded(x)
    assert same(found, cast(x))
    finite = x[np.isfinite(x)]  # a NaN's way to float64 would warn
    assert np.array_equal(rounded(finite.astype(np.float64), real=True), rounded(finite))
    torch = pytest.importorskip("torch")
    of_torch = torch.from_numpy(x).clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn).to(torch.float32)
    assert same(found, of_torch.numpy())


def wrong(limit: float = E4M3_LARGEST, smallest: float = 2.0**-6, room: float = 2.0**20, even: float = 0.0) -> Node:
    """The op's formula, with one constant changed."""
    x = e.input("x", (len(e4m3_numbers()),))
    held = e.minimum(limit, e.absolute(x))
    power = e.bitcast(e.bit_and(e.bitcast(held, "u32"), 0x7F800000), "f32")
    space = e.mul(e.maximum(power, smallest), room)
    y = e.sub(e.add(e.add(held, e.mul(held, even)), space), space)
    return e.bitcast(e.bit_or(e.bitcast(y, "u32"), e.bit_and(e.bitcast(x, "u32"), 0x80000000)), "f32")


def test_a_wrong_rounding_is_seen() -> None:
    x = e4m3_numbers()
    faults = ({}, {"limit": 480.0}, {"smallest": 2.0**-7}, {"smallest": 2.0**-5}, {"room": 2.0**19}, {"room": 2.0**21},
              {"even": 2.0**-23})  # fmt: skip
    found = [same(interp.run(Graph({"y": wrong(**f)}), {"x": x}, {})["y"], cast(x)) for f in faults]
    assert found == [True] + [False] * (len(faults) - 1)


# ---------------------------------------------------------------------------------------------- weights and products


def weights_of(k: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([k, n, seed])
    return rng.standard_normal((5, k), np.float32), rng.standard_normal((k, n), np.float32)


def held_program(graph: Graph, w: np.ndarray) -> Program:
    return Program({"f": graph}, {"w": w}, recipe={"w": "fp8"})


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    graph = Graph({"y": e.matmul(e.input("x", x.shape), e.weight("w", w.shape))})
    program = quantize_products(held_program(graph, w))
    return interp.run(program.entries["f"], {"x": x}, program.weights)["y"]


def test_a_weight_is_numbers_of_e4m3_and_a_scale_a_column() -> None:
    _, w = weights_of(96, 5, 0)
    w[:, 2] = 0
    held, scale = HOLD["fp8"].hold(w, None)
    assert held.dtype == NUMPY["bf16"] and scale.shape == (1, 5)
    numbers = held.astype(np.float32)
    assert set(np.abs(numbers).ravel()) <= set(np.abs(HELD))
    assert np.abs(numbers).max(0).tolist() == [E4M3_LARGEST] * 2 + [0] + [E4M3_LARGEST] * 2
    assert np.all(scale >= SMALLEST_STEP)
    off = np.abs(value_of((held, scale), "fp8") - w)
    assert np.all(off <= np.maximum(2.0**-4 * np.abs(w), 2.0**-10 * scale) * (1 + 4 * EXACT_IN_F32))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 99), st.floats(-5, 5))
def test_a_product_errs_by_its_rounding_at_most(k: int, n: int, seed: int, middle: float) -> None:
    """Each factor by a sixteenth, or by half of a row's or a column's last step; and what f32 rounds."""
    x, w = weights_of(k, n, seed)
    x += np.float32(middle)
    of_x, of_w = (2.0**-10 / E4M3_LARGEST * np.abs(a).max(axis, keepdims=True) for a, axis in ((x, 1), (w, 0)))
    x_off, w_off = np.maximum(2.0**-4 * np.abs(x), of_x), np.maximum(2.0**-4 * np.abs(w), of_w)
    magnitude = (np.abs(x) + x_off).astype(np.float64) @ (np.abs(w) + w_off)
    bound = magnitude - np.abs(x).astype(np.float64) @ np.abs(w) + 4 * (k + 8) * EXACT_IN_F32 * magnitude
    assert np.all(np.abs(product(x, w) - x.astype(np.float64) @ w) <= bound)


def test_rows_know_nothing_of_each_other_and_what_is_not_finite_stays_so() -> None:
    x, w = weights_of(64, 3, 1)
    alone = product(x, w)
    x[1, 5], x[2, 7], x[3], x[4] = np.nan, np.inf, 0, x[4] * np.float32(2.0**100)
    found = product(x, w)
    assert found[0].tobytes() == alone[0].tobytes() and not found[3].any()
    assert not np.isfinite(found[1:3]).any()
    np.testing.assert_array_equal(found[4], alone[4] * np.float32(2.0**100))  # a power of two scales all of it


# ---------------------------------------------------------------------------------------------- compiled


def answered(program: Program, isa: str, folder: Path, given: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Entries whose compiled answers are not the oracle's, to the bit but for those of NaN."""
    board, _ = resolve("host", isa=isa)
    sections, paths = compile_bundle(program, schedule_program(program, isa), {}, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    differ = []
    with Runtime(folder) as runtime:
        for name, inputs in given.items():
            wanted = interp.run(program.entries[name], inputs, program.weights)
            found = runtime.run_entry(name, **inputs)
            differ += [name for port in found if not same(found[port], np.asarray(wanted[port]))]
    return differ


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "scalar"])
def test_every_instruction_set_rounds_and_multiplies_as_the_oracle(isa: str, tmp_path: Path) -> None:
    if isa not in test_schedule.host_isas():
        pytest.skip(f"this CPU has no {isa}")
    numbers = e4m3_numbers()
    x = e.input("x", (2, 17, 33))
    y = e.add(e.matmul(e.tanh(x), e.weight("w", (33, 7))), 1.0)
    entries = {"rounded": Graph({"y": e.e4m3(e.input("x", numbers.shape))}), "product": Graph({"y": y})}
    w = np.random.default_rng(0).standard_normal((33, 7), np.float32)
    program = run(Program(entries, {"w": w}, recipe={"w": "fp8"}), LOWERING)
    x = np.random.default_rng(1).standard_normal((2, 17, 33), np.float32)
    given = {"rounded": {"x": numbers}, "product": {"x": x}}
    assert answered(program, isa, tmp_path, given) == []


def test_a_gpu_may_differ_by_a_step_of_e4m3_where_it_adds_in_its_own_order() -> None:
    graph = Graph({"y": e.matmul(e.input("x", (3, 64)), e.weight("w", (64, 5)))})
    lowered = run(held_program(graph, np.ones((64, 5), np.float32)), LOWERING).entries["f"]
    assert allowed_difference(lowered) == E4M3_STEP + BF16_STEP + rounding_steps(lowered) * UNIT_ROUNDOFF

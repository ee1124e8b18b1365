"""The op table's arithmetic: fma against exact fractions, transcendentals against float64, random numbers, refusals."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgewm import arithmetic, interp
from edgewm import expr as e
from edgewm.errors import EdgewmError
from edgewm.ops import TABLE, fma32, graph_flops, make
from edgewm.program import Graph, Node, order, users

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def value(node: Node, real: bool = False, **inputs: np.ndarray) -> np.ndarray:
    return interp.run(Graph({"y": node}), inputs, {}, real=real)["y"]


def nearest_float32(x: Fraction) -> float:
    """`x` rounded to nearest, ties to even, by integer arithmetic alone."""
    if x == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(x.numerator)) - math.log2(x.denominator)) - 25, -149)
    while True:  # the unit in the last place: 24 bits, or the smallest denormal
        unit = Fraction(2) ** exponent
        whole = abs(x) / unit
        if whole < 2**24:
            break
        exponent += 1
    n = math.floor(whole)
    rest = whole - n
    n += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and n % 2 == 1)
    found = n * unit
    return math.copysign(math.inf if found >= Fraction(2) ** 128 else float(found), x)


# ---------------------------------------------------------------------------------------------- fused multiply-add


@settings(max_examples=400, deadline=None)
@given(FLOAT32, FLOAT32, FLOAT32)
@example(1.0 + 2.0**-12, 1.0 + 2.0**-12, 2.0**-60)  # just above a midpoint that float64 cannot see
@example(1.0 + 2.0**-12, 1.0 + 2.0**-12, -(2.0**-60))
@example(2.0**-75, 2.0**-75, 2.0**-149)
@example(2.0**127, 2.0, -(2.0**127))
def test_fma_is_rounded_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = float(fma32(*(np.array([x], np.float32) for x in (a, b, c)))[0])
    assert found == nearest_float32(exact)


@settings(max_examples=300, deadline=None)
@given(st.integers(2**23, 2**24 - 1), st.integers(2**23, 2**24 - 1), st.sampled_from((-1, 0, 1)), st.integers(60, 120))
def test_fma_near_midpoints(m: int, n: int, sign: int, tiny: int) -> None:
    """Products of 48 bits, nudged by far less than float64 holds: rounding twice would go wrong here."""
    exact = Fraction(m) * n + Fraction(sign, 2**tiny)
    arrays = (np.array([x], np.float32) for x in (m, n, sign * 2.0**-tiny))
    assert float(fma32(*arrays)[0]) == nearest_float32(exact)


def test_fma_of_what_is_not_finite() -> None:
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    found = fma32(*np.array([[inf, 1, nan, 0, 1], [1, inf, 1, inf, 1], [-inf, 1, 1, 1, nan]], np.float32))
    np.testing.assert_array_equal(found, [nan, inf, nan, nan, nan])


# ---------------------------------------------------------------------------------------------- transcendentals

DOMAINS = {
    "exp": np.linspace(-87.0, 88.0, 60_001),
    "log": np.concatenate([np.geomspace(2.0**-126, 3e38, 40_001), np.linspace(0.5, 2.0, 20_001)]),
    "erf": np.linspace(-8.0, 8.0, 60_001),
    "tanh": np.linspace(-12.0, 12.0, 60_001),
    "gelu": np.concatenate(
        [np.linspace(-12.0, 12.0, 60_001), np.geomspace(20.0, 3e38, 500), -np.geomspace(20, 3e38, 500)]
    ),
    "sin2pi": np.linspace(0.0, 1.0, 60_001),
    "cos2pi": np.linspace(0.0, 1.0, 60_001),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_transcendentals_keep_the_bound_their_docstring_states(name: str) -> None:
    function = getattr(arithmetic, name)
    (stated,) = re.findall(r"error below (\d+e-\d+)", function.__doc__)
    x = DOMAINS[name].astype(np.float32)
    node = make(name, e.input("x", x.shape))
    found, wanted = value(node, x=x).astype(np.float64), value(node, real=True, x=x)
    scale = {"exp": wanted, "log": np.maximum(1.0, np.abs(wanted))}.get(name, 1.0)
    assert np.max(np.abs(found - wanted) / scale) < float(stated)


def test_transcendentals_at_the_ends() -> None:
    x = np.array([-200.0, -87.1, 0.0, 88.0, 200.0, -np.inf, np.inf], np.float32)
    node = e.exp(e.input("x", x.shape))
    found = value(node, x=x)
    top = np.float32(found[3])
    np.testing.assert_array_equal(found, np.array([0, 0, 1, top, top, 0, top], np.float32))
    ends = np.array([-np.inf, -50.0, 50.0, np.inf], np.float32)
    for name in ("tanh", "erf"):
        assert np.all(np.abs(value(make(name, e.input("x", ends.shape)), x=ends)) <= 1.0)


# ---------------------------------------------------------------------------------------------- random numbers

# known answers of the Random123 library (kat_vectors, philox4x32 10): counter, key, result
PHILOX = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


@pytest.mark.parametrize(("counter", "key", "result"), PHILOX)
def test_philox_known_answers(counter: str, key: str, result: str) -> None:
    words = [e.const(int(w, 16), "u32") for w in (counter + " " + key).split()]
    found = [value(word) for word in arithmetic.philox(tuple(words[:4]), tuple(words[4:]))]
    assert " ".join(f"{int(w):08x}" for w in found) == result


def test_normal_has_the_moments_of_a_normal() -> None:
    n = 40_000
    zero, words = e.const(0, "u32"), (e.const(3, "u32"), e.const(5, "u32"))
    x = value(arithmetic.normal((n // 8, 8), (*words, zero), (e.const(11, "u32"), zero))).astype(np.float64).ravel()
    assert np.isfinite(x).all() and len(np.unique(x)) > 0.99 * n
    deviations = 5  # of each estimator's own standard error
    assert abs(x.mean()) < deviations / math.sqrt(n)
    assert abs(x.var() - 1) < deviations * math.sqrt(2 / n)
    assert abs((x**3).mean()) < deviations * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < deviations * math.sqrt(96 / n)
    assert abs(np.mean(x[1:] * x[:-1])) < deviations / math.sqrt(n)


def test_normal_depends_on_every_counter_and_key_word() -> None:
    def draw(*words: int) -> bytes:
        c = [e.const(w, "u32") for w in words]
        return value(arithmetic.normal((4,), tuple(c[:3]), tuple(c[3:]))).tobytes()

    assert len({draw(*(int(i == j) for j in range(5))) for i in range(6)}) == 6


# ---------------------------------------------------------------------------------------------- the other rows


def test_a_reduction_runs_in_index_order() -> None:
    x = np.array([1e8, 1.0, -1e8, 1.0], np.float32)
    leaf = e.input("x", (4,))
    assert value(e.reduce_sum(leaf, 0), x=x)[0] == 1.0
    assert value(e.reduce_sum(leaf, 0), x=x[[1, 3, 0, 2]])[0] == 0.0


def test_a_product_is_one_chain_of_fma() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 17)).astype(np.float32), rng.standard_normal((17, 5)).astype(np.float32)
    wanted = np.zeros((3, 5), np.float32)
    for k in range(17):
        wanted = fma32(a[:, k, None], b[k], wanted)
    found = value(e.matmul(e.input("a", a.shape), e.input("b", b.shape)), a=a, b=b)
    np.testing.assert_array_equal(found, wanted)


def test_max_takes_the_second_where_unordered() -> None:
    a, b = e.input("a", (2,)), e.input("b", (2,))
    x, y = np.array([np.nan, 1], np.float32), np.array([1, np.nan], np.float32)
    np.testing.assert_array_equal(value(e.maximum(a, b), a=x, b=y), y)
    np.testing.assert_array_equal(value(e.minimum(a, b), a=x, b=y), y)


def test_topk_breaks_ties_by_index_and_ranks_nan_last() -> None:
    cost = np.array([2, np.nan, 1, 1, np.inf, 1], np.float32)
    for k, wanted in ((1, [2]), (2, [2, 3]), (4, [0, 2, 3, 5]), (5, [0, 2, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5])):
        assert value(e.topk(e.input("x", (6,)), k), x=cost).tolist() == wanted


def test_a_scalar_stays_a_scalar() -> None:
    """A bit pattern of a scalar has no axis (numpy's own contiguous copy grows one)."""
    x = e.input("x", ())
    assert value(e.bitcast(e.bitcast(x, "u32"), "f32"), x=np.float32(1.5)).shape == ()


def test_repeat_swaps_its_carries_at_once() -> None:
    a, b = e.input("a", (2,)), e.input("b", (2,))
    body = Graph({"a": b, "b": e.add(a, 1.0), "round": e.input("counter", (), "u32")})
    found = e.repeat(3, body, {"a": a, "b": b})
    inputs = {"a": np.zeros(2, np.float32), "b": np.full(2, 10, np.float32)}
    out = interp.run(Graph(found), inputs, {})
    assert (out["a"].tolist(), out["b"].tolist(), int(out["round"])) == ([11, 11], [2, 2], 2)


def test_nodes_are_interned() -> None:
    def build() -> Node:
        return e.gelu(e.matmul(e.input("x", (2, 3)), e.weight("w", (3, 4))))

    kept = build()
    assert build() is kept
    assert users([kept])[kept] == [] and order(kept)[-1] is kept


def test_flops_count_loops_and_products() -> None:
    x = e.input("x", (2, 3))
    body = Graph({"x": e.matmul(e.input("x", (2, 3)), e.weight("w", (3, 3)))})
    assert graph_flops(Graph(e.repeat(5, body, {"x": x}))) == 5 * 2 * 2 * 3 * 3


REFUSED = {
    "sum": (lambda: make("sum", e.input("x", (2,)), axis=1), "axis 1 of 1"),
    "matmul": (
        lambda: e.matmul(e.input("x", (2, 3)), e.input("y", (2, 3))), "needs (..., m, k) and (..., k, n) of one dtype"
    ),
    "matmul of u32": (lambda: e.matmul(*[e.input("x", (2, 2), "u32")] * 2), "needs f32, bf16, f16 or i8"),
    "add": (lambda: e.add(e.input("x", (2,)), e.input("y", (2,), "i32")), "dtypes differ: f32, i32"),
    "broadcast": (lambda: e.add(e.input("x", (2,)), e.input("y", (3,))), "shape mismatch"),
    "exp": (lambda: e.exp(e.input("x", (2,), "i32")), "needs f32"),
    "shl": (lambda: e.shl(e.input("x", (2,), "i32"), 1), "needs u32"),
    "where": (lambda: e.select(e.input("x", (2,)), 1.0, e.input("x", (2,))), "needs a bool"),
    "reshape": (lambda: e.reshape(e.input("x", (2, 3)), (5,)), "number of elements differs"),
    "permute": (lambda: e.permute(e.input("x", (2, 3)), (0, 0)), "axes are not a permutation"),
    "expand": (lambda: e.expand(e.input("x", (2,)), (3,)), "mismatch"),
    "slice": (lambda: e.narrow(e.input("x", (3,)), 0, 2, 5), "range outside the axis"),
    "concat": (lambda: e.concat([e.input("x", (2, 3)), e.input("y", (3, 3))], 1), "shapes differ beside the axis"),
    "take": (lambda: e.take(e.input("x", (3,)), e.input("i", (2,))), "index must be a vector of i32"),
    "topk": (lambda: e.topk(e.input("x", (3,)), 4), "needs a vector of f32 at least k long"),
    "repeat": (
        lambda: e.repeat(2, Graph({"a": e.input("a", (3,))}), {"a": e.input("x", (2,))}), "a enters as"
    ),
    "unbound": (
        lambda: e.repeat(2, Graph({"a": e.add(e.input("a", ()), e.input("b", ()))}), {"a": e.input("x", ())}),
        "body reads unbound inputs ['b']",
    ),
    "unknown": (lambda: make("conv", e.input("x", (2,))), "no op named 'conv'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    build, reason = REFUSED[case]
    with pytest.raises(EdgewmError, match=re.escape(reason)):
        build()


def test_interp_refuses_what_it_was_not_given() -> None:
    graph = Graph({"y": e.add(e.input("x", (2,)), e.weight("w", (2,)))})
    with pytest.raises(EdgewmError, match="no input named 'x' was given"):
        interp.run(graph, {}, {})
    with pytest.raises(EdgewmError, match="no weight named 'w' was given"):
        interp.run(graph, {"x": np.zeros(2, np.float32)}, {})
    with pytest.raises(EdgewmError, match=r"input 'x' has shape \(3,\)"):
        interp.run(graph, {"x": np.zeros(3, np.float32)}, {})


def test_every_row_of_the_table_has_a_meaning_or_an_expansion() -> None:
    for name, row in TABLE.items():
        assert row.kind in ("leaf", "elementwise", "view", "concat", "reduction", "product", "planner", "control"), name
        assert row.meaning or row.expand or row.kind in ("leaf", "control"), name

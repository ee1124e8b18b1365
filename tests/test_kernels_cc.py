"""The C++ kernel templates against the op table's meaning, bit for bit, on every instruction set that can run here."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import MACHINES, Case, P, answers, build, canonical, differences, leaf, numbers, runs_here

from edgewm import expr as e
from edgewm.kernel import load
from edgewm.ops import NUMPY
from edgewm.paths import KERNELS
from edgewm.peaks import measure_peaks


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cases")
    with ThreadPoolExecutor() as pool:
        return dict(zip(MACHINES, pool.map(lambda isa: build(isa, folder), MACHINES), strict=True))


@pytest.fixture(
    params=[isa if isa != "neon" else pytest.param(isa, marks=pytest.mark.needs("qemu-aarch64")) for isa in MACHINES]
)
def machine(request: pytest.FixtureRequest, programs: dict[str, Path]) -> tuple[str, list[str]]:
    """An instruction set and the words that run its program."""
    isa = request.param
    if isa == "neon":
        return isa, [*request.getfixturevalue("qemu_orin"), str(programs[isa])]
    if not runs_here(isa):
        pytest.skip(f"this CPU has no {isa}")
    return isa, [str(programs[isa])]


# ---------------------------------------------------------------------------------------------- products

SHAPES = list(itertools.product((1, 5, 193), (1, 7, 13), (1, 16, 33), (1, 2, 3)))
FEW = [(193, 13, lanes, 2) for lanes in range(2, 10)]  # lanes that are fewer than results


HELD = {"product": "f32", "product_i8": "i8", "product_rounded": "i8", "product_fp16": "f16"}
WORKSPACE = {"product": P.workspace_bytes, "product_i8": P.workspace_i8_bytes,
             "product_rounded": P.workspace_rounded_bytes, "product_fp16": P.workspace_f16_bytes}  # fmt: skip


def product_case(isa: str, prologue: str, family: str, shape: tuple[int, int, int, int], batch: int = 1) -> Case:
    """A product over loops a (changes the weights when batch > 1), b, n, k, with one of the test's prologues."""
    k, n, lanes, outer = shape
    held, scaled = HELD[family], family == "product_i8"
    rng = np.random.default_rng([k, n, lanes, outer, batch, scaled])
    case = Case(isa, f"{family} {prologue}", "abnk", (batch, outer, n, k), lanes)
    x = numbers(rng, batch, outer, lanes, k)
    x[0, 0, 0] = 0.0
    if held == "i8":
        w = rng.integers(-127, 128, (batch, k, n)).astype(np.int8)
        scales = ((rng.random((batch, n)) * 0.01 + 1e-4) * rng.choice((-1, 1), (batch, n))).astype(np.float32)
        sums = w.sum(1, dtype=np.int32).astype(np.float32) * scales
    else:
        w = numbers(rng, batch, k, n).astype(NUMPY[held])
    inputs = {"x": x, "w": w[:, None]}
    value = leaf("x", x)
    if prologue == "norm":
        inputs |= {"mean": numbers(rng, batch, outer, lanes, 1), "rstd": numbers(rng, batch, outer, lanes, 1)}
        inputs |= {"gamma": numbers(rng, k), "beta": numbers(rng, k)}
        value = e.add(e.mul(e.mul(e.sub(value, leaf("mean", inputs["mean"])), leaf("rstd", inputs["rstd"])),
                            leaf("gamma", inputs["gamma"])), leaf("beta", inputs["beta"]))  # fmt: skip
    if scaled:
        inputs |= {"t": scales[:, None, None], "c": sums[:, None, None]}
    y = load(family).reference(value, *(leaf(name, inputs[name]) for name in ("wtc" if scaled else "w")))

    case.put(x, "ablk", "lkab" if prologue == "gathered" else None)
    if prologue == "norm":
        for name, axes in (("mean", "abl"), ("rstd", "abl"), ("gamma", "k"), ("beta", "k")):
            case.put(inputs[name][..., 0] if axes == "abl" else inputs[name], axes)
    kept = "i8" if held == "i8" else "f32"
    packed = {"f32": P.pack_f32, "f16": P.pack_f16, "i8": P.pack_i8}[held](w, isa)
    assert packed.shape == (batch, P.packed_bytes(kept, k, n, isa))
    case.weights(packed, kept, "a" if batch > 1 else "")
    if scaled:
        case.put(scales, "an")
        case.put(sums, "an")
    if prologue == "gathered":
        residual = inputs["residual"] = numbers(rng, batch, outer, lanes, n)
        case.put(residual, "abln")
        y = e.add(y, leaf("residual", residual))
        case.expect(canonical(y, **inputs), "abln", "lbna")
    else:
        bias = inputs["bias"] = numbers(rng, n)
        case.put(bias, "n")
        y = e.maximum(e.add(y, leaf("bias", bias)), 0.0)
        case.expect(canonical(y, **inputs), "abln")
    direct = prologue == "direct"
    shared = (outer,) if batch > 1 else (batch, outer)
    if size := WORKSPACE[family](shared, k, isa, direct):
        case.workspace(size)
    return case


READ_AS_THEY_LIE = ("product", "product_i8")  # the others round what they read
PROLOGUES = [
    (prologue, family) for family in HELD for prologue in ("plain", "direct", "gathered", "norm")
    if prologue != "direct" or family in READ_AS_THEY_LIE
]  # fmt: skip


@pytest.mark.parametrize(("prologue", "family"), PROLOGUES)
def test_product(machine: tuple[str, list[str]], prologue: str, family: str) -> None:
    isa, command = machine
    shapes = (SHAPES if prologue == "norm" else SHAPES[::4] + SHAPES[-3:]) + FEW
    cases = [product_case(isa, prologue, family, shape) for shape in shapes]
    cases += [product_case(isa, prologue, family, (6, 13, 17, 2), batch=3)]
    assert differences(command, cases) == []


def test_int8_rows_that_are_hard_to_round(machine: tuple[str, list[str]]) -> None:
    """Ties of the rounding, rows of denormals (floored scale), infinities and NaN in the middle of a row."""
    isa, command = machine
    rows = [
        [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 63.5],
        [1e-40, -1e-40, 0.0, -0.0, 1e-45, 2.0**-126, 0.0, 0.0],
        [1.0, np.inf, -2.0, 3.0, 0.0, -0.0, 5.0, 6.0],
        [1.0, np.nan, -2.0, 3.0, 0.0, -0.0, 5.0, 6.0],
        [np.nan, 1.0, -2.0, 3.0, 0.0, -0.0, 5.0, 6.0],
        [1.0, -np.nan, -2.0, 3.0, 0.0, -0.0, 5.0, 6.0],
        [-126.0, 0.5, 1.5, 2.5, 126.0, -1.5, -125.5, 62.5],
        [-254.0, -0.5, -1.5, -2.5, -100.5, -1.0, -126.5, -63.5],
    ]
    x = np.asarray(rows, np.float32)[None, None]
    w = np.eye(8, dtype=np.int8)
    t, c, bias = np.ones(8, np.float32), np.ones(8, np.float32), np.full(8, 200.0, np.float32)
    y = load("product_i8").reference(leaf("x", x), leaf("w", w), leaf("t", t), leaf("c", c))
    y = e.maximum(e.add(y, 200.0), 0.0)
    case = Case(isa, "product_i8 plain", "abnk", (1, 1, 8, 8), len(rows))
    case.put(x, "ablk")
    case.weights(P.pack_i8(w, isa), "i8")
    for values in (t, c, bias):
        case.put(values, "n")
    case.expect(np.where(np.isnan(value := canonical(y, x=x, w=w, t=t, c=c)), 0, value), "abln")
    case.workspace(P.workspace_i8_bytes((1, 1), 8, isa))
    finite = [0, 1, 6, 7]
    got = case.results(answers(command, [case])[0])[0]
    assert got[..., finite, :].tobytes() == case.expected[0][..., finite, :].tobytes()
    assert np.array_equal(np.where(np.isnan(got), 0, got), case.expected[0])


def test_packing_is_a_permutation_with_zeros() -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (2, 5, 7)).astype(np.int8)
    for isa, tiling in P.TILING.items():
        real = P.pack_f32(w.astype(np.float32), isa).view(np.float32)
        assert sorted(real[real != 0]) == sorted(w[w != 0])
        assert real[1, tiling.n_block] == w[1, 1, 0]  # k runs slower than n
        packed = P.pack_i8(w, isa)
        assert packed.dtype == np.uint8 and packed.shape == (2, P.packed_bytes("i8", 5, 7, isa))
        if tiling.zero_point:
            assert packed[1, :4].view(np.int32)[0] == -128 * w[1, :, 0].sum(dtype=np.int32)


# ---------------------------------------------------------------------------------------------- attention


def attention_case(
    isa: str, keys_shared: bool, values_shared: bool, shape: tuple[int, ...], direct: bool = False
) -> Case:
    a, i, j, d, dv, lanes = shape
    rng = np.random.default_rng(shape)
    words = ("shared" if s else "own" for s in (keys_shared, values_shared))
    name = "attention {} keys, {} values".format(*words) + (", direct" if direct else "")
    case = Case(isa, name, "aijdv", (a, i, j, d, dv), lanes)
    q = (numbers(rng, a, lanes, i, d) * 0.1).astype(np.float32)
    k = (numbers(rng, a, 1 if keys_shared else lanes, j, d) * 0.1).astype(np.float32)
    v = numbers(rng, a, 1 if values_shared else lanes, j, dv)
    mask = np.where(rng.random((i, j)) < 0.3, -np.inf, 0.0).astype(np.float32)
    mask[:, 0] = 0.0
    inputs = {"q": q, "k": np.ascontiguousarray(k.swapaxes(-1, -2)), "v": v, "mask": mask}
    scores = e.add(e.mul(e.matmul(leaf("q", q), leaf("k", inputs["k"])), 0.3), leaf("mask", mask))
    y = load("attention").reference(scores, leaf("v", v))
    case.put(q, "alid")
    # with direct: in lanes of another call, as tokens are
    case.put(*((k[:, 0], "ajd", "adj" if direct else None) if keys_shared else (k, "aljd")))
    case.put(*((v[:, 0], "ajv", "avj" if direct else None) if values_shared else (v, "aljv")))
    case.put(mask, "ij")
    case.expect(canonical(y, **inputs), "aliv")
    case.workspace(load("attention").workspace_bytes(j, d, P.TILING[isa].tile, direct))
    return case


@pytest.mark.parametrize("values_shared", [False, True], ids=["own-values", "shared-values"])
@pytest.mark.parametrize("keys_shared", [False, True], ids=["own-keys", "shared-keys"])
def test_attention(machine: tuple[str, list[str]], keys_shared: bool, values_shared: bool) -> None:
    isa, command = machine
    shapes = [(1, 1, 1, 1, 1, 1), (2, 3, 3, 8, 8, 33), (1, 2, 13, 5, 7, 16), (3, 1, 30, 16, 13, 5), (1, 4, 7, 3, 1, 40)]
    cases = [
        attention_case(isa, keys_shared, values_shared, shape, direct) for shape in shapes for direct in (False, True)
    ]
    assert differences(command, cases) == []


# ---------------------------------------------------------------------------------------------- map, reduce, planner


def test_reduce(machine: tuple[str, list[str]]) -> None:
    isa, command = machine
    cases = []
    for k, lanes, outer in itertools.product((1, 5, 193), (1, 16, 33), (1, 2, 3)):
        x = numbers(np.random.default_rng([k, lanes, outer]), outer, lanes, k)
        for name, fold in (("sum", e.reduce_sum), ("max", e.reduce_max)):
            case = Case(isa, f"reduce {name}", "ak", (outer, k), lanes)
            case.put(x, "alk")
            case.expect(canonical(fold(leaf("x", x), -1), x=x)[..., 0], "al")
            cases.append(case)
    assert differences(command, cases) == []


def arithmetic_case(isa: str, lanes: int) -> Case:
    rng = np.random.default_rng(lanes)
    a, b = numbers(rng, 2, lanes, 7), numbers(rng, 7)
    a[0, 0] = [0.5, -0.5, 2.5, 2.0**23 + 1, -(2.0**31), -0.0, 1e-40]
    c = rng.integers(0, 2**32, (2, lanes, 7), dtype=np.uint32)
    d = rng.integers(-128, 128, (2, lanes, 7)).astype(np.int8)
    b = np.clip(b, -50, 50)
    la, lb, lc, ld = leaf("a", a), leaf("b", b), leaf("c", c), leaf("d", d)
    y = e.fma(e.rint(la), lb, e.div(e.sqrt(e.absolute(la)), e.maximum(e.floor(la), 1.0)))
    y = e.select(e.less(la, lb), e.neg(lb), y)
    u = e.xor(e.mulhi(lc, e.const(0xD2511F53, "u32")), e.shr(e.mul(lc, e.const(0xCD9E8D57, "u32")), 7))
    i = e.minimum(e.add(e.absolute(e.cast(ld, "i32")), e.cast(e.rint(lb), "i32")), 100)
    case = Case(isa, "map arithmetic", "ai", (2, 7), lanes)
    inputs = {"a": a, "b": b, "c": c, "d": d}
    for name, axes in (("a", "ali"), ("b", "i"), ("c", "ali"), ("d", "ali")):
        case.put(inputs[name], axes)
    for node in (y, u, e.cast(i, "i8")):
        case.expect(canonical(node, **inputs), "ali")
    return case


def test_map_arithmetic(machine: tuple[str, list[str]]) -> None:
    isa, command = machine
    assert differences(command, [arithmetic_case(isa, lanes) for lanes in (1, 16, 33)]) == []


def reload_case(isa: str, lanes: int) -> Case:
    x = numbers(np.random.default_rng(lanes), lanes, 3)
    case = Case(isa, "map reload", "i", (3,), lanes)
    case.put(x, "li", "li")
    case.expect(x, "li")
    return case


def test_gathers_stay_within_the_real_lanes(machine: tuple[str, list[str]]) -> None:
    """Padded lanes of a gather repeat the last real lane: nothing beyond it is read."""
    isa, command = machine
    cases = [reload_case(isa, lanes) for lanes in (1, 15, 17, 33)]
    assert differences(command, cases) == []
    for case, arena in zip(cases, answers(command, cases), strict=True):
        offset, dtype, shape, *_ = case.outputs[0]
        whole = np.frombuffer(arena, dtype, math.prod(shape), offset).reshape(shape)
        assert np.array_equal(
            whole[:, case.lanes :], np.broadcast_to(whole[:, case.lanes - 1 : case.lanes], whole[:, case.lanes :].shape)
        )


def test_scatters_write_the_real_lanes_only(machine: tuple[str, list[str]]) -> None:
    isa, command = machine
    case = product_case(isa, "gathered", "product", (5, 7, 17, 2))
    before = bytes(case.spaces[0])
    case.put(np.zeros(4 * P.TILING[isa].tile, np.float32), "l", "l")  # what a padded lane's store would hit
    case.operands.pop()
    poison = bytes(case.spaces[0])[len(before) :]
    assert answers(command, [case])[0][len(before) :] == poison


def test_topk(machine: tuple[str, list[str]]) -> None:
    isa, command = machine
    rng = np.random.default_rng(0)
    vectors = [
        rng.standard_normal(300), rng.integers(0, 4, 100), [0.0, -0.0, 0.0, -1.0, -0.0], [7.0], np.zeros(9),
        [np.nan, 1.0, np.inf, np.nan, -np.inf], np.full(5, np.nan), [1e-45, -1e-45, 0.0],
    ]  # fmt: skip
    cases = []
    for vector in vectors:
        cost = np.asarray(vector, np.float32)
        for k in {1, (len(cost) + 1) // 2, len(cost)}:
            case = Case(isa, "topk", "sk", (len(cost), k), 1)
            case.put(cost, "s")
            case.expect(canonical(e.topk(leaf("x", cost), k), x=cost), "k")
            cases.append(case)
    assert differences(command, cases) == []


def test_take(machine: tuple[str, list[str]]) -> None:
    isa, command = machine
    rng = np.random.default_rng(0)
    cases = []
    for dtype, order in ((np.float32, "jab"), (np.int32, "abj"), (np.uint32, "ajb")):
        x = rng.integers(0, 2**31 - 1, (9, 3, 5)).astype(dtype)
        index = np.asarray([8, 0, 3, 3], np.int32)
        case = Case(isa, "take", "jab", (4, 3, 5), 1)
        case.put(x, "jab", order)
        case.put(index, "j")
        case.expect(canonical(e.take(leaf("x", x), leaf("i", index)), x=x, i=index), "jab")
        cases.append(case)
    assert differences(command, cases) == []


def hard_case(isa: str, family: str, x: np.ndarray) -> Case:
    """Numbers (n,) one by one through a product with 1."""
    case = Case(isa, f"{family} gathered", "abnk", (1, 1, 1, 1), len(x))
    w = np.ones((1, 1), NUMPY[HELD[family]])
    case.put(x[None, None, :, None], "ablk", "lkab")
    case.weights(
        P.pack_i8(w, isa) if HELD[family] == "i8" else P.pack_f16(w, isa), "i8" if HELD[family] == "i8" else "f32"
    )
    case.put(np.zeros((1, 1, len(x), 1), np.float32), "abln")
    rows = x[None, None, :, None]
    case.expect(
        canonical(e.add(load(family).reference(leaf("x", rows), leaf("w", w)), 0.0), x=rows, w=w), "abln", "lbna"
    )
    case.workspace(WORKSPACE[family]((1, 1), 1, isa))
    return case


def hard_numbers() -> np.ndarray:
    """Ties of both roundings, denormals, the ends of both ranges, infinities; NaN last."""
    rng = np.random.default_rng(0)
    halves = rng.integers(0, 0x7C00, 300).astype(np.uint16).view(np.float16).astype(np.float32)
    ties = (halves.view(np.uint32) + np.uint32(0x1000)).view(np.float32)  # of normal ones
    small = (rng.integers(0, 4096, 200) * 2.0**-25).astype(np.float32)  # denormal halves, and ties between them
    whole = np.arange(-130, 131, dtype=np.float32)
    edges = np.float32([65504, 65519.996, 65520, 65536, 1e30, np.inf, 2.0**-14, 2.0**-24, 2.0**-25, 2.0**-149, 0.0])
    found = np.concatenate(
        [halves, ties, small, whole, whole + np.float32(0.5), edges, np.nextafter(edges, np.float32(1))]
    )
    return np.concatenate([found, -found, np.float32([np.nan, -np.nan])])


@pytest.mark.parametrize("family", ["product_rounded", "product_fp16"])
def test_numbers_that_are_hard_to_round(machine: tuple[str, list[str]], family: str) -> None:
    isa, command = machine
    x = hard_numbers()
    case = hard_case(isa, family, x)
    got, want = (y[0][0, 0, :, 0] for y in (case.results(answers(command, [case])[0]), case.expected))
    assert got[:-2].tobytes() == want[:-2].tobytes()
    finite = x[np.isfinite(x)]
    if family == "product_fp16":
        assert np.isnan(got[-2:]).all() and np.abs(want[:-2]).max() == 65504
        kept = np.clip(finite, -65504, 65504).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(want[np.isfinite(x)], kept)
    else:
        assert (got[-2:] == -127).all()
        np.testing.assert_array_equal(want[np.isfinite(x)], np.rint(np.clip(finite, -127, 127)))


# ---------------------------------------------------------------------------------------------- peaks


def test_peaks_are_of_loops_that_run() -> None:
    """No core does 256 operations (512 of bf16, 1024 of int8) a clock at 6 GHz: a loop that was removed seems to."""
    found = measure_peaks(2)
    assert set(found) == {"fp32_gflops", "bf16_gflops", "int8_gops", "dram_gbps"}
    assert 0 < found["bf16_gflops"] < 2 * 512 * 6
    assert (
        0 < found["fp32_gflops"] < 2 * 256 * 6
        and 0 < found["int8_gops"] < 2 * 1024 * 6
        and 0 < found["dram_gbps"] < 2000
    )


# ---------------------------------------------------------------------------------------------- the tests can fail

# what is changed, in which file, how
PLANTED = {
    "multiply and add unfused": ("product.cc", "return op_fma(x, splat(b), sum);", "return sum + x * splat(b);"),
    "k descending": (
        "blocks.h",
        "memcpy(a, x, sizeof(a));\n#pragma unroll\n            for (int n = 0; n < N_BLOCK; n++) {\n#pragma unroll\n"
        "              for (int r = 0; r < V; r++) sum[n][r] = M::dot(sum[n][r], a[r], wk, n);",
        "const int64_t back = words - 1 - 2 * k;\n          memcpy(a, x + back * step, sizeof(a));\n"
        "          for (int n = 0; n < N_BLOCK; n++) {\n            for (int r = 0; r < V; r++)\n"
        "              sum[n][r] = M::dot(sum[n][r], a[r], wk + back * N_BLOCK * 4, n);",
    ),
    "k descending for few lanes": (
        "blocks.h",
        "memcpy(lane, x, sizeof(lane));\n    const Word weights = load_block<Word>(w);",
        "const int64_t back = words - 1 - 2 * k;\n    memcpy(lane, x + back * step, sizeof(lane));\n"
        "    const Word weights = load_block<Word>(w + back * N_BLOCK * 4);",
    ),
    "few lanes, one of them another's": ("blocks.h", "sum[n][0][l] = each[l][n];", "sum[n][0][l] = each[l / 2][n];"),
    "scales one by one": (
        "product_i8.cc",
        "(scale.step[r] * load_b<float>(own[0], n, 0))", "scale.step[r] * load_b<float>(own[0], n, 0)",
    ),
    "the middle unfused": (
        "product_i8.cc",
        "op_fma(scale.middle[r], load_b<float>(own[1], n, 0), product)",
        "(scale.middle[r] * load_b<float>(own[1], n, 0)) + product",
    ),
    "a row's range without 0": ("product_i8.cc", "high[r] = i32v{}, low[r]", "high[r] = splat(INT32_MIN), low[r]"),
    "another division": ("product_i8.cc", "127.0f) / half;\n", "1.0f) / (half / 127.0f);\n"),
    "rounding half up": (
        "product_i8.cc", "op_min(op_fma(y, inverse[r], offset[r]), splat(127.0f)) +",
        "op_floor(op_fma(y, inverse[r], offset[r]) + splat(0.5f)) +",
    ),
    "an integer cut off, not rounded": ("product_rounded.cc", "(u32v)(y + splat", "(u32v)(op_floor(y) + splat"),
    "beyond the greatest integer": ("product_rounded.cc", "splat(127.0f)", "splat(128.0f)"),
    "half cut off, not rounded": (
        "product_fp16.cc", "op_max(splat(-65504.0f), op_min(splat(65504.0f), x))",
        "(f32v)((u32v)op_max(splat(-65504.0f), op_min(splat(65504.0f), x)) & 0xffffe000u)",
    ),
    "half infinite": ("product_fp16.cc", "op_min(splat(65504.0f), x)", "x"),
    "softmax by division": ("attention.cc", "return x * sum[r];", "return x / (splat(1.0f) / sum[r]);"),
    "ties by higher index": ("topk.cc", "(rank == last && ties-- <= 0)", "(rank == last && --ties > 0)"),
}  # fmt: skip


def near_tie() -> tuple[np.float32, np.float32]:
    """A row (largest, x) whose x rounds otherwise when 127 / largest is computed as 1 / (largest / 127)."""
    largest = np.random.default_rng(0).random((1000, 1), np.float32) + np.float32(1)
    inverse, other = np.float32(127) / largest, np.float32(1) / (largest / np.float32(127))
    x = (np.arange(0.5, 127, dtype=np.float32) / inverse).astype(np.float32)
    row, column = np.argwhere(np.rint(x * inverse) != np.rint(x * other))[0]
    return largest[row, 0], x[row, column]


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    isa = next(isa for isa in ("avx512", "avx2", "scalar") if runs_here(isa))
    file, old, new = PLANTED[fault]
    for source in (*KERNELS.glob("*.cc"), *KERNELS.glob("*.h")):
        text = source.read_text()
        if source.name == file:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (tmp_path / source.name).write_text(text)
    command = [str(build(isa, tmp_path, tmp_path))]
    shapes = ((193, 13, 33, 2), (193, 13, 3, 2))
    cases = [product_case(isa, "plain", family, shape) for family in ("product", "product_i8") for shape in shapes]
    cases += [attention_case(isa, True, True, (2, 3, 13, 8, 8, 33))]
    ties = Case(isa, "topk", "sk", (5, 2), 1)
    ties.put(np.zeros(5, np.float32), "s")
    ties.expect(np.asarray([0, 1], np.int32), "k")
    top, half = near_tie()
    x = np.asarray([[127.0, 0.5, -127.0], [top, half, -top], [-9.0, -5.0, -1.0]], np.float32)
    eye, one = np.eye(3, dtype=np.int8), np.ones(3, np.float32)
    halves = Case(isa, "product_i8 plain", "abnk", (1, 1, 3, 3), 3)
    halves.put(x[None, None], "ablk")
    halves.weights(P.pack_i8(eye, isa), "i8")
    for values in (one, one, 10 * one):
        halves.put(values, "n")
    y = load("product_i8").reference(leaf("x", x), leaf("w", eye), leaf("t", one), leaf("c", one))
    halves.expect(np.maximum(canonical(e.add(y, 10.0), x=x, w=eye, t=one, c=one), 0)[None, None], "abln")
    halves.workspace(P.workspace_i8_bytes((1, 1), 3, isa))
    hard = [hard_case(isa, family, hard_numbers()[:-2]) for family in ("product_rounded", "product_fp16")]
    assert differences(command, [*cases, *hard, ties, halves]) != []

"""The bf16 product: one meaning, the instruction's own, on CPUs with it and without, bit for bit."""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import MACHINES, Case, P, answers, build, canonical, differences, leaf, numbers, runs_here

from edgewm import expr as e
from edgewm import interp, toolchain
from edgewm.binding import Runtime
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.golden import example_inputs
from edgewm.host import host
from edgewm.kernel import load, match
from edgewm.ops import NUMPY, fma32
from edgewm.passes import run
from edgewm.passes.fuse_kernels import fuse
from edgewm.passes.quantize_products import quantize_products, round_weight
from edgewm.paths import KERNELS, RUNTIME
from edgewm.program import Graph, Node, Program
from edgewm.quantize import recipe_of
from edgewm.target import Target

FAMILY = load("product_bf16")
BF16 = NUMPY["bf16"]
FEATURES = FAMILY.FEATURES
PROGRAMS = {isa: (isa, ()) for isa in MACHINES} | {"avx512 with bf16": ("avx512", FEATURES)}
SHAPES = list(itertools.product((1, 2, 5, 194), (1, 7, 13), (1, 16, 33), (1, 3)))
FEW = [(194, 13, lanes, 2) for lanes in range(2, 10)]  # lanes that are fewer than results
DRAWN = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def executes(name: str) -> bool:
    isa, features = PROGRAMS[name]
    return runs_here(isa) and all(map(host().has, features))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cases")
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda p: build(p[0], folder, features=p[1]), PROGRAMS.values())
    return dict(zip(PROGRAMS, made, strict=True))


NEEDS = {"neon": pytest.mark.needs("qemu-aarch64")}


@pytest.fixture(params=[pytest.param(name, marks=NEEDS.get(name, ())) for name in PROGRAMS])
def machine(request: pytest.FixtureRequest, programs: dict[str, Path]) -> tuple[str, list[str]]:
    """An instruction set and the words that run its program."""
    name = request.param
    if name == "neon":
        return name, [*request.getfixturevalue("qemu_orin"), str(programs[name])]
    if not executes(name):
        pytest.skip(f"this CPU has no {name}")
    return PROGRAMS[name][0], [str(programs[name])]


def case_of(isa: str, x: np.ndarray, w: np.ndarray, prologue: str = "plain") -> Case:
    """`x` (a, b, lanes, k) f32 by `w` (a, k, n) f32: loops a (changes the weights beyond 1), b, n, k."""
    batch, outer, lanes, k = x.shape
    n = w.shape[-1]
    rng = np.random.default_rng(x.shape + w.shape)
    (w,) = round_weight(w)
    case = Case(isa, f"product_bf16 {prologue}", "abnk", (batch, outer, n, k), lanes)
    inputs, value = {"x": x, "w": w[:, None]}, leaf("x", x)
    case.put(x, "ablk", "lkab" if prologue == "gathered" else None)
    if prologue == "norm":
        inputs |= {"mean": numbers(rng, batch, outer, lanes, 1), "rstd": numbers(rng, batch, outer, lanes, 1)}
        inputs |= {"gamma": numbers(rng, k), "beta": numbers(rng, k)}
        mean, rstd, gamma, beta = (leaf(name, inputs[name]) for name in ("mean", "rstd", "gamma", "beta"))
        value = e.add(e.mul(e.mul(e.sub(value, mean), rstd), gamma), beta)
        for name, axes in (("mean", "abl"), ("rstd", "abl"), ("gamma", "k"), ("beta", "k")):
            case.put(inputs[name][..., 0] if axes == "abl" else inputs[name], axes)
    packed = P.pack_bf16(w, isa)
    assert packed.shape == (batch, P.packed_bytes("bf16", k, n, isa))
    case.weights(packed, "u32", "a" if batch > 1 else "")
    y = FAMILY.reference(value, leaf("w", inputs["w"]))
    if prologue == "gathered":
        inputs["residual"] = numbers(rng, batch, outer, lanes, n)
        case.put(inputs["residual"], "abln")
        y = e.add(y, leaf("residual", inputs["residual"]))
        case.expect(canonical(y, **inputs), "abln", "lbna")
    else:
        inputs["bias"] = numbers(rng, n)
        case.put(inputs["bias"], "n")
        y = e.maximum(e.add(y, leaf("bias", inputs["bias"])), 0.0)
        case.expect(canonical(y, **inputs), "abln")
    case.workspace(P.workspace_bf16_bytes((outer,) if batch > 1 else (batch, outer), k, isa))
    return case


def ordinary(isa: str, prologue: str, shape: tuple[int, int, int, int], batch: int = 1) -> Case:
    k, n, lanes, outer = shape
    rng = np.random.default_rng([k, n, lanes, outer, batch])
    return case_of(isa, numbers(rng, batch, outer, lanes, k), numbers(rng, batch, k, n), prologue)


@pytest.mark.parametrize("prologue", ["plain", "gathered", "norm"])
def test_product(machine: tuple[str, list[str]], prologue: str) -> None:
    isa, command = machine
    shapes = (SHAPES if prologue == "norm" else SHAPES[::4] + SHAPES[-3:]) + FEW
    cases = [ordinary(isa, prologue, shape) for shape in shapes]
    cases += [ordinary(isa, prologue, (6, 13, 17, 2), batch=3)]
    assert differences(command, cases) == []


def test_the_later_of_two_neighbours_comes_first(machine: tuple[str, list[str]]) -> None:
    """2^30 + 1 is 2^30: in index order the sum would be 1."""
    isa, command = machine
    x, w = np.asarray([2.0**30, 0.0, -(2.0**30), 1.0], np.float32), np.ones((4, 1), np.float32)
    of_bf16, of_f32 = (canonical(e.matmul(leaf("x", a), leaf("w", b)), x=a, w=b) for a, b in (
        (x[None].astype(BF16), w.astype(BF16)), (x[None], w)))  # fmt: skip
    assert (of_bf16.item(), of_f32.item()) == (0.0, 1.0)
    assert differences(command, [case_of(isa, x[None, None, None], w[None])]) == []


# ---------------------------------------------------------------------------------------------- numbers that are hard


def bits(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """f32 of either sign with exponents in [low, high) and any significand, some of them ties of bf16's rounding."""
    word = rng.integers(0, 2, shape) << 31 | rng.integers(low + 127, high + 127, shape) << 23
    significand = rng.integers(0, 1 << 23, shape)
    tie = significand & ~0xFFFF | 0x8000
    word |= np.where(rng.random(shape) < 0.2, tie, significand)
    return word.astype(np.uint32).view(np.float32)


EXPONENTS = st.sampled_from([(-127, -120), (-60, -50), (-57, -55), (-3, 4), (40, 60), (-127, 62)])


@DRAWN
@given(st.integers(0, 2**32 - 1), EXPONENTS, EXPONENTS, st.integers(1, 9))
def test_drawn_numbers(machine: tuple[str, list[str]], seed: int, of_x: tuple, of_w: tuple, k: int) -> None:
    """Denormals, what rounds to the smallest or to 0, ties, cancellation, sums near 2^126."""
    isa, command = machine
    rng = np.random.default_rng(seed)
    x, w = bits(rng, (1, 1, 40, k), *of_x), bits(rng, (1, k, 7), *of_w)
    x[..., 1::3] = -x[..., :-1:3] if k > 1 and k % 3 == 2 else x[..., 1::3]
    assert differences(command, [case_of(isa, x, w)]) == []


def smallest_and_neighbours() -> np.ndarray:
    edges = [FAMILY.SMALLEST, FAMILY.ROUNDS_TO_SMALLEST, 2.0**-126, 2.0**-149, 0.0]
    around = [np.nextafter(np.float32(v), np.float32(to)) for v in edges for to in (-1, 1)]
    return np.asarray([*edges, *around, *(-v for v in edges)], np.float32)


def test_what_rounds_to_less_than_the_smallest_is_zero(machine: tuple[str, list[str]]) -> None:
    isa, command = machine
    x = smallest_and_neighbours()
    assert differences(command, [case_of(isa, np.diag(x)[None, None], np.eye(len(x), dtype=np.float32)[None])]) == []
    (w,) = round_weight(x)
    kept = e.select(e.less(e.absolute(leaf("x", x)), FAMILY.ROUNDS_TO_SMALLEST), 0.0, leaf("x", x))
    assert w.tobytes() == canonical(e.cast(kept, "bf16"), x=x).tobytes()
    assert np.all((w == 0) | (np.abs(w.astype(np.float64)) >= FAMILY.SMALLEST)) and (w == FAMILY.SMALLEST).any()


def test_infinities_and_nan_stay(machine: tuple[str, list[str]]) -> None:
    """Every NaN of the oracle is one here, and nothing else is; f32 beyond bf16's largest is Inf."""
    isa, command = machine
    words = [0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F7FFFFF, 0x3F800000]
    x = np.zeros((1, 1, len(words), 3), np.float32)
    x[0, 0, :, 1] = np.asarray(words, np.uint32).view(np.float32)
    w = np.ones((1, 3, 2), np.float32)
    w[0, :, 1] = 0.0
    case = case_of(isa, x, w, "gathered")
    (got,), (want,) = case.results(answers(command, [case])[0]), case.expected
    assert np.array_equal(got, want, equal_nan=True)
    assert np.isnan(want[0, 0, 2:6]).all() and np.isinf(want[0, 0, [0, 1, 6], 0]).all()


@DRAWN
@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_no_sum_is_ever_denormal(seed: int, k: int) -> None:
    """Of the smallest numbers, cancelling: why an instruction that flushes denormals is a chain of multiply-adds."""
    rng = np.random.default_rng(seed)
    (w,), (x,) = (round_weight(bits(rng, (50, k), -57, -53)) for _ in range(2))
    total, smallest = np.zeros(50, np.float32), []
    for i in range(k):
        total = fma32(x[:, i].astype(np.float32), w[:, i].astype(np.float32), total)
        smallest.append(np.abs(total[total != 0], dtype=np.float64).min(initial=1.0))
    assert min(smallest) >= 2.0**-126


# ---------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("isa", MACHINES)
def test_packing_pairs_neighbours(isa: str) -> None:
    rng = np.random.default_rng(0)
    (w,) = round_weight(numbers(rng, 2, 5, 7))
    n_block = P.TILING[isa].n_block
    packed = P.pack_bf16(w, isa).view(np.uint16).reshape(2, -1, 3, n_block, 2)
    found = packed.transpose(0, 2, 4, 1, 3).reshape(2, 6, -1)
    assert np.array_equal(found[:, :5, :7], w.view(np.uint16))
    assert not found[:, 5:].any() and not found[..., 7:].any()


# ---------------------------------------------------------------------------------------------- passes


def families(graph: Graph) -> list[str]:
    return sorted(n["family"] for n in graph.order() if n.op == "kernel")


def leaves(name: str = "w") -> tuple[Node, Node]:
    return e.input("x", (3, 5)), e.weight(f"{name}/bf16", (5, 7), "bf16")


def changed(smallest: float = FAMILY.ROUNDS_TO_SMALLEST, instead: float = 0.0) -> Node:
    """The reference with one constant changed."""
    x, w = leaves()
    return e.matmul(e.cast(e.select(e.less(e.absolute(x), smallest), instead, x), "bf16"), w)


def test_a_product_in_bf16_is_one_kernel_with_its_neighbours() -> None:
    x, w = leaves()
    assert match("product_bf16", changed()) == {"x": x, "w": w}
    y = e.gelu(e.add(FAMILY.reference(e.mul(x, 0.5), w), e.weight("b", (7,))))
    assert families(fuse(Graph({"y": y}))) == ["product_bf16"]


def test_a_product_in_bf16_with_one_thing_changed_is_none() -> None:
    for root in (changed(smallest=2.0**-57), changed(instead=1.0), e.matmul(e.cast(leaves()[0], "bf16"), leaves()[1])):
        assert match("product_bf16", root) is None


def test_rows_that_two_products_share_are_rounded_in_both() -> None:
    (x, w), (_, w2) = leaves(), leaves("w2")
    found = fuse(Graph({"a": FAMILY.reference(x, w), "b": FAMILY.reference(x, w2)}))
    assert families(found) == ["product_bf16", "product_bf16"]


@pytest.mark.parametrize(("rows", "k", "n"), ((1, 1, 1), (3, 17, 5), (2, 33, 3), (5, 192, 17)))
def test_products_err_within_the_bound_of_bf16(rows: int, k: int, n: int) -> None:
    """Each factor is rounded by 2^-9 of itself, each of k sums by 2^-24 of what has been added."""
    rng = np.random.default_rng([rows, k, n])
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, k), (k, n)))
    graph = Graph({"y": e.matmul(e.input("x", x.shape), e.weight("w", w.shape))})
    program = Program({"f": graph}, {"w": w}, recipe={"w": "bf16"})
    rounded = run(program, (quantize_products,))
    assert dict(quantize_products(rounded).entries) == dict(rounded.entries)
    assert rounded.weights["w/bf16"].nbytes == w.nbytes // 2
    magnitude = np.abs(x).astype(np.float64) @ np.abs(w)
    factors = (1 + 2.0**-9) ** 2
    exact = x.astype(np.float64) @ w.astype(np.float64)
    for real, sums in ((True, 0.0), (False, k * 2.0**-24)):
        found = interp.run(rounded.entries["f"], {"x": x}, rounded.weights, real=real)["y"]
        assert found.dtype == (np.float64 if real else np.float32)
        bound = ((factors - 1) + factors * ((1 + sums) - 1)) * magnitude + 2.0**-50 * magnitude
        assert np.all(np.abs(found - exact) <= bound)


def test_the_recipe_takes_what_candidates_run_through() -> None:
    recipe = recipe_of(tiny.exact(), "bf16")
    assert set(recipe.values()) == {"bf16"} and recipe.keys() == recipe_of(tiny.exact(), "w8a8").keys()


# ---------------------------------------------------------------------------------------------- bundles

needs_bf16 = pytest.mark.skipif(not executes("avx512 with bf16"), reason="this CPU has no avx512bf16")


def bundle(board: Target, program: Program, folder: Path) -> Path:
    folder.mkdir()
    sections, paths = compile_bundle(program, schedule_program(program, board.isa), {}, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    return folder


def plan_only(precision: str) -> Program:
    program = tiny.lowered(precision)
    return program.with_(entries={"plan": program.entries["plan"]})


@needs_bf16
def test_a_plan_needs_no_instruction_for_bf16(tmp_path: Path) -> None:
    """The same kernels without it, on the same CPU, plan with the same bits; and the one bundle does use it."""
    without = tuple(f for f in host().cpu.features if f not in FEATURES)
    plain = replace(host(), cpu=replace(host().cpu, features=without))
    program, results, asks = plan_only("bf16"), [], []
    for board, name in ((host(), "with"), (plain, "without")):
        folder = bundle(board, program, tmp_path / name)
        with Runtime(folder) as runtime:
            found = runtime.run_entry("plan", **example_inputs(program, "plan", seed=0))
        results.append({key: value.tobytes() for key, value in found.items()})
        asks.append(b"avx512bf16" in (folder / "libedgewm.so").read_bytes())
    assert results[0] == results[1] and asks == [True, False]


@needs_bf16
def test_a_processor_without_it_is_refused_where_a_product_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that asks after the feature where no processor has it."""
    runtime = shutil.copytree(RUNTIME, tmp_path / "runtime")
    text = (runtime / "cpu.cc").read_text()
    question = '{"avx512bf16", 7, '
    assert text.count(question) == 1
    (runtime / "cpu.cc").write_text(text.replace(question, '{"avx512bf16", 0x7fffffff, '))
    monkeypatch.setattr(toolchain, "RUNTIME", runtime)
    for precision in ("bf16", "fp32"):
        folder = bundle(host(), plan_only(precision), tmp_path / precision)
        if precision == "bf16":
            with pytest.raises(EdgewmError, match="found no avx512bf16"):
                Runtime(folder)
        else:
            Runtime(folder).close()


# ---------------------------------------------------------------------------------------------- the tests can fail

# which program, in which file, what is changed, how
PLANTED = {
    "the earlier neighbour first": (
        "avx512", "bf16.h",
        "acc = op_fma((f32v)(x & UPPER), (f32v)(w & UPPER), acc);\n"
        "  return op_fma((f32v)(x << 16), (f32v)(w << 16), acc);",
        "acc = op_fma((f32v)(x << 16), (f32v)(w << 16), acc);\n"
        "  return op_fma((f32v)(x & UPPER), (f32v)(w & UPPER), acc);",
    ),
    "the earlier neighbour first for the instruction": (
        "avx512 with bf16", "bf16.h",
        "(bf16v)x, (bf16v)w", "(bf16v)(x << 16 | x >> 16), (bf16v)(w << 16 | w >> 16)",
    ),
    "neighbours swapped in the lanes alone": (
        "avx512 with bf16", "product_bf16.cc",
        "P::value(v, k, r, t), P::value(v, k + 1, r, t)", "P::value(v, k + 1, r, t), P::value(v, k, r, t)",
    ),
    "cut off, not rounded": ("avx512", "bf16.h", "bits + 0x7fffu + ((bits >> 16) & 1u)", "bits"),
    "ties away from zero": ("avx512", "bf16.h", "bits + 0x7fffu + ((bits >> 16) & 1u)", "bits + 0x8000u"),
    "small numbers kept": ("avx512", "bf16.h", "smallest = (127 - 56) << 23", "smallest = 0"),
    "small numbers kept by the instruction's side": (
        "avx512 with bf16", "bf16.h", "doubled = (127 - 56) << 8", "doubled = 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    name, file, old, new = PLANTED[fault]
    if not executes(name):
        pytest.skip(f"this CPU has no {name}")
    for source in (*KERNELS.glob("*.cc"), *KERNELS.glob("*.h")):
        text = source.read_text()
        if source.name == file:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (tmp_path / source.name).write_text(text)
    isa, features = PROGRAMS[name]
    command = [str(build(isa, tmp_path, tmp_path, features))]
    rng = np.random.default_rng(0)
    edges = smallest_and_neighbours()
    cases = [
        ordinary(isa, "plain", (193, 13, 33, 2)),
        case_of(isa, bits(rng, (1, 1, 40, 1), -1, 1), np.ones((1, 1, 1), np.float32)),
        case_of(isa, np.diag(edges)[None, None], np.eye(len(edges), dtype=np.float32)[None]),
    ]
    assert differences(command, cases) != []

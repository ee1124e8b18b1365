"""Each pass keeps what a program computes; what breaks a rule is named with its step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import programs
import pytest

from edgewm import expr as e
from edgewm import interp
from edgewm.errors import EdgewmError
from edgewm.ops import TABLE
from edgewm.passes import EXACT, LOWERING, PIPELINE, Step, run
from edgewm.passes.fuse_kernels import fuse_kernels
from edgewm.passes.quantize_products import quantize_products, quantize_weight
from edgewm.program import Graph, Node, Program, intern, walk_graphs
from edgewm.spec import BrokenProgram, verify

SEEDS = (1, 4, 7)
DRAWN = 12  # graphs from each seed
KEEPING = tuple(step for step in PIPELINE if step is not quantize_products)


@pytest.fixture(scope="module")
def drawn() -> Program:
    """Drawn graphs and a transformer, captured as one program."""
    graphs = [g for seed in SEEDS for g in programs.drawn(DRAWN, seed)]
    graphs.append(programs.transformer(5, 3, 8, 2, 4, 2).entries["score"])
    return programs.program_of({f"f{i}": programs.salted(g, f"f{i}") for i, g in enumerate(graphs)})


@pytest.fixture(scope="module")
def before(drawn: Program) -> dict[str, Program]:
    """The program as it enters each step."""
    found = {}
    for step in PIPELINE:
        found[step.__name__] = drawn
        drawn = run(drawn, (step,))
    return found


def answers(program: Program, real: bool = False) -> dict[str, dict[str, np.ndarray]]:
    inputs = {name: programs.inputs_of(graph) for name, graph in program.entries.items()}
    return {n: interp.run(g, inputs[n], program.weights, real=real) for n, g in program.entries.items()}


@pytest.mark.parametrize("step", KEEPING, ids=lambda s: s.__name__)
def test_an_exact_step_keeps_every_bit(step: Step, before: dict[str, Program]) -> None:
    program = before[step.__name__]
    after = run(program, (step,))
    wanted, found = answers(program), answers(after)
    assert [f"{name}.{line}" for name in wanted for line in programs.differing(found[name], wanted[name])] == []
    assert [(n, list(g.outputs)) for n, g in after.entries.items()] == [
        (n, list(g.outputs)) for n, g in program.entries.items()
    ]


@pytest.mark.parametrize("step", EXACT, ids=lambda s: s.__name__)
def test_a_second_run_changes_nothing(step: Step, before: dict[str, Program]) -> None:
    once = step(before[step.__name__])
    twice = step(once)
    assert dict(twice.entries) == dict(once.entries)
    assert set(twice.weights) == set(once.weights)


def test_a_second_quantization_changes_nothing(before: dict[str, Program]) -> None:
    program = before["quantize_products"]
    recipe = {n: "w8a8" for n, a in program.weights.items() if a.ndim == 2 and a.dtype == np.float32}
    program = program.with_(recipe=recipe)
    once = quantize_products(program)
    assert dict(once.entries) != dict(program.entries)
    assert dict(quantize_products(once).entries) == dict(once.entries)


def test_without_a_recipe_nothing_is_quantized(before: dict[str, Program]) -> None:
    program = before["quantize_products"]
    assert quantize_products(program) is program


def test_everything_that_computes_ends_in_a_kernel(before: dict[str, Program]) -> None:
    fused = fuse_kernels(before["fuse_kernels"])
    left = {n.op for g in fused.entries.values() for h in walk_graphs_outside_kernels(g) for n in h.order()}
    assert not {op for op in left if TABLE[op].kind in ("elementwise", "reduction", "product")}


def walk_graphs_outside_kernels(graph: Graph):
    yield graph
    for node in graph.order():
        if node.op == "repeat":
            yield from walk_graphs_outside_kernels(node["body"])


def test_parts_of_kernels_are_elementwise(before: dict[str, Program]) -> None:
    """What a functor is written from: one expression over operands, with no core inside."""
    fused = fuse_kernels(before["fuse_kernels"])
    kernels = [n for g in fused.entries.values() for h in walk_graphs(g) for n in h.order() if n.op == "kernel"]
    parts = [v for n in kernels for k, v in n.attrs if isinstance(v, Graph) and k != "body"]
    assert {TABLE[n.op].kind for part in parts for n in part.order()} == {"elementwise", "leaf"}


# ---------------------------------------------------------------------------------------------- rounding to eight bits


@pytest.mark.parametrize(("rows", "k", "n"), ((1, 1, 1), (3, 17, 5), (2, 33, 3), (5, 192, 17)))
def test_quantized_products_err_within_the_bound_of_their_steps(rows: int, k: int, n: int) -> None:
    """|error| <= sum over k of |x| step_w / 2 + |w_q| step_x / 2 (half a step each), beside float32's own rounding."""
    rng = np.random.default_rng([rows, k, n])
    x, w = rng.standard_normal((rows, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    graph = Graph({"y": e.matmul(e.input("x", x.shape), e.weight("w", w.shape))})
    program = Program({"f": graph}, {"w": w}, recipe={"w": "w8a8"})
    quantized = run(program, (quantize_products,))
    found = interp.run(quantized.entries["f"], {"x": x}, quantized.weights)["y"].astype(np.float64)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    w_i8, step_w = (quantized.weights[f"w/{name}"].astype(np.float64) for name in ("i8", "scale"))
    step_x = np.abs(x).max(-1, keepdims=True).astype(np.float64) / 127
    bound = np.abs(x) @ np.ones_like(w) * step_w / 2 + step_x / 2 * np.abs(w_i8 * step_w).sum(0)
    # the steps themselves, x * (1 / step) and four products are rounded: each by 2^-24 of what it holds
    rounding = 8 * 2.0**-24 * (np.abs(x) @ np.abs(w_i8 * step_w) + np.abs(exact))
    assert np.all(np.abs(found - exact) <= bound + rounding)
    assert np.abs(w_i8).max() == 127 and quantized.weights["w/scale"].shape == (1, n)


def test_quantizing_a_column_of_zeros_stays_finite() -> None:
    w = np.zeros((4, 2), np.float32)
    w[:, 1] = 1.0
    q, scale, total = quantize_weight(w)
    assert np.isfinite(scale).all() and q.T.tolist() == [[0] * 4, [127] * 4] and total.tolist() == [[0.0, 4.0]]
    x = e.input("x", (1, 4))
    program = Program({"f": Graph({"y": e.matmul(x, e.weight("w", w.shape))})}, {"w": w}, recipe={"w": "w8a8"})
    quantized = run(program, (quantize_products,))
    found = interp.run(quantized.entries["f"], {"x": np.zeros((1, 4), np.float32)}, quantized.weights)["y"]
    np.testing.assert_array_equal(found, np.zeros((1, 2), np.float32))


# ---------------------------------------------------------------------------------------------- single passes


def test_constants_fold_into_one_weight_and_scalars_stay_scalars() -> None:
    mask = e.select(e.less_equal(e.iota((3, 3), 1), e.iota((3, 3), 0)), e.const(0.0), -1e30)
    half = e.mul(e.reshape(e.weight("h", (1,)), ()), 0.5)
    x = e.input("x", (3, 3))
    graph = Graph({"y": e.add(e.mul(x, half), mask), "z": e.add(mask, x)})
    program = run(Program({"f": graph}, {"h": np.ones(1, np.float32)}), EXACT)
    graph = program.entries["f"]
    assert {n.op for n in graph.order()} == {"input", "const", "weight", "mul", "add"}
    (name,) = graph.weights()
    np.testing.assert_array_equal(program.weights[name], np.triu(np.full((3, 3), -1e30, np.float32), 1))


def test_reshapes_of_leading_dimensions_meet_their_inverse() -> None:
    x = e.input("x", (4, 3, 5))
    rows = e.reshape(x, (12, 5))
    y = e.reshape(e.gelu(e.add(e.matmul(rows, e.weight("w", (5, 7))), e.weight("b", (7,)))), (4, 3, 7))
    graph = run(programs.program_of({"f": Graph({"y": y})}), EXACT[:1]).entries["f"]
    assert "reshape" not in {n.op for n in graph.order()}


# ---------------------------------------------------------------------------------------------- what verify catches


def _nested(node: Node) -> Node:
    body = Graph({"a": node})
    return e.repeat(2, body, {"a": e.input("a", (2,))})["a"]


def _wrong_shape() -> tuple[Node, dict]:
    return intern("neg", (e.input("a", (2,)),), (), (3,), "f32"), {}


def _wrong_dtype() -> tuple[Node, dict]:
    return intern("add", (e.input("a", (2,)), e.input("b", (2,))), (), (2,), "i32"), {}


def _unknown() -> tuple[Node, dict]:
    return intern("conv", (e.input("a", (2,)),), (), (2,), "f32"), {}


def _missing() -> tuple[Node, dict]:
    return e.weight("w", (2,)), {}


def _other_shape() -> tuple[Node, dict]:
    return e.weight("w", (2,)), {"w": np.zeros((2, 1), np.float32)}


def _other_dtype() -> tuple[Node, dict]:
    return e.weight("w", (2,)), {"w": np.zeros(2, np.float64)}


def _not_finite() -> tuple[Node, dict]:
    return e.weight("w", (2,)), {"w": np.array([1, np.nan], np.float32)}


PLANTED: dict[Callable[[], tuple[Node, dict]], str] = {
    _wrong_shape: "<neg f32[3]> breaks a rule: shape and dtype follow from the op's rule",
    _wrong_dtype: "<add i32[2]> breaks a rule: shape and dtype follow from the op's rule",
    _unknown: "<conv f32[2]> breaks a rule: every op is a row of the table",
    _missing: "breaks a rule: weight 'w' is in the program's weights",
    _other_shape: "breaks a rule: weight 'w' is float32[2, 1]",
    _other_dtype: "breaks a rule: weight 'w' is float64[2]",
    _not_finite: "weight 'w' holds NaN or Inf",
}


@pytest.mark.parametrize("nested", (False, True))
@pytest.mark.parametrize("plant", PLANTED, ids=lambda f: f.__name__)
def test_verify_names_node_rule_and_step(plant: Callable, nested: bool) -> None:
    node, weights = plant()
    root = _nested(node) if nested and node.shape == (2,) and node.dtype == "f32" else node
    ours = BrokenProgram if plant is not _not_finite else EdgewmError  # a checkpoint with NaN is its owner's fault
    with pytest.raises(ours) as found:
        verify(Program({"plan": Graph({"y": root})}, weights), "a planted step")
    assert PLANTED[plant] in str(found.value) and "after a planted step" in str(found.value)


def test_the_runner_names_the_step_that_broke_a_rule() -> None:
    def break_shapes(program: Program) -> Program:
        return program.with_(entries={"f": Graph({"y": _wrong_shape()[0]})})

    with pytest.raises(BrokenProgram, match=r"breaks a rule.*entry 'f', after break_shapes") as found:
        run(Program({"f": Graph({"y": e.input("x", (2,))})}, {}), (break_shapes,))
    found.value.last_program.unlink()


def test_a_step_that_fails_leaves_the_last_good_program_to_read() -> None:
    def fail(program: Program) -> Program:
        raise ZeroDivisionError

    program = Program({"f": Graph({"y": e.neg(e.input("x", (2,)))})}, {})
    with pytest.raises(ZeroDivisionError) as found:
        run(program, (EXACT[0], fail))
    text = found.value.last_program.read_text()
    assert text.startswith(f"program after {EXACT[0].__name__}") and "neg(x)" in text
    found.value.last_program.unlink()


def test_the_log_tells_what_each_step_changed(before: dict[str, Program]) -> None:
    log = run(before[LOWERING[-1].__name__], LOWERING[-1:]).log
    assert [line.step for line in log] == [step.__name__ for step in PIPELINE]
    for kind in ("nodes", "weight_bytes", "flops"):
        pairs = [getattr(line, kind) for line in log]
        assert [after for _, after in pairs[:-1]] == [before for before, _ in pairs[1:]]

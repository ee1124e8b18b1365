"""ONNX Runtime on exported graphs against the oracle: each step on the same inputs, and whole entries.

A step's error is held against what rounding can do in it: nothing where IEEE says what the result is, and computed from
the length and the magnitudes elsewhere.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import tiny
from fixtures_models import rounding
from programs import BINARY, UNARY, drawn, inputs_of, numbers, program_of, transformer

from edgewm import expr as e
from edgewm import interp, onnx_graph
from edgewm.errors import EdgewmError
from edgewm.idioms import Step, steps
from edgewm.iteration import NOISE, split
from edgewm.onnx_graph import DECOMPOSED, EMIT, OPSETS, export
from edgewm.ops import TABLE, make
from edgewm.program import Graph, Node, rewrite

MISSING = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} missing; pip install 'edgewm[onnx]'")
UNIT = 2.0**-24
POLYNOMIAL = 8  # rounding units of one transcendental, in the oracle and elsewhere
LEAVES = ("input", "weight", "const", "iota")
RANDOM = ("bitcast", "mulhi", "shl", "shr")

Arrays = dict[str, np.ndarray]


def answers(graph: Graph, inputs: Arrays, weights: Arrays, opset: int = OPSETS[-1]) -> Arrays:
    """What ONNX Runtime makes of the exported graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    model = export(graph, weights, opset).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    found = session.run(list(graph.outputs), {name: inputs[name] for name in names})
    return dict(zip(graph.outputs, found, strict=True))


# ----------------------------------------------------------------------------------------------- what rounding explains


def bound(step: Step, sources: list[np.ndarray], real: np.ndarray) -> np.ndarray | float:
    """The greatest error of a step's result in float32, given its sources and its result in float64."""
    x = np.abs(sources[0]) if sources else np.zeros(())
    if step.op == "matmul":
        return sources[0].shape[-1] * UNIT * np.matmul(x, np.abs(sources[1]))
    if step.op in ("sum", "mean"):
        axis = step.attrs["axis"]
        whole = x.sum(axis, keepdims=True) / (x.shape[axis] if step.op == "mean" else 1)
        return (x.shape[axis] + 1) * UNIT * whole
    if step.op == "softmax":
        axis = step.attrs["axis"]
        away = x.max(axis, keepdims=True) * 2
        return (x.shape[axis] + 2 * POLYNOMIAL + away) * UNIT * real + np.finfo(np.float32).tiny
    if step.op in ("normalised", "layer_norm"):
        return _norm_bound(step, sources, real)
    if step.op == "fma":
        return 2 * UNIT * (x * np.abs(sources[1]) + np.abs(sources[2]))
    if TABLE[step.op].expand is not None if step.op in TABLE else True:
        return 2 * POLYNOMIAL * UNIT * np.maximum(1.0, np.maximum(np.abs(real), x))
    return 0.0


def _norm_bound(step: Step, sources: list[np.ndarray], real: np.ndarray) -> np.ndarray:
    x = sources[0].astype(np.float64)
    n, centred = x.shape[-1], x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + step.attrs["eps"])
    wrong = (n + 4) * UNIT * np.abs(x).max(-1, keepdims=True) / deviation  # of the centred values
    y = np.abs(centred / deviation)
    of_y = wrong * (1 + y) + (n + 4) * UNIT * y
    if step.op == "normalised":
        return of_y
    scale, shift = (np.abs(w) for w in sources[1:])
    return of_y * scale + 2 * UNIT * (y * scale + shift)


# --------------------------------------------------------------------------------------------------------- single steps


def cut(graph: Graph) -> tuple[dict[str, Step], Graph]:
    """Each step of the graph on inputs of its own: `s<i>` reads `s<i>_<j>` in the place of its j-th source."""
    found: dict[str, Step] = {}
    outputs: dict[str, Node] = {}
    for i, step in enumerate(steps(graph, DECOMPOSED)):
        kinds = {step.out.dtype, *(s.dtype for s in step.sources)}
        if step.op in (*LEAVES, *RANDOM, "repeat", "get") or "u32" in kinds:
            continue
        free = [(j, s) for j, s in enumerate(step.sources) if s.op not in ("const", "weight")]
        leaves = {s: e.input(f"s{i}_{j}", s.shape, s.dtype) for j, s in free}

        def rule(node: Node, sources: tuple[Node, ...], leaves: dict[Node, Node] = leaves) -> Node:
            return leaves.get(node) or make(node.op, *sources, **dict(node.attrs))

        found[f"s{i}"] = step
        outputs |= rewrite({f"s{i}": step.out}, rule)
    return found, Graph(outputs)


@functools.cache
def programs() -> list[Graph]:
    """Drawn ones, and one that holds every element-wise formula and every norm."""
    x, y = e.input("x", (3, 5)), e.input("y", (3, 5))
    w, b, m = e.weight("w", (5,)), e.weight("b", (5,)), e.weight("m", (5, 4))
    whole, truth = e.cast(e.mul(x, 9.0), "i32"), (e.less(x, y), e.less_equal(y, 0.5))
    formulas = [f(x) for f in UNARY] + [f(x, y) for f in BINARY]
    formulas += [f(a, b) for f in (e.bit_and, e.bit_or, e.xor) for a, b in (truth, (whole, e.add(whole, 3)))]
    formulas += [e.narrow(x, 1, 1, 3), e.narrow(whole, 0, 1, 3)]
    formulas += [e.add(e.mul(e.normalised(x, 1e-5, -1), w), b), e.add(e.matmul(x, m), e.weight("c", (4,)))]
    levels, size = e.weight("l", (5, 4), "i8"), e.weight("s", (1, 4))
    formulas += [e.fake_quantized(x, 0.015625), e.matmul(x, e.dequantized(levels, size))]
    every = Graph({f"f{i}": node for i, node in enumerate(formulas)})
    return [every, *drawn(40, 21)]


@needs_onnx
@pytest.mark.parametrize("first", range(0, 41, 8))
def test_every_step_of_drawn_programs(first: int) -> None:
    for graph in programs()[first : first + 8]:
        assert wrong(graph) == []


def wrong(graph: Graph) -> list[str]:
    """Steps whose answer is further from the oracle's than rounding explains."""
    program, (found, alone) = program_of({"g": graph}), cut(graph)
    if not found:
        return []
    order = graph.order()
    values = interp.run(Graph({str(i): n for i, n in enumerate(order)}), inputs_of(graph), program.weights)
    value = {node: np.asarray(values[str(i)]) for i, node in enumerate(order)}
    given = {f"{name}_{j}": value[s] for name, step in found.items() for j, s in enumerate(step.sources)}
    real = interp.run(alone, given, program.weights, real=True)
    lines = []
    for name, answer in answers(alone, given, program.weights).items():
        step, wanted = found[name], np.asarray(real[name])
        least = bound(step, [value[s] for s in step.sources], wanted)
        if not np.any(least):  # the oracle's own bits
            wanted = value[step.out]
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(answer.astype(np.float64) - wanted)
        alike = (answer == wanted) | (np.isnan(apart) & np.isnan(answer.astype(np.float64)))
        if not np.all(alike | (apart <= least)):
            lines.append(f"{step.op} is off by {np.nanmax(apart)}")
    return lines


def test_the_drawn_programs_hold_nearly_every_op() -> None:
    seen = {step.op for graph in programs() for step in cut(graph)[0].values()}
    apart = {*LEAVES, "repeat", "get"}
    assert EMIT.keys() - seen <= apart, EMIT.keys() - seen - apart


def test_a_wrong_operator_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison finds a planted fault: a mean that divides by one too few, a sine of another period."""
    if MISSING:
        pytest.skip(f"{' and '.join(MISSING)} missing; pip install 'edgewm[onnx]'")
    x = e.input("x", (3, 5))
    graph = Graph({"a": e.mean(x, 1), "b": e.sin2pi(e.absolute(e.tanh(x)))})
    monkeypatch.setitem(EMIT, "mean", EMIT["sum"])
    monkeypatch.setitem(EMIT, "sin2pi", EMIT["cos2pi"])
    assert {line.split()[0] for line in wrong(graph)} == {"mean", "sin2pi"}


# ------------------------------------------------------------------------------------------------------- whole entries


@needs_onnx
@pytest.mark.parametrize("opset", OPSETS)
def test_a_transformer_with_selection_and_refit(opset: int) -> None:
    program = transformer(5, 3, 16, 2, 8, 2)
    graph = program.entries["score"]
    given = inputs_of(graph)
    real = interp.run(graph, given, program.weights, real=True)
    found = answers(graph, given, program.weights, opset)
    for name in ("y", "cost"):
        error = np.abs(found[name] - real[name]).max() / np.abs(real[name]).max()
        assert error <= rounding(Graph({name: graph.outputs[name]}), np.float32)
    assert np.array_equal(found["best"], real["best"]) and found["best"].dtype == np.int32


@needs_onnx
def test_an_iteration_and_an_encoding_of_lewm() -> None:
    program = tiny.exact()
    _, iterate = split(program.entries["plan_with_noise"])
    for graph in (iterate, program.entries["encode"]):
        given = inputs_of(graph)
        real = interp.run(graph, given, program.weights, real=True)
        found = answers(graph, given, program.weights)
        assert found.keys() == real.keys()
        for name, wanted in real.items():
            if wanted.dtype.kind == "i":
                assert np.array_equal(found[name], wanted)
            else:
                error = np.abs(found[name] - wanted).max() / np.abs(wanted).max()
                assert error <= rounding(Graph({name: graph.outputs[name]}), np.float32), name


@needs_onnx
def test_ties_and_faults_rank_as_the_oracle_ranks_them() -> None:
    graph = Graph({"best": e.topk(e.input("cost", (6,)), 4)})
    for cost in ([2, 1, 2, 1, 2, 0], [math.nan, 3, math.nan, 1, 2, 0], [math.inf, 1, math.nan, 5, 2, 0]):
        given = {"cost": np.array(cost, np.float32)}
        assert np.array_equal(answers(graph, given, {})["best"], interp.run(graph, given, {})["best"])


@needs_onnx
@pytest.mark.parametrize("nested", [False, True])
def test_a_loop(nested: bool) -> None:
    """Two carries that change places, an invariant, the counter, and values that are no carries; all whole numbers."""
    a, b, fixed = (e.input(name, (2, 3)) for name in ("a", "b", "fixed"))
    counter = e.cast(e.cast(e.input("counter", (), "u32"), "i32"), "f32")
    inner = e.add(e.mul(a, 2.0), e.add(fixed, counter))
    if nested:
        again = Graph({"c": e.add(e.input("c", (2, 3)), e.input("step", (2, 3)))})
        inner = e.repeat(3, again, {"c": inner}, {"step": fixed})["c"]
    body = Graph({"a": b, "b": inner, "sum": e.reduce_sum(inner, 1), "fixed": fixed})
    x, y, z = (e.input(name, (2, 3)) for name in "xyz")
    found = e.repeat(4, body, {"a": x, "b": y}, {"fixed": z})
    graph = Graph({"p": found["a"], "q": found["b"], "r": found["sum"], "s": found["fixed"]})
    given = {name: np.arange(6, dtype=np.float32).reshape(2, 3) + i for i, name in enumerate("xyz")}
    wanted = interp.run(graph, given, {})
    for name, answer in answers(graph, given, {}).items():
        assert np.array_equal(answer, wanted[name])


@needs_onnx
def test_outputs_that_are_leaves_or_one_value_twice() -> None:
    x, w = e.input("x", (3,)), e.weight("w", (3,))
    y = e.neg(x)
    graph = Graph({"same": x, "held": w, "y": y, "again": y, "one": e.const(1.0)})
    given, weights = {"x": numbers("x", (3,))}, {"w": numbers("w", (3,))}
    wanted = interp.run(graph, given, weights)
    assert all(np.array_equal(v, wanted[k]) for k, v in answers(graph, given, weights).items())


@needs_onnx
def test_integer_products_are_exact() -> None:
    graph = Graph({"y": e.matmul(e.input("x", (4, 33), "i8"), e.weight("w", (33, 5), "i8"))})
    given = {"x": numbers("x", (4, 33), "i8")}
    weights = {"w": numbers("w", (33, 5), "i8")}
    assert np.array_equal(answers(graph, given, weights)["y"], interp.run(graph, given, weights)["y"])


@needs_onnx
def test_the_same_graph_gives_the_same_bytes_and_ports_keep_their_names() -> None:
    program = tiny.exact()
    _, iterate = split(program.entries["plan_with_noise"])
    first, second = (export(iterate, program.weights) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    assert {i.name for i in first.graph.input} == iterate.inputs().keys() and NOISE in iterate.inputs()
    assert [o.name for o in first.graph.output] == list(iterate.outputs)
    stored = {i.name for i in first.graph.initializer}
    assert stored.issuperset(iterate.weights())


# ------------------------------------------------------------------------------------------------------------- refusals


REFUSED: dict[str, tuple[Callable[[], Graph], int, str]] = {
    "an opset": (lambda: Graph({"y": e.neg(e.input("x", (2,)))}), 17, "opset 17"),
    "bits": (lambda: Graph({"y": e.bitcast(e.input("x", (2,)), "u32")}), 20, "op bitcast on u32 has no counterpart"),
    "random numbers": (
        lambda: Graph({"y": e.xor(e.input("x", (2,), "u32"), 3)}), 20, "op xor on u32 has no counterpart",
    ),
    "an input as an output": (
        lambda: Graph({"x": e.neg(e.input("x", (2,)))}), 20, "x: an input and an output",
    ),
}  # fmt: skip


@needs_onnx
@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    build, opset, words = REFUSED[case]
    with pytest.raises(EdgewmError, match=words):
        export(build(), {}, opset)


@needs_onnx
def test_a_plan_that_draws_its_own_noise_is_refused() -> None:
    program = tiny.exact()
    graph = Graph({"actions": program.entries["plan"].outputs["actions"]})
    with pytest.raises(EdgewmError, match="has no counterpart in ONNX") as fault:
        export(graph, program.weights)
    assert "noise from a port" in fault.value.fix


def test_without_onnx_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EdgewmError, match="onnx is not installed") as fault:
        onnx_graph.export(Graph({"y": e.neg(e.input("x", (2,)))}), {})
    assert fault.value.fix == "pip install 'edgewm[onnx]'"

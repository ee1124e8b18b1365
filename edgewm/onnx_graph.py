"""A graph of the op table as an ONNX model, opset 18 to 20, in operators of the standard alone.

One row of `EMIT` for each op and each idiom (`edgewm/idioms.py`); weights become initialisers under their own names;
attention is decomposed; values in eight bits are symmetric QuantizeLinear and DequantizeLinear; a loop is a `Loop`.
Random numbers stay outside: Philox needs the bits of floats, which ONNX does not give, so a plan's noise enters through
a port.

Where a comparison meets NaN, ONNX leaves the answer open; costs that are NaN rank with +inf here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import EdgewmError
from .idioms import Step, steps
from .ops import NUMPY, const_value
from .program import Graph, Node

if TYPE_CHECKING:
    import onnx

OPSETS = (18, 19, 20)
DECOMPOSED = ("attention", "linear")  # what runtimes put together themselves
ELEMENTS = {"f32": "FLOAT", "i32": "INT32", "u32": "UINT32", "i8": "INT8", "u8": "UINT8", "bool": "BOOL"}


def export(graph: Graph, weights: Mapping[str, np.ndarray], opset: int = OPSETS[-1]) -> onnx.ModelProto:
    """The graph as a checked ONNX model: inputs, outputs and weights keep their names, shapes and dtypes.

    The same graph gives the same bytes. Raises EdgewmError for an opset outside 18 to 20, for an op without a
    counterpart (the bits of a float, unsigned arithmetic: random numbers; a fused kernel), for an output that has an
    input's name, and where onnx is missing.
    """
    if opset not in OPSETS:
        raise EdgewmError(f"opset {opset}", "export to ONNX", f"give one of {', '.join(map(str, OPSETS))}")
    helper = _onnx().helper
    if both := graph.inputs().keys() & graph.outputs.keys():
        raise EdgewmError(
            f"{', '.join(sorted(both))}: an input and an output", "export to ONNX", "name the output otherwise"
        )
    sheet = Sheet(weights, opset)
    for name, leaf in graph.inputs().items():
        sheet.values[leaf] = name
        sheet.taken.add(name)
    sheet.taken |= graph.outputs.keys()
    write(sheet, graph, {name: name for name in graph.outputs})
    inputs = [_value_info(name, leaf) for name, leaf in graph.inputs().items()]
    outputs = [_value_info(name, node) for name, node in graph.outputs.items()]
    made = helper.make_graph(sheet.nodes, "edgewm", inputs, outputs, list(sheet.initialisers.values()))
    model = helper.make_model(
        made, producer_name="edgewm", opset_imports=[helper.make_opsetid("", opset)],
        ir_version=helper.OP_SET_ID_VERSION_MAP["ai.onnx", opset],
    )  # fmt: skip
    _onnx().checker.check_model(model, full_check=True)
    return model


@dataclass(eq=False)
class Sheet:
    """A model while it is written; the body of a loop has its own `nodes` and `values` and shares the rest."""

    weights: Mapping[str, np.ndarray]
    opset: int
    nodes: list[Any] = field(default_factory=list)
    values: dict[Node, Any] = field(default_factory=dict)  # name by node; of a loop, names of its outputs by theirs
    initialisers: dict[tuple, Any] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    numbers: count = field(default_factory=count)

    def fresh(self, stem: str) -> str:
        """A name that nothing has."""
        return next(n for n in (f"{stem}_{i}" for i in self.numbers) if n not in self.taken)

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Append one node; the name of its first output."""
        name = self.fresh(op)
        self.nodes.append(_onnx().helper.make_node(op, inputs, [name], name, **attrs))
        return name

    def array(self, value: np.ndarray, name: str = "") -> str:
        """An initialiser; equal arrays without a name of their own share one."""
        value = np.asarray(value, order="C")
        key = (name,) if name else (value.shape, str(value.dtype), hashlib.sha256(value.tobytes()).digest())
        if key not in self.initialisers:
            stem = name if name and name not in self.taken else self.fresh(name or "constant")
            self.taken.add(stem)
            self.initialisers[key] = _onnx().numpy_helper.from_array(value, stem)
        return self.initialisers[key].name

    def integers(self, *values: int) -> str:
        return self.array(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.array(np.array(value, np.float32))


def write(sheet: Sheet, graph: Graph, outputs: Mapping[str, str]) -> None:
    """Append the graph's nodes; each of its outputs ends under the name that `outputs` gives."""
    wanted: dict[Node, str] = {}
    for name, node in graph.outputs.items():
        wanted.setdefault(node, outputs[name])
    for step in steps(graph, without=DECOMPOSED):
        if step.op == "input":
            continue
        emit = EMIT.get(step.op)
        if emit is None or (step.out.dtype == "u32" and step.op not in UNSIGNED):
            raise EdgewmError(
                f"op {step.op} on {step.out.dtype} has no counterpart in ONNX", f"export to ONNX, {step.out!r}",
                "export the graph after the exact passes, before kernels, with its noise from a port",
            )  # fmt: skip
        before = len(sheet.nodes)
        made = emit(sheet, step, [sheet.values[s] for s in step.sources])
        if step.out in wanted and len(sheet.nodes) > before and sheet.nodes[-1].output[0] == made:
            made = sheet.nodes[-1].output[0] = wanted[step.out]
        sheet.values[step.out] = made
    for name, node in graph.outputs.items():
        if sheet.values[node] != outputs[name]:  # a leaf, or under two names
            sheet.nodes.append(_onnx().helper.make_node("Identity", [sheet.values[node]], [outputs[name]]))


# ----------------------------------------------------------------------------------------------------------- the table


Emit = Callable[[Sheet, Step, list[str]], Any]
UNSIGNED = ("input", "weight", "const", "iota", "cast", "get", "reshape", "expand")


def _plain(op: str) -> Emit:
    return lambda sheet, step, names: sheet.add(op, *names)


def _bits(of_bool: str, of_integer: str) -> Emit:
    return lambda sheet, step, names: sheet.add(of_bool if step.out.dtype == "bool" else of_integer, *names)


def _reduced(op: str) -> Emit:
    return lambda sheet, step, names: sheet.add(op, *names, sheet.integers(step.attrs["axis"]))


def _iota(sheet: Sheet, step: Step, names: list[str]) -> str:
    shape, axis, dtype = (step.attrs[k] for k in ("shape", "axis", "dtype"))
    line = np.arange(shape[axis], dtype=NUMPY[dtype]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return sheet.add("Expand", sheet.array(line), sheet.integers(*shape))


def _cast(sheet: Sheet, step: Step, names: list[str]) -> str:
    return sheet.add("Cast", *names, to=_element(step.out.dtype))


def _slice(sheet: Sheet, step: Step, names: list[str]) -> str:
    ends = (sheet.integers(step.attrs[key]) for key in ("start", "stop", "axis"))
    return sheet.add("Slice", *names, *ends)


def _topk(sheet: Sheet, step: Step, names: list[str]) -> str:
    """Ascending in index; TopK itself breaks ties by index."""
    (cost,), k = names, sheet.integers(step.attrs["k"])
    ranked = sheet.add("Where", sheet.add("IsNaN", cost), sheet.number(math.inf), cost)
    best = _smallest(sheet, ranked, k)[1]
    return sheet.add("Cast", _smallest(sheet, best, k)[0], to=_element("i32"))


def _smallest(sheet: Sheet, x: str, k: str) -> tuple[str, str]:
    """The k smallest of a vector, ascending, and their indices."""
    names = sheet.fresh("TopK"), sheet.fresh("TopK")
    sheet.nodes.append(_onnx().helper.make_node("TopK", [x, k], names, names[0], axis=0, largest=0, sorted=1))
    return names


def _fma(sheet: Sheet, step: Step, names: list[str]) -> str:
    return sheet.add("Add", sheet.add("Mul", *names[:2]), names[2])


def _turning(op: str) -> Emit:
    return lambda sheet, step, names: sheet.add(op, sheet.add("Mul", *names, sheet.number(2 * math.pi)))


def _matmul(sheet: Sheet, step: Step, names: list[str]) -> str:
    return sheet.add("MatMulInteger" if step.sources[0].dtype == "i8" else "MatMul", *names)


def _norm(sheet: Sheet, step: Step, names: list[str]) -> str:
    affine = names[1:] or [sheet.array(np.ones(step.out.shape[-1], np.float32))]
    return sheet.add("LayerNormalization", names[0], *affine, axis=-1, epsilon=step.attrs["eps"])


def _gelu(sheet: Sheet, step: Step, names: list[str]) -> str:
    if sheet.opset >= 20:
        return sheet.add("Gelu", *names)
    phi = sheet.add("Erf", sheet.add("Mul", *names, sheet.number(math.sqrt(0.5))))
    return sheet.add("Mul", sheet.add("Mul", *names, sheet.number(0.5)), sheet.add("Add", phi, sheet.number(1.0)))


def _fake_quantized(sheet: Sheet, step: Step, names: list[str]) -> str:
    size, zero = sheet.number(step.attrs["step"]), sheet.array(np.array(0, np.int8))
    return sheet.add("DequantizeLinear", sheet.add("QuantizeLinear", *names, size, zero), size, zero)


def _dequantized(sheet: Sheet, step: Step, names: list[str]) -> str:
    sizes = sheet.array(sheet.weights[step.attrs["step"]].reshape(-1), step.attrs["step"])
    return sheet.add("DequantizeLinear", *names, sizes, sheet.array(np.zeros(step.out.shape[-1:], np.int8)), axis=1)


def _repeat(sheet: Sheet, step: Step, names: list[str]) -> dict[str, str]:
    """A Loop. What the body makes beside its carries is carried along too, so that its last value comes out."""
    helper, body, carries = _onnx().helper, step.attrs["body"], step.attrs["carries"]
    beside = [name for name in body.outputs if name not in carries]
    carried = [*carries, *beside]
    inner = Sheet(sheet.weights, sheet.opset, initialisers=sheet.initialisers, taken=sheet.taken, numbers=sheet.numbers)
    round_, going, still = (sheet.fresh(stem) for stem in ("round", "going", "still"))
    enter = {name: sheet.fresh("enter") for name in carried}
    leave = {name: sheet.fresh("leave") for name in carried}
    bound = dict(zip((*carries, *step.attrs["invariants"]), names, strict=True)) | {n: enter[n] for n in carries}
    for name, leaf in body.inputs().items():
        inner.values[leaf] = inner.add("Cast", round_, to=_element("u32")) if name == "counter" else bound[name]
    inner.nodes.append(helper.make_node("Identity", [going], [still]))
    write(inner, body, leave)
    scalar = [helper.make_tensor_value_info(n, _element(t), ()) for n, t in ((round_, "i64"), (going, "bool"))]
    graph = helper.make_graph(
        inner.nodes, "body", [*scalar, *(_value_info(enter[n], body.outputs[n]) for n in carried)],
        [helper.make_tensor_value_info(still, _element("bool"), ()),
         *(_value_info(leave[n], body.outputs[n]) for n in carried)],
    )  # fmt: skip
    start = [*names[: len(carries)]]
    start += [sheet.array(np.zeros(body.outputs[n].shape, NUMPY[body.outputs[n].dtype])) for n in beside]
    found = {name: sheet.fresh("Loop") for name in carried}
    times = sheet.array(np.array(step.attrs["count"], np.int64))
    name = sheet.fresh("Loop")
    sheet.nodes.append(helper.make_node("Loop", [times, "", *start], [*found.values()], name, body=graph))
    return found


EMIT: dict[str, Emit] = {
    op: _plain(name) for op, name in {
        "neg": "Neg", "abs": "Abs", "sqrt": "Sqrt", "rint": "Round", "floor": "Floor", "add": "Add", "sub": "Sub",
        "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "lt": "Less", "le": "LessOrEqual", "eq": "Equal",
        "where": "Where", "exp": "Exp", "log": "Log", "erf": "Erf", "tanh": "Tanh", "sigmoid": "Sigmoid",
        "softplus": "Softplus",
    }.items()
} | {
    "weight": lambda sheet, step, names: sheet.array(sheet.weights[step.attrs["name"]], step.attrs["name"]),
    "const": lambda sheet, step, names: sheet.array(np.array(const_value(step.out), NUMPY[step.out.dtype])),
    "iota": _iota, "cast": _cast, "fma": _fma, "sin2pi": _turning("Sin"), "cos2pi": _turning("Cos"),
    "and": _bits("And", "BitwiseAnd"), "or": _bits("Or", "BitwiseOr"), "xor": _bits("Xor", "BitwiseXor"),
    "reshape": lambda sheet, step, names: sheet.add("Reshape", *names, sheet.integers(*step.out.shape)),
    "permute": lambda sheet, step, names: sheet.add("Transpose", *names, perm=step.attrs["axes"]),
    "expand": lambda sheet, step, names: sheet.add("Expand", *names, sheet.integers(*step.out.shape)),
    "slice": _slice,
    "concat": lambda sheet, step, names: sheet.add("Concat", *names, axis=step.attrs["axis"]),
    "take": lambda sheet, step, names: sheet.add("Gather", *names, axis=0),
    "topk": _topk,
    "sum": _reduced("ReduceSum"), "reduce_max": _reduced("ReduceMax"), "mean": _reduced("ReduceMean"),
    "matmul": _matmul,
    "softmax": lambda sheet, step, names: sheet.add("Softmax", *names, axis=step.attrs["axis"]),
    "normalised": _norm, "layer_norm": _norm, "gelu": _gelu,
    "silu": lambda sheet, step, names: sheet.add("Mul", *names, sheet.add("Sigmoid", *names)),
    "fake_quantized": _fake_quantized, "dequantized": _dequantized,
    "repeat": _repeat,
    "get": lambda sheet, step, names: names[0][step.attrs["name"]],
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- onnx


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as missing:
        raise EdgewmError("onnx is not installed", "export to ONNX", "pip install 'edgewm[onnx]'") from missing
    return onnx


def _element(dtype: str) -> int:
    return getattr(_onnx().TensorProto, "INT64" if dtype == "i64" else ELEMENTS[dtype])


def _value_info(name: str, node: Node) -> Any:
    return _onnx().helper.make_tensor_value_info(name, _element(node.dtype), node.shape)

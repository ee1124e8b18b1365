"""An ONNX file as a Network: its products, attentions, convolutions and row-wise passes, by inferred shapes.

Element-wise operators are taken to be fused into what comes before them, views to cost nothing. A product of two values
that no weight enters is an attention's, one of two. Needs the `onnx` package, which only this file imports.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ..errors import EdgewmError
from .network import Kernel, Network

CONTROL = ("If", "Loop", "Scan")
ROWS = (
    "LayerNormalization", "RMSNormalization", "SkipLayerNormalization", "InstanceNormalization", "GroupNormalization",
    "Softmax", "ReduceMean", "ReduceSum", "ReduceMax", "LogSoftmax", "Resize", "MaxPool", "AveragePool",
    "GlobalAveragePool", "TopK",
)  # fmt: skip
Shape = tuple[int, ...]


def read_network(file: Path) -> Network:
    """The network of one ONNX file, whose input shapes must be fixed.

    Raises EdgewmError where onnx is missing, for what is no ONNX, for control flow and for shapes that are not known.
    """
    if importlib.util.find_spec("onnx") is None:
        raise EdgewmError("reading ONNX needs the onnx package", str(file), "pip install onnx")
    import onnx

    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(str(file), load_external_data=False), data_prop=True)
    except Exception as fault:  # protobuf, onnx and the file system each have their own
        what = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise EdgewmError(f"cannot read ONNX: {what}", str(file), "give a whole ONNX file") from fault
    weights = {w.name: tuple(w.dims) for w in model.graph.initializer}
    known = {**_value_shapes(model.graph), **weights}
    _propagate_constants(model.graph, weights)
    kernels = []
    for node in model.graph.node:
        if node.op_type in CONTROL:
            where = f"{file}, node {node.name!r}"
            raise EdgewmError(f"{node.op_type} in the graph", where, "unroll it and export again")
        reader = READERS.get(node.op_type) or (_rows if node.op_type in ROWS else None)
        if reader is not None:
            kernels.append(reader(node, _Shapes(known, file, node), weights))
    if not kernels:
        raise EdgewmError("no product in the graph", str(file), "give a network with MatMul, Gemm or Conv")
    return Network(file.name, tuple(kernels), "shapes inferred by onnx")


class _Shapes:
    """Shape of a value by name; EdgewmError where the file does not fix it."""

    def __init__(self, known: Mapping[str, Shape], file: Path, node: Any):
        self.known, self.file, self.node = known, file, node

    def __getitem__(self, name: str) -> Shape:
        shape = self.known.get(name)
        if shape is None or any(d < 1 for d in shape):
            raise EdgewmError(
                f"the shape of {name!r} is not fixed", f"{self.file}, node {self.node.name or self.node.op_type!r}",
                "export with fixed sizes, or fix them with python -m onnxruntime.tools.make_dynamic_shape_fixed",
            )  # fmt: skip
        return shape


def _value_shapes(graph: Any) -> dict[str, Shape]:
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim)
    return found


def _propagate_constants(graph: Any, weights: dict[str, Shape]) -> None:
    """What is made of weights alone (transposed, cast, dequantized) is a weight too."""
    for node in graph.node:
        if node.op_type == "Constant" or (node.input and all(not name or name in weights for name in node.input)):
            weights.update(dict.fromkeys(node.output, ()))


def _attributes(node: Any) -> dict[str, Any]:
    return {a.name: list(a.ints) if a.ints else a.i for a in node.attribute}


def _matmul(node: Any, shapes: _Shapes, weights: Mapping[str, Shape]) -> Kernel:
    a, b = shapes[node.input[0]], shapes[node.input[1]]
    a, b = ((1, *a) if len(a) == 1 else a), ((*b, 1) if len(b) == 1 else b)
    name = node.name or node.op_type
    if node.input[0] in weights or node.input[1] in weights:
        if node.input[0] in weights:
            a, b = b[::-1], a[::-1]
        batch = prod(b[:-2])
        return Kernel(name, "product", prod(a[:-1]) // batch, b[-1] * batch, b[-2])
    batch = max(prod(a[:-2]), prod(b[:-2]))
    return Kernel(name, "product", a[-2], b[-1], a[-1], batch=batch, is_weight=False)


def _gemm(node: Any, shapes: _Shapes, weights: Mapping[str, Shape]) -> Kernel:
    a, b = shapes[node.input[0]], shapes[node.input[1]]
    turned = _attributes(node)
    m, k = a[::-1] if turned.get("transA") else a
    return Kernel(node.name or "Gemm", "product", m, b[0] if turned.get("transB") else b[1], k)


def _conv(node: Any, shapes: _Shapes, weights: Mapping[str, Shape]) -> Kernel:
    """A convolution of windows that do not overlap is a product."""
    w, out = shapes[node.input[1]], shapes[node.output[0]]
    about = _attributes(node)
    groups, stride = about.get("group", 1), about.get("strides") or [1] * len(w[2:])
    rows, overlap = out[0] * prod(out[2:]), max(1, prod(w[2:]) // max(prod(stride), 1))
    kind = "product" if groups == 1 and overlap == 1 else "convolution"
    return Kernel(node.name or "Conv", kind, rows, w[0], prod(w[1:]), overlap=overlap)


def _attention(node: Any, shapes: _Shapes, weights: Mapping[str, Shape]) -> Kernel:
    """The Attention operator (opset 23): queries and keys (batch, heads, rows, head)."""
    q, k = shapes[node.input[0]], shapes[node.input[1]]
    if len(q) != 4:
        where = f"{shapes.file}, node {node.name!r}"
        raise EdgewmError(f"an Attention of {len(q)} dimensions", where, "export it with heads apart")
    return Kernel(node.name or "Attention", "attention", q[2], k[2], q[3], batch=q[0] * q[1], groups=q[1] // k[1])


def _rows(node: Any, shapes: _Shapes, weights: Mapping[str, Shape]) -> Kernel:
    shape = shapes[node.input[0]]
    return Kernel(node.name or node.op_type, "rows", prod(shape[:-1]), 1, shape[-1])


READERS: Mapping[str, Callable[[Any, _Shapes, Mapping[str, Shape]], Kernel]] = {
    "MatMul": _matmul, "MatMulInteger": _matmul, "Gemm": _gemm, "Conv": _conv, "ConvTranspose": _conv,
    "Attention": _attention,
}  # fmt: skip

"""ONNX Runtime and OpenVINO: a graph as a file, compiled with the threads asked for, in fp32, bf16 and int8.

Quantization sees the planner's own candidates (`Work.calibration`), the search's later iterations included. Where a
peer can be quantized or run in several ways, each is timed for a few rounds and the fastest is kept.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from works import Feeds, Run, Work

from edgewm.onnx_graph import export

TRIALS = 5  # rounds that decide between a peer's own ways
OPSET = 20
LATENCY = {"NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}


def lacking(*modules: str) -> Callable[[], str | None]:
    """Why a peer that needs these modules cannot run here, None where it can."""

    def reason() -> str | None:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        return f"{', '.join(missing)} not installed: pip install 'edgewm[bench]'" if missing else None

    return reason


def model_file(work: Work, graph: str) -> Path:
    """The graph as ONNX, written once: upstream's by torch's exporter, the exact one by edgewm's."""
    file = work.folder / f"{work.name}-{graph}.onnx"
    if not file.exists():
        if graph == "upstream":
            examples = tuple(torch.from_numpy(work.feeds[graph][name]) for name in work.inputs)
            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    work.call, examples, file, dynamo=True, opset_version=OPSET, input_names=list(work.inputs),
                    output_names=list(work.outputs), external_data=False, verbose=False,
                )  # fmt: skip
        else:
            file.write_bytes(export(work.graphs[graph], work.weights[graph], OPSET).SerializeToString())
    return file


def fastest(ways: Mapping[str, Run], feeds: Feeds) -> tuple[Run, str]:
    """The way that took the least time in a few alternating rounds, and its name."""
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(TRIALS):
        for name, run in ways.items():
            began = time.perf_counter()
            run(feeds)
            least[name] = min(least[name], time.perf_counter() - began)
    best = min(least, key=lambda name: least[name])
    return ways[best], best


# -------------------------------------------------------------------------------------------------------- ONNX Runtime


def session(work: Work, file: Path) -> Run:
    """ONNX Runtime with all its optimizations on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = work.threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in made.get_inputs()]

    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        found = made.run(list(work.outputs), {name: feeds[name] for name in names})
        return dict(zip(work.outputs, found, strict=True))

    return run


def onnxruntime_fp32(work: Work, graph: str) -> tuple[Run, str]:
    return session(work, model_file(work, graph)), ""


def onnxruntime_int8(work: Work, graph: str) -> tuple[Run, str]:
    """The faster of its ways to int8."""
    return fastest(onnxruntime_ways(work, graph), work.feeds[graph])


def onnxruntime_ways(work: Work, graph: str) -> dict[str, Run]:
    """Products with weights in int8, by output channel; activations quantized at run time, or by calibration (QDQ)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, feeds: tuple[Feeds, ...], names: list[str]):
            self.left = iter([{name: each[name] for name in names} for each in feeds])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    source = model_file(work, graph)
    ready, dynamic, static = (source.with_suffix(f".{kind}.onnx") for kind in ("ready", "dynamic", "static"))
    if not static.exists():
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        products = {"per_channel": True, "weight_type": QuantType.QInt8, "extra_options": {"MatMulConstBOnly": True}}
        quantize_dynamic(str(ready), str(dynamic), op_types_to_quantize=["MatMul", "Gemm"], **products)
        names = list(work.inputs if graph == "upstream" else work.graphs[graph].inputs())
        quantize_static(
            str(ready), str(static), Reader(work.calibration[graph], names), op_types_to_quantize=["MatMul", "Gemm"],
            activation_type=QuantType.QUInt8, **products,
        )  # fmt: skip
    return {"dynamic": session(work, dynamic), "calibrated": session(work, static)}


# ------------------------------------------------------------------------------------------------------------ OpenVINO


def compiled(work: Work, graph: str, model: object, precision: str) -> Run:
    """OpenVINO on the CPU for latency; `precision` is that of what is not quantized."""
    import openvino

    settings = {**LATENCY, "INFERENCE_NUM_THREADS": work.threads, "INFERENCE_PRECISION_HINT": precision}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    names = input_names(work, graph, request.model_inputs)
    places = {name: i for i, port in enumerate(request.model_outputs) for name in port.names}

    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        found = request.infer([feeds[name] for name in names], share_inputs=True)
        return {name: found[places[name]] for name in work.outputs}

    return run


def input_names(work: Work, graph: str, ports: list) -> list[str]:
    """The work's name of each input port: OpenVINO gives a port every name its value has."""
    return [next(name for name in port.names if name in work.feeds[graph]) for port in ports]


def openvino_float(precision: str) -> Callable[[Work, str], tuple[Run, str]]:
    def start(work: Work, graph: str) -> tuple[Run, str]:
        import openvino

        return compiled(work, graph, openvino.Core().read_model(model_file(work, graph)), precision), ""

    return start


def openvino_int8(work: Work, graph: str) -> tuple[Run, str]:
    """The faster of its ways to int8."""
    return fastest(openvino_ways(work, graph), work.feeds[graph])


def openvino_ways(work: Work, graph: str) -> dict[str, Run]:
    """NNCF's post-training quantization of a transformer; what is left over in fp32 or bf16."""
    import nncf
    import openvino

    source = model_file(work, graph)
    file = source.with_suffix(".nncf.xml")
    if not file.exists():
        nncf.set_log_level("ERROR")
        model = openvino.Core().read_model(source)
        names = input_names(work, graph, model.inputs)
        examples = nncf.Dataset(list(work.calibration[graph]), lambda feeds: [feeds[name] for name in names])
        quantized = nncf.quantize(
            model, examples, subset_size=len(work.calibration[graph]), model_type=nncf.ModelType.TRANSFORMER
        )
        openvino.save_model(quantized, file, compress_to_fp16=False)
    return {f"rest in {p}": compiled(work, graph, openvino.Core().read_model(file), p) for p in ("f32", "bf16")}

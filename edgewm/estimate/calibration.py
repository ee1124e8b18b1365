"""Where the coefficients of `gpu.py` come from: rows of `calibration.csv` and measured facts of boards, nothing else.

A fraction is the median over the rows that show it. Leaving one row out and estimating it from the others is what the
interval comes from, and what `benchmarks/estimate.py --calibration` prints.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, log
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import EdgewmError
from ..target import Measured, Mode, Target, resolve, targets
from .cpu import COVERAGE, SIGMAS
from .gpu import PRECISIONS, VECTOR_ROWS, Coefficients, Precision, estimate_network, rate_of, tensor_clocks
from .network import Kernel, Network

FILE = Path(__file__).with_name("calibration.csv")
PRODUCT = re.compile(r"(?P<form>INT8|INT4) (?:rowwise )?GEMM M=(?P<m>\d+) N=(?P<n>\d+) K=(?P<k>\d+)")
# Rows of whole models: the component as the file calls it -> the shape that stands for it.
SHAPES = {"talker 28L step": "qwen3-tts-0.6b-talker", "code predictor step": "qwen3-tts-0.6b-code-predictor"}
RUNTIMES = {"PyTorch eager": "eager", "PyTorch + CUDA graphs": "graph"}
# The power mode is not stated; no other reaches the 61 TOPS of one row.
BOARD, MODE = "jetson_agx_orin_64gb", "MAXN"
FORMATS = ("fp32", "fp16", "bf16", "int8", "fp8", "fp4")  # by width
HALVES = {"fp16", "bf16"}  # of one rate
RELEASES = log(1.1)  # facts: point releases of JetPack alone move a workload by more than a tenth


@dataclass(frozen=True)
class Row:
    """One row of the file that can be estimated: a network, in a precision, and what was measured."""

    id: str
    network: Network
    precision: str
    runtime: str
    ms: float
    source: str


@cache
def rows() -> tuple[Row, ...]:
    """The rows that name what ran; `skipped()` has the others."""
    return tuple(row for row in map(_row, _lines()) if isinstance(row, Row))


def skipped() -> dict[str, str]:
    """Row id -> why it cannot be estimated."""
    return {line["row_id"]: found for line in _lines() if isinstance(found := _row(line), str)}


def _lines() -> list[dict[str, str]]:
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))


def _row(line: dict[str, str]) -> Row | str:
    from .shapes import network_of

    product = PRODUCT.fullmatch(line["component"])
    runtime = RUNTIMES.get(line["runtime"], "fused")
    if runtime == "eager":
        return "eager: bound by the launches of a framework, which no fact of a board tells"
    if product:
        sizes = {key: int(product[key]) for key in ("m", "n", "k")}
        network = Network(line["component"], (Kernel(line["component"], "product", **sizes),), line["source"])
    elif line["component"] in SHAPES:
        network = network_of(SHAPES[line["component"]])
    else:
        return "not said what ran"
    return Row(line["row_id"], network, line["precision"].lower(), runtime, float(line["ms_derived"]), line["source"])


def coefficients(
    board: Target, mode: Mode, used: Sequence[Row] | None = None, probed: Mapping[str, Any] | None = None
) -> Coefficients:
    """Those of a board: out of `used` rows (all) for the architecture they are of, out of measured facts for one that
    has them; else the rows' again, with an interval as wide as architectures differ. What was `probed` on the board's
    own GPU in this mode (`gpu_probe.measure_gpu`) stands in the place of what others published: nodes and memory.

    EdgewmError where the rows leave a coefficient without any.
    """
    kept = rows() if used is None else used
    fitted, (owner, node) = _fitted(kept), _graph_node()
    sigma = 0.0 if used is not None else (_left_out_sigma() ** 2 + RELEASES**2) ** 0.5
    sources = [f"calibration.csv: {', '.join(row.id for row in kept)}"]
    sources += [] if probed else [f"{owner.title}, {node.what}: {node.source}"]
    tensor = dict.fromkeys(FORMATS, fitted["tensor"])
    stream, stream_int4 = fitted["stream"], fitted["stream_int4"]
    own = _facts(board)
    fractions = _tensor_fractions(board)
    if board.gpu.sm != targets()[BOARD].gpu.sm and fractions:
        tensor = {form: fractions.get(form, fractions[_nearest(form, fractions)]) for form in FORMATS}
        dram = {m.fact: m.value / _fastest(t).dram_gbps for t, m in own if m.unit == "GB/s"}
        stream, stream_int4 = dram.get("stream_gbps", stream), dram.get("stream_int4_gbps", stream_int4)
    elif board.gpu.sm != targets()[BOARD].gpu.sm:
        sigma = (sigma**2 + _between_architectures(fitted["tensor"]) ** 2) ** 0.5
        sources.append(f"nothing is published of {board.gpu.name}: {targets()[BOARD].gpu.name} stands for it")
    sources += [f"{t.title}, {m.what}: {m.source}" for t, m in own if m != node]
    made = Coefficients(tensor, stream, stream_int4, node.value, _fastest(owner).gpu_mhz, sigma, tuple(sources))
    if probed is None:
        return made
    told = f"graph nodes and memory measured by `edgewm targets probe` on {probed['name']}"
    return replace(
        made, stream=probed["dram_gbps"] / mode.dram_gbps, node_us=probed["graph_node_us"], node_mhz=mode.gpu_mhz,
        barrier_us=probed["barrier_us"], sources=(*sources, told),
    )  # fmt: skip


PROBED_PEAKS = {"fp32": "fp32_gflops", "bf16": "bf16_gflops", "int8": "int8_gops"}


def of_own_kernels(made: Coefficients, board: Target, mode: Mode, probed: Mapping[str, Any] | None) -> Coefficients:
    """The same for edgewm's kernels: a format whose instructions reach less than the board's peak loses that too."""
    if probed is None:
        return made
    reached = {
        form: probed[name] * 1e3 / (rate_of(board, form) * mode.sm * mode.gpu_mhz)
        for form, name in PROBED_PEAKS.items() if rate_of(board, form)
    }  # fmt: skip
    tensor = {form: fraction * reached.get(form, 1.0) for form, fraction in made.tensor.items()}
    told = f"peaks of the instructions that edgewm uses measured by `edgewm targets probe` on {probed['name']}"
    return replace(made, tensor=tensor, sources=(*made.sources, told))


def _fitted(used: Sequence[Row]) -> dict[str, float]:
    """Medians over the rows of single products (and what the board's own facts add): fraction of the tensor cores' rate
    and of DRAM's bandwidth."""
    board = targets()[BOARD]
    mode = board.mode_named(MODE)
    owner, node = _graph_node()
    node_us = node.value * _fastest(owner).gpu_mhz / mode.gpu_mhz
    found: dict[str, list[float]] = {"tensor": list(_tensor_fractions(board).values()), "stream": [], "stream_int4": []}
    for row in used:
        (kernel, *more) = row.network.kernels
        if more:
            continue
        took = row.ms * 1e3 - node_us
        precision = PRECISIONS[row.precision]
        if kernel.m > VECTOR_ROWS:
            clocks = tensor_clocks(kernel, rate_of(board, precision.products), mode.sm)
            found["tensor"].append(clocks / mode.gpu_mhz / took)
        else:
            name = "stream_int4" if row.precision == "int4" else "stream"
            found[name].append(kernel.weights * precision.weight_bytes / (mode.dram_gbps * 1e3) / took)
    empty = [name for name, values in found.items() if not values]
    if empty:
        raise EdgewmError(f"no row shows {', '.join(empty)}", str(FILE), "leave at least one row of each kind")
    return {name: median(values) for name, values in found.items()}


# ---------------------------------------------------------------------------------------------- facts of boards


def _fastest(board: Target) -> Mode:
    return max((m for m in board.mode if m.gpu_mhz), key=lambda m: (m.gpu_mhz, m.sm or 0))


def _facts(board: Target) -> list[tuple[Target, Measured]]:
    """Measured facts with a key, of this board and others of its architecture."""
    return [(t, m) for t in targets().values() if t.gpu and t.gpu.sm == board.gpu.sm for m in t.measured if m.fact]


def _graph_node() -> tuple[Target, Measured]:
    """The one published cost of a node in a replayed graph, and the board it is of."""
    for board in targets().values():
        for measured in board.measured:
            if measured.fact == "graph_node_us":
                return board, measured
    raise EdgewmError("no board says what a graph node costs", "targets/", "add a [[measured]] with graph_node_us")


def _tensor_fractions(board: Target) -> dict[str, float]:
    """Format -> fraction of the tensor cores' rate that large products reach, out of `tensor_tflops FORMAT` facts."""
    found = {}
    for owner, measured in _facts(board):
        name, _, form = measured.fact.partition(" ")
        if name == "tensor_tflops":
            mode = _fastest(owner)
            found[form] = measured.value * 1e6 / (rate_of(owner, form) * mode.sm * mode.gpu_mhz)
    return found


def _nearest(form: str, known: Mapping[str, float]) -> str:
    """Of the formats known the one whose numbers are about as wide."""
    return min(known, key=lambda other: abs(FORMATS.index(other) - FORMATS.index(form)))


def stand_ins(board: Target, precision: Precision) -> list[str]:
    """A note where no product in that format is published of the board's architecture, though others are."""
    known, form = set(_tensor_fractions(board)), precision.products
    if board.gpu.sm == targets()[BOARD].gpu.sm:
        singles = [row for row in rows() if row.network.kernels[0].m > VECTOR_ROWS]
        known |= {PRECISIONS[row.precision].products for row in singles}
    if not known or form in known or (form in HALVES and HALVES & known):
        return []
    shown = " and ".join(sorted(known))
    return [f"no product in {form} is published of {board.gpu.name}: it is taken to reach its peak as {shown} do"]


def _between_architectures(fraction: float) -> float:
    """By how much (in the logarithm) the fraction of large products differs from any other architecture's."""
    others = [_tensor_fractions(t) for t in targets().values() if t.gpu and t.gpu.sm != targets()[BOARD].gpu.sm]
    return max((abs(log(fraction / other)) for found in others for other in found.values()), default=0.0)


# ---------------------------------------------------------------------------------------------- leaving rows out


@cache
def left_out() -> tuple[dict[str, Any], ...]:
    """Each row estimated from the others: {id, what, precision, measured_ms, estimated_ms, error, inside}; `inside`
    says whether the interval that the *other* rows' errors give holds it."""
    board, mode = resolve(BOARD, MODE)
    found = []
    for row in rows():
        made = coefficients(board, mode, [other for other in rows() if other != row])
        made_ms = estimate_network(row.network, board, mode, PRECISIONS[row.precision], made, row.runtime)["plan_ms"]
        found.append({
            "id": row.id, "what": row.network.name, "precision": row.precision, "measured_ms": row.ms,
            "estimated_ms": made_ms["point"], "error": made_ms["point"] / row.ms - 1,
        })  # fmt: skip
    errors = [abs(log(r["measured_ms"] / r["estimated_ms"])) for r in found]
    for i, r in enumerate(found):
        r["inside"] = errors[i] <= reach(errors[:i] + errors[i + 1 :])
    return tuple(found)


def reach(errors: Sequence[float]) -> float:
    """Half the width of an interval that holds the next error with probability COVERAGE, whatever their distribution:
    the rank that conformal prediction gives (Vovk et al. 2005, split form), the largest where there are too few."""
    ordered = sorted(errors)
    return ordered[min(len(ordered), ceil((len(ordered) + 1) * COVERAGE)) - 1]


def _left_out_sigma() -> float:
    """The standard deviation whose interval is as wide as what the rows left out show."""
    return reach([abs(log(r["measured_ms"] / r["estimated_ms"])) for r in left_out()]) / SIGMAS

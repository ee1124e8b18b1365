"""Time of a network on a board's GPU: each kernel against the board's peaks, at efficiencies taken from published rows.

No kernel of edgewm's own runs there: this is how long others' kernels take, as far as published measurements reach. A
product is cut into tiles that go to the SMs in waves, each at a fraction `tensor` of the SM's rate; what it reads comes
at a fraction `stream` of DRAM's bandwidth; the longer of the two counts, and every kernel costs `node_us` more, as one
node of a replayed graph. Attention adds its softmax, which runs beside no product. Clocks are taken to be pinned at the
mode's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import EdgewmError
from ..target import Mode, Target
from .cpu import bound_of, interval
from .network import Kernel, Network

# Rows and columns of a product that one SM computes at once.
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
SPLITS = (1, 2, 4, 8)  # of the sum over k, where there are fewer tiles than SMs
LEAST_DEPTH = 256  # of such a part
VECTOR_ROWS = 16  # up to so many rows no tile is filled: weights are read once, and that is all
# Of one SM and clock, by NVIDIA's CUDA programming guide, table of arithmetic throughput (compute capability 7 to 11).
FP32_LANES, EXPONENTIALS = 128, 16
SOFTMAX_OPERATIONS = 6  # of a score beside its exponential: scale, mask, maximum, difference, sum, quotient
L2_BYTES = 64  # into an SM each clock: the width of its port; not measured on these boards
# In trips to the L2 of some 300 clocks, one after the other; not measured on these boards. A barrier of all blocks of
# a cooperative launch, in place of a node, is four (fence, arrival, a look too early, release) and a barrier of each
# block; the least that a launch then does is five (its call, operands, weights or middle of a row, numbers, results).
BARRIER_CLOCKS, LEAST_CLOCKS = 1700, 1500
DRAM_LATENCY_US = 0.7  # from a read to its answer under load, as published for other GPUs; not measured on these boards
FLIGHT_BYTES = 16  # that a thread of edgewm's kernels has on their way at once
RUNTIMES = ("fused", "graph")


@dataclass(frozen=True)
class Precision:
    """Format of products and of everything else, bytes a weight (scales included) and an activation."""

    products: str
    rest: str
    weight_bytes: float
    activation_bytes: float


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("fp32", "fp32", 4, 4),
    "fp16": Precision("fp16", "fp16", 2, 2),
    "bf16": Precision("bf16", "bf16", 2, 2),
    "int8": Precision("int8", "fp16", 1, 2),
    "fp8": Precision("fp8", "fp16", 1, 2),
    "fp4": Precision("fp4", "fp16", 0.5 + 1 / 16, 2),  # a scale of 8 bits for each 16
    "int4": Precision("fp16", "fp16", 0.5 + 2 / 128, 2),  # weights alone, a scale of 16 bits for each 128
}
SPELLINGS = {"w8a8": "int8", "nvfp4": "fp4", "w4a16": "int4", "w4a16_g128": "int4", "half": "fp16"}


@dataclass(frozen=True)
class Coefficients:
    """Fractions of a board's peaks that others' kernels reach, and what a kernel costs beyond; each has its source.

    `tensor` by format of the product, `stream` by bytes a weight rounded up (int4 is 0); `node_us` at `node_mhz`.
    `sigma`: standard deviation of ln(measured / estimated). `barrier_us`: until all blocks of a launch that stays have
    met, where that was measured.
    """

    tensor: Mapping[str, float]
    stream: float
    stream_int4: float
    node_us: float
    node_mhz: float
    sigma: float
    sources: tuple[str, ...]
    barrier_us: float | None = None


def precision_of(name: str, board: Target) -> Precision:
    """The precision of that name. EdgewmError where there is none, or the board's tensor cores lack the format."""
    wanted = SPELLINGS.get(name.lower(), name.lower())
    if wanted not in PRECISIONS:
        raise EdgewmError(
            f"no estimate in precision {name!r}", "--precision", f"use one of {', '.join(PRECISIONS)} on a GPU"
        )
    found = PRECISIONS[wanted]
    if found.products != "fp32" and not board.has(found.products):
        has = [n for n, p in PRECISIONS.items() if p.products == "fp32" or board.has(p.products)]
        raise EdgewmError(
            f"{board.name} has no {found.products}", f"--precision {name}", f"use one of {', '.join(has)}"
        )
    return found


def has_clocks(mode: Mode) -> bool:
    """Whether it is known how fast a GPU and its memory are in the mode."""
    return bool(mode.sm and mode.gpu_mhz and mode.dram_gbps)


def check_mode(board: Target, mode: Mode) -> None:
    """EdgewmError where the board has no GPU, or nobody has confirmed what it does in this mode."""
    if board.gpu is None:
        raise EdgewmError(
            f"{board.name} has no GPU",
            "--target",
            "name a board with a GPU, for example --target orin; for a CPU give a MODEL or a bundle",
        )
    if not has_clocks(mode):
        known = [m.name for m in board.mode if has_clocks(m)]
        raise EdgewmError(
            f"{board.name}'s clocks in {mode.name} are not known", f"--mode {mode.name}", f"use {' or '.join(known)}"
        )


def estimate_network(
    network: Network, board: Target, mode: Mode, precision: Precision, with_: Coefficients, runtime: str = "fused"
) -> dict[str, Any]:
    """`plan_ms`, `bound`, `shares` and `kernels` of one run of the network; `runtime` is one of RUNTIMES."""
    check_mode(board, mode)
    whole: Counter[str] = Counter()
    rows = []
    for kernel in network.kernels:
        spent = kernel_us(kernel, board, mode, precision, with_, runtime)
        for limit, us in spent.items():
            whole[limit] += us
        row = {"name": kernel.name, "ms": sum(spent.values()) / 1e3, "bound": bound_of(spent), "calls": kernel.count}
        rows.append(row)
    point = sum(whole.values()) / 1e3
    plan_ms = interval(point, with_.sigma)
    least = sum(roofline_us(kernel, board, mode, precision) for kernel in network.kernels) / 1e3
    return {
        "plan_ms": {**plan_ms, "low": max(plan_ms["low"], least)}, "bound": bound_of(whole),
        "shares": {limit: us / 1e3 / point for limit, us in whole.most_common() if us},
        "kernels": sorted(rows, key=lambda row: -row["ms"]),
    }  # fmt: skip


def kernel_us(
    kernel: Kernel, board: Target, mode: Mode, precision: Precision, with_: Coefficients, runtime: str = "fused"
) -> Counter[str]:
    """us of all that are like this one, by what they are spent on."""
    spent = busy_us(kernel, board, mode, precision, with_)
    nodes = kernel.count * (kernel.launches if runtime == "graph" else 1)
    spent["launch"] += launches_us(nodes, nodes, mode, with_)["nodes"]
    return spent


def busy_us(kernel: Kernel, board: Target, mode: Mode, precision: Precision, with_: Coefficients) -> Counter[str]:
    """The same without what it costs to launch them."""
    limits = limits_us(kernel, board, mode, precision, with_)
    binding = bound_of(limits)
    spent = Counter({binding: limits[binding] * kernel.count})
    if kernel.kind == "attention" and binding == "tensor":
        spent["vector"] += limits["vector"] * kernel.count
    return spent


def roofline_us(kernel: Kernel, board: Target, mode: Mode, precision: Precision) -> float:
    """us of all that are like this one at the board's advertised peaks: nothing is faster."""
    rate = rate_of(board, precision.rest if kernel.kind == "attention" else precision.products)
    weights = kernel.weights * precision.weight_bytes / (mode.dram_gbps * 1e3)
    return max(kernel.flops / (rate * mode.gpu_mhz * mode.sm), weights)


def limits_us(kernel: Kernel, board: Target, mode: Mode, precision: Precision, with_: Coefficients) -> dict[str, float]:
    """us of one such kernel if each limit were alone: tensor, vector, memory, L2."""
    clocks = mode.gpu_mhz * mode.sm  # of all SMs, a us
    activations = activation_bytes(kernel, precision)
    resident = activations <= (board.gpu.l2_bytes or 0) / 2
    weights = kernel.weights / kernel.count * precision.weight_bytes
    stream = with_.stream_int4 if precision.weight_bytes < 0.6 and weights else with_.stream
    memory = (weights + (0 if resident else activations)) / (mode.dram_gbps * 1e3 * stream)
    found = {"memory": memory, "L2": activations / (L2_BYTES * clocks), "tensor": 0.0, "vector": 0.0}
    if kernel.kind == "rows":
        return found
    form = precision.rest if kernel.kind == "attention" else precision.products
    rate = rate_of(board, form)
    if kernel.kind == "attention":
        scores = kernel.m * kernel.n * kernel.batch
        found["tensor"] = kernel.flops / kernel.count / (rate * clocks * with_.tensor[form])
        found["vector"] = scores * (1 / EXPONENTIALS + SOFTMAX_OPERATIONS / FP32_LANES) / clocks
        if kernel.m < VECTOR_ROWS:  # nothing fills a tile: keys are read, and that is all
            found["tensor"] = 0.0
    elif kernel.m > VECTOR_ROWS or not kernel.is_weight:
        found["tensor"] = tensor_clocks(kernel, rate, mode.sm) / mode.gpu_mhz / with_.tensor[form]
    return found


def launches_us(launches: int, nodes: int, mode: Mode, with_: Coefficients) -> dict[str, float]:
    """What it costs to begin `launches`, of which `nodes` are nodes of a replayed graph and each of the others stands
    behind a barrier of the node before: us of `nodes` and of `barriers`."""
    node_us = with_.node_us * with_.node_mhz / mode.gpu_mhz
    barrier_us = BARRIER_CLOCKS / mode.gpu_mhz if with_.barrier_us is None else with_.barrier_us
    return {"nodes": nodes * node_us, "barriers": (launches - nodes) * barrier_us}


def least_us(launches: int, mode: Mode) -> float:
    """What `launches` of edgewm's kernels take at the least, one after the other."""
    return launches * LEAST_CLOCKS / mode.gpu_mhz


def stream_of(threads: int, mode: Mode, with_: Coefficients) -> float:
    """The fraction of DRAM's bandwidth that is reached where so many threads run at once."""
    return min(with_.stream, threads * FLIGHT_BYTES / (mode.dram_gbps * 1e3 * DRAM_LATENCY_US))


def rate_of(board: Target, form: str) -> int:
    """Dense operations of one SM in one clock."""
    return 2 * FP32_LANES if form == "fp32" else getattr(board.gpu.flop_per_sm_clock, form)


def activation_bytes(kernel: Kernel, precision: Precision) -> float:
    """What a kernel reads and writes beside weights."""
    if kernel.kind == "rows":
        return 3 * kernel.m * kernel.k * precision.activation_bytes  # two in, one out
    if kernel.kind == "attention":
        keys = 2 * kernel.n * kernel.k * kernel.batch / kernel.groups
        return (2 * kernel.m * kernel.k * kernel.batch + keys) * precision.activation_bytes
    return (kernel.m * kernel.k / kernel.overlap + kernel.m * kernel.n) * kernel.batch * precision.activation_bytes


def tensor_clocks(kernel: Kernel, rate: int, sms: int) -> float:
    """Clocks of a product at the tensor cores' rate, waves of tiles counted whole, for the best of TILES and SPLITS."""
    best = float("inf")
    for rows, columns in TILES:
        tiles = -(-kernel.m // rows) * -(-kernel.n // columns) * kernel.batch
        for split in SPLITS:
            depth = -(-kernel.k // split)
            if split > 1 and depth < LEAST_DEPTH:
                continue
            waves = -(-tiles * split // sms)
            best = min(best, waves * 2 * rows * columns * depth / rate)
    return best

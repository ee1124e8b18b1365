"""One planning step as edgewm runs it: its program, the work in it, and its bundle.

What is timed is the loop body of a plan: sample, roll out, score, select, refit. Encoding happens once a plan and is
not part of it, so the program here takes latents where a robot's takes images: `plan_graph` builds it with an encoder
that is the identity. Its loop's body is the very graph of the robot's plan (nodes are interned, and a test compares the
two), so nothing is subtracted and nothing estimated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgewm import expr as e
from edgewm.arithmetic import normal
from edgewm.build import manifest_of
from edgewm.bundle import compile_bundle, pack
from edgewm.constants import Store
from edgewm.emit import schedule_program
from edgewm.estimate import operations
from edgewm.host import host
from edgewm.interp import run as interpret
from edgewm.models import Model, capture_score
from edgewm.ops import flops
from edgewm.passes import EXACT, LOWERING, run
from edgewm.passes.quantize_products import quantize_products
from edgewm.planner import plan_graph
from edgewm.program import Graph, Node, Planner, Port, Program
from edgewm.quantize import SMALLEST_K, recipe_of
from edgewm.target import resolve

PEAKS = {"f32": "fp32_gflops", "bf16": "bf16_gflops", "i8": "int8_gops"}
NARROW = {"bf16": ("bf16", 2), "int8": ("i8", 4)}  # a peer's precision: dtype of its products, float32's bytes over its


def step_program(model: Model, planner: Planner, injected_noise: bool = False) -> Program:
    """Upstream's graph of a plan, with inputs `latent` and `goal`, (1, latent) each, in the place of images; and of the
    `score` in it, which recipes look at."""
    weights: Store = {}
    score = capture_score(model, planner, weights)
    observed = e.input("latent", (planner.history, model.latent_dim))
    ports = [Port("latent", "observation", observed.shape), Port("goal", "goal", (1, model.latent_dim))]
    ports += [p for p in model.ports if p.kind == "action"]
    plan = plan_graph(Graph({"z": observed}), score, planner, injected_noise=injected_noise)
    return Program(entries={"plan": plan, "score": score}, weights=weights, ports=tuple(ports), planner=planner)


def planner_of(model: Model, samples: int, horizon: int, iterations: int) -> Planner:
    """The model's planner with these budgets; elites stay a tenth, as published; one candidate is its own elite."""
    return replace(
        model.planner, samples=samples, horizon=horizon, iterations=iterations,
        elites=min(samples, max(2, samples // 10)), unbiased_std=model.planner.unbiased_std and samples > 1,
        commit_steps=min(model.planner.commit_steps, horizon * model.planner.action_block),
    )  # fmt: skip


def noise(planner: Planner, action_dim: int, seed: np.ndarray, plan: int = 0, iteration: int = 0) -> np.ndarray:
    """What the plan draws in that iteration, (samples, horizon, action): for peers that are to meet its result."""
    shape = (planner.samples, planner.horizon, action_dim)
    counter = (e.const(iteration, "u32"), e.const(plan, "u32"), e.const(0, "u32"))
    key = tuple(e.const(int(word), "u32") for word in seed)
    return interpret(Graph({"noise": normal(shape, counter, key)}), {}, {})["noise"]


def exact_program(program: Program) -> Program:
    return run(program, EXACT)


# ------------------------------------------------------------------------------------------------------ work and limits


def loop_body(program: Program) -> Graph:
    """One iteration of the plan; what a plan does once is left out."""
    (loop,) = (node for node in program.entries["plan"].order() if node.op == "repeat")
    return loop["body"]


def needed_bytes(graph: Graph, weights: Mapping[str, np.ndarray]) -> int:
    """What a run of the graph must at least read: each weight once."""
    return sum(weights[name].nbytes for name in graph.weights())


def weight_products(graph: Graph, times: int = 1) -> Iterator[tuple[Node, int]]:
    """Every product with a weight, and how often it is done."""
    for node in graph.order():
        if node.op == "repeat":
            yield from weight_products(node["body"], times * node["count"])
        elif node.op == "matmul" and node.sources[1].op == "weight":
            yield node, times


def peer_work(graph: Graph, weights: Mapping[str, np.ndarray], precision: str) -> tuple[Counter[str], float]:
    """Operations by dtype and the bytes to read of one run in a peer's precision.

    bf16 is said of all products; int8 of those with a weight, while the others stay in float32.
    """
    done, read = operations(graph), float(needed_bytes(graph, weights))
    if precision not in NARROW:
        return done, read
    kind, part = NARROW[precision]
    products = list(weight_products(graph))
    moved = done["f32"] if kind == "bf16" else sum(times * flops(node) for node, times in products)
    done[kind] += moved
    done["f32"] -= moved
    held = {node.sources[1]["name"] for node, _ in products}
    return done, read - sum(weights[name].nbytes for name in held) * (1 - 1 / part)


def limits_ms(
    done: Mapping[str, float], read_bytes: float, machine: Mapping[str, float | None]
) -> dict[str, float | None]:
    """The least time for that work at the machine's measured peaks, each part alone; None where a peak is unknown.

    Vector work is held against the peak of fused multiply-adds, so its limit is never too high.
    """
    tensor: float | None = 0.0
    for dtype, count in done.items():
        peak = machine.get(PEAKS.get(dtype, ""))
        if dtype != "vector" and count:
            tensor = None if tensor is None or not peak else tensor + count / peak / 1e6
    return {
        "tensor": tensor,
        "vector": done.get("vector", 0) / machine["fp32_gflops"] / 1e6,
        "bytes": read_bytes / machine["dram_gbps"] / 1e6,
    }


# --------------------------------------------------------------------------------------------------------------- bundle


@dataclass(frozen=True, eq=False)
class Built:
    """A bundle on disk. `work` and `bytes` are those of what is timed (an iteration), quantized but not yet fused."""

    folder: Path
    precision: str
    work: Mapping[str, int]
    bytes: int


def build_program(
    exact: Program, recipe: Mapping[str, str], precision: str, timed: Callable[[Program], Graph], folder: Path,
    threads: int,
) -> Built:  # fmt: skip
    """Compile a program (after the exact passes) for this machine; `timed` picks the graph whose work counts."""
    board, mode = resolve("host")
    named = exact.with_(recipe=recipe, target=board)
    quantized = quantize_products(named)
    program = run(named, LOWERING)
    schedule = schedule_program(program, board.isa)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = manifest_of(program, board, mode, precision, 1.0, threads, 0, {})
    sections, paths = compile_bundle(program, schedule, manifest, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    graph = timed(quantized)
    return Built(folder, precision, operations(graph), needed_bytes(graph, quantized.weights))


def build_step(exact: Program, precision: str, folder: Path, threads: int) -> Built:
    """The planning step; the runtime's own `ewm_plan` runs it."""
    plan = exact.with_(entries={"plan": exact.entries["plan"]})
    return build_program(plan, recipe_of(exact, precision), precision, loop_body, folder, threads)


def recipe_everywhere(program: Program, precision: str) -> dict[str, str]:
    """Every product with a weight in that precision, but the shortest; a named recipe leaves encoders exact."""
    if precision == "fp32":
        return {}
    names = {node.sources[1]["name"] for graph in program.entries.values() for node, _ in weight_products(graph)}
    return {name: precision for name in sorted(names) if program.weights[name].shape[-2] >= SMALLEST_K}


def machine_name() -> str:
    """What results are filed under: the processor and how many of its cores, never a host's name."""
    cpu = host().cpu
    words = "".join(c if c.isalnum() else " " for c in cpu.name.lower().replace("(r)", "").replace("(tm)", ""))
    return "-".join([*words.split(), f"{cpu.cores}c"])

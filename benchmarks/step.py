"""One planning step as edgewm runs it: its program, the work in it, its bundle, and where that bundle's time goes.

What is timed is the loop body of a plan: sample, roll out, score, select, refit. Encoding happens once a plan and is
not part of it, so the program here takes latents where a robot's takes images: `plan_graph` builds it with an encoder
that is the identity. Its loop's body is the very graph of the robot's plan (nodes are interned, and a test compares the
two), so nothing is subtracted and nothing estimated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgewm import expr as e
from edgewm.arena import regions
from edgewm.arithmetic import normal
from edgewm.build import manifest_of
from edgewm.bundle import compile_bundle, pack
from edgewm.capture import capture
from edgewm.emit import schedule_program
from edgewm.estimate import operations
from edgewm.host import host
from edgewm.interp import run as interpret
from edgewm.models import Model
from edgewm.ops import TABLE
from edgewm.passes import EXACT, LOWERING, run
from edgewm.passes.quantize_products import quantize_products
from edgewm.planner import plan_graph
from edgewm.profile import run_tick
from edgewm.program import Graph, Planner, Port, Program
from edgewm.quantize import recipe_of
from edgewm.schedule import Call, Schedule
from edgewm.target import resolve

PEAKS = {"f32": "fp32_gflops", "bf16": "bf16_gflops", "i8": "int8_gops"}
KERNEL_RUNS = 7


def step_program(model: Model, planner: Planner) -> Program:
    """Upstream's graph of a plan, with inputs `latent` and `goal`, (1, latent) each, in the place of images."""
    z, goal = torch.zeros(planner.history, model.latent_dim), torch.zeros(1, model.latent_dim)
    candidates = torch.zeros(planner.samples, planner.horizon, model.action_dim)
    score, weights = capture(
        model.torch, [z, goal, candidates], ["z", "goal", "candidates"], ["cost"], call=model.score
    )
    observed = e.input("latent", tuple(z.shape))
    ports = [Port("latent", "observation", observed.shape), Port("goal", "goal", tuple(goal.shape))]
    ports += [p for p in model.ports if p.kind == "action"]
    plan = plan_graph(Graph({"z": observed}), score, planner)
    return Program(entries={"plan": plan}, weights=weights, ports=tuple(ports), planner=planner)


def noise(planner: Planner, action_dim: int, seed: np.ndarray, plan: int = 0, iteration: int = 0) -> np.ndarray:
    """What the plan draws in that iteration, (samples, horizon, action): for peers that are to meet its result."""
    shape = (planner.samples, planner.horizon, action_dim)
    counter = (e.const(iteration, "u32"), e.const(plan, "u32"), e.const(0, "u32"))
    key = tuple(e.const(int(word), "u32") for word in seed)
    return interpret(Graph({"noise": normal(shape, counter, key)}), {}, {})["noise"]


# ------------------------------------------------------------------------------------------------------ work and limits


def work(program: Program) -> Counter[str]:
    """Operations of one iteration, as `operations` counts them; what a plan does once is left out."""
    (loop,) = (node for node in program.entries["plan"].order() if node.op == "repeat")
    return operations(loop["body"])


def needed_bytes(program: Program) -> int:
    """What an iteration must at least read: each weight of the plan once."""
    return sum(program.weights[name].nbytes for name in program.entries["plan"].weights())


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
    """A bundle of the step on disk. `work` and `bytes` are an iteration's, quantized but not yet fused."""

    folder: Path
    precision: str
    schedule: Schedule
    work: Mapping[str, int]
    bytes: int


def build_step(exact: Program, precision: str, folder: Path, threads: int) -> Built:
    """Compile the step (after the exact passes) for this machine. The runtime's own `ewm_plan` runs it."""
    board, mode = resolve("host")
    named = exact.with_(recipe=recipe_of(exact, precision), target=board)
    quantized = quantize_products(named)
    program = run(named, LOWERING)
    schedule = schedule_program(program, board.isa)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = manifest_of(program, board, mode, precision, 1.0, threads, 0, {})
    sections, paths = compile_bundle(program, schedule, manifest, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    return Built(folder, precision, schedule, work(quantized), needed_bytes(quantized))


def exact_program(program: Program) -> Program:
    return run(program, EXACT)


# -------------------------------------------------------------------------------------------------- where the time goes


def kernel_rows(built: Built, machine: Mapping[str, float | None], runs: int = KERNEL_RUNS) -> list[dict[str, Any]]:
    """Time by kernel instantiation and loop dimensions, one thread, largest first.

    `edgewm-tick --kernels` times every call; each call's least time of `runs` runs counts, since whatever else this
    machine does can only add to it. `machine` holds the peaks of one thread; `limit_ms` is the rows' own.
    """
    calls = [call for region in regions(built.schedule.entries["plan"].steps) for call in region.calls]
    least = np.full(len(calls), np.inf)
    names = [""] * len(calls)
    for _ in range(runs):
        tick = run_tick(built.folder, 1000.0, 1, 1, "--kernels", "--inline")
        for timed in tick["calls"]:
            at = timed["call"]
            least[at], names[at] = min(least[at], timed["ns"] / tick["plans"]), timed["kernel"]
    return grouped(calls, names, np.where(np.isfinite(least), least, 0.0), machine)


def grouped(
    calls: list[Call], names: list[str], spent_ns: np.ndarray, machine: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """One row for all calls of one instantiation on one shape."""
    rows: dict[tuple, dict[str, Any]] = {}
    for call, name, ns in zip(calls, names, spent_ns, strict=True):
        key = (name or call.family, tuple(call.dims), call.lanes)
        row = rows.setdefault(
            key,
            {
                "kernel": key[0], "family": call.family, "dims": list(call.dims), "lanes": call.lanes,
                "does": does(call), "calls": 0, "ms": 0.0, "work": Counter(),
            },
        )  # fmt: skip
        row["calls"] += 1
        row["ms"] += float(ns) / 1e6
        if call.node is not None and call.node.op == "kernel":
            row["work"].update(operations(call.node["body"]))
    whole = sum(row["ms"] for row in rows.values())
    for row in rows.values():
        done = row.pop("work")
        tensor = max(done, key=lambda k: done[k] if k != "vector" else 0, default="f32")
        peak = machine.get(PEAKS.get(tensor, "fp32_gflops"))
        limit = limits_ms(done, 0, machine)
        rate = sum(done.values()) / row["ms"] / 1e6 if row["ms"] else 0.0
        row |= {
            "share": row["ms"] / whole if whole else 0.0, "flops": sum(done.values()), "gflops": rate,
            "peak_fraction": rate / peak if peak else None,
            "limit_ms": {"tensor": limit["tensor"], "vector": limit["vector"]},
        }  # fmt: skip
    return sorted(rows.values(), key=lambda row: -row["ms"])


def does(call: Call) -> str:
    """The parts of a kernel in words: how many ops stand before, in and after its core, costly ones by name."""
    if call.node is None or call.node.op != "kernel":
        return call.family
    parts = []
    for part, word in (("left", "before"), ("score", "score"), ("epilogue", "after")):
        graph = dict(call.node.attrs).get(part)
        if isinstance(graph, Graph):
            ops = Counter(n.op for n in graph.order() if TABLE[n.op].kind == "elementwise")
            costly = [op for op in ("exp", "erf", "tanh", "log", "cos2pi", "div", "sqrt") if op in ops]
            if ops:
                parts.append(f"{word} {sum(ops.values())}" + (f" ({', '.join(costly)})" if costly else ""))
    return "; ".join(parts) or "as it is"


def planner_of(model: Model, samples: int, horizon: int, iterations: int) -> Planner:
    """The model's planner with these budgets; elites stay a tenth, as published."""
    return replace(
        model.planner, samples=samples, horizon=horizon, iterations=iterations, elites=max(2, samples // 10),
        commit_steps=min(model.planner.commit_steps, horizon * model.planner.action_block),
    )  # fmt: skip


def machine_name() -> str:
    """What results are filed under: the processor and how many of its cores, never a host's name."""
    cpu = host().cpu
    words = "".join(c if c.isalnum() else " " for c in cpu.name.lower().replace("(r)", "").replace("(tm)", ""))
    return "-".join([*words.split(), f"{cpu.cores}c"])

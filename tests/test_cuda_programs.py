"""Whole programs as CUDA on fibers: a plan, and drawn graphs, launch by launch and as one persistent launch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import programs
import pytest
import tiny
from cuda_cpu import GRID_BARRIER, Bundle, LaunchError, Persistent

from edgewm import expr as e
from edgewm import format as ewm
from edgewm import interp
from edgewm.golden import example_inputs
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Graph, Program
from edgewm.quantize import recipe_of

SEEDS = (0, 107)
BLOCKS = 2  # of a persistent launch: no divisor of the tiles, so that tiles change hands


def plan() -> Program:
    """A planner's whole tick over a small LeWM with int8 products; what w8a8 would hold as bf16 is left in f32."""
    exact = tiny.exact()
    recipe = {name: p for name, p in recipe_of(exact, "w8a8").items() if p == "w8a8"}
    lowered = run(exact.with_(recipe=recipe), LOWERING)
    return lowered.with_(entries={"plan": lowered.entries["plan"]})


def differing(bundle: Bundle, program: Program, name: str, inputs: dict[str, np.ndarray]) -> list[str]:
    return programs.differing(bundle.run(name, **inputs), interp.run(program.entries[name], inputs, program.weights))


def test_a_whole_plan_is_the_oracles(tmp_path: Path) -> None:
    program = plan()
    bundle = Bundle(program, tmp_path)
    assert any(name.startswith("ewm_product_i8_multiply") for name in bundle.functions)
    for seed in SEEDS:
        bundle.device.seed = seed
        inputs = example_inputs(program, "plan", seed)
        assert differing(bundle, program, "plan", inputs) == []


def test_drawn_programs_are_the_oracles(tmp_path: Path) -> None:
    graphs = {f"g{i}": programs.salted(g, f"s{i}") for i, g in enumerate(programs.drawn(4, 3))}
    program = run(run(programs.program_of(graphs), EXACT), LOWERING)
    bundle = Bundle(program, tmp_path, watched=True)
    found = {}
    for i, (name, graph) in enumerate(program.entries.items()):
        bundle.device.seed = SEEDS[i % len(SEEDS)]
        found[name] = differing(bundle, program, name, programs.inputs_of(graph))
    assert {n: d for n, d in found.items() if d} == {}


def chain() -> Program:
    """Calls of several blocks each, reading what all blocks of the one before have written, but for the norm and the
    second product of those with whole rows."""
    x = e.input("x", (70, 70))
    y = e.matmul(e.permute(e.tanh(x), (1, 0)), e.weight("a", (70, 70)))
    y = e.matmul(e.permute(e.softmax(y, -1), (1, 0)), e.weight("b", (70, 20)))
    y = e.matmul(e.add(y, e.reduce_max(y, -1)), e.weight("c", (20, 70)))
    graph = Graph({"y": e.permute(e.mul(y, e.reduce_sum(e.permute(y, (1, 0)), -1)), (1, 0))})
    program = programs.program_of({"chain": graph})
    return run(run(program, EXACT).with_(recipe={"b": "w8a8", "c": "w8a8"}), LOWERING)


@pytest.fixture(scope="module")
def persistent(tmp_path_factory: pytest.TempPathFactory) -> Persistent:
    return Persistent(chain(), tmp_path_factory.mktemp("persistent"), BLOCKS)


def test_one_persistent_launch_is_the_oracles(persistent: Persistent) -> None:
    program = chain()
    inputs = programs.inputs_of(program.entries["chain"])
    for blocks, seed in ((1, 0), (BLOCKS, 0), (BLOCKS, 7), (BLOCKS, 101), (BLOCKS, 107), (2 * BLOCKS, 109)):
        persistent.blocks, persistent.device.seed = blocks, seed
        assert differing(persistent, program, "chain", inputs) == []
    persistent.blocks = BLOCKS


def test_workspaces_in_one_place_are_caught(persistent: Persistent) -> None:
    """A block that is behind still reads the rows of a product when another one writes those of the next."""
    program, operands = chain(), persistent.memory.operands
    scratch = operands["space"] == ewm.SCRATCH
    apart = operands["offset"][scratch]
    assert apart.any()
    persistent.device.seed = 107
    operands["offset"][scratch] = 0
    try:
        with pytest.raises(LaunchError, match="written twice"):
            differing(persistent, program, "chain", programs.inputs_of(program.entries["chain"]))
    finally:
        operands["offset"][scratch] = apart


def test_a_missing_grid_barrier_is_caught(persistent: Persistent) -> None:
    program = chain()
    inputs = programs.inputs_of(program.entries["chain"])
    persistent.device.seed = 107
    missed = []
    with persistent.device.planted() as plant:
        for barrier in range(len(persistent.rows) - 2):  # the last call copies: each block what it wrote itself
            plant(GRID_BARRIER, barrier)
            try:
                if not differing(persistent, program, "chain", inputs):
                    missed.append(barrier)
            except LaunchError:
                pass
    assert missed == []

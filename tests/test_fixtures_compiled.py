"""Models that are not LeWM, compiled: as the oracle to the bit, as torch in float64 within rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import fixtures_models as fixtures
import numpy as np
import pytest
import torch

from edgewm import interp
from edgewm.binding import Runtime
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.golden import example_inputs
from edgewm.models import Model, capture_model, own
from edgewm.ops import NUMPY
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Program, walk_graphs
from edgewm.target import resolve

FAMILIES = ("tdmpc2", "rssm", "frame_causal")
PRECISIONS = ("fp32", "bf16", "w8a8")
DRAWS = 8  # of inputs: an error is relative to the largest value, and a lone one may have cancelled


def products(program: Program) -> set[str]:
    """Weights that a product multiplies with, stacked ones (one matrix for each member of an ensemble) aside."""
    nodes = (n for graph in program.entries.values() for g in walk_graphs(graph) for n in g.order())
    named = {n.sources[1]["name"] for n in nodes if n.op == "matmul" and n.sources[1].op == "weight"}
    return {name for name in named if program.weights[name].ndim == 2}


def entry_name(family: str, precision: str, entry: str) -> str:
    """At most the 23 characters that a file holds."""
    return f"{family[:4]}{precision[0]}_{entry}"


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: own.from_module(getattr(fixtures, name)(), name) for name in FAMILIES}


@pytest.fixture(scope="module")
def programs(models: dict[str, Model]) -> dict[tuple[str, str], Program]:
    """(family, precision) -> the fused program."""
    found = {}
    for name, model in models.items():
        exact = run(capture_model(model, model.planner), EXACT)
        for precision in PRECISIONS:
            recipe = dict.fromkeys(products(exact), precision) if precision != "fp32" else {}
            found[name, precision] = run(exact.with_(recipe=recipe), LOWERING)
    return found


@pytest.fixture(scope="module")
def runtimes(
    programs: dict[tuple[str, str], Program], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Runtime]]:
    """One bundle that holds every entry of every program, open with one thread and with two."""
    entries, weights = {}, {}
    for (family, precision), program in programs.items():
        entries |= {entry_name(family, precision, n): graph for n, graph in program.entries.items()}
        for name, array in program.weights.items():
            assert name not in weights or np.array_equal(weights[name], array), name
            weights[name] = array
    folder: Path = tmp_path_factory.mktemp("fixtures")
    board, _ = resolve("host")
    whole = Program(entries, weights)
    sections, paths = compile_bundle(whole, schedule_program(whole, board.isa), {}, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    with Runtime(folder, threads=1) as one, Runtime(folder, threads=2) as two:
        yield [one, two]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_models_are_the_oracle_to_the_bit(
    family: str, precision: str, programs: dict[tuple[str, str], Program], runtimes: list[Runtime]
) -> None:
    program = programs[family, precision]
    for name, graph in program.entries.items():
        inputs = example_inputs(program, name, seed=1)
        wanted = interp.run(graph, inputs, program.weights)
        for runtime in runtimes:
            found = runtime.run_entry(entry_name(family, precision, name), **inputs)
            for key, value in wanted.items():
                assert found[key].tobytes() == np.ascontiguousarray(value).tobytes(), (name, key, runtime)


@pytest.mark.parametrize(("precision", "dtype"), [("w8a8", "i8"), ("bf16", "bf16")])
def test_every_family_has_products_in(precision: str, dtype: str, programs: dict[tuple[str, str], Program]) -> None:
    for family in FAMILIES:
        assert any(a.dtype == NUMPY[dtype] for a in programs[family, precision].weights.values()), family


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_models_are_torch_in_float64_within_rounding(
    family: str, models: dict[str, Model], programs: dict[tuple[str, str], Program], runtimes: list[Runtime]
) -> None:
    model = models[family]
    captured, module = capture_model(model, model.planner), copy.deepcopy(model.torch).double()
    calls = {"encode": model.encode, "predict": model.predict, "score": model.score}
    calls |= {f"decode_{name}": head for name, head in model.heads.items()}
    for name, call in calls.items():
        graph = captured.entries[name]
        found, wanted = [], []
        for seed in range(DRAWS):
            inputs = example_inputs(captured, name, seed)
            ordered = [torch.from_numpy(inputs[n]).double() for n in order_of(captured, name)]
            with torch.no_grad():
                wanted.append(call(module, *ordered).numpy())
            found += runtimes[0].run_entry(entry_name(family, "fp32", name), **inputs).values()
        error, bound = fixtures.relative_error(np.stack(found), np.stack(wanted)), fixtures.rounding(graph, np.float32)
        assert error <= bound, f"{name}: {error} > {bound}"


def order_of(program: Program, entry: str) -> list[str]:
    """Names of an entry's inputs as the model's function takes them."""
    return sorted(program.entries[entry].inputs(), key=("state", "z", "goal", "candidates", "actions").index)

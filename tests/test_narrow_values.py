"""Values between calls in bf16: which ones a recipe means, and the same bits on every CPU and in CUDA kernels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import programs
import pytest
from cuda_cpu import Bundle

from edgewm import expr as e
from edgewm import interp
from edgewm.binding import Runtime
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.host import host
from edgewm.ops import NUMPY, make
from edgewm.options import VALUES
from edgewm.passes import EXACT, LOWERING, run
from edgewm.passes.narrow_values import narrow_values
from edgewm.program import Graph, Node, Program, walk_graphs
from edgewm.quantize import recipe_of
from edgewm.rounding import BF16_STEP, tensor_rounding
from edgewm.target import ISAS, resolve

ALL = {f"+{name}": "bf16" for name in VALUES}
TIES = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-23, 3.3961776e38, 2**-133, -(2**-134), 3 * 2**-135, -0.0])


def shared_keys(queries: int, keys: int) -> Graph:
    """An attention whose lanes are queries of the same keys, which a concat joins; its values are one product's."""
    x, more = e.input("x", (keys, 5)), e.input("more", (2, 5))
    q = e.matmul(e.input("q", (queries, 5)), e.weight("wq", (5, 3)))
    k = e.concat([e.matmul(more, e.weight("wk2", (5, 3))), e.matmul(x, e.weight("wk", (5, 3)))], 0)
    v = e.concat([e.matmul(more, e.weight("wv2", (5, 7))), e.matmul(x, e.weight("wv", (5, 7)))], 0)
    return Graph({"y": e.mul(e.matmul(e.softmax(e.matmul(q, e.permute(k, (1, 0))), -1), v), 2.0)})


def rounded_once() -> Graph:
    """Each number through a product by 1, bf16, and a product by 1."""
    x = e.matmul(e.input("x", (len(TIES), 1)), e.weight("one", (1, 1)))
    return Graph({"y": e.minimum(e.matmul(x, e.weight("uno", (1, 1))), 3e38)})


def narrowed() -> Program:
    """A transformer in int8, an attention in f32, and numbers that are hard to round."""
    parts = {"score": programs.transformer(35, 3, 20, 2, 9, 1).entries["score"], "shared": shared_keys(21, 9)}
    whole = programs.program_of({**parts, "ties": rounded_once()})
    recipe = {name: "w8a8" for name in whole.weights if name.startswith("0.") and whole.weights[name].ndim == 2}
    ones = {name: np.ones((1, 1), np.float32) for name in ("one", "uno")}
    return run(run(whole.with_(weights={**whole.weights, **ones}), EXACT).with_(recipe=recipe | ALL), LOWERING)


def given(program: Program) -> dict[str, dict[str, np.ndarray]]:
    found = {name: programs.inputs_of(graph) for name, graph in program.entries.items()}
    return {**found, "ties": {"x": TIES[:, None]}}


@pytest.fixture(scope="module")
def program() -> Program:
    return narrowed()


@pytest.fixture(scope="module")
def answers(program: Program) -> dict[str, dict[str, np.ndarray]]:
    inputs = given(program)
    return {name: interp.run(graph, inputs[name], program.weights) for name, graph in program.entries.items()}


def kernels(graph: Graph) -> Iterator[Node]:
    return (node for own in walk_graphs(graph) for node in own.order() if node.op == "kernel")


def test_the_oracle_rounds_to_nearest_even(answers: dict[str, dict[str, np.ndarray]]) -> None:
    wanted = np.minimum(TIES.astype(NUMPY["bf16"]).astype(np.float32), np.float32(3e38))
    np.testing.assert_array_equal(answers["ties"]["y"][:, 0], wanted)
    cut = (TIES.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert not np.array_equal(np.minimum(cut, np.float32(3e38)), wanted)  # what only cuts would be seen


@pytest.mark.parametrize("isa", ["avx512", "avx2", "scalar"])
def test_every_cpu_gives_the_oracles_bits(
    isa: str, program: Program, answers: dict[str, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    levels = ISAS["x86_64"]
    if host().machine != "x86_64" or levels.index(isa) < levels.index(host().isa):
        pytest.skip(f"this CPU has no {isa}")
    board, _ = resolve("host", None, isa)
    schedule = schedule_program(program, isa)
    assert {b.dtype for b in schedule.buffers.values() if b.space == "scratch"} >= {"f32", "bf16"}
    sections, paths = compile_bundle(program, schedule, {}, board, tmp_path)
    (tmp_path / "model.ewm").write_bytes(pack(sections, board, paths))
    with Runtime(tmp_path, 2) as runtime:
        for name, inputs in given(program).items():
            assert programs.differing(runtime.run_entry(name, **inputs), answers[name]) == []


def test_cuda_kernels_give_the_oracles_bits(
    program: Program, answers: dict[str, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    bundle = Bundle(program, tmp_path)
    assert any("_attention" in name for name in bundle.functions)  # with its product, in shared memory
    assert any(name.startswith("ewm_attention") for name in bundle.functions)
    for name, inputs in given(program).items():
        assert programs.differing(bundle.run(name, **inputs), answers[name]) == []


# ---------------------------------------------------------------------------------------------- which values


def test_each_class_is_what_its_name_says() -> None:
    """Of a transformer's block: what the MLP and the attention leave for one product; q, k, v; the residual stream."""
    exact = run(programs.transformer(35, 3, 20, 2, 9, 1), EXACT)
    held = {}
    for name in VALUES:
        (graph,) = run(exact.with_(recipe={f"+{name}": "bf16"}), LOWERING).entries.values()
        held[name] = {node.shape[-1] for node in kernels(graph) if node.dtype == "bf16"}
    assert held == {"hidden": {80, 9}, "attention": {54}, "latents": {20}}


def mlp(x: Node, name: str) -> Node:
    return e.matmul(e.gelu(e.matmul(x, e.weight(f"{name}1", (70, 66)))), e.weight(f"{name}2", (66, 70)))


def test_only_what_differs_between_candidates_is_narrowed() -> None:
    """Of a plan what its loop changes; nothing of an encoder; nothing that is carried or handed over."""
    z, x = e.input("z", (3, 70)), e.input("x", (3, 70))
    body = Graph({"x": e.add(mlp(x, "in"), mlp(z, "beside"))})
    loop = make("repeat", x, mlp(z, "before"), body=body, count=2, carries=("x",), invariants=("z",))
    entries = {"plan": Graph({"x": make("get", loop, name="x")}), "encode": Graph({"z": mlp(z, "encoder")}),
               "predict": Graph({"z": mlp(x, "in")})}  # fmt: skip
    exact = programs.program_of(entries)
    program = run(exact.with_(recipe=ALL), LOWERING)
    found = {name: sum(node.dtype == "bf16" for node in kernels(graph)) for name, graph in program.entries.items()}
    assert found == {"plan": 1, "encode": 0, "predict": 1}
    assert all(node.dtype == "f32" for graph in program.entries.values() for node in graph.outputs.values())
    assert dict(run(exact, LOWERING).entries) == dict(narrow_values(run(exact, LOWERING)).entries)


def test_golden_answers_may_turn_where_values_are_rounded() -> None:
    """Only where a GPU adds in an order of its own."""
    exact = run(programs.transformer(35, 3, 20, 2, 9, 1), EXACT)
    plain, wide, half = (
        tensor_rounding(run(exact.with_(recipe=recipe), LOWERING).entries["score"])
        for recipe in (ALL, {"0.fc1": "bf16"}, {"0.fc1": "bf16", **ALL})
    )
    assert plain == 0 and half >= wide + 3 * BF16_STEP


# ---------------------------------------------------------------------------------------------- what is refused


def test_classes_by_name_and_in_a_file(tmp_path: Path) -> None:
    exact, file = programs.transformer(3, 2, 20, 2, 9, 1), tmp_path / "recipe.json"
    assert recipe_of(exact, "fp32+hidden+latents") == {"+hidden": "bf16", "+latents": "bf16"}
    assert recipe_of(exact, "w8a8+attention") == {**recipe_of(exact, "w8a8"), "+attention": "bf16"}
    file.write_text(json.dumps({"+hidden": "bf16", "+latents": "fp32"}))
    assert recipe_of(exact, str(file)) == {"+hidden": "bf16"}


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("w8a8+keys", "no class of values is called 'keys'"),
        ({"+keys": "bf16"}, "no class of values is called 'keys'"),
        ({"+hidden": "w8a8"}, "values '+hidden' are to be 'w8a8'"),
    ],
)
def test_what_no_class_is(recipe: str | dict[str, str], message: str, tmp_path: Path) -> None:
    precision = recipe if isinstance(recipe, str) else str(tmp_path / "recipe.json")
    if isinstance(recipe, dict):
        Path(precision).write_text(json.dumps(recipe))
    with pytest.raises(EdgewmError) as fault:
        recipe_of(programs.transformer(3, 2, 20, 2, 9, 1), precision)
    assert fault.value.what == message and precision in fault.value.where

"""`edgewm show`: what a person reads of a program at each stage, and of a bundle."""

from __future__ import annotations

from pathlib import Path

import programs
import pytest

from edgewm import cli
from edgewm import expr as e
from edgewm.build import build
from edgewm.emit import schedule_program
from edgewm.errors import EdgewmError
from edgewm.passes import PIPELINE, run
from edgewm.program import Graph
from edgewm.show import STAGES, STEPS, at_stage, entry_text, expression, program_text, show

MODEL = "tiny_models:tiny"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shown") / "out"
    build(MODEL, out=out)
    return out


def small() -> Graph:
    x, w = e.input("x", (5, 3)), e.weight("w", (3, 3))
    body = Graph({"a": e.tanh(e.add(e.matmul(e.input("a", (5, 3)), e.input("w", (3, 3))), 0.5))})
    found = e.repeat(4, body, {"a": x}, {"w": w})["a"]
    return Graph({"y": e.reduce_sum(found, 1), "same": x})


def test_a_graph_is_one_line_a_node_with_loops_indented() -> None:
    assert entry_text("f", small()).splitlines() == [
        "entry f: 3 nodes, 1.27 k FLOP",
        "    x        f32[5, 3]  input",
        '    %0                  repeat 4 times, carrying a=x; fixed w="w"',
        "        a     f32[5, 3]  input",
        "        w     f32[3, 3]  input",
        "        %0    f32[5, 3]  matmul(a, w)",
        "        %1    f32[5, 3]  add(%0, 0.5)",
        "        %2    f32[5, 3]  tanh(%1)",
        "        -> a  f32[5, 3]  %2",
        "    %1       f32[5, 3]  %0.a",
        "    %2       f32[5, 1]  sum(%1, axis=1)",
        "    -> y     f32[5, 1]  %2",
        "    -> same  f32[5, 3]  x",
    ]


def test_an_expression_names_what_it_reads_twice() -> None:
    x = e.input("p0", (3,))
    t = e.add(x, 1.0)
    assert expression(Graph({"y": e.mul(t, e.exp(t))})) == "t0 = p0 + 1; t0 * exp(t0)"
    assert expression(Graph({"y": e.mul(e.add(x, 1.0), e.sub(x, 2.0))})) == "(p0 + 1) * (p0 - 2)"
    long = x
    for _ in range(200):
        long = e.add(e.mul(long, 2.0), x)
    assert expression(Graph({"y": long})).endswith("... (402 nodes)")


def test_kernels_say_what_they_compute() -> None:
    x = e.input("x", (5, 3))
    y = e.gelu(e.add(e.matmul(x, e.weight("w", (3, 2))), e.weight("b", (2,))))
    program = run(programs.program_of({"f": Graph({"y": y})}), PIPELINE)
    plain, told = (program_text(program, "fuse", kernels) for kernels in (False, True))
    assert '%0    f32[5, 2]  product(p0=x, p1="w", p2="b")' in plain
    assert "gelu((p0 @ p1) + p2)" in told
    assert "fuse_kernels" in plain and '"w"' in plain and "float32[3, 2]  24 B" in plain


def test_a_schedule_shows_regions_calls_and_memory() -> None:
    program = run(programs.program_of({"f": small()}), PIPELINE)
    program = program.with_(schedule=schedule_program(program, "scalar"))
    plain, told = (program_text(program, "schedule", kernels) for kernels in (False, True))
    for line in (
        "schedule: arena", "tiles of 16 lanes", "in  x  f32[5, 3]  arena+0", "region of 5 lanes, 1 tile",
        "repeat 4 times, round at arena+",
    ):  # fmt: skip
        assert line in plain, line
    assert "operands" not in plain and "left.p0  V f32 arena" in told and 'right.p1  B f32 weights "w"' in told


@pytest.mark.parametrize("stage", (None, *STAGES, STEPS[0]))
def test_a_model_at_every_stage(stage: str | None) -> None:
    text = show(MODEL, stage=stage)
    assert text.startswith(f"program after {stage or 'capture'}: 5 entries")
    assert "samples 8, iterations 2" in text and "safe [0.0, 0.0]" in text and "entry plan" in text
    assert ("log\n" in text) == (stage not in (None, "capture"))
    assert ("fuse_kernels" in text) == (stage in ("fuse", "schedule"))
    assert ("region of 8 lanes" in text) == (stage == "schedule")


def test_kernels_of_a_model_are_its_schedule() -> None:
    text = show(MODEL, kernels=True)
    assert text.startswith("program after schedule") and "product" in text and "strides [" in text


def test_quantize_shows_what_eight_bits_would_hold() -> None:
    program = run(programs.transformer(4, 2, 64, 2, 4, 1), ())
    found = at_stage(program, "quantize")
    assert {n.op for n in found.entries["score"].order()} >= {"rint", "cast"} and found.schedule is None
    assert "/i8" in program_text(found, "quantize")


def test_a_bundle_tells_what_its_file_holds(bundle: Path) -> None:
    text = show(str(bundle))
    for line in (
        "target     host, mode", "precision  fp32", "SHA-256", "ports", "sections", "fuse_kernels",
        "entry encode: 1 region",
    ):  # fmt: skip
        assert line in text, line
    assert "entry plan:" in text and "1 loop of 2 rounds" in text and "x   product" in text
    assert "Functor" not in text
    told = show(str(bundle), kernels=True)
    assert "repeat 2 times, left when time is up" in told and "product<Functor" in told and "topk 8x2" in told


def test_the_command_prints_it(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.execute(["show", str(bundle)]) == 0
    assert capsys.readouterr().out.startswith("bundle of ")


def test_what_cannot_be_shown_is_refused(bundle: Path, tmp_path: Path) -> None:
    for what, path, stage in (
        ("a bundle holds no stage 'capture'", str(bundle), "capture"),
        ("no stage 'dream'", MODEL, "dream"),
        ("neither a bundle nor a model", str(tmp_path), None),
        ("no bundle or model 'nowhere'", "nowhere", None),
    ):
        with pytest.raises(EdgewmError) as fault:
            show(path, stage=stage)
        assert what in fault.value.what
    (tmp_path / "model.ewm").write_bytes(b"EDGEWM\r\n")
    with pytest.raises(EdgewmError, match="the file has 8 bytes"):
        show(str(tmp_path))

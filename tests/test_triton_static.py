"""benchmarks/triton_static.py: what it reads from machine code, how it prices, chooses and refuses; Triton's kernels in
Triton's own interpreter where it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgewm.cuda import bound
from edgewm.cuda.compile import KernelFacts
from edgewm.errors import EdgewmError
from edgewm.target import resolve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import gpu_cases
import machine_code
import triton_static
from machine_code import Code, Loop

LISTING = """
.text.looped:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_2:
        /*0020*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0030*/                   IMMA.16832.S8.S8 R8, R4.ROW, R6.COL, R8 ;
        /*0040*/               @P0 BRA `(.L_x_2) ;
        /*0050*/              @!P1 BRA `(.L_x_1) ;
.L_x_3:
        /*0060*/                   FADD R2, R2, R3 ;
        /*0070*/               @P2 BRA `(.L_x_3) ;
        /*0080*/                   EXIT ;
.L_x_4:
        /*0090*/                   BRA `(.L_x_4);
        /*00a0*/                   NOP;
.text.straight:
        /*0000*/               @P0 BRA `(.L_x_5) ;
        /*0010*/                   FFMA R1, R2, R3, R1 ;
.L_x_5:
        /*0020*/                   EXIT ;
.L_x_6:
        /*0030*/                   BRA `(.L_x_6);
"""


def test_loops_that_multiply_are_found_in_machine_code() -> None:
    found = machine_code.codes_of(LISTING)
    assert found == {"looped": Code((Loop(3, 8192),), None), "straight": Code((), 3)}
    assert machine_code.each_operation([Loop(10, 64), Loop(40, 128), Loop(20, 128)]) == pytest.approx(30 / 128)
    assert machine_code.each_operation([]) is None


@pytest.fixture(scope="module")
def comparisons() -> dict[str, triton_static.Comparison]:
    found = triton_static.comparisons(gpu_cases.STACKS[0], gpu_cases.LEWM_ENCODER)
    return {comparison.name: comparison for comparison in found}


def test_tiles_hold_all_that_a_case_multiplies(comparisons: dict[str, triton_static.Comparison]) -> None:
    flops = {case.name: case.flops for case in gpu_cases.cases()}
    for comparison in comparisons.values():
        for launch in (launch for group in comparison.groups for launch in group):
            whole = [launch.does(tile) for tile in launch.tiles]
            if launch.kernel in ("quantize_rows", "window"):
                assert whole == [None] * len(whole)
            elif comparison.case != "lewm attention":
                assert all(flops[comparison.case] <= does.operations < 3 * flops[comparison.case] for does in whole)
    up = comparisons["up"].groups[0][1]
    assert up.blocks({"BM": 128, "BN": 64}) == 8 * 32


def part(registers: int, blocks: int, spills: int = 0, straight: int = 100) -> triton_static.Part:
    facts = KernelFacts("k", registers, spills, 0, 0, 7, "8.5", {})
    return triton_static.Part(facts, blocks, 128, 0, None, Code((), straight))


def test_a_straight_kernel_issues_all_it_has_and_waits_for_the_busiest_sm() -> None:
    board, mode = resolve("orin", "MAXN")
    one, more = (triton_static.priced([part(32, blocks)], {"arena": 0}, board, mode) for blocks in (16, 17))
    assert one["issue_us"] == pytest.approx(100 * 16 * 4 / (4 * 16 * mode.gpu_mhz))
    assert more["issue_us"] == pytest.approx(2 * one["issue_us"])
    long = triton_static.priced([part(32, 16, straight=10**6)], {"arena": 0}, board, mode)
    assert (
        long["with_issue_us"] >= long["issue_us"] > long["estimate_us"] and one["with_issue_us"] >= one["estimate_us"]
    )
    both = triton_static.together([one, more])
    assert both["launches"] == 2 and both["issue_us"] == pytest.approx(3 * one["issue_us"])


def test_the_tile_with_the_least_estimate_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    board, mode = resolve("orin", "MAXN")
    launch = triton_static.Launch(
        "window", {"PAIRS": 64, "DEPTH": 64}, [{"BM": b, "warps": 4, "stages": 1} for b in (1, 2, 4)]
    )
    made = {1: part(32, 64, straight=90_000), 2: part(32, 64, straight=200), 4: None}
    monkeypatch.setattr(triton_static, "compiled", lambda launch, tile, board: made[tile["BM"]])
    found, told = triton_static.best(launch, {"arena": 1 << 20}, board, mode)
    assert found is made[2] and told == "2, 4 warps, 1 stages, of 2"
    monkeypatch.setattr(triton_static, "compiled", lambda launch, tile, board: None)
    with pytest.raises(EdgewmError, match="Triton compiles window in none of its tiles"):
        triton_static.best(launch, {}, board, mode)


def test_edgewms_row_comes_from_its_own_machine_code(
    comparisons: dict[str, triton_static.Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {case.name: case for case in gpu_cases.cases(small=True)}
    monkeypatch.setattr(triton_static, "compiled", lambda launch, tile, board: part(32, 64))
    ours, theirs = triton_static.compared([comparisons["up"]], small, *resolve("orin", "MAXN"))
    assert [ours["name"], theirs["name"]] == ["up: edgewm", "up: Triton"] and ours["launches"] == 2
    assert ours["registers"] > 32 and ours["spill_bytes"] == 0 and ours["instructions_a_multiply"] > 1
    assert ours["estimate_us"] >= max(ours[f"{limit}_us"] for limit in bound.LIMITS)
    assert ours["moved_mib"] == theirs["moved_mib"] and "quantize_rows" in theirs["tiles"]


def test_a_missing_triton_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EdgewmError) as said:
        triton_static.check_triton()
    assert said.value.what == "Triton's kernels need triton, which is not installed"
    assert said.value.fix == "pip install triton==3.5.1"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_tritons_kernels_compute_what_torch_does() -> None:
    """In a process of its own: Triton reads whether it interprets when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("triton_interpreted.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

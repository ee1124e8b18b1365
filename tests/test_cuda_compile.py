"""Kernels compiled with no GPU: same bytes, their facts, and what is said where a tool is missing, refuses or dies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgewm.cuda import compile as c
from edgewm.errors import EdgewmError
from edgewm.target import resolve, targets

SPECIMEN = (Path(__file__).parent / "cuda" / "specimen.cu").read_text()
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spills(const float* x, float* y) {
  float kept[96];
  for (int i = 0; i < 96; i++) kept[i] = x[threadIdx.x + 1024 * i];
  __syncthreads();
  for (int i = 0; i < 96; i++) y[threadIdx.x + 1024 * i] = kept[i] * kept[95 - i] + kept[i * 7 % 96];
}
"""
BOARDS = [(t.gpu.sm, t.gpu.toolkit, t.gpu.elf_abi) for t in targets().values() if t.gpu and t.gpu.toolkit]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edgewm" / "cuda"


@pytest.mark.parametrize(("sm", "tools", "abi"), sorted(set(BOARDS)))
def test_one_ptx_becomes_a_cubin_for_each_board(sm, tools, abi):
    made = c.compile_cuda(SPECIMEN, {}, sm, tools)
    assert made.ptx == c.compile_ptx(SPECIMEN, {}) and ".target sm_87" in made.ptx
    product, scalars = made.facts
    assert (product.name, scalars.name) == ("product", "scalars")
    assert product.elf_abi == made.cubin[8] == abi and product.ptx_version == "8.5"
    assert product.shared_bytes == 3 * (64 + 32) * 32 + 4 * 16 * 4 and scalars.shared_bytes == 0
    assert product.spill_bytes == 0 and 0 < product.registers <= 128
    assert any(code.startswith("IMMA.16832.S8.S8") for code in product.instructions)
    assert not any(code.startswith("IMMA") for code in scalars.instructions)
    assert any(code.startswith("LDGSTS") for code in product.instructions)


def test_nothing_is_contracted_and_everything_is_rounded_as_ieee_says():
    ptx = c.compile_ptx('extern "C" __global__ void k(float* x) { x[0] = x[1] * x[2] + x[3]; x[4] = x[5] / x[6]; }', {})
    assert "mul.rn.f32" in ptx and "add.rn.f32" in ptx and "div.rn.f32" in ptx and "fma" not in ptx


@pytest.mark.parametrize("tools", c.ASSEMBLERS)
def test_the_same_input_gives_the_same_bytes(tools, tmp_path, monkeypatch):
    made = []
    for folder in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        made.append(c.compile_cuda(SPECIMEN, {}, "sm_87", tools))
    assert made[0] == made[1]


def test_what_was_compiled_is_kept_and_a_damaged_file_is_made_again(own_cache, monkeypatch):
    headers = {"one.h": "constexpr int one = 1;"}
    text = '#include "one.h"\nextern "C" __global__ void k(int* x) { *x = one; }'
    first = c.compile_cuda(text, headers, "sm_87", "12.6")
    (kept,) = own_cache.glob("*.cubin")
    kept.write_bytes(b"damaged")
    assert c.compile_cuda(text, headers, "sm_87", "12.6") == first
    monkeypatch.setattr(c, "_run", None)  # no tool is called again
    assert c.compile_cuda(text, headers, "sm_87", "12.6") == first
    with pytest.raises(TypeError):
        c.compile_cuda(text, {"one.h": "constexpr int one = 2;"}, "sm_87", "12.6")


def test_spills_are_seen():
    (facts,) = c.compile_cuda(SPILLING, {}, "sm_87", "12.6").facts
    assert facts.spill_bytes > 0 and facts.registers == 64


@pytest.mark.parametrize("tools", c.ASSEMBLERS)
def test_a_function_that_a_kernel_calls_has_facts_of_its_own(tools):
    text = """
    extern "C" __attribute__((noinline)) void part(float* x, int n) { for (int i = 0; i < n; i++) x[i] *= x[i + n]; }
    extern "C" __global__ void whole(float* x, int n) { part(x, n); part(x + 1, 2 * n); }
    """
    part, whole = c.compile_cuda(text, {}, "sm_87", tools).facts
    assert (part.name, whole.name) == ("part", "whole") and part.registers == whole.registers
    assert "FMUL" in part.instructions and "FMUL" not in whole.instructions and "EXIT" in whole.instructions


def test_an_error_of_the_compiler_is_told_with_its_line():
    with pytest.raises(
        EdgewmError, match=r"NVRTC failed:\n +bundle\.cu\(1\): error: identifier \"nothing\" is undefined"
    ):
        c.compile_ptx('extern "C" __global__ void k(int* x) { *x = nothing; }', {})


def test_what_the_assembler_refuses_is_told():
    with pytest.raises(EdgewmError, match=r"ptxas failed:\n.*sm_999") as told:
        c.compile_cuda(SPECIMEN, {}, "sm_999", "12.6")
    assert told.value.where == "assembling for sm_999"


def test_a_tool_that_dies_is_an_error_and_takes_nothing_with_it(own_cache, tmp_path, monkeypatch):
    worker = tmp_path / "dies.py"
    worker.write_text("import os\nos.abort()\n")
    monkeypatch.setattr(c, "WORKER", worker)
    with pytest.raises(EdgewmError, match="NVRTC failed:\n    ended by signal 6"):
        c.compile_ptx("// a text that nothing was kept of", {})
    assert not list(own_cache.iterdir())


def test_a_missing_package_says_which_line_to_type(monkeypatch):
    monkeypatch.setattr(c, "FRONT_END", dataclasses.replace(c.FRONT_END, package="edgewm-no-such-package"))
    with pytest.raises(EdgewmError, match="need edgewm-no-such-package, which is not installed") as told:
        c.compile_ptx("", {})
    assert told.value.fix == "pip install 'edgewm[gpu]'"


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(c, "FRONT_END", dataclasses.replace(c.FRONT_END, version="12.6.0"))
    with pytest.raises(EdgewmError, match=r"need nvidia-cuda-nvrtc-cu12 12\.6\.0, and 12\.6\.85 is installed") as told:
        c.compile_ptx("", {})
    assert told.value.fix == "pip install nvidia-cuda-nvrtc-cu12==12.6.0"


def test_a_board_without_tools_is_refused():
    xavier, _ = resolve("xavier")
    with pytest.raises(EdgewmError, match="no tools of CUDA any release are known for sm_72"):
        c.compile_cuda("", {}, xavier.gpu.sm, xavier.gpu.toolkit)


def test_the_extra_holds_exactly_the_tools_that_are_used():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for tool in (c.FRONT_END, c.DISASSEMBLER, *c.ASSEMBLERS.values()):
        assert f'"{tool.package}=={tool.version}"' in text

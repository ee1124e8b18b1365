"""Compiled kernels of every family, executed as PTX, are the oracle; planted faults are caught."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import numpy as np
import programs
import ptx
import pytest
import test_cuda_kernels as cases
import tiny
from ptx_bundle import Interpreted, kernel_text

from edgewm import interp
from edgewm.cuda.source import OWN
from edgewm.program import Program

# Odd shapes, more than one block along each axis; the forms of attention and of topk that differ in their code.
NAMES = (
    "product_direct23", "product_gathered23", "product_norm23", "product_norm24", "product_of_each1", "attention1",
    "attention3", "attention6", "attention7", "attended0", "followed0", "sum2", "max2", "map1", "clamped", "rounded",
    "best2", "best4",
)  # fmt: skip


@cache
def program() -> Program:
    return cases.program({name: cases.GRAPHS[name] for name in NAMES})


@cache
def bundle() -> Interpreted:
    return Interpreted(program())


def differences(name: str) -> list[str]:
    graph = program().entries[name]
    inputs = cases.inputs_of(graph)
    return cases.differing(name, program(), bundle().run(name, **inputs), inputs)


@pytest.mark.parametrize("part", ["fp32_product", "w8a8", "w8s", "bf16", "fp16", "fp8", "fp32_attention", "fp32_sum",
                                  "fp32_max", "fp32_map", "fp32_clamped", "fp32_rounded", "fp32_best"])  # fmt: skip
def test_compiled_kernels_are_the_oracle(part):
    found = {name: differences(name) for name in program().entries if name.startswith(part)}
    assert found and {n: d for n, d in found.items() if d} == {}


def test_a_compiled_prediction_of_a_whole_model_is_the_oracles():
    whole = tiny.lowered()
    predict = whole.entries["predict"]
    inputs = programs.inputs_of(predict)
    found = Interpreted(whole.with_(entries={"predict": predict})).run("predict", **inputs)
    assert programs.differing(found, interp.run(predict, inputs, whole.weights)) == []


@pytest.mark.parametrize("family", ["ewm_map", "ewm_product_fill"])
def test_a_thread_has_loaded_all_it_needs_before_it_stores(family):
    """For all that the assembler knows, a store changes what a later load reads: each would wait for the last."""
    for name in (name for name in bundle().functions if name.startswith(family)):
        text = kernel_text(bundle().text, name)
        order = re.findall(r"^\s+(?:@\S+ )?(ld(?!\.param)|st)\.", text, re.M)
        assert order == sorted(order) and "st" in order, name


def test_operands_are_brought_all_at_once_and_first():
    for name in bundle().functions[len(OWN) :]:
        which = re.findall(r"ld\.global\S*\s+(\S+),", kernel_text(bundle().text, name))
        assert "%touched" in which and which.index("%touched") <= 2, (name, which[:5])  # behind words of the call alone


def test_what_is_quantized_is_computed_once_where_it_can_be_kept():
    """Each number is divided by the norm, then looked at twice: half of the kernel's divisions are for long rows."""
    bundle().memory.module.machines.clear()
    outputs("w8a8_product_norm23")
    divisions, places = 0, executed()
    for name in (name for name in places if "product_i8_quantize" in name):
        code = bundle().memory.module.kernels[name].code
        norm = [at for at, instruction in enumerate(code) if instruction.op[:2] == ("div", "rn")]
        done = len(set(norm) & set(places[name]))
        divisions += len(norm)
        assert done <= len(norm) // 2 + 2, (name, done, len(norm))  # and those that make a step of a range
    assert divisions > 0


# ---------------------------------------------------------------------------------------------- planted faults

NOTHING = ptx.Instruction("", ("membar", "gl"), (), "membar.gl")
SITES = 3  # of each kernel, where there are more


def moved(instruction: ptx.Instruction, operand: int, bytes_: int) -> ptx.Instruction:
    """The same at an address that many bytes on."""
    at = instruction.operands[operand]
    name, offset = re.fullmatch(r"\[([^+\]]+)(?:\+(-?\d+))?\]", at).groups()
    own = list(instruction.operands)
    own[operand] = f"[{name}+{int(offset or 0) + bytes_}]"
    return replace(instruction, operands=tuple(own))


def dropped_barrier(i: ptx.Instruction) -> ptx.Instruction | None:
    return NOTHING if i.op[:2] == ("bar", "sync") else None


def late_wait(i: ptx.Instruction) -> ptx.Instruction | None:
    return replace(i, operands=(str(int(i.operands[0]) + 1),)) if i.op[-1] == "wait_group" else None


def next_row(i: ptx.Instruction) -> ptx.Instruction | None:
    return moved(i, 1, 16) if i.op[0] == "ldmatrix" else None


def next_place(i: ptx.Instruction) -> ptx.Instruction | None:
    return moved(i, 0, 4) if i.op in (("st", "global", "f32"), ("st", "global", "u32")) else None


def swapped_fragment(i: ptx.Instruction) -> ptx.Instruction | None:
    if i.op[0] != "mma":
        return None
    first, second = i.operands[2].strip("{}").split(",")
    return replace(i, operands=(*i.operands[:2], f"{{{second}, {first}}}", i.operands[3]))


TENSOR = ("w8a8_product_norm23", "bf16_product_norm23", "w8a8_attended0")  # every strip of k is of use in some step
PROBES = {
    # The last barrier of the tensor cores' products parts lanes of one warp, which step together here, and that of a
    # chain what lies in global memory: fibers see them.
    dropped_barrier: ("fp32_product_direct23", "fp32_attention3", "fp32_best4"), late_wait: TENSOR, next_row: TENSOR,
    next_place: ("fp32_sum2", "fp32_best2"), swapped_fragment: TENSOR,
}  # fmt: skip


def outputs(name: str) -> dict[str, np.ndarray]:
    return bundle().run(name, **programs.inputs_of(program().entries[name]))


def executed() -> dict[str, list[int]]:
    """Kernels launched since machines were cleared, and which of their instructions some thread came to."""
    machines = bundle().memory.module.machines
    return {how[0]: [at for at, step in enumerate(m.steps) if step is not None] for how, m in machines.items()}


def is_caught(name: str, whole: dict[str, np.ndarray]) -> bool:
    try:
        return bool(programs.differing(outputs(name), whole))
    except ptx.Fault:
        return True


@pytest.mark.parametrize("fault", [dropped_barrier, late_wait, next_row, next_place, swapped_fragment],
                         ids=lambda f: f.__name__)  # fmt: skip
def test_planted_faults_are_caught(fault):
    module, sites, missed = bundle().memory.module, 0, []
    for name in PROBES[fault]:
        module.machines.clear()
        right = outputs(name)
        for kernel, places in executed().items():
            whole = module.kernels[kernel]
            own = [(at, m) for at in places if (m := fault(whole.code[at])) is not None]
            for at, mutant in own[:: -(-len(own) // SITES) or 1]:
                module.kernels[kernel] = replace(whole, code=(*whole.code[:at], mutant, *whole.code[at + 1 :]))
                module.machines.clear()
                sites += 1
                if not is_caught(name, right):
                    missed.append((kernel, at, whole.code[at].text))
            module.kernels[kernel] = whole
    module.machines.clear()
    assert sites and missed == []

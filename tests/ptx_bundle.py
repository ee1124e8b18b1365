"""An emitted program whose compiled kernels are executed by the interpreter of PTX, launch by launch, as on a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import ptx
from cuda_cpu import LAUNCH, Bundle, emitted

from edgewm import format as ewm
from edgewm.cuda.compile import compile_ptx
from edgewm.cuda.launches import THREADS
from edgewm.cuda.source import HEADERS, cuda_text, launch_rows
from edgewm.program import Program


class Spaces:
    """The three spaces of a program and what a launch is given, in an interpreter's memory."""

    def __init__(self, module: ptx.Module, sizes: tuple[int, int, int], tables: tuple[np.ndarray, np.ndarray]):
        self.module = module
        self.memory = ptx.Memory(sum(sizes) + sum(t.nbytes for t in tables) + (1 << 20))
        places = [self.memory.empty(size, owned) for size, owned in zip(sizes, (2, 2, 1), strict=True)]
        self.spaces = [self.memory.view(p, n) for p, n in zip(places, sizes, strict=True)]
        self.parameter = np.zeros((), LAUNCH)
        self.parameter["base"] = places
        for key, array in zip(("calls", "operands"), tables, strict=True):
            self.parameter[key] = self.memory.put(array)
        self.steps = 0

    def launch(self, row: np.void, functions: tuple[str, ...]) -> None:
        self.parameter["call"], self.parameter["phase"] = row["call"], row["phase"]
        name, shared = functions[int(row["function"])], int(row["shared_bytes"])
        given = self.parameter.tobytes()
        self.steps += ptx.launch(self.module, name, self.memory, given, int(row["blocks"]), THREADS, shared)


class Interpreted(Bundle):
    """`mutate` changes the PTX before it is run."""

    def __init__(self, program: Program, mutate: Callable[[str], str] = lambda text: text):
        self.sections, self.source = emitted(program)
        self.functions, self.rows = launch_rows(self.sections, self.source)
        self.text = mutate(compile_ptx(cuda_text(self.source), HEADERS))
        (sizes,) = np.frombuffer(self.sections["sizes"], ewm.SIZES)
        spaces = tuple(int(sizes[f"{name}_bytes"]) for name in ("arena", "scratch", "weight"))
        tables = self.table("calls", ewm.CALL), self.table("operands", ewm.OPERAND)
        self.memory = Spaces(ptx.parse(self.text), spaces, tables)
        self.memory.spaces[2][:] = np.frombuffer(self.sections["weights"], np.uint8)
        self.memory.spaces[1][:] = 0xFF


def kernel_text(ptx_text: str, name: str) -> str:
    """One `.entry` of a PTX file."""
    return re.search(rf"\.visible \.entry {name}\(.*?^\}}", ptx_text, re.S | re.M)[0]

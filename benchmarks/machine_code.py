"""Loops of compiled GPU kernels, from their machine code: how many instructions it takes to multiply."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from edgewm.cuda.compile import DISASSEMBLER
from edgewm.cuda.occupancy import WARP

# Operations of one instruction of a warp, a multiply-add as two.
MULTIPLIES = {"IMMA.16832": 2 * 16 * 8 * 32, "HMMA.16816": 2 * 16 * 8 * 16, "FFMA": 2 * WARP}


class Loop(NamedTuple):
    """Instructions of a loop that holds none, and operations of those that multiply."""

    instructions: int
    operations: int


class Code(NamedTuple):
    """Of a function: innermost loops that multiply, and how many instructions it has where it has no loop at all."""

    loops: tuple[Loop, ...]
    straight: int | None


def codes_of(listing: str) -> dict[str, Code]:
    """Of each kernel in nvdisasm's listing."""
    found = {}
    pieces = re.split(r"^\.text\.(\w+):\n", listing, flags=re.M)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        codes: list[str] = []
        labels: dict[str, int] = {}
        jumps: list[tuple[int, str]] = []
        for line in text.splitlines():
            if label := re.match(r"(\.L_\w+):", line):
                labels[label[1]] = len(codes)
            elif code := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)(?:[^;]*`\((\.L\w+)\))?", line):
                if code[2]:
                    jumps.append((len(codes), code[2]))
                codes.append(code[1])
        back = [(labels[to], at) for at, to in jumps if labels.get(to, at) < at]  # what ends a listing jumps to itself
        inner = [a for a in back if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in back)]
        counted = [_counted(codes[first : last + 1]) for first, last in inner]
        end = max(i for i, code in enumerate(codes) if code == "EXIT") + 1
        found[name] = Code(tuple(loop for loop in counted if loop.operations), None if back else end)
    return found


def _counted(codes: Sequence[str]) -> Loop:
    done = sum(next((n for begin, n in MULTIPLIES.items() if code.startswith(begin)), 0) for code in codes)
    return Loop(len(codes), done)


def each_operation(found: Sequence[Loop]) -> float | None:
    """Instructions an operation, of the loops that do most at once; None where nothing multiplies."""
    most = max((loop.operations for loop in found), default=0)
    best = [loop.instructions / loop.operations for loop in found if loop.operations == most and most]
    return sum(best) / len(best) if best else None


def listing_of(cubin: bytes) -> str:
    """nvdisasm's listing of all functions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(DISASSEMBLER.path()), "-c", file.name]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout

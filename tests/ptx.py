"""Executes compiled PTX on a CPU: what is assembled for a board is what runs here, instruction by instruction.

The threads of many blocks are lanes of numpy vectors, one vector a register. All threads at the smallest program
counter step together, so that those that went apart meet again where the code does. Memory is checked: an access
outside what a launch was given, or not aligned to its size, is a `Fault`. A 16-byte asynchronous copy poisons where it
goes until it is waited for; shared memory starts poisoned. Two warps of a block that touch the same word of shared
memory between the same barriers, one of them writing, are a fault however they happened to be scheduled, and so is
reading from global memory what another one wrote there. What a GPU would leave undefined (a warp's operation without
all its lanes, a barrier that some threads of a block reach elsewhere) is a fault too. An unknown instruction raises by
name. No races between lanes of a warp, no tensor memory, no clusters, no timing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

WARP = 32
POISON, FRESH_SHARED, FRESH_GLOBAL = 0x7F, 0xCD, 0xEE
GLOBAL_BASE, SHARED_BASE, LOCAL_BASE = 1 << 33, 1 << 24, 1 << 28  # where generic addresses of each space begin
SPACE_BYTES = 1 << 23  # of shared and of local memory: how far their generic addresses reach
GUARD_BYTES = 256  # that nobody owns, around each buffer
WORD = 4  # bytes that races are told apart by


class Fault(AssertionError):
    """Something a GPU must not be asked to do; says which instruction of which kernel."""


@dataclass(frozen=True)
class Instruction:
    predicate: str  # "", "%p1" or "!%p1"
    op: tuple[str, ...]
    operands: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Kernel:
    """One `.entry`: parameters as (offset, bytes), registers as bits, shared symbols as offsets (-1: dynamic)."""

    name: str
    parameters: Mapping[str, tuple[int, int]]
    registers: Mapping[str, int]
    shared: Mapping[str, int]
    shared_bytes: int
    local: Mapping[str, tuple[int, int]]
    code: tuple[Instruction, ...]
    labels: Mapping[str, int]
    variables: frozenset[str]  # of module scope, that it names


@dataclass(frozen=True)
class Module:
    kernels: Mapping[str, Kernel]
    variables: Mapping[str, bytes]  # of module scope, in global or constant memory
    machines: dict = field(default_factory=dict, repr=False)  # decoded kernels, by how they were launched


BITS = {"pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16,
        "b32": 32, "u32": 32, "s32": 32, "f32": 32, "b64": 64, "u64": 64, "s64": 64, "f64": 64}  # fmt: skip
_VARIABLE = r"\.align (\d+) \.(\w+) ([\w$]+)(?:\[(\d*)\])?(?: = (\{[^}]*\}|[^;]+))?;"


def parse(text: str) -> Module:
    """The kernels of a PTX file. ValueError where a line is not understood."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    outside = re.sub(r"\{\s*\n.*?^\}", "", text, flags=re.S | re.M)
    dynamic = frozenset(re.findall(r"\.extern \.shared .align \d+ \.b8 ([\w$]+)\[\];", outside))
    fixed, at = {}, 0
    for align, kind, name, count, _ in re.findall(r"(?<!\.extern )\.shared " + _VARIABLE, outside):
        at = -(-at // int(align)) * int(align)
        fixed[name], at = at, at + BITS[kind] // 8 * int(count or 1)
    variables = {}
    for _, kind, name, count, value in re.findall(r"\.(?:global|const) " + _VARIABLE, outside):
        size = BITS[kind] // 8
        found = re.findall(r"[-\w]+", value)  # 0f3F800000 is a float by its bits
        numbers = [int(v[2:], 16) if v[:2] in ("0f", "0d") else int(v, 0) for v in found]
        data = b"".join((v % (1 << 8 * size)).to_bytes(size, "little") for v in numbers)
        variables[name] = data.ljust(size * int(count or 1), b"\0")
    kernels = {}
    for name, head, body in re.findall(r"\.entry ([\w$]+)\s*\((.*?)\)[^{]*\{\n(.*?)^\}", text, re.S | re.M):
        named = frozenset(set(re.findall(r"[\w$]+", body)) & set(variables))
        kernels[name] = _kernel(name, head, body, fixed | dict.fromkeys(dynamic, -1), at, named)
    return Module(kernels, variables)


def _kernel(name: str, head: str, body: str, shared: Mapping[str, int], at: int, variables: frozenset[str]) -> Kernel:
    parameters, offset = {}, 0
    for align, kind, parameter, count in re.findall(r"\.param (?:\.align (\d+) )?\.(\w+) ([\w$]+)(?:\[(\d+)\])?", head):
        size = BITS[kind] // 8 * int(count or 1)
        offset = -(-offset // int(align or size)) * int(align or size)
        parameters[parameter] = (offset, size)
        offset += size
    shared, local, local_at = dict(shared), {}, 0
    registers: dict[str, int] = {}
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    body = re.sub(r"^\s*[{}]\s*$", "", body, flags=re.M)
    for statement in re.sub(r"^([$\w]+:)", r"\1;", body, flags=re.M).split(";"):
        line = " ".join(statement.split())
        if line.endswith(":"):
            labels[line[:-1]] = len(code)
        elif line.startswith(".reg"):
            kind, names = re.fullmatch(r"\.reg \.(\w+) (.*)", line).groups()
            for one in names.split(","):
                many = re.fullmatch(r"(%\w+)<(\d+)>", one.strip())
                every = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [one.strip()]
                registers.update(dict.fromkeys(every, BITS[kind]))
        elif line.startswith((".shared", ".local")):
            align, kind, symbol, count, _ = re.search(_VARIABLE, line + ";").groups()
            size = BITS[kind] // 8 * int(count or 1)
            if line.startswith(".shared"):
                at = -(-at // int(align)) * int(align)
                shared[symbol], at = at, at + size
            else:
                local_at = -(-local_at // int(align)) * int(align)
                local[symbol], local_at = (local_at, size), local_at + size
        elif line.startswith("."):
            if not line.startswith((".pragma", ".loc", ".file")):
                raise ValueError(f"{name}: {line!r} is not understood")
        elif line:
            code.append(_instruction(line))
    return Kernel(name, parameters, registers, shared, at, local, tuple(code), labels, variables)


def _instruction(line: str) -> Instruction:
    predicate, rest = re.fullmatch(r"(?:@(!?%\w+) )?(.*)", line, re.S).groups()
    op, _, operands = rest.partition(" ")
    split = [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", operands)]
    return Instruction(predicate or "", tuple(op.split(".")), tuple(split), line)


class Memory:
    """Global memory: buffers apart from each other, at addresses that are multiples of 256."""

    def __init__(self, capacity_bytes: int = 1 << 20) -> None:
        self.data = np.full(capacity_bytes, FRESH_GLOBAL, np.uint8)
        self.owned = np.zeros(capacity_bytes, np.uint8)  # 0 nobody's, 1 read only, 2 to be written
        self.end = GUARD_BYTES
        self.variables: dict[str, int] = {}
        self.launches = 0
        self.written: tuple[np.ndarray, np.ndarray] | None = None  # of each word: in which launch and by which warp

    def put(self, values: np.ndarray | bytes, writable: bool = False) -> int:
        """A copy of `values`; its address."""
        raw = np.frombuffer(values, np.uint8) if isinstance(values, bytes) else np.ascontiguousarray(values).reshape(-1)
        at = self.empty(raw.nbytes, 2 if writable else 1)
        self.view(at, raw.nbytes)[:] = raw.view(np.uint8)
        return at

    def empty(self, size: int, owned: int = 2) -> int:
        """Address of `size` bytes to be written; they hold 0xEE."""
        at, self.end = self.end, self.end + -(-size // GUARD_BYTES) * GUARD_BYTES + GUARD_BYTES
        if self.end > len(self.data):
            raise MemoryError(f"{self.end} bytes of {len(self.data)}: give the memory more")
        self.owned[at : at + size] = owned
        return GLOBAL_BASE + at

    def view(self, address: int, size: int) -> np.ndarray:
        """Those bytes, in place."""
        return self.data[address - GLOBAL_BASE :][:size]

    def get(self, address: int, dtype: type, shape: Sequence[int]) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.view(address, size).copy().view(dtype).reshape(shape)


def launch(
    module: Module, name: str, memory: Memory, parameters: bytes | Sequence, grid: int | Sequence[int],
    block: int | Sequence[int] = 256, shared_bytes: int = 0, together: int = 32,
) -> int:  # fmt: skip
    """Run a kernel of the module to its end; the number of instructions executed, of a step of threads each.

    `parameters` are the bytes of all of them, or a numpy scalar each. `together` blocks step side by side; blocks of
    a later batch see what earlier ones wrote.
    """
    from ptx_machine import Machine

    kernel = module.kernels[name]
    grid, block = (tuple(d) if isinstance(d, Sequence) else (d,) for d in (grid, block))
    grid, block = ((*d, 1, 1)[:3] for d in (grid, block))
    if not isinstance(parameters, bytes):
        data = bytearray()
        for value in parameters:
            data.extend(b"\0" * (-len(data) % value.itemsize))
            data.extend(value.tobytes())
        parameters = bytes(data)
    wanted = max((o + s for o, s in kernel.parameters.values()), default=0)
    if len(parameters) != wanted:
        raise Fault(f"{name} takes {wanted} bytes of parameters, {len(parameters)} were given")
    blocks, steps = int(np.prod(grid)), 0
    for first in range(0, blocks, together):
        here = np.arange(first, min(first + together, blocks))
        how = (name, id(memory), grid, block, shared_bytes, len(here))
        if how not in module.machines:
            module.machines[how] = Machine(module, kernel, memory, grid, block, shared_bytes, len(here))
        steps += module.machines[how].run(here, parameters)
    return steps

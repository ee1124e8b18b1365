"""What a compiled kernel must keep to before it is put in a bundle; each gate refuses by an EdgewmError of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import EdgewmError
from ..target import Gpu, Mode, Target
from .compile import Compiled, KernelFacts
from .occupancy import occupancy, resident_blocks

SPILL_BYTES = 0  # a thread; no kernel of edgewm's needs more than the registers there are
TUNE = "give its threads less to hold: a smaller tile, or fewer outputs a thread"


@dataclass(frozen=True)
class Use:
    """One launch of a kernel: blocks of the grid, threads a block, dynamic shared bytes a block, and blocks that an SM
    is to hold at once."""

    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    cooperative: bool = False
    resident: int = 1


def check(
    compiled: Compiled, uses: Iterable[Use], instructions: Mapping[str, str], board: Target, mode: Mode,
    spills: Mapping[str, int] | None = None,
) -> None:  # fmt: skip
    """EdgewmError at the first kernel that keeps to less than this board in this mode asks for.

    `instructions`: kernel -> beginning of a mnemonic that must stand in its machine code, e.g. IMMA.16832.S8; `spills`:
    kernel -> bytes a thread that it may spill, SPILL_BYTES where it is not named.
    """
    facts = {f.name: f for f in compiled.facts}
    for kernel in facts.values():
        check_file(kernel, board.gpu)
        check_spills(kernel, (spills or {}).get(kernel.name, SPILL_BYTES))
    for name, instruction in instructions.items():
        check_instruction(_facts(facts, name), instruction)
    for use in uses:
        check_use(_facts(facts, use.kernel), use, board, mode)


def check_file(facts: KernelFacts, gpu: Gpu) -> None:
    """The cubin is of the generation that the board's drivers load, its PTX no newer than they compile."""
    where = f"kernel {facts.name}, tools of CUDA {gpu.toolkit}"
    if facts.elf_abi != gpu.elf_abi:
        raise EdgewmError(
            f"the cubin is ELF ABI {facts.elf_abi}; drivers of {gpu.name} load {gpu.elf_abi}", where,
            "correct gpu.toolkit or gpu.elf_abi in the target's file",
        )  # fmt: skip
    if _version(facts.ptx_version) > _version(gpu.ptx_version):
        raise EdgewmError(
            f"its PTX is of version {facts.ptx_version}; drivers of {gpu.name} compile up to {gpu.ptx_version}", where,
            "correct gpu.ptx_version in the target's file, or compile with older tools",
        )  # fmt: skip


def check_spills(facts: KernelFacts, most_bytes: int = SPILL_BYTES) -> None:
    if facts.spill_bytes > most_bytes:
        raise EdgewmError(
            f"{facts.spill_bytes} bytes a thread are spilled, {most_bytes} are allowed", f"kernel {facts.name}", TUNE
        )


def check_instruction(facts: KernelFacts, instruction: str) -> None:
    if not any(code.startswith(instruction) for code in facts.instructions):
        raise EdgewmError(
            f"there is no {instruction} in its machine code", f"kernel {facts.name}",
            "the product must reach the tensor cores: look at its inner loop",
        )  # fmt: skip


def check_use(facts: KernelFacts, use: Use, board: Target, mode: Mode) -> None:
    """As many blocks of it as are wanted fit an SM, and a cooperative grid fits all SMs of the mode at once."""
    where = f"kernel {facts.name} on {board.name}"
    shared = facts.shared_bytes + use.shared_bytes
    if shared > board.gpu.shared_bytes_per_block:
        raise EdgewmError(
            f"a block asks for {shared} bytes of shared memory; {board.gpu.shared_bytes_per_block} is the most", where,
            "take a smaller tile or fewer stages",
        )  # fmt: skip
    held = occupancy(board.gpu, facts.registers, use.threads, shared)
    if held.blocks == 0:
        raise EdgewmError(
            f"a block of {use.threads} threads with {facts.registers} registers each does not fit an SM", where, TUNE
        )
    if held.blocks < use.resident:
        raise EdgewmError(
            f"an SM holds {held.blocks} of its blocks at once, limited by {held.limit}; {use.resident} are wanted",
            where, f"{TUNE}, or build without one launch for all (persistent)",
        )  # fmt: skip
    if not use.cooperative:
        return
    most = resident_blocks(board, mode, facts.registers, use.threads, shared)
    if use.blocks > most:
        raise EdgewmError(
            f"a cooperative grid of {use.blocks} blocks; {most} run at once in {mode.name}", where,
            f"launch at most {most} blocks, or build for a mode with more SMs",
        )  # fmt: skip


def _facts(facts: Mapping[str, KernelFacts], name: str) -> KernelFacts:
    if name not in facts:
        raise EdgewmError(
            f"no kernel {name!r} was compiled", "the cubin of this bundle", f"there are {', '.join(sorted(facts))}"
        )
    return facts[name]


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))

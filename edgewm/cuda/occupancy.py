"""How many blocks of a kernel an SM holds at once, and how many of them run side by side in a power mode.

Units of allocation are those of NVIDIA's occupancy calculator (`cuda_occupancy.h`) for compute capability 8 and newer.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import EdgewmError
from ..target import Gpu, Mode, Target

WARP = 32  # threads
PARTITIONS = 4  # of an SM; a warp's registers come from one of them
REGISTER_UNIT = 256  # registers, given out to a warp
SHARED_UNIT_BYTES = 128  # given out to a block
SHARED_RESERVED_BYTES = 1024  # of each block, the system's own


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps of one SM at once, their fraction of the warps it can hold, and what allows no more."""

    blocks: int
    warps: int
    fraction: float
    limit: str


def occupancy(gpu: Gpu, registers: int, threads: int, shared_bytes: int) -> Occupancy:
    """Of a kernel with so many registers a thread, threads a block and bytes of shared memory a block, dynamic ones
    included. 0 blocks: it cannot start. EdgewmError where the board's blocks per SM are not known."""
    if gpu.blocks_per_sm is None:
        raise EdgewmError(
            f"how many blocks an SM of {gpu.name} holds is not known", "target, gpu.blocks_per_sm",
            "add it with its source to the target's file",
        )  # fmt: skip
    warps = _up(threads, WARP) // WARP
    of_warp = _up(max(registers, 1) * WARP, REGISTER_UNIT)
    of_block = _up(shared_bytes, SHARED_UNIT_BYTES) + SHARED_RESERVED_BYTES
    limits = {
        "registers": gpu.registers_per_sm // PARTITIONS // of_warp * PARTITIONS // warps,
        "shared memory": gpu.shared_bytes_per_sm // of_block,
        "threads": gpu.threads_per_sm // WARP // warps,
        "blocks": gpu.blocks_per_sm,
    }
    limit = min(limits, key=limits.__getitem__)
    blocks = limits[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps * WARP / gpu.threads_per_sm, limit)


def resident_blocks(board: Target, mode: Mode, registers: int, threads: int, shared_bytes: int) -> int:
    """Blocks that run at once on all SMs which this power mode leaves on: a cooperative grid may not be larger."""
    if board.gpu is None or mode.sm is None:
        raise EdgewmError(
            f"how many SMs {board.name} has in {mode.name} is not known", f"--mode {mode.name}",
            "choose one of " + ", ".join(m.name for m in board.mode if m.sm) + ", whose SMs are known",
        )  # fmt: skip
    return occupancy(board.gpu, registers, threads, shared_bytes).blocks * mode.sm


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit

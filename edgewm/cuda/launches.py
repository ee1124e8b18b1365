"""How each kernel of `kernels/*.cu` is launched: blocks and shared memory, from a call's loops and lanes.

Every block has THREADS threads, every grid one dimension, and a block's index is its tile of the call. What a tile is
stands here and in the kernel: change both together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

THREADS = 256
TILE = 32  # lanes that a value is padded to, so that rows of lanes begin at whole sectors of memory
MAP_STEPS = 4  # of the innermost loop, by each thread of `map`


@dataclass(frozen=True)
class Shape:
    """One launch of a kernel."""

    blocks: int
    shared_bytes: int = 0


@dataclass(frozen=True)
class Facts:
    """What a launch depends on: loops, lanes, and for a product the loops that change the weights."""

    dims: tuple[int, ...]
    lanes: int
    batch: tuple[bool, ...] = ()


def power_of_two(x: int, most: int) -> int:
    """The least power of two not below `x`, at most `most`."""
    return min(1 << max(x - 1, 0).bit_length(), most)


def spread(lanes: int, count: int) -> tuple[int, int]:
    """Threads of a block along the lanes, and along something else that there is `count` of.

    Both are powers of two. Lanes get 32 or what they need, the other what it needs of the rest, lanes what is left.
    """
    others = power_of_two(count, THREADS // power_of_two(lanes, TILE))
    return THREADS // others, others


def map_shape(call: Facts) -> Shape:
    """A block for each outer index, each tile of lanes and as many steps of the innermost loop as its threads run."""
    *outer, count = call.dims
    across, along = spread(call.lanes, count)
    return Shape(prod(outer) * -(-call.lanes // across) * -(-count // (along * MAP_STEPS)))


SHAPES = {"map": map_shape}
PACK: dict = {}


def workspace_bytes(call) -> int:
    return 0

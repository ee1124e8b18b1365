"""How each kernel of `kernels/*.cu` is launched: blocks and shared memory, from a call's loops and lanes.

Every block has THREADS threads, every grid one dimension, and a block's index is its tile of the call. The kernels are
compiled with the sizes that stand here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

THREADS = 256
TILE = 32  # lanes that a value is padded to, so that rows of lanes begin at whole sectors of memory
STEPS = 4  # of the innermost loop, by each thread of `map` (or 1, where a functor is long)
SIDE, BAND = 64, 128  # of a tile of a product: columns (rows too without tensor cores), rows
STRIP, STRIPS = 64, 3  # bytes of k in shared memory, for each row and column; how many at once
NARROW, FEW_TILES = 32, 64  # where there are fewer tiles of BAND x SIDE, they are NARROW x NARROW
NARROW_STRIPS = 2  # of each warp at once
FOLD = 256  # terms of each lane in shared memory, in `reduce`
QUERIES, GOOD_BYTES, MOST_BYTES, SLOTS = 4, 40 << 10, 80 << 10, 64  # of `attention`; GOOD_BYTES of int8's rows
REGISTERS = 128  # of a thread, where an SM of 65,536 holds RESIDENT blocks
RESIDENT = 2  # blocks that an SM must hold at once; half of what sm_87 shares, the least of all boards, is 82,944 bytes
MULTIPROCESSORS = 16  # that blocks are shared among, where it is weighed how a product is cut: an AGX Orin's

SIZES: dict[str, int] = {
    "THREADS": THREADS, "TILE": TILE, "SIDE": SIDE, "BAND": BAND, "STRIP": STRIP, "STRIPS": STRIPS, "NARROW": NARROW,
    "NARROW_STRIPS": NARROW_STRIPS, "FOLD": FOLD, "QUERIES": QUERIES, "GOOD_BYTES": GOOD_BYTES, "SLOTS": SLOTS,
    "RESIDENT": RESIDENT,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One launch of a kernel."""

    blocks: int
    shared_bytes: int = 0


@dataclass(frozen=True)
class Facts:
    """What a launch depends on: loops, lanes, the loops that change a product's weights, steps of a thread of `map`."""

    dims: tuple[int, ...]
    lanes: int
    batch: tuple[bool, ...] = ()
    steps: int = STEPS


def power_of_two(x: int, most: int) -> int:
    """The least power of two not below `x`, at most `most`."""
    return min(1 << max(x - 1, 0).bit_length(), most)


def spread(lanes: int, count: int) -> tuple[int, int]:
    """Threads of a block along the lanes, and along something else that there is `count` of.

    Both are powers of two. Lanes get 32 or what they need, the other what it needs of the rest, lanes what is left.
    """
    others = power_of_two(count, THREADS // power_of_two(lanes, TILE))
    return THREADS // others, others


def cut(family: str, call: Facts) -> int:
    """What kernels are told of how a call is cut: `Call.cut` of its row.

    Of a map the threads along its innermost loop; of a product on tensor cores whether its tiles are narrow; of an
    attention the queries of a block, 0 where its scores go to the workspace, a query at a time.
    """
    if family in ("map", "copy"):
        return spread(call.lanes, call.dims[-1])[1]
    if family in BYTES:
        return int(_is_narrow(call))
    if family == "attention":
        at_once, spills = attention_cut(*call.dims[-4:-1])
        return 0 if spills else at_once
    return 0


def _lane_tiles(call: Facts) -> int:
    return -(-call.lanes // TILE)


def _map(call: Facts) -> Shape:
    """A block for each outer index, each tile of lanes and as many steps of the innermost loop as its threads run."""
    *outer, count = call.dims
    across, along = spread(call.lanes, count)
    return Shape(prod(outer) * -(-call.lanes // across) * -(-count // (along * call.steps)))


def _topk(call: Facts) -> Shape:
    return Shape(1, 4 * (3 * THREADS + 2))


def _take(call: Facts) -> Shape:
    return Shape(-(-prod(call.dims) // THREADS))


def _rows(call: Facts) -> tuple[int, int]:
    """Of a product: indices that change the weights, and rows that share them (lanes at the other outer indices)."""
    outer = call.dims[:-2]
    batches = prod(d for d, moves in zip(outer, call.batch, strict=True) if moves)
    return batches, prod(outer) // batches * call.lanes


def _multiply(call: Facts) -> Shape:
    """Tiles of SIDE rows and columns. Shared memory holds two slices of both, then the sums, a column 4 rows longer."""
    batches, rows = _rows(call)
    return Shape(batches * -(-rows // SIDE) * -(-call.dims[-2] // SIDE), 4 * SIDE * (SIDE + 4))


def _reduce(call: Facts) -> Shape:
    return Shape(prod(call.dims[:-1]) * _lane_tiles(call), 4 * TILE * FOLD)


def _by_rows(call: Facts) -> Shape:
    """The same blocks as `_reduce`, so that calls can be chained."""
    return Shape(prod(call.dims[:-2]) * _lane_tiles(call))


def _quantize(call: Facts) -> Shape:
    """Shared memory holds two words of each thread, to agree on a range, and all numbers where GOOD_BYTES hold them."""
    numbers = 4 * TILE * call.dims[-1]
    return Shape(_by_rows(call).blocks, 8 * THREADS + (numbers if numbers <= GOOD_BYTES else 0))


def _tensor_multiply(call: Facts) -> Shape:
    """Tiles of BAND rows and SIDE columns, or, where those are few, of NARROW and NARROW whose warps share k.

    Shared memory holds STRIPS strips of k of both (NARROW_STRIPS for each warp of its own), then the sums (of each
    warp).
    """
    if _is_narrow(call):
        shared = THREADS // 32 * max(NARROW_STRIPS * 2 * NARROW * STRIP, 4 * NARROW * (NARROW + 4))
        return Shape(_tiles(call, NARROW, NARROW), shared)
    return Shape(_tiles(call, BAND, SIDE), max(STRIPS * (BAND + SIDE) * STRIP, 4 * SIDE * (BAND + 4)))


def _tiles(call: Facts, rows: int, columns: int) -> int:
    """Of a product, by so many rows and columns."""
    batches, each = _rows(call)
    return batches * -(-each // rows) * -(-call.dims[-2] // columns)


def _is_narrow(call: Facts) -> bool:
    return _tiles(call, BAND, SIDE) < FEW_TILES


def _product_rows(call: Facts) -> Shape:
    """A block for each outer index and 32 lanes. Shared memory holds STRIPS times a strip of rows and SIDE columns for
    every two warps, then their sums; before that what it takes to round rows, which is less."""
    return Shape(_by_rows(call).blocks, STRIPS * THREADS // 64 * (TILE + SIDE) * STRIP)


def rows_bytes(dims: tuple[int, ...], size: int) -> int:
    """What a block of `product_rows` brings of rows and weights, in numbers of `size` bytes."""
    return -(-dims[-2] // SIDE) * (TILE + SIDE) * dims[-1] * size


def takes_rows(call: Facts, size: int, barrier_bytes: int) -> bool:
    """Whether a product ends sooner where a block has all columns of its rows, and so without two barriers, than in
    tiles: by what the busiest multiprocessor brings; `barrier_bytes` could be brought in the time of a barrier."""

    def busiest(blocks: int) -> int:
        return -(-blocks // MULTIPROCESSORS)

    rows, columns = (NARROW, NARROW) if _is_narrow(call) else (BAND, SIDE)
    tiles = busiest(_tiles(call, rows, columns)) * (rows + columns) * call.dims[-1] * size
    return busiest(_by_rows(call).blocks) * rows_bytes(call.dims, size) <= tiles + 2 * barrier_bytes


def _attention(call: Facts) -> Shape:
    *outer, queries, keys, depth, _ = call.dims
    at_once, spills = attention_cut(queries, keys, depth)
    tiles = prod(outer) * -(-queries // at_once) * _lane_tiles(call)
    if spills:
        return Shape(min(tiles, SLOTS), 4 * TILE * depth)
    return Shape(tiles, 4 * TILE * at_once * (keys + depth))


def attention_cut(queries: int, keys: int, depth: int) -> tuple[int, bool]:
    """Queries of a block, and whether scores go to the workspace."""
    each = 4 * TILE * (keys + depth)
    at_once = min(queries, QUERIES)
    while at_once > 1 and at_once * each > GOOD_BYTES:
        at_once -= 1
    return at_once, each > MOST_BYTES


def attended_bytes(tokens: int, depth: int, width: int) -> int | None:
    """Shared memory of `product_attention.cu`, where queries and keys of so many tokens and numbers fit a block.

    What SIDE columns at a time add up to, in columns 4 rows longer, and behind all of them scores; while the last SIDE
    are multiplied, strips of k in their place.
    """
    rows, columns = tokens * TILE, 2 * depth + width
    tiles, step = -(-columns // SIDE), 4 * (rows + 4)
    strips = max(STRIPS * (rows + SIDE) * STRIP, SIDE * step)
    needed = max((tiles - 1) * SIDE * step + strips, columns * step + 4 * TILE * tokens * tokens)
    return needed if tokens <= QUERIES and rows <= BAND and needed <= MOST_BYTES else None


def _product_attention(call: Facts) -> Shape:
    """Of the attention: a block for each outer index and 32 lanes."""
    *outer, _, tokens, depth, width = call.dims
    needed = attended_bytes(tokens, depth, width)
    assert needed is not None, call
    return Shape(prod(outer) * _lane_tiles(call), needed)


SHAPES: dict[str, Callable[[Facts], Shape]] = {
    "map": _map,
    "reduce": _reduce,
    "topk": _topk,
    "take": _take,
    "product_fill": _by_rows,
    "product_multiply": _multiply,
    "product_bf16_round": _by_rows,
    "product_bf16_multiply": _tensor_multiply,
    "product_fp16_round": _by_rows,
    "product_fp16_multiply": _tensor_multiply,
    "product_rounded_round": _by_rows,
    "product_rounded_multiply": _tensor_multiply,
    "product_i8_quantize": _quantize,
    "product_i8_multiply": _tensor_multiply,
    "product_rows": _product_rows,
    "attention": _attention,
    "product_attention": _product_attention,
}


def pack_f32(w: np.ndarray) -> np.ndarray:
    """Weights (K, N) as [K][N padded to SIDE]."""
    return np.pad(w.astype("<f4", copy=False), ((0, 0), (0, -w.shape[1] % SIDE)))


def _columns(w: np.ndarray) -> np.ndarray:
    """Weights (K, N) as [N padded to SIDE][K padded to whole strips], k innermost."""
    strip = STRIP // w.itemsize
    return np.pad(w.T, ((0, -w.shape[1] % SIDE), (0, -w.shape[0] % strip)))


def pack_halves(w: np.ndarray) -> np.ndarray:
    """bf16 or half weights (K, N), two neighbours of k in a word."""
    return np.ascontiguousarray(_columns(w.view("<u2"))).view("<u4")


def pack_i8(w: np.ndarray) -> np.ndarray:
    """int8 weights (K, N)."""
    return np.ascontiguousarray(_columns(w))


PACK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "product": pack_f32, "product_bf16": pack_halves, "product_fp16": pack_halves, "product_i8": pack_i8,
    "product_rounded": pack_i8,
}  # fmt: skip

# Of a number in the workspace, and of what stands behind all rows for each.
BYTES = {"product_bf16": (2, 0), "product_fp16": (2, 0), "product_i8": (1, 8), "product_rounded": (1, 0)}


def phases(family: str, direct: bool) -> int:
    """Launches of a call that stands alone."""
    return 1 + (family in PACK and not (family == "product" and direct))


def workspace_bytes(family: str, dims: tuple[int, ...], lanes: int, direct: bool) -> int:
    """Bytes of the workspace that a call's phases share."""
    if family == "attention":
        _, keys, depth = dims[-4:-1]
        spills = attention_cut(dims[-4], keys, depth)[1]
        return _attention(Facts(dims, lanes)).blocks * 4 * TILE * keys if spills else 0
    rows, depth = prod(dims[:-2]) * lanes, dims[-1]
    if family == "product":
        return 0 if direct else 4 * depth * -(-rows // TILE) * TILE
    size, ends = BYTES[family]
    return rows * (-(-depth * size // STRIP) * STRIP + ends)

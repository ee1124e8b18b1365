"""Products: y[..., n] = sum over k of x[..., k] w[k, n], and how their weights lie in memory.

Canonical f32: one accumulator a result, from 0, k ascending, every step one fused multiply-add. On the CPU lanes of x are
the lanes of a vector, and a microkernel keeps `n_block` results of `vectors` vectors in registers while k runs; so weights
are stored in blocks of n_block results, k by k, padded with zeros to whole blocks:

    f32   [ceil(N / n_block)][K][n_block]
    bf16  [ceil(N / n_block)][ceil(K / 2)][n_block][2]
    f16   as the f32 they are
    i8    [ceil(N / n_block)] of { i32 correction[n_block] (avx512 only), [ceil(K / group)][n_block][group] }

`group` neighbours of k fill the 32-bit word that one dot-product instruction takes: 4 bytes, on avx2 a pair of int16 (the
byte instruction there saturates). On avx512 activations are stored 128 higher, as the unsigned bytes its instruction
wants, and the accumulator starts at correction[n] = -128 sum over k of w[k, n]. All of it is exact.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from edgewm import expr as e
from edgewm.program import Node

LANES = 16  # of one vector in the C++ sources, whatever the machine's registers hold


def reference(x: Node, w: Node) -> Node:
    """`x` (..., m, k) f32, `w` (..., k, n) f32 to (..., m, n) f32."""
    return e.matmul(x, w)


def placeholders(rank: int) -> tuple[Node, Node]:
    """Leaves of the reference for a result of `rank` dimensions."""
    return e.input("x", (*(2,) * (rank - 2), 3, 5)), e.input("w", (5, 7))


@dataclass(frozen=True)
class Tiling:
    """Register blocking of one instruction set.

    `vectors` x 16 lanes are a tile; `n_block` results of each are accumulated at once. `group` numbers of k share a word
    of the integer panels, each `weight_dtype` in the packed weights; `zero_point` is what is added to activations.
    """

    vectors: int
    n_block: int
    macro: str
    group: int = 4
    weight_dtype: str = "i1"
    zero_point: int = 0

    @property
    def tile(self) -> int:
        """Lanes of one tile."""
        return LANES * self.vectors

    @property
    def defines(self) -> tuple[str, ...]:
        """Compiler flags that fix this blocking in `kernels/*.cc`."""
        sizes = (f"-DEWM_TILE_VECTORS={self.vectors}", f"-DEWM_N_BLOCK={self.n_block}")
        return (f"-D{self.macro}", *sizes) if self.macro else sizes


# avx512: 24 accumulators of 32 registers; avx2 and neon: 16 lanes are two and four registers, 12 accumulators of 16 and
# 24 of 32.
TILING: dict[str, Tiling] = {
    "avx512": Tiling(2, 12, "EWM_AVX512", zero_point=128),
    "avx2": Tiling(1, 6, "EWM_AVX2", group=2, weight_dtype="<i2"),
    "neon": Tiling(1, 6, "EWM_NEON"),
    "scalar": Tiling(1, 4, ""),
}


def _blocks(w: np.ndarray, n_block: int, group: int) -> np.ndarray:
    """`w` (..., K, N) as (..., blocks, ceil(K / group), n_block, group), padded with zeros."""
    *lead, k, n = w.shape
    padded = np.zeros((*lead, -(-k // group) * group, -(-n // n_block) * n_block), w.dtype)
    padded[..., :k, :n] = w
    split = padded.reshape(*lead, -(-k // group), group, -(-n // n_block), n_block)
    axes = len(lead)
    return split.transpose(*range(axes), axes + 2, axes, axes + 3, axes + 1)


def _as_bytes(packed: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(packed).reshape(*lead, -1).view(np.uint8)


def pack_f32(w: np.ndarray, isa: str) -> np.ndarray:
    """Weights (..., K, N) f32 for `product`: u8 (..., bytes of one packed matrix)."""
    return _as_bytes(_blocks(w.astype("<f4", copy=False), TILING[isa].n_block, 1), w.shape[:-2])


def pack_i8(w: np.ndarray, isa: str) -> np.ndarray:
    """Weights (..., K, N) i8 for `product_i8` and `product_rounded`: u8 (..., bytes of one packed matrix)."""
    tiling, lead = TILING[isa], w.shape[:-2]
    words = _blocks(w.astype(tiling.weight_dtype), tiling.n_block, tiling.group)
    words = _as_bytes(words, (*lead, words.shape[len(lead)]))
    if not tiling.zero_point:
        return words.reshape(*lead, -1)
    correction = -tiling.zero_point * _blocks(w.astype("<i4"), tiling.n_block, 1).sum(-3, dtype="<i4")
    return np.concatenate([_as_bytes(correction, words.shape[:-1]), words], -1).reshape(*lead, -1)


def pack_bf16(w: np.ndarray, isa: str) -> np.ndarray:
    """Weights (..., K, N) bf16 for `product_bf16`: u8 (..., bytes of one packed matrix)."""
    return _as_bytes(_blocks(w.view("<u2"), TILING[isa].n_block, 2), w.shape[:-2])


def pack_f16(w: np.ndarray, isa: str) -> np.ndarray:
    """Weights (..., K, N) f16 for `product_fp16`: u8 (..., bytes of one packed matrix), of f32."""
    return pack_f32(w, isa)


def packed_bytes(dtype: str, k: int, n: int, isa: str) -> int:
    """Bytes of one packed (K, N) matrix of weights, `dtype` f32, bf16 or i8."""
    tiling = TILING[isa]
    blocks = -(-n // tiling.n_block)
    if dtype != "i8":
        return blocks * (k if dtype == "f32" else -(-k // 2)) * tiling.n_block * 4
    return blocks * tiling.n_block * 4 * (-(-k // tiling.group) + (1 if tiling.zero_point else 0))


def workspace_bytes(shared: tuple[int, ...], k: int, isa: str, direct: bool = False) -> int:
    """SCRATCH of `product`: a panel [K][tile] f32 for each outer index that shares the weights (those loops' extents)."""
    return 0 if direct else prod(shared) * k * TILING[isa].tile * 4


def workspace_rounded_bytes(shared: tuple[int, ...], k: int, isa: str, direct: bool = False) -> int:
    """SCRATCH of `product_rounded`: ceil(K / group) words a lane for each outer index that shares the weights."""
    tiling = TILING[isa]
    return prod(shared) * -(-k // tiling.group) * tiling.tile * 4


def workspace_bf16_bytes(shared: tuple[int, ...], k: int, isa: str, direct: bool = False) -> int:
    """SCRATCH of `product_bf16`: ceil(K / 2) words a lane for each outer index that shares the weights."""
    return prod(shared) * -(-k // 2) * TILING[isa].tile * 4


def workspace_f16_bytes(shared: tuple[int, ...], k: int, isa: str, direct: bool = False) -> int:
    """SCRATCH of `product_fp16`: a panel [K][tile] f32 for each outer index that shares the weights."""
    return workspace_bytes(shared, k, isa)


def workspace_i8_bytes(shared: tuple[int, ...], k: int, isa: str, direct: bool = False) -> int:
    """SCRATCH of `product_i8`: for each outer index that shares the weights step, middle and ceil(K / group) words a lane;
    then [K][tile] f32 for the prologue's values between their two uses, unless it is `direct` (a load, nothing else)."""
    tiling = TILING[isa]
    words = prod(shared) * (2 + -(-k // tiling.group)) + (0 if direct else k)
    return words * tiling.tile * 4

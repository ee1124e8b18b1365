"""Kernels in Triton for calls that edgewm has in CUDA: as its tutorials write them, with tiles as parameters.

    python benchmarks/triton_kernels.py '{"kernel": "product", "constants": {...}, "warps": 4, "stages": 3}'

prints {"ptx", "shared_bytes", "name"} of that kernel for Orin; a process for each, as the compiler can abort. Needs
`triton` alone: neither torch, nor a GPU, nor a driver. `triton_static.py` compares them with edgewm's.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURE, PTX_VERSION = 87, 85  # Orin; what JetPack 6 and its assembler know
SMALLEST_STEP = tl.constexpr(2.0**-100)


@triton.jit
def quantize_rows(
    x, gain, offset, bytes_out, step_out, middle_out, ROWS: tl.constexpr, DEPTH: tl.constexpr, BM: tl.constexpr,
    PADDED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Layer norm of rows of f32 (ROWS, DEPTH), and each in 255 steps of its own range: bytes, step, middle."""
    row, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, PADDED)
    here = (row < ROWS)[:, None] & (k < DEPTH)[None, :]
    at = row[:, None] * DEPTH + k[None, :]
    y = tl.load(x + at, here, 0.0)
    if NORM:
        y = tl.where(here, y - (tl.sum(y, 1) / DEPTH)[:, None], 0.0)
        y = y * tl.rsqrt(tl.sum(y * y, 1) / DEPTH + 1e-5)[:, None]
        y = y * tl.load(gain + k, k < DEPTH, 0.0)[None, :] + tl.load(offset + k, k < DEPTH, 0.0)[None, :]
    high = tl.max(tl.where(here, y, float("-inf")), 1)
    low = tl.min(tl.where(here, y, float("inf")), 1)
    half, middle = tl.maximum(high * 0.5 - low * 0.5, SMALLEST_STEP), high * 0.5 + low * 0.5
    q = (y - middle[:, None]) * (127.0 / half)[:, None]
    q = tl.minimum(q, 127.0) + 12582912.0  # 1.5 * 2^23 rounds to the nearest integer
    tl.store(bytes_out + at, (q - 12582912.0).to(tl.int8), here)
    tl.store(step_out + row, half / 127.0, row < ROWS)
    tl.store(middle_out + row, middle, row < ROWS)


@triton.jit
def product(
    x, w, step, middle, scale, column_sum, bias, residual, y, ROWS: tl.constexpr, DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """f32 (ROWS, COLUMNS) of bytes x (ROWS, DEPTH) and w (COLUMNS, DEPTH), with scales, bias and what stands behind."""
    pid, down, across = tl.program_id(0), tl.cdiv(ROWS, BM), tl.cdiv(COLUMNS, BN)
    first = pid // (GROUP * across) * GROUP  # blocks that run at once share rows and columns
    high = min(down - first, GROUP)
    m = (first + pid % (GROUP * across) % high) * BM + tl.arange(0, BM)
    n = pid % (GROUP * across) // high * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    a = x + (m % ROWS)[:, None] * DEPTH + k[None, :]
    b = w + (n % COLUMNS)[None, :] * DEPTH + k[:, None]
    sums = tl.zeros((BM, BN), tl.int32)
    for _ in range(0, DEPTH, BK):
        sums = tl.dot(tl.load(a), tl.load(b), sums, out_dtype=tl.int32)
        a += BK
        b += BK
    is_row, is_column = m < ROWS, n < COLUMNS
    steps, middles = tl.load(step + m, is_row, 0.0)[:, None], tl.load(middle + m, is_row, 0.0)[:, None]
    found = sums.to(tl.float32) * (steps * tl.load(scale + n, is_column, 0.0)[None, :])
    found += middles * tl.load(column_sum + n, is_column, 0.0)[None, :]
    found += tl.load(bias + n, is_column, 0.0)[None, :]
    at, here = m[:, None] * COLUMNS + n[None, :], is_row[:, None] & is_column[None, :]
    if GELU:
        found = 0.5 * found * (1.0 + tl.erf(found * 0.7071067811865476))
    if RESIDUAL:
        found += tl.load(residual + at, here, 0.0)
    tl.store(y + at, found, here)


@triton.jit
def attended(q, k0, k1, k2, v0, v1, v2, scale, THREE: tl.constexpr):
    """What a token sees of two (or three) others: f32 (BM, DEPTH), of a block's pairs."""
    q = q * scale
    s0, s1 = tl.sum(q * k0, 1), tl.sum(q * k1, 1)
    most = tl.maximum(s0, s1)
    if THREE:
        s2 = tl.sum(q * k2, 1)
        most = tl.maximum(most, s2)
    e0, e1 = tl.exp(s0 - most), tl.exp(s1 - most)
    total, weighted = e0 + e1, e0[:, None] * v0 + e1[:, None] * v1
    if THREE:
        e2 = tl.exp(s2 - most)
        total, weighted = total + e2, weighted + e2[:, None] * v2
    return weighted / total[:, None]


@triton.jit
def window(q, k, v, y, scale, PAIRS: tl.constexpr, DEPTH: tl.constexpr, BM: tl.constexpr):
    """Causal attention over three tokens, f32 (PAIRS, 3, DEPTH): too few for a product's tile, so sums over DEPTH."""
    pair, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, DEPTH)
    here = (pair < PAIRS)[:, None]
    at = pair[:, None] * (3 * DEPTH) + d[None, :]
    k0, v0 = tl.load(k + at, here, 0.0), tl.load(v + at, here, 0.0)
    k1, v1 = tl.load(k + at + DEPTH, here, 0.0), tl.load(v + at + DEPTH, here, 0.0)
    k2, v2 = tl.load(k + at + 2 * DEPTH, here, 0.0), tl.load(v + at + 2 * DEPTH, here, 0.0)
    tl.store(y + at, v0, here)
    q1 = tl.load(q + at + DEPTH, here, 0.0)
    tl.store(y + at + DEPTH, attended(q1, k0, k1, k1, v0, v1, v1, scale, False), here)
    q2 = tl.load(q + at + 2 * DEPTH, here, 0.0)
    tl.store(y + at + 2 * DEPTH, attended(q2, k0, k1, k2, v0, v1, v2, scale, True), here)


@triton.jit
def projected(
    x, w, step, middle, columns, column_sum, bias, row, here, first, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """WIDTH columns of `product` from `first` on, of some rows: f32 (BM, WIDTH)."""
    k, n = tl.arange(0, BK), first + tl.arange(0, WIDTH)
    sums = tl.zeros((BM, WIDTH), tl.int32)
    for k0 in range(0, DEPTH, BK):
        a = tl.load(x + row[:, None] * DEPTH + (k0 + k)[None, :])
        b = tl.load(w + n[None, :] * DEPTH + (k0 + k)[:, None])
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
    found = sums.to(tl.float32) * (tl.load(step + row, here, 0.0)[:, None] * tl.load(columns + n)[None, :])
    found += tl.load(middle + row, here, 0.0)[:, None] * tl.load(column_sum + n)[None, :]
    return found + tl.load(bias + n)[None, :]


@triton.jit
def product_window(
    x, w, step, middle, columns, column_sum, bias, y, scale, CANDIDATES: tl.constexpr, DEPTH: tl.constexpr,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`window` of what `product` makes of bytes x (3 CANDIDATES, DEPTH), for one head a row of the grid; queries, keys
    and values stay in registers. f32 (3 CANDIDATES, HEADS, WIDTH)."""
    c, head = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * WIDTH
    here = c < CANDIDATES
    row, inner = c % CANDIDATES * 3, HEADS * WIDTH
    k0 = projected(x, w, step, middle, columns, column_sum, bias, row, here, inner + head, DEPTH, WIDTH, BM, BK)
    v0 = projected(x, w, step, middle, columns, column_sum, bias, row, here, 2 * inner + head, DEPTH, WIDTH, BM, BK)
    at = row[:, None] * inner + head + tl.arange(0, WIDTH)[None, :]
    tl.store(y + at, v0, here[:, None])
    q1 = projected(x, w, step, middle, columns, column_sum, bias, row + 1, here, head, DEPTH, WIDTH, BM, BK)
    k1 = projected(x, w, step, middle, columns, column_sum, bias, row + 1, here, inner + head, DEPTH, WIDTH, BM, BK)
    v1 = projected(x, w, step, middle, columns, column_sum, bias, row + 1, here, 2 * inner + head, DEPTH, WIDTH, BM, BK)
    tl.store(y + at + inner, attended(q1, k0, k1, k1, v0, v1, v1, scale, False), here[:, None])
    q2 = projected(x, w, step, middle, columns, column_sum, bias, row + 2, here, head, DEPTH, WIDTH, BM, BK)
    k2 = projected(x, w, step, middle, columns, column_sum, bias, row + 2, here, inner + head, DEPTH, WIDTH, BM, BK)
    v2 = projected(x, w, step, middle, columns, column_sum, bias, row + 2, here, 2 * inner + head, DEPTH, WIDTH, BM, BK)
    tl.store(y + at + 2 * inner, attended(q2, k0, k1, k2, v0, v1, v2, scale, True), here[:, None])


@triton.jit
def flash(
    q, k, v, y, scale, TOKENS: tl.constexpr, DEPTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """Attention of one head a row of the grid, f32 (heads, TOKENS, DEPTH): online softmax, products in fp32 or fp16."""
    head = tl.program_id(1) * TOKENS * DEPTH
    i, j, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, DEPTH)
    own = head + i[:, None] * DEPTH + d[None, :]
    query = tl.load(q + own, (i < TOKENS)[:, None], 0.0) * (scale * 1.4426950408889634)
    if HALF:
        query = query.to(tl.float16)
    most, total = tl.full((BM,), float("-inf"), tl.float32), tl.zeros((BM,), tl.float32)
    sums = tl.zeros((BM, DEPTH), tl.float32)
    for j0 in range(0, TOKENS, BN):
        here = j0 + j < TOKENS
        at = head + (j0 + j)[:, None] * DEPTH + d[None, :]
        key, value = tl.load(k + at, here[:, None], 0.0), tl.load(v + at, here[:, None], 0.0)
        if HALF:
            key, value = key.to(tl.float16), value.to(tl.float16)
        scores = tl.where(here[None, :], tl.dot(query, tl.trans(key), input_precision="ieee"), float("-inf"))
        above = tl.maximum(most, tl.max(scores, 1))
        weights, old = tl.exp2(scores - above[:, None]), tl.exp2(most - above)
        total, most = total * old + tl.sum(weights, 1), above
        if HALF:
            weights = weights.to(tl.float16)
        sums = tl.dot(weights, value, sums * old[:, None], input_precision="ieee")
    tl.store(y + own, sums / total[:, None], (i < TOKENS)[:, None])


KERNELS = {
    "quantize_rows": quantize_rows, "product": product, "window": window, "product_window": product_window,
    "flash": flash,
}  # fmt: skip
BYTES = {"quantize_rows": ("bytes_out",), "product": ("x", "w"), "product_window": ("x", "w")}  # parameters that are


def kind_of(kernel: str, name: str) -> str:
    """Of a parameter: attention's scale is a number, all others are addresses."""
    if name == "scale" and kernel != "product":
        return "fp32"
    return "*i8" if name in BYTES.get(kernel, ()) else "*fp32"


def compiled(kernel: str, constants: dict[str, Any], warps: int, stages: int) -> dict[str, Any]:
    """`ptx`, dynamic `shared_bytes` a block, and `name` of the kernel in it, for pointers of 16-byte alignment."""
    function = KERNELS[kernel]
    signature = {name: "constexpr" if name in constants else kind_of(kernel, name) for name in function.arg_names}
    at = {name: i for i, name in enumerate(function.arg_names)}
    aligned = {(at[n],): [["tt.divisibility", 16]] for n, kind in signature.items() if kind.startswith("*")}
    source = ASTSource(function, signature, {(at[n],): value for n, value in constants.items()}, aligned)
    options = {"num_warps": warps, "num_stages": stages, "ptx_version": PTX_VERSION}
    made = triton.compile(source, target=GPUTarget("cuda", ARCHITECTURE, 32), options=options)
    return {"ptx": made.asm["ptx"], "shared_bytes": made.metadata.shared, "name": made.metadata.name}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(compiled(given["kernel"], given["constants"], given["warps"], given["stages"])))

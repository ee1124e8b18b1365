"""The kernels of benchmarks/triton_kernels.py in Triton's interpreter against torch in float64, at odd shapes.

Bounds are those of the formats: sums of K terms of the largest magnitude, in float32 (float16 where products are).
"""

from __future__ import annotations

import numpy as np
import torch
import triton_kernels as kernels
from torch import Tensor
from torch.nn import functional as F

RNG = np.random.default_rng(0)
ROUNDING, HALF_ROUNDING = 2.0**-24, 2.0**-11


def drawn(*shape: int) -> Tensor:
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))


def drawn_bytes(*shape: int) -> Tensor:
    return torch.from_numpy(RNG.integers(-127, 128, shape).astype(np.int8))


def close(found: Tensor, wanted: Tensor, bound: float) -> None:
    error = float((found.double() - wanted).abs().max())
    assert error <= bound, (error, bound)


def quantize_rows(rows: int = 10, depth: int = 192) -> None:
    x, gain, offset = drawn(rows, depth), drawn(depth), drawn(depth)
    numbers, step, middle = torch.zeros(rows, depth, dtype=torch.int8), torch.zeros(rows), torch.zeros(rows)
    kernels.quantize_rows[(-(-rows // 4),)](
        x, gain, offset, numbers, step, middle, ROWS=rows, DEPTH=depth, BM=4, PADDED=256, NORM=True
    )
    wanted = F.layer_norm(x.double(), (depth,)) * gain + offset
    found = numbers.double() * step[:, None] + middle[:, None]
    assert float(((found - wanted).abs() / step[:, None]).max()) <= 0.5 + 256 * depth * ROUNDING


def product(depth: int, columns: int, gelu: bool, rows: int = 70) -> None:
    x, w = drawn_bytes(rows, depth), drawn_bytes(columns, depth)
    step, middle, scale, sums, bias = drawn(rows) / 1024, drawn(rows), drawn(columns), drawn(columns), drawn(columns)
    residual, y = drawn(rows, columns), torch.zeros(rows, columns)
    kernels.product[(-(-rows // 32) * -(-columns // 64),)](
        x, w, step, middle, scale, sums, bias, residual, y, ROWS=rows, DEPTH=depth, COLUMNS=columns, BM=32, BN=64,
        BK=64, GROUP=8, GELU=gelu, RESIDUAL=not gelu,
    )  # fmt: skip
    wanted = dequantized(x, w, step, middle, scale, sums, bias)
    close(y, F.gelu(wanted) if gelu else wanted + residual, 16 * ROUNDING * float(wanted.abs().max()))


def dequantized(
    x: Tensor, w: Tensor, step: Tensor, middle: Tensor, scale: Tensor, sums: Tensor, bias: Tensor
) -> Tensor:
    return (x.double() @ w.double().T) * (step[:, None].double() * scale) + middle[:, None].double() * sums + bias


def window(pairs: int = 20, depth: int = 64) -> None:
    q, k, v, y = drawn(pairs, 3, depth), drawn(pairs, 3, depth), drawn(pairs, 3, depth), torch.zeros(pairs, 3, depth)
    kernels.window[(-(-pairs // 16),)](q, k, v, y, 0.125, PAIRS=pairs, DEPTH=depth, BM=16)
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    close(y, wanted, 4 * depth * ROUNDING * float(v.abs().max()))


def product_window(candidates: int = 20, depth: int = 64, heads: int = 2, width: int = 64) -> None:
    rows, columns = 3 * candidates, 3 * heads * width
    x, w, y = drawn_bytes(rows, depth), drawn_bytes(columns, depth), torch.zeros(rows, heads, width)
    step, middle, scale = drawn(rows) / 1024, drawn(rows), drawn(columns) / 8
    sums, bias = drawn(columns), drawn(columns)
    kernels.product_window[(-(-candidates // 16), heads)](
        x, w, step, middle, scale, sums, bias, y, 0.125, CANDIDATES=candidates, DEPTH=depth, WIDTH=width, HEADS=heads,
        BM=16, BK=32,
    )  # fmt: skip
    parts = (
        dequantized(x, w, step, middle, scale, sums, bias).view(candidates, 3, 3, heads, width).permute(2, 0, 3, 1, 4)
    )
    wanted = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).reshape(rows, heads, width)
    largest = float(parts.abs().max())
    close(y, wanted, 4 * width * ROUNDING * largest**3)


def flash(half: bool, tokens: int = 50, depth: int = 64) -> None:
    q, k, v, y = (
        drawn(2, tokens, depth),
        drawn(2, tokens, depth),
        drawn(2, tokens, depth),
        torch.zeros(2, tokens, depth),
    )
    kernels.flash[(-(-tokens // 32), 2)](q, k, v, y, 0.125, TOKENS=tokens, DEPTH=depth, BM=32, BN=32, HALF=half)
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    close(y, wanted, 4 * (HALF_ROUNDING if half else depth * ROUNDING) * float(v.abs().max()))


if __name__ == "__main__":
    quantize_rows()
    product(192, 128, gelu=True)
    product(128, 100, gelu=False)
    window()
    product_window()
    flash(half=False)
    flash(half=True)

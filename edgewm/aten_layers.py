"""Rows of the aten table that hold weights: products, convolutions, norms, attention and recurrent cells.

A product's weight is stored as `(in, out)` under its own name, so that the graph has a plain `matmul(x, weight)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from . import expr as e
from .aten import Refused, drop, real, row, swap
from .constants import Constant, array_of, as_node, check_finite, weight
from .program import Node


def stored(constant: Constant, layout: str, arrange: Callable[[torch.Tensor], torch.Tensor], name: str = "") -> Node:
    """A parameter, rearranged (once a capture), under its own name or another."""
    if layout not in constant.leaves:
        check_finite(constant.name, constant.tensor)
        constant.leaves[layout] = weight(constant.store, name or constant.name, array_of(arrange(constant.tensor)))
    return constant.leaves[layout]


@row("linear", raw=True)
def linear(x, weight, bias=None):
    x = real(as_node(x))
    w = stored(weight, "product", torch.t) if isinstance(weight, Constant) else e.permute(weight, (1, 0))
    lone = len(x.shape) == 1
    y = e.matmul(e.reshape(x, (1, x.shape[0])) if lone else x, w)
    y = e.reshape(y, y.shape[1:]) if lone else y
    return y if bias is None else e.add(y, as_node(bias))


@row("matmul", "mm", "bmm", "mv", "dot")
def matmul(x, other=None, mat2=None, vec=None, tensor=None):
    y = next(v for v in (other, mat2, vec, tensor) if v is not None)
    a = e.reshape(x, (1, x.shape[0])) if len(x.shape) == 1 else x
    b = e.reshape(y, (y.shape[0], 1)) if len(y.shape) == 1 else y
    out = e.matmul(a, b)
    lone = [len(out.shape) - 2] * (len(x.shape) == 1) + [len(out.shape) - 1] * (len(y.shape) == 1)
    return drop(out, lone)


@row("addmm", "baddbmm", "addbmm")
def addmm(x, mat1=None, mat2=None, batch1=None, batch2=None, beta=1, alpha=1):
    product = e.matmul(*((mat1, mat2) if mat1 is not None else (batch1, batch2)))
    product = product if alpha == 1 else e.mul(product, alpha)
    return e.add(product, x if beta == 1 else e.mul(x, beta))


def _patches(x: Node, size: tuple[int, ...]) -> tuple[Node, list[int]]:
    """(N, C, *space) to (N, prod(grid), C * prod(size)), and the grid: non-overlapping patches of `size`, what is left
    over cut off."""
    grid = [d // k for d, k in zip(x.shape[2:], size, strict=True)]
    for i, (g, k) in enumerate(zip(grid, size, strict=True)):
        x = e.narrow(x, 2 + i, 0, g * k)
    n, c, rank = x.shape[0], x.shape[1], len(size)
    x = e.reshape(x, (n, c, *[d for pair in zip(grid, size, strict=True) for d in pair]))
    x = e.permute(x, (0, *[2 + 2 * i for i in range(rank)], 1, *[3 + 2 * i for i in range(rank)]))
    return e.reshape(x, (n, math.prod(grid), c * math.prod(size))), grid


@row("conv1d", "conv2d", "conv3d", "convolution", raw=True)
def convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, transposed=False, output_padding=0):
    """A convolution whose windows do not overlap is a product over patches; others are refused."""
    if not isinstance(weight, Constant):
        raise Refused("a kernel that is computed at run time")
    x, kernel = real(as_node(x)), weight.tensor
    size = tuple(kernel.shape[2:])
    stride, padding, dilation = (
        (v,) * len(size) if isinstance(v, int) else tuple(v) * (len(size) // len(v))
        for v in (stride, padding, dilation)
    )
    if transposed or groups != 1 or stride != size or any(padding) or set(dilation) != {1}:
        raise Refused(f"kernel {size}, stride {stride}, padding {padding}, groups {groups}: not a patch projection")
    lone = len(x.shape) == len(size) + 1
    x = e.reshape(x, (1, *x.shape)) if lone else x
    patches, grid = _patches(x, size)
    y = e.matmul(patches, stored(weight, "patches", lambda w: w.flatten(1).t()))
    y = y if bias is None else e.add(y, as_node(bias))
    y = e.reshape(y, (y.shape[0], *grid, y.shape[-1]))
    last = len(y.shape) - 1
    y = e.permute(y, (0, last, *range(1, last)))
    return drop(y, [0]) if lone else y


# ---------------------------------------------------------------------------------------------------------------- norms


def _affine(x: Node, weight: Node | None, bias: Node | None) -> Node:
    x = x if weight is None else e.mul(x, weight)
    return x if bias is None else e.add(x, bias)


@row("layer_norm")
def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    rank = len(normalized_shape)
    flat = e.reshape(x, (*x.shape[: len(x.shape) - rank], math.prod(normalized_shape)))
    y = e.reshape(e.normalised(real(flat), eps, -1), x.shape)
    return _affine(y, weight, bias)


@row("native_layer_norm")
def native_layer_norm(x, normalized_shape, weight, bias, eps):
    return layer_norm(x, normalized_shape, weight, bias, eps), None, None


@row("rms_norm")
def rms_norm(x, normalized_shape, weight=None, eps=None):
    if len(normalized_shape) != 1:
        raise Refused("more than one normalised axis")
    square = e.mean(e.mul(x, x), -1)
    y = e.mul(x, e.div(1.0, e.sqrt(e.add(square, torch.finfo(torch.float32).eps if eps is None else eps))))
    return _affine(y, weight, None)


@row("group_norm")
def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    n, c = x.shape[:2]
    flat = e.reshape(x, (n, num_groups, x.size // (n * num_groups)))
    y = e.reshape(e.normalised(flat, eps, -1), x.shape)
    shape = (c, *[1] * (len(x.shape) - 2))
    return _affine(y, *(v if v is None else e.reshape(v, shape) for v in (weight, bias)))


@row("batch_norm", raw=True)
def batch_norm(x, weight, bias, running_mean, running_var, momentum=0.1, eps=1e-5, training=False):
    """In eval: one scale and one shift a channel, folded in float64 here."""
    if training or not isinstance(running_mean, Constant):
        raise Refused("batch statistics while training")
    for parameter in (weight, bias, running_mean, running_var):
        if parameter is not None:
            check_finite(parameter.name, parameter.tensor)
    x = real(as_node(x))
    shape = (running_mean.tensor.numel(), *[1] * (len(x.shape) - 2))
    base, kind = running_mean.name.removesuffix("running_mean"), running_mean.tensor.dtype
    gamma = 1.0 if weight is None else weight.tensor.double()
    beta = 0.0 if bias is None else bias.tensor.double()
    factor = gamma / torch.sqrt(running_var.tensor.double() + eps)

    def folded(name: str, value: torch.Tensor) -> Node:
        return stored(running_mean, f"{name} {shape}", lambda _: value.to(kind).reshape(shape), base + name)

    scale, shift = folded("scale", factor), folded("shift", beta - running_mean.tensor.double() * factor)
    return e.add(e.mul(x, scale), shift)


@row("_native_batch_norm_legit_no_training", raw=True)
def native_batch_norm(x, weight, bias, running_mean, running_var, momentum=0.1, eps=1e-5):
    return batch_norm(x, weight, bias, running_mean, running_var, momentum, eps), None, None


# ------------------------------------------------------------------------------------------------ attention, recurrence


@row("scaled_dot_product_attention")
def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """softmax(q k^T * scale + mask) v. `attn_mask` is boolean (true attends) or additive."""
    if dropout_p or enable_gqa:
        raise Refused("dropout or grouped queries")
    scores = e.mul(e.matmul(query, swap(key, -2, -1)), 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    rows, columns = scores.shape[-2:]
    if is_causal and (rows, columns) != (1, 1):
        seen = e.less_equal(e.iota((rows, columns), 1), e.iota((rows, columns), 0))
        scores = e.select(seen, scores, float("-inf"))
    if attn_mask is not None:
        shown = attn_mask.dtype == "bool"
        scores = e.select(attn_mask, scores, float("-inf")) if shown else e.add(scores, attn_mask)
    return e.matmul(e.softmax(scores, -1), value)


@row("gru_cell", raw=True)
def gru_cell(x, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """r, z, n gates; h' = n + z * (h - n)."""
    h = as_node(hx)
    r_x, z_x, n_x = _thirds(linear(x, w_ih, b_ih))
    r_h, z_h, n_h = _thirds(linear(hx, w_hh, b_hh))
    r, z = e.sigmoid(e.add(r_x, r_h)), e.sigmoid(e.add(z_x, z_h))
    n = e.tanh(e.add(n_x, e.mul(r, n_h)))
    return e.add(n, e.mul(z, e.sub(h, n)))


def _thirds(x: Node) -> list[Node]:
    width = x.shape[-1] // 3
    return [e.narrow(x, -1, i * width, (i + 1) * width) for i in range(3)]


@row("pixel_unshuffle")
def pixel_unshuffle(x, downscale_factor):
    *lead, c, h, w = x.shape
    f, k = downscale_factor, len(lead)
    x = e.reshape(x, (*lead, c, h // f, f, w // f, f))
    x = e.permute(x, (*range(k), k, k + 2, k + 4, k + 1, k + 3))
    return e.reshape(x, (*lead, c * f * f, h // f, w // f))


@row("pixel_shuffle")
def pixel_shuffle(x, upscale_factor):
    *lead, c, h, w = x.shape
    f, k = upscale_factor, len(lead)
    x = e.reshape(x, (*lead, c // (f * f), f, f, h, w))
    x = e.permute(x, (*range(k), k, k + 3, k + 1, k + 4, k + 2))
    return e.reshape(x, (*lead, c // (f * f), h * f, w * f))

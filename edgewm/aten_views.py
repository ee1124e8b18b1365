"""Rows of the aten table that move numbers without changing them: views, joins, splits, constant indices."""

from __future__ import annotations

import math

import numpy as np
import torch

from . import expr as e
from .aten import Refused, axes_of, axis_of, drop, promoted, row, swap
from .constants import Constant, as_node
from .program import Node


@row("view", "reshape", "_unsafe_view")
def reshape(x, size=None, shape=None):
    size = list(size if size is not None else shape)
    known = math.prod(d for d in size if d != -1)
    return e.reshape(x, [x.size // known if d == -1 else d for d in size])


@row("flatten")
def flatten(x, start_dim=0, end_dim=-1):
    a, b = axis_of(x, start_dim), axis_of(x, end_dim)
    return e.reshape(x, (*x.shape[:a], math.prod(x.shape[a : b + 1]), *x.shape[b + 1 :]))


@row("unflatten")
def unflatten(x, dim, sizes):
    a = axis_of(x, dim)
    sizes = [x.shape[a] // -math.prod(sizes) if d == -1 else d for d in sizes]
    return e.reshape(x, (*x.shape[:a], *sizes, *x.shape[a + 1 :]))


@row("permute")
def permute(x, dims):
    return e.permute(x, [axis_of(x, d) for d in dims])


@row("transpose")
def transpose(x, dim0, dim1):
    return swap(x, axis_of(x, dim0), axis_of(x, dim1))


@row("t", "numpy_T", "mT")
def t(x):
    return swap(x, -2, -1) if len(x.shape) > 1 else x


@row("movedim")
def movedim(x, source, destination):
    sources, destinations = ([axis_of(x, d) for d in ([v] if isinstance(v, int) else v)] for v in (source, destination))
    axes = [a for a in range(len(x.shape)) if a not in sources]
    for d, s in sorted(zip(destinations, sources, strict=True)):
        axes.insert(d, s)
    return e.permute(x, axes)


@row("expand", "broadcast_to", "expand_as")
def expand(x, size=None, other=None):
    size = list(other.shape if other is not None else size)
    lead = len(size) - len(x.shape)
    return e.expand(x, [x.shape[a - lead] if d == -1 else d for a, d in enumerate(size)])


@row("unsqueeze")
def unsqueeze(x, dim):
    a = axis_of(x, dim, 1)
    return e.reshape(x, (*x.shape[:a], 1, *x.shape[a:]))


@row("squeeze")
def squeeze(x, dim=None):
    return drop(x, [a for a in axes_of(x, dim) if x.shape[a] == 1])


@row("select")
def select(x, dim, index):
    a = axis_of(x, dim)
    index %= x.shape[a]
    return drop(e.narrow(x, a, index, index + 1), [a])


@row("slice")
def slice_(x, dim=0, start=None, end=None, step=1):
    a = axis_of(x, dim)
    start, stop, step = slice(start, end, step).indices(x.shape[a])
    if step == 1:
        return e.narrow(x, a, start, stop)
    count = len(range(start, stop, step))
    if start + count * step <= x.shape[a]:  # every step-th of a whole number of groups: view, then one of each group
        groups = e.narrow(x, a, start, start + count * step)
        groups = e.reshape(groups, (*x.shape[:a], count, step, *x.shape[a + 1 :]))
        return drop(e.narrow(groups, a + 1, 0, 1), [a + 1])
    return e.concat([e.narrow(x, a, i, i + 1) for i in range(start, stop, step)], a)


@row("narrow")
def narrow(x, dim, start, length):
    return slice_(x, dim, start, start + length)


@row("split", "split_with_sizes")
def split(x, split_size=None, split_sizes=None, dim=0):
    a = axis_of(x, dim)
    size = split_sizes if split_sizes is not None else split_size
    if isinstance(size, int):
        size = [min(size, x.shape[a] - i) for i in range(0, x.shape[a], size)]
    stops = np.cumsum(size).tolist()
    return [e.narrow(x, a, stop - n, stop) for stop, n in zip(stops, size, strict=True)]


@row("chunk")
def chunk(x, chunks, dim=0):
    return split(x, -(-x.shape[axis_of(x, dim)] // chunks), dim=dim)


@row("unbind")
def unbind(x, dim=0):
    return [select(x, dim, i) for i in range(x.shape[axis_of(x, dim)])]


@row("cat", "concat")
def cat(tensors, dim=0):
    return e.concat(promoted(*(x for x in tensors if x.shape != (0,))), dim)


@row("stack")
def stack(tensors, dim=0):
    a = axis_of(tensors[0], dim, 1)
    return e.concat([unsqueeze(x, a) for x in promoted(*tensors)], a)


@row("repeat")
def repeat(x, repeats):
    x = e.reshape(x, (1,) * (len(repeats) - len(x.shape)) + x.shape)
    for a, n in enumerate(repeats):
        x = e.concat([x] * n, a)
    return x


@row("repeat_interleave")
def repeat_interleave(x, repeats, dim=None, output_size=None):
    if not isinstance(repeats, int) or dim is None:
        raise Refused("repeats that are not one number along one axis")
    a = axis_of(x, dim)
    wide = e.expand(unsqueeze(x, a + 1), (*x.shape[: a + 1], repeats, *x.shape[a + 1 :]))
    return e.reshape(wide, (*x.shape[:a], x.shape[a] * repeats, *x.shape[a + 1 :]))


@row("flip")
def flip(x, dims):
    for a in axes_of(x, dims):
        x = e.concat([e.narrow(x, a, i, i + 1) for i in reversed(range(x.shape[a]))], a)
    return x


def picked(x: Node, axis: int, index: torch.Tensor) -> Node:
    """Rows of one axis by constant indices: runs of consecutive ones become slices."""
    rows = [int(i) % x.shape[axis] for i in index.reshape(-1).tolist()]
    runs: list[list[int]] = []
    for i in rows:
        if runs and runs[-1][1] == i:
            runs[-1][1] = i + 1
        else:
            runs.append([i, i + 1])
    found = e.concat([e.narrow(x, axis, a, b) for a, b in runs], axis)
    return e.reshape(found, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@row("index_select", raw=True)
def index_select(x, dim, index):
    x = as_node(x)
    if not isinstance(index, Constant):
        raise Refused("an index that is computed at run time")
    return picked(x, axis_of(x, dim), index.tensor)


@row("index", raw=True)
def index(x, indices):
    x, given = as_node(x), [(a, i) for a, i in enumerate(indices) if i is not None]
    if len(given) != 1 or not isinstance(given[0][1], Constant) or given[0][1].tensor.dtype == torch.bool:
        raise Refused("indices other than one constant vector of integers along one axis")
    return picked(x, given[0][0], given[0][1].tensor)


@row("embedding", raw=True)
def embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    table, indices = as_node(weight), as_node(indices)
    rows = e.take(table, e.reshape(indices, (indices.size,)))
    return e.reshape(rows, (*indices.shape, table.shape[1]))


@row("glu")
def glu(x, dim=-1):
    a, b = chunk(x, 2, dim)
    return e.mul(a, e.sigmoid(b))

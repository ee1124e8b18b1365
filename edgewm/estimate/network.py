"""A network as the kernels that a runtime makes of it: products, attentions, row-wise passes, convolutions.

One function a family turns public sizes into such a list. The list is that of a runtime which fuses (bias, activation
and residual into products, the parts of a norm into one pass); `launches` says how many kernels the same takes in a
framework that does not, captured as a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """`count` kernels alike.

    product      `batch` x (m, k) by one (k, n), which is a weight where `is_weight`
    attention    `batch` heads of m queries and n keys, k numbers each, softmax included; `groups` heads share keys
    rows         a pass over m rows of k numbers: norm, activation, sum
    convolution  a product by its sizes (m outputs, n channels, k inputs of one), but not what this model knows

    `overlap`: how many of the m rows share a number of their k; `launches`: kernels of a framework that does not fuse.
    """

    name: str
    kind: str
    m: int
    n: int
    k: int
    count: int = 1
    batch: int = 1
    groups: int = 1
    is_weight: bool = True
    launches: int = 1
    overlap: int = 1

    @property
    def flops(self) -> int:
        """Operations of all `count`, a multiply-add counting two; those of row-wise passes do not count."""
        if self.kind == "rows":
            return 0
        pairs = 2 if self.kind == "attention" else 1
        return 2 * pairs * self.m * self.n * self.k * self.batch * self.count

    @property
    def weights(self) -> int:
        """Numbers read from memory that stay the same from run to run."""
        return self.n * self.k * self.count if self.kind in ("product", "convolution") and self.is_weight else 0


@dataclass(frozen=True)
class Network:
    """`source` says where the sizes are from; `notes` what an estimate of it leaves out."""

    name: str
    kernels: tuple[Kernel, ...]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)


# ---------------------------------------------------------------------------------------------- families


def encoder(
    *, layers: int, width: int, heads: int, mlp: int, tokens: int, batch: int = 1, patch: int = 0, classes: int = 0,
    channels: int = 3,
) -> list[Kernel]:  # fmt: skip
    """A transformer that sees all its tokens (ViT, BERT, SigLIP): norm, attention, norm, two products around a GELU."""
    rows = tokens * batch
    found = [
        Kernel("query, key, value", "product", rows, 3 * width, width, layers),
        Kernel("attention", "attention", tokens, tokens, width // heads, layers, batch * heads, launches=4),
        Kernel("attention out", "product", rows, width, width, layers),
        Kernel("up", "product", rows, mlp, width, layers, launches=2),
        Kernel("down", "product", rows, width, mlp, layers),
        Kernel("residual and norm", "rows", rows, 1, width, 2 * layers, launches=2),
    ]
    if patch:
        found.insert(0, Kernel("patches", "product", rows, width, channels * patch * patch))
    if classes:
        found.append(Kernel("head", "product", batch, classes, width))
    return found


def decoder(
    *, layers: int, width: int, heads: int, kv_heads: int, head: int, mlp: int, tokens: int, past: int = 0,
    batch: int = 1, vocabulary: int = 0, logits: int = 1,
) -> list[Kernel]:  # fmt: skip
    """A causal transformer with grouped keys and a gated MLP (Qwen3, Llama, Gemma): `tokens` at once after `past`.

    `logits` tokens go through the vocabulary's product. Causality halves the scores among the new tokens.
    """
    rows = tokens * batch
    seen = past + (tokens + 1) // 2
    found = [
        Kernel("query, key, value", "product", rows, (heads + 2 * kv_heads) * head, width, layers, launches=3),
        Kernel("positions", "rows", rows, 1, (heads + kv_heads) * head, layers, launches=26),
        Kernel("attention", "attention", tokens, seen, head, layers, batch * heads, heads // kv_heads, launches=5),
        Kernel("attention out", "product", rows, width, heads * head, layers),
        Kernel("gate and up", "product", rows, 2 * mlp, width, layers, launches=2),
        Kernel("gate", "rows", rows, 1, 2 * mlp, layers, launches=2),
        Kernel("down", "product", rows, width, mlp, layers),
        Kernel("residual and norm", "rows", rows, 1, width, 2 * layers, launches=9),
    ]
    if vocabulary:
        found.append(Kernel("vocabulary", "product", logits * batch, vocabulary, width))
    return found


def cross(
    *, layers: int, width: int, heads: int, mlp: int, tokens: int, context: int, context_width: int, every: int = 2,
    batch: int = 1, cached: bool = True,
) -> list[Kernel]:  # fmt: skip
    """A diffusion transformer's step: blocks that look at a context, one in `every`, between blocks that look at
    themselves; keys and values of the context are made once (`cached`) or in each step."""
    rows, crossing, head = tokens * batch, -(-layers // every), width // heads
    own = layers - crossing
    found = [
        Kernel("query, key, value", "product", rows, 3 * width, width, own),
        Kernel("attention", "attention", tokens, tokens, head, own, batch * heads, launches=4),
        Kernel("query", "product", rows, width, width, crossing),
        Kernel("attention to context", "attention", tokens, context, head, crossing, batch * heads, launches=4),
        Kernel("attention out", "product", rows, width, width, layers),
        Kernel("modulation", "product", batch, 2 * width, width, layers, launches=2),
        Kernel("up", "product", rows, mlp, width, layers, launches=2),
        Kernel("down", "product", rows, width, mlp, layers),
        Kernel("residual and norm", "rows", rows, 1, width, 2 * layers, launches=4),
    ]
    if not cached:
        rows = context * batch
        found.append(Kernel("context's keys and values", "product", rows, 2 * width, context_width, crossing))
    return found


def products(*, sizes: Sequence[Sequence[int]], batch: int = 1) -> list[Kernel]:
    """Products by their sizes [m, n, k, count, overlap]; the last two are 1 where they are left out."""
    found = []
    for m, n, k, *rest in sizes:
        count, overlap = (*rest, 1, 1)[:2]
        found.append(Kernel(f"product {m * batch}x{n}x{k}", "product", m * batch, n, k, count, overlap=overlap))
    return found


def convolutions(*, sizes: Sequence[Sequence[int]], batch: int = 1) -> list[Kernel]:
    """Convolutions by what they compute: [side, out, in, kernel, groups, count], `side` squared outputs each."""
    found = []
    for side, out, into, kernel, groups, count in sizes:
        name = f"convolution {kernel}x{kernel} {into} to {out} at {side}"
        rows = side * side * batch
        if kernel == 1 and groups == 1:
            found.append(Kernel(name, "product", rows, out, into, count))
        else:
            depth = kernel * kernel * into // groups
            found.append(Kernel(name, "convolution", rows, out, depth, count, overlap=kernel * kernel))
    return found


FAMILIES: Mapping[str, Callable[..., list[Kernel]]] = {
    "encoder": encoder, "decoder": decoder, "cross": cross, "products": products, "convolutions": convolutions,
}  # fmt: skip


def repeated(kernels: Sequence[Kernel], times: int) -> list[Kernel]:
    """The same kernels over and over."""
    return [replace(kernel, count=kernel.count * times) for kernel in kernels]


def stages(rows: Sequence[Mapping[str, Any]]) -> list[Kernel]:
    """Stages one after another: each row names a `family` and its sizes; `times` repeats it, `stage` names it."""
    found: list[Kernel] = []
    for row in rows:
        sizes = {key: value for key, value in row.items() if key not in ("family", "times", "stage")}
        made = repeated(FAMILIES[row["family"]](**sizes), row.get("times", 1))
        stage = row.get("stage")
        found += [replace(kernel, name=f"{stage}: {kernel.name}") for kernel in made] if stage else made
    return found

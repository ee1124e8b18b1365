"""Programs whose calls are timed to learn what each count of `counts.py` costs: every family over sizes, odd ones too.

They are written in the ops of the table and go through the same passes and the same compiler as a model does, so what
is learnt is what kernels cost as a bundle runs them. No shape here is one of a model's: those are what it is tried on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from .. import arithmetic
from .. import expr as e
from ..program import Graph, Node, Program

LANES = 64  # two or four tiles
MORE = 8  # lanes of a last tile that is not full, in every other product
MANY, WIDE = 2048, 256  # lanes and numbers of work that takes longer than waking a thread
EPS = 1e-5
SHORT, LONG = (24, 56, 120), (80, 232, 440)
# lead (rows beside the lanes that share weights), depth, width
PRODUCTS = (
    (1, 24, 16), (1, 56, 100), (1, 120, 48), (1, 232, 232), (1, 440, 120), (1, 120, 300), (3, 56, 24), (3, 80, 300),
    (3, 300, 80), (5, 232, 64), (5, 12, 400), (1, 900, 40), (2, 500, 56),
)  # fmt: skip
# heads, tokens of each lane, size of a head
ATTENTIONS = ((2, 1, 16), (4, 3, 16), (3, 5, 24), (2, 3, 64), (8, 2, 8), (1, 11, 32), (5, 7, 12))
SHARED = ((2, 33, 16), (1, 90, 48), (3, 60, 64), (4, 17, 8), (2, 128, 32), (1, 64, 100))  # tokens are the lanes
# Element-wise expressions, cheap and dear, short and long; what they make stays finite.
MAPS: tuple[Callable[[Node], Node], ...] = (
    lambda x: e.add(x, 1.0),
    lambda x: functools.reduce(lambda y, c: e.fma(y, x, c), (0.5, -0.25, 0.125), x),
    lambda x: functools.reduce(lambda y, c: e.minimum(e.add(y, x), c), (0.5, 0.75), x),
    lambda x: e.exp(e.minimum(x, 20.0)),
    e.gelu,
    e.silu,
    e.tanh,
    e.softplus,
    lambda x: e.mul(x, e.tanh(e.softplus(x))),
    lambda x: e.sqrt(e.add(e.absolute(x), 1.0)),
    lambda x: e.div(1.0, e.add(e.div(1.0, e.add(e.div(x, e.add(e.absolute(x), 1.0)), 2.0)), 2.0)),
    lambda x: e.log(e.add(e.absolute(x), 0.5)),
    lambda x: e.select(e.less(x, 0.25), e.mul(x, 0.5), x),
)
TOPK = ((64, 8), (300, 30), (1000, 100))


def specimens(precision: str = "fp32") -> Program:
    """The program for one precision of products, an entry a group; `recipe` says which weights are held how."""
    made = _Maker()
    entries = {f"product{i}": made.products(i, *size) for i, size in enumerate(PRODUCTS)}
    if precision == "fp32":
        entries |= {
            "own": made.attentions(), "shared": made.shared(), "maps": made.maps(), "folds": made.folds(),
            "moves": made.moves(), "draws": made.draws(), "picks": made.picks(),
        }  # fmt: skip
    recipe = {} if precision == "fp32" else {name: precision for name in made.weights if made.weights[name].ndim == 2}
    return Program(entries=entries, weights=made.weights, recipe=recipe)


def meetings(rounds: int = 2000) -> Program:
    """Hardly any work: an entry in which threads meet once, and one in which they meet in each of many rounds. And much
    work of many tiles without a meeting."""
    x = e.input("x", (LANES, 1, 8))
    again = e.repeat(rounds, Graph({"x": e.mul(x, 0.5)}), {"x": x})["x"]
    y = e.add(e.input("y", (MANY, 1, 1)), e.weight("wide", (WIDE,)))
    much = e.reduce_sum(e.gelu(e.mul(y, e.add(e.tanh(y), 1.0))), -1)
    return Program(
        entries={"once": Graph({"y": e.mul(x, 0.5)}), "often": Graph({"y": again}), "much": Graph({"y": much})},
        weights={"wide": np.linspace(-1, 1, WIDE, dtype=np.float32)},
    )


class _Maker:
    """Graphs and the weights they read; weights are small numbers, so that every value stays finite."""

    def __init__(self) -> None:
        self.weights: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int) -> Node:
        name = f"w{len(self.weights)}"
        self.weights[name] = self.random.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
        return e.weight(name, shape)

    def linear(self, x: Node, width: int) -> Node:
        return e.add(e.matmul(x, self.weight(x.shape[-1], width)), self.weight(width))

    def rows(self, lead: int, depth: int, lanes: int = LANES) -> Node:
        """Values that lie in lanes, as a model's do: the result of a product."""
        return e.matmul(e.input(f"x{lead}", (lanes, lead, 4)), self.weight(4, depth))

    def products(self, i: int, lead: int, depth: int, width: int) -> Graph:
        """One size plain, behind a norm and before a GELU, and with a residual; sums of the results go out."""
        x = self.rows(lead, depth, LANES + MORE * (i % 2))
        bend = (e.silu, e.gelu, e.softplus)[i % 3]
        found = {
            "plain": e.matmul(x, self.weight(depth, width)),
            "norm": e.gelu(self.linear(e.normalised(x, EPS, -1), width)),
            "back": e.add(x, self.linear(bend(self.linear(x, width)), depth)),
        }
        return Graph({name: e.reduce_sum(y, -1) for name, y in found.items()})

    def attentions(self) -> Graph:
        found = {}
        for i, (heads, tokens, size) in enumerate(ATTENTIONS):
            mixed = self.linear(self.rows(tokens, 40), 3 * heads * size)
            found[f"own{i}"] = self.attention(mixed, tokens, heads, size, masked=bool(i % 2))
        return Graph({name: e.reduce_sum(y, -1) for name, y in found.items()})

    def attention(self, mixed: Node, tokens: int, heads: int, size: int, masked: bool = False) -> Node:
        width = heads * size
        cuts = [e.narrow(mixed, 2, j * width, (j + 1) * width) for j in range(3)]
        parts = [e.permute(e.reshape(cut, (LANES, tokens, heads, size)), (0, 2, 1, 3)) for cut in cuts]
        scores = e.mul(e.matmul(parts[0], e.permute(parts[1], (0, 1, 3, 2))), size**-0.5)
        if masked:
            line, column = e.iota((tokens, tokens), 1), e.iota((tokens, tokens), 0)
            scores = e.select(e.less_equal(line, column), scores, -1e30)
        mixed = e.matmul(e.softmax(scores, -1), parts[2])
        return e.reshape(e.permute(mixed, (0, 2, 1, 3)), (LANES, tokens, heads * size))

    def shared(self) -> Graph:
        """Tokens in the lanes: keys that all of them share."""
        found = {}
        for i, (heads, tokens, size) in enumerate(SHARED):
            width = heads * size
            x = self.linear(e.input(f"tokens{i}", (tokens, 20)), 3 * width)
            cuts = [e.narrow(x, 1, j * width, (j + 1) * width) for j in range(3)]
            parts = [e.permute(e.reshape(cut, (tokens, heads, size)), (1, 0, 2)) for cut in cuts]
            scores = e.mul(e.matmul(parts[0], e.permute(parts[1], (0, 2, 1))), size**-0.5)
            mixed = e.matmul(e.softmax(scores, -1), parts[2])
            found[f"shared{i}"] = e.reshape(e.permute(mixed, (1, 0, 2)), (tokens, heads * size))
        return Graph(found)

    def maps(self) -> Graph:
        """Expressions that stand alone: twice read, so that no product or sum absorbs them."""
        found = {}
        for i, function in enumerate(MAPS):
            for depth in (SHORT[i % 3], LONG[i % 3]):
                y = function(self.rows(1 + 2 * (i % 2), depth))
                found[f"{i}_{depth}"] = e.reduce_sum(e.mul(e.concat([y, y], 1), 0.5), -1)
                found[f"twice{i}_{depth}"] = e.reduce_sum(function(e.mul(y, e.reduce_max(y, -1))), -1)
        return Graph(found)

    def folds(self) -> Graph:
        found = {}
        for depth in (*SHORT, *LONG):
            x = self.rows(1 + depth % 3, depth)
            found[f"sum{depth}"] = e.reduce_sum(x, -1)
            found[f"most{depth}"] = e.reduce_max(e.absolute(x), -1)
            found[f"square{depth}"] = e.mean(e.mul(e.sub(x, 0.5), e.sub(x, 0.5)), -1)
            found[f"norm{depth}"] = e.normalised(x, EPS, -1)
        flat = e.reshape(e.narrow(self.rows(1, 4), 2, 0, 1), (LANES,))
        found["flat"] = e.reduce_sum(flat, 0)
        found["inner"] = e.matmul(self.rows(3, 40), e.permute(self.rows(3, 40), (0, 2, 1)))
        return Graph(found)

    def moves(self) -> Graph:
        """Frames cut into patches, values joined and turned: loads and stores of lanes that are apart."""
        found = {}
        for side, patch in ((32, 8), (56, 14)):
            frame = e.mul(e.cast(e.input(f"frame{side}", (side, side, 3), "u8"), "f32"), 1 / 255)
            n = side // patch
            cut = e.permute(e.reshape(frame, (n, patch, n, patch, 3)), (0, 2, 4, 1, 3))
            found[f"cut{side}"] = self.linear(e.reshape(cut, (n * n, 3 * patch * patch)), 48)
        a, b = self.rows(2, 24), self.rows(3, 24)
        found["joined"] = e.concat([a, b], 1)
        found["turned"] = e.permute(e.tanh(self.rows(3, 40)), (1, 0, 2))
        found["port"] = e.add(e.input("wide", (LANES, 200)), 1.0)
        return Graph(found)

    def draws(self) -> Graph:
        counter = (e.input("a", (), "u32"), e.input("b", (), "u32"), e.const(0, "u32"))
        key = (e.input("k0", (1,), "u32"), e.input("k1", (1,), "u32"))
        return Graph({
            f"normal{horizon}": arithmetic.normal((LANES, horizon, 3), counter, key) for horizon in (1, 4, 9)
        })  # fmt: skip

    def picks(self) -> Graph:
        found = {}
        for samples, k in TOPK:
            best = e.topk(e.input(f"cost{samples}", (samples,)), k)
            found[f"best{samples}"] = e.take(e.input(f"rows{samples}", (samples, 4, 3)), best)
        return Graph(found)

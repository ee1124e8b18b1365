"""Drawn programs: small valid graphs over the whole op table, as a hypothesis strategy, and inputs for them.

A graph grows from a pool of values: each step takes values out of it, applies one construction of the field (an
element-wise expression, a view, a reduction, a product, an attention, a selection, a loop) and puts the result back.
Formulas are kept finite: what is divided by, rooted or logged is held away from zero.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from edgewm import arithmetic
from edgewm import expr as e
from edgewm.ops import NUMPY, make
from edgewm.program import Graph, Node, Program, rewrite, walk_graphs

SIZES = (1, 2, 3, 5, 17, 33)
MOST_ELEMENTS = 3000  # of one value: the oracle is slow
MOST_RANK = 4
SALT = "w"  # what weight names begin with

Draw = Callable


# ---------------------------------------------------------------------------------------------- constructions


def _shapes(rank: int, most: int = MOST_ELEMENTS) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.sampled_from(SIZES)] * rank).filter(lambda s: np.prod(s) <= most)


def _pick(draw: Draw, pool: list[Node], rank: int = 0) -> Node:
    """A float value of the pool with at least `rank` axes; the last ones come first."""
    fit = [n for n in pool if n.dtype == "f32" and len(n.shape) >= rank]
    while not fit:
        wide = _pick(draw, pool)
        fit = [e.reshape(wide, (1,) * (rank - len(wide.shape)) + wide.shape)]
    return fit[-1 - draw(st.integers(0, len(fit) - 1))]


def _axis(draw: Draw, x: Node) -> int:
    return draw(st.integers(0, len(x.shape) - 1))


def _weight(draw: Draw, shape: tuple[int, ...]) -> Node:
    return e.weight(f"{SALT}{draw(st.integers(0, 3))}/{'x'.join(map(str, shape))}", shape)


def _fitting(draw: Draw, pool: list[Node], x: Node) -> Node:
    """A value that broadcasts against `x` without making it larger."""
    fit = [n for n in pool if n.dtype == "f32" and _broadcasts(n.shape, x.shape)]
    keep = [d if draw(st.booleans()) else 1 for d in x.shape]
    fit += [_weight(draw, tuple(keep)), e.const(draw(st.sampled_from((-1.5, 0.0, 0.3, 1e-3, 7.0))))]
    return draw(st.sampled_from(fit))


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    lead = len(to) - len(shape)
    return lead >= 0 and all(d in (1, t) for d, t in zip(shape, to[lead:], strict=True))


def _hashed(x: Node) -> Node:
    return e.mulhi(e.bitcast(x, "u32"), e.const(0x9E3779B9, "u32"))


UNARY: tuple[Callable[[Node], Node], ...] = (
    e.neg, e.absolute, e.rint, e.floor, e.tanh, e.erf, e.gelu, e.silu, e.sigmoid, e.softplus,
    lambda x: e.exp(e.minimum(x, 20.0)),
    lambda x: e.log(e.add(e.absolute(x), 0.01)),
    lambda x: e.sqrt(e.absolute(x)),
    lambda x: e.div(1.0, e.add(e.mul(x, x), 0.5)),
    lambda x: e.sin2pi(e.sub(e.tanh(x), e.floor(e.tanh(x)))),
    lambda x: e.cos2pi(e.absolute(e.tanh(x))),
    lambda x: e.cast(e.cast(e.maximum(e.minimum(x, 100.0), -100.0), "i32"), "f32"),
    lambda x: e.bitcast(e.bit_and(e.bitcast(x, "u32"), 0xFFFFF000), "f32"),
    lambda x: e.bitcast(e.shl(e.shr(e.bitcast(x, "u32"), 12), 12), "f32"),
    lambda x: e.mul(e.cast(e.bitcast(e.shr(_hashed(x), 8), "i32"), "f32"), 2.0**-24),
)  # fmt: skip
BINARY: tuple[Callable[[Node, Node], Node], ...] = (
    e.add, e.sub, e.mul, e.maximum, e.minimum,
    lambda a, b: e.div(a, e.add(e.absolute(b), 1.0)),
    lambda a, b: e.fma(a, b, 0.25),
    lambda a, b: e.fma(a, a, b),
    lambda a, b: e.select(e.less(a, b), a, 0.5),
    lambda a, b: e.select(e.less_equal(b, a), b, a),
    lambda a, b: e.select(e.bit_or(e.equal(a, b), e.less(a, 0.0)), b, e.neg(a)),
    lambda a, b: e.bitcast(e.xor(e.bitcast(a, "u32"), e.bit_and(e.bitcast(b, "u32"), 0x80000000)), "f32"),
)  # fmt: skip


def unary(draw: Draw, pool: list[Node]) -> Node:
    return draw(st.sampled_from(UNARY))(_pick(draw, pool))


def binary(draw: Draw, pool: list[Node]) -> Node:
    x = _pick(draw, pool)
    other = _fitting(draw, pool, x)
    return draw(st.sampled_from(BINARY))(*((x, other) if draw(st.booleans()) else (other, x)))


def mask(draw: Draw, pool: list[Node]) -> Node:
    x = _pick(draw, pool, 2)
    line, column = e.iota(x.shape[-2:], 1), e.iota(x.shape[-2:], 0)
    return e.select(e.less_equal(line, column), x, draw(st.sampled_from((0.0, -1e30))) if x.size < 8 else 0.0)


def view(draw: Draw, pool: list[Node]) -> Node:
    x = _pick(draw, pool)
    kind = draw(st.sampled_from(("permute", "merge", "split", "flat", "slice", "unsqueeze", "expand")))
    rank = len(x.shape)
    if kind == "permute":
        return e.permute(x, draw(st.permutations(range(rank))))
    if kind == "merge" and rank >= 2:
        a = draw(st.integers(0, rank - 2))
        return e.reshape(x, (*x.shape[:a], x.shape[a] * x.shape[a + 1], *x.shape[a + 2 :]))
    if kind == "split" and 0 < rank < MOST_RANK:
        a = _axis(draw, x)
        part = draw(st.sampled_from([p for p in range(1, x.shape[a] + 1) if x.shape[a] % p == 0]))
        return e.reshape(x, (*x.shape[:a], part, x.shape[a] // part, *x.shape[a + 1 :]))
    if kind == "flat":
        return e.reshape(x, (x.size,))
    if kind == "slice" and rank:
        a = _axis(draw, x)
        start = draw(st.integers(0, x.shape[a] - 1))
        return e.narrow(x, a, start, draw(st.integers(start + 1, x.shape[a])))
    if kind == "unsqueeze" and rank < MOST_RANK:
        a = draw(st.integers(0, rank))
        return e.reshape(x, (*x.shape[:a], 1, *x.shape[a:]))
    wide = tuple(draw(st.sampled_from((2, 3, 17))) if d == 1 else d for d in x.shape)
    lead = (draw(st.sampled_from((2, 3))),) if rank < MOST_RANK else ()
    return e.expand(x, (*lead, *wide)) if x.size * 17 ** (wide != x.shape) * 3 <= MOST_ELEMENTS else x


def concat(draw: Draw, pool: list[Node]) -> Node:
    x = _pick(draw, pool, 1)
    a = _axis(draw, x)
    same = [n for n in pool if n.dtype == "f32" and len(n.shape) == len(x.shape)]
    fit = [n for n in same if n.shape[:a] == x.shape[:a] and n.shape[a + 1 :] == x.shape[a + 1 :]]
    other = draw(st.sampled_from([*fit, e.neg(x), _weight(draw, x.shape)]))
    parts = [x, other, x] if draw(st.booleans()) else [other, x]
    return e.concat(parts, a) if sum(p.size for p in parts) <= MOST_ELEMENTS else x


def reduction(draw: Draw, pool: list[Node]) -> Node:
    x = _pick(draw, pool, 1)
    a = _axis(draw, x)
    kind = draw(st.sampled_from(("sum", "mean", "max", "squares", "drop", "scalar")))
    if kind == "max":
        return e.reduce_max(x, a)
    if kind == "squares":
        return e.sqrt(e.reduce_sum(e.mul(x, x), a))
    if kind == "drop":
        return e.reshape(e.mean(x, a), x.shape[:a] + x.shape[a + 1 :])
    if kind == "scalar":
        return e.reshape(e.reduce_max(e.reshape(x, (x.size,)), 0), ())
    return (e.reduce_sum if kind == "sum" else e.mean)(x, a)


def layer_norm(draw: Draw, pool: list[Node]) -> Node:
    x = _pick(draw, pool, 1)
    centred = e.sub(x, e.mean(x, -1))
    scale = e.div(1.0, e.sqrt(e.add(e.mean(e.mul(centred, centred), -1), 1e-5)))
    return e.fma(e.mul(centred, scale), _weight(draw, x.shape[-1:]), _weight(draw, (1,)))


def linear(draw: Draw, pool: list[Node]) -> Node:
    """A product with a weight, plain or with an epilogue and a residual."""
    x = _pick(draw, pool, 2)
    k, n = x.shape[-1], draw(st.sampled_from(SIZES))
    if x.size // k * n > MOST_ELEMENTS:
        n = 3
    y = e.mul(e.matmul(x, _weight(draw, (k, n))), k**-0.5)
    form = draw(st.sampled_from(("plain", "bias", "act", "residual")))
    if form == "plain":
        return y
    y = e.add(y, _weight(draw, (n,)))
    if form == "act":
        return e.gelu(y)
    return e.add(x, y) if form == "residual" and n == k else y


def batched(draw: Draw, pool: list[Node]) -> Node:
    """A product with one weight for each index of the batch (an ensemble), or a weight seen through a view."""
    x = _pick(draw, pool, 2)
    k, n = x.shape[-1], draw(st.sampled_from((1, 3, 5)))
    if draw(st.booleans()):
        return e.matmul(x, e.permute(_weight(draw, (n, k)), (1, 0)))
    lead = x.shape[:-2] if len(x.shape) > 2 else (draw(st.sampled_from((2, 3))),)
    return e.mul(e.matmul(x, _weight(draw, (*lead, k, n))), k**-0.5)


def between(draw: Draw, pool: list[Node]) -> Node:
    """A product of two values: a Gram matrix, or with one that fits."""
    x = _pick(draw, pool, 2)
    swapped = e.permute(x, (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2))
    pair = (x, e.tanh(swapped)) if draw(st.booleans()) else (swapped, e.tanh(x))
    size = int(np.prod(x.shape[:-2])) * pair[0].shape[-2] ** 2
    return e.mul(e.matmul(*pair), 0.125) if size <= MOST_ELEMENTS else x


def attention(draw: Draw, pool: list[Node]) -> Node:
    """softmax(q k^T) v over heads or batch, with or without a causal mask or a bias."""
    x = _pick(draw, pool, 2)
    t, width, d, dv = x.shape[-2], x.shape[-1], draw(st.sampled_from((1, 3, 5))), draw(st.sampled_from((1, 2, 5)))
    if x.size // width * max(t, d, dv) > MOST_ELEMENTS:
        return x
    q, k = (e.mul(e.matmul(x, _weight(draw, (width, d))), width**-0.5) for _ in range(2))
    v = e.matmul(x, _weight(draw, (width, dv)))
    axes = (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2)
    scores = e.mul(e.matmul(q, e.permute(k, axes)), d**-0.5)
    form = draw(st.sampled_from(("plain", "causal", "bias", "broadcast")))
    if form == "causal":
        scores = e.select(e.less_equal(e.iota((t, t), 1), e.iota((t, t), 0)), scores, -1e30)
    elif form == "bias":
        scores = e.add(scores, _weight(draw, (t, t)))
    elif form == "broadcast":
        scores = e.add(scores, _weight(draw, (1, t)))
    y = e.matmul(e.softmax(scores, -1), v)
    return e.add(y, 0.5) if draw(st.booleans()) else y


def softmax(draw: Draw, pool: list[Node]) -> Node:
    x = _pick(draw, pool, 1)
    return e.softmax(x, _axis(draw, x))


def select_best(draw: Draw, pool: list[Node]) -> Node:
    """The k best rows by a cost, as a planner refits them."""
    x = _pick(draw, pool, 1)
    cost = x
    while len(cost.shape) > 1:
        cost = e.reshape(e.reduce_sum(cost, -1), cost.shape[:-1])
    best = e.topk(cost, draw(st.integers(1, min(5, cost.shape[0]))))
    elites = e.take(x, best)
    return e.mean(elites, 0) if draw(st.booleans()) else elites


def noise(draw: Draw, pool: list[Node]) -> Node:
    """Philox and Box-Muller, keyed by a value of the pool."""
    x = _pick(draw, pool)
    word = e.bitcast(e.reshape(e.narrow(e.reshape(x, (x.size,)), 0, 0, 1), ()), "u32")
    zero = e.const(0, "u32")
    return arithmetic.normal(draw(_shapes(draw(st.integers(1, 3)), 200)), (word, zero, zero), (e.const(7, "u32"), word))


def loop(draw: Draw, pool: list[Node]) -> Node:
    """A repeat of one to three carries, which it may swap, with an invariant and the counter; bodies nest once."""
    return _loop(draw, pool, nest=1)


def _loop(draw: Draw, pool: list[Node], nest: int) -> Node:
    x = _pick(draw, pool)
    if x.size > 400:
        return x
    fit = [n for n in pool if n.shape == x.shape and n.dtype == "f32"]
    count = draw(st.integers(1, 3))
    outside = {"a": x}
    if count > 1:
        outside["b"] = draw(st.sampled_from([*fit, e.expand(e.const(0.5), x.shape)]))
    if count > 2:
        outside["c"] = e.reduce_sum(x, 0) if x.shape else e.neg(x)
    fixed = {"fixed": _pick(draw, pool)} if draw(st.booleans()) else {}
    inside = {n: e.input(n, v.shape, v.dtype) for n, v in (outside | fixed).items()}
    here = list(inside.values())
    for _ in range(draw(st.integers(0, 2))):
        here.append(draw(st.sampled_from(INSIDE))(draw, here))
    if nest and draw(st.booleans()):
        here.append(_loop(draw, here, nest - 1))
    results = {}
    for name in outside:
        like = inside[name]
        same = [n for n in here if n.shape == like.shape and n.dtype == "f32"]
        new = draw(st.sampled_from(same))
        if draw(st.booleans()):
            new = e.add(e.mul(new, 0.5), e.cast(e.cast(e.input("counter", (), "u32"), "i32"), "f32"))
        results[name] = new
    if count > 1 and draw(st.booleans()):
        results["a"], results["b"] = results["b"], results["a"]
    if draw(st.booleans()):
        results["seen"] = here[-1]
    body = Graph(results)
    reads = body.inputs()
    found = e.repeat(draw(st.integers(1, 3)), body, outside, {n: v for n, v in fixed.items() if n in reads})
    names = list(results)
    return found[names[draw(st.integers(0, len(names) - 1))]]


INSIDE = (unary, binary, view, reduction, linear, layer_norm, softmax)
STEPS = (*INSIDE, mask, concat, batched, between, attention, select_best, noise, loop, linear, loop, attention)


@st.composite
def graphs(draw: Draw, steps: int = 10) -> Graph:
    """A graph of at most `steps` constructions, with one to three outputs."""
    shapes = [draw(_shapes(draw(st.integers(0, 4)), 600)) for _ in range(draw(st.integers(1, 3)))]
    pool: list[Node] = [e.input(f"x{i}", s) for i, s in enumerate(shapes)]
    for _ in range(draw(st.integers(steps // 3, steps))):
        pool.append(draw(st.sampled_from(STEPS))(draw, pool))
    chosen = [pool[-1], *(pool[draw(st.integers(0, len(pool) - 1))] for _ in range(draw(st.integers(0, 2))))]
    return Graph({f"y{i}": node for i, node in enumerate(chosen)})


# ---------------------------------------------------------------------------------------------- programs and inputs


def drawn(count: int, draw_seed: int, strategy: st.SearchStrategy[Graph] | None = None) -> list[Graph]:
    """The first `count` distinct graphs that hypothesis draws from this seed: always the same ones."""
    found: dict[Graph, None] = {}

    @seed(draw_seed)
    @settings(
        max_examples=2 * count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy if strategy is not None else graphs())
    def collect(graph: Graph) -> None:
        found[graph] = None

    collect()
    return list(found)[-count:]  # the first ones are the simplest


def salted(graph: Graph, salt: str) -> Graph:
    """The graph with weights of its own: their names begin with `salt`."""

    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        attrs = {k: salted(v, salt) if isinstance(v, Graph) else v for k, v in node.attrs}
        if node.op == "weight":
            attrs["name"] = f"{salt}/{attrs['name']}"
        return make(node.op, *sources, **attrs)

    return Graph(rewrite(graph.outputs, rule))


def program_of(entries: dict[str, Graph]) -> Program:
    """A Program of these entries, with weights drawn by their names."""
    weights = {}
    for graph in entries.values():
        for inner in walk_graphs(graph):
            for node in inner.order():
                if node.op == "weight":
                    weights[node["name"]] = numbers(node["name"], node.shape, node.dtype)
    return Program(entries=entries, weights=weights)


@functools.cache
def numbers(name: str, shape: tuple[int, ...], dtype: str = "f32") -> np.ndarray:
    """Standard normal numbers (whole ones below 100 where integer), always the same for one name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if dtype == "f32":
        return rng.standard_normal(shape).astype(np.float32)
    return rng.integers(0, 100, shape).astype(NUMPY[dtype])


def inputs_of(graph: Graph) -> dict[str, np.ndarray]:
    """Inputs of a graph by name."""
    return {name: numbers(f"{name}{leaf.shape}", leaf.shape, leaf.dtype) for name, leaf in graph.inputs().items()}


def differing(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> list[str]:
    """What is not the same bit for bit; a NaN is a NaN, whatever its payload."""
    lines = []
    for name, want in wanted.items():
        have = found[name]
        if (have.shape, have.dtype) != (want.shape, want.dtype):
            lines.append(f"{name}: {have.dtype}{list(have.shape)}, not {want.dtype}{list(want.shape)}")
            continue
        same = have == want
        if want.dtype.kind == "f":
            same = (have.view(np.uint32) == want.view(np.uint32)) | (np.isnan(have) & np.isnan(want))
        if not np.all(same):
            at = tuple(map(int, np.argwhere(~np.atleast_1d(same))[0]))
            pair = (np.atleast_1d(have)[at], np.atleast_1d(want)[at])
            lines.append(f"{name}: {np.sum(~same)} of {want.size} differ, first at {at}: {pair[0]!r}, not {pair[1]!r}")
    return lines


# ---------------------------------------------------------------------------------------------- a model made by hand


def transformer(samples: int, tokens: int, width: int, heads: int, head_width: int, layers: int) -> Program:
    """A causal transformer over (samples, tokens, width) with a cost of the last token, its top-k and a refit."""

    def block(x: Node, i: int) -> Node:
        s, t, d = x.shape

        def w(name: str, *shape: int) -> Node:
            return e.weight(f"{i}.{name}", shape)

        centred = e.sub(x, e.mean(x, -1))
        normed = e.mul(centred, e.div(1.0, e.sqrt(e.add(e.mean(e.mul(centred, centred), -1), 1e-5))))
        inner = heads * head_width
        qkv = e.add(e.mul(e.matmul(normed, w("qkv", d, 3 * inner)), d**-0.5), w("b", 3 * inner))
        qkv = e.permute(e.reshape(qkv, (s, t, 3, heads, head_width)), (2, 0, 3, 1, 4))
        q, k, v = (e.reshape(e.narrow(qkv, 0, j, j + 1), (s, heads, t, head_width)) for j in range(3))
        causal = e.less_equal(e.iota((t, t), 1), e.iota((t, t), 0))
        scores = e.select(causal, e.mul(e.matmul(q, e.permute(k, (0, 1, 3, 2))), head_width**-0.5), -1e30)
        o = e.permute(e.matmul(e.softmax(scores, -1), v), (0, 2, 1, 3))
        x = e.add(x, e.add(e.matmul(e.reshape(o, (s, t, inner)), w("out", inner, d)), w("ob", d)))
        rows = e.reshape(x, (s * t, d))
        hidden = e.gelu(e.add(e.mul(e.matmul(rows, w("fc1", d, 4 * d)), d**-0.5), w("fb", 4 * d)))
        return e.add(x, e.reshape(e.mul(e.matmul(hidden, w("fc2", 4 * d, d)), 0.1), (s, t, d)))

    y = e.input("x", (samples, tokens, width))
    for i in range(layers):
        y = block(y, i)
    last = e.reshape(e.narrow(y, 1, tokens - 1, tokens), (samples, width))
    cost = e.reshape(e.reduce_sum(e.mul(last, last), -1), (samples,))
    best = e.topk(cost, min(3, samples))
    elites = e.take(e.reshape(y, (samples, tokens * width)), best)
    mean = e.reshape(e.mean(elites, 0), (tokens * width,))
    return program_of({"score": Graph({"y": y, "cost": cost, "best": best, "mean": mean})})

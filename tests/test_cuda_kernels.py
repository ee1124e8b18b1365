"""CUDA kernels on fibers: every family and dtype at odd shapes, as the oracle says, under schedules that mean harm."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import programs
import pytest
from cuda_cpu import BLOCK_BARRIER, LATE_WAIT, WARP_BARRIER, WRONG_LANE, Bundle, LaunchError

from edgewm import expr as e
from edgewm import interp
from edgewm.passes import EXACT, LOWERING, run
from edgewm.program import Graph, Node, Program, walk_graphs

SEEDS = (0, 7, 107)  # of schedules: in order, random, unfair


def product(k: int, n: int, lanes: int, outer: int, form: str) -> Graph:
    """x (outer, lanes, k) by a weight (k, n): read as it lies, from far apart, or behind a norm; an epilogue behind."""
    x = e.input("x", (outer, lanes, k))
    w = e.weight(f"w{k}x{n}", (k, n))
    if form == "direct":
        return Graph({"y": e.maximum(e.add(e.matmul(e.absolute(x), w), e.weight(f"b{n}", (n,))), 0.0)})
    if form == "norm":
        scale = e.reduce_sum(e.mul(x, x), -1)
        x = e.add(e.div(x, e.add(scale, 1.0)), e.weight(f"g{k}", (k,)))
    y = e.matmul(x, w)
    return Graph({"y": e.add(y, e.input("residual", y.shape)) if form == "gathered" else e.tanh(y)})


def ensemble(members: int, k: int, n: int, lanes: int) -> Graph:
    x = e.input("x", (members, lanes, k))
    return Graph({"y": e.matmul(e.tanh(x), e.weight(f"e{members}x{k}x{n}", (members, k, n)))})


def attention(heads: int, queries: int, keys: int, depth: int, width: int, samples: int) -> Graph:
    """Keys and values of each sample's own, or (samples 0) one set for all queries."""
    lead = (samples, heads) if samples else (heads,)
    q, k, v = (e.tanh(e.input(n, (*lead, *s))) for n, s in (
        ("q", (queries, depth)), ("k", (depth, keys)), ("v", (keys, width))))  # fmt: skip
    mask = e.less_equal(e.iota((queries, keys), 1), e.add(e.iota((queries, keys), 0), 1))
    scores = e.select(mask, e.mul(e.matmul(q, k), 0.3), -1e30)
    return Graph({"y": e.mul(e.matmul(e.softmax(scores, -1), v), 0.5)})


def folded(kind: str, outer: int, lanes: int, k: int) -> Graph:
    x = e.input("x", (outer, lanes, k))
    return Graph({"y": (e.reduce_sum if kind == "sum" else e.reduce_max)(x, -1)})


def arithmetic(outer: int, lanes: int, n: int) -> Graph:
    """All integer and float ops that a map may hold."""
    a, b, c, d = (e.input(name, s, t) for name, s, t in (
        ("a", (outer, lanes, n), "f32"), ("b", (n,), "f32"), ("c", (outer, lanes, n), "u32"),
        ("d", (outer, lanes, n), "u8")))  # fmt: skip
    y = e.fma(e.rint(a), b, e.div(e.sqrt(e.absolute(a)), e.maximum(e.floor(a), 1.0)))
    u = e.xor(e.mulhi(c, e.const(0xD2511F53, "u32")), e.shr(e.mul(c, e.const(0xCD9E8D57, "u32")), 7))
    i = e.minimum(e.add(e.absolute(e.sub(e.cast(d, "i32"), 100)), e.bitcast(e.shr(c, 20), "i32")), 3000)
    return Graph({"y": e.select(e.less(a, b), e.gelu(b), y), "u": u, "i": i, "t": e.permute(y, (2, 0, 1))})


def best(samples: int, k: int) -> Graph:
    cost, x = e.input("cost", (samples,)), e.input("x", (samples, 3, 5))
    index = e.topk(cost, k)
    return Graph({"index": index, "elites": e.take(x, index)})


PRODUCTS = [*itertools.product((1, 5, 83), (1, 66), (1, 33), (1, 3)), (17, 130, 70, 2)]
WIDE = (70, 66, 4100, 1)  # enough tiles for the products of whole blocks; fewer, and warps share k
ATTENTIONS = [
    (1, 1, 1, 1, 1, 1), (2, 3, 3, 8, 8, 33), (2, 13, 13, 5, 7, 0), (3, 1, 30, 16, 13, 5), (1, 5, 7, 3, 1, 40),
    (1, 6, 40, 70, 33, 35), (2, 40, 40, 8, 8, 0), (1, 2, 900, 3, 2, 0),
]  # fmt: skip
FOLDS = [(1, 1, 1), (3, 33, 5), (2, 300, 19), (9, 5, 193)]
GRAPHS = (
    {f"product_{form}{i}": product(*shape, form)
     for form in ("direct", "gathered", "norm") for i, shape in enumerate(PRODUCTS)}
    | {"product_wide": product(*WIDE, "direct")}
    | {f"product_of_each{i}": ensemble(*shape) for i, shape in enumerate([(3, 6, 13, 17), (2, 70, 65, 40)])}
    | {f"attention{i}": attention(*shape) for i, shape in enumerate(ATTENTIONS)}
    | {f"{kind}{i}": folded(kind, *shape) for kind in ("sum", "max") for i, shape in enumerate(FOLDS)}
    | {f"map{i}": arithmetic(*shape) for i, shape in enumerate([(1, 1, 1), (2, 33, 7), (3, 17, 300)])}
    | {f"best{i}": best(*shape) for i, shape in enumerate([(1, 1), (5, 2), (300, 30), (300, 300), (513, 40)])}
)  # fmt: skip
PRECISIONS = ("fp32", "w8a8", "bf16")


def weights_of(graph: Graph) -> list[Node]:
    """Weights of products."""
    nodes = [n for g in walk_graphs(graph) for n in g.order() if n.op == "matmul"]
    return [n.sources[1] for n in nodes if n.sources[1].op == "weight"]


def program(graphs: Mapping[str, Graph] = GRAPHS) -> Program:
    """Every graph as an entry; those with products once for each precision, with weights of their own."""
    entries, recipe = {}, {}
    for name, graph in graphs.items():
        for precision in PRECISIONS if name.startswith("product") else ("fp32",):
            key = f"{precision}_{name}"
            entries[key] = programs.salted(graph, precision)
            recipe |= {w["name"]: precision for w in weights_of(entries[key])} if precision != "fp32" else {}
    return run(run(programs.program_of(entries), EXACT).with_(recipe=recipe), LOWERING)


@pytest.fixture(scope="module")
def whole() -> Program:
    return program()


@pytest.fixture(scope="module")
def bundle(whole: Program, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(whole, tmp_path_factory.mktemp("cuda"), watched=True)


def named(part: str, precision: str = "") -> list[str]:
    return [f"{p}_{n}" for n in GRAPHS if n.startswith(part) for p in PRECISIONS if p.startswith(precision)
            and (p == "fp32" or n.startswith("product"))]  # fmt: skip


def differences(bundle: Bundle, whole: Program, name: str, seed: int) -> list[str]:
    bundle.device.seed = seed
    inputs = programs.inputs_of(whole.entries[name])
    return programs.differing(bundle.run(name, **inputs), interp.run(whole.entries[name], inputs, whole.weights))


@pytest.mark.parametrize("part", ["product", "attention", "sum", "max", "map", "best"])
def test_kernels_are_the_oracle_to_the_bit(part: str, bundle: Bundle, whole: Program) -> None:
    """Integers and f32 whatever the schedule; no race, no stray access, nothing used before it is there."""
    found = {}
    for i, name in enumerate(n for n in named(part) if not n.startswith("bf16")):
        found[name] = differences(bundle, whole, name, SEEDS[i % len(SEEDS)])
    assert found and {n: d for n, d in found.items() if d} == {}


def test_bf16_is_the_real_product_within_rounding(bundle: Bundle, whole: Program) -> None:
    """Tensor cores add in an order of their own: each step over k may lose a unit of what has been added up so far."""
    names = {f"bf16_product_direct{i}": shape for i, shape in enumerate(PRODUCTS)} | {"bf16_product_wide": WIDE}
    for i, (name, (k, n, *_)) in enumerate(names.items()):
        bundle.device.seed = SEEDS[i % len(SEEDS)]
        assert is_within_rounding(bundle, whole, name, k, n), name


def is_within_rounding(bundle: Bundle, whole: Program, name: str, k: int, n: int) -> bool:
    """Whether a direct product over k of bf16 weights (k, n) is off by no more than its additions may lose."""
    inputs = programs.inputs_of(whole.entries[name])
    found = bundle.run(name, **inputs)["y"]
    wanted = interp.run(whole.entries[name], inputs, whole.weights)["y"]
    w = np.abs(programs.numbers(f"bf16/w{k}x{n}", (k, n)))
    sums = np.abs(inputs["x"]) @ w * (1 + 2.0**-8) ** 2  # of what bf16 makes of them, at most
    return bool(np.all(np.abs(found - wanted) <= 2 * (k + 2) * 2.0**-23 * (sums + 4)))


# ---------------------------------------------------------------------------------------------- the tests can fail

# A few calls in which every barrier matters.
PROBES = (
    "fp32_product_norm24", "w8a8_product_norm24", "fp32_product_of_each1", "fp32_attention3",
    "fp32_attention6", "fp32_attention7", "fp32_best2", "fp32_best4", "w8a8_product_wide",
)  # fmt: skip


def is_caught(bundle: Bundle, whole: Program) -> bool:
    for name in PROBES:
        try:
            if differences(bundle, whole, name, seed=107):
                return True
        except LaunchError:
            return True
    return False


@pytest.mark.parametrize("kind", [BLOCK_BARRIER, LATE_WAIT, WARP_BARRIER, WRONG_LANE])
def test_planted_faults_are_caught(kind: int, bundle: Bundle, whole: Program) -> None:
    """Each barrier left out, each wait for a copy one group late, warps that read another lane."""
    with bundle.device.planted() as plant:
        assert not is_caught(bundle, whole)
        sites = bundle.device.sites(kind)
        missed = [site for site in range(sites) if not (plant(kind, site), is_caught(bundle, whole))[1]]
    assert sites > 0 and missed == []


def test_a_tile_too_few_is_caught(bundle: Bundle, whole: Program) -> None:
    """Every launch of a probe with its last block left out; not where a mask hides what that would have computed."""
    kept, missed = bundle.rows.copy(), []
    for name in set(PROBES) - {"fp32_attention7", "w8a8_product_wide"}:
        (entry,) = (i for i, n in enumerate(whole.entries) if n == name)
        for row in bundle.rows_of(entry):
            bundle.rows["blocks"][row] -= 1
            if kept["blocks"][row] > 1 and differences(bundle, whole, name, 0) == []:
                missed.append((name, bundle.functions[int(kept["function"][row])]))
            bundle.rows[:] = kept
    assert missed == []

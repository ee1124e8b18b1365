"""CUDA kernels on fibers: every family and dtype at odd shapes, as the oracle says, under schedules that mean harm."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import programs
import pytest
from cuda_cpu import BLOCK_BARRIER, LATE_WAIT, WARP_BARRIER, WRONG_LANE, Bundle, LaunchError
from kernel_cases import e4m3_numbers

from edgewm import expr as e
from edgewm import interp
from edgewm.cuda import launches
from edgewm.cuda.source import HEADERS
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


def normed(y: Node) -> Node:
    """Whole numbers, none beyond 20."""
    return e.rint(e.mul(e.div(y, e.add(e.reduce_max(e.absolute(y), -1), 1.0)), 20.0))


def attended(samples: int, tokens: int, k: int, heads: int, depth: int, queries: int = 0, before: int = 0) -> Graph:
    """The attention of each sample's tokens, or its last `queries`, and the one product that makes all of it, of what
    one of `before` numbers has made, where that is one.

    Of whole numbers, with weights that are (`program`), so that tensor cores' sums are exact in any order.
    """
    x = e.rint(e.mul(e.input("x", (samples, tokens, before or k)), 3.0))
    if before:
        x = normed(e.matmul(x, e.weight(f"whole{before}x{k}", (before, k))))
    made = e.matmul(x, e.weight(f"whole{k}x{heads}x{depth}", (k, 3 * heads * depth)))
    made = e.add(made, e.weight(f"b{heads * depth}", (3 * heads * depth,)))
    made, lead = e.reshape(made, (samples, tokens, 3, heads, depth)), (samples, tokens, heads, depth)
    q, k, v = (e.permute(e.reshape(e.narrow(made, 2, i, i + 1), lead), (0, 2, 1, 3)) for i in range(3))
    queries = queries or tokens
    q = e.narrow(q, 2, tokens - queries, tokens)
    scores = e.mul(e.matmul(e.mul(q, 0.5), e.permute(k, (0, 1, 3, 2))), 1e-3)
    last = e.add(e.iota((queries, tokens), 0), tokens - queries)
    scores = e.select(e.less_equal(e.iota((queries, tokens), 1), last), scores, -1e30)
    y = e.permute(e.matmul(e.softmax(scores, -1), v), (0, 2, 1, 3))
    return Graph({"y": e.mul(e.reshape(y, (samples, queries, heads * depth)), 0.5)})


def followed(k: int, n: int, lanes: int, outer: int, members: bool = False) -> Graph:
    """A product whose rows are normed for another one, and the largest of its sums: blocks have whole rows of both.

    Of whole numbers, as `attended`; `members`: each outer index has weights of its own for the first.
    """
    x = e.rint(e.mul(e.input("x", (outer, lanes, k)), 3.0))
    lead = (outer,) if members else ()
    y = e.add(e.matmul(x, e.weight(f"whole{lead}{k}x{n}", (*lead, k, n))), e.input("residual", (outer, lanes, n)))
    z = e.add(e.matmul(normed(y), e.weight(f"whole{n}x{k}", (n, k))), e.input("x", (outer, lanes, k)))
    return Graph({"y": e.reduce_max(z, -1)})


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


def clamped(constants: Sequence[float]) -> Graph:
    """Numbers that compare in odd ways, each beside constants."""
    x = e.input("edges", (len(EDGES), 1))
    pairs = [pair for c in constants for pair in ((x, e.const(c)), (e.const(c), x))]
    return Graph({"y": e.concat([f(*pair) for pair in pairs for f in (e.minimum, e.maximum)], 1)})


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
ATTENDED = [  # the last but one is as large as any
    (33, 3, 70, 2, 24), (34, 2, 66, 1, 20), (40, 4, 130, 3, 32), (33, 3, 66, 2, 16, 1), (40, 4, 66, 2, 8, 2),
    (35, 3, 64, 2, 64), (33, 3, 70, 2, 24, 0, 66),
]  # fmt: skip
FOLLOWED = [(270, 5, 33, 1), (330, 70, 33, 1), (450, 130, 3, 1), (66, 66, 20, 2, True)]
FOLDS = [(1, 1, 1), (3, 33, 5), (2, 300, 19), (9, 5, 193)]
E4M3 = e4m3_numbers()[:, None]
EDGES = np.float32([0.0, -0.0, np.nan, 1.0, -1.0, 1e-45, -1e-45, np.inf, -np.inf])
GRAPHS = (
    {f"product_{form}{i}": product(*shape, form)
     for form in ("direct", "gathered", "norm") for i, shape in enumerate(PRODUCTS)}
    | {"product_wide": product(*WIDE, "direct")}
    | {f"product_of_each{i}": ensemble(*shape) for i, shape in enumerate([(3, 6, 13, 17), (2, 70, 65, 40)])}
    | {f"attention{i}": attention(*shape) for i, shape in enumerate(ATTENTIONS)}
    | {f"attended{i}": attended(*shape) for i, shape in enumerate(ATTENDED)}
    | {f"followed{i}": followed(*shape) for i, shape in enumerate(FOLLOWED)}
    | {f"{kind}{i}": folded(kind, *shape) for kind in ("sum", "max") for i, shape in enumerate(FOLDS)}
    | {f"map{i}": arithmetic(*shape) for i, shape in enumerate([(1, 1, 1), (2, 33, 7), (3, 17, 300)])}
    | {"clamped": clamped((0.0, -0.0, 1.0)), "rounded": Graph({"y": e.e4m3(e.input("e4m3", E4M3.shape))})}
    | {f"best{i}": best(*shape) for i, shape in enumerate([(1, 1), (5, 2), (300, 30), (300, 300), (513, 40)])}
)  # fmt: skip
PRECISIONS = ("fp32", "w8a8", "w8s", "bf16", "fp16")  # w8s: w8a8_static; names are short
FORMS = {"w8s": "w8a8_static"}
IN_E4M3 = "product_norm24"  # by the kernels of bf16: what stands before and behind them differs
# of the largest rounding, where tensor cores add in an order of their own
UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp8": 2.0**-4}


def precisions_of(name: str) -> tuple[str, ...]:
    """Those a graph is tried in: what differs by how rows are rounded alone, behind a norm."""
    if name.startswith(("attended", "followed")):
        return PRECISIONS[1:]
    if not name.startswith("product"):
        return ("fp32",)
    if name == IN_E4M3:
        return (*PRECISIONS, "fp8")
    return PRECISIONS if "norm" in name or "wide" in name else ("fp32", "w8a8", "bf16")


def weights_of(graph: Graph) -> list[Node]:
    """Weights of products."""
    nodes = [n for g in walk_graphs(graph) for n in g.order() if n.op == "matmul"]
    return [n.sources[1] for n in nodes if n.sources[1].op == "weight"]


def program(graphs: Mapping[str, Graph] = GRAPHS) -> Program:
    """Every graph as an entry; those with products once for each precision, with weights of their own."""
    entries, recipe = {}, {}
    for name, graph in graphs.items():
        for precision in precisions_of(name):
            key = f"{precision}_{name}"
            entries[key] = programs.salted(graph, precision)
            if precision != "fp32":
                recipe |= {w["name"]: FORMS.get(precision, precision) for w in weights_of(entries[key])}
    drawn = programs.program_of(entries)
    weights = {name: np.rint(2 * w) if "/whole" in name else w for name, w in drawn.weights.items()}
    return run(run(drawn.with_(weights=weights), EXACT).with_(recipe=recipe), LOWERING)


@pytest.fixture(scope="module")
def whole() -> Program:
    return program()


@pytest.fixture(scope="module")
def bundle(whole: Program, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(whole, tmp_path_factory.mktemp("cuda"), watched=True)


def named(part: str, precision: str = "") -> list[str]:
    return [f"{p}_{n}" for n in GRAPHS if n.startswith(part) for p in precisions_of(n) if p.startswith(precision)]


def inputs_of(graph: Graph) -> dict[str, np.ndarray]:
    odd = {"edges": EDGES[:, None], "e4m3": E4M3}
    return programs.inputs_of(graph) | {name: odd[name] for name in odd.keys() & graph.inputs().keys()}


def differing(name: str, whole: Program, found: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> list[str]:
    """Against the oracle: to the bit, or, in bf16 and fp16, by more than rounding.

    Tensor cores add in an order of their own: each step over k may lose a unit of what has been added up so far.
    """
    wanted = interp.run(whole.entries[name], inputs, whole.weights)
    precision, _, case = name.partition("_")
    if precision not in UNIT or not case.startswith("product"):
        return programs.differing(found, wanted)
    (product,) = (n for n in programs.salted(GRAPHS[case], precision).order() if n.op == "matmul")
    sides = {"x": product.sources[0], "w": product.sources[1]}
    x, w = (np.abs(side) for side in interp.run(Graph(sides), inputs, whole.weights).values())
    sums = x @ w * (1 + UNIT[precision]) ** 2  # of what is made of them, at most
    apart = np.abs(found["y"] - wanted["y"]) <= 2 * (x.shape[-1] + 2) * 2.0**-23 * (sums + 4)
    return [] if np.all(apart) else [f"y: {np.sum(~apart)} of {apart.size} differ by more than rounding"]


def differences(bundle: Bundle, whole: Program, name: str, seed: int) -> list[str]:
    bundle.device.seed = seed
    inputs = inputs_of(whole.entries[name])
    return differing(name, whole, bundle.run(name, **inputs), inputs)


PARTS = ("product", "attention", "attended", "followed", "sum", "max", "map", "clamped", "rounded", "best")


@pytest.mark.parametrize("part", PARTS)
def test_kernels_are_the_oracle(part: str, bundle: Bundle, whole: Program) -> None:
    """Whatever the schedule; no race, no stray access, nothing used before it is there."""
    found = {}
    for i, name in enumerate(named(part)):
        found[name] = differences(bundle, whole, name, SEEDS[i % len(SEEDS)])
    assert found and {n: d for n, d in found.items() if d} == {}


def test_an_attention_and_its_product_are_one_launch(bundle: Bundle, whole: Program) -> None:
    """Rows are rounded, then comes all the rest; what is left is to copy the answer."""
    for name, family in (("w8a8", "i8"), ("w8s", "rounded"), ("bf16", "bf16"), ("fp16", "fp16")):
        entry = list(whole.entries).index(f"{name}_attended0")
        ran = [bundle.functions[int(bundle.rows["function"][row])] for row in bundle.rows_of(entry)]
        assert [f.startswith(f"ewm_product_{family}_attention_") for f in ran[:2]] == [False, True], ran
        assert all(f.startswith("ewm_map_") for f in ran[2:]), ran


def test_a_block_runs_products_of_whole_rows_and_what_is_behind_them(bundle: Bundle, whole: Program) -> None:
    """Both products are in one launch; the last one too, as its sums are folded by the block that made them."""
    for name, family in (("w8a8", "i8"), ("w8s", "rounded"), ("bf16", "bf16"), ("fp16", "fp16")):
        entry = list(whole.entries).index(f"{name}_followed1")
        ran = [bundle.functions[int(bundle.rows["function"][row])] for row in bundle.rows_of(entry)]
        assert ran[0].startswith(f"ewm_chain_product_{family}_rows_"), ran
        assert all(f.startswith("ewm_map_") for f in ran[1:]), ran


def test_the_sizes_of_tiles_stand_once() -> None:
    """Kernels are compiled with the sizes that grids are made of: a second one that differs would write anywhere."""
    texts = "".join(text for name, text in HEADERS.items() if name not in ("format.h", "kernel.h", "launch.h"))
    for name, size in launches.SIZES.items():
        assert getattr(launches, name) == size
        assert re.search(rf"\b{name}\b", texts) and not re.search(rf"\b{name} = ", texts), name


# ---------------------------------------------------------------------------------------------- the tests can fail

# A few calls in which every barrier matters.
PROBES = (
    "w8a8_followed0", "fp32_product_norm24", "w8a8_product_norm24", "fp32_product_of_each1", "fp32_attention3",
    "fp32_attention6", "fp32_attention7", "fp32_best2", "fp32_best4", "w8a8_product_wide", "w8a8_attended1",
    "w8a8_attended2",
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

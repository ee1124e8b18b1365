"""Recipes: which weights are held how. Named tokens here, a JSON file for one's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..errors import EdgewmError
from ..ops import flops
from ..options import PRECISIONS, RECIPES, VALUES, WITH, is_named
from ..program import Graph, Node, Program, walk_graphs

WHOLE = "_all"  # ends the name of a recipe that takes the encoder too
NAMED = tuple(name for name in PRECISIONS if not name.endswith(WHOLE))
FORMATS = tuple(name for name in RECIPES if not name.endswith(WHOLE))
ROUNDED = ("bf16", "fp16")  # formats without steps: as accurate for a small number as for a large one
SMALLEST_K = 64  # a product of fewer inputs costs nothing worth the rounding of its few activations
ONCE = ("encode", "propose")  # entries that run once a plan
STORED = "bf16"  # what a class of values can be held in
STRAIT_SHARE = 0.1  # of the work on a candidate: in bf16 that takes a tenth more time, a third where a CPU has none


def recipe_of(program: Program, precision: str) -> Mapping[str, str]:
    """Weight name -> format. A name takes every product that candidates run through; what runs once a plan stays exact,
    unless the name ends in `_all`.

    `bf16` halves the bytes of those weights on every CPU, and the time of their products where the CPU has AVX512-BF16;
    elsewhere (Jetson Orin's among them) each is done by multiply-adds of float32, to the same bits, and gains no time.
    An encoder runs once a plan: to narrow it saves little time and costs elites.

    `fp16` (IEEE half) loses an eighth of what bf16 does, saturates at 65504, and is for GPUs, where it takes the time
    of bf16: a CPU stores and multiplies halves as float32.

    `w8a8` holds `straits` in bf16: no residual carries what their rounding loses. `w8a8_smooth` is w8a8 of activations
    whose channels are centred and scaled (`smooth`), and of weights that make up for each other's rounding, both chosen
    on the planner's own candidates: a multiply-add an activation dearer. `w8a8_static` has activations in
    constant steps of the range that the planner's own candidates have in them (`calibrate`): no row is looked at before
    it is rounded, which saves next to nothing on a CPU, and all rows share the steps of the widest, which costs elites.

    `w4a8` and `w4a16_g64` (or 32, 128: the inputs that share a step) have weights of 16 levels, chosen on the same
    candidates, and hold straits in bf16 as well. Here 4 bits are fidelity only: kernels read such weights as int8 and
    bf16, so bytes and time are those of w8a8 and bf16. So it is with `w8a16`, whose weights have 255 levels, a step an
    output channel, and are read as bf16.

    `fp8` has weights in E4M3 with a scale an output channel, and activations in E4M3 with a scale that each row finds
    for itself, and holds straits in bf16. It, too, is fidelity only, on every target: bf16 holds each such number, so
    the kernels of bf16 multiply them, to the bit. What a row is multiplied by takes a pass over it, so time is more
    than bf16's. Units for fp8 that would pay (Thor has them) are reached by tcgen05 alone, which kernels do not use.

    `+hidden`, `+attention` and `+latents` behind a name hold values in bf16 that candidates leave between calls (see
    `passes/narrow_values.py`): what a product or an attention makes for products alone; queries, keys and values; and
    all other results of products, latents among them.

    A path names a JSON object of the same shape, in which the name of a weight stands for slices of it, too, but for
    those that have a line of their own. EdgewmError for an unknown token, name or format.
    """
    if not is_named(precision):
        return _from_file(program, Path(precision))
    base, *classes = precision.split(WITH)
    for name in classes:
        _check_class(name, f"--precision {precision}")
    values = {WITH + name: STORED for name in classes}
    if base == "fp32":
        return values
    form, whole, _ = base.partition(WHOLE)
    taken = set().union(*map(products_of, program.entries.values()))
    if not whole:
        taken -= set().union(*(products_of(g) for name, g in program.entries.items() if name in ONCE))
    taken = {name for name in taken if program.weights[name].shape[-2] >= SMALLEST_K}
    narrow = straits(program) if form not in ROUNDED else frozenset()
    return {name: "bf16" if name in narrow else form for name in sorted(taken)} | values


def straits(program: Program) -> frozenset[str]:
    """Weights of SMALLEST_K inputs or more through whose products every way from a candidate to its cost leads.

    The cheapest first, as long as together they are at most STRAIT_SHARE of the work on a candidate: in a stack without
    residuals every product is one. None in a program without the entry `score`, nor inside a loop.
    """
    if "score" not in program.entries:
        return frozenset()
    graph = program.entries["score"]
    work: Counter[str] = Counter()
    for node in graph.order():
        if (name := weight_of(node)) is not None:
            work[name] += flops(node)
    found, spent = [], 0
    wide = (name for name in work if program.weights[name].shape[-2] >= SMALLEST_K)
    for name in sorted((n for n in wide if not _reaches(graph, n)), key=lambda n: (work[n], n)):
        spent += work[name]
        if spent > STRAIT_SHARE * work.total():
            break
        found.append(name)
    return frozenset(found)


def weight_of(node: Node) -> str | None:
    """The name of the weight in a product with one."""
    return node.sources[1]["name"] if node.op == "matmul" and node.sources[1].op == "weight" else None


def _reaches(graph: Graph, without: str) -> bool:
    """Whether candidates still tell costs apart when what passes one weight is cut off."""
    seen: set[Node] = set()
    left = list(graph.outputs.values())
    while left:
        node = left.pop()
        if node in seen or weight_of(node) == without:
            continue
        if node.op == "input" and node["name"] == "candidates":
            return True
        seen.add(node)
        left += node.sources
    return False


def products_of(graph: Graph) -> set[str]:
    """Names of the weights that products read in a graph and in the loops in it."""
    return {name for g in walk_graphs(graph) for node in g.order() if (name := weight_of(node)) is not None}


def _check_class(name: str, where: str) -> None:
    if name not in VALUES:
        raise EdgewmError(
            f"no class of values is called {name!r}", where, f"use {', '.join(WITH + known for known in VALUES)}"
        )


def _from_file(program: Program, path: Path) -> Mapping[str, str]:
    if not path.is_file():
        raise EdgewmError(
            f"no precision {str(path)!r}",
            "--precision",
            f"use one of {', '.join(RECIPES)}, or a JSON file",
        )
    try:
        recipe = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise EdgewmError(f"not JSON: {fault}", str(path), 'write {"weight name": "w8a8", ...}') from fault
    if not isinstance(recipe, dict):
        raise EdgewmError(f"the recipe is a {type(recipe).__name__}", str(path), 'write {"weight name": "w8a8", ...}')
    products = set().union(*map(products_of, program.entries.values()))
    held: dict[str, str] = {}
    for name, kind in recipe.items():
        if name.startswith(WITH):
            _check_class(name[len(WITH) :], str(path))
            if kind not in (STORED, "fp32"):
                raise EdgewmError(f"values {name!r} are to be {kind!r}", str(path), f"use {STORED} or fp32")
            held[name] = kind
            continue
        slices = {n for n in products if n.startswith(f"{name}[")}  # of some rows that are read alone
        if name not in products and not slices:
            raise EdgewmError(f"no product has a weight {name!r}", str(path), "`edgewm show --stage exact` lists them")
        if kind not in FORMATS:
            raise EdgewmError(f"weight {name!r} is to be {kind!r}", str(path), f"use one of {', '.join(FORMATS)}")
        held |= dict.fromkeys(sorted((slices - recipe.keys()) | ({name} & products)), kind)
    return {n: k for n, k in held.items() if k != "fp32"}

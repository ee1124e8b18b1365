"""Recipes: which weights are held how. Named tokens here, a JSON file for one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import EdgewmError
from ..program import Graph, Program, walk_graphs

NAMED = ("fp32", "bf16", "w8a8")
FORMATS = ("fp32", "bf16", "w8a8")
WHOLE = "_all"  # ends the name of a recipe that takes the encoder too
TOKENS = (*NAMED, *(name + WHOLE for name in NAMED[1:]))
SMALLEST_K = 64  # a product of fewer inputs costs nothing worth the rounding of its few activations


def recipe_of(program: Program, precision: str) -> Mapping[str, str]:
    """Weight name -> format. A name takes every product that candidates run through; what runs once a plan stays exact,
    unless the name ends in `_all`.

    `bf16` halves the bytes of those weights on every CPU, and the time of their products where the CPU has AVX512-BF16;
    elsewhere (Jetson Orin's among them) each is done by multiply-adds of float32, to the same bits, and gains no time.
    An encoder in bf16 would double the error of the reference model's costs to save a fiftieth of its plan. One in
    eight bits costs it elites: of 100 of its plans w8a8 keeps 0.970 of them, w8a8_all 0.945, where the gate is 0.95.

    A path names a JSON object of the same shape. EdgewmError for an unknown token, name or format.
    """
    if precision == "fp32":
        return {}
    if precision in TOKENS:
        form, whole, _ = precision.partition(WHOLE)
        taken = set().union(*map(_products, program.entries.values()))
        if not whole and "encode" in program.entries:
            taken -= _products(program.entries["encode"])
        return {name: form for name in sorted(taken) if program.weights[name].shape[-2] >= SMALLEST_K}
    return _from_file(program, Path(precision))


def _products(graph: Graph) -> set[str]:
    return {
        node.sources[1]["name"]
        for g in walk_graphs(graph)
        for node in g.order()
        if node.op == "matmul" and node.sources[1].op == "weight"
    }


def _from_file(program: Program, path: Path) -> Mapping[str, str]:
    if not path.is_file():
        raise EdgewmError(
            f"no precision {str(path)!r}", "--precision", f"use one of {', '.join(TOKENS)}, or a JSON file"
        )
    try:
        recipe = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise EdgewmError(f"not JSON: {fault}", str(path), 'write {"weight name": "w8a8", ...}') from fault
    if not isinstance(recipe, dict):
        raise EdgewmError(f"the recipe is a {type(recipe).__name__}", str(path), 'write {"weight name": "w8a8", ...}')
    products = set().union(*map(_products, program.entries.values()))
    for name, kind in recipe.items():
        if name not in products:
            raise EdgewmError(
                f"no product has a weight {name!r}", str(path), "`edgewm show --stage capture` lists them"
            )
        if kind not in FORMATS:
            raise EdgewmError(f"weight {name!r} is to be {kind!r}", str(path), f"use one of {', '.join(FORMATS)}")
    return {n: k for n, k in recipe.items() if k != "fp32"}

"""What must hold of a Program, at every stage. A failure names the entry, the node, the rule and the step before it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from . import arithmetic  # noqa: F401  (fills the table's transcendental rows)
from .errors import EdgewmError
from .ops import NUMPY, TABLE
from .program import Graph, Node, Program, walk_graphs

_sound: weakref.WeakSet[Graph] = weakref.WeakSet()  # whose nodes keep the table's rules, which nothing can change


class BrokenProgram(Exception):
    """A step of edgewm's own made a program that breaks a rule: nothing a user could mend."""


def verify(program: Program, step: str, known: Mapping[str, np.ndarray] | None = None) -> None:
    """Raises BrokenProgram unless every rule below holds for every node of every entry. Weights in `known` were looked
    at before.

    EdgewmError for a weight that is not finite: such a checkpoint can be trained or exported again.
    """
    for name, entry in program.entries.items():
        for graph in walk_graphs(entry):
            _verify_graph(program, graph, f"entry {name!r}, after {step}")
    for name, array in program.weights.items():
        if known is not None and known.get(name) is array:
            continue
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise EdgewmError(
                f"weight {name!r} holds NaN or Inf", f"weights, after {step}", "train or export the checkpoint again"
            )


def _verify_graph(program: Program, graph: Graph, where: str) -> None:
    if graph not in _sound:
        _verify_rules(graph, where)
        _sound.add(graph)
    for node in graph.leaves:
        if node.op == "weight":
            array = program.weights.get(node["name"])
            if array is None:
                _broken(node, f"weight {node['name']!r} is in the program's weights", where)
            if array.shape != node.shape or array.dtype != NUMPY[node.dtype]:
                _broken(node, f"weight {node['name']!r} is {array.dtype}{list(array.shape)}", where)


def _verify_rules(graph: Graph, where: str) -> None:
    for node in graph.order():
        row = TABLE.get(node.op)
        if row is None:
            _broken(node, "every op is a row of the table", where)
        attrs = dict(node.attrs)
        if (row.kind != "leaf" or node.op == "const") and row.rule(attrs, *node.sources) != (node.shape, node.dtype):
            _broken(node, "shape and dtype follow from the op's rule", where)


def _broken(node: Node, rule: str, where: str) -> NoReturn:
    raise BrokenProgram(f"{node!r} breaks a rule: {rule} ({where})")

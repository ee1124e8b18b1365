"""Find kernel families and recognise their cores in a graph.

A family is `kernels/<maths>.py`; its `reference`, written in ops, is documentation, oracle and pattern at once. A core
is matched by unifying the reference with the graph and then *rebuilding* the reference on what was bound: nodes are
hash-consed, so the match holds exactly when the rebuilt node is the node.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from types import ModuleType

from .errors import EdgewmError
from .paths import KERNELS
from .program import Node


@functools.cache
def load(family: str) -> ModuleType:
    """The module `kernels/<family>.py`."""
    path = KERNELS / f"{family}.py"
    spec = importlib.util.spec_from_file_location(f"edgewm_kernels_{family}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise EdgewmError(f"no kernel family {family!r}", str(KERNELS), f"add {family}.py there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def features(families: Iterable[str]) -> tuple[str, ...]:
    """Facts of a CPU that some of these families make use of where they hold: `FEATURES` of `kernels/<family>.py`."""
    modules = [load(family) for family in families if (KERNELS / f"{family}.py").is_file()]
    return tuple(dict.fromkeys(f for module in modules for f in getattr(module, "FEATURES", ())))


def match(family: str, root: Node) -> dict[str, Node] | None:
    """What each leaf of the family's reference is bound to, if `root` is that reference; else None."""
    reference = load(family).reference
    for template in _templates(family, len(root.shape)):
        if template.op != root.op:
            continue
        bound: dict[str, Node] = {}
        if not _unify(template, root, bound):
            continue
        names = tuple(inspect.signature(reference).parameters)
        if set(bound) != set(names):
            continue
        try:
            rebuilt = reference(*(bound[n] for n in names))
        except EdgewmError:
            continue
        if rebuilt is root:
            return {name: bound[name] for name in names}
    return None


@functools.cache
def _templates(family: str, rank: int) -> tuple[Node, ...]:
    """The reference on placeholder leaves of a rank, kept alive so that interning finds them again."""
    module = load(family)
    try:
        return (module.reference(*module.placeholders(rank)),)
    except EdgewmError:
        return ()


def _unify(template: Node, node: Node, bound: dict[str, Node]) -> bool:
    if template.op == "input":
        name = template["name"]
        return bound.setdefault(name, node) is node
    if template.op != node.op or len(template.sources) != len(node.sources):
        return False
    if template.op == "const":
        return template is node
    return all(_unify(t, n, bound) for t, n in zip(template.sources, node.sources, strict=True))

"""What a program is, and what would be made of it here, as digests: names for what is kept of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from functools import cache

import numpy as np

from .paths import KERNELS, PACKAGE
from .program import Graph, Node, Program

SOURCES = (".py", ".cc", ".h", ".cu")
PACKAGES = ("numpy", "ml_dtypes", "ziglang")  # whose release may change what is computed


def program_identity(program: Program) -> str:
    """SHA-256 over every node of every entry, every weight that one reads, the ports and the planner."""
    digest, known = hashlib.sha256(), {}
    read: dict[str, None] = {}
    for name, graph in program.entries.items():
        digest.update(f"{name} {_graph_identity(graph, known)}\n".encode())
        read.update(dict.fromkeys(graph.weights()))
    for name in sorted(read):
        array = np.ascontiguousarray(program.weights[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    digest.update(f"{program.ports} {program.planner}".encode())
    return digest.hexdigest()


def _graph_identity(graph: Graph, known: dict[Graph, str]) -> str:
    if graph not in known:
        place: dict[Node, int] = {}
        lines = []
        for node in graph.order():
            attrs = [(k, _graph_identity(v, known) if isinstance(v, Graph) else v) for k, v in node.attrs]
            lines.append(f"{node.op} {[place[s] for s in node.sources]} {attrs} {node.shape} {node.dtype}")
            place[node] = len(place)
        lines.append(str([(name, place[node]) for name, node in graph.outputs.items()]))
        known[graph] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return known[graph]


@cache
def code_identity() -> str:
    """SHA-256 over the sources of edgewm and its kernels, and the releases of what they are compiled and run by."""
    digest = hashlib.sha256(sys.version.encode())
    found = {d.name: d.version for package in PACKAGES for d in importlib.metadata.distributions(name=package)}
    digest.update(str(sorted(found.items())).encode())
    for folder in (PACKAGE, KERNELS):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in SOURCES):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()

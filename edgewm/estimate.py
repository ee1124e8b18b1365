"""What a plan must cost, from the program and the board's advertised figures alone: nothing here is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .ops import flops
from .program import Graph, Node
from .target import Mode, Target, peak_flops

SOURCE = "estimated, at advertised peaks"


def operations(graph: Graph) -> Counter[str]:
    """Operations of one evaluation: products by dtype of their operands ("f32", "i8"), all else as "vector"."""
    found: Counter[str] = Counter()
    for node, times in _computing(graph, 1):
        found[node.sources[0].dtype if node.op == "matmul" else "vector"] += times * flops(node)
    return found


def _computing(graph: Graph, times: int) -> Iterator[tuple[Node, int]]:
    """Every node that computes, and how often it does."""
    for node in graph.order():
        if node.op in ("repeat", "kernel"):
            yield from _computing(node["body"], times * (node["count"] if node.op == "repeat" else 1))
        else:
            yield node, times


def estimate_ms(
    done: Mapping[str, int], read_bytes: int, board: Target, mode: Mode, threads: int
) -> dict[str, Any] | None:
    """Time of one plan on the CPU in ms; None where the board's facts do not say.

    `done` is what `operations` counts, `read_bytes` the weights, each read once. `low` lets arithmetic and reading
    overlap wholly, `point` not at all; neither knows how far from its peak the machine will run.
    """
    peaks = {kind: peak_flops(board, mode, kind, "cpu") for kind in ("fp32", "int8")}
    narrow = done.get("i8", 0)
    if not mode.cpu_cores or not mode.dram_gbps or not peaks["fp32"] or (narrow and not peaks["int8"]):
        return None
    share = min(threads, mode.cpu_cores) / mode.cpu_cores
    busy_s = (sum(done.values()) - narrow) / peaks["fp32"] / share
    if narrow:
        busy_s += narrow / peaks["int8"] / share
    read_s = read_bytes / (mode.dram_gbps * 1e9)
    return {"low": 1e3 * max(busy_s, read_s), "point": 1e3 * (busy_s + read_s), "source": SOURCE}

"""One iteration of a plan as a graph of its own: noise and the search's state in, the next state and all costs out.

A runtime that has no Philox, or no loop, runs these two: what a plan does once, and what it does in each round.
"""

from __future__ import annotations

from . import expr as e
from .ops import make
from .program import Graph, Node, rewrite

NOISE = "noise"


def split(plan: Graph) -> tuple[Graph, Graph]:
    """(`prepare`, `iterate`) of a plan whose noise comes from a port (`plan_graph(..., injected_noise=True)`).

    `prepare` maps the plan's inputs, noise left out, to what the loop starts with: its carries (`mean`, `std`) and what
    stays the same in all rounds (`z`, `goal`). `iterate` maps these and `noise` (samples, horizon, action) to the
    carries of the next round (`next_mean`, `next_std`), to what else the body gives, and to `costs` (samples,), which
    the elites were chosen by.
    """
    (loop,) = (node for node in plan.order() if node.op == "repeat")
    names = loop["carries"] + loop["invariants"]
    start = {name: source for name, source in zip(names, loop.sources, strict=True) if name != NOISE}
    body = loop["body"]
    (costs,) = body.outputs["elites"].sources
    found = rewrite({**body.outputs, "costs": costs}, _with_own_noise)
    return Graph(start), Graph({f"next_{k}" if k in loop["carries"] else k: node for k, node in found.items()})


def _with_own_noise(node: Node, sources: tuple[Node, ...]) -> Node:
    """The round's row of the port is an input."""
    if node.op == "take" and node.sources[0].op == "input" and node.sources[0]["name"] == NOISE:
        return e.reshape(e.input(NOISE, node.shape[1:]), node.shape)
    return make(node.op, *sources, **dict(node.attrs))

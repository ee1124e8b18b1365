"""Who is timed, what each row says, and how many times faster edgewm is than the best of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peers import Contestant
from step import limits_ms, peer_work
from timing import Step, alternate, figures, times_faster
from works import Run, Work

REFERENCE = ("torch eager", "upstream", "fp32")
OURS = "edgewm"
# From the widest to the narrowest: a peer may be held against edgewm in a precision no wider than its own.
WIDTHS = {"fp32": 0, "bf16": 1, "w8a8": 2, "int8": 2}

Machine = Mapping[str, Any]
Peaks = Callable[[], Machine]  # measures them


@dataclass(frozen=True, eq=False)
class Entrant:
    """One that is timed: `done` and `read` are the operations and bytes of one of its iterations."""

    name: str
    graph: str
    precision: str
    step: Step
    done: Mapping[str, int]
    read: float
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.name, self.graph, self.precision


def entered(contestant: Contestant, work: Work, step: Callable[[Run], Step], more: Mapping[str, Any]) -> Entrant:
    """A peer, with the work its precision implies."""
    graph = contestant.graph
    done, read = peer_work(work.graphs[graph], work.weights[graph], contestant.precision)
    settings = {"settings": contestant.settings} if contestant.settings else {}
    return Entrant(contestant.name, graph, contestant.precision, step(contestant.run), done, read, {**settings, **more})


def contest(
    entrants: Sequence[Entrant], rounds: int, peaks: Peaks, iterations: int = 1,
    say: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:  # fmt: skip
    """`rows`, one for each entrant, and `ratios` of edgewm to the best of the others by precision and graph."""
    seconds = alternate({each.key: each.step for each in entrants}, rounds, say=say)
    machine = peaks()
    rows = [row(each, seconds[each.key], seconds.get(REFERENCE), machine, iterations) for each in entrants]
    return {"rows": rows, "ratios": ratios(rows, seconds)}


def row(
    each: Entrant, seconds: Sequence[float], reference: Sequence[float] | None, machine: Machine, iterations: int
) -> dict[str, Any]:
    """Times of one iteration, the work in it, its limits at the machine's peaks, and the share of them it reached."""
    figure = figures(seconds, iterations)
    limit = limits_ms(each.done, each.read, machine)
    whole = None if None in limit.values() else sum(limit.values())
    return {
        "name": each.name, "graph": each.graph, "precision": each.precision, **figure,
        "vs_eager": times_faster(seconds, reference) if reference else None, "flops": sum(each.done.values()),
        "limit_ms": limit, "of_limit": None if whole is None else whole / figure["ms"], **each.more,
    }  # fmt: skip


def key_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["name"], row["graph"], row["precision"]


def ratios(rows: Sequence[Mapping[str, Any]], seconds: Mapping[tuple, Sequence[float]]) -> list[dict[str, Any]]:
    """For each precision of edgewm and each graph: the peer of the least median, and how many times faster edgewm is;
    and the least time that any peer took in any round over edgewm's own least.

    A peer counts in each precision that is no wider than its own: one that is faster in fp32 than another in int8 is
    the one to beat in int8.
    """
    found = []
    for ours in (r for r in rows if r["name"] == OURS):
        for graph in ("upstream", "exact"):
            others = [r for r in rows if r["name"] != OURS and r["graph"] == graph]
            others = [r for r in others if WIDTHS[r["precision"]] <= WIDTHS[ours["precision"]]]
            if others:
                best = min(others, key=lambda r: r["ms"])
                found.append({
                    "precision": ours["precision"], "graph": graph, "peer": f"{best['name']} {best['precision']}",
                    "peer_ms": best["ms"], "ms": ours["ms"],
                    "times_faster": times_faster(seconds[key_of(ours)], seconds[key_of(best)]),
                    "best_over_best": min(r["min_ms"] for r in others) / ours["min_ms"],
                })  # fmt: skip
    return found

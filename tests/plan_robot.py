"""Whole plans of every kind, compiled: a bundle on a clock that the test moves, and beside it the oracle's answers."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from planning import Arrays, drawn, ended_after, no_state, program_of, remembering

from edgewm.binding import ActInfo, PlanInfo, Runtime
from edgewm.bundle import compile_bundle, pack
from edgewm.emit import schedule_program
from edgewm.interp import run
from edgewm.ops import make
from edgewm.passes import EXACT, LOWERING
from edgewm.passes import run as run_passes
from edgewm.program import Graph, Node, Program, rewrite
from edgewm.target import resolve

MS = 1_000_000
PERIOD = 20 * MS
# kind -> window and block of the model, settings of the planner
SETTINGS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "cem": (2, 2, {"roll_committed": True, "commit_steps": 4, "warm_start": True}),
    "icem": (3, 1, {"kind": "icem", "history": 3, "roll_committed": True, "return_mean": False, "n_elite_keep": 2}),
    "mppi": (2, 1, {"kind": "mppi", "history": 2, "warm_start": True, "samples": 40}),
}
KINDS = tuple(SETTINGS)


def captured(kind: str) -> Program:
    window, block, settings = SETTINGS[kind]
    program = program_of(window, block, **settings)
    return program.with_(entries={"plan": program.entries["plan"]})


@functools.cache
def exact(kind: str) -> Program:
    return run_passes(captured(kind), EXACT)


@functools.cache
def bundle(kind: str) -> Path:
    program, (board, _) = run_passes(exact(kind), LOWERING), resolve("host")
    folder = Path(tempfile.mkdtemp(prefix="edgewm-plan-loops-"))
    sections, paths = compile_bundle(program, schedule_program(program, board.isa), {}, board, folder)
    (folder / "model.ewm").write_bytes(pack(sections, board, paths))
    return folder


@dataclass
class Robot:
    """A bundle on a clock of its own, and beside it what the oracle makes of the same calls."""

    kind: str
    threads: int = 1
    clock: Callable[[], int] | None = None
    now: int = 1000 * MS
    began: int = 0  # the chunk in play
    stamp: int = 0  # of the last plan's observation
    fresh: bool = True  # nothing planned since the reset
    wanted: list[np.ndarray] = field(default_factory=list)  # rows of each chunk, by generation - 1

    def __post_init__(self) -> None:
        window, block, _ = SETTINGS[self.kind]
        self.program, self.model = captured(self.kind), remembering(window, block)
        self.planner = self.program.planner
        self.state = no_state(self.program, self.model)
        self.goal = drawn(self.model.ports_of("goal"), 5)
        self.runtime = Runtime(
            bundle(self.kind), self.threads, clock=self.clock or (lambda: self.now), period_ns=PERIOD
        )
        self.runtime.set_goal(**self.goal)

    def __enter__(self) -> Robot:
        return self

    def __exit__(self, *_: object) -> None:
        self.runtime.close()

    def reset(self) -> None:
        self.runtime.reset()
        self.state, self.fresh = no_state(self.program, self.model), True

    def plan(self, seed: int = 0, deadline_ns: int = 0, iterations: int | None = None) -> PlanInfo:
        """Observe and plan, here and there; `iterations` is how many a deadline lets it do."""
        seen = drawn(self.model.ports_of("observation"), 100 + seed)
        self.runtime.observe(self.now, **seen)
        info = self.runtime.plan(deadline_ns)
        self.follow(seen, iterations)
        return info

    def follow(self, seen: Arrays, iterations: int | None = None) -> None:
        """The oracle's plan from this observation."""
        block, periods = self.planner.action_block, self.planner.horizon * self.planner.action_block
        played = round((self.now - self.began) / PERIOD)
        if self.planner.roll_committed:
            begun = 0 if self.fresh or played >= periods else played + 1
            self.state["periods_begun"] = np.uint32([begun])
        if self.planner.history > 1 and round((self.now - self.stamp) / PERIOD) != block:
            self.state["frames_seen"] = np.uint32([0])
        graph = self.program.entries["plan"]
        if iterations is not None:
            graph = ended_after(graph, iterations) if iterations else unsearched(graph)
        found = run(graph, seen | self.goal | self.state, self.program.weights)
        self.state |= {name: found[name] for name in found if name in self.state}
        self.stamp, self.fresh = self.now, False
        self.wanted.append(found["actions"].reshape(periods, -1))

    def act(self) -> ActInfo:
        """One control period: the action must be the row of the chunk that the runtime says it is."""
        action, info = self.runtime.act(self.now)
        if info.index == 0:
            self.began = self.now
        if info.state == "fresh":
            assert np.array_equal(action, self.wanted[info.generation - 1][info.index])
        self.now += PERIOD
        return info

    def acts(self, periods: int) -> list[tuple[int, int]]:
        """(generation, row) of each period."""
        return [(info.generation, info.index) for info in (self.act() for _ in range(periods))]


def unsearched(graph: Graph) -> Graph:
    """The plan without any iteration: each carry as it enters the loop."""

    def rule(node: Node, sources: tuple[Node, ...]) -> Node:
        if node.op == "get":
            return sources[0].sources[sources[0]["carries"].index(node["name"])]
        return make(node.op, *sources, **dict(node.attrs))

    return Graph(rewrite(graph.outputs, rule))

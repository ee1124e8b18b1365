"""The planner's loop in Python, around graphs that a backend runs: what `binding.Runtime` is for a native bundle.

The noise is Philox's as a native plan draws it, so a plan is the native one but for what rounding, or the backend's
precision, does to it. Rounds go through the host one by one, so a deadline is looked at between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import expr as e
from .. import interp
from ..binding import ActInfo, PlanInfo
from ..errors import EdgewmError
from ..iteration import NOISE
from ..judge.noise import WORD, of_round
from ..ladder import aim, axes_of, in_robot_units, within
from ..manifest import Manifest
from ..ops import NUMPY
from ..planner import METHODS, next_warm_mean
from ..program import Graph, Planner, Port

Array = np.ndarray
Arrays = Mapping[str, Array]
Call = Callable[[Arrays], dict[str, Array]]  # one compiled graph: its inputs by name -> its outputs by name

BEGIN, NEXT = "begin_", "next_"  # before the name of a carry: as the first round finds it, as the next one does
ENCODE, ITERATE = "encode", "iterate"  # the two graphs of a plan
ENTRY = "entry-"  # before the name of an entry that tools ask, as a graph
PLAN, GIVEN = "plan", "plan_with_noise"  # the entries that these two make up


class PortView(NamedTuple):
    """A port of an entry, as `binding.PortView` shows it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_input: bool


class HostLoop:
    """A backend's bundle, ready to run; the methods are those of `binding.Runtime`.

    `compiled(name)` gives one graph of the manifest, and is asked once for each that is used; `period_ns` and `clock`
    are as there. Raises EdgewmError where something is missing or has another shape.
    """

    def __init__(
        self, manifest: Manifest, compiled: Callable[[str], Call], period_ns: int = 20_000_000,
        clock: Callable[[], int] | None = None,
    ):  # fmt: skip
        self.manifest, self._compiled, self._calls = manifest, compiled, {}
        self._graphs: Mapping[str, Any] = manifest.raw["graphs"]
        self._now, self._period_ns = clock or time.monotonic_ns, period_ns
        self._action: Port = manifest.ports_of("action")[0]
        self._after = after_rounds(manifest.planner, self._shape(GIVEN, "warm_mean"))
        self._counts = {"plans": 0, "late": 0, "acts": 0}
        self._given: dict[str, Array] = {}
        self.reset()

    def __enter__(self) -> HostLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the compiled graphs go."""
        self._calls.clear()

    @property
    def entries(self) -> tuple[str, ...]:
        return (PLAN, GIVEN, *(name.removeprefix(ENTRY) for name in self._graphs if name.startswith(ENTRY)))

    def ports(self, entry: str) -> tuple[PortView, ...]:
        """Ports of one entry."""
        if entry in (PLAN, GIVEN):
            return _plan_ports(self._graphs, self.manifest.planner, own_noise=entry == PLAN)
        return _views(self._graphs[self._graph_of(entry)])

    def run_entry(self, name: str, **arrays: Array) -> dict[str, Array]:
        """Run one entry on its inputs, all of them, by port name; its results by name."""
        given = {p.name: self._array(p, arrays.get(p.name)) for p in self.ports(name) if p.is_input}
        if name not in (PLAN, GIVEN):
            return self.run_graph(self._graph_of(name), given)
        if name == GIVEN:
            return self._planned(given, iter(given[NOISE]))[0]
        seed = int(given["seed"][0]) + WORD * int(given["seed"][1])
        found, _ = self._planned(given, self._drawn(seed, int(given["plan_counter"][0])))
        return found | {"plan_counter": given["plan_counter"] + np.uint32(1)}

    def run_graph(self, name: str, inputs: Arrays) -> dict[str, Array]:
        """Run one graph of the manifest."""
        if name not in self._calls:
            self._calls[name] = self._compiled(name)
        return self._calls[name](inputs)

    def set_goal(self, **arrays: Array) -> None:
        """Goal ports by name; they stay until set again."""
        self._take(arrays)

    def observe(self, stamp_ns: int | None = None, **arrays: Array) -> None:
        """Newest observations by port name, taken at `stamp_ns` of the loop's clock (now, when left out)."""
        self._take(arrays)
        self._stamp_ns = self._now() if stamp_ns is None else stamp_ns

    def reset(self, seed: int = 0) -> None:
        """Forget observations, plans, state between plans and a latched stop."""
        observed = {p.name for p in self.manifest.ports_of("observation")}
        self._given = {name: value for name, value in self._given.items() if name not in observed}
        self._seed, self._plans, self._generation, self._stamp_ns = seed, 0, 0, 0
        self._warm = np.zeros(self._shape(GIVEN, "warm_mean"), np.float32)
        self._chunk: Array | None = None
        self._coming: Array | None = None
        self._released_ns, self._is_stopped, self._last = 0, False, None

    def warm_start(self, mean: Array) -> None:
        """Mean (horizon, model action) that the next plan starts from."""
        self._warm = self._array(PortView("warm_mean", self._warm.shape, self._warm.dtype, True), mean)

    def plan(self, deadline_ns: int = 0) -> PlanInfo:
        """Plan from the newest observations and publish the actions; no round begins that would end after the deadline
        (ns of the loop's clock; 0: none), going by the longest so far."""
        start_ns = self._now()
        inputs = (p for p in self.ports(GIVEN) if p.is_input and p.name not in (NOISE, "warm_mean"))
        given = {p.name: self._array(p, self._given.get(p.name)) for p in inputs} | {"warm_mean": self._warm}
        found, rounds = self._planned(given, self._drawn(self._seed, self._plans), deadline_ns)
        self._plans, self._generation = self._plans + 1, self._generation + 1
        self._warm, self._coming = found["warm_mean"], in_robot_units(self._action, found["actions"])
        of, end_ns = self.manifest.planner.iterations, self._now()
        self._counts["plans"] += 1
        self._counts["late"] += rounds < of
        return PlanInfo(rounds < of, rounds, of, self._generation, start_ns, end_ns, self._stamp_ns, 0)

    def act(self, now_ns: int | None = None) -> tuple[Array, ActInfo]:
        """The action (axes,) for the control period beginning at `now_ns`, in the robot's units: the ladder's, within
        limits and slew."""
        now = self._now() if now_ns is None else now_ns
        if self._coming is not None and not self._is_stopped:
            self._chunk, self._coming, self._released_ns = self._coming, None, now
        index = round((now - self._released_ns) / self._period_ns)
        state, aimed = aim(self._action, self._chunk, index, self._is_stopped)
        if self._chunk is None and not self._action.safe and self._action.control == "position":
            raise EdgewmError("no action yet: nothing is planned, and the action port has no safe value",
                              "the action port", "plan first, or build with a safe action")  # fmt: skip
        played = within(self._action, aimed)
        if self._action.slew > 0 and self._last is not None:
            played = np.clip(played, self._last - self._action.slew, self._last + self._action.slew)
        self._is_stopped |= state == "stopped"
        self._last = played.astype(np.float32)
        self._counts["acts"] += 1
        limited = int(np.count_nonzero(played != aimed))
        return self._last[: axes_of(self._action)], ActInfo(
            state, index, limited, 0, self._generation, max(now - self._stamp_ns, 0)
        )

    def stats(self) -> dict[str, int]:
        """Counters since the start."""
        return dict(self._counts)

    # ------------------------------------------------------------------------------------------------------ inside

    def _planned(self, given: Arrays, noise: Iterator[Array], deadline_ns: int = 0) -> tuple[dict[str, Array], int]:
        """Results of a plan by name, and the rounds that it had time for."""
        begun = self.run_graph(ENCODE, {n: given[n] for n in self._graphs[ENCODE]["inputs"]})
        state = {name.removeprefix(BEGIN): value for name, value in begun.items()}
        read, longest_ns, rounds = self._graphs[ITERATE]["inputs"], 0, 0
        for i in range(self.manifest.planner.iterations):
            round_ns = self._now()
            if deadline_ns and round_ns + longest_ns >= deadline_ns:
                break
            own = {NOISE: next(noise), "counter": np.asarray(i, np.uint32)}
            found = self.run_graph(ITERATE, {name: own[name] if name in own else state[name] for name in read})
            state |= {name.removeprefix(NEXT): value for name, value in found.items()}
            longest_ns, rounds = max(longest_ns, self._now() - round_ns), i + 1
        results = {p.name: state[p.name] for p in self.ports(GIVEN) if not p.is_input and p.name in state}
        if not np.all(np.isfinite(state["mean"])):
            raise EdgewmError("a plan that is not finite", "the plan's graphs", "check the observation and the weights")
        after = self._after.inputs()
        return results | interp.run(self._after, {name: state[name] for name in after}, {}), rounds

    def _drawn(self, seed: int, plan: int) -> Iterator[Array]:
        planner, width = self.manifest.planner, self._shape(GIVEN, "warm_mean")[1]
        return (of_round(planner, width, seed, plan, i) for i in range(planner.iterations))

    def _take(self, arrays: Arrays) -> None:
        ports = {p.name: p for p in self.ports(GIVEN) if p.is_input}
        for name, value in arrays.items():
            if name not in ports:
                raise EdgewmError(f"no input port {name!r}", "the plan's ports", f"use one of {', '.join(ports)}")
            self._given[name] = self._array(ports[name], value)

    def _graph_of(self, entry: str) -> str:
        if f"{ENTRY}{entry}" not in self._graphs:
            raise EdgewmError(f"no entry {entry!r}", "the bundle", f"use one of {', '.join(self.entries)}")
        return f"{ENTRY}{entry}"

    def _shape(self, entry: str, port: str) -> tuple[int, ...]:
        return next(p.shape for p in self.ports(entry) if p.name == port)

    def _array(self, port: PortView, value: Any) -> Array:
        if value is None:
            raise EdgewmError(f"nothing was given on port {port.name!r}", "the bundle", "give every input of the entry")
        array = np.asarray(value)
        if array.shape != port.shape or array.dtype != port.dtype:
            raise EdgewmError(
                f"port {port.name!r} was given {array.dtype}{list(array.shape)}", "the bundle",
                f"give {port.dtype}{list(port.shape)}",
            )  # fmt: skip
        return np.ascontiguousarray(array)


def after_rounds(planner: Planner, shape: tuple[int, ...]) -> Graph:
    """What follows on the last round, from its carries: `actions` (horizon, model action), and where the next plan
    starts."""
    warm = e.input("warm_mean", shape)
    carried = {n: e.input(n, node.shape, node.dtype) for n, node in METHODS[planner.kind].start(planner, warm).items()}
    actions = METHODS[planner.kind].actions(planner, carried)
    return Graph({"actions": actions, "warm_mean": next_warm_mean(planner, actions)})


def _views(graph: Mapping[str, Any]) -> tuple[PortView, ...]:
    return tuple(
        PortView(name, tuple(port["shape"]), np.dtype(NUMPY[port["dtype"]]), kind == "inputs")
        for kind in ("inputs", "outputs") for name, port in graph[kind].items()
    )  # fmt: skip


def _plan_ports(graphs: Mapping[str, Any], planner: Planner, own_noise: bool) -> tuple[PortView, ...]:
    inputs = [p for p in _views(graphs[ENCODE]) if p.is_input]
    rounds = {p.name: p for p in _views(graphs[ITERATE])}
    u32 = np.dtype(np.uint32)
    if own_noise:
        inputs += [PortView("seed", (2,), u32, True), PortView("plan_counter", (1,), u32, True)]
    else:
        inputs.append(PortView(NOISE, (planner.iterations, *rounds[NOISE].shape), np.dtype(np.float32), True))
    found = [p._replace(name=n.removeprefix(NEXT)) for n, p in rounds.items() if n.startswith(NEXT) and not p.is_input]
    shape, f32 = rounds["mean"].shape, np.dtype(np.float32)
    found += [PortView(name, shape, f32, False) for name in ("actions", "warm_mean")]
    return (*inputs, *found, *([PortView("plan_counter", (1,), u32, False)] if own_noise else []))

"""The one datum: a frozen `Program` of named graphs over hash-consed nodes.

A graph is the node it ends in (or a tuple of them); a node is an op of the table in `ops.py`, its sources, its
attributes, and the shape and dtype that the op's rule derives from them. Nodes are interned weakly: building the same
expression twice gives the same object, so equality of graphs is identity and matching a kernel is rebuilding it.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

Attrs = tuple[tuple[str, Any], ...]

_interned: weakref.WeakValueDictionary[tuple, Node] = weakref.WeakValueDictionary()


class Node:
    """One value: `op` applied to `sources` with `attrs`; `shape` and `dtype` follow from the op's rule."""

    __slots__ = ("__weakref__", "attrs", "dtype", "op", "shape", "sources")

    op: str
    sources: tuple[Node, ...]
    attrs: Attrs
    shape: tuple[int, ...]
    dtype: str

    def __getitem__(self, key: str) -> Any:
        for name, value in self.attrs:
            if name == key:
                return value
        raise KeyError(f"{self.op} has no attribute {key!r}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"<{self.op} {self.dtype}{list(self.shape)}>"


def intern(op: str, sources: tuple[Node, ...], attrs: Attrs, shape: tuple[int, ...], dtype: str) -> Node:
    """The node of this structure; `ops.make` is the only caller, after it derived shape and dtype."""
    key = (op, tuple(map(id, sources)), attrs, shape, dtype)
    node = _interned.get(key)
    if node is None:
        node = Node()
        node.op, node.sources, node.attrs, node.shape, node.dtype = op, sources, attrs, shape, dtype
        _interned[key] = node
    return node


def order(roots: Node | Iterable[Node], known: Container[Node] = ()) -> list[Node]:
    """Every node the roots need, sources before users, in one deterministic order; without `known` ones and what these
    need."""
    done: dict[Node, None] = {}
    stack = [roots] if isinstance(roots, Node) else [*roots][::-1]
    while stack:
        node = stack.pop()
        if node in done or node in known:
            continue
        missing = [s for s in node.sources if s not in done and s not in known]
        if missing:
            stack.append(node)
            stack += missing[::-1]
        else:
            done[node] = None
    return list(done)


def users(roots: Iterable[Node]) -> dict[Node, list[Node]]:
    """For each node under the roots, the nodes that read it (once for each read)."""
    found: dict[Node, list[Node]] = {}
    for node in order(roots):
        found.setdefault(node, [])
        for source in node.sources:
            found[source].append(node)
    return found


@dataclass(frozen=True)
class Graph:
    """A closed graph: its outputs by name; its inputs are the `input` and `weight` leaves under them."""

    outputs: Mapping[str, Node]

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", MappingProxyType(dict(self.outputs)))

    def __hash__(self) -> int:
        return hash(tuple(self.outputs.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and tuple(self.outputs.items()) == tuple(other.outputs.items())

    @functools.cached_property
    def _order(self) -> tuple[Node, ...]:
        return tuple(order(self.outputs.values()))

    @functools.cached_property
    def nested(self) -> tuple[Graph, ...]:
        """The graphs in its nodes' attributes, of `repeat` and `kernel`, in order."""
        return tuple(value for node in self._order for _, value in node.attrs if isinstance(value, Graph))

    @functools.cached_property
    def leaves(self) -> tuple[Node, ...]:
        """The nodes without sources, in order of first use."""
        return tuple(node for node in self._order if not node.sources)

    def order(self) -> list[Node]:
        """Every node, sources before users; found once."""
        return list(self._order)

    def inputs(self) -> dict[str, Node]:
        """The `input` leaves by name, in order of first use."""
        return {n["name"]: n for n in self.leaves if n.op == "input"}

    def weights(self) -> list[str]:
        """Names of the weights read here and in the bodies of `repeat` and `kernel` nodes."""
        return list(self._weights)

    @functools.cached_property
    def _weights(self) -> tuple[str, ...]:
        names: dict[str, None] = {}
        for node in self._order:
            if node.op == "weight":
                names[node["name"]] = None
            for _, value in node.attrs:
                if isinstance(value, Graph):
                    names.update(dict.fromkeys(value.weights()))
        return tuple(names)


@dataclass(frozen=True)
class Port:
    """One thing that crosses the boundary between the robot and a plan.

    `kind` is observation, goal, action, noise or state. `shape` and `dtype` are what the caller hands over; `low` and
    `high` bound each element (a value outside is refused by the runtime). An action port names its `control`
    (position, velocity or torque), its `slew` per period, its `safe` value (one number an axis) and how a model action
    becomes one in the robot's units: `action * scale + offset`.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str = "f32"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    max_age_ns: int = 0
    rate_hz: float = 0.0
    preprocessing: str = ""
    control: str = ""
    slew: float = 0.0
    safe: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()


@dataclass(frozen=True)
class Planner:
    """What is searched for, and how: `samples` candidates of `horizon` model actions, `iterations` times.

    One model action is `action_block` control periods; `commit_steps` periods are played of each plan. Names are those
    of stable-worldmodel's `PlanConfig` and solvers, where `samples`, `iterations`, `elites` and `history` are called
    num_samples, n_steps, topk and history_len.

    kind               cem, icem or mppi
    elites             the cheapest candidates of an iteration: what the next one is drawn around
    var_scale          standard deviation of the first iteration's candidates, and of all of mppi's
    low, high          bounds of every number of a candidate, in the model's units
    objective          final: cost of the last imagined latent; path: mean cost of all imagined latents (torch-world)
    warm_start         a plan starts from what the last one left to play, not from zero
    history            frames of context, one model action apart; more than 1 wants commit_steps = action_block
    proposal           the search begins at the plan that the model proposes, with its deviation, not at zero; the
                       mean is then the first candidate of each iteration
    roll_committed     a plan is made while the last one is played: it begins where those commit_steps end, from the
                       latent rolled through them, and is played from there on; else it begins at the observation
    noise_beta         icem: noise falls with frequency f as f^(-noise_beta / 2) along the horizon; 0 is white
    alpha              icem: share of the last mean and deviation that stays in a refit
    n_elite_keep       icem: elites of an iteration that are candidates of the next
    return_mean        icem: the plan is the mean; else the last iteration's best candidate
    temperature        mppi: elites weigh exp(-cost / temperature)
    """

    kind: str = "cem"
    samples: int = 300
    iterations: int = 30
    elites: int = 30
    horizon: int = 5
    action_block: int = 1
    commit_steps: int = 1
    var_scale: float = 1.0
    warm_start: bool = False
    low: float | None = None
    high: float | None = None
    first_candidate_is_mean: bool = True
    unbiased_std: bool = True
    objective: str = "final"
    history: int = 1
    roll_committed: bool = False
    proposal: bool = False
    noise_beta: float = 2.0
    alpha: float = 0.1
    n_elite_keep: int = 5
    return_mean: bool = True
    temperature: float = 0.5


@dataclass(frozen=True)
class LogLine:
    """What one step did, written by the runner: sizes before and after."""

    step: str
    nodes: tuple[int, int]
    weight_bytes: tuple[int, int]
    flops: tuple[int, int]
    seconds: float


@dataclass(frozen=True)
class Program:
    """Everything known about one model on its way to one target; each step fills one more field, none empties one."""

    entries: Mapping[str, Graph]
    weights: Mapping[str, np.ndarray]
    ports: tuple[Port, ...] = ()
    planner: Planner | None = None
    recipe: Mapping[str, str] | None = None
    target: Any = None
    schedule: Any = None
    log: tuple[LogLine, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", MappingProxyType(dict(self.entries)))
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))

    def with_(self, **fields: Any) -> Program:
        """This program with some fields replaced."""
        return replace(self, **fields)

    def port(self, name: str) -> Port:
        return next(p for p in self.ports if p.name == name)


def rewrite(roots: Mapping[str, Node], rule) -> dict[str, Node]:
    """Rebuild graphs bottom-up: `rule(node, sources)` returns the new node for `node` given its rewritten sources."""
    new: dict[Node, Node] = {}
    for node in order(roots.values()):
        new[node] = rule(node, tuple(new[s] for s in node.sources))
    return {name: new[node] for name, node in roots.items()}


def walk_graphs(graph: Graph) -> Iterator[Graph]:
    """The graph and every graph nested in its nodes' attributes."""
    yield graph
    for inner in graph.nested:
        yield from walk_graphs(inner)

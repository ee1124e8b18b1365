"""Where the judge's evidence comes from: contexts to plan in, recorded futures, planted impossibilities, a simulator.

The worlds that ship with edgewm bring everything (`reference.trials`). One's own model (`module:function`) may define,
in that module, any of the functions of `Source` under their names. For any model, a checkpoint directory too, a
safetensors file of recorded data serves (`recorded`), and so do recorded episodes (`episodes`). What is missing is
derived where that can be done (`derived`); a suite leaves out what it still has no evidence for, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..errors import EdgewmError
from ..imports import module_of
from .sides import Observation

Array = np.ndarray
ONE_IN = 8  # of what was recorded is kept from a student
Pairs = Iterable[tuple[Observation, Observation]]
Rollouts = Iterable[tuple[Array, Array, Array | None]]


class Clip(NamedTuple):
    """The same actions (T, axes) twice: frames (T + 1, ...) that could be, and frames with a planted impossibility."""

    kind: str
    actions: Array
    possible: Array
    impossible: Array


class Branch(NamedTuple):
    """What two sequences of actions (2, T, axes) lead to from one start: frames (2, T + 1, ...)."""

    actions: Array
    frames: Array


@dataclass(frozen=True)
class Shift:
    """A scene outside the training range: the functions of `Source` there, None for what there is not.

    Several shifts may show one seed's draws, each in its own way, or draw from one pool: so they are asked with the
    same n and seed, and each gives its share of these. `is_endless` says that another seed gives other draws.
    """

    contexts: Callable[[int, int], Pairs] | None = None
    rollouts: Callable[[int, int, int], Rollouts] | None = None
    make: Callable[[int], Any] | None = None
    is_endless: bool = False


@dataclass(frozen=True)
class Source:
    """What there is; None for what there is not. Actions are the robot's, one row a control period.

    contexts(n, seed)           pairs (observation, goal)
    rollouts(n, steps, seed)    trajectories (frames (T + 1, ...), actions (T, axes), states (T + 1, K) or None); states
                                are numbers that a picture shows, for linear probes
    make(seed)                  a simulator (`edgewm.act` says what it must have); where it names the `family` of the
                                task it was reset to, success is counted by family, too
    gallery(periods, seed)      one trajectory and frames (N, ...) to recognise imagined latents by
    states(n, seed)             frames (n, ...) and what they show, (n, K): the columns of `rollouts`; where frames are
                                not independent also the trajectory of each, (n,), which is then one sample
    impossible(n, steps, seed)  clips with a planted impossibility
    branches(n, steps, seed)    two futures from one start
    shifts()                    scenes outside the training range by name
    """

    contexts: Callable[[int, int], Pairs] | None = None
    rollouts: Callable[[int, int, int], Rollouts] | None = None
    make: Callable[[int], Any] | None = None
    gallery: Callable[[int, int], tuple[Array, Array, Array]] | None = None
    states: Callable[[int, int], tuple[Array, ...] | None] | None = None
    impossible: Callable[[int, int, int], Iterable[Clip]] | None = None
    branches: Callable[[int, int, int], Iterable[Branch]] | None = None
    shifts: Callable[[], Mapping[str, Shift]] | None = None
    names: tuple[str, ...] = ()  # of the columns of states
    longest: int | None = None  # periods of the longest trajectory; None: as long as asked for
    moments: Mapping[str, int] | None = None  # recorded ones, `contexts` and `frames`; None: as many as asked for
    apart: Source | None = None  # what was recorded, too, and is not learned from; None: another seed gives others

    def having(self, **found: Any) -> Source:
        """This source with what is not None of `found`."""
        return replace(self, **{name: value for name, value in found.items() if value is not None})


def learned_from(against: str, model: Any, data: Path | None) -> Source:
    """The source for a student; of recorded `data` one in `ONE_IN` episodes is `apart` from what it learns from."""
    found = source_of(against, model, data, learning=True, apart=None if data is None else False)
    return found if data is None else replace(found, apart=source_of(against, model, data, learning=True, apart=True))


def source_of(
    against: str, model: Any, data: Path | None = None, learning: bool = False, apart: bool | None = None
) -> Source:  # fmt: skip
    """The source that belongs to MODEL; recorded `data` come before its own. To learn from, recorded episodes serve
    several times each (`learning`). `apart`: only those that a student does not learn from, or only the others.
    EdgewmError for data that do not fit."""
    from ..data import is_recording
    from ..reference import trials
    from . import derived
    from .episodes import evidence
    from .recorded import recorded

    world = trials.world_of(against)
    found = Source()
    if world is not None:
        found = trials.source(world)
    elif ":" in against and not Path(against).exists():
        found = found.having(**_declared(module_of(against)))
    if data is not None:  # what belongs to the world that was not recorded would be another scene
        brought = evidence(data, model, learning, apart) if is_recording(data) else recorded(data, model, apart)
        gallery = None if "rollouts" in brought else found.gallery
        found = replace(found, states=None, impossible=None, shifts=None, gallery=gallery).having(**brought)
    return derived.completed(found, model)


def rows_apart(count: int, apart: bool | None, what: str, where: str) -> Array:
    """Which of `count` recorded ones serve: all, or one in `ONE_IN`, or the others. EdgewmError where none are left."""
    index = np.arange(count)
    found = index if apart is None else index[(index % ONE_IN == 0) == apart]
    if count and not len(found):
        raise EdgewmError(f"one {what} cannot be learned from and held out", where, f"record more: {ONE_IN} at least")
    return found


def _declared(module: ModuleType) -> dict[str, Any]:
    """What a module defines under the names of a Source's fields, where it is of the right kind."""
    there = {field.name: getattr(module, field.name, None) for field in fields(Source)}
    kinds = {"names": (tuple, list), "longest": (int,), "moments": (), "apart": ()}  # these are of recorded data
    return {name: v for name, v in there.items() if isinstance(v, kinds.get(name, Callable))}

"""Recorded episodes as evidence: contexts and trajectories are cut out of them as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Episode, opened
from ..data.pictures import sized
from ..errors import EdgewmError
from ..program import Port
from .sides import Observation
from .sources import rows_apart

Array = np.ndarray
SHORTER = 0.25  # of the usable episodes, at most, are shorter than the longest trajectory that is offered
# streams, so that contexts, trajectories and states of one seed are independent
CONTEXTS, ROLLOUTS, STATES = 0xC027, 0x7011, 0x57A7


def evidence(data: Path, model: Any, learning: bool, apart: bool | None = None) -> dict[str, Any]:
    """Fields of a Source: `contexts`, `rollouts` and, where episodes hold them, `states`. `apart` as
    `sources.source_of` takes it.

    The goal of a context is a later picture of its episode, no further than the model's planner looks ahead. Pictures
    are resized to the camera, each side by itself. Each draw is from another episode, so that what is counted as
    evidence is independent; to learn from, any moments serve (`learning`). EdgewmError for a model that sees anything
    but one picture, and for episodes that do not fit it.
    """
    camera, action = _ports(model, str(data))
    block = model.planner.action_block
    reach = model.planner.horizon * block
    episodes = opened(data)
    held = [episodes[i] for i in rows_apart(len(episodes), apart, "episode", str(data))]
    _check(held, action, block, str(data))
    held[0].pictures(0, 1)  # what cannot be read or is not RGB is told before anything else is done
    height, width = camera.shape[-3:-1]
    periods = np.array([len(e.action) for e in held])

    def seen(one: Episode, start: int, stop: int) -> Array:
        return sized(one.pictures(start, stop), height, width)

    def contexts(n: int, seed: int) -> Iterator[tuple[Observation, Observation]]:
        rng = np.random.default_rng([CONTEXTS, seed])
        for i, start in drawn(rng, periods - block + 1, n, not learning):
            later = start + int(rng.integers(block, min(reach, periods[i] - start) + 1))
            observation, target = ({camera.name: seen(held[i], at, at + 1)[0]} for at in (start, later))
            yield observation, target

    def rollouts(n: int, steps: int, seed: int) -> Iterator[tuple[Array, Array, Array | None]]:
        if steps > periods.max():
            raise EdgewmError(
                f"the longest of {len(held)} episodes has {periods.max()} periods", str(data),
                f"record {steps} at least: as far as a plan looks ahead",
            )  # fmt: skip
        for i, start in drawn(np.random.default_rng([ROLLOUTS, seed]), periods - steps + 1, n, not learning):
            one, stop = held[i], start + steps
            state = None if one.state is None else one.state[start : stop + 1]
            yield seen(one, start, stop + 1), one.action[start:stop], state

    def states(n: int, seed: int) -> tuple[Array, Array, Array]:
        rng, each = np.random.default_rng([STATES, seed]), -(-n // len(held))
        places = in_turn([rng.permutation(p + 1)[:each] for p in periods])[:n]
        pictures = [seen(held[i], at, at + 1)[0] for i, at in places]
        values = [held[i].state[at] for i, at in places]
        return np.stack(pictures), np.stack(values), np.array([i for i, _ in places])

    usable = periods[periods >= reach] if (periods >= reach).any() else periods
    found = {"contexts": contexts, "rollouts": rollouts}
    found["longest"] = int(np.quantile(usable, SHORTER, method="lower"))
    starts, pictures = np.maximum(periods - block + 1, 0), (periods + 1)[periods >= reach]
    found["moments"] = {"contexts": int(starts.sum()), "frames": int(pictures.sum())}
    return found | ({"states": states} if all(e.state is not None for e in held) else {})


def drawn(rng: np.random.Generator, room: Array, n: int, apart: bool) -> list[tuple[int, int]]:
    """`n` pairs (episode, moment), none twice, or as many as there are; of episode i the first `room[i]` moments serve.
    `apart`: each from another episode."""
    room = np.maximum(room, 0)
    if apart:
        order = rng.permutation(np.flatnonzero(room))[:n]
        return [(int(i), int(rng.integers(room[i]))) for i in order]
    ends = np.cumsum(room)
    at = rng.choice(ends[-1], min(n, int(ends[-1])), replace=False)
    which = np.searchsorted(ends, at, side="right")
    return list(zip(which.tolist(), (at - ends[which] + room[which]).tolist(), strict=True))


def in_turn(moments: Sequence[Array]) -> list[tuple[int, int]]:
    """Pairs (trajectory, moment) of each one's moments: the first of all, then the second of those that have one."""
    longest = max(map(len, moments), default=0)
    return [(i, int(at[j])) for j in range(longest) for i, at in enumerate(moments) if j < len(at)]


def _ports(model: Any, where: str) -> tuple[Port, Port]:
    """The camera and the action of a model that sees one picture, and whose goal is another."""
    observations, goals, actions = (model.ports_of(kind) for kind in ("observation", "goal", "action"))
    ports = (*observations, *goals)
    is_seen = all(p.dtype == "u8" and p.shape[-1] == 3 and p.shape == ports[0].shape for p in ports)
    if len(observations) != 1 or len(goals) != 1 or not is_seen:
        names = ", ".join(f"{p.name} {tuple(p.shape)} {p.dtype}" for p in ports)
        raise EdgewmError(
            f"episodes serve a model that sees a picture and whose goal is another; this has {names}", where,
            "give --data FILE.safetensors with an array a port",
        )  # fmt: skip
    return observations[0], actions[0]


def _check(held: Sequence[Episode], action: Port, block: int, where: str) -> None:
    """EdgewmError for episodes whose actions or rate are another robot's, or that are all too short."""
    axes = action.shape[-1]
    for one in held:
        width = one.action.shape[-1]
        if len(one.action) and width != axes:
            raise EdgewmError(
                f"actions have {width} numbers, the model's have {axes}", one.where,
                "record one row a control period" + f", not {block} in one" * (width == block * axes),
            )  # fmt: skip
        if one.rate_hz and action.rate_hz and one.rate_hz != action.rate_hz:
            raise EdgewmError(
                f"recorded at {one.rate_hz:g} Hz, the model acts at {action.rate_hz:g} Hz", one.where,
                "resample the episodes, or mend rate_hz in robot.json",
            )  # fmt: skip
    if not any(len(one.action) >= block for one in held):
        raise EdgewmError(
            f"{len(held)} episodes, none of {block} periods, one model action", where, "record longer episodes"
        )

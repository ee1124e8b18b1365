"""What a plan starts from: the newest latent, the frames before it, and the actions already on their way.

Frames are one model action apart. Between plans they are kept in state ports, zeros after a reset:
  frames_seen (1,) u32          frames in a row before this one, up to history - 1
  history_z (history - 1, latent), history_actions (history - 1, action)
                                those frames, oldest first, and the action played after each of them
  chunk (horizon, action)       the last plan
  periods_begun (1,) u32        control periods of that plan that had begun when the observation was taken; the runtime
                                says so before each plan; 0: it is not being played
Before there are such frames the first one stands for them, with actions of zero between.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import expr as e
from ..program import Graph, Node, Planner, Port
from .settings import committed_actions


@dataclass(frozen=True)
class Context:
    """Latents (history, latent) and the actions between them, (history - 1, action); None for a single frame."""

    latents: Node
    actions: Node | None


def ports(planner: Planner, latent_dim: int, action_dim: int) -> tuple[Port, ...]:
    """The state ports that `observed` and `going_on` read."""
    found: tuple[Port, ...] = ()
    if planner.history > 1:
        older = planner.history - 1
        found += (
            Port("frames_seen", "state", (1,), "u32"), Port("history_z", "state", (older, latent_dim)),
            Port("history_actions", "state", (older, action_dim)),
        )  # fmt: skip
    if planner.roll_committed:
        found += (Port("chunk", "state", (planner.horizon, action_dim)), Port("periods_begun", "state", (1,), "u32"))
    return found


def observed(planner: Planner, z: Node, action_dim: int) -> Context:
    """The frames up to this one, `z` (1, latent)."""
    older = planner.history - 1
    if not older:
        return Context(z, None)
    is_first = e.equal(e.input("frames_seen", (1,), "u32"), 0)
    before = e.select(is_first, e.expand(z, (older, z.shape[1])), e.input("history_z", (older, z.shape[1])))
    actions = e.select(is_first, 0.0, e.input("history_actions", (older, action_dim)))
    return Context(e.concat([before, z], 0), actions)


def committed(planner: Planner, action_dim: int) -> Node:
    """The model actions (committed, action) that will be played from the observation on, whatever is planned.

    They begin with the control period that the observation was taken in; where the chunk ends, its last one is held.
    """
    block = planner.action_block
    axes, periods = action_dim // block, planner.horizon * block
    rows = e.reshape(e.input("chunk", (planner.horizon, action_dim)), (periods, axes))
    begun = e.cast(e.minimum(e.input("periods_begun", (1,), "u32"), periods), "i32")
    count = committed_actions(planner)
    place = e.add(e.iota((count * block,), 0), e.sub(begun, 1))
    return e.reshape(e.take(rows, e.minimum(e.maximum(place, 0), periods - 1)), (count, action_dim))


def going_on(planner: Planner, context: Context, roll: Graph, coming: Node) -> Context:
    """The context when the `coming` actions have been played, imagined; as it is where no chunk is being played.

    `roll` maps `z` (history, latent) and `actions` (history - 1 + committed, action) to `z` (history, latent).
    """
    is_playing = e.less(0, e.input("periods_begun", (1,), "u32"))
    actions = coming if context.actions is None else e.concat([context.actions, coming], 0)
    imagined = e.inline(roll, {"z": context.latents, "actions": actions})["z"]
    latents = e.select(is_playing, imagined, context.latents)
    if context.actions is None:
        return Context(latents, None)
    between = e.narrow(actions, 0, actions.shape[0] - context.actions.shape[0], actions.shape[0])
    return Context(latents, e.select(is_playing, between, context.actions))


def kept(planner: Planner, context: Context, actions: Node, coming: Node | None) -> dict[str, Node]:
    """What the next plan finds in the state ports; `actions` (horizon, action) is this plan, `context` as observed."""
    found: dict[str, Node] = {}
    if planner.history > 1:
        played = e.narrow(actions, 0, 0, 1)
        if coming is not None:
            is_playing = e.less(0, e.input("periods_begun", (1,), "u32"))
            played = e.select(is_playing, e.narrow(coming, 0, 0, 1), played)
        between = [e.narrow(context.actions, 0, 1, planner.history - 1)] if planner.history > 2 else []
        seen = e.add(e.input("frames_seen", (1,), "u32"), 1)
        found = {
            "frames_seen": e.minimum(seen, planner.history - 1),
            "history_z": e.narrow(context.latents, 0, 1, planner.history),
            "history_actions": e.concat([*between, played], 0),
        }  # fmt: skip
    return found | ({"chunk": actions} if planner.roll_committed else {})

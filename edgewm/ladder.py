"""The runtime's ladder (runtime/act.cc) for loops in Python: what is played in a period, whatever the planner does."""

from __future__ import annotations

import numpy as np

from .program import Port

HOLD_PERIODS, RAMP_PERIODS = 3, 10  # of `binding.Runtime`

Array = np.ndarray


def axes_of(action: Port) -> int:
    return int(np.prod(action.shape))


def safe_of(action: Port) -> Array:
    """The port's safe value; nothing, where it declares none."""
    return np.asarray(action.safe or (0.0,) * axes_of(action))


def in_robot_units(action: Port, plan: Array) -> Array:
    """Rows (periods, axes) of a plan (horizon, model action)."""
    axes = axes_of(action)
    scale, offset = np.asarray(action.scale or (1.0,) * axes), np.asarray(action.offset or (0.0,) * axes)
    return plan.reshape(-1, axes) * scale + offset


def aim(action: Port, chunk: Array | None, index: int, is_stopped: bool) -> tuple[str, Array]:
    """The rung, a word of `binding.STATES`, and what is aimed at (axes,), `index` periods after the chunk's (periods,
    axes) first action."""
    if is_stopped or chunk is None:
        return "stopped" if is_stopped else "waiting", safe_of(action)
    past = index - len(chunk)
    if past < 0:
        return "fresh", chunk[index]
    last, safe = within(action, chunk[-1]), safe_of(action)
    if past < HOLD_PERIODS:
        return "hold", last
    if past < HOLD_PERIODS + RAMP_PERIODS:
        return "ramp", last + (safe - last) * (past - HOLD_PERIODS + 1) / (RAMP_PERIODS + 1)
    return "stopped", safe


def within(action: Port, value: Array) -> Array:
    """`value` within the port's limits."""
    return value if (action.low, action.high) == (None, None) else np.clip(value, action.low, action.high)

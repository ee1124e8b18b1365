"""What must hold, as data; each gate answers True, False or None (not enough evidence)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import statistics

Array = np.ndarray

RANK = 0.99
# An error that is independent of what it disturbs, of this share of its spread, leaves a correlation of RANK.
ERROR = math.sqrt(1 / RANK**2 - 1)
MARGIN = 0.10  # of success, in closed loop
CONTEXTS = 50


@dataclass(frozen=True)
class Gate:
    """`value` may not pass `limit`: `at_least` or `at_most`. Below `needs` independent samples nothing is decided."""

    name: str
    limit: float
    direction: str
    needs: int
    meaning: str


GATES: Mapping[str, Gate] = {
    g.name: g
    for g in (
        Gate("spearman_min", RANK, "at_least", CONTEXTS,
             "rank correlation of candidate costs with the full model's, in the worst context"),
        Gate("elite_overlap", 0.95, "at_least", CONTEXTS,
             "share of the planner's elites that both models choose from the same candidates, mean over contexts"),
        Gate("regret", 0.01, "at_most", CONTEXTS,
             "what the compressed model's plan costs under the full model above the full model's own plan, as a share "
             "of what planning gains over a candidate drawn blindly"),
        Gate("cost_error", ERROR, "at_most", CONTEXTS,
             "rms error of candidate costs over their spread in that context, mean over contexts"),
        Gate("first_action_ratio", 0.5, "at_most", CONTEXTS,
             "distance of first actions on the same noise, over the full model's own distance on other noise"),
        Gate("drift", ERROR, "at_most", CONTEXTS,
             "rms difference of imagined latents at the planner's horizon over the spread of latents"),
        Gate("future_error_added", ERROR**2, "at_most", CONTEXTS,
             "squared error against real futures at the horizon above the full model's own, over the variance of "
             "latents (independent errors add in squares, so this is the limit of `drift` again)"),
        Gate("self_consistency", ERROR**2, "at_most", CONTEXTS,
             "what `score` asks of a candidate for the very latent that `predict`, step by step, says it leads to, "
             "over what it asks for the latent it began with (medians)"),
        Gate("closed_loop_loss", MARGIN, "at_most", 1,
             "successes lost in closed loop, per episode; non-inferiority with its margin as the limit"),
    )
}  # fmt: skip


def holds(gate: Gate, value: float) -> bool:
    """A value that is not a number never holds."""
    return bool(value >= gate.limit if gate.direction == "at_least" else value <= gate.limit)


def judged(name: str, value: float, n: int, interval: Sequence[float] | None = None) -> dict[str, Any]:
    """One row of the verdict. With one-sided bounds, the one towards the limit must hold too, or nothing is decided."""
    gate = GATES[name]
    passed: bool | None = holds(gate, value)
    note = None
    if n < gate.needs:
        passed, note = None, f"{n} independent samples, {gate.needs} needed"
    elif passed and interval is not None:
        worse = interval[0] if gate.direction == "at_least" else interval[1]
        if not holds(gate, worse):
            passed, note = None, f"the 95 % bound is {worse:.3g}: more samples could decide (there are {n})"
    return row(gate, value, passed, n, interval, note)


def decided(name: str, value: float, passed: bool | None, n: int, note: str | None = None) -> dict[str, Any]:
    """A row whose decision came from a test of its own."""
    return row(GATES[name], value, passed, n, None, note)


def row(
    gate: Gate, value: float, passed: bool | None, n: int, interval: Sequence[float] | None, note: str | None
) -> dict[str, Any]:
    return {
        "name": gate.name,
        "value": finite(value),
        "limit": gate.limit,
        "direction": gate.direction,
        "passed": passed,
        "samples": n,
        "bounds_95": None if interval is None else [finite(v) for v in interval],
        "note": note,
        "meaning": gate.meaning,
    }


def finite(value: float) -> float | None:
    """JSON has no NaN: null stands for it."""
    return float(value) if math.isfinite(value) else None


def verdict(rows: Sequence[Mapping[str, Any]]) -> bool | None:
    """False if any gate failed; else None if any is undecided or there is none; else True."""
    states = [r["passed"] for r in rows]
    if False in states:
        return False
    return True if states and None not in states else None


def mean_interval(samples: Array) -> tuple[float, float, float]:
    """Mean over contexts and its two one-sided 95 % bounds (90 % two-sided bootstrap)."""
    return ratio_interval(samples, np.ones(len(samples)))


def ratio_interval(above: Array, below: Array) -> tuple[float, float, float]:
    """Ratio of sums over contexts and its two one-sided 95 % bounds; each context is one unit of the bootstrap."""
    pairs = np.stack([above, below], 1).astype(np.float64)

    def ratio(p: Array) -> float:
        total = p.sum(0)
        return float(total[0] / total[1]) if total[1] > 0 else math.nan

    low, high = statistics.bootstrap(pairs, ratio, confidence=0.90)
    return ratio(pairs), low, high

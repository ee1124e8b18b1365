"""Prices out of timings: non-negative least squares on relative errors, so that short calls count as long ones do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SHORTEST_NS = 200.0  # of a call whose relative error still counts fully: a few reads of the clock
ROUNDS = 8  # of reweighting
TYPICAL = 0.05  # relative residual beyond which a call loses weight: what the counts do not know is not to bend prices


@dataclass(frozen=True)
class Timed:
    """One call: its counts, and how long it took."""

    group: str
    work: Mapping[str, float]
    ns: float


def fit_costs(timed: Sequence[Timed], least_ns: Mapping[str, float] | None = None) -> tuple[dict[str, float], float]:
    """ns for each count that occurs, none below its `least_ns`, and the time-weighted root mean square of
    ln(measured / fitted)."""
    names = list(dict.fromkeys(name for row in timed for name in row.work))
    least = np.array([(least_ns or {}).get(name, 0.0) for name in names])
    counts = np.array([[row.work.get(name, 0.0) for name in names] for row in timed])
    ns = np.array([row.ns for row in timed])
    weight = 1.0 / (ns + SHORTEST_NS)
    for _ in range(ROUNDS):
        found = least + non_negative(counts * weight[:, None], (ns - counts @ least) * weight)
        residual = np.abs(counts @ found - ns) / (ns + SHORTEST_NS)
        weight = np.sqrt(np.minimum(1.0, TYPICAL / np.maximum(residual, 1e-12))) / (ns + SHORTEST_NS)
    error = np.log(np.maximum(ns, 1.0) / np.maximum(counts @ found, 1.0))
    return dict(zip(names, found.tolist(), strict=True)), float(np.sqrt(np.average(error**2, weights=ns)))


def non_negative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x >= 0 that minimises |a x - b|: the active-set method of Lawson and Hanson (1974)."""
    columns = a.shape[1]
    x, free = np.zeros(columns), np.zeros(columns, bool)
    smallest = 1e-10 * max(float(np.abs(a.T @ b).max()), 1e-300)
    for _ in range(3 * columns):
        gradient = np.where(free, -np.inf, a.T @ (b - a @ x))
        if gradient.max() <= smallest:
            break
        free[gradient.argmax()] = True
        while True:
            trial = np.zeros(columns)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            bad = free & (trial <= 0)
            if not bad.any():
                break
            x += min(x[bad] / (x[bad] - trial[bad])) * (trial - x)
            free &= x > 1e-15
        x = trial
    return x

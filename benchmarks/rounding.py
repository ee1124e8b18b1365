"""How far rounding can take a graph's outputs, and how far apart two answers are: nothing here is chosen by hand."""

from __future__ import annotations

import numpy as np

from edgewm.rounding import UNIT_ROUNDOFF, rounding_steps  # noqa: F401  (with what follows, what a comparison needs)

DEVIATIONS = 3  # of the rank correlation of unrelated numbers


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The greatest difference, over the largest magnitude."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, of two vectors; None for fewer than two numbers."""
    if a.size < 2:
        return None
    ranks = [np.argsort(np.argsort(x.ravel())).astype(np.float64) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def unrelated(count: int) -> float:
    """The rank correlation that unrelated vectors of that length hardly reach."""
    return DEVIATIONS / max(count - 1, 1) ** 0.5

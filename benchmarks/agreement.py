"""Does a peer compute what upstream does? One that does not is not timed.

Everybody is given the same noise; upstream's own module in float64 is the reference. In fp32 the largest error must be
within what rounding can do on the graph's longest path (`rounding.py`); in fewer bits only the order of the answers can
be asked for, and it must at least be related to upstream's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peers import Contestant
from rounding import UNIT_ROUNDOFF, rank_correlation, relative_error, rounding_steps, unrelated
from works import Called, Work


def reference(work: Work) -> np.ndarray:
    """Upstream's answer (its last output) in float64."""
    exact = Called(copy.deepcopy(work.call.module).double(), work.call.call)
    given = [torch.from_numpy(work.feeds["upstream"][name]) for name in work.inputs]
    with torch.inference_mode():
        found = exact(*(x.double() if x.is_floating_point() else x for x in given))
    return found[-1].numpy()


def judged(work: Work, contestant: Contestant, wanted: np.ndarray) -> tuple[dict[str, Any], str | None]:
    """The figures of one contestant, and what speaks against timing it, None where nothing does."""
    found = np.asarray(contestant.run(work.feeds[contestant.graph])[work.outputs[-1]], np.float64)
    error, related = relative_error(found, wanted), rank_correlation(found, wanted)
    figures: dict[str, Any] = {"error": error, "rank_correlation": related}
    if contestant.precision == "fp32":
        figures["tolerance"] = tolerance = rounding_steps(work.graphs[contestant.graph]) * UNIT_ROUNDOFF
        return figures, None if error <= tolerance else f"is off by {error:.2g}, rounding explains {tolerance:.2g}"
    least = unrelated(wanted.size)
    if related is None or least >= 1:  # too few answers to order
        return figures, None if np.isfinite(error) else "is not finite"
    return figures, None if related > least else f"ranks unlike upstream: {related:.2f} is not above {least:.2f}"


def agreeing(
    work: Work, contestants: Sequence[Contestant]
) -> tuple[list[tuple[Contestant, Mapping[str, Any]]], list[dict[str, str]]]:
    """Those that agree, each with its figures, and for each other one the reason why it is not timed."""
    wanted = reference(work)
    kept, refused = [], []
    for each in contestants:
        figures, against = judged(work, each, wanted)
        if against is None:
            kept.append((each, figures))
        else:
            known = {"name": each.name, "graph": each.graph, "precision": each.precision}
            refused.append({**known, "reason": f"computes something else: it {against}"})
    return kept, refused

"""The improved cross-entropy method: noise coloured along the horizon, elites kept for the next iteration, momentum.

Pinneri et al., "Sample-efficient cross-entropy method for real-time planning" (2020), as stable-worldmodel's
`ICEMSolver` has it: candidate 0 is the mean, the next `n_elite_keep` are the last iteration's best in order of cost,
mean and deviation keep a share `alpha` of what they were, and the plan is the mean, or the last iteration's best
candidate where `return_mean` is false.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .. import expr as e
from ..program import Node, Planner
from .sampling import bounded, chosen, counter, drawn, first_carries, refit
from .settings import has_mean_first, kept_elites

COLOUR = "planner/noise_colour"  # weight (horizon, horizon)
LEAST_DEVIATION = 1e-8  # of coloured noise along the horizon


def noise_colour(planner: Planner) -> np.ndarray:
    """The matrix (horizon, horizon), float64, that colours white noise along the horizon: coloured = white @ matrix.

    Colouring is linear: scale each frequency f of the real Fourier transform by f^(-noise_beta / 2), the constant part
    like the lowest frequency. Row s is what an impulse at step s becomes.
    """
    frequencies = np.fft.rfftfreq(planner.horizon)
    scale = np.concatenate([frequencies[1:2], frequencies[1:]]) ** (-planner.noise_beta / 2)
    return np.fft.irfft(np.fft.rfft(np.eye(planner.horizon)) * scale, planner.horizon)


def coloured(planner: Planner, white: Node) -> Node:
    """White noise (samples, horizon, action) coloured, and of unit deviation along the horizon again."""
    if planner.horizon == 1:
        return white
    steps = planner.horizon
    # read through a view, symmetric as it is: a recipe's formats are for the model's products
    matrix = e.permute(e.weight(COLOUR, (steps, steps)), (1, 0))
    mixed = e.matmul(e.permute(white, (0, 2, 1)), matrix)
    centred = e.sub(mixed, e.mean(mixed, -1))
    deviation = e.sqrt(e.mul(e.reduce_sum(e.mul(centred, centred), -1), 1.0 / (steps - 1)))
    return e.permute(e.div(mixed, e.maximum(deviation, LEAST_DEVIATION)), (0, 2, 1))


def start(planner: Planner, mean: Node, std: Node | None = None) -> dict[str, Node]:
    """The carries before the first iteration, which draws around `mean` (horizon, action) with deviation `std`, or
    `var_scale`."""
    carries = first_carries(planner, mean, std)
    if kept_elites(planner):
        carries["kept"] = e.expand(e.const(0.0), (planner.samples, *mean.shape))
    if not planner.return_mean:
        carries["best"] = mean
    return carries


def iterate(
    planner: Planner, carried: Mapping[str, Node], noise: Node, score: Callable[[Node], Node]
) -> dict[str, Node]:
    """The carries after one more iteration; `score` maps candidates (samples, horizon, action) to costs (samples,)."""
    candidates = drawn(planner, carried["mean"], carried["std"], coloured(planner, noise))
    if "kept" in carried:
        candidates = with_kept(planner, candidates, carried["kept"])
    candidates = bounded(planner, candidates)
    costs = score(candidates)
    elites, cost = chosen(planner, costs)
    mean, std = refit(planner, e.take(candidates, elites))
    found = {
        "mean": _blend(planner.alpha, carried["mean"], mean), "std": _blend(planner.alpha, carried["std"], std),
        "cost": cost, "elites": elites,
    }  # fmt: skip
    if "kept" in carried:
        found["kept"] = e.take(candidates, places_of_kept(planner, costs))
    if "best" in carried:
        found["best"] = e.reshape(e.take(candidates, e.topk(costs, 1)), mean.shape)
    return found


def actions(planner: Planner, carried: Mapping[str, Node]) -> Node:
    """The plan (horizon, action)."""
    return carried["mean" if planner.return_mean else "best"]


def with_kept(planner: Planner, candidates: Node, kept: Node) -> Node:
    """The candidates with those of `kept` (both (samples, horizon, action)) in the places after the mean; as they are
    in the first iteration, which has none."""
    first = int(has_mean_first(planner))
    place = e.iota((planner.samples, 1, 1), 0)
    here = e.bit_and(e.less(first - 1, place), e.less(place, first + kept_elites(planner)))
    return e.select(e.bit_and(here, e.less(0, counter())), kept, candidates)


def places_of_kept(planner: Planner, costs: Node) -> Node:
    """For each place of the next candidates the index (i32) of the one kept for it, 0 where none is: the cheapest in
    order of cost, ties by index, what is no number last."""
    samples, count = planner.samples, kept_elites(planner)
    found = e.topk(costs, count)
    values = e.take(costs, found)
    values = e.select(e.equal(values, values), values, float("inf"))
    mine, other = e.reshape(values, (count, 1)), e.reshape(values, (1, count))
    sooner = e.less(e.iota((count, count), 1), e.iota((count, count), 0))
    before = e.bit_or(e.less(other, mine), e.bit_and(e.equal(other, mine), sooner))
    none = e.const(0, "i32")
    rank = e.reshape(e.reduce_sum(e.select(before, 1, none), 1), (1, count))  # a permutation: the order is total
    here = e.equal(e.sub(e.iota((samples, count), 0), int(has_mean_first(planner))), rank)
    return e.reshape(e.reduce_sum(e.select(here, e.reshape(found, (1, count)), none), 1), (samples,))


def _blend(share: float, old: Node, new: Node) -> Node:
    return e.add(e.mul(old, share), e.mul(new, 1.0 - share))

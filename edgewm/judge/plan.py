"""Suite `plan`: from the same picture, on the same noise, does the compressed model choose the same plan?

For each context the full model plans twice, on two noises; where the bundle's planner begins at a proposal that the
full model lacks, from that of the bundle. The bank that both models then score is every candidate of the first search,
iteration by iteration: what a planner really compares, drawn blindly at first and close together at the end. Spearman
ranks the whole bank; Kendall, whose cost grows with the square, and elites are of one iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from .. import statistics
from ..options import Progress
from ..program import Planner
from .gates import finite, judged, mean_interval, ratio_interval
from .sides import Observation, Search, Side, blind_cost, elites_of, rollout, search, start_of

Array = np.ndarray

DRIFT_CANDIDATES = 6  # rollouts compared latent by latent in each context
SHOWN = 80  # candidates of an iteration in the report's picture
_NOISE = 0x4015E


class Context(NamedTuple):
    """What one context showed. Costs are (I, S), plans (H, A), latents (C, H + 1, D)."""

    full_cost: Array
    compressed_cost: Array
    full_plan: Array
    other_plan: Array  # the full model's, on other noise
    compressed_plan: Array
    plan_costs: Array  # under the full model: of full_plan, of compressed_plan
    blind_cost: float  # median of what is drawn without looking
    full_latents: Array
    compressed_latents: Array


def noises_of(planner: Planner, action_dim: int, seed: int, i: int) -> Array:
    """Two noises (2, I, S, H, A) for the context of that number."""
    shape = (2, planner.iterations, planner.samples, planner.horizon, action_dim)
    return np.random.default_rng([_NOISE, seed, i]).standard_normal(shape, np.float32)


class Bank(NamedTuple):
    """What the full model sees and looks at in one context, from one search on each of two noises."""

    z: Array
    target: Array
    first: Search
    other: Search
    blind_cost: float

    @property
    def followed(self) -> Array:
        """Candidates (C, H, A) that are followed latent by latent."""
        everyone = self.first.candidates.reshape(-1, *self.first.mean.shape)
        return everyone[np.linspace(0, len(everyone) - 1, DRIFT_CANDIDATES).round().astype(int)]


def bank_of(
    full: Side, planner: Planner, observation: Observation, goal: Observation, noises: Array, begun: Side | None = None
) -> Bank:
    """The searches of the full model on `noises` (2, I, S, H, A); from the proposal of `begun` where it has none."""
    z, target = full.encode(observation), full.encode(goal)
    start = start_of(full, z, target)
    if not start and begun is not None and begun.propose is not None:
        start = start_of(begun, begun.encode(observation), begun.encode(goal))
    first, other = (search(lambda c: full.score(z, target, c), planner, n, *start) for n in noises)
    return Bank(z, target, first, other, blind_cost(full, planner, z, target, noises[0]))


def look(
    full: Side, compressed: Side, planner: Planner, observation: Observation, goal: Observation, noises: Array
) -> Context:
    """What one context shows of both; `noises` is (2, I, S, H, A)."""
    bank = bank_of(full, planner, observation, goal, noises, compressed)
    return beside(full, bank, compressed, observation, goal, noises[0])


def beside(
    full: Side, bank: Bank, compressed: Side, observation: Observation, goal: Observation, noise: Array
) -> Context:
    """Everything the statistics need of one context; `noise` (I, S, H, A) is that of the first search."""
    own, own_target = compressed.encode(observation), compressed.encode(goal)
    plan = np.asarray(compressed.plan(observation, goal, noise), np.float64)
    costs = np.stack([compressed.score(own, own_target, c) for c in bank.first.candidates])
    return Context(
        full_cost=bank.first.costs.astype(np.float64),
        compressed_cost=costs.astype(np.float64),
        full_plan=bank.first.mean,
        other_plan=bank.other.mean,
        compressed_plan=plan,
        plan_costs=np.asarray(full.score(bank.z, bank.target, np.stack([bank.first.mean, plan])), np.float64),
        blind_cost=bank.blind_cost,
        full_latents=rollout(full, bank.z, bank.followed),
        compressed_latents=rollout(compressed, own, bank.followed),
    )


def run(
    full: Side, compressed: Side, planner: Planner, action_dim: int, pairs: Iterable[tuple[Observation, Observation]],
    total: int, seed: int, progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """The figures of this suite and its gates."""
    seen = []
    for i, (observation, goal) in enumerate(pairs):
        noises = noises_of(planner, action_dim, seed, i)
        seen.append(look(full, compressed, planner, observation, goal, noises))
        progress("plan", (i + 1) / total)
    return judge(seen, planner)


def judge(seen: list[Context], planner: Planner) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures and gates of the contexts seen."""
    n, k = len(seen), planner.elites
    if n == 0:
        return {}, [judged(name, float("nan"), 0) for name in ("spearman_min", "elite_overlap", "regret")]
    rank = np.array([statistics.spearman(c.full_cost.ravel(), c.compressed_cost.ravel()) for c in seen])
    pairs = [zip(c.full_cost, c.compressed_cost, strict=True) for c in seen]
    shared = np.array([[len(np.intersect1d(elites_of(a, k), elites_of(b, k))) / k for a, b in p] for p in pairs])
    overlap = shared.mean(1)
    error = np.array([_rms(c.compressed_cost - c.full_cost) / c.full_cost.std() for c in seen])
    lost = np.array([c.plan_costs[1] - c.plan_costs[0] for c in seen])
    gained = np.array([c.blind_cost - c.plan_costs[0] for c in seen])
    ours = np.array([np.linalg.norm(c.compressed_plan[0] - c.full_plan[0]) for c in seen])
    noise = np.array([np.linalg.norm(c.other_plan[0] - c.full_plan[0]) for c in seen])
    drift, drift_bounds = _drift(seen)
    regret, ratio = ratio_interval(lost, gained), ratio_interval(ours, noise)
    mean_overlap, mean_error = mean_interval(overlap), mean_interval(error)
    kendall = _by_iteration(seen, statistics.kendall)
    parted = [first_below(row, 1.0) for row in shared]
    first = [float(np.abs(c.compressed_plan[0] - c.full_plan[0]).max()) for c in seen]
    figures = {
        "contexts": n,
        "spearman_min": finite(rank.min()),
        "spearman_median": finite(np.median(rank)),
        "spearman_by_iteration_min": [finite(v) for v in _by_iteration(seen, statistics.spearman).min(0)],
        "kendall_min": finite(kendall.mean(1).min()),
        "kendall_median": finite(np.median(kendall.mean(1))),
        "kendall_by_iteration_median": [finite(v) for v in np.median(kendall, 0)],
        "elite_overlap": finite(mean_overlap[0]),
        "elite_overlap_min": finite(overlap.min()),
        "elite_overlap_by_iteration": [finite(v) for v in shared.mean(0)],
        "elites_part_at": [parted.count(i) for i in range(shared.shape[1])],  # contexts, by first iteration
        "elites_never_part": parted.count(None),
        "cost_error": finite(mean_error[0]),
        "cost_error_max": finite(error.max()),
        "cost_relative_error_max": finite(max(_relative(c) for c in seen)),
        "first_action_error": finite(float(np.mean(first))),
        "first_action_error_max": finite(max(first)),
        "first_action_ratio": finite(ratio[0]),
        "regret": finite(regret[0]),
        "regret_worst": finite(float(np.max(lost)) / float(gained.mean())),
        "drift_by_step": [finite(v) for v in drift],
        "scatter": _scatter(seen[int(np.argsort(np.nan_to_num(rank, nan=-1))[0])]),
    }
    gates = [
        judged("spearman_min", float(rank.min()), n),
        judged("elite_overlap", mean_overlap[0], n, mean_overlap[1:]),
        judged("regret", regret[0], n, regret[1:]),
        judged("cost_error", mean_error[0], n, mean_error[1:]),
        judged("first_action_ratio", ratio[0], n, ratio[1:]),
        judged("drift", drift[-1], n, drift_bounds),
    ]
    return figures, gates


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def first_below(row: Array, whole: float) -> int | None:
    """Index of the first entry under `whole`; None where there is none."""
    under = np.flatnonzero(row < whole)
    return int(under[0]) if len(under) else None


def _relative(c: Context) -> float:
    return float(np.max(np.abs(c.compressed_cost - c.full_cost) / np.abs(c.full_cost)))


def _by_iteration(seen: list[Context], correlation: Callable[[Array, Array], float]) -> Array:
    """(contexts, iterations)"""
    pairs = [zip(c.full_cost, c.compressed_cost, strict=True) for c in seen]
    return np.array([[correlation(a, b) for a, b in p] for p in pairs])


def _drift(seen: list[Context]) -> tuple[Array, tuple[float, float]]:
    """Rms latent difference by rollout step (H + 1,) over the spread of latents at that step; bounds at the last one.

    The spread is over contexts and candidates, summed over dimensions: what one latent tells from another.
    """
    full = np.stack([c.full_latents for c in seen])
    compressed = np.stack([c.compressed_latents for c in seen])
    spread = full.reshape(-1, *full.shape[2:]).var(0).sum(-1)
    squared = np.square(compressed - full).sum(-1).mean(1)
    _, *bounds = mean_interval(squared[:, -1])
    low, high = (float(np.sqrt(max(b, 0.0) / spread[-1])) for b in bounds)
    return np.sqrt(squared.mean(0) / spread), (low, high)


def _scatter(c: Context) -> dict[str, Any]:
    """Both models' costs in the worst context, for the report: of the first iteration, the middle one and the last."""
    iterations, samples = c.full_cost.shape
    part, at = np.meshgrid(range(3), range(0, samples, -(-samples // SHOWN)), indexing="ij")
    chosen = (np.array([0, iterations // 2, iterations - 1])[part.ravel()], at.ravel())
    return {
        "full": [finite(v) for v in c.full_cost[chosen]],
        "compressed": [finite(v) for v in c.compressed_cost[chosen]],
        "part": part.ravel().tolist(),
    }

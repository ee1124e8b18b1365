"""What a student is taught, each term by name: `TERMS[name](of the student, of the teacher) -> scalar`.

Latents are in the student's space (`space.py`). Terms that match values are 1 for one who knows nothing but the mean;
those that match ranks count differences of costs in units of their group's spread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import EdgewmError


class Diverged(EdgewmError):
    """A loss that is no number."""


BOUNDARY = 0.25  # of a group's spread: how far from the edge between elites and others still counts
LEAST = 1e-12


@dataclass(frozen=True)
class Seen:
    """What one side says of a batch: `frames` (N, D); `starts` and `goals` (B, D); `futures` (B, G, K, H, D) of
    candidates from the start, and `costs` (B, G, K); what its predictor's last layer says for each of the futures,
    `features` (B, G, K, H, D), None where nobody asks."""

    frames: Tensor
    starts: Tensor
    goals: Tensor
    futures: Tensor
    costs: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Facts:
    """What does not change in a run: variance of latents, summed over dimensions, elites of a group, and how states are
    read from a latent, `probe` (D, S), in units of their spread; None where none are known."""

    variance: Tensor
    elites: int
    probe: Tensor | None = None


def encode(s: Seen, t: Seen, facts: Facts) -> Tensor:
    """Latents of pictures."""
    both = [(s.frames, t.frames), (s.starts, t.starts), (s.goals, t.goals)]
    off = torch.cat([(a - b).square().sum(-1) for a, b in both])
    return off.mean() / facts.variance


def latent(s: Seen, t: Seen, facts: Facts) -> Tensor:
    """Latents of whole rollouts, each step of each candidate."""
    return (s.futures - t.futures).square().sum(-1).mean() / facts.variance


def counterfactual(s: Seen, t: Seen, facts: Facts) -> Tensor:
    """What another action changes: latents of a group's candidates about their mean, over how far the teacher's lie
    apart. (The mean over all pairs of squared errors of differences is twice this.)"""
    ours, theirs = (x.futures - x.futures.mean(2, keepdim=True) for x in (s, t))
    return ((ours - theirs).square().sum(-1).mean(2) / (theirs.square().sum(-1).mean(2) + LEAST)).mean()


def cost(s: Seen, t: Seen, facts: Facts) -> Tensor:
    """Costs, in units of their spread in a group; beyond one of it, only linearly."""
    spread = t.costs.std(-1, keepdim=True) + LEAST
    return F.smooth_l1_loss(s.costs / spread, t.costs / spread)


def rank(s: Seen, t: Seen, facts: Facts) -> Tensor:
    """Which of two candidates costs less, as sure as the teacher is of it."""
    spread = t.costs.std(-1)[..., None, None] + LEAST
    ours, theirs = ((x.costs[..., :, None] - x.costs[..., None, :]) / spread for x in (s, t))
    return F.binary_cross_entropy_with_logits(ours, torch.sigmoid(theirs)) - _entropy(theirs)


def elite(s: Seen, t: Seen, facts: Facts) -> Tensor:
    """Which are elites: each against each that is none, by a margin that falls off away from the boundary."""
    spread = t.costs.std(-1)[..., None, None] + LEAST
    order = t.costs.argsort(-1)
    ours, theirs = (x.costs.gather(-1, order) for x in (s, t))
    k = facts.elites

    def across(costs: Tensor) -> Tensor:
        return (costs[..., None, k:] - costs[..., :k, None]) / spread

    apart = across(theirs)
    weight = torch.exp(-apart / (4 * BOUNDARY))
    wrong = weight * F.softplus(-across(ours) / BOUNDARY)
    return (wrong.sum((-1, -2)) / weight.sum((-1, -2))).mean()


def probe(s: Seen, t: Seen, facts: Facts) -> Tensor:
    """What is read of the world's state from latents, of pictures and at the end of rollouts."""
    off = [s.frames - t.frames, (s.futures - t.futures)[..., -1, :].flatten(0, -2)]
    return torch.cat(off).matmul(facts.probe).square().mean()


def features(s: Seen, t: Seen, facts: Facts) -> Tensor:
    """What the last layer says (FitNets: Romero et al. 2015, https://arxiv.org/abs/1412.6550)."""
    spread = t.features.flatten(0, -2).var(0, correction=0).sum() + LEAST
    return (s.features - t.features).square().sum(-1).mean() / spread


def _entropy(logits: Tensor) -> Tensor:
    """What the cross-entropy of a target with itself is, so that a perfect student's loss is 0."""
    return F.binary_cross_entropy_with_logits(logits, torch.sigmoid(logits))


TERMS: Mapping[str, Callable[[Seen, Seen, Facts], Tensor]] = {
    "encode": encode, "latent": latent, "counterfactual": counterfactual, "cost": cost, "rank": rank, "elite": elite,
    "probe": probe, "features": features,
}  # fmt: skip
WEIGHTS: Mapping[str, float] = {
    "encode": 1.0, "latent": 1.0, "counterfactual": 0.3, "cost": 0.1, "rank": 0.5, "elite": 0.1, "probe": 0.3,
    "features": 0.3,
}  # fmt: skip
# By `python benchmarks/losses.py` a probe added nothing, and what compares costs lost elites and episodes. Features of
# the last layer brought few episodes more for half as much time again, and not every student has them.
DEFAULT = ("encode", "latent", "counterfactual")


def weighing(names: Collection[str]) -> dict[str, float]:
    """Every term's weight, 0 but for these."""
    return {name: weight if name in names else 0.0 for name, weight in WEIGHTS.items()}


def total(s: Seen, t: Seen, facts: Facts, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and each term that has a weight."""
    terms = {name: TERMS[name](s, t, facts) for name, weight in weights.items() if weight}
    return sum(weights[name] * term for name, term in terms.items()), terms

"""What a sample allows one to claim: intervals, quantile bounds, rank correlation, and tests that may be read early.

Every bound is exact (binomial) or its error rate is tested by simulation. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


def student_ratio(freedom: float, level: float = 0.95) -> float:
    """Student's quantile over the normal one at `level`: the first terms of Fisher's expansion (Abramowitz & Stegun
    26.7.5), within 1 % from 4 degrees of freedom on."""
    z = NormalDist().inv_cdf(level)
    return 1 + (z**2 + 1) / (4 * freedom) + (5 * z**4 + 16 * z**2 + 3) / (96 * freedom**2)


# ------------------------------------------------------------------------------------------------------ rates


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate (Wilson 1927); (0, 1) for an empty sample."""
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, zz = successes / n, z * z
    middle, half = rate + zz / (2 * n), z * math.sqrt(rate * (1 - rate) / n + zz / (4 * n * n))
    return Interval(max(0.0, (middle - half) / (1 + zz / n)), min(1.0, (middle + half) / (1 + zz / n)))


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(at most k of n), each with probability p; exact sum of k + 1 terms in log space."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    i = np.arange(1, k + 1, dtype=np.float64)
    choose = np.concatenate([[0.0], np.cumsum(np.log(n - i + 1) - np.log(i))])
    terms = choose + np.arange(k + 1) * math.log(p) + (n - np.arange(k + 1)) * math.log1p(-p)
    top = terms.max()
    return float(min(1.0, math.exp(top) * np.exp(terms - top).sum()))


def miss_rate_upper(misses: int, n: int, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound of a rate (Clopper & Pearson 1934); about 3/n where nothing was missed in n."""
    if n == 0 or misses >= n:
        return 1.0
    if misses == 0:
        return -math.expm1(math.log(1 - confidence) / n)
    low, high = misses / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(misses, n, middle) > 1 - confidence else (low, middle)
    return high


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two paired success rates agree, from the two discordant counts (McNemar 1947)."""
    discordant = only_first + only_second
    return min(1.0, 2 * binomial_cdf(min(only_first, only_second), discordant, 0.5)) if discordant else 1.0


# -------------------------------------------------------------------------------------------------- quantiles


def samples_needed(p: float, confidence: float = 0.95, above: int = 0) -> int:
    """Smallest n for which "the p-quantile is at most the (above + 1)-th largest" holds with `confidence`."""
    low, high = above, above + 1
    while binomial_cdf(above, high, 1 - p) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_cdf(above, middle, 1 - p) > 1 - confidence else (low, middle)
    return high


def quantile_upper_rank(n: int, p: float, confidence: float = 0.95) -> int | None:
    """1-based rank k such that the k-th smallest of n independent samples is >= the p-quantile with `confidence`.

    None where n is too small for any claim. Binomial order-statistic bound (Hahn & Meeker 1991, section 5.2).
    """
    if n < 1 or binomial_cdf(0, n, 1 - p) > 1 - confidence:
        return None
    low, high = 0, n
    while high - low > 1:  # the largest number of samples that may lie above
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_cdf(middle, n, 1 - p) <= 1 - confidence else (low, middle)
    return n - low


@cache
def allowed_above(n: int, p: float, confidence: float = 0.95) -> float | None:
    """How many of n independent samples may lie above an upper bound of the p-quantile; not a whole number.

    Coverage is interpolated between two order statistics, so the bound is not wider than `confidence` asks. None where
    n is too small for any claim.
    """
    rank = quantile_upper_rank(n, p, confidence)
    if rank is None:
        return None
    above = n - rank
    wider, closer = (1 - binomial_cdf(k, n, 1 - p) for k in (above, above + 1))
    return above + (wider - confidence) / (wider - closer)


# --------------------------------------------------------------------------------------------------- ordering


def ranks(x: Array) -> Array:
    """Ranks from 0, ties sharing their mean rank."""
    x = np.asarray(x)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: Array, b: Array) -> float:
    """Spearman's rank correlation; nan where one side is constant or not finite (a ranking it is not)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else math.nan


def kendall(a: Array, b: Array) -> float:
    """Kendall's tau-b; O(n^2), for banks of a few hundred candidates; nan as in `spearman`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    x, y = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
    scale = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / scale) if scale > 0 else math.nan


# -------------------------------------------------------------------------------------------- paired evidence


def bootstrap(
    samples: Array, statistic: Callable[[Array], float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap over rows (Efron 1979). Rows are the independent units; pairs stay together in a row."""
    samples = np.asarray(samples)
    rng = np.random.default_rng(seed)
    draws = [statistic(samples[rng.integers(0, len(samples), len(samples))]) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    return Interval(*(float(v) for v in np.quantile(draws, [tail, 1 - tail])))


def pairs_needed(discordance: float, margin: float, power: float = 0.8, error_rate: float = 0.05) -> float:
    """Pairs after which a test that looks once excludes a loss of `margin` with that power, where the two are equal and
    differ in a share `discordance` of pairs (normal approximation: the variance of a difference is that share)."""
    z = NormalDist().inv_cdf(1 - error_rate) + NormalDist().inv_cdf(power)
    return z**2 * discordance / margin**2


class Sequential(NamedTuple):
    """Where a sequential test stands: `decision` is True (not worse), False (worse) or None (not yet known)."""

    decision: bool | None
    episodes: int
    evidence_for: float
    evidence_against: float


BETS = np.linspace(0.05, 0.95, 19)  # shares of the greatest stake that cannot lose everything


def noninferiority(differences: Iterable[float], margin: float, error_rate: float = 0.05) -> Sequential:
    """Is the second of two paired scores worse than the first by `margin` or more? May be asked after every pair.

    `differences` are second minus first, each in [-1, 1]. Two mixtures of betting martingales (Waudby-Smith & Ramdas,
    "Estimating means of bounded random variables by betting", 2024): one grows where the mean difference exceeds
    -margin, the other where it lies below. Whichever first reaches 1/error_rate decides; by Ville's inequality each
    decision is wrong with probability at most `error_rate`, however often one looks and whenever one stops.
    """
    d = np.asarray(list(differences), np.float64)
    if not len(d):
        return Sequential(None, 0, 1.0, 1.0)
    wealth = []
    for gain, worst in ((d + margin, 1 - margin), (-margin - d, 1 + margin)):
        steps = np.log1p(np.outer(BETS / worst, gain)).cumsum(1)
        top = steps.max(0)
        wealth.append(np.exp(np.minimum(top, 600)) * np.exp(steps - top).mean(0))
    crossed = [np.flatnonzero(w >= 1 / error_rate) for w in wealth]
    first = [int(c[0]) if len(c) else len(d) for c in crossed]
    decision = None if min(first) == len(d) else first[0] < first[1]
    looked = len(d) if decision is None else min(first) + 1
    return Sequential(decision, looked, *(float(w[-1]) for w in wealth))

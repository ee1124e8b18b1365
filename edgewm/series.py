"""What samples that follow one another are worth, whether they stay the same, and whether they are of two kinds.

Times of a loop cluster: a bound that counts every sample as a new one is wrong more often than it says. How often each
of these is wrong is simulated by `benchmarks/coverage.py`. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from . import statistics
from .statistics import Interval

Array = np.ndarray

CLUSTERED = 2.8  # standard errors of the summed correlation beyond which samples count as dependent
LAGS = (1, 20)  # over which it is summed
KNOWN_EVENTS = 50  # exceedances from which their clustering is judged
EVENTS_LEAST = 25  # where samples depend: exceedances that a bound needs,
CLUSTERS_LEAST = 4  # clusters of them,
WORTH_LEAST = 300  # and independent samples altogether
BATCHES_LEAST = 40
PAIRED_WORTH = 100  # independent samples of each side, for a difference,
BLOCKS_LEAST = 10  # and blocks of the shorter one


class Bound(NamedTuple):
    """An upper confidence bound; None where the sample is worth too little. `needs`: the samples it would take."""

    value: float | None
    worth: float
    needs: int


class Series:
    """Samples in order. Correlations are computed once for each level that is asked for."""

    def __init__(self, x: Array):
        self.x = np.asarray(x, np.float64)
        self._known: dict[float | None, Array | None] = {}

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def ordered(self) -> Array:
        return np.sort(self.x)

    def above(self, p: float) -> Array:
        """Which samples exceed the p-quantile."""
        return self.x > self.ordered[min(len(self) - 1, int(p * len(self)))]

    def correlations(self, p: float | None) -> Array | None:
        """Autocorrelations of the exceedances of the p-quantile (None: of logarithms); None where nothing varies."""
        if p not in self._known:
            self._known[p] = correlations(logarithms(self.x) if p is None else self.above(p))
        return self._known[p]

    def levels(self, p: float) -> list[float | None]:
        """Where dependence is looked for: at p, at the highest level that is well known, in the middle, overall."""
        known = min(p, 1 - KNOWN_EVENTS / len(self)) if len(self) > 2 * KNOWN_EVENTS else 0.5
        return list(dict.fromkeys([p, known, 0.5, None]))

    def is_dependent(self, p: float) -> bool:
        found = [self.correlations(level) for level in self.levels(p)]
        return any(clustering(rho) > CLUSTERED for rho in found if rho is not None)

    def longest(self, p: float) -> float:
        """Samples per independent one at the level where that is most."""
        found = [self.correlations(level) for level in self.levels(p)]
        return max([geyer(rho) for rho in found if rho is not None], default=1.0)


def logarithms(x: Array) -> Array:
    """Of the bulk: what is rarer than one in 50 is judged at its own level. What is not positive: the least that is."""
    positive = x[x > 0]
    if not len(positive):
        return np.zeros(len(x))
    least = positive.min()
    return np.log(np.clip(x, least, max(least, np.quantile(x, 0.98))))


def correlations(x: Array) -> Array | None:
    """Autocorrelations from lag 0; None for a constant."""
    x = np.asarray(x, np.float64)
    n = len(x)
    if n < 4 or not np.ptp(x):
        return None
    x = x - x.mean()
    spectrum = np.fft.rfft(x, 1 << (2 * n - 1).bit_length())
    covariance = np.fft.irfft(spectrum * spectrum.conj())[:n]
    return covariance / covariance[0]


def clustering(rho: Array) -> float:
    """Standard errors by which the correlation summed over the first lags exceeds what independent samples show."""
    n = len(rho)
    return max(rho[1 : m + 1].sum() * math.sqrt(n / m) for m in LAGS)


def geyer(rho: Array) -> float:
    """Samples per independent one: Geyer's initial monotone sequence (1992)."""
    n = len(rho)
    pairs = rho[0 : n - 1 : 2] + rho[1:n:2]
    negative = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: negative[0] if len(negative) else len(pairs)])
    return float(max(1.0, 2 * pairs.sum() - 1.0))


def batch_means(events: Array, length: int) -> Array:
    batches = len(events) // length
    return events[: batches * length].reshape(batches, length).mean(1)


def batched(events: Array, length: int) -> tuple[float, float]:
    """Samples per independent one, from the variance of the means of batches of `length` (even), and the degrees of
    freedom that it is known with.

    What batches depend on each other at their ends makes them look better by a share that goes with 1 / length; so it
    is extrapolated from `length` and its half, which is a lag window that is flat up to the half (Politis & Romano
    1995; Vats & Flegal 2022, r = 2, c = 1/2). Its relative variance is (5 + excess kurtosis) / batches.
    """
    spread = events.var()
    if not spread:
        return 1.0, math.inf
    means, halves = batch_means(events, length), batch_means(events, length // 2)
    whole, half = length * means.var(ddof=1), length // 2 * halves.var(ddof=1)
    apart = means - means.mean()
    second = (apart**2).mean()
    excess = max(0.0, (apart**4).mean() / second**2 - 3) if second > 0 else 0.0
    return float((2 * whole - half) / spread), float(2 * len(means) / (5 + excess))


# ------------------------------------------------------------------------------------------------------------ bounds


def tail_worth(series: Series, events: Array, p: float, least_needed: int) -> tuple[float | None, int]:
    """Independent samples that a claim on `events` (of about 1 - p of the samples) has, and the samples it would take.

    None where they depend on one another and there are too few to say how much.
    """
    n = len(series)
    if not series.is_dependent(p):
        return float(n), least_needed
    longest, rare = series.longest(p), min(p, 1 - p)
    length = 2 * math.ceil(longest)
    needs = max(
        EVENTS_LEAST / rare, CLUSTERS_LEAST * longest / rare, WORTH_LEAST * longest, BATCHES_LEAST * length,
        least_needed * longest,
    )  # fmt: skip
    if n * rare < max(EVENTS_LEAST, CLUSTERS_LEAST * longest) or n < max(WORTH_LEAST * longest, BATCHES_LEAST * length):
        return None, math.ceil(needs)
    found, freedom = batched(events.astype(np.float64), length)
    apart = max(1.0, found) * statistics.student_ratio(freedom) ** 2
    return n / apart, math.ceil(least_needed * apart)


def quantile_upper(series: Series, p: float, confidence: float = 0.95) -> Bound:
    """The bound that lies above the p-quantile with `confidence`, between two order statistics: no wider than asked.

    Order statistics after Hahn & Meeker (1991, 5.2), interpolated as by Hettmansperger & Sheather (1986).
    """
    n = len(series)
    worth, needs = tail_worth(series, series.above(p), p, statistics.samples_needed(p, confidence))
    above = None if worth is None else statistics.allowed_above(int(worth), p, confidence)
    if above is None or worth is None:
        known = n / series.longest(p) if worth is None else worth
        return Bound(None, known, needs)
    return Bound(top(series.ordered, above * n / int(worth)), worth, needs)


def top(ordered: Array, above: float) -> float:
    """The value that `above` of the samples exceed, between two of them where that is no whole number."""
    whole = min(int(above), len(ordered) - 1)
    share, high = above - whole, float(ordered[-1 - whole])
    return high if share == 0 or whole + 2 > len(ordered) else (1 - share) * high + share * float(ordered[-2 - whole])


def rate_upper(
    series: Series, events: Array, confidence: float = 0.95, whole: tuple[int, int] | None = None
) -> Bound:  # fmt: skip
    """Upper bound of how often something happens to samples of this series; `events` says to which it did. `whole`:
    (events, samples) of the run that the series is the first part of.

    Withheld where samples depend and too little is known of how events cluster.
    """
    n, seen = len(series), int(events.sum())
    count, samples = whole or (seen, n)
    if n == 0:
        return Bound(1.0, 0.0, 1)
    p = min(max(1 - count / samples, 0.5), 1 - 1 / n)
    worth, needs = tail_worth(series, events, p, 1)
    if worth is None or (count and not seen):
        return Bound(None, samples / series.longest(p), needs)
    share = min(worth, n) / n
    upper = statistics.miss_rate_upper(math.ceil(count * share), int(samples * share), confidence)
    return Bound(upper, samples * share, needs)


# -------------------------------------------------------------------------------------------------- what stays the same

PARTS = 20
CHANCE = 0.01  # of each of the two tests, to be wrong about a series that stays the same


class Course(NamedTuple):
    """Whether a series stays what it is. `is_steady` is None where it is too short, or too dependent, to tell."""

    is_steady: bool | None
    kind: str  # drift, step or "" where it is steady
    change: float  # of the middle, over the whole run (drift) or at once (step), as a share of what it began with
    at: float  # where the step lies, as a share of the run


def course(x: Array) -> Course:
    """Mann and Kendall's test for a trend and Pettitt's for a step (1979), on the medians of 20 equal parts."""
    x = np.asarray(x, np.float64)
    length = len(x) // PARTS
    unknown = Course(None, "", 0.0, 0.0)
    if length < 5:
        return unknown
    parts = x[: length * PARTS].reshape(PARTS, length)
    within = [rho for rho in (correlations(logarithms(part)) for part in parts) if rho is not None]
    if within and length / float(np.median([geyer(rho) for rho in within])) < 5:
        return unknown
    middle = np.median(parts, axis=1)
    drift, step, at = kendall_chance(middle), *pettitt_chance(middle)
    if min(drift, step) > CHANCE or middle[0] == 0:
        return Course(True, "", 0.0, 0.0)
    low, high = float(np.median(middle[:at])), float(np.median(middle[at:]))
    gaps = [(middle[j] - middle[i]) / (j - i) for i in range(PARTS) for j in range(i + 1, PARTS)]
    slope = float(np.median(gaps))  # Theil and Sen's
    start = float(np.median(middle - slope * np.arange(PARTS)))
    lines = np.abs(middle - start - slope * np.arange(PARTS)).sum()
    levels = np.abs(middle - np.where(np.arange(PARTS) < at, low, high)).sum()
    if levels < lines:
        return Course(False, "step", (high - low) / low, at / PARTS)
    return Course(False, "drift", slope * (PARTS - 1) / start, 0.0)


def kendall_chance(x: Array) -> float:
    """Two-sided chance of as clear a trend in independent values (normal approximation, corrected for continuity)."""
    n = len(x)
    s = abs(float(np.sign(x[None, :] - x[:, None])[np.triu_indices(n, 1)].sum()))
    return math.erfc(max(0.0, s - 1) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / math.sqrt(2))


def pettitt_chance(x: Array) -> tuple[float, int]:
    """Chance of as large a step in independent values, and the index that it comes before."""
    n = len(x)
    split = [abs(float(np.sign(x[k:, None] - x[None, :k]).sum())) for k in range(1, n)]
    at = int(np.argmax(split))
    return min(1.0, 2 * math.exp(-6 * split[at] ** 2 / (n**3 + n**2))), at + 1


class Modes(NamedTuple):
    """Two speeds: the middle of each and the share of samples that are of the slower one."""

    fast: float
    slow: float
    slow_share: float


def two_modes(x: Array, least_share: float = 0.02, chance: float = 1e-4) -> Modes | None:
    """Two kinds of samples with a valley between them; None where there is one kind, or too few to tell.

    The valley is a window, in logarithms, that holds fewer samples than an equally wide one about each mode, by more
    than chance (binomial) allows. Tails that thin out have no valley before them.
    """
    x = np.log(np.asarray(x, np.float64)[np.asarray(x) > 0])
    n = len(x)
    if n < 100:
        return None
    low, high = np.quantile(x, [0.002, 0.998])
    if high - low <= 0:
        return None
    best: Modes | None = None
    clearest = math.log(chance)
    for bins in (12, 24):
        counts, edges = np.histogram(x, bins, (low, high))
        for valley in range(1, bins - 1):
            left, right = int(counts[:valley].argmax()), valley + 1 + int(counts[valley + 1 :].argmax())
            slow = x > edges[valley] + (edges[1] - edges[0]) / 2
            share = slow.mean()
            lesser = min(counts[left], counts[right])
            if not least_share <= share <= 1 - least_share or 2 * counts[valley] >= lesser:
                continue
            odds = log_binomial_tail(int(counts[valley]), int(counts[valley] + lesser))
            if odds < clearest:
                clearest = odds
                best = Modes(*(float(np.exp(np.median(x[which]))) for which in (~slow, slow)), float(share))
    return best


def log_binomial_tail(k: int, n: int) -> float:
    """Logarithm of the chance of at most k heads of n; a bound, never less (Hoeffding's, by relative entropy)."""
    if n == 0 or 2 * k >= n:
        return 0.0
    q = k / n
    entropy = (q * math.log(2 * q) if q > 0 else 0.0) + (1 - q) * math.log(2 * (1 - q))
    return -n * entropy


# -------------------------------------------------------------------------------------------------------- differences


def block_length(series: Series) -> int:
    """Samples that are drawn together: several times as many as depend on one another."""
    return max(1, min(len(series) // 10, math.ceil(8 * series.longest(0.5)))) if series.is_dependent(0.5) else 1


def difference(
    first: Series, second: Series, statistic: Callable[[Array], float], are_paired: bool, confidence: float = 0.95,
    resamples: int = 1000, seed: int = 0,
) -> tuple[float, Interval | None]:  # fmt: skip
    """Second minus first, with an interval of the spread over circular blocks (Davison & Hinkley 1997, 5.2, 8.2).

    None for the interval of samples that are worth too few independent ones, or too few blocks of the other's.

    Paired series are drawn at the same places, so that what both share cancels.
    """
    rng = np.random.default_rng(seed)
    length = max(block_length(first), block_length(second))
    found = statistic(second.x) - statistic(first.x)
    blocks = min(len(first), len(second)) / length
    if blocks < BLOCKS_LEAST or any(
        s.is_dependent(0.5) and len(s) < PAIRED_WORTH * s.longest(0.5) for s in (first, second)
    ):
        return float(found), None
    draws = np.empty(resamples)
    for i in range(resamples):
        at = drawn(rng, len(first), length)
        other = at if are_paired else drawn(rng, len(second), length)
        draws[i] = statistic(second.x[other]) - statistic(first.x[at])
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    quantile = z * statistics.student_ratio(blocks - 1, 0.5 + confidence / 2)
    half = quantile * float(draws.std(ddof=1)) * math.sqrt(blocks / (blocks - 1))
    return float(found), Interval(float(found) - half, float(found) + half)


def drawn(rng: np.random.Generator, n: int, length: int) -> Array:
    """Places of n samples, in blocks that wrap around at the end."""
    starts = rng.integers(0, n, math.ceil(n / length))
    return ((starts[:, None] + np.arange(length)) % n).ravel()[:n]

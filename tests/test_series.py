"""Bounds on samples that follow one another hold as often as they say, or are withheld; changes are no chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgewm import series

Z99 = 2.3263478740408408


def chain(rng: np.random.Generator, trials: int, n: int, rho: float) -> np.ndarray:
    """Logarithms of times that follow one another: AR(1), of unit variance."""
    x = rng.normal(size=(trials, n))
    for t in range(1, n):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho * rho) * x[:, t]
    return x


def coverage(x: np.ndarray, p: float, truth: float) -> tuple[float, float]:
    """(share of printed bounds that hold, share printed)."""
    bounds = [series.quantile_upper(series.Series(row), p).value for row in x]
    printed = [b for b in bounds if b is not None]
    return (float(np.mean([b >= truth for b in printed])) if printed else math.nan), len(printed) / len(bounds)


# 300 trials of a true 95 % lie within +- 3 standard errors of it, 91.2 % to 98.8 %; benchmarks/coverage.py draws more.
@pytest.mark.parametrize("kind", ["independent", "autocorrelated", "bimodal"])
def test_quantile_bounds_cover_or_are_withheld(kind: str) -> None:
    rng, trials = np.random.default_rng(1), 300
    if kind == "independent":
        x, n99 = np.exp(0.3 * rng.normal(size=(trials, 3000))), math.exp(0.3 * Z99)
    elif kind == "autocorrelated":
        x, n99 = np.exp(0.3 * chain(rng, trials, 9000, 0.8)), math.exp(0.3 * Z99)
    else:  # a slow mode of 2 %: p99 lies in the middle of it
        slow = rng.random((trials, 3000)) < 0.02
        x, n99 = np.where(slow, 2 + 0.1 * rng.random((trials, 3000)), 1 + 0.1 * rng.random((trials, 3000))), 2.05
    held, printed = coverage(x, 0.99, n99)
    assert printed > 0.9 and 0.91 < held < 0.99
    naive = [np.sort(row)[-1 - int(0.01 * x.shape[1] - 1.645 * math.sqrt(0.0099 * x.shape[1]))] >= n99 for row in x]
    assert np.mean(naive) > 0.9 or (kind == "autocorrelated" and np.mean(naive) < 0.88)  # control


def test_a_bound_that_dependence_makes_unknowable_is_withheld() -> None:
    rng = np.random.default_rng(2)
    for rho, n, p in ((0.9, 600, 0.99), (0.99, 3000, 0.5), (0.9, 10_000, 0.999)):
        assert coverage(np.exp(chain(rng, 60, n, rho)), p, 1.0)[1] < 0.05
    bound = series.quantile_upper(series.Series(np.exp(chain(rng, 1, 600, 0.9))[0]), 0.99)
    assert bound.value is None and bound.worth < 300 and bound.needs > 2500


def test_how_much_samples_are_worth() -> None:
    rng = np.random.default_rng(3)
    assert not series.Series(rng.normal(size=4000)).is_dependent(0.5)
    assert series.geyer(series.correlations(rng.normal(size=4000))) < 1.3
    clustered = series.Series(np.repeat(rng.normal(size=400), 10))
    assert clustered.is_dependent(0.5) and 7 < clustered.longest(0.5) < 16
    assert series.correlations(np.ones(100)) is None
    constant = series.quantile_upper(series.Series(np.full(300, 7.0)), 0.99)
    assert (constant.value, constant.worth) == (7.0, 300)


def test_the_bound_of_a_rate_widens_where_misses_cluster() -> None:
    rng = np.random.default_rng(4)
    one = np.zeros(10_000, bool)
    none = series.rate_upper(series.Series(rng.random(10_000)), one)
    assert none.value == pytest.approx(3e-4, rel=0.01)
    one[rng.choice(10_000, 100, replace=False)] = True
    apart = series.rate_upper(series.Series(one + rng.random(10_000)), one)
    together = np.zeros(10_000, bool)
    together[[at + i for at in range(200, 10_000, 400) for i in range(4)]] = True  # as many, four at a time
    at_once = series.rate_upper(series.Series(together + rng.random(10_000)), together)
    assert 0.0115 < apart.value < 0.0125 and 0.0125 < at_once.value < 0.02
    together[:], together[5000:5100] = False, True  # one event: how often it comes, nobody knows
    assert series.rate_upper(series.Series(together + rng.random(10_000)), together).value is None


@pytest.mark.parametrize("n", [600, 3000])
def test_courses(n: int) -> None:
    rng, ramp = np.random.default_rng(5), np.linspace(0, 1, n)
    noise = rng.lognormal(0, 0.03, (80, n))
    assert np.mean([series.course(x).is_steady is False for x in noise]) < 0.05
    assert np.mean([series.course(x).is_steady is False for x in np.exp(chain(rng, 80, n, 0.7))]) < 0.05
    warm = [series.course(x) for x in noise * (1 + 0.1 * ramp)]
    assert np.mean([c.kind == "drift" for c in warm]) > 0.9
    assert np.median([c.change for c in warm]) == pytest.approx(0.1, abs=0.01)
    stepped = [series.course(x) for x in noise * (1 + 0.05 * (ramp > 0.6))]
    assert np.mean([c.kind == "step" for c in stepped]) > 0.9
    assert np.median([c.at for c in stepped]) == pytest.approx(0.6, abs=0.05)
    assert series.course(noise[0][:90]).is_steady is None  # too short
    assert series.course(np.exp(np.repeat(rng.normal(size=n // 20), 20))).is_steady is None or n > 600  # too dependent


def test_two_modes_are_told_from_one_with_a_tail() -> None:
    rng = np.random.default_rng(6)
    for draw in (rng.lognormal(0, 0.3, (60, 2000)), 1 + rng.pareto(2.5, (60, 2000)), rng.gamma(2, 1, (60, 2000))):
        assert sum(series.two_modes(x) is not None for x in draw) <= 1
    assert series.two_modes(np.round(rng.lognormal(0, 0.1, 3000), 2)) is None  # what a coarse clock makes
    slow = rng.random(2000) < 0.3
    found = series.two_modes(np.where(slow, 2.0, 1.0) * rng.lognormal(0, 0.05, 2000))
    assert found.slow_share == pytest.approx(0.3, abs=0.03) and found.slow / found.fast == pytest.approx(2, rel=0.05)
    assert series.two_modes(np.ones(2000)) is None and series.two_modes(np.ones(20)) is None


def test_differences_of_two_runs_cover() -> None:
    rng, hits, paired = np.random.default_rng(7), [], []
    for i in range(60):
        first, second = (np.exp(0.1 * chain(rng, 1, 500, 0.3)[0]) for _ in range(2))
        _, (low, high) = series.difference(
            series.Series(first), series.Series(1.05 * second), np.median, False, resamples=120, seed=i
        )
        hits.append(low <= 0.05 <= high)
        shared = np.exp(0.1 * chain(rng, 1, 500, 0.3)[0])
        _, narrow = series.difference(
            series.Series(shared),
            series.Series(shared * rng.normal(1.05, 0.01, 500)),
            np.mean,
            True,
            resamples=120,
            seed=i,
        )
        paired.append(narrow.low <= 0.05 * math.exp(0.005) <= narrow.high)
        assert narrow.high - narrow.low < 0.5 * (high - low)
    clustered = [series.Series(np.exp(chain(rng, 1, 500, 0.95)[0])) for _ in range(2)]
    assert series.difference(*clustered, np.median, False, resamples=20)[1] is None  # withheld
    assert np.mean(hits) > 0.85 and np.mean(paired) > 0.85
    soak = series.Series(np.exp(chain(rng, 1, 30_000, 0.95)[0]))
    for n in (20, 300):  # a block of the soak is as long as the other run
        by, interval = series.difference(soak, series.Series(np.exp(rng.normal(size=n))), np.mean, False, resamples=2)
        assert math.isfinite(by) and interval is None

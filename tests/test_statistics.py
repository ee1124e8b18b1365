"""Bounds hold as often as they say; planted cases come out as the books print them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgewm import statistics as st


def test_wilson_of_known_samples():
    low, high = st.wilson(10, 20)
    assert (round(low, 4), round(high, 4)) == (0.2993, 0.7007)
    assert st.wilson(0, 50).low == 0 and st.wilson(50, 50).high == 1
    assert st.wilson(0, 0) == (0.0, 1.0)


def test_wilson_covers():
    rng, n, rate = np.random.default_rng(0), 60, 0.8
    hits = [low <= rate <= high for low, high in (st.wilson(int(k), n) for k in rng.binomial(n, rate, 2000))]
    assert np.mean(hits) > 0.93


def test_binomial_cdf_against_direct_sum():
    for n, p in ((5, 0.3), (40, 0.01), (200, 0.97)):
        for k in range(n + 1):
            direct = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
            assert st.binomial_cdf(k, n, p) == pytest.approx(direct, rel=1e-10)


@pytest.mark.parametrize(
    ("p", "row"),
    [
        (0.90, (29, 46, 44, 64)),
        (0.95, (59, 93, 90, 130)),
        (0.99, (299, 473, 459, 662)),
        (0.999, (2995, 4742, 4603, 6636)),
        (0.9999, (29956, 47437, 46050, 66381)),
        (0.99999, (299572, 474385, 460515, 663833)),
    ],
)
def test_samples_needed_for_a_quantile(p, row):
    assert tuple(st.samples_needed(p, c, above) for c in (0.95, 0.99) for above in (0, 1)) == row


def test_rank_is_none_one_sample_below_the_need_and_the_maximum_at_it():
    for p in (0.9, 0.99, 0.999):
        n = st.samples_needed(p)
        assert st.quantile_upper_rank(n - 1, p) is None
        assert st.quantile_upper_rank(n, p) == n
        assert st.quantile_upper_rank(st.samples_needed(p, above=1), p) == st.samples_needed(p, above=1) - 1


@pytest.mark.parametrize("draw", ["lognormal", "pareto", "bimodal"])
def test_quantile_bound_covers_independent_samples(draw):
    rng, n, p, trials = np.random.default_rng(1), 1000, 0.99, 1000
    if draw == "lognormal":
        x, truth = rng.lognormal(0, 1, (trials, n)), math.exp(2.3263478740408408)
    elif draw == "pareto":
        x, truth = rng.pareto(2.5, (trials, n)), (1 - p) ** (-1 / 2.5) - 1
    else:  # a slow mode of 2 %, so the quantile lies in the middle of it
        slow = rng.random((trials, n)) < 0.02
        x, truth = np.where(slow, 10 + rng.random((trials, n)), rng.random((trials, n))), 10.5
    rank = st.quantile_upper_rank(n, p)
    bound = np.sort(x, 1)[:, rank - 1]
    assert np.mean(bound >= truth) > 0.93
    assert np.mean(np.quantile(x, p, axis=1) >= truth) < 0.75  # control: the point estimate under-reports


def test_a_bound_between_two_order_statistics_covers_no_more_than_asked():
    rng, p, trials = np.random.default_rng(1), 0.99, 1500
    for n in (299, 400, 470, 1000):  # at 470 the maximum alone would cover 99.1 %
        above = st.allowed_above(n, p)
        x = np.sort(rng.random((trials, n)), 1)
        whole, share = int(above), above - int(above)
        bound = (1 - share) * x[:, n - 1 - whole] + share * x[:, n - 2 - whole]
        assert 0.93 < np.mean(bound >= p) < 0.98, n
    assert st.allowed_above(298, 0.99) is None and st.allowed_above(299, 0.99) < 0.01


def test_miss_rate_bound():
    assert st.miss_rate_upper(0, 10_000) == pytest.approx(3.0e-4, rel=0.01)
    assert st.miss_rate_upper(0, 1_000_000) == pytest.approx(3.0e-6, rel=0.01)
    assert st.miss_rate_upper(10, 10) == 1.0 and st.miss_rate_upper(0, 0) == 1.0
    bound = st.miss_rate_upper(3, 100)
    assert st.binomial_cdf(3, 100, bound) == pytest.approx(0.05, rel=1e-6)


def test_mcnemar():
    assert st.mcnemar(0, 0) == 1.0
    assert st.mcnemar(5, 5) == 1.0
    assert st.mcnemar(0, 10) == pytest.approx(2 / 1024)


def test_rank_correlations():
    a = np.array([1.0, 2, 3, 4, 5])
    assert st.spearman(a, a**3) == 1.0 and st.kendall(a, -a) == -1.0
    assert st.spearman(a, [1, 2, 3, 5, 4]) == pytest.approx(0.9)
    assert st.kendall(a, [1, 2, 3, 5, 4]) == pytest.approx(0.8)
    assert list(st.ranks(np.array([3, 1, 3, 2]))) == [2.5, 0, 2.5, 1]
    assert math.isnan(st.spearman(a, np.ones(5))) and math.isnan(st.kendall(a, np.ones(5)))
    assert math.isnan(st.spearman(a, [1, 2, 3, 4, np.nan])) and math.isnan(st.kendall(a, [1, 2, 3, 4, np.inf]))


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(4)
    hits = []
    for i in range(150):
        low, high = st.bootstrap(rng.normal(1, 1, 60), lambda s: float(s.mean()), resamples=200, seed=i)
        hits.append(low <= 1 <= high)
    assert np.mean(hits) > 0.88


def _differences(rng, n, loss, discordant):
    u = rng.random(n)
    worse = (discordant + loss) / 2
    return np.where(u < worse, -1.0, np.where(u < discordant, 1.0, 0.0))


def test_sequential_test_keeps_its_error_rate_at_the_margin_though_looked_at_every_episode():
    rng, margin = np.random.default_rng(5), 0.1
    wrong = [st.noninferiority(_differences(rng, 400, margin, 0.2), margin).decision is True for _ in range(600)]
    assert np.mean(wrong) <= 0.05
    just_inside = [st.noninferiority(_differences(rng, 400, 0.099, 0.2), margin).decision is False for _ in range(600)]
    assert np.mean(just_inside) <= 0.05


def test_sequential_test_decides_clear_cases_early():
    rng = np.random.default_rng(6)
    same = [st.noninferiority(_differences(rng, 300, 0.0, 0.05), 0.1) for _ in range(100)]
    assert np.mean([s.decision is True for s in same]) > 0.9
    assert np.median([s.episodes for s in same]) < 120
    broken = [st.noninferiority(_differences(rng, 300, 0.5, 0.6), 0.1) for _ in range(100)]
    assert np.mean([s.decision is False for s in broken]) > 0.95
    assert st.noninferiority([], 0.1).decision is None
    assert st.noninferiority([0.0] * 5, 0.1).decision is None


def test_pairs_that_a_claim_takes():
    assert st.pairs_needed(0.1, 0.03) == pytest.approx(687, abs=1)  # (1.645 + 0.842)^2 0.1 / 0.03^2
    rng, n = np.random.default_rng(8), round(st.pairs_needed(0.2, 0.1))
    drawn = np.array([_differences(rng, n, 0.0, 0.2) for _ in range(4000)])
    upper = drawn.mean(1) - 1.645 * drawn.std(1, ddof=1) / n**0.5
    assert np.mean(upper > -0.1) == pytest.approx(0.8, abs=0.04)

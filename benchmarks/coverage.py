"""How often the intervals that `edgewm profile` prints hold, in simulation: nominal 95 %, one row a kind of trace.

    python benchmarks/coverage.py [--trials 500] [--json FILE] [--no-record]

Traces of known law: independent, autocorrelated (logarithms AR(1)), bimodal at random, bimodal in bursts, and with a
heavy tail. For each bound: the share of printed ones that hold, and the share of traces where it was printed at all; a
bound printed for less than a tenth of traces counts as withheld. The bound of a miss rate is exact where little was
missed, so it holds more often than it says. Takes a minute.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from recording import add_flags, finish

from edgewm import series

Array = np.ndarray
Draw = Callable[[np.random.Generator, int, int], Array]
SPREAD, SLOW, BURST = 0.3, 0.05, 10.0
LEAST_PRINTED = 0.1


def independent(rng: np.random.Generator, trials: int, n: int) -> Array:
    return np.exp(SPREAD * rng.normal(size=(trials, n)))


def heavy(rng: np.random.Generator, trials: int, n: int) -> Array:
    return 1 + rng.pareto(2.5, (trials, n))


def autocorrelated(rho: float) -> Draw:
    def draw(rng: np.random.Generator, trials: int, n: int) -> Array:
        x = rng.normal(size=(trials, n))
        for t in range(1, n):
            x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho * rho) * x[:, t]
        return np.exp(SPREAD * x)

    return draw


def two_speeds(slow: Array, rng: np.random.Generator) -> Array:
    return np.where(slow, 2.0, 1.0) * np.exp(0.02 * rng.normal(size=slow.shape))


def bimodal(rng: np.random.Generator, trials: int, n: int) -> Array:
    return two_speeds(rng.random((trials, n)) < SLOW, rng)


def bursts(rng: np.random.Generator, trials: int, n: int) -> Array:
    """Slow for BURST samples in the mean, SLOW of the time."""
    state, slow, u = rng.random(trials) < SLOW, np.zeros((trials, n), bool), rng.random((trials, n))
    for t in range(n):
        slow[:, t] = state
        state = np.where(state, u[:, t] > 1 / BURST, u[:, t] < SLOW / (1 - SLOW) / BURST)
    return two_speeds(slow, rng)


def of_normal(p: float) -> float:
    return math.exp(SPREAD * NormalDist().inv_cdf(p))


def of_two_speeds(p: float) -> float:
    bell, low, high = NormalDist(0, 0.02), 0.5, 4.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        below = (1 - SLOW) * bell.cdf(math.log(middle)) + SLOW * bell.cdf(math.log(middle / 2))
        low, high = (middle, high) if below < p else (low, middle)
    return high


TRACES: dict[str, tuple[Draw, Callable[[float], float], tuple[int, ...]]] = {
    "independent": (independent, of_normal, (600, 3000, 10_000)),
    "heavy tail": (heavy, lambda p: (1 - p) ** (-1 / 2.5), (600, 3000)),
    "autocorrelated 0.5": (autocorrelated(0.5), of_normal, (3000, 10_000)),
    "autocorrelated 0.9": (autocorrelated(0.9), of_normal, (3000, 10_000)),
    "autocorrelated 0.99": (autocorrelated(0.99), of_normal, (10_000,)),
    "bimodal": (bimodal, of_two_speeds, (600, 3000)),
    "bimodal in bursts": (bursts, of_two_speeds, (3000, 10_000)),
}


def held(bounds: list[float | None], truth: float) -> tuple[float | None, float]:
    """Share of printed bounds that hold (None: withheld), and share printed."""
    printed = [b for b in bounds if b is not None]
    share = len(printed) / len(bounds)
    return (None if share < LEAST_PRINTED else sum(b >= truth for b in printed) / len(printed)), share


def rows(trials: int) -> list[dict[str, object]]:
    rng, found = np.random.default_rng(0), []
    for kind, (draw, truth, sizes) in TRACES.items():
        for n in sizes:
            traces = [series.Series(x) for x in draw(rng, trials, n)]
            row: dict[str, object] = {"table": "coverage", "name": f"{kind}, {n}"}
            for name, p in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
                covered, share = held([series.quantile_upper(t, p).value for t in traces], truth(p))
                row |= {f"{name} held": covered and round(covered, 3), f"{name} printed": round(share, 2)}
            misses = truth(0.98)  # a period is missed by the slowest 2 %
            uppers = [series.rate_upper(t, t.x >= misses).value for t in traces]
            covered, share = held(uppers, 0.02)
            row |= {"miss rate held": covered and round(covered, 3), "miss rate printed": round(share, 2)}
            found.append(row)
            print(row, flush=True)
    return found + differences(rng, max(60, trials // 2))


def differences(rng: np.random.Generator, trials: int, n: int = 1000) -> list[dict[str, object]]:
    """Medians of two runs, the second 2 % slower."""
    found = []
    for kind in ("independent", "autocorrelated 0.5", "autocorrelated 0.9", "bimodal"):
        draw, truth, _ = TRACES[kind]
        first, second = draw(rng, trials, n), 1.02 * draw(rng, trials, n)
        row: dict[str, object] = {"table": "coverage", "name": f"difference of runs, {kind}, {n}"}
        hits = []
        for i in range(trials):
            pair = series.Series(first[i]), series.Series(second[i])
            _, interval = series.difference(*pair, np.median, False, resamples=200, seed=i)
            hits += [] if interval is None else [interval.low <= 0.02 * truth(0.5) <= interval.high]
        share = len(hits) / trials
        covered = None if share < LEAST_PRINTED else round(float(np.mean(hits)), 3)
        row |= {"p50 held": covered, "p50 printed": round(share, 2)}
        found.append(row)
        print(row, flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    add_flags(parser)
    given = parser.parse_args()
    command = f"python benchmarks/coverage.py --trials {given.trials}"
    finish([{**row, "command": command} for row in rows(given.trials)], given)

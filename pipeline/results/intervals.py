"""Computes confidence intervals and tests for accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DRAWS = 2_000
_TAIL = 0.05
_ROUNDING = 1e-9
"""Below this, two differences of means are one: thirds and sevenths are not exact."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def cluster_bootstrap(
    sums: Sequence[float], counts: Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """The percentile interval of a mean over samples that come in clusters, the problems.

    sums, counts: the summed scores and the number of samples of each cluster; at least one. Whole clusters are drawn
    with replacement, so that samples of one problem stay together. The same input gives the same interval. None where
    every draw is the same: clusters of one mean say nothing of their spread.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    totals, sizes = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if np.ptp(totals / sizes) == 0:
        return None
    means = np.empty(draws)
    for index in range(draws):
        drawn = generator.integers(0, len(totals), len(totals))
        means[index] = totals[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(low), float(high))


def paired_interval(differences: Sequence[float]) -> Interval | None:
    """The interval of a mean difference of scores, by Student's t; None for fewer than two differences.

    Where all differences are equal, t would say that the mean is known exactly. There the exact bound is taken: had
    more than 1 - 0.025 ** (1 / n) of all problems another difference, n drawn ones would agree in fewer than 2.5 % of
    draws; those problems may have any difference from -1 to 1.
    """
    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    if _are_equal(differences):
        others = 1 - (_TAIL / 2) ** (1 / n)
        return Interval(mean - others * (1 + mean), mean + others * (1 - mean))
    half = t_quantile(n - 1) * _standard_error(differences)
    return Interval(max(-1.0, mean - half), min(1.0, mean + half))


def paired_t_test(differences: Sequence[float]) -> float | None:
    """The two-sided p of Student's paired test. None for fewer than two differences and where all are equal."""
    if len(differences) < 2 or _are_equal(differences):
        return None
    mean = math.fsum(differences) / len(differences)
    return t_tails(mean / _standard_error(differences), len(differences) - 1)


def _are_equal(differences: Sequence[float]) -> bool:
    return max(differences) - min(differences) < _ROUNDING


def _standard_error(values: Sequence[float]) -> float:
    n = len(values)
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def t_tails(t: float, degrees: int) -> float:
    """How often Student's t is at least this far from 0, on either side.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4: finite sums, exact for whole degrees of freedom.
    """
    angle = math.atan2(abs(t), math.sqrt(degrees))
    square = math.cos(angle) ** 2
    is_odd = degrees % 2
    term = total = math.cos(angle) if is_odd else 1.0
    for k in range(2 + is_odd, degrees - 1, 2):
        term *= square * (k - 1) / k
        total += term
    if not is_odd:
        return 1 - math.sin(angle) * total
    return 1 - 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0.0))


def t_quantile(degrees: int) -> float:
    """Student's t that is exceeded on either side in 5 % of draws: half the width of a 95 % interval."""
    if degrees > 200:
        # Cornish and Fisher's expansion at 1.959964: right to seven digits from here on.
        return 1.959964 + 2.372271 / degrees + 2.822510 / degrees**2
    low, high = 1.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, degrees) > _TAIL else (low, middle)
    return (low + high) / 2


def sign_test(wins: int, losses: int) -> float | None:
    """The exact two-sided sign test: how often fair coins split at least as unevenly. None where there is no coin.

    With one sample per problem this is McNemar's exact test.
    """
    n = wins + losses
    if n == 0:
        return None
    term, tail = 1, 0
    for k in range(min(wins, losses) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << n))

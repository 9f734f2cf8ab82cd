"""Computes confidence intervals and tests for accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.96
"""Half the width of a 95 % interval in standard errors, as in the views."""
DRAWS = 2_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def cluster_bootstrap(sums: Sequence[float], counts: Sequence[int], *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The percentile interval of a mean over samples that come in clusters, the problems.

    sums, counts: the summed scores and the number of samples of each cluster; at least one. Whole clusters are drawn
    with replacement, so that samples of one problem stay together. The same input gives the same interval.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    totals, sizes = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    means = np.empty(draws)
    for index in range(draws):
        drawn = generator.integers(0, len(totals), len(totals))
        means[index] = totals[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(low), float(high))


def paired_interval(differences: Sequence[float]) -> Interval | None:
    """The interval of a mean difference, normal approximation; None for fewer than two differences."""
    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    variance = math.fsum((difference - mean) ** 2 for difference in differences) / (n - 1)
    half = Z95 * math.sqrt(variance / n)
    return Interval(mean - half, mean + half)


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

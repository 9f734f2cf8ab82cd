"""Intervals and the exact test, against values worked out by hand or known from tables."""

from __future__ import annotations

import math

import pytest

from pipeline.results.intervals import cluster_bootstrap, paired_interval, sign_test


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(5, 0, 2 / 32), (0, 5, 2 / 32), (3, 1, 2 * 5 / 16), (4, 4, 1.0), (1, 0, 1.0), (9, 1, 2 * 11 / 1024)],
)
def test_sign_test_counts_the_tails_of_fair_coins(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p)


def test_sign_test_says_nothing_without_a_difference() -> None:
    assert sign_test(0, 0) is None


def test_sign_test_is_exact_for_many_problems() -> None:
    expected = 2 * sum(math.comb(2000, k) for k in range(901)) / 2**2000
    assert sign_test(1100, 900) == pytest.approx(expected, rel=1e-12)


def test_paired_interval_is_the_textbooks() -> None:
    half = 1.96 * math.sqrt((4 * 0.5**2 / 3) / 4)  # differences 0, 0, 1, 1: mean 1/2, deviations 1/2
    interval = paired_interval([0, 0, 1, 1])
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert paired_interval([1.0]) is None


def test_bootstrap_is_repeatable_and_draws_whole_problems() -> None:
    sums, counts = [8.0] * 50 + [0.0] * 50, [8] * 100
    interval = cluster_bootstrap(sums, counts)
    assert interval == cluster_bootstrap(sums, counts)
    varied = [float(i % 9) for i in range(100)]
    assert cluster_bootstrap(varied, counts) != cluster_bootstrap(varied, counts, seed=1)
    # 800 independent samples would give 0.5 ± 0.035; 100 problems that agree in themselves give 0.5 ± 0.098.
    assert (interval.low, interval.high) == pytest.approx((0.402, 0.598), abs=0.02)


def test_bootstrap_weighs_problems_by_their_samples() -> None:
    interval = cluster_bootstrap([9.0, 9.0], [10, 10])
    assert (interval.low, interval.high) == (0.9, 0.9)
    interval = cluster_bootstrap([30.0, 0.0], [30, 10])
    assert (interval.low, interval.high) == (0.0, 1.0)

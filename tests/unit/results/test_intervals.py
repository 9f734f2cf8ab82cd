"""Intervals and the exact test, against values worked out by hand or known from tables."""

from __future__ import annotations

import math

import pytest

from pipeline.results.intervals import (
    cluster_bootstrap,
    paired_interval,
    paired_t_test,
    sign_test,
    t_quantile,
    t_tails,
)


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
    half = 3.182446 * math.sqrt((4 * 0.5**2 / 3) / 4)  # differences 0, 0, 1, 1: mean 1/2, deviations 1/2
    interval = paired_interval([0, 0, 1, 1])
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 1.0))  # no mean is above 1
    assert paired_interval([1.0]) is None


@pytest.mark.parametrize("difference", [0.0, 1.0, -1.0, 0.25])
def test_paired_interval_of_equal_differences_has_a_width(difference: float) -> None:
    interval = paired_interval([difference] * 10)
    assert interval is not None
    # Had 30.85 % of all problems another difference, ten drawn ones would agree in 0.6915 ** 10 = 2.5 % of draws.
    low, high = difference - 0.3085 * (1 + difference), difference + 0.3085 * (1 - difference)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)
    assert interval.high - interval.low > 0.3


def test_differences_that_only_rounding_tells_apart_are_equal() -> None:
    interval = paired_interval([2 / 3 - 1 / 3, 1 / 3] * 5)
    assert interval is not None
    assert interval.high - interval.low > 0.3
    assert paired_t_test([2 / 3 - 1 / 3, 1 / 3] * 5) is None


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (9, 2.26216), (30, 2.04227), (120, 1.97993)]
)
def test_students_t_is_that_of_the_tables(degrees: int, t: float) -> None:
    assert t_quantile(degrees) == pytest.approx(t, rel=1e-5)
    assert t_tails(t, degrees) == t_tails(-t, degrees) == pytest.approx(0.05, rel=1e-4)


def test_students_t_nears_the_normal_without_a_jump() -> None:
    assert t_quantile(200) > t_quantile(201) > t_quantile(100_000) == pytest.approx(1.95999, abs=1e-5)
    assert t_tails(t_quantile(5_000), 5_000) == pytest.approx(0.05, rel=1e-6)


def test_paired_t_test_is_the_textbooks() -> None:
    assert paired_t_test([0, 0, 1, 1]) == pytest.approx(t_tails(math.sqrt(3), 3))
    assert paired_t_test([1, -1]) == pytest.approx(1.0)
    assert paired_t_test([0.5]) is None
    assert paired_t_test([0.5, 0.5]) is None


def test_bootstrap_is_repeatable_and_draws_whole_problems() -> None:
    sums, counts = [8.0] * 50 + [0.0] * 50, [8] * 100
    interval = cluster_bootstrap(sums, counts)
    assert interval is not None
    assert interval == cluster_bootstrap(sums, counts)
    varied = [float(i % 9) for i in range(100)]
    assert cluster_bootstrap(varied, counts) != cluster_bootstrap(varied, counts, seed=1)
    # 800 independent samples would give 0.5 ± 0.035; 100 problems that agree in themselves give 0.5 ± 0.098.
    assert (interval.low, interval.high) == pytest.approx((0.402, 0.598), abs=0.02)


def test_bootstrap_weighs_problems_by_their_samples() -> None:
    interval = cluster_bootstrap([30.0, 0.0], [30, 10])
    assert interval is not None
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_bootstrap_says_nothing_of_problems_that_all_score_the_same() -> None:
    assert cluster_bootstrap([9.0, 9.0], [10, 10]) is None
    assert cluster_bootstrap([8.0], [10]) is None

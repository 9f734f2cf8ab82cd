"""Two jobs compared: what may be said where both drew the same number of samples, and where they did not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.results.comparison import compare
from pipeline.results.intervals import paired_t_test
from pipeline.results.reports import Comparison, PairedTest, ProblemScore
from tests.unit.results.test_page import cost


def problem(index: int, num_right: int, num_scored: int) -> ProblemScore:
    return ProblemScore(
        job_id=1, problem_id=index, problem=f"p{index}", num_scored=num_scored, num_right=num_right,
        score=num_right / num_scored, mean_output_tokens=10.0,
    )  # fmt: skip


def compared(*pairs: tuple[tuple[int, int], tuple[int, int]], **more: Any) -> Comparison:
    """Of each problem: right and scored samples in job 1, the same in job 2."""
    scores = [(problem(i, *a), problem(i, *b)) for i, (a, b) in enumerate(pairs)]
    return replace(compare(scores, job_a=1, job_b=2, cost_a=cost(1), cost_b=cost(2)), **more)


def test_problems_change_sides_where_sample_counts_agree() -> None:
    found = compared(((0, 2), (2, 2)), ((2, 2), (0, 2)), ((1, 2), (2, 2)), ((1, 1), (1, 1)))
    assert found.gained is not None
    assert found.lost is not None
    assert [change.problem for change in found.gained] == ["p0"]
    assert [change.problem for change in found.lost] == ["p1"]
    assert (found.num_b_better, found.num_a_better, found.num_equal) == (2, 1, 1)
    assert (found.test, found.p_value) == (PairedTest.SIGN, 1.0)
    assert (found.num_scored_a, found.num_scored_b) == (7, 7)


def test_nothing_is_gained_where_sample_counts_differ() -> None:
    """One sample of a model that is right half of the time loses to, or beats, the mean of four: chance alone."""
    found = compared(((1, 1), (2, 4)), ((0, 1), (2, 4)), ((1, 1), (3, 4)))
    assert (found.gained, found.lost) == (None, None)
    assert (found.num_b_better, found.num_a_better, found.num_equal) == (None, None, None)
    assert found.test is PairedTest.T
    assert found.p_value == pytest.approx(paired_t_test([-0.5, 0.5, -0.25]))
    assert found.accuracy_a == pytest.approx(2 / 3)
    assert found.accuracy_b == pytest.approx(7 / 12)
    assert (found.num_scored_a, found.num_scored_b) == (3, 12)


def test_one_problem_with_more_samples_is_enough() -> None:
    assert compared(((1, 2), (1, 2)), ((1, 2), (0, 1))).gained is None


def test_comparison_of_nothing() -> None:
    found = compared()
    assert (found.num_problems, found.p_value, found.gained, found.difference_low) == (0, None, (), None)

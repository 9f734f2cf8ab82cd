"""Gain at equal tokens and Pareto fronts, against numbers that are worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.experiments.comparing import Measured, difference, gain_over_random, mean_per_sample, pareto_front
from pipeline.experiments.results import ProblemSums
from pipeline.results.intervals import paired_interval


def measured(job_id: int, scores: dict[str, float], large: int) -> Measured:
    """Two samples of each problem, each with so many tokens of large."""
    return Measured(
        job_id=job_id,
        problems={
            name: ProblemSums(
                problem=name, num_scored=2, score=2 * score, small=20, large=2 * large, inserted=0
            )
            for name, score in scores.items()
        },
    )  # fmt: skip


SMALL = measured(1, {"a": 0.0, "b": 0.0, "c": 1.0, "d": 0.0}, 0)
RANDOM = measured(2, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}, 40)
ROW = measured(3, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, 30)


def test_random_is_read_between_two_jobs_at_the_rows_own_tokens() -> None:
    """At 30 of 40 tokens random's line is a quarter of small alone and three quarters of its job, by problem."""
    found = gain_over_random(ROW, [SMALL, RANDOM], RANDOM)
    assert found is not None
    assert (found.jobs, found.ratio) == ((1, 2), 1.0)
    by_problem = [1 - 0.75, 1.0, 0.0, 1 - 0.75]
    assert found.difference.mean == pytest.approx(sum(by_problem) / 4)
    assert found.difference.interval == paired_interval(by_problem)
    assert found.difference.num_problems == 4


def test_a_job_with_just_as_many_tokens_stands_alone() -> None:
    equal = measured(4, {"a": 0.0, "b": 1.0, "c": 1.0, "d": 1.0}, 30)
    found = gain_over_random(ROW, [SMALL, equal, RANDOM], equal)
    assert found is not None
    assert (found.jobs, found.difference.mean) == ((4,), 0.25)


def test_beyond_the_line_the_own_control_stands_for_it_with_its_ratio() -> None:
    fewer = measured(4, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0}, 24)
    found = gain_over_random(ROW, [SMALL, fewer], fewer)
    assert found is not None
    assert (found.jobs, found.ratio, found.difference.mean) == ((4,), 0.8, 0.5)
    assert gain_over_random(ROW, [SMALL, fewer], None) is None  # another's control is too far away
    near = measured(5, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0}, 29)
    assert gain_over_random(ROW, [SMALL, near], None) is not None
    assert gain_over_random(ROW, [], None) is None


def test_problems_that_one_lacks_are_left_out() -> None:
    part = measured(4, {"a": 0.0, "d": 1.0}, 30)
    found = difference(ROW, part)
    assert found is not None
    assert (found.mean, found.num_problems) == (0.5, 2)
    assert difference(ROW, measured(5, {"z": 1.0}, 1)) is None


def test_tokens_per_sample_come_with_the_interval_of_whole_problems() -> None:
    uneven = Measured(
        job_id=1,
        problems={
            name: ProblemSums(problem=name, num_scored=n, score=0.0, small=0, large=large, inserted=0)
            for name, n, large in (("a", 1, 10), ("b", 3, 90), ("c", 2, 20))
        },
    )
    found = mean_per_sample(uneven, [problem.large for problem in uneven.problems.values()])
    assert found.mean == 20  # 120 tokens of 6 samples
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (10, 30)  # a alone, b alone: each 1 of 27 draws


POINTS = st.lists(st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)), max_size=8)


@given(POINTS)
def test_front_holds_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    """The front by another way: by rising cost, what is worth more than all that cost less, the best of each cost."""
    on_front = set()
    best = -1.0
    for cost in sorted({cost for cost, _ in points}):
        worth = max(worth for own, worth in points if own == cost)
        if worth > best:
            on_front.add((cost, worth))
            best = worth
    assert pareto_front(points) == [point in on_front for point in points]

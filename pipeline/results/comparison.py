"""Compares two jobs problem by problem: pure arithmetic on what the database gave."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.results.intervals import paired_interval, paired_t_test, sign_test
from pipeline.results.reports import Comparison, JobCost, PairedTest, ProblemChange, ProblemScore

_RIGHT = 0.5


def compare(
    pairs: Sequence[tuple[ProblemScore, ProblemScore]],
    *,
    job_a: int,
    job_b: int,
    cost_a: JobCost,
    cost_b: JobCost,
    caveats: tuple[str, ...] = (),
) -> Comparison:
    """pairs: each problem that is scored in both jobs, as job_a and as job_b have it; it counts once.

    Where a problem has more scored samples in one job than in the other, nothing is said of which job does better on
    how many problems: a mean of few samples is 0 or 1 more often than one of many, whatever the models can do.
    """
    differences = [b.score - a.score for a, b in pairs]
    interval = paired_interval(differences)
    is_even = all(a.num_scored == b.num_scored for a, b in pairs)
    num_b_better = sum(difference > 0 for difference in differences)
    num_a_better = sum(difference < 0 for difference in differences)
    tokens_a = _mean([a.mean_output_tokens for a, _ in pairs])
    tokens_b = _mean([b.mean_output_tokens for _, b in pairs])
    return Comparison(
        job_a=job_a,
        job_b=job_b,
        num_problems=len(pairs),
        accuracy_a=_mean([a.score for a, _ in pairs]),
        accuracy_b=_mean([b.score for _, b in pairs]),
        difference=_mean(differences),
        difference_low=interval.low if interval else None,
        difference_high=interval.high if interval else None,
        num_b_better=num_b_better if is_even else None,
        num_a_better=num_a_better if is_even else None,
        num_equal=len(pairs) - num_a_better - num_b_better if is_even else None,
        mean_output_tokens_a=tokens_a,
        mean_output_tokens_b=tokens_b,
        token_ratio=tokens_b / tokens_a if tokens_a and tokens_b is not None else None,
        num_scored_a=sum(a.num_scored for a, _ in pairs),
        num_scored_b=sum(b.num_scored for _, b in pairs),
        test=PairedTest.SIGN if is_even else PairedTest.T,
        p_value=sign_test(num_b_better, num_a_better) if is_even else paired_t_test(differences),
        gained=tuple(_change(a, b) for a, b in pairs if a.score < _RIGHT <= b.score) if is_even else None,
        lost=tuple(_change(a, b) for a, b in pairs if b.score < _RIGHT <= a.score) if is_even else None,
        cost_a=cost_a,
        cost_b=cost_b,
        caveats=caveats,
    )


def _change(a: ProblemScore, b: ProblemScore) -> ProblemChange:
    return ProblemChange(
        problem=a.problem,
        score_a=a.score,
        score_b=b.score,
        mean_output_tokens_a=a.mean_output_tokens,
        mean_output_tokens_b=b.mean_output_tokens,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """None where there is none, and where one is not known: its row is damaged."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None

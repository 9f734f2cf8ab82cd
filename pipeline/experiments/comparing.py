"""Compares the rows of an experiment: gain over random at equal large tokens, and the Pareto front. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.experiments.results import Difference, Estimate, Gain, ProblemSums
from pipeline.results.intervals import cluster_bootstrap, paired_interval

NEAR = 0.05
"""A control whose large tokens differ by less than this share may stand alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A job with its scored problems, at least one."""

    job_id: int
    problems: Mapping[str, ProblemSums]

    @property
    def num_scored(self) -> int:
        return sum(problem.num_scored for problem in self.problems.values())

    @property
    def large_tokens(self) -> float:
        """Computed by large, per scored sample."""
        return sum(problem.large for problem in self.problems.values()) / self.num_scored

    @property
    def total_tokens(self) -> float:
        """Computed by both models, per scored sample."""
        return sum(problem.large + problem.small for problem in self.problems.values()) / self.num_scored


def mean_per_sample(measured: Measured, sums: Sequence[float]) -> Estimate:
    """A mean over samples with the interval of drawing whole problems. sums: of each problem, in their order."""
    counts = [problem.num_scored for problem in measured.problems.values()]
    return Estimate(mean=math.fsum(sums) / measured.num_scored, interval=cluster_bootstrap(sums, counts))


def difference(row: Measured, other: Measured) -> Difference | None:
    """The accuracy of a row less that of another, each problem counting once; None where they share no problem."""
    return _difference(row, [(1.0, other)])


def _difference(row: Measured, others: Sequence[tuple[float, Measured]]) -> Difference | None:
    """The row less a mean of others with weights that add up to 1."""
    shared = [name for name in row.problems if all(name in other.problems for _, other in others)]
    differences = [
        row.problems[name].mean_score - math.fsum(weight * other.problems[name].mean_score for weight, other in others)
        for name in shared
    ]
    if not differences:
        return None
    return Difference(
        mean=math.fsum(differences) / len(differences),
        interval=paired_interval(differences),
        num_problems=len(differences),
    )


def gain_over_random(row: Measured, curve: Sequence[Measured], control: Measured | None) -> Gain | None:
    """What a row is better than random takeovers with as many tokens of large.

    curve: random's jobs and small alone, the ends of its line. Random's accuracy is read on the line between the two
    that have just fewer and just more large tokens than the row. Where there are not two, the row's own control stands
    for it, else the nearest job whose large tokens differ by less than NEAR. None where there is neither.
    """
    wanted = row.large_tokens
    fewer = [job for job in curve if job.large_tokens <= wanted]
    more = [job for job in curve if job.large_tokens >= wanted]
    if fewer and more:
        low, high = max(fewer, key=_large), min(more, key=_large)
        return _between(row, low, high)
    nearest = control or min(curve, key=lambda job: abs(job.large_tokens - wanted), default=None)
    if nearest is None or not wanted:
        return None
    ratio = nearest.large_tokens / wanted
    if control is None and abs(ratio - 1) > NEAR:
        return None
    found = difference(row, nearest)
    return None if found is None else Gain(difference=found, jobs=(nearest.job_id,), ratio=ratio)


def _between(row: Measured, low: Measured, high: Measured) -> Gain | None:
    width = high.large_tokens - low.large_tokens
    weight = (row.large_tokens - low.large_tokens) / width if width else 0.0
    parts = [(share, job) for share, job in ((1 - weight, low), (weight, high)) if share]
    found = _difference(row, parts)
    return None if found is None else Gain(difference=found, jobs=tuple(job.job_id for _, job in parts), ratio=1.0)


def _large(job: Measured) -> float:
    return job.large_tokens


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each point (cost, worth) whether no other costs no more and is worth no less, and differs in one of them."""
    return [
        not any(
            cost <= own_cost and worth >= own_worth and (cost, worth) != (own_cost, own_worth) for cost, worth in points
        )
        for own_cost, own_worth in points
    ]

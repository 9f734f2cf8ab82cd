"""Calibrates a pilot: what each statistic says of right and wrong samples, and the thresholds for wanted shares."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.calibration.steps import USUAL_RULE, StepRule, read_steps
from pipeline.calibration.thresholds import (
    Separation,
    Side,
    cut_at_share,
    separation,
    share_beyond,
    threshold_intervals,
)
from pipeline.policies.reading.labels import NO_ANSWER
from pipeline.results.intervals import Interval, cluster_bootstrap
from pipeline.results.stored import StoredSample
from pipeline.samples import Author, ModelRole

ASIDE = "aside:"
"""What the name of a statistic begins with that is the value of asides; their purpose follows."""


class ShareOf(StrEnum):
    """What a wanted share is a share of."""

    STEPS = "steps"  # the places where the statistic has a value
    TOKENS = "tokens"  # the sample's output tokens, so many by large


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotSample:
    """A complete sample of a pilot. values: of each statistic and author, one for each place that has it."""

    problem: str
    score: float | None
    num_tokens: int
    values: Mapping[tuple[str, ModelRole], tuple[float, ...]]
    step_tokens: Mapping[ModelRole, tuple[int, ...]]


def read_pilot_sample(sample: StoredSample, score: float | None, rule: StepRule = USUAL_RULE) -> PilotSample:
    """A stored sample with the statistics of its steps, and the values that its asides were decided by."""
    values: dict[tuple[str, ModelRole], list[float]] = defaultdict(list)
    lengths: dict[ModelRole, list[int]] = defaultdict(list)
    for step in read_steps(sample, rule):
        role = ModelRole(step.author.value)
        for name, value in step.values.items():
            values[name, role].append(value)
        if step.num_tokens is not None:
            lengths[role].append(step.num_tokens)
    for aside in sample.asides:
        if aside.value is not None and aside.outcome != NO_ANSWER and aside.author is not Author.INSERTED:
            values[f"{ASIDE}{aside.purpose}", ModelRole(aside.author.value)].append(aside.value)
    return PilotSample(
        problem=sample.problem,
        score=score,
        num_tokens=sum(segment.num_kept for segment in sample.segments),
        values={key: tuple(found) for key, found in values.items()},
        step_tokens={role: tuple(found) for role, found in lengths.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """What one threshold would do, had the pilot been run with it.

    wanted: the share that was asked for. share: of the statistic's places that are on its side. low, high: the 95 %
    interval of the threshold for the wanted share. takeovers: per sample. large_tokens: of these, per sample.
    """

    wanted: float
    share: float
    threshold: float
    low: float
    high: float
    takeovers: float
    takeovers_low: float | None
    takeovers_high: float | None
    large_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticReport:
    """One statistic over a pilot.

    places: a step each, or an aside. quantiles: of 5, 25, 50, 75 and 95 % of the values. separation: of the samples'
    means by outcome; None where all samples are right, or all wrong. thresholds: of the shares that can be had.
    """

    name: str
    role: ModelRole
    num_places: int
    places_per_sample: float
    mean: float
    least: float
    greatest: float
    quantiles: tuple[float, ...]
    separation: Separation | None
    side: Side
    thresholds: tuple[Threshold, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a pilot gives.

    field: what a threshold is set by, e.g. "policy.threshold". step_tokens: how long a step of large is taken to be.
    caveats: what speaks against the thresholds.
    """

    job_id: int
    policy: str | None
    field: str
    num_problems: int
    num_samples: int
    num_scored: int
    accuracy: float | None
    mean_tokens: float
    step_tokens: float
    share_of: ShareOf
    statistics: tuple[StatisticReport, ...]
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a pilot.

    shares: wanted ones, each in (0, 1). step_tokens: how long a step of large is; None: as the pilot's mean step.
    statistic: None: all there are. side: None: the side on which wrong samples are.
    """

    shares: Sequence[float]
    share_of: ShareOf = ShareOf.STEPS
    step_tokens: float | None = None
    statistic: str | None = None
    side: Side | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """The complete samples of a pilot job, with their problems numbered."""

    job_id: int
    samples: tuple[PilotSample, ...]
    problems: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        names = dict.fromkeys(sample.problem for sample in self.samples)
        object.__setattr__(self, "problems", {name: number for number, name in enumerate(names)})

    @property
    def statistics(self) -> tuple[tuple[str, ModelRole], ...]:
        """Those there are; of a pair's job small's alone, where both have a statistic."""
        found = {key for sample in self.samples for key, values in sample.values.items() if values}
        return tuple(
            (name, role)
            for name, role in sorted(found)
            if role is ModelRole.SMALL or (name, ModelRole.SMALL) not in found
        )

    @property
    def mean_tokens(self) -> float:
        return _mean([sample.num_tokens for sample in self.samples])

    @property
    def mean_step_tokens(self) -> float | None:
        lengths = [length for sample in self.samples for found in sample.step_tokens.values() for length in found]
        return _mean(lengths) if lengths else None

    @property
    def accuracy(self) -> float | None:
        scores = [sample.score for sample in self.samples if sample.score is not None]
        return _mean(scores) if scores else None


def calibrate(pilot: Pilot, question: Question) -> Iterator[StatisticReport]:
    """Each statistic that was asked for and is there, in alphabetical order."""
    for name, role in pilot.statistics:
        if question.statistic in (None, name):
            yield _report(pilot, name, role, question)


def step_tokens_of(pilot: Pilot, question: Question) -> float:
    """How long a step of large is taken to be."""
    return question.step_tokens or pilot.mean_step_tokens or 1.0


def _report(pilot: Pilot, name: str, role: ModelRole, question: Question) -> StatisticReport:
    by_sample = [(sample, sample.values.get((name, role), ())) for sample in pilot.samples]
    values = [value for _, found in by_sample for value in found]
    problems = [pilot.problems[sample.problem] for sample, found in by_sample for _ in found]
    separated = _separation(pilot, by_sample)
    side = question.side or (separated and (Side.ABOVE if separated.auc >= 0.5 else Side.BELOW)) or Side.ABOVE
    per_sample = len(values) / len(pilot.samples)
    return StatisticReport(
        name=name,
        role=role,
        num_places=len(values),
        places_per_sample=per_sample,
        mean=_mean(values),
        least=min(values),
        greatest=max(values),
        quantiles=_quantiles(values),
        separation=separated,
        side=side,
        thresholds=tuple(_thresholds(pilot, by_sample, values, problems, side, question)),
    )


def _separation(pilot: Pilot, by_sample: Iterable[tuple[PilotSample, tuple[float, ...]]]) -> Separation | None:
    scored = [(sample, found) for sample, found in by_sample if sample.score is not None and found]
    if not scored:
        return None
    return separation(
        [_mean(found) for _, found in scored],
        [(sample.score or 0.0) >= 0.5 for sample, _ in scored],
        [pilot.problems[sample.problem] for sample, _ in scored],
    )


def _thresholds(
    pilot: Pilot,
    by_sample: Sequence[tuple[PilotSample, tuple[float, ...]]],
    values: Sequence[float],
    problems: Sequence[int],
    side: Side,
    question: Question,
) -> Iterator[Threshold]:
    length = step_tokens_of(pilot, question)
    per_sample = len(values) / len(pilot.samples)
    wanted = [
        share if question.share_of is ShareOf.STEPS else share * pilot.mean_tokens / length / per_sample
        for share in question.shares
    ]
    possible = [(asked, share) for asked, share in zip(question.shares, wanted, strict=True) if share < 1]
    intervals = threshold_intervals(values, problems, [share for _, share in possible], side) if possible else []
    for (asked, share), interval in zip(possible, intervals, strict=True):
        cut = cut_at_share(values, share, side)
        if cut is None:
            return
        takeovers = _takeovers(pilot, by_sample, cut.threshold, side)
        yield Threshold(
            wanted=asked,
            share=cut.share,
            threshold=cut.threshold,
            low=interval.low,
            high=interval.high,
            takeovers=cut.share * per_sample,
            takeovers_low=takeovers.low if takeovers else None,
            takeovers_high=takeovers.high if takeovers else None,
            large_tokens=cut.share * per_sample * length,
        )


def _takeovers(
    pilot: Pilot, by_sample: Sequence[tuple[PilotSample, tuple[float, ...]]], threshold: float, side: Side
) -> Interval | None:
    """The interval of the mean number of places beyond a threshold, per sample."""
    sums, counts = [0.0] * len(pilot.problems), [0] * len(pilot.problems)
    for sample, found in by_sample:
        number = pilot.problems[sample.problem]
        counts[number] += 1
        sums[number] += share_beyond(found, threshold, side) * len(found) if found else 0.0
    return cluster_bootstrap(sums, counts)


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    import numpy as np

    return tuple(map(float, np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

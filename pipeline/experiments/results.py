"""Result types of an experiment: its jobs, what each problem gave in them, and the report."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.results.intervals import Interval
from pipeline.results.reports import BudgetPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentJob:
    """A row of an experiment. control_of: the job that it is matched to; None: it is no control."""

    name: str
    job_id: int
    control_of: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSums:
    """What the scored samples of a problem add up to in one job.

    small, large: tokens computed, which are kept, discarded, and written in asides.
    """

    problem: str
    num_scored: int
    score: float
    small: int
    large: int
    inserted: int

    @property
    def mean_score(self) -> float:
        return self.score / self.num_scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval, where it has one."""

    mean: float
    interval: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A difference of accuracies, paired by problem. num_problems: scored in all jobs that it is of."""

    mean: float
    interval: Interval | None
    num_problems: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A row's accuracy less that of random takeovers at equal large tokens.

    jobs: those that random's accuracy comes from: two, read between them at exactly the row's large tokens, or one,
    whose large tokens are ratio times the row's. Of a gain over a cut: the cut's job, and the ratio of all tokens.
    """

    difference: Difference
    jobs: tuple[int, ...]
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensByOwner:
    """Tokens per complete sample. aside_small, aside_large: written in asides and not taken into the text; all that a
    judge writes is."""

    kept_small: float
    kept_large: float
    inserted: float
    discarded_small: float
    discarded_large: float
    aside_small: float
    aside_large: float
    aside_judge: float
    prompt_small: float
    prompt_large: float
    prompt_judge: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReport:
    """One row. large_tokens, total_tokens: computed per scored sample. on_front: no other row has at least its accuracy
    with no more large tokens, or with no more tokens in all (total_front). tokens_per_s: of an engine while it had
    a request of the job; seconds: of the engines of a role, per complete sample, 0 where the row has none."""

    name: str
    job_id: int
    state: str
    policy: str
    control_of: int | None
    is_control: bool
    num_problems: int
    num_scored: int
    accuracy: Estimate | None
    large_tokens: Estimate | None
    total_tokens: Estimate | None
    takeovers: float | None
    owners: TokensByOwner | None
    gain: Gain | None
    gain_over_cut: Gain | None
    against_small: Difference | None
    against_large: Difference | None
    on_front: bool
    on_total_front: bool
    small_tokens_per_s: float | None
    large_tokens_per_s: float | None
    judge_tokens_per_s: float | None
    small_seconds: float | None
    large_seconds: float | None
    judge_seconds: float | None
    shares_engines: bool
    budget_curve: tuple[BudgetPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentReport:
    """An experiment. caveats: what was not matched, and what the numbers are not."""

    name: str
    problem_set: str
    num_problems: int
    num_samples: int
    seed: int | None
    small_model: str | None
    large_model: str | None
    judge_model: str | None
    rows: tuple[RowReport, ...]
    caveats: tuple[str, ...] = ()

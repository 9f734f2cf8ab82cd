"""Result types of the read queries about jobs: progress and statistics; most have the columns of a view."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pipeline.jobs.config import FINAL_JOB_STATES, JobState
from pipeline.results.intervals import Interval
from pipeline.samples import Author


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """A row of the view job_progress; its column comments say what each field means."""

    job_id: int
    name: str
    state: JobState
    samples_total: int
    samples_done: int
    pending: int
    ready: int
    drafting: int
    awaiting_large: int
    assisting: int
    awaiting_judge: int
    judging: int
    finished: int
    graded: int
    failed: int
    cancelled: int
    live_small_workers: int
    live_large_workers: int
    live_judge_workers: int
    samples_ahead: int
    waiting_for: str | None
    takeovers: int
    written_small: int
    written_large: int
    written_judge: int
    seconds: float | None
    priority: int = 0
    unreadable: str | None = None
    """What of its row cannot be read, and why; None where all of it can."""

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_JOB_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """A row of the view job_summary; its column comments say what each field means."""

    job_id: int
    name: str
    policy: str
    small_model: str | None
    large_model: str | None
    judge_model: str | None
    state: JobState
    num_problems: int
    num_samples: int
    samples_total: int
    samples_finished: int
    samples_graded: int
    samples_failed: int
    samples_cancelled: int
    samples_open: int
    num_scored: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    mean_output_tokens: float | None
    p50_output_tokens: float | None
    p90_output_tokens: float | None
    share_large: float | None
    takeovers: int
    takeovers_per_sample: float | None
    tokens_small: int
    tokens_large: int
    tokens_inserted: int
    discarded_small: int
    discarded_large: int
    aside_small: int
    aside_large: int
    aside_judge: int
    taken_small: int
    taken_large: int
    written_small: int
    written_large: int
    written_judge: int
    seconds: float | None
    tokens_per_second: float | None
    tokens_per_second_small: float | None
    tokens_per_second_large: float | None
    tokens_per_second_judge: float | None
    submitted_at: dt.datetime
    first_claimed_at: dt.datetime | None
    finished_at: dt.datetime | None
    unreadable: str | None = None
    """What of its row cannot be read, and why; None where all of it can."""

    @property
    def is_partial(self) -> bool:
        """Whether samples that may still be graded, or were cancelled, are missing: short texts end first."""
        return 0 < self.samples_graded < self.samples_total - self.samples_failed


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLengths:
    """A row of the view token_lengths."""

    job_id: int
    author: str
    finish_reason: str
    verdict: str
    n: int
    mean: float
    sd: float | None
    min: int
    p50: float
    p90: float
    p95: float
    p99: float
    max: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """A row of the view delegation."""

    job_id: int
    author: Author
    trigger: str
    num_segments: int
    num_samples: int
    num_takeovers: int
    tokens: int
    mean_tokens: float
    tokens_discarded: int
    share_cached: float | None
    mean_wait_seconds: float | None
    mean_queue_seconds: float | None
    mean_write_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AsideSummary:
    """A row of the view aside_summary."""

    job_id: int
    purpose: str
    author: Author
    num_asides: int
    num_samples: int
    num_taken: int
    tokens: int
    tokens_taken: int
    mean_value: float | None
    share_cached: float | None
    mean_wait_seconds: float | None
    mean_queue_seconds: float | None
    mean_write_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAtK:
    """A row of the view pass_at_k."""

    job_id: int
    k: int
    num_problems: int
    pass_at_k: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MajAtK:
    """A row of the view maj_at_k."""

    job_id: int
    k: int
    num_problems: int
    maj_at_k: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCost:
    """A row of the view job_cost; its comment says what an engine second is."""

    job_id: int
    num_complete: int
    num_right: int
    engine_seconds_small: float
    engine_seconds_large: float
    engine_seconds_judge: float
    request_seconds_small: float
    request_seconds_large: float
    request_seconds_judge: float
    seconds_per_right: float | None
    small_seconds_per_right: float | None
    large_seconds_per_right: float | None
    judge_seconds_per_right: float | None
    money: float | None
    money_per_right: float | None
    overlapping_jobs: Sequence[int]
    prompt_tokens_small: int
    prompt_tokens_large: int
    prompt_tokens_judge: int
    p50_wall_seconds: float | None
    p95_wall_seconds: float | None
    mean_wait_seconds: float | None
    p95_wait_seconds: float | None
    mean_queue_seconds: float | None
    share_length: float | None
    share_context: float | None
    share_repetition: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimeAlone:
    """A row of the view engine_time_alone; its comment says what is counted."""

    job_id: int
    author: str
    engine_seconds: float
    alone_seconds: float
    tokens: float | None
    tokens_alone: float | None
    tokens_per_alone_second: float | None
    engine_seconds_if_alone: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemScore:
    """A row of the view problem_scores."""

    job_id: int
    problem_id: int
    problem: str
    num_scored: int
    num_right: int
    score: float
    mean_output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBucket:
    """A row of the view length_histogram."""

    job_id: int
    bucket: int
    from_tokens: int
    to_tokens: int
    n: int
    num_right: int
    num_wrong: int
    num_unscored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPoint:
    """A row of the view budget_curve."""

    job_id: int
    budget: int
    num_scored: int
    num_complete: int
    accuracy: float
    mean_output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeoverFlow:
    """A row of the view takeover_flow."""

    job_id: int
    trigger: str
    followed_by: str
    num_takeovers: int
    mean_position: float | None
    mean_tokens: float
    mean_tokens_between: float
    num_scored: int
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegationTenth:
    """A row of the view delegation_progress."""

    job_id: int
    tenth: int
    tokens: float
    tokens_large: float
    share_large: float
    num_takeovers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSummary:
    """A row of the view step_summary."""

    job_id: int
    sentence_class: str
    author: Author
    num_steps: int
    steps_per_sample: float
    tokens: int
    mean_tokens: float
    p50_tokens: float
    p90_tokens: float
    num_taken_over: int
    num_scored: int
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobErrors:
    """A row of the view errors."""

    job_id: int
    stage: str
    error_class: str | None
    num_samples: int
    example_sample_id: int
    example: str | None
    first_at: dt.datetime | None
    last_at: dt.datetime | None
    most_tries: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """A row of the view truncation."""

    job_id: int
    num_complete: int
    num_truncated: int
    share_truncated: float
    num_length: int
    num_context: int
    num_repetition: int
    num_scored_truncated: int
    accuracy_truncated: float | None
    num_scored_eos: int
    accuracy_eos: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobComparison:
    """A row of the view job_comparison."""

    job_a: int
    job_b: int
    num_problems: int
    num_scored_a: int
    num_scored_b: int
    accuracy_a: float | None
    accuracy_b: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    num_b_better: int | None
    num_a_better: int | None
    num_equal: int | None
    mean_output_tokens_a: float | None
    mean_output_tokens_b: float | None
    token_ratio: float | None


class PairedTest(StrEnum):
    """What gave the p value of a comparison."""

    SIGN = "sign"  # exact, over the problems where one job scores higher; McNemar's with one sample per problem
    T = "paired t"  # over all differences; where the jobs have different numbers of samples of a problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemChange:
    """A problem that two jobs do not agree on: most of its samples are right (mean score of at least 0.5) in one."""

    problem: str
    score_a: float
    score_b: float
    mean_output_tokens_a: float
    mean_output_tokens_b: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(JobComparison):
    """Two jobs in full, paired by the problems' ids in their files.

    difference_low, difference_high: 95 %, Student's t over the differences per problem, as in the view.
    p_value: two-sided, of the test. None where no problem differs, or where all differ alike in a t test.
    gained, lost: the problems that changed sides from job_a to job_b. None, as num_b_better and the like, where a
        problem has more scored samples in one job than in the other.
    caveats: why the two are not strictly comparable; empty unless the comparison was asked for anyway.
    """

    test: PairedTest
    p_value: float | None
    gained: tuple[ProblemChange, ...] | None
    lost: tuple[ProblemChange, ...] | None
    cost_a: JobCost
    cost_b: JobCost
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStats:
    """All statistics of one job, each from the view of its name."""

    summary: JobSummary
    bootstrap: Interval | None
    """Of the accuracy, drawing whole problems; None with one sample per problem, where the summary's says all."""
    cost: JobCost
    token_lengths: tuple[TokenLengths, ...]
    length_histogram: tuple[LengthBucket, ...]
    budget_curve: tuple[BudgetPoint, ...]
    delegation: tuple[Delegation, ...]
    delegation_progress: tuple[DelegationTenth, ...]
    takeover_flow: tuple[TakeoverFlow, ...]
    aside_summary: tuple[AsideSummary, ...]
    step_summary: tuple[StepSummary, ...]
    pass_at_k: tuple[PassAtK, ...]
    maj_at_k: tuple[MajAtK, ...]
    truncation: Truncation | None
    """None while no sample is complete."""
    errors: tuple[JobErrors, ...]
    engine_time_alone: tuple[EngineTimeAlone, ...] = ()
    """By role, where other jobs ran meanwhile."""


def plain(report: Any) -> dict[str, Any]:
    """A report as a dict of plain values, as JSON and CSV take them."""
    values = asdict(report)
    if "stored_config" in values:
        config = values.pop("stored_config")
        values["config"] = None if config is None else report.config.model_dump(mode="json")
    return values

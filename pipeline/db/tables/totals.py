"""Tables of what the samples of a job add up to."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.db.base import Base, Floats, Instant, Rows


class JobTotalsRow(Base):
    """The totals of a job that has ended; count_samples and count_cost count the same of one that runs."""

    __tablename__ = "job_totals"

    job_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("jobs.id"), primary_key=True, autoincrement=False, comment="the job"
    )
    counted_at: Mapped[Instant] = mapped_column(comment="when")
    stale_at: Mapped[Instant | None] = mapped_column(
        comment="when a grade was last changed after the count; null: the counts hold"
    )
    samples_total: Mapped[int] = mapped_column(BigInteger, comment="all samples of the job")
    pending: Mapped[int] = mapped_column(BigInteger, comment="by state")
    ready: Mapped[int] = mapped_column(BigInteger, comment="by state")
    drafting: Mapped[int] = mapped_column(BigInteger, comment="by state")
    awaiting_large: Mapped[int] = mapped_column(BigInteger, comment="by state")
    assisting: Mapped[int] = mapped_column(BigInteger, comment="by state")
    awaiting_judge: Mapped[int] = mapped_column(BigInteger, comment="by state")
    judging: Mapped[int] = mapped_column(BigInteger, comment="by state")
    finished: Mapped[int] = mapped_column(BigInteger, comment="by state")
    graded: Mapped[int] = mapped_column(BigInteger, comment="by state")
    failed: Mapped[int] = mapped_column(BigInteger, comment="by state")
    cancelled: Mapped[int] = mapped_column(BigInteger, comment="by state")
    num_length: Mapped[int] = mapped_column(BigInteger, comment="complete samples ended by the job's max_tokens")
    num_context: Mapped[int] = mapped_column(BigInteger, comment="complete samples ended by the model's context")
    num_repetition: Mapped[int] = mapped_column(BigInteger, comment="complete samples ended by the loop guard")
    num_scored: Mapped[int] = mapped_column(BigInteger, comment="graded samples that have a score")
    num_right: Mapped[int] = mapped_column(BigInteger, comment="of these, with a score of at least 0.5")
    problems_scored: Mapped[int] = mapped_column(BigInteger, comment="problems with a scored sample")
    takeovers: Mapped[int] = mapped_column(BigInteger, comment="times the large model was called in")
    tokens_small: Mapped[int] = mapped_column(BigInteger, comment="kept, written by the small model")
    tokens_large: Mapped[int] = mapped_column(BigInteger, comment="kept, written by the large model")
    tokens_inserted: Mapped[int] = mapped_column(BigInteger, comment="kept, put in by the policy")
    discarded_small: Mapped[int] = mapped_column(BigInteger, comment="written by the small model, not kept")
    discarded_large: Mapped[int] = mapped_column(BigInteger, comment="written by the large model, not kept")
    aside_small: Mapped[int] = mapped_column(BigInteger, comment="written in asides by the small model")
    aside_large: Mapped[int] = mapped_column(BigInteger, comment="written in asides by the large model")
    aside_judge: Mapped[int] = mapped_column(BigInteger, comment="written in asides by the judge")
    taken_small: Mapped[int] = mapped_column(
        BigInteger, comment="of aside_small, put into the text: in tokens_small too"
    )
    taken_large: Mapped[int] = mapped_column(
        BigInteger, comment="of aside_large, put into the text: in tokens_large too"
    )
    prompt_tokens_small: Mapped[int] = mapped_column(
        BigInteger, comment="of the small model's prompts, computed: not found in the prefix cache"
    )
    prompt_tokens_large: Mapped[int] = mapped_column(
        BigInteger, comment="of the large model's prompts, computed: not found in the prefix cache"
    )
    prompt_tokens_judge: Mapped[int] = mapped_column(
        BigInteger, comment="of the judge's prompts, computed: not found in the prefix cache"
    )
    accuracy: Mapped[float | None] = mapped_column(comment="mean score of the scored samples")
    score_variance: Mapped[float | None] = mapped_column(comment="variance of their scores")
    score_squares: Mapped[float | None] = mapped_column(
        comment="sum over problems of the squared sum of deviations from the accuracy"
    )
    mean_output_tokens: Mapped[float | None] = mapped_column(comment="mean kept tokens of the complete samples")
    p50_output_tokens: Mapped[float | None] = mapped_column(comment="median of the same")
    p90_output_tokens: Mapped[float | None] = mapped_column(comment="90th percentile of the same")
    takeovers_per_sample: Mapped[float | None] = mapped_column(comment="mean over the complete samples")
    p50_wall_seconds: Mapped[float | None] = mapped_column(
        comment="from admission to complete text, median of the complete samples"
    )
    p95_wall_seconds: Mapped[float | None] = mapped_column(comment="95th percentile of the same")
    engine_seconds_small: Mapped[float | None] = mapped_column(
        comment="time in which a small worker had a request of this job, summed over the workers"
    )
    engine_seconds_large: Mapped[float | None] = mapped_column(
        comment="time in which a large worker had a request of this job, summed over the workers"
    )
    engine_seconds_judge: Mapped[float | None] = mapped_column(
        comment="time in which a judge worker had a request of this job, summed over the workers"
    )
    request_seconds_small: Mapped[float | None] = mapped_column(
        comment="sum of the durations of the small model's requests"
    )
    request_seconds_large: Mapped[float | None] = mapped_column(
        comment="sum of the durations of the large model's requests"
    )
    request_seconds_judge: Mapped[float | None] = mapped_column(comment="sum of the durations of the judge's requests")
    mean_wait_seconds: Mapped[float | None] = mapped_column(
        comment="from when it could be claimed to the claim, all segments of a sample together, mean over samples"
    )
    p95_wait_seconds: Mapped[float | None] = mapped_column(comment="95th percentile of the same")
    mean_queue_seconds: Mapped[float | None] = mapped_column(
        comment="inside the engines before their first work, all requests of a sample together, mean over samples"
    )


class RollupRow(Base):
    """What the samples of a part of a job add up to, kept while all are idle: pending, or in a final state.

    Each JSON column holds rows of a type of sql/rollups/, where its columns are explained.
    """

    __tablename__ = "rollups"
    __table_args__ = (Index("ix_rollups_invalid", "job_id", postgresql_where=text("refreshed_at IS NULL")),)

    job_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("jobs.id"), primary_key=True, autoincrement=False, comment="the job"
    )
    first_problem: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, comment="least problem id"
    )
    last_problem: Mapped[int] = mapped_column(BigInteger, comment="greatest problem id")
    refreshed_at: Mapped[Instant | None] = mapped_column(
        comment="since when the sums hold; null: they do not, its samples are to be looked at"
    )
    changed_at: Mapped[Instant | None] = mapped_column(
        comment="when a sample of it last stopped being idle, or changed while it was"
    )
    samples: Mapped[dict[str, Any] | None] = mapped_column(comment="type sample_sums")
    problems: Mapped[dict[str, Any] | None] = mapped_column(comment="type problem_sums")
    cost: Mapped[dict[str, Any] | None] = mapped_column(comment="type cost_sums, but for waits")
    walls: Mapped[Floats | None] = mapped_column(
        comment="seconds from admission to complete text, of each complete sample"
    )
    waits: Mapped[Floats | None] = mapped_column(
        comment="seconds from when it could be claimed to the claim, all claims of a sample together"
    )
    busy: Mapped[Rows | None] = mapped_column(comment="type busy_part, by worker and author")
    delegation: Mapped[Rows | None] = mapped_column(comment="type delegation_part, by author and trigger")
    flow: Mapped[Rows | None] = mapped_column(comment="type flow_part, by trigger and what followed")
    tenths: Mapped[Rows | None] = mapped_column(comment="type tenth_part, by tenth")
    passes: Mapped[Rows | None] = mapped_column(comment="type pass_part, by scored and right samples of a problem")
    votes: Mapped[Rows | None] = mapped_column(comment="type vote_part, by number of votes")
    steps: Mapped[Rows | None] = mapped_column(comment="type step_part, by class, author and length")


class LengthCountRow(Base):
    """How many of a job's samples in valid rollups are so long; rows of one key add up."""

    __tablename__ = "length_counts"
    __table_args__ = (
        Index(
            "ix_length_counts_base",
            "job_id",
            "author",
            "finish_reason",
            "verdict",
            "tokens",
            unique=True,
            postgresql_where=text("is_base"),
        ),
        Index("ix_length_counts_job_id", "job_id", "author"),
        Index("ix_length_counts_added", "job_id", postgresql_where=text("NOT is_base")),
    )

    job_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("jobs.id"), comment="the job")
    author: Mapped[str] = mapped_column(comment="whose tokens: all, small, large or inserted")
    finish_reason: Mapped[str] = mapped_column(comment="why their texts ended")
    verdict: Mapped[str] = mapped_column(comment="right, wrong or unscored")
    tokens: Mapped[int] = mapped_column(comment="how long they are")
    n: Mapped[int] = mapped_column(BigInteger, comment="samples added, negative for samples taken out")
    score: Mapped[Decimal] = mapped_column(comment="sum of their scores, negative for samples taken out")
    is_base: Mapped[bool] = mapped_column(
        server_default="false", comment="the one row of its key that others are added to"
    )

    __mapper_args__ = {  # noqa: RUF012  (SQLAlchemy's own protocol; the table has no key)
        "primary_key": ["job_id", "author", "finish_reason", "verdict", "tokens"]
    }

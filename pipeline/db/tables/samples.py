"""Tables of samples and their grades."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Computed,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.db.base import Base, Id, Instant, choice
from pipeline.db.states import ADMITTED, COMPLETE, FAILED, FINAL, FINISHED, IN_WORK, OPEN, PENDING, PHASE, WRITING
from pipeline.samples import (
    SUSPECT_AFTER,
    ErrorClass,
    FinishReason,
    GradeStatus,
    ModelRole,
    SampleState,
)

_OPEN = f"state NOT IN {FINAL}"


class SampleRow(Base):
    """One solution drawn for one problem of one job. Its epoch fences every write."""

    __tablename__ = "samples"
    __table_args__ = (
        UniqueConstraint("job_id", "problem_id", "sample_index"),
        CheckConstraint(
            f"(state IN {WRITING}) = (holder_id IS NOT NULL)",
            name="holder",
        ),
        CheckConstraint(
            f"state NOT IN {COMPLETE} OR finish_reason IS NOT NULL",
            name="finish_reason_set",
        ),
        CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="error"),
        CheckConstraint(f"error_class IN ({', '.join(repr(kind.value) for kind in ErrorClass)})", name="error_class"),
        CheckConstraint(f"({_OPEN}) = (ended_at IS NULL)", name="ended_at"),
        Index(
            "ix_samples_pending",
            "job_id",
            "id",
            postgresql_where=text(PENDING),
        ),
        Index("ix_samples_open", "job_id", postgresql_where=text(OPEN)),
        Index("ix_samples_in_work", "job_id", "phase", postgresql_where=text(IN_WORK)),
        Index(
            "ix_samples_suspect",
            "id",
            postgresql_where=text(f"num_rescues >= {SUSPECT_AFTER} AND {ADMITTED}"),
        ),
        Index("ix_samples_finished", "finished_at", postgresql_where=text(FINISHED)),
        Index("ix_samples_failed", "job_id", postgresql_where=text(FAILED)),
        # Room on each page, so that the next version of a row lies beside it and no index has to name it.
        {"postgresql_with": {"fillfactor": 80}},
    )

    id: Mapped[Id] = mapped_column(comment="given by the database")
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), comment="the job")
    problem_id: Mapped[int] = mapped_column(ForeignKey("problems.id"), comment="the problem")
    sample_index: Mapped[int] = mapped_column(comment="0-based among the samples of its problem")
    state: Mapped[SampleState] = mapped_column(
        choice(SampleState, "state"), server_default="pending", comment="pipeline.samples.SampleState"
    )
    phase: Mapped[str] = mapped_column(
        String(24),
        Computed(PHASE, persisted=True),
        comment="admitted while it waits for a model or a worker has it, else its state; for indexes",
    )
    epoch: Mapped[int] = mapped_column(server_default="0", comment="raised by every claim and rescue; fences writes")
    holder_id: Mapped[int | None] = mapped_column(ForeignKey("workers.id"), comment="the worker that writes now")
    small_worker_id: Mapped[int | None] = mapped_column(
        ForeignKey("workers.id"),
        comment="the small worker whose cache holds the context",
    )
    large_worker_id: Mapped[int | None] = mapped_column(
        ForeignKey("workers.id"), comment="the large worker whose cache holds the context"
    )
    judge_worker_id: Mapped[int | None] = mapped_column(
        ForeignKey("workers.id"), comment="the judge worker whose cache holds the context"
    )
    runnable_at: Mapped[Instant | None] = mapped_column(
        comment="since when it waits, or waited before its claim, for a worker or a grader"
    )
    published_at: Mapped[Instant | None] = mapped_column(comment="when a message for its present state was last due")
    num_rescues: Mapped[int] = mapped_column(
        server_default="0", comment="times its worker died with it since its last commit or part"
    )
    trial_epoch: Mapped[int | None] = mapped_column(
        comment="of the claim under which it last had an engine to itself, as a suspect"
    )
    part_tokens: Mapped[int] = mapped_column(
        server_default="0", comment="of its open segment, stored in segment_parts while its request ran"
    )
    num_attempts: Mapped[int] = mapped_column(
        server_default="0", comment="times an engine refused it for the moment since its last commit"
    )
    not_before: Mapped[Instant | None] = mapped_column(comment="to be claimed no earlier: the delay after a failure")
    max_tokens: Mapped[int | None] = mapped_column(comment="a larger budget than its job's; null: the job's")
    next_role: Mapped[ModelRole | None] = mapped_column(
        choice(ModelRole, "next_role"), comment="who writes next; null: nobody has written, the job's first_role opens"
    )
    policy_state: Mapped[dict[str, Any] | None] = mapped_column(
        comment="of the policy, after the last segment or aside"
    )
    next_request: Mapped[dict[str, Any] | None] = mapped_column(
        comment="what the policy asks next (pipeline.policies.requests); null: nothing, or nobody has written"
    )
    num_segments: Mapped[int] = mapped_column(server_default="0", comment="pieces of its text")
    num_takeovers: Mapped[int] = mapped_column(
        server_default="0", comment="times the large model was called in: its segments with takes_over"
    )
    tokens_small: Mapped[int] = mapped_column(server_default="0", comment="kept, written by the small model")
    tokens_large: Mapped[int] = mapped_column(server_default="0", comment="kept, written by the large model")
    tokens_inserted: Mapped[int] = mapped_column(server_default="0", comment="kept, put in by the policy")
    discarded_small: Mapped[int] = mapped_column(server_default="0", comment="written by the small model, not kept")
    discarded_large: Mapped[int] = mapped_column(server_default="0", comment="written by the large model, not kept")
    num_asides: Mapped[int] = mapped_column(server_default="0", comment="pieces written on side branches")
    aside_small: Mapped[int] = mapped_column(server_default="0", comment="written in asides by the small model")
    aside_large: Mapped[int] = mapped_column(server_default="0", comment="written in asides by the large model")
    aside_judge: Mapped[int] = mapped_column(server_default="0", comment="written in asides by the judge")
    taken_small: Mapped[int] = mapped_column(
        server_default="0", comment="of aside_small, put into the text: in tokens_small too"
    )
    taken_large: Mapped[int] = mapped_column(
        server_default="0", comment="of aside_large, put into the text: in tokens_large too"
    )
    finish_reason: Mapped[FinishReason | None] = mapped_column(
        choice(FinishReason, "finish_reason"), comment="why its text ended"
    )
    predicted_answer: Mapped[str | None] = mapped_column(comment="by the latest grading")
    score: Mapped[float | None] = mapped_column(comment="by the latest grading; null: unscored, which is not wrong")
    error_class: Mapped[str | None] = mapped_column(comment="pipeline.samples.ErrorClass")
    error: Mapped[str | None] = mapped_column(comment="why it was set aside")
    admitted_at: Mapped[Instant | None] = mapped_column(comment="when upkeep let it in")
    finished_at: Mapped[Instant | None] = mapped_column(comment="when its text was complete")
    ended_at: Mapped[Instant | None] = mapped_column(comment="when it reached a final state")


class GradeRow(Base):
    """What one grader, in one version, said about one sample."""

    __tablename__ = "grades"
    __table_args__ = (
        Index("ix_grades_failed", "sample_id", postgresql_where=text("status IN ('timeout', 'error')")),
        Index("ix_grades_running", "started_at", postgresql_where=text("status = 'running'")),
    )

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    grader: Mapped[str] = mapped_column(primary_key=True, comment="its name")
    grader_version: Mapped[str] = mapped_column(primary_key=True, comment="of its rules")
    status: Mapped[GradeStatus] = mapped_column(choice(GradeStatus, "status"), comment="pipeline.samples.GradeStatus")
    score: Mapped[float | None] = mapped_column(comment="0 to 1; null: unscored, which is not wrong")
    predicted_answer: Mapped[str | None] = mapped_column(comment="what it took for the answer")
    detail: Mapped[str | None] = mapped_column(comment="why it stayed unscored")
    started_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was last begun")
    num_tries: Mapped[int] = mapped_column(server_default="1", comment="times it was begun")
    graded_at: Mapped[Instant | None] = mapped_column(comment="when it ended")


class JudgedSampleRow(Base):
    """A complete sample of another job that a judge was submitted for, and where it is judged."""

    __tablename__ = "judged_samples"
    __table_args__ = (Index("ix_judged_samples_sample_id", "sample_id"),)

    job_id: Mapped[int] = mapped_column(
        ForeignKey("jobs.id"), primary_key=True, autoincrement=False, comment="the judge's job"
    )
    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the judged sample"
    )
    epoch: Mapped[int] = mapped_column(comment="of the judged text: one that is drawn again has another")
    problem_id: Mapped[int | None] = mapped_column(
        ForeignKey("problems.id"),
        comment="what the judge is asked of it, shared by equal answers; null: the sample has no answer to judge",
    )

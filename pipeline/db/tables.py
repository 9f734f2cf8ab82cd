"""The tables. Every fact of the pipeline lives in one of them; comments are stored in the database too."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.db.base import Base, Floats, Id, Ids, Instant, Rows, choice
from pipeline.db.states import ADMITTED, COMPLETE, FINAL, PUBLISHED, WRITING
from pipeline.jobs.config import JobState
from pipeline.samples import (
    SUSPECT_AFTER,
    Author,
    ErrorClass,
    FinishReason,
    GradeStatus,
    ModelRole,
    SampleState,
    SegmentFinish,
)
from pipeline.workforce import WorkerEnd, WorkerKind


class ProblemSetRow(Base):
    """A versioned list of problems, stored once per content."""

    __tablename__ = "problem_sets"

    id: Mapped[Id] = mapped_column(comment="given by the database")
    name: Mapped[str] = mapped_column(comment="as first submitted")
    content_sha256: Mapped[str] = mapped_column(unique=True, comment="the version: a hash of all problems and answers")
    num_problems: Mapped[int] = mapped_column(comment="problems in it")
    num_references: Mapped[int] = mapped_column(comment="problems in it that have a reference answer")
    has_choices: Mapped[bool] = mapped_column(comment="whether it is a multiple choice")
    created_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was first submitted")


class ProblemRow(Base):
    """One question, with what generating workers read: nothing but what a prompt template shows."""

    __tablename__ = "problems"
    __table_args__ = (
        UniqueConstraint("problem_set_id", "position"),
        UniqueConstraint("problem_set_id", "external_id"),
    )

    id: Mapped[Id] = mapped_column(comment="given by the database")
    problem_set_id: Mapped[int] = mapped_column(ForeignKey("problem_sets.id"), comment="the set it is of")
    position: Mapped[int] = mapped_column(comment="0-based place in the set")
    external_id: Mapped[str] = mapped_column(comment="the id in the submitted file")
    prompt: Mapped[str] = mapped_column(comment="the question's text, before any template")
    subject: Mapped[str | None] = mapped_column(comment="as in the file, e.g. algebra")
    level: Mapped[str | None] = mapped_column(comment="as in the file, e.g. Level 5")
    shown: Mapped[dict[str, Any]] = mapped_column(
        comment="what a prompt template may show beside the prompt: choices, earlier turns, columns named to be kept"
    )


class HiddenColumnsRow(Base):
    """All other columns of a problem's row: rationales, tests, sources; generating workers cannot read them."""

    __tablename__ = "hidden_columns"

    problem_id: Mapped[int] = mapped_column(
        ForeignKey("problems.id"), primary_key=True, autoincrement=False, comment="the problem"
    )
    columns: Mapped[dict[str, Any]] = mapped_column(comment="value by column, as in the file")


class ReferenceAnswerRow(Base):
    """The right answer of a problem; read by graders only."""

    __tablename__ = "reference_answers"

    problem_id: Mapped[int] = mapped_column(
        ForeignKey("problems.id"), primary_key=True, autoincrement=False, comment="the problem"
    )
    answer: Mapped[str] = mapped_column(comment="as in the file; of a multiple choice, the letter of the right one")
    also_accepted: Mapped[list[str]] = mapped_column(
        ARRAY(String), server_default="{}", comment="further answers, each as right as that one"
    )


class JobRow(Base):
    """One requested unit of work: a problem set, its models and a policy, frozen at submit."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("(state IN ('running', 'paused')) = (finished_at IS NULL)", name="finished_at"),
        Index("ix_jobs_running", "id", postgresql_where=text("state = 'running'")),
    )

    id: Mapped[Id] = mapped_column(comment="given by the database")
    name: Mapped[str] = mapped_column(comment="free text for people")
    problem_set_id: Mapped[int] = mapped_column(ForeignKey("problem_sets.id"), comment="what it asks")
    state: Mapped[JobState] = mapped_column(choice(JobState, "state"), comment="pipeline.jobs.config.JobState")
    config: Mapped[dict[str, Any]] = mapped_column(
        comment="pipeline.jobs.JobConfig as submitted, every value spelled out"
    )
    versions: Mapped[dict[str, Any]] = mapped_column(comment="of the packages at submit")
    policy: Mapped[str] = mapped_column(comment="NAME or NAME:PRESET, as submitted")
    small_model: Mapped[str | None] = mapped_column(comment="null where the policy needs none")
    large_model: Mapped[str | None] = mapped_column(comment="null where the policy needs none")
    first_role: Mapped[ModelRole] = mapped_column(choice(ModelRole, "first_role"), comment="who opens each sample")
    think_end: Mapped[str | None] = mapped_column(
        comment="the tag that ends the think phase in its texts, '' for none; null: no worker has had it yet"
    )
    think_opened: Mapped[bool | None] = mapped_column(
        comment="whether the prompt opens the think phase; else the texts have the opening tag"
    )
    num_problems: Mapped[int] = mapped_column(comment="the first so many of the set")
    num_samples: Mapped[int] = mapped_column(comment="per problem")
    submitted_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was stored")
    first_claimed_at: Mapped[Instant | None] = mapped_column(comment="when a worker first took one of its samples")
    finished_at: Mapped[Instant | None] = mapped_column(comment="null until it has ended")
    followed_at: Mapped[Instant | None] = mapped_column(
        comment="last sign of the task that shows its progress in Flower"
    )
    priority: Mapped[int] = mapped_column(server_default="0", comment="jobs with a higher one are admitted first")
    cloned_from: Mapped[int | None] = mapped_column(
        ForeignKey("jobs.id"), comment="the job whose problems and configuration it took"
    )


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
    taken_small: Mapped[int] = mapped_column(
        BigInteger, comment="of aside_small, put into the text: in tokens_small too"
    )
    taken_large: Mapped[int] = mapped_column(
        BigInteger, comment="of aside_large, put into the text: in tokens_large too"
    )
    prompt_tokens_small: Mapped[int] = mapped_column(
        BigInteger, comment="of the small model's prompts, computed: not found in the prefix cache"
    )
    prompt_tokens_large: Mapped[int] = mapped_column(BigInteger, comment="likewise, large")
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
    engine_seconds_large: Mapped[float | None] = mapped_column(comment="likewise, large")
    request_seconds_small: Mapped[float | None] = mapped_column(
        comment="sum of the durations of the small model's requests"
    )
    request_seconds_large: Mapped[float | None] = mapped_column(comment="likewise, large")
    mean_wait_seconds: Mapped[float | None] = mapped_column(
        comment="from publishing to claim, all segments of a sample together, mean over samples"
    )
    p95_wait_seconds: Mapped[float | None] = mapped_column(comment="95th percentile of the same")
    mean_queue_seconds: Mapped[float | None] = mapped_column(
        comment="inside the engines before the first work, likewise, mean over samples"
    )


class RollupRow(Base):
    """What the samples of a part of a job add up to, kept while all are idle: pending, or in a final state.

    Each JSON column holds rows of a type of sql/rollups.sql, which says what is in it.
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
        comment="seconds from publishing to claim, of each sample that has any, all its claims together"
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
    score: Mapped[Decimal] = mapped_column(comment="sum of their scores, likewise")
    is_base: Mapped[bool] = mapped_column(
        server_default="false", comment="the one row of its key that others are added to"
    )

    __mapper_args__ = {  # noqa: RUF012  (SQLAlchemy's own protocol; the table has no key)
        "primary_key": ["job_id", "author", "finish_reason", "verdict", "tokens"]
    }


class EngineRow(Base):
    """What an engine was, for the books; stored once per distinct content."""

    __tablename__ = "engines"

    id: Mapped[Id] = mapped_column(comment="given by the database")
    sha256: Mapped[str] = mapped_column(unique=True, comment="of the columns below")
    kind: Mapped[str] = mapped_column(comment="e.g. vllm")
    version: Mapped[str] = mapped_column(comment="of the engine's package")
    model: Mapped[str] = mapped_column(comment="the name that jobs use")
    model_fingerprint: Mapped[str] = mapped_column(comment="sha256 of tokenizer and chat template")
    vocabulary_sha256: Mapped[str] = mapped_column(comment="equal for models whose token ids mean the same text")
    settings: Mapped[dict[str, Any]] = mapped_column(comment="as it was started")


class WorkerRow(Base):
    """One life of one worker process: its lease, and its engine's token counters."""

    __tablename__ = "workers"
    __table_args__ = (
        CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name="end_reason"),
        Index(
            "ix_workers_live",
            "kind",
            "model",
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("ix_workers_unsettled", "id", postgresql_where=text("settled_at IS NULL")),
    )

    id: Mapped[Id] = mapped_column(comment="given by the database")
    kind: Mapped[WorkerKind] = mapped_column(choice(WorkerKind, "kind"), comment="small, large, grade or upkeep")
    model: Mapped[str | None] = mapped_column(comment="the name jobs use")
    engine_id: Mapped[int | None] = mapped_column(ForeignKey("engines.id"), comment="null: it has none")
    host: Mapped[str] = mapped_column(comment="where it runs")
    pid: Mapped[int] = mapped_column(comment="its process there")
    queue: Mapped[str] = mapped_column(comment="its own queue, for samples whose context it has cached")
    max_in_flight: Mapped[int] = mapped_column(comment="samples it works on at the same time")
    started_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it registered")
    renewed_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it last renewed its lease")
    expires_at: Mapped[Instant] = mapped_column(comment="the lease's end, by this database's clock")
    ended_at: Mapped[Instant | None] = mapped_column(comment="null: it lives, or nobody has noticed that it does not")
    end_reason: Mapped[WorkerEnd | None] = mapped_column(
        choice(WorkerEnd, "end_reason_choice"), comment="pipeline.workforce.WorkerEnd"
    )
    settled_at: Mapped[Instant | None] = mapped_column(comment="when all it held was given back")
    num_in_flight: Mapped[int] = mapped_column(server_default="0", comment="samples it writes, at renewed_at")
    tokens_generated: Mapped[int] = mapped_column(
        BigInteger,
        server_default="0",
        comment="by its engine, EOS included, at renewed_at",
    )
    tokens_committed: Mapped[int] = mapped_column(
        BigInteger,
        server_default="0",
        comment="of these, in a segment row as kept or discarded, or an EOS",
    )
    tokens_dropped: Mapped[int] = mapped_column(
        BigInteger,
        server_default="0",
        comment="of these, refused at commit or aborted: generated again by others",
    )
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="given to its engine")
    cached_tokens: Mapped[int] = mapped_column(
        BigInteger, server_default="0", comment="of these, found in the prefix cache"
    )
    tokens_withdrawn: Mapped[int] = mapped_column(
        BigInteger,
        server_default="0",
        comment="of the committed ones, in segments that a retry with a larger budget took away",
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
            postgresql_where=text("state = 'pending'"),
        ),
        Index("ix_samples_open", "job_id", postgresql_where=text(_OPEN)),
        Index(
            "ix_samples_admitted",
            "job_id",
            postgresql_where=text(f"state IN {ADMITTED}"),
        ),
        Index(
            "ix_samples_published",
            "published_at",
            postgresql_where=text(f"state IN {PUBLISHED}"),
        ),
        Index(
            "ix_samples_suspect",
            "id",
            postgresql_where=text(f"num_rescues >= {SUSPECT_AFTER} AND state IN {ADMITTED}"),
        ),
        Index("ix_samples_failed", "job_id", postgresql_where=text("state = 'failed'")),
        Index(
            "ix_samples_held",
            "holder_id",
            postgresql_where=text("holder_id IS NOT NULL"),
        ),
    )

    id: Mapped[Id] = mapped_column(comment="given by the database")
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), comment="the job")
    problem_id: Mapped[int] = mapped_column(ForeignKey("problems.id"), comment="the problem")
    sample_index: Mapped[int] = mapped_column(comment="0-based among the samples of its problem")
    state: Mapped[SampleState] = mapped_column(
        choice(SampleState, "state"), server_default="pending", comment="pipeline.samples.SampleState"
    )
    epoch: Mapped[int] = mapped_column(server_default="0", comment="raised by every claim and rescue; fences writes")
    holder_id: Mapped[int | None] = mapped_column(ForeignKey("workers.id"), comment="the worker that writes now")
    small_worker_id: Mapped[int | None] = mapped_column(
        ForeignKey("workers.id"),
        comment="the small worker whose cache holds the context",
    )
    large_worker_id: Mapped[int | None] = mapped_column(ForeignKey("workers.id"), comment="likewise, large")
    published_at: Mapped[Instant | None] = mapped_column(comment="when a message for its present state was last due")
    num_rescues: Mapped[int] = mapped_column(
        server_default="0", comment="times its worker died with it since its last commit"
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


class SegmentRow(Base):
    """One uninterrupted piece of writing. Kept ids of segments 0…n-1, joined, are the sample's output."""

    __tablename__ = "segments"

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    segment_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="from 0 in its sample")
    author: Mapped[Author] = mapped_column(choice(Author, "author"), comment="small, large or inserted")
    trigger: Mapped[str] = mapped_column(comment="why this author wrote here")
    cue: Mapped[str] = mapped_column(comment="the words that pulled the trigger, '' where none did")
    takes_over: Mapped[bool] = mapped_column(
        server_default="false",
        comment="the large model was called in here in the place of the small one: this alone is a takeover",
    )
    taken_from: Mapped[int | None] = mapped_column(
        comment="the aside whose head this is: nothing was generated for it; null: written for itself"
    )
    token_ids: Mapped[Ids] = mapped_column(comment="kept")
    text: Mapped[str] = mapped_column(comment="kept")
    discarded_ids: Mapped[Ids] = mapped_column(comment="written after the kept ones, not kept")
    discarded_text: Mapped[str] = mapped_column(comment="of discarded_ids")
    token_lengths: Mapped[Ids] = mapped_column(comment="characters per token, kept then discarded")
    finish: Mapped[SegmentFinish | None] = mapped_column(
        choice(SegmentFinish, "finish"), comment="null for inserted and taken ones"
    )
    value: Mapped[float | None] = mapped_column(comment="the number that decided about it, where one did")
    threshold: Mapped[float | None] = mapped_column(comment="what value was compared with")
    outcome: Mapped[str | None] = mapped_column(comment="what was decided by value")
    tokens_generated: Mapped[int] = mapped_column(comment="as its engine counts: kept, discarded and EOS")
    prompt_tokens: Mapped[int] = mapped_column(comment="given to the engine: the prompt and the output so far")
    cached_tokens: Mapped[int] = mapped_column(comment="of the prompt's, not computed again")
    seed: Mapped[int | None] = mapped_column(
        BigInteger, comment="null: inserted, taken, greedy, or the job draws without seeds"
    )
    epoch: Mapped[int] = mapped_column(comment="of the claim under which it was written")
    worker_id: Mapped[int] = mapped_column(ForeignKey("workers.id"), comment="that stored it")
    engine_id: Mapped[int] = mapped_column(ForeignKey("engines.id"), comment="its author's")
    content_sha256: Mapped[str | None] = mapped_column(
        comment="of what was written, for replay; null: stored before there was one"
    )
    wait_seconds: Mapped[float | None] = mapped_column(comment="from publishing to claim")
    queue_seconds: Mapped[float | None] = mapped_column(comment="inside the engine before its first work")
    first_token_seconds: Mapped[float | None] = mapped_column(comment="from handing in to the first token")
    write_seconds: Mapped[float | None] = mapped_column(comment="from handing in to the end")
    held_seconds: Mapped[float | None] = mapped_column(
        comment="from its end to the commit, while more was written under the same claim"
    )
    committed_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was stored")


class AsideRow(Base):
    """A short piece on a side branch of a sample, which a policy asked for. It is never kept by itself.

    A segment that takes its head names it in taken_from. Asides of one after_segment come before that segment.
    """

    __tablename__ = "asides"

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    aside_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="from 0 in its sample")
    after_segment: Mapped[int] = mapped_column(comment="segments that were there when it was asked for")
    author: Mapped[ModelRole] = mapped_column(choice(ModelRole, "author"), comment="small or large")
    purpose: Mapped[str] = mapped_column(comment="what the policy asked it for")
    question: Mapped[str] = mapped_column(comment="fixed text after the kept text, '' for none")
    turn: Mapped[bool] = mapped_column(comment="the question was a new user message")
    opening: Mapped[str] = mapped_column(comment="what the reply was begun with, '' for nothing")
    after_asides: Mapped[list[list[int]]] = mapped_column(
        JSONB, comment="asides whose heads stood before the question: [index, number of tokens] of each"
    )
    token_ids: Mapped[Ids] = mapped_column(comment="as written, without EOS")
    text: Mapped[str] = mapped_column(comment="of token_ids")
    token_lengths: Mapped[Ids] = mapped_column(comment="characters per token")
    finish: Mapped[SegmentFinish] = mapped_column(choice(SegmentFinish, "finish"), comment="why it ended")
    top: Mapped[Floats] = mapped_column(
        comment="log-probabilities of the most likely first tokens, greatest first; empty where nothing was read"
    )
    labels: Mapped[dict[str, float | None]] = mapped_column(
        JSONB, comment="log-probability of each label as the first token; null: not among the most likely"
    )
    value: Mapped[float | None] = mapped_column(comment="the number that decided about it, where one did")
    threshold: Mapped[float | None] = mapped_column(comment="what value was compared with")
    outcome: Mapped[str | None] = mapped_column(comment="what was decided by value")
    tokens_generated: Mapped[int] = mapped_column(comment="as its engine counts: the ids and EOS")
    prompt_tokens: Mapped[int] = mapped_column(comment="kept text, heads of asides and question")
    cached_tokens: Mapped[int] = mapped_column(comment="of the prompt's, not computed again")
    seed: Mapped[int | None] = mapped_column(BigInteger, comment="null: greedy, or the job draws without seeds")
    epoch: Mapped[int] = mapped_column(comment="of the claim under which it was written")
    worker_id: Mapped[int] = mapped_column(ForeignKey("workers.id"), comment="that wrote it")
    engine_id: Mapped[int] = mapped_column(ForeignKey("engines.id"), comment="that worker's")
    content_sha256: Mapped[str] = mapped_column(comment="of what was written, for replay")
    wait_seconds: Mapped[float | None] = mapped_column(comment="from publishing to claim")
    queue_seconds: Mapped[float | None] = mapped_column(comment="inside the engine before its first work")
    first_token_seconds: Mapped[float | None] = mapped_column(comment="from handing in to the first token")
    write_seconds: Mapped[float | None] = mapped_column(comment="from handing in to the end")
    held_seconds: Mapped[float | None] = mapped_column(
        comment="from its end to the commit, while more was written under the same claim"
    )
    committed_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was stored")


class SignalRow(Base):
    """What a policy had read of the tokens of a segment (the discarded ones too) or an aside."""

    __tablename__ = "signals"
    __table_args__ = (CheckConstraint("kind IN ('segment', 'aside')", name="kind"),)

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    kind: Mapped[str] = mapped_column(primary_key=True, comment="segment or aside")
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="segment_index or aside_index")
    name: Mapped[str] = mapped_column(primary_key=True, comment="pipeline.signals.Signal")
    places: Mapped[Ids | None] = mapped_column(comment="tokens that have a value, from 0; null: each has one")
    values: Mapped[Floats] = mapped_column(comment="as the policy saw them; null: out of sight")


class StepRow(Base):
    """One reasoning step: the text between two breaks, whoever wrote it."""

    __tablename__ = "steps"

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    step_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="from 0 in its sample")
    text: Mapped[str] = mapped_column(comment="with the break that ends it")
    author: Mapped[Author] = mapped_column(choice(Author, "author"), comment="who wrote most of its tokens")
    tokens_small: Mapped[int] = mapped_column(comment="by the small model")
    tokens_large: Mapped[int] = mapped_column(comment="by the large model")
    tokens_inserted: Mapped[int] = mapped_column(comment="put in by the policy")
    start_token: Mapped[int] = mapped_column(comment="place of its first token in the output")
    sentence_class: Mapped[str] = mapped_column(comment="statement, reflection or affirmation")
    trigger: Mapped[str | None] = mapped_column(comment="of the takeover that begins in it")


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


class EventRow(Base):
    """Append-only: one row per change of a sample's or a job's state, written by a trigger."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_sample_id", "sample_id"),
        Index("ix_events_job_id", "job_id"),
    )

    id: Mapped[Id] = mapped_column(comment="given by the database")
    job_id: Mapped[int] = mapped_column(BigInteger, comment="the job")
    sample_id: Mapped[int | None] = mapped_column(BigInteger, comment="null: the job itself changed")
    from_state: Mapped[str] = mapped_column(comment="before")
    to_state: Mapped[str] = mapped_column(comment="after")
    epoch: Mapped[int | None] = mapped_column(comment="of the sample, after the change")
    worker_id: Mapped[int | None] = mapped_column(
        BigInteger, comment="who holds it after the change, or held it before"
    )
    at: Mapped[Instant] = mapped_column(
        server_default=func.clock_timestamp(), comment="when it happened; ids may be in another order"
    )


class SchemaObjectsRow(Base):
    """The views, functions and triggers that the database was given (pipeline.db.schema_objects); one row."""

    __tablename__ = "schema_objects"

    sha256: Mapped[str] = mapped_column(primary_key=True, comment="of the files that create them")
    names: Mapped[list[str]] = mapped_column(ARRAY(String), comment="in the order of creation, as DROP names them")
    applied_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when they were created")


METADATA = Base.metadata
"""All tables, for migrations; each with its class's first line as its comment."""
for _mapper in Base.registry.mappers:
    METADATA.tables[_mapper.class_.__tablename__].comment = (_mapper.class_.__doc__ or "").partition("\n")[0]

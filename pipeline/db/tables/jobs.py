"""Tables of problem sets and jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.db.base import Base, Id, Instant, choice
from pipeline.jobs.config import JobState
from pipeline.samples import (
    ModelRole,
)


class ProblemSetRow(Base):
    """A versioned list of problems, stored once per content."""

    __tablename__ = "problem_sets"
    __table_args__ = (
        Index("ix_problem_sets_telling", "tells_answers_of", postgresql_where=text("tells_answers_of IS NOT NULL")),
    )

    id: Mapped[Id] = mapped_column(comment="given by the database")
    name: Mapped[str] = mapped_column(comment="as first submitted")
    content_sha256: Mapped[str] = mapped_column(unique=True, comment="the version: a hash of all problems and answers")
    num_problems: Mapped[int] = mapped_column(comment="problems in it")
    num_references: Mapped[int] = mapped_column(comment="problems in it that have a reference answer")
    has_choices: Mapped[bool] = mapped_column(comment="whether it is a multiple choice")
    tells_answers_of: Mapped[int | None] = mapped_column(
        ForeignKey("problem_sets.id"),
        comment="a judge's set: its prompts show the reference answers of that one; null: prompts show none",
    )
    source: Mapped[dict[str, Any] | None] = mapped_column(
        comment="where on a hub it was first loaded from: hub, config, split, revision; null: from a file"
    )
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
        comment="what a prompt template may show beside the prompt: choices, earlier turns, kept columns"
    )


class HiddenColumnsRow(Base):
    """All other columns of a problem's row, as rationales and tests; generating workers cannot read them."""

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
        Index("ix_jobs_judges", "id", postgresql_where=text("judged_job_id IS NOT NULL")),
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
    judge_model: Mapped[str | None] = mapped_column(comment="null where the policy needs none")
    first_role: Mapped[ModelRole] = mapped_column(choice(ModelRole, "first_role"), comment="who opens each sample")
    think_start: Mapped[str | None] = mapped_column(
        comment="the tag that opens the think phase in its texts, '' for none; null: no worker has had it yet"
    )
    think_end: Mapped[str | None] = mapped_column(
        comment="the tag that ends the think phase in its texts, '' for none; null: no worker has had it yet"
    )
    think_opened: Mapped[bool | None] = mapped_column(
        comment="whether the prompt opens the think phase; else the texts have the opening tag"
    )
    small_identity: Mapped[dict[str, Any] | None] = mapped_column(
        comment="tokenizer and template, weights and revision of its first worker's model; null: none has had it yet"
    )
    large_identity: Mapped[dict[str, Any] | None] = mapped_column(comment="the same of the large model")
    judge_identity: Mapped[dict[str, Any] | None] = mapped_column(comment="the same of the judge")
    num_problems: Mapped[int] = mapped_column(comment="the first so many of the set")
    num_samples: Mapped[int] = mapped_column(comment="per problem")
    submitted_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was stored")
    first_claimed_at: Mapped[Instant | None] = mapped_column(comment="when a worker first took one of its samples")
    finished_at: Mapped[Instant | None] = mapped_column(comment="null until it has ended")
    followed_at: Mapped[Instant | None] = mapped_column(
        comment="last sign of the task that shows its progress in Flower"
    )
    priority: Mapped[int] = mapped_column(server_default="0", comment="jobs with a higher one are admitted first")
    events_removed_at: Mapped[Instant | None] = mapped_column(
        comment="when the events of its samples were pruned; null: they were not"
    )
    cloned_from: Mapped[int | None] = mapped_column(
        ForeignKey("jobs.id"), comment="the job whose problems and configuration it took"
    )
    judged_job_id: Mapped[int | None] = mapped_column(
        ForeignKey("jobs.id"), comment="the job whose answers it judges; null: it is no judge, or that job was removed"
    )
    verdicts_at: Mapped[Instant | None] = mapped_column(comment="of a judge: when its verdicts last became grades")


class ExperimentRow(Base):
    """An experiment: jobs that are compared with each other. Whoever adds a job to it locks its row."""

    __tablename__ = "experiments"

    name: Mapped[str] = mapped_column(primary_key=True, comment="as its users call it")
    changed_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when a job was last to be added")


class ExperimentJobRow(Base):
    """A job as a row of an experiment: of a sweep over policies and their numbers, and of its controls."""

    __tablename__ = "experiment_jobs"
    __table_args__ = (
        Index("ix_experiment_jobs_job_id", "job_id"),
        Index("ix_experiment_jobs_control_of", "control_of"),
    )

    experiment: Mapped[str] = mapped_column(ForeignKey("experiments.name"), primary_key=True, comment="its name")
    row_name: Mapped[str] = mapped_column(
        primary_key=True, comment="policy and what was varied: once in an experiment, whoever submits it again"
    )
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), comment="the job")
    control_of: Mapped[int | None] = mapped_column(
        ForeignKey("jobs.id"), comment="the job that it is matched to; null: it is no control, or that was removed"
    )

"""Tables of workers and their engines."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.db.base import Base, Id, Instant, choice
from pipeline.workforce import WorkerEnd, WorkerKind


class EngineRow(Base):
    """An engine: its models' identity, versions and settings, stored once per distinct content."""

    __tablename__ = "engines"

    id: Mapped[Id] = mapped_column(comment="given by the database")
    sha256: Mapped[str] = mapped_column(unique=True, comment="of the columns below")
    kind: Mapped[str] = mapped_column(comment="e.g. vllm")
    version: Mapped[str] = mapped_column(comment="of the engine's package")
    model: Mapped[str] = mapped_column(comment="the name that jobs use")
    model_fingerprint: Mapped[str] = mapped_column(comment="sha256 of tokenizer and chat template")
    vocabulary_sha256: Mapped[str] = mapped_column(comment="equal for models whose token ids mean the same text")
    settings: Mapped[dict[str, Any]] = mapped_column(comment="as it was started")
    weights_sha256: Mapped[str | None] = mapped_column(
        comment="of a sample of every tensor; null: no files of weights are here"
    )
    revision: Mapped[str | None] = mapped_column(comment="of the hub, as the worker was started with")


class UpkeepLeaderRow(Base):
    """The upkeep worker that does the duties now (pipeline.db.leadership); one row."""

    __tablename__ = "upkeep_leader"
    __table_args__ = (CheckConstraint("is_single", name="is_single"),)

    is_single: Mapped[bool] = mapped_column(primary_key=True, server_default="true", comment="true: there is one row")
    worker_id: Mapped[int | None] = mapped_column(ForeignKey("workers.id"), comment="the leader; null: nobody leads")
    backend_pid: Mapped[int | None] = mapped_column(comment="of its session, which is open as long as it leads")
    backend_start: Mapped[Instant | None] = mapped_column(comment="when that session began")
    since: Mapped[Instant | None] = mapped_column(comment="when it began to lead")
    seen_at: Mapped[Instant | None] = mapped_column(comment="when it last said so")
    expires_at: Mapped[Instant | None] = mapped_column(comment="from then on another may lead")
    can_publish: Mapped[bool] = mapped_column(
        server_default="true", comment="whether Redis took its last messages; one that cannot gives way to one that can"
    )


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

    id: Mapped[int] = mapped_column(
        BigInteger, Identity(), primary_key=True, comment="of one life; its last six digits are drawn"
    )
    kind: Mapped[WorkerKind] = mapped_column(choice(WorkerKind, "kind"), comment="small, large, judge, grade or upkeep")
    model: Mapped[str | None] = mapped_column(comment="the name jobs use")
    engine_id: Mapped[int | None] = mapped_column(ForeignKey("engines.id"), comment="null: it has none")
    host: Mapped[str] = mapped_column(comment="where it runs")
    pid: Mapped[int] = mapped_column(comment="its process there")
    queue: Mapped[str] = mapped_column(comment="its own queue, for samples whose context it has cached")
    max_in_flight: Mapped[int] = mapped_column(comment="most samples that it works on at the same time, as it started")
    num_slots: Mapped[int | None] = mapped_column(
        comment="samples that its cache has room for now; null: max_in_flight. Upkeep admits by this"
    )
    started_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it registered")
    renewed_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it last renewed its lease")
    expires_at: Mapped[Instant] = mapped_column(comment="the lease's end, by this database's clock")
    ended_at: Mapped[Instant | None] = mapped_column(comment="null: it lives, or nobody has noticed that it does not")
    end_reason: Mapped[WorkerEnd | None] = mapped_column(
        choice(WorkerEnd, "end_reason_choice"), comment="pipeline.workforce.WorkerEnd"
    )
    settled_at: Mapped[Instant | None] = mapped_column(comment="when all it held was given back")
    num_in_flight: Mapped[int] = mapped_column(
        server_default="0", comment="samples it writes, or holds until it can write or commit them, at renewed_at"
    )
    refused_jobs: Mapped[dict[str, Any]] = mapped_column(
        server_default="{}", comment="jobs that it cannot write, by id, each with the reason"
    )
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
    num_drafts: Mapped[int] = mapped_column(
        BigInteger, server_default="0", comment="steps of a sample for which its accelerator drafted tokens"
    )
    draft_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="in these drafts")
    accepted_tokens: Mapped[int] = mapped_column(
        BigInteger, server_default="0", comment="of these, accepted: among tokens_generated"
    )
    tokens_withdrawn: Mapped[int] = mapped_column(
        BigInteger,
        server_default="0",
        comment="of the committed ones, in segments that a retry with a larger budget took away",
    )

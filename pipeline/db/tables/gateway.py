"""Tables of the gateway: keys, names of pairs, uploaded files, batches, and requests that are answered online."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.db.base import Base, Id, Instant, choice
from pipeline.key_roles import KeyRole

ENDED = "coalesce(completed_at, failed_at, expired_at, cancelled_at)"
"""When a batch ended, as SQL; null while it is open."""


class ApiKeyRow(Base):
    """A key of the gateway; of the key itself only a hash is stored."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("ix_api_keys_name", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),)

    id: Mapped[Id] = mapped_column(comment="given by the database")
    name: Mapped[str] = mapped_column(comment="whose it is, for people; once among the keys that are valid")
    sha256: Mapped[str] = mapped_column(unique=True, comment="of the key")
    role: Mapped[KeyRole] = mapped_column(choice(KeyRole, "role"), comment="pipeline.batches.KeyRole")
    requests_per_minute: Mapped[int | None] = mapped_column(
        comment="to each gateway process; null: as many as it likes"
    )
    max_file_bytes: Mapped[int | None] = mapped_column(
        BigInteger, comment="of one upload; null: what the gateway's settings say"
    )
    created_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was made")
    last_used_at: Mapped[Instant | None] = mapped_column(comment="to a minute")
    revoked_at: Mapped[Instant | None] = mapped_column(comment="from then on it opens nothing; null: it is valid")


class ModelAliasRow(Base):
    """A name that requests may give as their model, for a pair and how it is asked."""

    __tablename__ = "model_aliases"

    name: Mapped[str] = mapped_column(primary_key=True, comment="as requests write it")
    options: Mapped[dict[str, Any]] = mapped_column(comment="options of a submission by name; jobs keep their own copy")
    created_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was last saved")


class FileRow(Base):
    """A file that was uploaded to the gateway; its content is in file_parts."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_created_at_id", "created_at", "id"),
        Index("ix_files_expires_at", "expires_at", postgresql_where=text("deleted_at IS NULL")),
        Index("ix_files_idempotency_key", "owner_id", "idempotency_key"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, comment="as clients know it")
    owner_id: Mapped[int | None] = mapped_column(
        ForeignKey("api_keys.id"), comment="the key that uploaded it; null: there were no keys"
    )
    purpose: Mapped[str] = mapped_column(comment="pipeline.batches.FilePurpose")
    filename: Mapped[str] = mapped_column(comment="as the client named it")
    num_bytes: Mapped[int] = mapped_column(BigInteger, comment="of its content")
    sha256: Mapped[str] = mapped_column(comment="of its content")
    request_sha256: Mapped[str] = mapped_column(
        comment="of what was asked, so that the same again makes no second file"
    )
    idempotency_key: Mapped[str | None] = mapped_column(comment="the client's own, for 24 hours")
    created_at: Mapped[Instant] = mapped_column(server_default=func.clock_timestamp(), comment="when it was stored")
    expires_at: Mapped[Instant | None] = mapped_column(comment="when it is deleted; null: never")
    deleted_at: Mapped[Instant | None] = mapped_column(comment="its parts are gone; null: it is there")


class FilePartRow(Base):
    """A piece of an uploaded file, at most 1 MiB of its bytes."""

    __tablename__ = "file_parts"

    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), primary_key=True, comment="the file")
    part: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="from 0 in its file")
    data: Mapped[bytes] = mapped_column(LargeBinary, comment="the bytes, as they came")


class BatchRow(Base):
    """A file of requests to answer; its status follows from its jobs."""

    __tablename__ = "batches"
    __table_args__ = (
        CheckConstraint("num_nonnulls(completed_at, failed_at, expired_at, cancelled_at) <= 1", name="one_end"),
        CheckConstraint(
            "num_completed + num_failed = num_lines OR coalesce(completed_at, expired_at, cancelled_at) IS NULL",
            name="every_line",
        ),
        Index("ix_batches_created_at_id", "created_at", "id"),
        Index("ix_batches_open", "id", postgresql_where=text(f"{ENDED} IS NULL")),
        Index("ix_batches_idempotency_key", "owner_id", "idempotency_key"),
        Index("ix_batches_input_file_id", "input_file_id"),
        Index("ix_batches_answers_file_id", "answers_file_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, comment="as clients know it")
    owner_id: Mapped[int | None] = mapped_column(
        ForeignKey("api_keys.id"), comment="the key that created it; null: there were no keys"
    )
    input_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), comment="its requests, one a line")
    answers_file_id: Mapped[str | None] = mapped_column(
        ForeignKey("files.id"), comment="its reference answers by custom_id; null: it has none"
    )
    endpoint: Mapped[str] = mapped_column(comment="what each line asks, e.g. /v1/chat/completions")
    completion_window: Mapped[str] = mapped_column(comment="as asked: 24h, 7d or background")
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", comment="the client's own, texts by name")
    options: Mapped[dict[str, Any]] = mapped_column(comment="what was asked under specthink")
    request_sha256: Mapped[str] = mapped_column(
        comment="of what was asked, so that the same again makes no second batch"
    )
    idempotency_key: Mapped[str | None] = mapped_column(comment="the client's own, for 24 hours")
    model: Mapped[str | None] = mapped_column(comment="of its lines, as they call it; null: not read yet, or several")
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB, comment="of a bad input, each with its line")
    num_lines: Mapped[int] = mapped_column(server_default="0", comment="requests; 0 until they were read")
    num_completed: Mapped[int | None] = mapped_column(comment="lines with their answer; null: it is open")
    num_failed: Mapped[int | None] = mapped_column(comment="lines with an error instead; null: it is open")
    usage: Mapped[dict[str, Any] | None] = mapped_column(comment="tokens of all answers; null: not measured yet")
    output_bytes: Mapped[int | None] = mapped_column(BigInteger, comment="of its output file; null: not measured yet")
    error_bytes: Mapped[int | None] = mapped_column(BigInteger, comment="of its error file; null: not measured yet")
    num_retries: Mapped[int] = mapped_column(server_default="0", comment="times its failed lines were tried again")
    created_at: Mapped[Instant] = mapped_column(server_default=func.clock_timestamp(), comment="when it was stored")
    in_progress_at: Mapped[Instant | None] = mapped_column(comment="when its jobs were stored")
    expires_at: Mapped[Instant | None] = mapped_column(comment="its deadline; null: it has none")
    expiring_at: Mapped[Instant | None] = mapped_column(comment="when its jobs were cancelled because of the deadline")
    finalizing_at: Mapped[Instant | None] = mapped_column(comment="when its last sample had ended")
    completed_at: Mapped[Instant | None] = mapped_column(comment="when it ended with every line done")
    failed_at: Mapped[Instant | None] = mapped_column(comment="when its input was found to be bad")
    expired_at: Mapped[Instant | None] = mapped_column(comment="when it ended by its deadline")
    cancelling_at: Mapped[Instant | None] = mapped_column(comment="when somebody asked to cancel it")
    cancelled_at: Mapped[Instant | None] = mapped_column(comment="when it ended so")
    output_deleted_at: Mapped[Instant | None] = mapped_column(
        comment="when its output file was deleted; null: it is there"
    )
    error_deleted_at: Mapped[Instant | None] = mapped_column(
        comment="when its error file was deleted; null: it is there"
    )
    output_expires_s: Mapped[int | None] = mapped_column(
        comment="seconds after its end at which its files go; null: they stay"
    )


class BatchJobRow(Base):
    """A job of a batch: its lines with the same settings."""

    __tablename__ = "batch_jobs"
    __table_args__ = (UniqueConstraint("job_id"),)

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"), primary_key=True, comment="the batch")
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True, autoincrement=False, comment="the job")
    model: Mapped[str] = mapped_column(comment="as its lines call it")


class ChatRequestRow(Base):
    """A request that waits for its answer online: a problem of a job that is stored for some such requests."""

    __tablename__ = "chat_requests"
    __table_args__ = (
        Index("ix_chat_requests_request_sha256", "request_sha256", postgresql_where=text("delivered_at IS NULL")),
        Index("ix_chat_requests_waited_at", "waited_at", postgresql_where=text("delivered_at IS NULL")),
        Index("ix_chat_requests_job_id", "job_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, comment="as the answer calls itself")
    external_id: Mapped[str] = mapped_column(
        comment="of the problem: the request's own id, or where it names a seed, that of all who ask the same"
    )
    owner_id: Mapped[int | None] = mapped_column(
        ForeignKey("api_keys.id"), comment="the key that asked; null: there were no keys"
    )
    request_sha256: Mapped[str] = mapped_column(comment="of what was asked, by which a repeated request is known again")
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), comment="the job")
    model: Mapped[str] = mapped_column(comment="as the request calls it")
    created_at: Mapped[Instant] = mapped_column(server_default=func.clock_timestamp(), comment="when it was stored")
    waited_at: Mapped[Instant] = mapped_column(
        server_default=func.clock_timestamp(), comment="last sign of somebody who waits for the answer"
    )
    delivered_at: Mapped[Instant | None] = mapped_column(comment="when the answer was given; null: it was not")

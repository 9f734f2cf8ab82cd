"""Batches: files of requests that come in over HTTP, each line of which is a problem of one of the batch's jobs.

The words are those of OpenAI's batch API, which ``pipeline.gateway`` speaks.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.jobs.config import FINAL_JOB_STATES, JobState
from pipeline.key_roles import KeyRole


class FilePurpose(StrEnum):
    """What an uploaded file is for."""

    BATCH = "batch"  # the requests of a batch
    EVALS = "evals"  # reference answers; its content is given to nobody
    USER_DATA = "user_data"  # the same


PRIVATE_PURPOSES = frozenset({FilePurpose.EVALS, FilePurpose.USER_DATA})
"""Of files that hold reference answers."""


class BatchStatus(StrEnum):
    """Where a batch is in its life: just the words that strict clients know."""

    VALIDATING = "validating"  # stored; its lines are being read
    FAILED = "failed"  # final: its input was bad, nothing ran
    IN_PROGRESS = "in_progress"  # a job of it runs, waits or is paused
    FINALIZING = "finalizing"  # every sample has ended, and a job is not closed yet
    COMPLETED = "completed"  # final: every line has its answer or its error
    EXPIRED = "expired"  # final: the deadline passed; what was done stays
    CANCELLING = "cancelling"  # somebody asked for it; samples are still open
    CANCELLED = "cancelled"  # final: somebody asked for it; what was done stays


FINAL_STATUSES = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. key_id: None on a loopback address where there are no keys."""

    key_id: int | None = None
    name: str = "anybody"
    role: KeyRole = KeyRole.SUBMIT
    requests_per_minute: int | None = None
    max_file_bytes: int | None = None

    @property
    def sees_all(self) -> bool:
        return self.role is KeyRole.ADMIN


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A stored key, without the key itself."""

    id: int
    name: str
    role: KeyRole
    created_at: dt.datetime
    last_used_at: dt.datetime | None
    revoked_at: dt.datetime | None
    requests_per_minute: int | None
    max_file_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """An uploaded file, or one that a batch has given. num_bytes: None while nobody has measured the latter.

    batch_id, is_errors: of a file that a batch has given.
    """

    id: str
    purpose: str
    filename: str
    num_bytes: int | None
    created_at: dt.datetime
    expires_at: dt.datetime | None = None
    sha256: str | None = None
    batch_id: str | None = None
    is_errors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """A job of a batch as its status needs it. model: as the batch's lines call it."""

    job_id: int
    model: str
    state: JobState
    num_lines: int
    num_samples: int
    num_open: int
    num_graded: int
    num_failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch as it is stored. num_completed, num_failed: of lines, set once it has ended."""

    id: str
    owner_id: int | None
    input_file_id: str
    answers_file_id: str | None
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    options: dict[str, Any] = field(default_factory=dict)
    model: str | None
    errors: list[dict[str, Any]] | None
    num_lines: int
    num_completed: int | None
    num_failed: int | None
    usage: dict[str, Any] | None
    output_bytes: int | None
    error_bytes: int | None
    num_retries: int
    created_at: dt.datetime
    in_progress_at: dt.datetime | None
    expires_at: dt.datetime | None
    expiring_at: dt.datetime | None
    finalizing_at: dt.datetime | None
    completed_at: dt.datetime | None
    failed_at: dt.datetime | None
    expired_at: dt.datetime | None
    cancelling_at: dt.datetime | None
    cancelled_at: dt.datetime | None

    @property
    def ended_at(self) -> dt.datetime | None:
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at

    @property
    def hex(self) -> str:
        return self.id.removeprefix(BATCH_PREFIX)

    @property
    def output_file_id(self) -> str | None:
        """Of the lines that have their answer; None before the batch has ended, and where there are none."""
        return f"{OUTPUT_PREFIX}{self.hex}" if self.ended_at and self.num_completed else None

    @property
    def error_file_id(self) -> str | None:
        return f"{ERRORS_PREFIX}{self.hex}" if self.ended_at and self.num_failed else None


BATCH_PREFIX = "batch_"
OUTPUT_PREFIX = "file-out-"
ERRORS_PREFIX = "file-err-"


def status_of(batch: StoredBatch, jobs: Sequence[BatchJob]) -> BatchStatus:
    """Where a batch is, from what is stored of it and from its jobs."""
    stored = (
        (batch.failed_at, BatchStatus.FAILED),
        (batch.completed_at, BatchStatus.COMPLETED),
        (batch.expired_at, BatchStatus.EXPIRED),
        (batch.cancelled_at, BatchStatus.CANCELLED),
    )
    for at, status in stored:
        if at is not None:
            return status
    if batch.in_progress_at is None:
        return BatchStatus.VALIDATING if batch.cancelling_at is None else BatchStatus.CANCELLING
    if any(job.num_open for job in jobs):
        return BatchStatus.IN_PROGRESS if batch.cancelling_at is None else BatchStatus.CANCELLING
    if any(job.state not in FINAL_JOB_STATES for job in jobs):
        return BatchStatus.FINALIZING
    return _end_of(batch, jobs)


def _end_of(batch: StoredBatch, jobs: Sequence[BatchJob]) -> BatchStatus:
    """A deadline that came when all was done has ended nothing; somebody may have cancelled a job by its number."""
    if batch.cancelling_at is not None:
        return BatchStatus.CANCELLED
    if not any(job.state is JobState.CANCELLED for job in jobs):
        return BatchStatus.COMPLETED
    return BatchStatus.EXPIRED if batch.expiring_at is not None else BatchStatus.CANCELLED

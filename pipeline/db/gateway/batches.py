"""The statements of batches. A batch's status follows from its jobs; stored are only the moments at which it changed,
by whoever saw the change first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, RowMapping, text

from pipeline.batches import BatchJob, BatchStatus, Caller, StoredBatch, status_of
from pipeline.db.states import OPEN
from pipeline.db.tables.gateway import ENDED
from pipeline.jobs.config import JobState

_COLUMNS = ", ".join(
    f"b.{name}"
    for name in StoredBatch.__dataclass_fields__
)  # fmt: skip
_MINE = "(:all OR b.owner_id IS NOT DISTINCT FROM :owner)"

_INSERT_BATCH = text("""
    INSERT INTO batches (id, owner_id, input_file_id, answers_file_id, endpoint, completion_window, metadata, options,
                         request_sha256, idempotency_key, expires_at, output_expires_s)
    VALUES (:id, :owner, :input_file, :answers_file, :endpoint, :window, CAST(:metadata AS jsonb),
            CAST(:options AS jsonb), :request_sha256, :idempotency_key,
            clock_timestamp() + make_interval(secs => CAST(:window_s AS float8)), :output_expires_s)
""")


def insert_batch(
    connection: Connection,
    *,
    batch_id: str,
    owner: Caller,
    input_file: str,
    answers_file: str | None,
    endpoint: str,
    window: str,
    window_s: float | None,
    metadata: dict[str, str] | None,
    options: dict[str, Any],
    request_sha256: str,
    idempotency_key: str | None,
    output_expires_s: int | None,
) -> None:
    """Store a batch whose lines nobody has read yet. window_s: seconds until its deadline; None: it has none."""
    values = {
        "id": batch_id, "owner": owner.key_id, "input_file": input_file, "answers_file": answers_file,
        "endpoint": endpoint, "window": window, "window_s": window_s,
        "metadata": None if metadata is None else orjson.dumps(metadata).decode(),
        "options": orjson.dumps(options).decode(), "request_sha256": request_sha256,
        "idempotency_key": idempotency_key, "output_expires_s": output_expires_s,
    }  # fmt: skip
    connection.execute(_INSERT_BATCH, values)


_GET_BATCH = text(f"SELECT {_COLUMNS} FROM batches b WHERE b.id = :id AND {_MINE}")
_LOCK_BATCH = text(f"SELECT {_COLUMNS} FROM batches b WHERE b.id = :id FOR UPDATE")
_PAGE = text(f"""
    SELECT {_COLUMNS} FROM batches b
    WHERE {_MINE}
      AND (CAST(:after AS text) IS NULL OR (b.created_at, b.id) < (CAST(:at AS timestamptz), CAST(:after AS text)))
    ORDER BY b.created_at DESC, b.id DESC LIMIT :limit
""")


def _batch(row: RowMapping) -> StoredBatch:
    return StoredBatch(**row)


def find_batch(connection: Connection, caller: Caller, batch_id: str) -> StoredBatch | None:
    """A batch of the caller's own; None: there is none of this name that the caller may see."""
    values = {"id": batch_id, "all": caller.sees_all, "owner": caller.key_id}
    row = connection.execute(_GET_BATCH, values).mappings().first()
    return None if row is None else _batch(row)


def page_of_batches(
    connection: Connection, caller: Caller, *, after: StoredBatch | None, limit: int
) -> list[StoredBatch]:
    """The batches that follow one, or the first ones, newest first. Index: ix_batches_created_at_id."""
    values = {
        "all": caller.sees_all, "owner": caller.key_id, "limit": limit, "after": after and after.id,
        "at": after and after.created_at,
    }  # fmt: skip
    return [_batch(row) for row in connection.execute(_PAGE, values).mappings()]


# What the status follows from

_JOBS = text("""
    SELECT j.id AS job_id, b.model, j.state, j.num_problems AS num_lines, j.num_samples,
           c.samples_total - c.graded - c.failed - c.cancelled AS num_open, c.graded AS num_graded,
           c.failed AS num_failed
    FROM batch_jobs b JOIN jobs j ON j.id = b.job_id CROSS JOIN LATERAL count_states(j.id) c
    WHERE b.batch_id = :batch ORDER BY j.id
""")


def select_jobs(connection: Connection, batch_id: str) -> list[BatchJob]:
    """A batch's jobs with their samples counted, in the order of their first lines."""
    rows = connection.execute(_JOBS, {"batch": batch_id}).mappings()
    return [BatchJob(**{**row, "state": JobState(row["state"])}) for row in rows]


# A line with several samples has its answer when all of them are complete, and is done when all have ended.
_COUNT_LINES = text(f"""
    SELECT count(*) FILTER (WHERE l.is_complete) AS completed,
           count(*) FILTER (WHERE NOT l.is_complete AND NOT l.is_open) AS failed
    FROM (
        SELECT bool_and(s.state = 'graded') AS is_complete, bool_or(s.{OPEN}) AS is_open
        FROM samples s WHERE s.job_id = :job GROUP BY s.problem_id
    ) l
""")


def count_lines(connection: Connection, jobs: Iterable[BatchJob]) -> tuple[int, int]:
    """How many lines of a batch have their answer, and how many have an error instead, whether cancelled or failed."""
    completed = failed = 0
    for job in jobs:
        if job.num_samples == 1:
            completed += job.num_graded
            failed += job.num_lines - job.num_graded - job.num_open
        else:
            row = connection.execute(_COUNT_LINES, {"job": job.job_id}).one()
            completed, failed = completed + row.completed, failed + row.failed
    return completed, failed


_END = {
    status: text(f"""
        UPDATE batches SET {status.value}_at = clock_timestamp(), num_completed = :completed, num_failed = :failed,
            finalizing_at = coalesce(finalizing_at, clock_timestamp())
        WHERE id = :batch AND {ENDED} IS NULL
    """)
    for status in (BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)
}
_FINALIZING = text("UPDATE batches SET finalizing_at = clock_timestamp() WHERE id = :batch AND finalizing_at IS NULL")


def settle(connection: Connection, batch: StoredBatch) -> tuple[StoredBatch, list[BatchJob], BatchStatus]:
    """A batch with its status now; the moments of a change that nobody has seen before are stored."""
    if batch.ended_at is not None or batch.in_progress_at is None:
        return batch, select_jobs(connection, batch.id), status_of(batch, [])
    jobs = select_jobs(connection, batch.id)
    status = status_of(batch, jobs)
    if status is BatchStatus.FINALIZING and batch.finalizing_at is None:
        connection.execute(_FINALIZING, {"batch": batch.id})
    elif status in _END:
        connection.execute(_LOCK_BATCH, {"id": batch.id})
        jobs = select_jobs(connection, batch.id)  # a retry may have come between
        if status_of(batch, jobs) is status:
            completed, failed = count_lines(connection, jobs)
            connection.execute(_END[status], {"batch": batch.id, "completed": completed, "failed": failed})
    else:
        return batch, jobs, status
    again = lock_batch(connection, batch.id)
    return again, jobs, status_of(again, jobs)


def lock_batch(connection: Connection, batch_id: str) -> StoredBatch:
    """A batch which nobody else changes before this transaction ends."""
    return _batch(connection.execute(_LOCK_BATCH, {"id": batch_id}).mappings().one())


# From lines to jobs

_UNREAD = text(f"""
    SELECT id FROM batches WHERE in_progress_at IS NULL AND {ENDED} IS NULL ORDER BY created_at LIMIT 20
""")
_TRY_READING = text("SELECT pg_try_advisory_xact_lock(hashtextextended('batch ' || :batch, 0))")


def take_unread(connection: Connection) -> StoredBatch | None:
    """A batch that nobody reads now and nobody has read; this transaction has it until its end.

    A reader that dies loses it with its connection, and has stored nothing.
    """
    for batch_id in connection.execute(_UNREAD).scalars().all():
        if connection.execute(_TRY_READING, {"batch": batch_id}).scalar_one():
            row = connection.execute(_GET_BATCH, {"id": batch_id, "all": True, "owner": None}).mappings().one()
            batch = _batch(row)
            if batch.in_progress_at is None and batch.ended_at is None:
                return batch
    return None


_FAIL = text("""
    UPDATE batches SET failed_at = clock_timestamp(), errors = CAST(:errors AS jsonb), num_lines = :num_lines
    WHERE id = :batch
""")
_BEGIN = text("""
    UPDATE batches SET in_progress_at = clock_timestamp(), num_lines = :num_lines, model = :model WHERE id = :batch
""")
_INSERT_JOB = text("INSERT INTO batch_jobs (batch_id, job_id, model) VALUES (:batch, :job, :model)")


def fail_batch(connection: Connection, batch_id: str, errors: Sequence[dict[str, Any]], *, num_lines: int) -> None:
    """End a batch whose input is bad; nothing of it runs."""
    values = {"batch": batch_id, "errors": orjson.dumps(list(errors)).decode(), "num_lines": num_lines}
    connection.execute(_FAIL, values)


def begin_batch(connection: Connection, batch_id: str, jobs: Sequence[tuple[int, str]], *, num_lines: int) -> None:
    """Give a batch its jobs, each with the model as its lines call it."""
    models = {model for _, model in jobs}
    model = models.pop() if len(models) == 1 else None
    connection.execute(_BEGIN, {"batch": batch_id, "num_lines": num_lines, "model": model})
    for job_id, name in jobs:
        connection.execute(_INSERT_JOB, {"batch": batch_id, "job": job_id, "model": name})


# What people do with it

_CANCEL = text("UPDATE batches SET cancelling_at = clock_timestamp() WHERE id = :batch AND cancelling_at IS NULL")
_REOPEN = text("""
    UPDATE batches SET completed_at = NULL, finalizing_at = NULL, num_completed = NULL, num_failed = NULL, usage = NULL,
        output_bytes = NULL, error_bytes = NULL, output_deleted_at = NULL, error_deleted_at = NULL,
        num_retries = num_retries + 1,
        expires_at = clock_timestamp() + (expires_at - created_at)
    WHERE id = :batch
""")


def mark_cancelling(connection: Connection, batch_id: str) -> None:
    connection.execute(_CANCEL, {"batch": batch_id})


def reopen_batch(connection: Connection, batch_id: str) -> None:
    """A completed batch goes on; its window begins anew."""
    connection.execute(_REOPEN, {"batch": batch_id})


# What is done for it from time to time

_OPEN_BATCHES = text(
    f"SELECT {_COLUMNS} FROM batches b WHERE {ENDED} IS NULL AND in_progress_at IS NOT NULL ORDER BY b.id"
)
_OVERDUE = text(f"""
    UPDATE batches SET expiring_at = clock_timestamp()
    WHERE id IN (SELECT id FROM batches WHERE {ENDED} IS NULL AND in_progress_at IS NOT NULL
                 AND expires_at < clock_timestamp() AND expiring_at IS NULL AND cancelling_at IS NULL
                 ORDER BY id FOR UPDATE SKIP LOCKED)
""")
_TO_CANCEL = text(f"""
    SELECT j.id FROM batches b JOIN batch_jobs k ON k.batch_id = b.id JOIN jobs j ON j.id = k.job_id
    WHERE {ENDED} IS NULL AND (b.cancelling_at IS NOT NULL OR b.expiring_at IS NOT NULL)
      AND j.state IN ('running', 'paused')
    ORDER BY j.id
""")
_UNMEASURED = text(f"""
    SELECT {_COLUMNS} FROM batches b
    WHERE coalesce(completed_at, expired_at, cancelled_at) IS NOT NULL AND usage IS NULL ORDER BY b.id LIMIT 1
""")
_MEASURED = text("""
    UPDATE batches SET usage = CAST(:usage AS jsonb), output_bytes = :output_bytes, error_bytes = :error_bytes
    WHERE id = :batch AND num_retries = :num_retries AND usage IS NULL
      AND coalesce(completed_at, expired_at, cancelled_at) IS NOT NULL
""")


def open_batches(connection: Connection) -> list[StoredBatch]:
    """Those whose jobs are at work. Index: ix_batches_open."""
    return [_batch(row) for row in connection.execute(_OPEN_BATCHES).mappings()]


def mark_overdue(connection: Connection) -> int:
    """Note which batches are past their deadline; returns how many. Their jobs follow: ``jobs_to_cancel``."""
    return connection.execute(_OVERDUE).rowcount


_RETRIED = text("""
    SELECT b.id FROM batches b
    WHERE b.completed_at IS NOT NULL
      AND EXISTS (SELECT FROM batch_jobs k JOIN jobs j ON j.id = k.job_id
                  WHERE k.batch_id = b.id AND j.state IN ('running', 'paused'))
    ORDER BY b.id LIMIT 20 FOR UPDATE OF b SKIP LOCKED
""")


def reopen_retried(connection: Connection) -> int:
    """Let batches go on of which somebody has retried a job by its number; returns how many."""
    ids = connection.execute(_RETRIED).scalars().all()
    for batch_id in ids:
        reopen_batch(connection, batch_id)
    return len(ids)


def jobs_to_cancel(connection: Connection) -> list[int]:
    """Jobs that run although their batch was cancelled or is past its deadline."""
    return list(connection.execute(_TO_CANCEL).scalars())


def find_unmeasured(connection: Connection) -> StoredBatch | None:
    """A batch that has ended and whose answers nobody has counted yet."""
    row = connection.execute(_UNMEASURED).mappings().first()
    return None if row is None else _batch(row)


def store_measures(
    connection: Connection, batch: StoredBatch, *, usage: dict[str, Any], output_bytes: int, error_bytes: int
) -> None:
    """What was counted of its answers, unless it was retried meanwhile."""
    values = {
        "batch": batch.id, "num_retries": batch.num_retries, "usage": orjson.dumps(usage).decode(),
        "output_bytes": output_bytes, "error_bytes": error_bytes,
    }  # fmt: skip
    connection.execute(_MEASURED, values)

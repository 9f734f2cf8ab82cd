"""The statements of a job's life after its submission: cancel, pause, resume, retry, priority.

A job's state is changed in a transaction of its own before any sample is touched: admission and claims look at it, so
that nothing new begins once it is committed. No transaction that holds a job's row waits for a sample that a claim may
hold, because a claim may wait for the row. Samples are changed in batches, each in a transaction of its own, however
many there are; upkeep goes on where a client died between two of them, and every command can be given again.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, text

from pipeline.db.readable import reading
from pipeline.db.states import ADMITTED, FAILED, IN_WORK, OPEN, PUBLISHED, first_claim_of, waiting_again
from pipeline.errors import JobError, NotFound
from pipeline.jobs.config import FINAL_JOB_STATES, JobState
from pipeline.samples import ErrorClass

BATCH = 2_000
"""Samples in one transaction that changes their state: a tenth of a second."""
CUT_BATCH = 500
"""Samples in one transaction that also deletes what was written of them."""

_LOCK_JOB = text("SELECT state, priority FROM jobs WHERE id = :job FOR NO KEY UPDATE")
_SET_STATE = text(f"""
    UPDATE jobs j SET state = :state, finished_at = CASE WHEN :is_final THEN clock_timestamp() END,
        first_claimed_at = CASE WHEN :is_final THEN coalesce(j.first_claimed_at, {first_claim_of("j")})
                                ELSE j.first_claimed_at END
    WHERE j.id = :job
""")


def _lock_job(connection: Connection, job_id: int) -> RowMapping:
    """The job's state and priority, which nobody else changes before this transaction ends. Raises NotFound."""
    row = connection.execute(_LOCK_JOB, {"job": job_id}).mappings().first()
    if row is None:
        raise NotFound.job(job_id)
    return row


def _change_state(connection: Connection, job_id: int, to: JobState, *, verb: str, allowed: Sequence[JobState]) -> bool:
    """Whether it changed; False: it was in that state. Raises NotFound, and JobError from any other state."""
    with reading(f"job {job_id}: its state"):
        state = JobState(_lock_job(connection, job_id)["state"])
    if state is to:
        return False
    if state not in allowed:
        raise JobError(job_id, f"it is {state}; only a {' or '.join(allowed)} job can be {verb}")
    connection.execute(_SET_STATE, {"job": job_id, "state": to.value, "is_final": to in FINAL_JOB_STATES})
    return True


# Cancel


def cancel_job(connection: Connection, job_id: int) -> bool:
    """End a running or paused job; False: it is cancelled already. Its samples follow: ``cancel_samples``.

    Raises NotFound, and JobError where it ended otherwise.
    """
    return _change_state(
        connection, job_id, JobState.CANCELLED, verb="cancelled", allowed=[JobState.RUNNING, JobState.PAUSED]
    )


# By id + 0, so that no plan reads through the table in the order of ids.
_LOCK_OPEN = """
    SELECT s.id FROM samples s JOIN jobs j ON j.id = s.job_id
    WHERE s.job_id = :job AND j.state = 'cancelled' AND s.{phase} ORDER BY s.id + 0 LIMIT :limit FOR UPDATE OF s
"""
_LOCK_ADMITTED = text(_LOCK_OPEN.format(phase=ADMITTED))
_LOCK_ALL = text(_LOCK_OPEN.format(phase=OPEN))
_CANCEL_SAMPLES = text("""
    UPDATE samples SET state = 'cancelled', epoch = epoch + 1, holder_id = NULL, ended_at = clock_timestamp()
    WHERE id = ANY(:ids)
""")


def cancel_samples(connection: Connection, job_id: int, *, limit: int = BATCH) -> int:
    """End the open samples of a cancelled job, those at work before all others; returns how many, 0: there are none.

    Workers that write for it find their epoch gone: they abort, and can commit nothing. Indexes: ix_samples_in_work,
    ix_samples_open.
    """
    values = {"job": job_id, "limit": limit}
    ids = list(connection.execute(_LOCK_ADMITTED, values).scalars()) or list(
        connection.execute(_LOCK_ALL, values).scalars()
    )
    return connection.execute(_CANCEL_SAMPLES, {"ids": ids}).rowcount if ids else 0


_AT_WORK = text(f"""
    SELECT EXISTS (SELECT FROM samples WHERE job_id = :job
                   AND {ADMITTED})
""")


def is_at_work(connection: Connection, job_id: int) -> bool:
    """Whether a sample of a job is with a worker or waits for one. Index: ix_samples_in_work."""
    return bool(connection.execute(_AT_WORK, {"job": job_id}).scalar_one())


_COUNT_CANCELLED = text("SELECT samples_total - graded - failed FROM count_states(:job)")


def count_cancelled(connection: Connection, job_id: int) -> int:
    """How many of a cancelled job's samples were still open when it was cancelled."""
    return int(connection.execute(_COUNT_CANCELLED, {"job": job_id}).scalar_one())


_HALF_CANCELLED = text(f"""
    SELECT j.id FROM jobs j LEFT JOIN job_totals t ON t.job_id = j.id
    WHERE j.state = 'cancelled' AND t.job_id IS NULL
      AND EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.{OPEN})
    ORDER BY j.id LIMIT 1
""")


def cancel_leftovers(connection: Connection) -> int:
    """Go on with a cancel whose client died in the middle; returns how many samples were ended."""
    job_id = connection.execute(_HALF_CANCELLED).scalar()
    return 0 if job_id is None else cancel_samples(connection, job_id)


# Pause and resume


def pause_job(connection: Connection, job_id: int) -> bool:
    """Let nothing of a running job be admitted or written; False: it is paused already. Then ``release_job_samples``.

    Complete texts are still graded. Raises NotFound, and JobError where it has ended.
    """
    return _change_state(connection, job_id, JobState.PAUSED, verb="paused", allowed=[JobState.RUNNING])


_LOCK_TO_RELEASE = text(f"""
    SELECT s.id, s.holder_id IS NOT NULL AS is_held FROM samples s JOIN jobs j ON j.id = s.job_id
    WHERE s.job_id = :job AND j.state = 'paused' AND s.{ADMITTED}
    ORDER BY s.id FOR UPDATE OF s
""")
_RELEASE = text(f"""
    UPDATE samples SET state = {waiting_again("state")},
        epoch = epoch + 1, holder_id = NULL, runnable_at = clock_timestamp(), published_at = clock_timestamp()
    WHERE id = ANY(:ids)
""")


def release_job_samples(connection: Connection, job_id: int) -> int:
    """Take a paused job's samples back to their last committed segments; returns how many were being written.

    Those that only wait get a new epoch too: no message sent before can claim them, not even by a claim that has begun
    and still takes the job for running. There are at most as many as the workers have slots, and half as many again.
    Index: ix_samples_in_work.
    """
    admitted = connection.execute(_LOCK_TO_RELEASE, {"job": job_id}).all()
    connection.execute(_RELEASE, {"ids": [row.id for row in admitted]})
    return len([row for row in admitted if row.is_held])


_LOCK_WAITING = text(f"""
    SELECT id, state FROM samples WHERE job_id = :job AND {IN_WORK} AND state IN {PUBLISHED}
    ORDER BY id FOR UPDATE
""")
_PUBLISH_AT_ONCE = text("""
    UPDATE samples SET epoch = epoch + (state <> 'finished')::integer, published_at = '-infinity',
        runnable_at = greatest(clock_timestamp(), not_before)
    WHERE id = ANY(:ids)
""")


def resume_job(connection: Connection, job_id: int) -> int | None:
    """Let a paused job go on; returns how many samples go on at once, None: it runs already.

    Upkeep sends their messages at its next tick. Raises NotFound, and JobError where it has ended.
    """
    if not _change_state(connection, job_id, JobState.RUNNING, verb="resumed", allowed=[JobState.PAUSED]):
        return None
    waiting = connection.execute(_LOCK_WAITING, {"job": job_id}).all()
    connection.execute(_PUBLISH_AT_ONCE, {"ids": [row.id for row in waiting]})
    return len([row for row in waiting if row.state != "finished"])


# Retry

_RETRYABLE = (JobState.RUNNING, JobState.PAUSED, JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)
_FORGET_TOTALS = text("DELETE FROM job_totals WHERE job_id = :job")


def require_retryable(connection: Connection, job_id: int) -> JobState:
    """The state of a job whose samples can be tried again. Raises NotFound, and JobError for a cancelled one."""
    with reading(f"job {job_id}: its state"):
        state = JobState(_lock_job(connection, job_id)["state"])
    if state not in _RETRYABLE:
        raise JobError(job_id, f"it is {state}, and stays so; specthink clone {job_id} makes a new job like it")
    return state


def _reopen_job(connection: Connection, job_id: int) -> None:
    """An ended job runs again, a running or paused one stays as it is. Raises as ``require_retryable``."""
    if require_retryable(connection, job_id) in FINAL_JOB_STATES:
        connection.execute(_SET_STATE, {"job": job_id, "state": JobState.RUNNING.value, "is_final": False})
        connection.execute(_FORGET_TOTALS, {"job": job_id})


_SELECT_FAILED = text(f"""
    SELECT id FROM samples
    WHERE job_id = :job AND {FAILED} AND (CAST(:classes AS text[]) IS NULL OR error_class = ANY(:classes))
    ORDER BY id
""")


def select_failed(connection: Connection, job_id: int, classes: Sequence[ErrorClass] = ()) -> list[int]:
    """The failed samples of a job, of some error classes where any are given."""
    values = {"job": job_id, "classes": [error_class.value for error_class in classes] or None}
    return list(connection.execute(_SELECT_FAILED, values).scalars())


_RETRY_FAILED = text("SELECT retry_failed_samples(:job, :ids)")


def retry_failed(connection: Connection, job_id: int, sample_ids: Sequence[int]) -> int:
    """Let failed samples be tried again from their last committed segments; returns how many.

    One that failed before it was stored who goes on with it begins anew. Raises NotFound, and JobError for a cancelled
    job. Samples that are not failed (any more) are left alone.
    """
    _reopen_job(connection, job_id)
    return int(connection.execute(_RETRY_FAILED, {"job": job_id, "ids": list(sample_ids)}).scalar_one())


_SELECT_CUT = text("""
    SELECT s.id FROM samples s JOIN jobs j ON j.id = s.job_id
    WHERE s.job_id = :job AND s.state = 'graded' AND s.finish_reason = 'length'
      AND coalesce(s.max_tokens, (j.config->'sampling'->>'max_tokens')::integer) < :max_tokens
    ORDER BY s.id
""")


def select_cut(connection: Connection, job_id: int, *, max_tokens: int) -> list[int]:
    """The graded samples that were ended by a budget below max_tokens."""
    return list(connection.execute(_SELECT_CUT, {"job": job_id, "max_tokens": max_tokens}).scalars())


_RETRY_CUT = text("SELECT retry_cut_samples(:job, :ids, :max_tokens)")


def retry_cut(connection: Connection, job_id: int, sample_ids: Sequence[int], *, max_tokens: int) -> int:
    """Let samples that a smaller budget has cut be drawn again with max_tokens; returns how many.

    A policy may have looked at what was left of its budget anywhere, so they begin anew: their segments, steps and
    grades go, and what was generated for them counts as withdrawn. Raises NotFound, and JobError for a cancelled
    job. Samples that are not so (any more) are left alone.
    """
    _reopen_job(connection, job_id)
    values = {"job": job_id, "ids": list(sample_ids), "max_tokens": max_tokens}
    return int(connection.execute(_RETRY_CUT, values).scalar_one())


# Priority

_SET_PRIORITY = text("UPDATE jobs SET priority = :priority WHERE id = :job")


def set_priority(connection: Connection, job_id: int, priority: int) -> bool:
    """Put a job before those of lower priority; False: it has this one.

    Raises NotFound, and JobError where it has ended.
    """
    job = _lock_job(connection, job_id)
    if job["state"] in FINAL_JOB_STATES:
        raise JobError(job_id, f"it is {job['state']}; only a running or paused job has a place to change")
    if job["priority"] == priority:
        return False
    connection.execute(_SET_PRIORITY, {"job": job_id, "priority": priority})
    return True

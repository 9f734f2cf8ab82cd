"""What is counted of a job once it has ended, so that nobody counts it again.

A row of job_totals holds until a grade of its job changes; the views count that job anew until upkeep has counted it
again. Counting and changing a grade of an ended job exclude each other by locks on the job's row: a count never misses
a grade that was there when it was stored.
"""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Connection, text

from pipeline.db.tables import JobTotalsRow

_COUNTED = [
    column.name for column in JobTotalsRow.__table__.columns if column.name not in ("job_id", "counted_at", "stale_at")
]
_BATCH = 10

_UNCOUNTED = text("""
    SELECT j.id FROM jobs j LEFT JOIN job_totals t ON t.job_id = j.id
    WHERE j.state NOT IN ('running', 'paused') AND (t.job_id IS NULL OR t.stale_at < clock_timestamp() - :quiet)
      AND NOT EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.state NOT IN ('graded', 'failed', 'cancelled'))
    ORDER BY j.id LIMIT :batch FOR NO KEY UPDATE OF j SKIP LOCKED
""")
_COUNT = text(f"""
    INSERT INTO job_totals (job_id, counted_at, stale_at, {", ".join(_COUNTED)})
    SELECT :job, clock_timestamp(), NULL, {", ".join(_COUNTED)} FROM count_samples(:job), count_cost(:job)
    ON CONFLICT (job_id) DO UPDATE SET counted_at = excluded.counted_at, stale_at = NULL,
        {", ".join(f"{name} = excluded.{name}" for name in _COUNTED)}
""")


def count_ended_jobs(connection: Connection, *, quiet: dt.timedelta) -> list[int]:
    """Count and keep the totals of ended jobs that have none, or whose grades changed and have now been quiet so long.

    One that is being cancelled is left until its last sample has ended. A few at a time, oldest first. The count is a
    statement of its own after the lock on the job's row, so that it sees every grade that was committed before it.
    """
    jobs = list(connection.execute(_UNCOUNTED, {"quiet": quiet, "batch": _BATCH}).scalars())
    for job_id in jobs:
        connection.execute(_COUNT, {"job": job_id})
    return jobs


_LOCK_JOB = text("""
    SELECT j.id FROM samples s JOIN jobs j ON j.id = s.job_id
    WHERE s.id = :sample AND s.state = 'graded' FOR SHARE OF j
""")
_MARK_STALE = text("UPDATE job_totals SET stale_at = clock_timestamp() WHERE job_id = :job")


def lock_graded_job(connection: Connection, sample_id: int) -> int | None:
    """Keep the job of a graded sample from being counted; None: the sample has no grade, and its job still runs."""
    return connection.execute(_LOCK_JOB, {"sample": sample_id}).scalar()


def mark_stale(connection: Connection, job_id: int) -> None:
    """Say that a grade of a job changes; its row is locked by ``lock_graded_job``."""
    connection.execute(_MARK_STALE, {"job": job_id})

"""Keeps the totals of jobs that have ended, so that nobody counts them again.

While a job runs, the views add up its rollups (``pipeline.db.rollups``). Once it has ended it is counted as a whole. A
row of job_totals holds until a grade of its job changes; the views count that job anew until upkeep has counted it
again. Counting and changing a grade of an ended job exclude each other by locks on the job's row: a count never misses
a grade that was there when it was stored.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from sqlalchemy import Connection, text

from pipeline.db.states import OPEN

_UNCOUNTED = f"""
    SELECT j.id FROM jobs j LEFT JOIN job_totals t ON t.job_id = j.id
    WHERE j.state NOT IN ('running', 'paused') AND (
          t.job_id IS NULL OR t.stale_at NOT BETWEEN clock_timestamp() - :quiet AND clock_timestamp()
      )
      AND NOT EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.{OPEN})
"""
_SELECT_UNCOUNTED = text(f"{_UNCOUNTED} AND j.id <> ALL(:but) ORDER BY j.id LIMIT :limit")
_LOCK_UNCOUNTED = text(f"{_UNCOUNTED} AND j.id = :job FOR NO KEY UPDATE OF j SKIP LOCKED")

_KEEP = text("SELECT keep_totals(:job)")


def uncounted_jobs(connection: Connection, *, quiet: dt.timedelta, limit: int, but: Sequence[int] = ()) -> list[int]:
    """Ended jobs that have no totals, or whose grades changed and have now been quiet so long; oldest first.

    One that is being cancelled is left until its last sample has ended. but: jobs to pass over.
    """
    return list(connection.execute(_SELECT_UNCOUNTED, {"quiet": quiet, "limit": limit, "but": list(but)}).scalars())


def count_job(connection: Connection, job_id: int, *, quiet: dt.timedelta) -> bool:
    """Count an ended job and keep its totals; False: they are there, or somebody changes a grade just now.

    The count is a statement of its own after the lock on the job's row, so that it sees every grade that was committed
    before it. One job per transaction: another grading of its samples waits until the end.
    """
    if connection.execute(_LOCK_UNCOUNTED, {"quiet": quiet, "job": job_id}).first() is None:
        return False
    connection.execute(_KEEP, {"job": job_id})
    return True


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

"""What is counted of jobs, so that nobody counts it again.

While a job runs it is counted by lots: parts whose samples all rest, pending or final. The database takes a lot out
again as soon as one of its samples goes on or changes (revision 0007), so that the views, which add up the lots and
look at the other samples, are right at any moment.

Once it has ended it is counted as a whole. A row of job_totals holds until a grade of its job changes; the views count
that job anew until upkeep has counted it again. Counting and changing a grade of an ended job exclude each other by
locks on the job's row: a count never misses a grade that was there when it was stored.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import Connection, TextClause, text

from pipeline.samples import RESTING_STATES

_UNCOUNTED = """
    SELECT j.id FROM jobs j LEFT JOIN job_totals t ON t.job_id = j.id
    WHERE j.state NOT IN ('running', 'paused') AND (t.job_id IS NULL OR t.stale_at < clock_timestamp() - :quiet)
      AND NOT EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.state NOT IN ('graded', 'failed', 'cancelled'))
"""
_SELECT_UNCOUNTED = text(f"{_UNCOUNTED} AND j.id <> ALL(:but) ORDER BY j.id LIMIT :limit")
_LOCK_UNCOUNTED = text(f"{_UNCOUNTED} AND j.id = :job FOR NO KEY UPDATE OF j SKIP LOCKED")


@lru_cache(maxsize=1)
def _count_statement() -> TextClause:
    from pipeline.db.tables import JobTotalsRow  # not above: most processes never count, and the ORM's import is slow

    names = [column.name for column in JobTotalsRow.__table__.columns]
    counted = [name for name in names if name not in ("job_id", "counted_at", "stale_at")]
    return text(f"""
        INSERT INTO job_totals (job_id, counted_at, stale_at, {", ".join(counted)})
        SELECT :job, clock_timestamp(), NULL, {", ".join(counted)} FROM count_samples(:job), count_cost(:job)
        ON CONFLICT (job_id) DO UPDATE SET counted_at = excluded.counted_at, stale_at = NULL,
            {", ".join(f"{name} = excluded.{name}" for name in counted)}
    """)


def uncounted_jobs(connection: Connection, *, quiet: dt.timedelta, limit: int, but: Sequence[int] = ()) -> list[int]:
    """Ended jobs that have no totals, or whose grades changed and have now been quiet so long; oldest first.

    One that is being cancelled is left until its last sample has ended. but: jobs to pass over.
    """
    return list(connection.execute(_SELECT_UNCOUNTED, {"quiet": quiet, "limit": limit, "but": list(but)}).scalars())


def count_job(connection: Connection, job_id: int, *, quiet: dt.timedelta) -> bool:
    """Count an ended job and keep its totals; False: they are there, or somebody changes a grade just now.

    The count is a statement of its own after the lock on the job's row, so that it sees every grade that was committed
    before it. One job per transaction: whoever grades a sample of it again waits until the end.
    """
    if connection.execute(_LOCK_UNCOUNTED, {"quiet": quiet, "job": job_id}).first() is None:
        return False
    connection.execute(_count_statement(), {"job": job_id})
    return True


# Looked up lot by lot (OFFSET), in the index that has its problems side by side (|| '': no other one knows the state).
_RESTING = text(f"""
    SELECT l.job_id, l.first_problem FROM lots l
    WHERE l.counted_at IS NULL AND coalesce(l.changed_at < clock_timestamp() - :quiet, true)
      AND NOT EXISTS (
          SELECT FROM samples s
          WHERE s.job_id = l.job_id AND s.problem_id BETWEEN l.first_problem AND l.last_problem
            AND s.state || '' NOT IN ({", ".join(repr(state.value) for state in sorted(RESTING_STATES))}) OFFSET 0
      )
    ORDER BY l.job_id DESC, l.first_problem LIMIT :limit
""")
_POSTPONE = text("""
    UPDATE lots SET changed_at = clock_timestamp() + :by
    WHERE job_id = :job AND first_problem = :first AND counted_at IS NULL
""")
_COUNT_LOT = text("SELECT count_lot(:job, :first)")
_COUNT_ADDED = text("SELECT count(*) FROM length_counts WHERE job_id = :job AND NOT is_base")
_FOLD = text("""
    WITH added AS (
        DELETE FROM length_counts WHERE job_id = :job AND NOT is_base
        RETURNING author, finish_reason, verdict, tokens, n, score
    )
    INSERT INTO length_counts (job_id, author, finish_reason, verdict, tokens, n, score, is_base)
    SELECT :job, author, finish_reason, verdict, tokens, sum(n), sum(score), true FROM added
    GROUP BY author, finish_reason, verdict, tokens ORDER BY author, finish_reason, verdict, tokens
    ON CONFLICT (job_id, author, finish_reason, verdict, tokens) WHERE is_base
    DO UPDATE SET n = length_counts.n + excluded.n, score = length_counts.score + excluded.score
""")
_FOLD_FROM = 20_000
"""Rows beside the base ones that are worth folding: a view reads them all."""


class Lot(NamedTuple):
    """A part of a job: the problems from this id on, up to the next lot's."""

    job_id: int
    first_problem: int


def resting_lots(connection: Connection, *, quiet: dt.timedelta, limit: int) -> list[Lot]:
    """Some lots that could be counted: all of their samples rest, and none has stopped to for so long.

    The newest jobs' first. Index: ix_lots_open, and for each lot the unique index of samples.
    """
    rows = connection.execute(_RESTING, {"quiet": quiet, "limit": limit})
    return [Lot(row.job_id, row.first_problem) for row in rows]


def count_lot(connection: Connection, lot: Lot) -> bool:
    """Keep what the samples of a lot add to their job's totals; False: one of them has gone on, or somebody is at it.

    One lot per transaction: whoever changes a sample of it waits until the end.
    """
    return bool(connection.execute(_COUNT_LOT, {"job": lot.job_id, "first": lot.first_problem}).scalar_one())


def postpone_lot(connection: Connection, lot: Lot, *, by: dt.timedelta) -> None:
    """Let a lot that cannot be counted wait, so that it is not begun again and again; the views look at its samples."""
    connection.execute(_POSTPONE, {"job": lot.job_id, "first": lot.first_problem, "by": by})


def fold_lengths(connection: Connection, job_id: int, *, at_least: int = _FOLD_FROM) -> bool:
    """Fold a job's added length counts into its base rows where there are so many; returns whether there were."""
    values = {"job": job_id}
    if int(connection.execute(_COUNT_ADDED, values).scalar_one()) < at_least:
        return False
    connection.execute(_FOLD, values)
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

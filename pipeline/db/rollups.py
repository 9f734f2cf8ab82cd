"""The statements of rollups: which could be refreshed, refresh one, compact what refreshing adds.

A rollup keeps what the samples of a part of a job add up to while all of them are idle: pending, or in a final state.
The database invalidates it as soon as one of its samples goes on or changes, so that the views, which add up rollups
and look at the other samples, are right at any moment (``sql/rollups/``).
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from sqlalchemy import Connection, text

from pipeline.samples import IDLE_STATES

# Looked up part by part (OFFSET), in the index that has its problems side by side (|| '': no other knows the state).
_REFRESHABLE = text(f"""
    SELECT r.job_id, r.first_problem FROM rollups r
    WHERE r.refreshed_at IS NULL
      AND coalesce(r.changed_at NOT BETWEEN clock_timestamp() - :quiet AND clock_timestamp() + :retry_after, true)
      AND NOT EXISTS (
          SELECT FROM samples s
          WHERE s.job_id = r.job_id AND s.problem_id BETWEEN r.first_problem AND r.last_problem
            AND s.state || '' NOT IN ({", ".join(repr(state.value) for state in sorted(IDLE_STATES))}) OFFSET 0
      )
    ORDER BY r.job_id DESC, r.first_problem LIMIT :limit
""")
RETRY_AFTER = dt.timedelta(minutes=10)
"""When a count that failed is tried again. A change that is to come later is of before the clock was set back."""
_POSTPONE = text("""
    UPDATE rollups SET changed_at = clock_timestamp() + :by
    WHERE job_id = :job AND first_problem = :first AND refreshed_at IS NULL
""")
_REFRESH = text("SELECT refresh_rollup(:job, :first)")
_COMPACT = text("SELECT compact_lengths(:job, :at_least)")
_COMPACT_FROM = 20_000
"""Rows beside the base ones that are worth compacting: a view reads them all."""


class Rollup(NamedTuple):
    """A part of a job: the problems from this id on, up to the next one's."""

    job_id: int
    first_problem: int


def refreshable_rollups(connection: Connection, *, quiet: dt.timedelta, limit: int) -> list[Rollup]:
    """Some that could be refreshed: all of their samples are idle, and none has changed for so long.

    The newest jobs' first. Index: ix_rollups_invalid, and for each part the unique index of samples.
    """
    rows = connection.execute(_REFRESHABLE, {"quiet": quiet, "limit": limit, "retry_after": RETRY_AFTER})
    return [Rollup(row.job_id, row.first_problem) for row in rows]


def refresh_rollup(connection: Connection, rollup: Rollup) -> bool:
    """Keep what the samples of a part add up to; False: one of them has gone on, or somebody is at it.

    One per transaction: a change of its samples waits until the end.
    """
    values = {"job": rollup.job_id, "first": rollup.first_problem}
    return bool(connection.execute(_REFRESH, values).scalar_one())


def postpone_rollup(connection: Connection, rollup: Rollup, *, by: dt.timedelta) -> None:
    """Let one that cannot be refreshed wait, so that it is not begun again and again; the views look at its samples."""
    connection.execute(_POSTPONE, {"job": rollup.job_id, "first": rollup.first_problem, "by": by})


def compact_lengths(connection: Connection, job_id: int, *, at_least: int = _COMPACT_FROM) -> bool:
    """Add a job's added length counts to its base rows where there are so many; returns whether there were."""
    return bool(connection.execute(_COMPACT, {"job": job_id, "at_least": at_least}).scalar_one())

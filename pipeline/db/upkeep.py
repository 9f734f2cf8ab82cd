"""The statements of upkeep: admit, settle (rescue), publish again, time out gradings, close jobs.

Every duty is one short transaction and may be repeated at any time: what it returns is published after the commit,
and what a crash kept from being published is found again by ``overdue_samples``.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipeline.db.hops import RUNNABLE_COLUMNS, Runnable, runnable, select_runnable
from pipeline.db.totals import count_ended_jobs
from pipeline.jobs import JobState

LEADER_LOCK = 7_300_002
"""Advisory lock key: one upkeep process at a time does the duties."""


def try_to_lead(connection: Connection) -> bool:
    """True once this connection's session holds the leader's lock; it is held until the connection closes."""
    return bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LEADER_LOCK}).scalar_one())


_ROOM = text("""
    WITH demand AS (
        SELECT j.id, j.first_role, CASE j.first_role WHEN 'small' THEN j.small_model ELSE j.large_model END AS model
        FROM jobs j WHERE j.state = 'running'
    ),
    supply AS (
        SELECT kind, model, sum(max_in_flight) AS slots FROM workers
        WHERE ended_at IS NULL AND expires_at > clock_timestamp() GROUP BY kind, model
    ),
    used AS (
        SELECT d.first_role, d.model, count(*) AS admitted
        FROM samples s JOIN demand d ON d.id = s.job_id
        WHERE s.state IN ('ready', 'drafting', 'awaiting_large', 'assisting') GROUP BY d.first_role, d.model
    )
    SELECT d.id AS job_id, d.first_role, d.model,
           ceil(supply.slots * :ahead)::integer - coalesce(used.admitted, 0)::integer AS room
    FROM demand d JOIN supply ON supply.kind = d.first_role AND supply.model = d.model
    LEFT JOIN used ON used.first_role = d.first_role AND used.model = d.model
    WHERE EXISTS (SELECT FROM samples s WHERE s.job_id = d.id AND s.state = 'pending')
    ORDER BY d.id
""")

_ADMIT = text("""
    WITH chosen AS (
        SELECT id FROM samples WHERE job_id = :job AND state = 'pending' ORDER BY id LIMIT :room
        FOR UPDATE SKIP LOCKED
    )
    UPDATE samples s SET state = :state, admitted_at = clock_timestamp(), published_at = clock_timestamp()
    FROM chosen WHERE s.id = chosen.id
    RETURNING s.id
""")


def admit_samples(connection: Connection, *, ahead: float) -> list[Runnable]:
    """Let in as many waiting samples as the live workers of their opening model have room for, oldest job first.

    ahead: samples in the pipeline per slot. A sample with the large model still counts: its context is cached.
    """
    admitted: list[int] = []
    room_left: dict[tuple[str, str], int] = {}
    for row in connection.execute(_ROOM, {"ahead": ahead}):
        room = room_left.setdefault((row.first_role, row.model), row.room)
        if room <= 0:
            continue
        state = "ready" if row.first_role == "small" else "awaiting_large"
        ids = connection.execute(_ADMIT, {"job": row.job_id, "room": room, "state": state}).scalars().all()
        room_left[row.first_role, row.model] -= len(ids)
        admitted.extend(ids)
    return select_runnable(connection, sorted(admitted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Workers whose affairs were wound up, and the samples that are runnable again because of it."""

    worker_ids: list[int]
    queues: list[str]
    """Their own queues, which nobody reads any more."""
    rescued: int
    failed: int
    samples: list[Runnable]


_LAPSE = text("""
    UPDATE workers SET ended_at = clock_timestamp(), end_reason = 'lapsed'
    WHERE ended_at IS NULL AND expires_at < clock_timestamp()
""")
_UNSETTLED = text("""
    SELECT id, queue FROM workers WHERE ended_at IS NOT NULL AND settled_at IS NULL ORDER BY id FOR UPDATE SKIP LOCKED
""")
_RESCUE = text("""
    WITH held AS (SELECT id FROM samples WHERE holder_id = ANY(:workers) ORDER BY id FOR UPDATE)
    UPDATE samples s SET
        epoch = s.epoch + 1, holder_id = NULL, num_rescues = s.num_rescues + 1, published_at = clock_timestamp(),
        state = CASE WHEN s.num_rescues + 1 >= :max_rescues THEN 'failed'
                     WHEN s.state = 'drafting' THEN 'ready' ELSE 'awaiting_large' END,
        error_class = CASE WHEN s.num_rescues + 1 >= :max_rescues THEN 'WorkerLost' END,
        error = CASE WHEN s.num_rescues + 1 >= :max_rescues
                     THEN format('its worker was lost %s times while it wrote', s.num_rescues + 1) END,
        ended_at = CASE WHEN s.num_rescues + 1 >= :max_rescues THEN clock_timestamp() END
    FROM held WHERE s.id = held.id
    RETURNING s.id, s.state
""")
_ORPHANED = text("""
    UPDATE samples s SET published_at = clock_timestamp()
    WHERE (s.state = 'ready' AND s.small_worker_id = ANY(:workers))
       OR (s.state = 'awaiting_large' AND s.large_worker_id = ANY(:workers))
    RETURNING s.id
""")
_SETTLE = text("UPDATE workers SET settled_at = clock_timestamp() WHERE id = ANY(:workers)")


def settle_workers(connection: Connection, *, max_rescues: int) -> Settled | None:
    """End the lives of workers whose lease ran out, and give back what ended workers still held. None: nobody ended.

    A held sample goes back to its last committed segment under a new epoch, so that a worker that comes back to life
    can write nothing; after max_rescues it is set aside as failed.
    """
    connection.execute(_LAPSE)
    ended = connection.execute(_UNSETTLED).all()
    if not ended:
        return None
    workers = [row.id for row in ended]
    rescued = connection.execute(_RESCUE, {"workers": workers, "max_rescues": max_rescues}).all()
    ids = {row.id for row in rescued if row.state != "failed"}
    num_rescued = len(ids)
    ids.update(connection.execute(_ORPHANED, {"workers": workers}).scalars())
    connection.execute(_SETTLE, {"workers": workers})
    return Settled(
        worker_ids=workers,
        queues=[row.queue for row in ended],
        rescued=num_rescued,
        failed=len(rescued) - num_rescued,
        samples=select_runnable(connection, sorted(ids)),
    )


_OVERDUE = text(f"""
    WITH due AS (
        SELECT id FROM samples
        WHERE state IN ('ready', 'awaiting_large', 'finished') AND published_at < clock_timestamp() - :age
        ORDER BY published_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE samples s SET published_at = clock_timestamp() FROM due WHERE s.id = due.id
    RETURNING {RUNNABLE_COLUMNS}
""")


def overdue_samples(connection: Connection, *, age: dt.timedelta, limit: int = 1000) -> list[Runnable]:
    """Samples that wait since more than age; they count as published now. Index: ix_samples_published."""
    rows = connection.execute(_OVERDUE, {"age": age, "limit": limit}).mappings()
    return [runnable(row) for row in rows]


_CLOSE = text("""
    UPDATE jobs j SET finished_at = clock_timestamp(),
        state = CASE WHEN EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.state = 'failed')
                     THEN 'completed_with_errors' ELSE 'completed' END
    WHERE j.state = 'running'
      AND NOT EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.state NOT IN ('graded', 'failed', 'cancelled'))
    RETURNING j.id, j.state
""")


GRADES_QUIET = dt.timedelta(seconds=5)
"""A job that is graded again is counted once its grades have not changed for so long."""


def close_jobs(connection: Connection) -> dict[int, JobState]:
    """End the running jobs that have no open sample left, and keep the totals of ended ones. Index: ix_samples_open."""
    closed = {row.id: JobState(row.state) for row in connection.execute(_CLOSE)}
    count_ended_jobs(connection, quiet=GRADES_QUIET)
    return closed


_UNFOLLOWED = text("""
    UPDATE jobs SET followed_at = clock_timestamp()
    WHERE state = 'running' AND coalesce(followed_at, '-infinity') < clock_timestamp() - :age RETURNING id
""")


def unfollowed_jobs(connection: Connection, *, age: dt.timedelta) -> list[int]:
    """Running jobs whose progress nobody has shown for that long; they count as followed from now."""
    return list(connection.execute(_UNFOLLOWED, {"age": age}).scalars())


_FOLLOWED = text("UPDATE jobs SET followed_at = clock_timestamp() WHERE id = :job")


def mark_followed(connection: Connection, job_id: int) -> None:
    """Note that somebody shows this job's progress now."""
    connection.execute(_FOLLOWED, {"job": job_id})

"""The statements of upkeep: admit, settle (rescue), publish again, try suspects, halt, mark, close jobs.

Every duty is one short transaction and may be repeated at any time: what it returns is published after the commit,
and what a crash kept from being published is found again by ``overdue_samples``.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipeline.db.runnable import RUNNABLE_COLUMNS, Runnable, runnable, select_runnable
from pipeline.db.states import (
    ADMITTED,
    FAILED,
    FINISHED,
    OPEN,
    PENDING,
    RUNNABLE,
    WRITING,
    first_claim_of,
    home_worker,
    model_of,
    role_of,
    runnable_state_of,
    waiting_again,
    why_not_served,
)
from pipeline.jobs.config import JobState
from pipeline.samples import ALONE_AFTER, GUILTY_AFTER_LAPSES, SUSPECT_AFTER, ModelRole

_MISFITS = " ".join(f"WHEN {role.value!r} THEN {why_not_served(role)}" for role in ModelRole)
_ROOM = text(f"""
    WITH live AS MATERIALIZED (
        SELECT DISTINCT w.kind, w.model, e.model_fingerprint, e.weights_sha256, e.revision
        FROM workers w LEFT JOIN engines e ON e.id = w.engine_id
        WHERE w.ended_at IS NULL AND w.expires_at > clock_timestamp()
    ),
    demand AS MATERIALIZED (
        SELECT j.id, j.priority, j.first_role, {model_of("j.first_role")} AS model
        FROM jobs j
        WHERE j.state = 'running' AND EXISTS (
            SELECT FROM live e
            WHERE e.kind = j.first_role AND e.model = {model_of("j.first_role")}
              AND CASE j.first_role {_MISFITS} END IS NULL)
    ),
    supply AS (
        SELECT kind, model, sum(coalesce(num_slots, max_in_flight)) AS slots FROM workers
        WHERE ended_at IS NULL AND expires_at > clock_timestamp() GROUP BY kind, model
    ),
    used AS (
        SELECT d.first_role, d.model, count(*) AS admitted
        FROM samples s JOIN demand d ON d.id = s.job_id
        WHERE s.{ADMITTED} GROUP BY d.first_role, d.model
    )
    SELECT d.id AS job_id, d.first_role, d.model,
           ceil(supply.slots * :ahead)::integer - coalesce(used.admitted, 0)::integer AS room
    FROM demand d JOIN supply ON supply.kind = d.first_role AND supply.model = d.model
    LEFT JOIN used ON used.first_role = d.first_role AND used.model = d.model
    WHERE EXISTS (SELECT FROM samples s WHERE s.job_id = d.id AND s.{PENDING})
    ORDER BY d.priority DESC, d.id
""")

_ADMIT = text(f"""
    WITH chosen AS (
        SELECT s.id FROM samples s
        WHERE s.job_id = :job AND {PENDING}
          AND {runnable_state_of("coalesce(s.next_role, :first_role)")} IS NOT NULL
        ORDER BY s.id LIMIT :room FOR UPDATE SKIP LOCKED
    )
    UPDATE samples s SET
        state = {runnable_state_of("coalesce(s.next_role, :first_role)")},
        admitted_at = coalesce(s.admitted_at, clock_timestamp()),
        runnable_at = clock_timestamp(), published_at = clock_timestamp()
    FROM chosen WHERE s.id = chosen.id
    RETURNING s.id
""")


ADMITTING_S = 0.3
"""So long jobs are looked at, one statement each: with thousands of small jobs the next round goes on."""


def admit_samples(connection: Connection, *, ahead: float) -> list[Runnable]:
    """Let in as many waiting samples as the live workers of their opening model have room for.

    Jobs with a higher priority first, then older ones, for ADMITTING_S, and one at least. A job that no live worker's
    model may write takes no room from others of the same name.

    ahead: samples in the pipeline per slot. A sample with the large model still counts: its context is cached. A
    worker whose cache cannot hold the contexts of so many says fewer slots with its heartbeat (CacheRoom).
    """
    admitted: list[int] = []
    room_left: dict[tuple[str, str], int] = {}
    until = time.monotonic() + ADMITTING_S
    for row in connection.execute(_ROOM, {"ahead": ahead}):
        room = room_left.setdefault((row.first_role, row.model), row.room)
        if room <= 0:
            continue
        values = {"job": row.job_id, "room": room, "first_role": row.first_role}
        ids = connection.execute(_ADMIT, values).scalars().all()
        room_left[row.first_role, row.model] -= len(ids)
        admitted.extend(ids)
        if time.monotonic() > until:
            break
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A worker's lease as it is stored now."""

    worker_id: int
    renewed_at: dt.datetime
    ttl: dt.timedelta


_LEASES = text("SELECT id AS worker_id, renewed_at, expires_at - renewed_at AS ttl FROM workers WHERE ended_at IS NULL")


def current_leases(connection: Connection) -> list[Lease]:
    """Of all workers whose lives nobody has ended. Index: ix_workers_live."""
    return [Lease(**row) for row in connection.execute(_LEASES).mappings()]


# One that has renewed since it was looked at is left out. So is one whose row somebody has locked, for the next round:
# one session that hangs must not stop all rounds.
_LAPSE = text("""
    WITH silent AS (
        SELECT w.id FROM workers w
        JOIN unnest(CAST(:ids AS bigint[]), CAST(:renewed AS timestamptz[])) AS seen(id, renewed_at)
          ON seen.id = w.id AND seen.renewed_at = w.renewed_at
        WHERE w.ended_at IS NULL
        ORDER BY w.id FOR NO KEY UPDATE OF w SKIP LOCKED
    )
    UPDATE workers w SET ended_at = clock_timestamp(), end_reason = 'lapsed' FROM silent WHERE w.id = silent.id
""")
_UNSETTLED = text("""
    SELECT id, queue FROM workers WHERE ended_at IS NOT NULL AND settled_at IS NULL
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")
# Only a sample that had its engine to itself can be guilty: of several, each may have been beside the one that did it.
# A lapse is no death that its work explains, or one after many.
_RESCUE = text(f"""
    WITH held AS (
        SELECT s.id, s.holder_id, w.end_reason, s.num_rescues + (w.end_reason <> 'stopped')::integer AS deaths,
               s.num_rescues >= {ALONE_AFTER} AND s.trial_epoch = s.epoch AS was_tried
        FROM samples s JOIN workers w ON w.id = s.holder_id
        WHERE s.holder_id = ANY(:workers) AND s.{ADMITTED} ORDER BY s.id FOR UPDATE OF s
    ),
    judged AS (
        SELECT held.*, end_reason <> 'stopped' AND coalesce(was_tried, false)
               AND (end_reason <> 'lapsed' OR deaths >= {GUILTY_AFTER_LAPSES})
               AND count(*) OVER (PARTITION BY holder_id) = 1 AS is_guilty
        FROM held
    )
    UPDATE samples s SET
        epoch = s.epoch + 1, holder_id = NULL, num_rescues = judged.deaths, runnable_at = clock_timestamp(),
        published_at = CASE WHEN judged.deaths >= {SUSPECT_AFTER} THEN '-infinity' ELSE clock_timestamp() END,
        state = CASE WHEN judged.is_guilty THEN 'failed' ELSE {waiting_again("s.state")} END,
        error_class = CASE WHEN judged.is_guilty THEN
            CASE judged.end_reason WHEN 'engine_stalled' THEN 'timed_out' WHEN 'writer_failed' THEN 'internal'
                                   ELSE 'engine_died' END END,
        error = CASE WHEN judged.is_guilty THEN format(
            'its worker was lost %s times while it wrote this, the last time (worker %s, %s) with nothing beside it',
            judged.deaths, judged.holder_id, judged.end_reason) END,
        ended_at = CASE WHEN judged.is_guilty THEN clock_timestamp() END
    FROM judged WHERE s.id = judged.id
    RETURNING s.id, s.state
""")
# Rows that others have locked are left out here and below: this transaction has others locked, and upkeep comes again.
_ORPHANED = text(f"""
    WITH orphaned AS (
        SELECT s.id FROM samples s
        WHERE s.num_rescues < {SUSPECT_AFTER} AND s.{ADMITTED} AND s.state IN {RUNNABLE}
          AND {home_worker("s.state")} = ANY(:workers)
        ORDER BY s.id FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE samples s SET published_at = clock_timestamp() FROM orphaned WHERE s.id = orphaned.id
    RETURNING s.id
""")
_SETTLE = text("UPDATE workers SET settled_at = clock_timestamp() WHERE id = ANY(:workers)")


def settle_workers(connection: Connection, *, silent: Sequence[Lease]) -> Settled | None:
    """End the lives of silent workers, and give back what ended workers still held. None: nobody ended.

    A held sample goes back to its last committed segment under a new epoch, so that a worker that comes back to life
    can write nothing. One whose workers died with it again and again is set aside as failed once it has done so with
    the engine to itself (see ``suspects_to_try``, ``claims.begin_trial``).

    silent: those that were not renewed for as long as they last, as somebody saw who looked all the time. Their times
    do not tell: everybody's has run out after an outage of the database, or once its clock was set ahead.
    """
    if silent:
        renewed = [lease.renewed_at for lease in silent]
        connection.execute(_LAPSE, {"ids": [lease.worker_id for lease in silent], "renewed": renewed})
    ended = connection.execute(_UNSETTLED).all()
    if not ended:
        return None
    workers = [row.id for row in ended]
    rescued = connection.execute(_RESCUE, {"workers": workers}).all()
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


# A time that lies ahead is of before the server's clock was set back: it would hide the sample until then.
_IS_UNDER_WAY = "s.published_at BETWEEN clock_timestamp() - :age AND clock_timestamp()"
"""Whether the last message about a sample may yet arrive."""
_IS_DELAYED = "coalesce(s.not_before BETWEEN clock_timestamp() AND clock_timestamp() + :longest_delay, false)"
_PUBLISH = """
    published_at = clock_timestamp(),
    not_before = CASE WHEN s.not_before > clock_timestamp() THEN clock_timestamp() ELSE s.not_before END
"""
# Of those that wait for a model there are few, and all are looked at. Those that wait for a grader may be a million:
# the walk along their index ends with the limit, and passes only what was sent within the age.
_OVERDUE = text(f"""
    WITH for_models AS (
        SELECT s.id FROM samples s JOIN jobs j ON j.id = s.job_id
        WHERE s.{ADMITTED} AND s.state IN {RUNNABLE} AND NOT {_IS_UNDER_WAY}
          AND j.state = 'running' AND s.num_rescues < {SUSPECT_AFTER} AND NOT {_IS_DELAYED}
        ORDER BY s.published_at LIMIT :limit FOR UPDATE OF s SKIP LOCKED
    ),
    for_graders AS (
        SELECT s.id FROM samples s
        WHERE s.{FINISHED} AND NOT {_IS_UNDER_WAY}
        ORDER BY s.finished_at LIMIT :limit FOR UPDATE OF s SKIP LOCKED
    ),
    due AS (SELECT id FROM for_models UNION ALL SELECT id FROM for_graders)
    UPDATE samples s SET {_PUBLISH} FROM due WHERE s.id = due.id
    RETURNING {RUNNABLE_COLUMNS}
""")


MOST_OVERDUE = 200
"""Samples that are looked for at a time, of those that wait for models and of those that wait for graders."""
LONGEST_DELAY = dt.timedelta(minutes=1)
"""After a failure that passes (``claims.defer_samples``): a longer one is of before the clock was set back."""


def overdue_samples(
    connection: Connection,
    *,
    age: dt.timedelta,
    limit: int = MOST_OVERDUE,
    longest_delay: dt.timedelta = LONGEST_DELAY,
) -> list[Runnable]:
    """Samples that wait since more than age; they count as published now. Indexes: ix_samples_in_work,
    ix_samples_finished.

    A resumed job's and those whose delay after a failure is over count as waiting for ever; so do those that were
    published at a time that is yet to come.
    """
    rows = connection.execute(_OVERDUE, {"age": age, "limit": limit, "longest_delay": longest_delay}).mappings()
    return [runnable(row) for row in rows]


_TRY = text(f"""
    WITH suspect AS (
        SELECT s.id, s.state, s.published_at, s.not_before, s.num_rescues >= {ALONE_AFTER} AS must_be_alone, roles.role,
               {model_of("roles.role")} AS model
        FROM samples s JOIN jobs j ON j.id = s.job_id, LATERAL (SELECT {role_of("s.state")} AS role) roles
        WHERE s.num_rescues >= {SUSPECT_AFTER} AND s.{ADMITTED}
          AND j.state = 'running'
    ),
    supply AS (
        SELECT kind, model, count(*) AS workers FROM workers
        WHERE ended_at IS NULL AND expires_at > clock_timestamp() GROUP BY kind, model
    ),
    under_way AS (
        SELECT role, model, count(*) AS samples, count(*) FILTER (WHERE must_be_alone) AS alone FROM suspect s
        WHERE s.state IN {WRITING} OR {_IS_UNDER_WAY} GROUP BY role, model
    ),
    waiting AS (
        SELECT s.*, row_number() OVER (PARTITION BY s.role, s.model, s.must_be_alone ORDER BY s.id) AS number
        FROM suspect s WHERE s.state IN {RUNNABLE} AND NOT {_IS_UNDER_WAY} AND NOT {_IS_DELAYED}
    ),
    next AS (
        SELECT w.id, w.role, w.model, coalesce(under_way.samples, 0) AS under_way,
               row_number() OVER (PARTITION BY w.role, w.model ORDER BY w.must_be_alone DESC, w.id) AS place
        FROM waiting w LEFT JOIN under_way ON under_way.role = w.role AND under_way.model = w.model
        WHERE NOT w.must_be_alone OR w.number = 1 AND coalesce(under_way.alone, 0) = 0
    ),
    chosen AS (
        SELECT s.id FROM samples s JOIN next ON next.id = s.id
        JOIN supply ON supply.kind = next.role AND supply.model = next.model
        WHERE next.place <= supply.workers - next.under_way FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE samples s SET {_PUBLISH} FROM chosen WHERE s.id = chosen.id
    RETURNING {RUNNABLE_COLUMNS}
""")


def suspects_to_try(
    connection: Connection, *, age: dt.timedelta, longest_delay: dt.timedelta = LONGEST_DELAY
) -> list[Runnable]:
    """Samples whose workers died with them, as many as there are live workers without one; they count as published now.

    Tried one by one, a sample that kills its worker is told from those that were beside it; a commit clears it. Of
    those that must be alone one is tried at a time for each model, and first: its worker takes nothing else.
    age: how long a message may take. Index: ix_samples_suspect.
    """
    rows = connection.execute(_TRY, {"age": age, "longest_delay": longest_delay}).mappings()
    return [runnable(row) for row in rows]


_HALT = text(f"""
    WITH held AS (
        SELECT s.id FROM samples s JOIN jobs j ON j.id = s.job_id
        WHERE j.state = 'paused' AND s.{ADMITTED} AND s.state IN {WRITING} ORDER BY s.id FOR UPDATE OF s
    )
    UPDATE samples s SET
        state = {waiting_again("s.state")},
        epoch = s.epoch + 1, holder_id = NULL, runnable_at = clock_timestamp(), published_at = clock_timestamp()
    FROM held WHERE s.id = held.id
""")


def halt_paused_jobs(connection: Connection) -> int:
    """Take the samples of paused jobs from whoever writes them, back to their last segment; returns how many.

    Repeated, because a claim that began before the pause may end after it. Index: ix_samples_in_work.
    """
    return connection.execute(_HALT).rowcount


_MARK_FIRST_CLAIMS = text(f"""
    WITH claimed AS (
        SELECT j.id FROM jobs j
        WHERE j.state = 'running' AND j.first_claimed_at IS NULL
          AND {first_claim_of("j")} IS NOT NULL
        ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
    )
    UPDATE jobs j SET first_claimed_at = {first_claim_of("j")} FROM claimed WHERE j.id = claimed.id
""")


def mark_first_claims(connection: Connection) -> None:
    """Note of running jobs when a worker first took a sample, as the events say it. Index: ix_events_job_id.

    Not the claims do this: one would wait for its job's row, or, where somebody has that locked, leave it unmarked.
    A job that ends before upkeep looks is marked as it ends (``close_jobs``, ``job_control.cancel_job``).
    """
    connection.execute(_MARK_FIRST_CLAIMS)


_ENDING = text(f"""
    SELECT j.id FROM jobs j
    WHERE j.state = 'running'
      AND NOT EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.{OPEN})
    ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
""")
_CLOSE = text(f"""
    UPDATE jobs j SET finished_at = clock_timestamp(),
        first_claimed_at = coalesce(j.first_claimed_at, {first_claim_of("j")}),
        state = CASE WHEN EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.{FAILED})
                       OR j.config->>'grader' <> 'none' AND (
                           SELECT bool_or(s.state = 'graded') AND count(s.score) = 0
                           FROM samples s WHERE s.job_id = j.id)
                     THEN 'completed_with_errors' ELSE 'completed' END
    WHERE j.id = ANY(:jobs)
      AND NOT EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.{OPEN})
    RETURNING j.id, j.state
""")


def close_jobs(connection: Connection) -> dict[int, JobState]:
    """End the running jobs that have no open sample left. Index: ix_samples_open.

    A job has errors where a sample failed, and where it has a grader and none of its graded samples has a score.
    The second look, with the job's row locked, sees the samples that a retry opened meanwhile.
    """
    ending = list(connection.execute(_ENDING).scalars())
    return {row.id: JobState(row.state) for row in connection.execute(_CLOSE, {"jobs": ending})} if ending else {}


MOST_FOLLOWED = 20
"""Jobs whose progress Flower shows at the same time: the newest. Each takes a thread, and a query a second."""
_NEWEST = f"""
    id IN (SELECT id FROM jobs WHERE state IN ('running', 'paused') ORDER BY id DESC LIMIT {MOST_FOLLOWED})
"""
_UNFOLLOWED = text(f"""
    UPDATE jobs SET followed_at = clock_timestamp()
    WHERE {_NEWEST} AND coalesce(followed_at NOT BETWEEN clock_timestamp() - :age AND clock_timestamp(), true)
    RETURNING id
""")


def unfollowed_jobs(connection: Connection, *, age: dt.timedelta) -> list[int]:
    """The newest jobs that have not ended, as far as nobody has shown their progress for that long; they count as
    followed from now."""
    return list(connection.execute(_UNFOLLOWED, {"age": age}).scalars())


_FOLLOWED = text(f"UPDATE jobs SET followed_at = clock_timestamp() WHERE id = :job AND {_NEWEST} RETURNING id")


def mark_followed(connection: Connection, job_id: int) -> bool:
    """Note that somebody shows this job's progress now; False where it has ended, or newer ones are shown instead."""
    return connection.execute(_FOLLOWED, {"job": job_id}).scalar_one_or_none() is not None

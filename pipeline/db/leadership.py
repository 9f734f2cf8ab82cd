"""Who leads: the one upkeep worker that does the duties now, as a row of ``upkeep_leader`` says.

A row and no advisory lock: every login can take those, and holds them for as long as it likes.
"""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Connection, text

from pipeline.workforce import LeaderReport

# Free: nobody leads, or whoever did is gone: its worker ended, its session ended, its time is over, or the server's
# clock went back since. A row that somebody has locked is left for the next try.
_LEAD = text("""
    WITH free AS (
        SELECT l.is_single FROM upkeep_leader l
        WHERE l.worker_id IS NULL OR l.worker_id = :worker OR l.expires_at < clock_timestamp()
           OR l.seen_at > clock_timestamp()
           OR NOT l.can_publish AND :can_publish
           OR EXISTS (SELECT FROM workers w WHERE w.id = l.worker_id AND w.ended_at IS NOT NULL)
           OR NOT EXISTS (
               SELECT FROM pg_stat_activity a
               WHERE a.pid = l.backend_pid AND coalesce(a.backend_start, l.backend_start) = l.backend_start)
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE upkeep_leader l SET
        worker_id = :worker, can_publish = :can_publish, seen_at = clock_timestamp(),
        expires_at = clock_timestamp() + :ttl,
        since = CASE WHEN l.worker_id = :worker THEN l.since ELSE clock_timestamp() END,
        backend_pid = pg_backend_pid(),
        backend_start = (SELECT a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid())
    FROM free WHERE l.is_single = free.is_single
""")


def lead(connection: Connection, worker_id: int, *, ttl: dt.timedelta, can_publish: bool) -> bool:
    """Become the leader, or go on as such for another ttl; False: another worker leads.

    The session must stay open while the worker leads: where it ends, anybody may lead at once. can_publish: whether
    Redis takes messages; a leader that cannot publish gives way to the first worker that can.
    """
    values = {"worker": worker_id, "ttl": ttl, "can_publish": can_publish}
    return connection.execute(_LEAD, values).rowcount == 1


_RESIGN = text("UPDATE upkeep_leader SET worker_id = NULL WHERE worker_id = :worker")


def resign(connection: Connection, worker_id: int) -> None:
    """Leave the duties to whoever takes them next."""
    connection.execute(_RESIGN, {"worker": worker_id})


_SELECT_LEADER = text("""
    SELECT l.worker_id, w.host, l.since, l.can_publish,
           extract(epoch FROM clock_timestamp() - l.seen_at)::float8 AS seen_seconds_ago
    FROM upkeep_leader l JOIN workers w ON w.id = l.worker_id
    WHERE w.ended_at IS NULL AND l.expires_at > clock_timestamp()
""")


def get_leader(connection: Connection) -> LeaderReport | None:
    """Who leads now; None: nobody."""
    row = connection.execute(_SELECT_LEADER).mappings().first()
    return None if row is None else LeaderReport(**row)

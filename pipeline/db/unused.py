"""The statements that remove what no job needs any more: problem sets, workers' lives and engines. For the owner alone.

A row is locked, and only then asked for who mentions it: whoever mentions it later waits, and then finds it gone. So a
superuser's session, which looks up no reference row by row, leaves none behind.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipeline.db.removal import stored_size
from pipeline.db.session import references_trusted


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedSet:
    """A problem set of no job. num_bytes: of its rows, without indexes."""

    id: int
    name: str
    created_at: dt.datetime
    num_problems: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedLives:
    """Workers that ended and engines, as far as nothing that is stored mentions them."""

    workers: tuple[int, ...]
    engines: tuple[int, ...]


_NO_JOB = """NOT EXISTS (SELECT FROM jobs j WHERE j.problem_set_id = s.id)
      AND NOT EXISTS (SELECT FROM problem_sets o WHERE o.tells_answers_of = s.id)"""
_SETS = text(f"""
    SELECT s.id, s.name, s.created_at, s.num_problems, (
        SELECT coalesce({stored_size("problems", "p")}, 0) + coalesce({stored_size("reference_answers", "r")}, 0)
               + coalesce({stored_size("hidden_columns", "h")}, 0)
        FROM problems p LEFT JOIN reference_answers r ON r.problem_id = p.id
        LEFT JOIN hidden_columns h ON h.problem_id = p.id WHERE p.problem_set_id = s.id
    )::bigint AS num_bytes
    FROM problem_sets s WHERE s.created_at < clock_timestamp() - :age AND {_NO_JOB} ORDER BY s.id
""")


def unused_sets(connection: Connection, age: dt.timedelta) -> list[UnusedSet]:
    """The problem sets that are older than that and have no job, nor a judge that tells their answers."""
    return [UnusedSet(**row) for row in connection.execute(_SETS, {"age": age}).mappings()]


_LOCK_SET = text("SELECT FROM problem_sets WHERE id = :set FOR UPDATE")
_HAS_NO_JOB = text(f"SELECT FROM problem_sets s WHERE s.id = :set AND {_NO_JOB}")
_REMOVE_SET = (
    "DELETE FROM hidden_columns h USING problems p WHERE p.id = h.problem_id AND p.problem_set_id = :set",
    "DELETE FROM reference_answers r USING problems p WHERE p.id = r.problem_id AND p.problem_set_id = :set",
    "DELETE FROM problems WHERE problem_set_id = :set",
    "DELETE FROM problem_sets WHERE id = :set",
)


def remove_set(connection: Connection, set_id: int) -> bool:
    """Delete a problem set with its problems and answers; False: somebody has made a job of it meanwhile."""
    connection.execute(_LOCK_SET, {"set": set_id})
    if connection.execute(_HAS_NO_JOB, {"set": set_id}).first() is None:
        return False
    with references_trusted(connection):
        for statement in _REMOVE_SET:
            connection.execute(text(statement), {"set": set_id})
    return True


_ENDED = text("""
    SELECT id FROM workers WHERE ended_at < clock_timestamp() - :age AND settled_at IS NOT NULL ORDER BY id
""")
_LOCK_WORKERS = text("SELECT FROM workers WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
_LOCK_ENGINES = text("SELECT FROM engines WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
# Each big table is read through once, however many workers there are.
_MENTIONED = """
    SELECT worker_id FROM segments UNION SELECT worker_id FROM asides UNION SELECT worker_id FROM events
    UNION SELECT worker_id FROM segment_parts
    UNION SELECT holder_id FROM samples UNION SELECT small_worker_id FROM samples
    UNION SELECT large_worker_id FROM samples UNION SELECT judge_worker_id FROM samples
    UNION SELECT worker_id FROM upkeep_leader
"""
_WORKERS = text(f"""
    SELECT w.id FROM workers w WHERE w.id = ANY(:workers)
      AND w.id NOT IN (SELECT m.worker_id FROM ({_MENTIONED}) m WHERE m.worker_id IS NOT NULL) ORDER BY w.id
""")
_ENGINES = text("""
    SELECT e.id FROM engines e WHERE e.id NOT IN (
        SELECT engine_id FROM segments UNION SELECT engine_id FROM asides
        UNION SELECT engine_id FROM workers WHERE engine_id IS NOT NULL AND id <> ALL(:workers)
    ) ORDER BY e.id
""")


def unused_lives(connection: Connection, age: dt.timedelta) -> UnusedLives:
    """The workers that ended longer ago than that and wrote nothing that is stored, and the engines of no others."""
    ended = list(connection.execute(_ENDED, {"age": age}).scalars())
    workers = list(connection.execute(_WORKERS, {"workers": ended}).scalars()) if ended else []
    engines = connection.execute(_ENGINES, {"workers": workers}).scalars()
    return UnusedLives(workers=tuple(workers), engines=tuple(engines))


def remove_lives(connection: Connection, age: dt.timedelta) -> UnusedLives:
    """Delete them; returns what was deleted. Looked for twice: only what nobody mentions is locked, so nobody waits.

    A worker that registers with such an engine in this very moment ends, and is started again.
    """
    found = unused_lives(connection, age)
    connection.execute(_LOCK_WORKERS, {"ids": list(found.workers)})
    connection.execute(_LOCK_ENGINES, {"ids": list(found.engines)})
    again = unused_lives(connection, age)
    workers, engines = ({*found.workers} & {*again.workers}, {*found.engines} & {*again.engines})
    with references_trusted(connection):
        connection.execute(text("DELETE FROM workers WHERE id = ANY(:ids)"), {"ids": sorted(workers)})
        connection.execute(text("DELETE FROM engines WHERE id = ANY(:ids)"), {"ids": sorted(engines)})
    return UnusedLives(workers=tuple(sorted(workers)), engines=tuple(sorted(engines)))

"""Who leads: one upkeep worker at a time, whatever becomes of it, and whatever a reader does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest
from sqlalchemy import Connection, Engine, make_url, text

from pipeline import Client
from pipeline.db.grants import grant_roles
from pipeline.db.leadership import get_leader, lead, resign
from pipeline.db.session import session, transaction
from pipeline.db.worker_leases import WorkerCounters, end_worker
from pipeline.embedded import EMBEDDED_LOGINS, Connections
from tests.conftest import with_database
from tests.integration.rows import add_worker

TTL = dt.timedelta(seconds=60)


@pytest.fixture
def workers(db_engine: Engine) -> tuple[int, int]:
    with transaction(db_engine) as connection:
        return add_worker(connection, "upkeep"), add_worker(connection, "upkeep")


@pytest.fixture
def sessions(db_engine: Engine) -> Iterator[tuple[Connection, Connection]]:
    with ExitStack() as stack:
        yield stack.enter_context(session(db_engine)), stack.enter_context(session(db_engine))


def leads(connection: Connection, worker: int, *, ttl: dt.timedelta = TTL, can_publish: bool = True) -> bool:
    return lead(connection, worker, ttl=ttl, can_publish=can_publish)


def test_one_leads_until_it_resigns(sessions: tuple[Connection, Connection], workers: tuple[int, int]) -> None:
    (first, second), (one, other) = workers, sessions
    assert get_leader(one) is None
    assert leads(one, first)
    found = get_leader(other)
    assert found is not None
    assert (found.worker_id, found.host, found.can_publish) == (first, "here", True)
    assert not leads(other, second)
    assert leads(one, first), "it may say so again and again"
    again = get_leader(other)
    assert again is not None
    assert again.since == found.since
    resign(other, second)
    assert not leads(other, second), "only the leader can resign"
    resign(one, first)
    assert leads(other, second)
    assert not leads(one, first)


def test_next_one_leads_at_once_where_the_leaders_session_is_gone(
    db_engine: Engine, sessions: tuple[Connection, Connection], workers: tuple[int, int]
) -> None:
    (first, second), (one, other) = workers, sessions
    assert leads(one, first)
    pid = one.execute(text("SELECT pg_backend_pid()")).scalar_one()
    other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    assert leads(other, second)
    one.invalidate()


def test_next_one_leads_where_the_leaders_worker_has_ended_or_its_time_is_over(
    sessions: tuple[Connection, Connection], workers: tuple[int, int]
) -> None:
    (first, second), (one, other) = workers, sessions
    assert leads(one, first, ttl=dt.timedelta(milliseconds=1))
    other.execute(text("SELECT pg_sleep(0.01)"))
    assert get_leader(other) is None
    assert leads(other, second)
    end_worker(one, second, WorkerCounters())
    assert leads(one, first)


def test_leader_without_redis_gives_way_to_one_that_reaches_it_and_to_no_other(
    sessions: tuple[Connection, Connection], workers: tuple[int, int]
) -> None:
    (first, second), (one, other) = workers, sessions
    assert leads(one, first, can_publish=False), "better one that cannot publish than none"
    assert not leads(other, second, can_publish=False)
    assert leads(other, second)
    assert not leads(one, first, can_publish=False)
    assert not leads(one, first)


def test_clock_that_went_back_leaves_nobody_leading_for_ever(
    sessions: tuple[Connection, Connection], workers: tuple[int, int]
) -> None:
    (first, second), (one, other) = workers, sessions
    assert leads(one, first)
    later = "seen_at = seen_at + interval '1 hour', expires_at = expires_at + interval '1 hour'"
    one.execute(text(f"UPDATE upkeep_leader SET {later}"))
    assert leads(other, second)


@pytest.fixture
def reader(servers: Connections, connections: Connections, db_engine: Engine) -> Iterator[psycopg.Connection]:
    """A connection by the reader's login."""
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
    name = make_url(connections.database_url.get_secret_value()).database or ""
    assert servers.reader_url is not None
    with psycopg.connect(with_database(servers.reader_url, name).get_secret_value()) as reader:
        yield reader


def assert_refused(reader: psycopg.Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), reader.transaction():
        reader.execute(statement)


def test_reader_can_take_no_lock_that_keeps_others_from_leading(
    reader: psycopg.Connection, sessions: tuple[Connection, Connection], workers: tuple[int, int]
) -> None:
    reader.execute("SET default_transaction_read_only = off")
    reader.commit()
    reader.execute("SELECT pg_advisory_lock_shared(generate_series(7300000, 7300010))")
    reader.execute("SELECT * FROM upkeep_leader")
    for statement in ("SELECT * FROM upkeep_leader FOR KEY SHARE", "LOCK TABLE upkeep_leader IN SHARE MODE"):
        assert_refused(reader, statement)
    assert leads(sessions[0], workers[0])


def test_reader_can_take_no_lock_that_keeps_the_owner_from_changing_the_schema(
    reader: psycopg.Connection, db_engine: Engine
) -> None:
    reader.execute("SELECT pg_advisory_lock_shared(generate_series(7300000, 7300010))")
    reader.execute("LOCK TABLE alembic_version IN ACCESS SHARE MODE")
    for mode in ("ROW SHARE", "SHARE", "SHARE ROW EXCLUSIVE", "ACCESS EXCLUSIVE"):
        assert_refused(reader, f"LOCK TABLE alembic_version IN {mode} MODE")
    with ThreadPoolExecutor(1) as pool, transaction(db_engine) as connection:
        pool.submit(grant_roles, connection, EMBEDDED_LOGINS).result(60)


def test_client_says_who_leads(connections: Connections, db_engine: Engine, workers: tuple[int, int]) -> None:
    with Client.connect(database_url=connections.database_url.get_secret_value()) as client:
        assert client.leader() is None
        with session(db_engine) as own:
            assert leads(own, workers[1])
            found = client.leader()
    assert found is not None
    assert found.worker_id == workers[1]
    assert 0 <= found.seen_seconds_ago < 60

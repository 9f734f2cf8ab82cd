"""Connections that carry nothing any more, and are not closed: nobody waits for ever."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from pipeline.db.leadership import lead
from pipeline.db.session import TRUSTED_S, open_database, session, transaction
from pipeline.embedded import Connections
from pipeline.errors import ServiceUnavailable
from tests.chaos.proxy import Proxy, target_of, through
from tests.integration.rows import add_worker

pytestmark = pytest.mark.timeout(60)

ANSWER_WITHIN_S = 1.0


@pytest.fixture
def proxy(connections: Connections) -> Iterator[Proxy]:
    proxy = Proxy(target_of(connections.database_url.get_secret_value()))
    yield proxy
    proxy.close()


@pytest.fixture
def deadline_engine(connections: Connections, proxy: Proxy) -> Iterator[Engine]:
    url = through(connections.database_url.get_secret_value(), proxy)
    engine = open_database(SecretStr(url), answer_within_s=ANSWER_WITHIN_S)
    yield engine
    engine.dispose()


def ask_over_a_dead_connection(engine: Engine, proxy: Proxy, first: str) -> None:
    """A transaction whose connection dies after its first statement."""
    with transaction(engine) as connection:
        connection.execute(text(first))
        proxy.forget()
        connection.execute(text("SELECT 1"))


def test_dead_connection_is_given_up_and_the_next_one_works(deadline_engine: Engine, proxy: Proxy) -> None:
    began = time.monotonic()
    with pytest.raises(ServiceUnavailable, match="no answer within 1 s"):
        ask_over_a_dead_connection(deadline_engine, proxy, "SELECT 1")
    assert time.monotonic() - began < 20
    with transaction(deadline_engine) as connection:
        assert connection.execute(text("SELECT 2")).scalar_one() == 2


def test_connection_that_died_in_the_pool_costs_its_time_and_no_error(deadline_engine: Engine, proxy: Proxy) -> None:
    with transaction(deadline_engine) as connection:
        connection.execute(text("SELECT 1"))
    assert proxy.forget() == 1
    time.sleep(TRUSTED_S)
    with transaction(deadline_engine) as connection:
        assert connection.execute(text("SELECT 2")).scalar_one() == 2


def test_only_a_connection_that_was_idle_is_asked_whether_it_works(deadline_engine: Engine, proxy: Proxy) -> None:
    with transaction(deadline_engine) as connection:
        connection.execute(text("SELECT 1"))
    proxy.forget()
    with pytest.raises(ServiceUnavailable, match="no answer"), transaction(deadline_engine) as connection:
        connection.execute(text("SELECT 2"))
    with transaction(deadline_engine) as connection:
        assert connection.execute(text("SELECT 3")).scalar_one() == 3


def test_locks_of_a_client_that_vanished_in_a_transaction_are_freed(
    deadline_engine: Engine, proxy: Proxy, db_engine: Engine
) -> None:
    with transaction(db_engine) as connection:
        connection.execute(text("CREATE TABLE held AS SELECT 1 AS id"))
    with pytest.raises(ServiceUnavailable):
        ask_over_a_dead_connection(deadline_engine, proxy, "SELECT 1 FROM held FOR UPDATE")
    with transaction(db_engine) as connection:
        connection.execute(text("SET LOCAL lock_timeout = '20s'"))
        connection.execute(text("SELECT 1 FROM held FOR UPDATE"))


def test_leader_that_the_server_does_not_hear_of_leads_no_more(
    deadline_engine: Engine, proxy: Proxy, db_engine: Engine
) -> None:
    ttl = dt.timedelta(seconds=1)
    with transaction(db_engine) as connection:
        first, second = (add_worker(connection, "upkeep") for _ in range(2))
    with session(db_engine) as other, session(deadline_engine) as leader:
        assert lead(leader, first, ttl=ttl, can_publish=True)
        assert not lead(other, second, ttl=ttl, can_publish=True)
        proxy.forget()
        deadline = time.monotonic() + 30
        while not lead(other, second, ttl=ttl, can_publish=True):
            assert time.monotonic() < deadline, "the dead leader still leads"
            time.sleep(0.1)
        leader.invalidate()

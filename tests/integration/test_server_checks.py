"""Servers and logins that will not do: each is one line with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from pipeline.db import migrate
from pipeline.db.faults import line_of
from pipeline.db.revision import require_current
from pipeline.db.server_checks import pooler_fault
from pipeline.db.session import open_database, transaction
from pipeline.embedded import Connections
from pipeline.errors import ConfigurationError, PipelineError, ServiceUnavailable
from pipeline.redis_checks import require_broker
from tests.conftest import with_database

pytestmark = pytest.mark.integration

SETUP = (
    "DROP DATABASE IF EXISTS strangers",
    "DROP DATABASE IF EXISTS ascii",
    "DROP ROLE IF EXISTS stranger",
    "CREATE ROLE stranger LOGIN PASSWORD 'secret'",
    "CREATE DATABASE strangers",
    "GRANT CONNECT ON DATABASE strangers TO stranger",
    "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0",
)


@pytest.fixture(scope="module")
def owner(servers: Connections) -> Iterator[Engine]:
    """As a superuser, on the strangers' database."""
    superuser = open_database(servers.database_url)
    with superuser.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in SETUP:
            connection.execute(text(statement))
    superuser.dispose()
    db_engine = open_database(with_database(servers.database_url, "strangers"))
    yield db_engine
    db_engine.dispose()


def stranger_url(servers: Connections, **changes: Any) -> SecretStr:
    url = make_url(with_database(servers.database_url, "strangers").get_secret_value())
    url = url.set(**({"username": "stranger", "password": "secret"} | changes))
    return SecretStr(url.render_as_string(hide_password=False))


def complaint(url: SecretStr, kind: type[PipelineError], *, migrates: bool = True) -> str:
    """What is said where somebody migrates, or a worker or a command connects."""
    db_engine = open_database(url)
    try:
        with pytest.raises(kind) as raised:
            migrate.upgrade(db_engine) if migrates else require_current(db_engine)
    finally:
        db_engine.dispose()
    said = str(raised.value)
    assert "\n" not in said
    assert "secret" not in said
    return said


def test_login_that_may_not_create_tables(servers: Connections, owner: Engine) -> None:
    said = complaint(stranger_url(servers), ConfigurationError)
    assert said.startswith("stranger may not create tables in schema public: GRANT CREATE ON SCHEMA public TO stranger")


def test_login_with_a_schema_of_its_own(servers: Connections, owner: Engine) -> None:
    with transaction(owner) as connection:
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS stranger AUTHORIZATION stranger"))
    try:
        for migrates in (True, False):
            said = complaint(stranger_url(servers), ConfigurationError, migrates=migrates)
            assert "leads to schema stranger" in said
            assert "SET search_path = public" in said
    finally:
        with transaction(owner) as connection:
            connection.execute(text("DROP SCHEMA stranger"))


def test_login_that_sees_no_schema(servers: Connections, owner: Engine) -> None:
    with transaction(owner) as connection:
        connection.execute(text("ALTER ROLE stranger SET search_path = nowhere"))
    try:
        assert "search_path names no schema" in complaint(stranger_url(servers), ConfigurationError)
    finally:
        with transaction(owner) as connection:
            connection.execute(text("ALTER ROLE stranger RESET search_path"))


def test_database_of_another_encoding(servers: Connections, owner: Engine) -> None:
    said = complaint(with_database(servers.database_url, "ascii"), ConfigurationError)
    assert "encoding SQL_ASCII" in said
    assert "ENCODING 'UTF8' TEMPLATE template0" in said


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"password": "wrong"}, "correct the password in SPECTHINK_DATABASE_URL"),
        ({"username": "nobody"}, "correct the"),
        ({"database": "absent", "username": "stranger"}, "CREATE DATABASE name ENCODING 'UTF8'"),
    ],
)
def test_refused_connection(servers: Connections, owner: Engine, changes: dict[str, str], remedy: str) -> None:
    said = complaint(stranger_url(servers, **changes), ServiceUnavailable)
    assert said.startswith("Postgres refused the connection: ")
    assert remedy in said


@pytest.mark.parametrize(
    ("statement", "remedy"),
    [
        ("SELECT * FROM absent", "SQLSTATE 42P01): the tables are another version's"),
        ("EXECUTE absent", "SQLSTATE 26000): a pooler in transaction mode"),
        ("SELECT 1 / 0", "division by zero (SQLSTATE 22012)"),
    ],
)
def test_any_error_of_the_database_is_one_line(owner: Engine, statement: str, remedy: str) -> None:
    with pytest.raises(DBAPIError) as raised, transaction(owner) as connection:
        connection.execute(text(statement))
    line = line_of(raised.value)
    assert line is not None
    assert remedy in line
    assert "\n" not in line


def test_other_errors_keep_their_traceback() -> None:
    assert line_of(ValueError("a bug")) is None


def test_server_itself_is_no_pooler(owner: Engine) -> None:
    assert pooler_fault(owner) is None


@pytest.fixture
def broker(connections: Connections) -> Iterator[redis.Redis]:
    """As the login that may do everything."""
    with redis.Redis.from_url(connections.redis_url.get_secret_value()) as client:
        yield client
        client.acl_deluser("stranger")


def let_in(broker: redis.Redis, connections: Connections, *rules: str) -> SecretStr:
    """The address of a new login with these rights."""
    broker.execute_command("ACL", "SETUSER", "stranger", "on", ">secret", "~*", "&*", *rules)
    host = connections.redis_url.get_secret_value().rpartition("@")[2]
    return SecretStr(f"redis://stranger:secret@{host}")


def test_redis_needs_no_dangerous_command(broker: redis.Redis, connections: Connections) -> None:
    keys = set(broker.keys())
    require_broker(let_in(broker, connections, "+@all", "-@dangerous", "-@admin"))
    assert set(broker.keys()) == keys, "nothing is left of the try"


@pytest.mark.parametrize(
    ("rules", "command"),
    [(["+@all", "-publish"], "publish"), (["+@all", "-eval"], "eval"), (["+@all", "-psubscribe"], "psubscribe")],
)
def test_redis_that_takes_not_every_command_is_refused(
    broker: redis.Redis, connections: Connections, rules: list[str], command: str
) -> None:
    said = refusal(let_in(broker, connections, *rules))
    assert command in said
    assert "+@all -@dangerous -@admin" in said


def test_redis_with_another_password_is_refused(broker: redis.Redis, connections: Connections) -> None:
    url = let_in(broker, connections, "+@all").get_secret_value()
    assert "correct the user or password" in refusal(SecretStr(url.replace(":secret@", ":wrong@")))


def test_redis_that_is_away_is_waited_for() -> None:
    require_broker(SecretStr("redis://:secret@127.0.0.1:1/0"))


def refusal(url: SecretStr) -> str:
    """What is said at the start of whoever would use this broker."""
    with pytest.raises(ConfigurationError) as raised:
        require_broker(url)
    said = str(raised.value)
    assert said.startswith("Redis cannot be used: ")
    assert "\n" not in said
    assert "secret" not in said
    return said

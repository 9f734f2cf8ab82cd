"""What all tests share: real servers, started once, and a fresh database and broker for each test that asks."""

from __future__ import annotations

import itertools
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, make_url, text

from pipeline.db import migrate
from pipeline.db.grants import grant_roles
from pipeline.db.session import open_database, transaction
from pipeline.embedded import EMBEDDED_LOGINS, Connections, start, stop

TEMPLATE = "specthink_template"
_redis_databases = itertools.cycle(range(1, 16))

# What a shell starts in the background ignores SIGINT, and all that it starts too; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A file's bytes are no test's name: packed by the second, they would name other tests to each process."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connections]:
    """An embedded Postgres and Redis, ended with the tests even if these are killed; the template is migrated."""
    state_dir: Path = tmp_path_factory.mktemp("servers") / "state"
    state = start(state_dir, die_with_parent=True)
    owner = open_database(state.connections.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for setting in ("fsync", "full_page_writes"):  # tests of faults have servers of their own
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
        connection.execute(text(f"CREATE DATABASE {TEMPLATE}"))
    template = open_database(with_database(state.connections.database_url, TEMPLATE))
    migrate.upgrade(template)
    with transaction(template) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
    template.dispose()
    yield state.connections
    owner.dispose()
    stop(state_dir)


def with_database(url: SecretStr, name: str) -> SecretStr:
    return SecretStr(make_url(url.get_secret_value()).set(database=name).render_as_string(hide_password=False))


def copy_database(connection: Connection, template: str, name: str) -> None:
    """Make a database of another one; its files are copied, which costs half of what its pages in the log would."""
    connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy"))


@pytest.fixture
def connections(servers: Connections) -> Iterator[Connections]:
    """A migrated, empty database and an empty broker of the test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        copy_database(connection, TEMPLATE, name)
    redis_url = f"{servers.redis_url.get_secret_value().rsplit('/', 1)[0]}/{next(_redis_databases)}"
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    yield Connections(
        database_url=with_database(servers.database_url, name),
        redis_url=SecretStr(redis_url),
        reader_url=with_database(servers.reader_url, name) if servers.reader_url else None,
        role_urls={role: with_database(url, name) for role, url in servers.role_urls.items()},
    )
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    owner.dispose()


@pytest.fixture
def db_engine(connections: Connections) -> Iterator[Engine]:
    """A pool of connections to the test's database."""
    engine = open_database(connections.database_url)
    yield engine
    engine.dispose()

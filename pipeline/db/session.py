"""Connecting to Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError

from pipeline.errors import ServiceUnavailable

_KEEPALIVE = {
    "connect_timeout": 10,  # seconds
    # A peer that vanished without a word (a cut cable, a frozen host) is given up after about 15 s instead of hours.
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # ms
}


def open_database(url: SecretStr, *, pool_size: int = 4, application_name: str = "specthink") -> Engine:
    """A pool of connections; none is opened yet. Never share one across a fork."""
    return create_engine(
        make_url(url.get_secret_value()).set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=2,
        pool_pre_ping=True,  # a server restarted between two uses costs nothing but the ping
        connect_args={"application_name": application_name, **_KEEPALIVE},
        future=True,
    )


@contextmanager
def transaction(db_engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any error.

    Raises ServiceUnavailable when the server cannot be reached.
    """
    with _reached(), db_engine.begin() as connection:
        yield connection


@contextmanager
def session(db_engine: Engine) -> Iterator[Connection]:
    """One connection in autocommit mode, for locks that belong to the session. Raises ServiceUnavailable likewise."""
    with _reached(), db_engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, DisconnectionError) as error:
        orig = error.orig if isinstance(error, DBAPIError) else None
        reason = next(iter(str(orig or error).strip().splitlines()), type(error).__name__)
        raise ServiceUnavailable(f"Postgres cannot be reached: {reason}") from error

"""Connecting to Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, make_url
from sqlalchemy.exc import OperationalError

from pipeline.errors import ServiceUnavailable


def open_database(url: SecretStr, *, pool_size: int = 4, application_name: str = "specthink") -> Engine:
    """A pool of connections; none is opened yet. Never share one across a fork."""
    return create_engine(
        make_url(url.get_secret_value()).set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=2,
        pool_pre_ping=True,  # a server restarted between two uses costs nothing but the ping
        connect_args={"application_name": application_name, "connect_timeout": 10},
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
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
        raise ServiceUnavailable(f"Postgres cannot be reached: {reason}") from error

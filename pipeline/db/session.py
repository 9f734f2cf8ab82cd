"""Connecting to Postgres."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    InternalError,
    InvalidatePoolError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from pipeline.db.faults import describe, first_line, sqlstate_of
from pipeline.db.timeouts import DeadlineConnection
from pipeline.errors import ConfigurationError, ServiceUnavailable

_KEEPALIVE = {
    "connect_timeout": 10,  # seconds
    # A peer that vanished without a word (a cut cable, a frozen host) is given up after about 15 s instead of hours.
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # ms
}


TRUSTED_S = 1.0
"""So long after its last use a connection is taken to work."""

_WRONG_LOGIN = ("42501", "3F000")
"""SQLSTATEs of a login that lacks a right, and of one that sees no schema."""
_IDLE_TOO_LONG = "25P03"
"""SQLSTATE of a session that was ended because of idle_in_transaction_session_timeout."""
_READ_ONLY = "25006"
"""SQLSTATE of a server that takes no writes: a standby, or a primary whose disk is full."""
_TOO_LARGE = "54"
"""Class of SQLSTATEs that complain of a value's size. The driver counts them among the server's troubles."""


def open_database(
    url: SecretStr,
    *,
    pool_size: int = 4,
    application_name: str = "specthink",
    answer_within_s: float | None = None,
) -> Engine:
    """A pool of connections; none is opened yet. Never share one across a fork.

    answer_within_s: a connection on which an answer takes longer is given up, for processes that must not wait for
    ever and whose statements are all short; None: an answer may take as long as it likes.
    Raises ConfigurationError for an address that is none.
    """
    try:
        address = make_url(url.get_secret_value()).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):  # whose text may hold a part of the password
        raise ConfigurationError(
            "the database's address cannot be read: it must be postgresql://user:password@host:port/name, with other "
            "characters in the password written like %40 for @"
        ) from None
    db_engine = create_engine(
        address,
        pool_size=pool_size,
        max_overflow=2,
        hide_parameters=True,  # an error's text goes to logs, and may not take answers or prompts there
        connect_args={"application_name": application_name, "client_encoding": "utf8", **_KEEPALIVE},
        future=True,
    )
    event.listen(db_engine, "checkin", _note_use)
    event.listen(db_engine, "checkout", _require_alive)
    if answer_within_s is not None:
        event.listen(db_engine, "do_connect", _open_with_deadline(answer_within_s))
    return db_engine


_USED_AT = "specthink used_at"


def _note_use(driver: Any, record: ConnectionPoolEntry) -> None:
    record.info[_USED_AT] = time.monotonic()


def _require_alive(driver: psycopg.Connection[Any], record: ConnectionPoolEntry, proxy: Any) -> None:
    """Raises InvalidatePoolError, for which the pool opens another, where the server has gone since the last use. One
    that answered a moment ago is not asked: under load each transaction would be a third longer."""
    used_at = record.info.get(_USED_AT)
    if used_at is None or time.monotonic() - used_at < TRUSTED_S:
        return
    try:
        driver.execute("SELECT 1")
        driver.rollback()
    except psycopg.Error as error:
        raise InvalidatePoolError("the server has gone since the connection was last used") from error


def _open_with_deadline(answer_within_s: float) -> Callable[..., DeadlineConnection]:
    def connect(dialect: Any, record: Any, args: Any, options: Any) -> DeadlineConnection:
        return DeadlineConnection.open(answer_within_s, *args, **options)

    return connect


@contextmanager
def transaction(db_engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any error.

    Raises ServiceUnavailable where the server cannot be reached or has troubles of its own, which pass: the same may
    be tried again. Raises ConfigurationError where its login may not do this, and DBAPIError for all that stays wrong.
    """
    with _reached(), db_engine.begin() as connection:
        yield connection


@contextmanager
def connected(db_engine: Engine) -> Iterator[Connection]:
    """One connection for several transactions, each of which its user begins: only the first pays for asking whether
    the server is still there. Raises ServiceUnavailable as ``transaction``.
    """
    with _reached(), db_engine.connect() as opened:
        yield opened


def copy_rows(
    connection: Connection, statement: str, rows: Iterable[Sequence[int | float | str | list[str] | None]]
) -> None:
    """Send rows by a ``COPY … FROM STDIN``: several times as fast as INSERT. Raises what a statement would raise."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    try:
        with driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, hide_parameters=True, dialect=connection.dialect
        ) from error


_TRUST = text("""
    SELECT set_config('session_replication_role', 'replica', true) FROM pg_roles
    WHERE rolname = current_user AND rolsuper
""")
_FEW = 100
"""To look at the references of so many rows costs less than what follows a change of trust: a session then forgets its
plans. Measured: 2 × 40 µs a row, 1.5 ms to plan the statements of a submission anew."""
_TRUST_NO_MORE = text("SELECT set_config('session_replication_role', 'origin', true)")


@contextmanager
def references_trusted(connection: Connection, num_rows: int | None = None) -> Iterator[None]:
    """Change rows without a look at each reference: inserted ones that refer to what this transaction has just made,
    deleted ones that it has locked and knows nothing to refer to.

    num_rows: how many; None: many. Only a superuser may; for others, and where the rows are few, every row is checked.
    No trigger but theirs is on these. An error ends the transaction, and this with it.
    """
    is_trusted = (num_rows is None or num_rows > _FEW) and connection.execute(_TRUST).first() is not None
    yield
    if is_trusted:
        connection.execute(_TRUST_NO_MORE)


def stream_rows(connection: Connection, statement: str, values: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The rows of a query as they come, so that a result larger than memory is never there as a whole.

    values: for what the statement names as ``%(name)s``. Nothing else may be asked on this connection meanwhile. Raises
    what a statement would raise.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    try:
        with driver.cursor(binary=True) as cursor:
            yield from cursor.stream(statement.encode(), values)
    except psycopg.Error as error:
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, hide_parameters=True, dialect=connection.dialect
        ) from error


@contextmanager
def session(db_engine: Engine) -> Iterator[Connection]:
    """One connection in autocommit mode, for what holds as long as the session. Raises as ``transaction``."""
    with connected(db_engine) as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        if (sqlstate_of(error.orig) or "").startswith(_TOO_LARGE):
            raise
        raise ServiceUnavailable(f"{_trouble(error.orig)}: {describe(error, otherwise='08000')}") from error
    except DisconnectionError as error:
        raise ServiceUnavailable(f"Postgres cannot be reached: {first_line(error)}") from error
    except InternalError as error:
        if sqlstate_of(error.orig) == _READ_ONLY:
            raise ServiceUnavailable(f"Postgres could not do it: {describe(error)}") from error
        if sqlstate_of(error.orig) != _IDLE_TOO_LONG:
            raise
        raise ServiceUnavailable("Postgres undid this: nothing was asked in mid-transaction for too long") from error
    except ProgrammingError as error:
        if sqlstate_of(error.orig) not in _WRONG_LOGIN:
            raise
        raise ConfigurationError(f"the login of the database's address may not do this: {describe(error)}") from error
    except PoolTimeout as error:
        raise ServiceUnavailable("Postgres cannot be reached: all connections of this process are in use") from error


def _trouble(error: BaseException | None) -> str:
    sqlstate = sqlstate_of(error) or "08000"
    if sqlstate.startswith(("28", "3D")):
        return "Postgres refused the connection"
    away = sqlstate.startswith(("08", "57P"))  # connection exceptions; shut down, or starting up
    return "Postgres cannot be reached" if away else "Postgres could not do it"

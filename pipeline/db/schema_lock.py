"""The lock under which the schema and its grants are changed: one at a time, until the transaction ends.

A lock of the table that names the schema's revision, and no advisory lock: every login can take those, and holds them
for as long as it likes. This one needs more than the right to read.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

_AT_ONCE, _FOR_EVER = "100ms", "0"
_CREATE = """
    CREATE TABLE alembic_version (
        version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
    )
"""
"""As Alembic makes it, in a database that was never migrated."""
_LOCK = "LOCK TABLE alembic_version IN SHARE ROW EXCLUSIVE MODE"
_TAKEN = (psycopg.errors.LockNotAvailable, psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable)
"""Somebody has the lock, or has just made the table."""


def lock_schema(connection: Connection, on_wait: Callable[[], None] = lambda: None) -> None:
    """Wait until nobody else changes the schema, however long it takes. on_wait: called where somebody does."""
    if _lock(connection, _AT_ONCE):
        return
    on_wait()
    while not _lock(connection, _FOR_EVER):
        pass


def _lock(connection: Connection, timeout: str) -> bool:
    """Whether it got the lock in time."""
    before = connection.execute(text("SELECT current_setting('lock_timeout')")).scalar_one()
    try:
        with connection.begin_nested():
            _set_timeout(connection, timeout)
            if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
                connection.execute(text(_CREATE))
            connection.execute(text(_LOCK))
            _set_timeout(connection, before)
    except DBAPIError as error:
        if isinstance(error.orig, _TAKEN):
            return False
        raise
    return True


def _set_timeout(connection: Connection, timeout: str) -> None:
    connection.execute(text("SELECT set_config('lock_timeout', :timeout, true)"), {"timeout": timeout})

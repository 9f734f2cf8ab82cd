"""What statements need: the rights that a login has, and whether any of its statements fails without one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import Engine, event

Recorded = dict[str, Any]
"""Statements as the driver gets them, each with the parameters of its last call."""


class Right(NamedTuple):
    """A privilege on a column of a table, or on a function (then column is '')."""

    privilege: str
    table: str
    column: str

    def __str__(self) -> str:
        return f"{self.privilege} {self.table}" + (f".{self.column}" if self.column else "()")

    def revoke(self, login: str) -> str:
        if not self.column:
            return f"REVOKE EXECUTE ON FUNCTION {self.table} FROM {login}"
        return f'REVOKE {self.privilege} ("{self.column}") ON {self.table} FROM {login}'


@contextmanager
def recording(db_engine: Engine, recorded: Recorded) -> Iterator[None]:
    """Note every statement that is executed through this engine."""

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        recorded[statement] = parameters

    event.listen(db_engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(db_engine, "before_cursor_execute", note)


_COLUMNS = """
    SELECT p.privilege_type, p.table_name, p.column_name
    FROM information_schema.column_privileges p JOIN information_schema.tables t USING (table_schema, table_name)
    WHERE p.grantee = %s AND table_schema = 'public' AND t.table_type = 'BASE TABLE' ORDER BY 2, 1, 3
"""
_FUNCTIONS = """
    SELECT DISTINCT 'EXECUTE', routine_name, '' FROM information_schema.routine_privileges
    WHERE grantee = %s AND routine_schema = 'public' ORDER BY routine_name
"""


def rights_of(connection: psycopg.Connection[Any], login: str) -> list[Right]:
    """What is granted to a login by name: columns, and functions."""
    rows = [*connection.execute(_COLUMNS, (login,)), *connection.execute(_FUNCTIONS, (login,))]
    return [Right(*row) for row in rows]


def refused(connection: psycopg.Connection[Any], login: str, statements: Mapping[str, Any]) -> str | None:
    """What the first statement is refused that this login may not do; None: it may do all. Changes nothing.

    What else may be wrong with a statement, run again in another state of the database, is no matter.
    """
    connection.execute(f"SET LOCAL ROLE {login}")
    for statement, parameters in statements.items():
        connection.execute("SAVEPOINT before")
        try:
            connection.execute(statement, parameters)
        except psycopg.errors.InsufficientPrivilege as error:
            return str(error)
        except psycopg.Error:
            pass
        finally:
            connection.execute("ROLLBACK TO before")
    return None


def unneeded(connection: psycopg.Connection[Any], login: str, statements: Mapping[str, Any]) -> list[Right]:
    """Rights of a login without which all these statements may still be executed."""
    found = []
    for right in rights_of(connection, login):
        likely_first = sorted(statements, key=lambda statement: right.table not in statement)
        with connection.transaction(force_rollback=True):
            connection.execute(right.revoke(login))
            if refused(connection, login, {statement: statements[statement] for statement in likely_first}) is None:
                found.append(right)
    return found

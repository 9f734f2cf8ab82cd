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


_READABLE = """
    SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relkind IN ('r', 'v', 'm', 'p') AND a.attnum > 0 AND NOT a.attisdropped
      AND c.relnamespace = 'public'::regnamespace AND has_column_privilege(c.oid, a.attnum, 'SELECT')
    ORDER BY 1, 2
"""
_STATISTICS = """
    SELECT tablename, attname, most_common_vals::text, histogram_bounds::text FROM pg_stats
    WHERE schemaname = 'public' ORDER BY 1, 2
"""


def everything_readable(connection: psycopg.Connection[Any]) -> dict[str, list[str]]:
    """All that this login can read: each table and view in its columns, and what the planner keeps of them."""
    columns: dict[str, list[str]] = {}
    for table, column in connection.execute(_READABLE):
        columns.setdefault(table, []).append(f'"{column}"')
    found = {
        table: sorted(str(row) for row in connection.execute(f'SELECT {", ".join(names)} FROM "{table}"'))
        for table, names in columns.items()
    }
    return found | {"pg_stats": [str(row) for row in connection.execute(_STATISTICS)]}

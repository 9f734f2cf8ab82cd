"""Runs one read-only SQL statement with limits on its time and its rows."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import psycopg
from pydantic import SecretStr
from sqlalchemy import make_url

from pipeline.errors import ConfigurationError, PipelineError, QueryRefused, ServiceUnavailable
from pipeline.problems.values import check_text, footprint

MAX_ROWS = 100_000
"""Most rows that a query gives, unless more are asked for."""
MAX_RESULT_BYTES = 256 * 2**20
"""Memory that the rows of a query may take; one row more may take up to 1 GiB, which is Postgres' own limit."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a query gave: names of the columns, and the rows in the order they came."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    is_cut: bool = False
    """Whether there are more rows than these."""
    types: tuple[str, ...] = ()
    """Of the columns, as Postgres names them: "int8", "text[]"; "" for one that the driver does not know."""

    def as_dicts(self) -> list[dict[str, Any]]:
        """One dict per row; a column name that comes again gets a number: ``n``, ``n_2``."""
        return [dict(zip(self.distinct_columns(), row, strict=True)) for row in self.rows]

    def distinct_columns(self) -> list[str]:
        """The names, with a number behind one that comes again."""
        seen: dict[str, int] = {}
        names = []
        for name in self.columns:
            seen[name] = seen.get(name, 0) + 1
            names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
        return names


# For the session, and not as options of the connection: a pooler that keeps sessions refuses those.
_LIMITS = """
    SELECT set_config('default_transaction_read_only', 'on', false), set_config('statement_timeout', %(timeout)s, false)
"""


def run_query(
    url: SecretStr, query: str, *, timeout_s: float, max_rows: int, values: Mapping[str, str] | None = None
) -> Table:
    """What a query gives in a READ ONLY transaction, as the login of this address. Raises as ``Client.sql``.

    values: of the session, by name; the view job_cost reads prices there.
    """
    try:
        check_text(query)
    except ValueError as error:
        raise QueryRefused(f"the query has {error}, which cannot be sent to Postgres") from error
    address = make_url(url.get_secret_value()).set(drivername="postgresql")
    try:
        with psycopg.connect(
            address.render_as_string(hide_password=False), autocommit=True, application_name="specthink sql",
            connect_timeout=10,
        ) as connection:  # fmt: skip
            connection.execute(_LIMITS, {"timeout": f"{int(timeout_s * 1000)}ms"})
            connection.autocommit = False
            connection.read_only = True
            _require_harmless(connection)
            for name, value in (values or {}).items():
                connection.execute("SELECT set_config(%s, %s, true)", (name, value))
            return _read_table(connection.cursor(), query.strip().removesuffix(";").encode(), max_rows)
    except psycopg.errors.QueryCanceled as error:
        raise PipelineError(f"the query ran longer than {timeout_s:g} s; narrow it, or give --timeout") from error
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
        raise QueryRefused(f"specthink sql only reads: {_first_line(error)}") from error
    except psycopg.OperationalError as error:
        if error.sqlstate:
            raise QueryRefused(f"Postgres refused the query: {_first_line(error)}") from error
        raise ServiceUnavailable(f"Postgres cannot be reached: {_first_line(error)}") from error
    except psycopg.Error as error:
        if not error.sqlstate and not isinstance(error, psycopg.DataError):  # said by the driver: COPY, SET, nothing
            raise QueryRefused("specthink sql shows rows, and this statement gives none") from error
        raise QueryRefused(f"Postgres refused the query: {str(error).strip()}") from error
    except (ValueError, OverflowError, RecursionError) as error:  # a number of 5,000 digits, say, in a JSON value
        reason = f"a value of the result cannot be read here ({type(error).__name__}); cast it to text"
        raise QueryRefused(reason) from error


_MAY_LEAVE_DATABASE = """
    SELECT rolsuper OR pg_has_role('pg_execute_server_program', 'USAGE')
           OR pg_has_role('pg_write_server_files', 'USAGE')
    FROM pg_roles WHERE rolname = session_user
"""


def _require_harmless(connection: psycopg.Connection[Any]) -> None:
    """Refuse to ask as a login whose COPY can start a program or write a file: to Postgres that only reads."""
    row = connection.execute(_MAY_LEAVE_DATABASE).fetchone()
    if row is None or row[0]:
        raise ConfigurationError(
            f"the login {connection.info.user!r} may run programs and write files on the database's server, and so "
            "could a query: set SPECTHINK_LOGINS__READER=NAME:PASSWORD, then run `specthink migrate` once"
        )


def _read_table(cursor: psycopg.Cursor[Any], query: bytes, max_rows: int) -> Table:
    """Streamed, so that a result larger than memory is never there as a whole. The server takes one statement only that
    way, so that none can end the transaction for another."""
    rows: list[tuple[Any, ...]] = []
    num_bytes, is_cut = 0, False
    with contextlib.closing(cast(Generator[tuple[Any, ...]], cursor.stream(query))) as stream:
        for row in stream:
            is_cut = len(rows) == max_rows or num_bytes > MAX_RESULT_BYTES
            if is_cut:
                break
            rows.append(row)
            num_bytes += footprint(list(row))
    columns = _described(cursor, query)
    return Table(
        columns=tuple(name for name, _ in columns),
        rows=rows,
        is_cut=is_cut,
        types=tuple(_type_name(oid) for _, oid in columns),
    )


def _described(cursor: psycopg.Cursor[Any], query: bytes) -> list[tuple[str, int]]:
    """Names and types of the columns, also where the stream had no row, of which the driver then knows nothing."""
    if cursor.description is None:
        connection = cursor.connection.pgconn
        connection.prepare(b"", query)
        found = connection.describe_prepared(b"")
        return [((found.fname(index) or b"").decode(), found.ftype(index)) for index in range(found.nfields)]
    return [(column.name, column.type_code) for column in cursor.description]


def _type_name(oid: int) -> str:
    found = psycopg.adapters.types.get(oid)
    return "" if found is None else found.name if found.oid == oid else f"{found.name}[]"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

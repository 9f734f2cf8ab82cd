"""Applies the SQL of record: the views, functions and triggers whose one text is in the files of ``sql/``.

Migrations hold tables, indexes and data. What is here holds no data, so that ``specthink migrate`` drops it and creates
it again, in its own transaction, whenever the files' hash is not the one that the database has in ``schema_objects``. A
migration runs while none of it is there: it logs the changes of state that it makes, and invalidates rollups, itself.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from pipeline.errors import MigrationRefused

FOLDER = Path(__file__).with_name("sql")
FUNCTIONS = (
    "state_machine",
    "identity",
    "rollups/parts",
    "rollups/samples",
    "rollups/problems",
    "rollups/requests",
    "rollups/segments",
    "rollups/steps",
    "rollups/lengths",
    "rollups/refresh",
    "intervals",
    "totals",
    "jobs",
    "judging",
)
"""The files of types, functions and triggers, each after those that it needs."""

_CREATED = re.compile(r"^CREATE (?:(VIEW|FUNCTION|TYPE) (\w+)|TRIGGER (\w+)[^;]*? ON (\w+))", re.MULTILINE)


@cache
def sql_files() -> tuple[Path, ...]:
    """The files in the order in which they are applied: functions, then views, none of which reads another view."""
    return (*(FOLDER / f"{name}.sql" for name in FUNCTIONS), *sorted((FOLDER / "views").glob("*.sql")))


@cache
def wanted_sha256() -> str:
    """Of the names and texts of all files."""
    digest = hashlib.sha256()
    for path in sql_files():
        digest.update(b"%b\0%b\0" % (path.relative_to(FOLDER).as_posix().encode(), path.read_bytes()))
    return digest.hexdigest()


def applied_sha256(connection: Connection) -> str | None:
    """Of the files that the database was last given; None: it has none of these objects."""
    if connection.execute(text("SELECT to_regclass('schema_objects')")).scalar_one() is None:
        return None
    return connection.execute(text("SELECT sha256 FROM schema_objects")).scalar()


def created_objects(sql: str) -> list[str]:
    """What a file creates, in its order, as DROP names it: ``VIEW errors``, ``TRIGGER log_changes ON samples``."""
    return [
        f"TRIGGER {match[3]} ON {match[4]}" if match[3] else f"{match[1]} {match[2]}"
        for match in _CREATED.finditer(sql)
    ]


# Other logins' grants too: a login that could read a view or call a function before a migration can do so after it.
_GRANTS = text("""
    SELECT 'VIEW ' || c.relname AS object,
           format('GRANT %s ON %I TO %s', g.privilege_type, c.relname,
                  CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END) AS statement
    FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) g
    WHERE c.relkind = 'v' AND c.relnamespace = 'public'::regnamespace AND g.grantee <> c.relowner
    UNION ALL
    SELECT 'FUNCTION ' || p.proname,
           format('GRANT EXECUTE ON FUNCTION %I TO %I', p.proname, pg_get_userbyid(g.grantee))
    FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) g
    WHERE p.pronamespace = 'public'::regnamespace AND g.grantee NOT IN (0, p.proowner)
    ORDER BY 1, 2
""")


def drop_objects(connection: Connection) -> list[tuple[str, str]]:
    """Drop what an earlier version created, by its list; returns the grants on it as (object, statement).

    Raises MigrationRefused where somebody's own view reads one of ours.
    """
    if applied_sha256(connection) is None:
        return []
    grants = [(row.object, row.statement) for row in connection.execute(_GRANTS)]
    names = connection.execute(text("DELETE FROM schema_objects RETURNING names")).scalar_one()
    try:
        for name in reversed(names):
            connection.execute(text(f"DROP {name.replace(' ', ' IF EXISTS ', 1)}"))
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.errors.DependentObjectsStillExist):
            raise
        raise MigrationRefused(
            f"the database was not migrated: {error.orig.diag.message_detail}; drop what is yours, migrate, and create "
            "it again"
        ) from error
    return grants


def create_objects(connection: Connection, grants: list[tuple[str, str]]) -> None:
    """Create what the files say, and give the grants on what there still is."""
    created: list[str] = []
    for path in sql_files():
        sql = path.read_text(encoding="utf-8")
        try:
            connection.exec_driver_sql(sql, execution_options={"no_parameters": True})
        except DBAPIError as error:
            error.add_note(f"in {path}")
            raise
        created += created_objects(sql)
    for name, statement in grants:
        if name in created:
            connection.execute(text(statement))
    connection.execute(
        text("INSERT INTO schema_objects (sha256, names) VALUES (:sha256, :names)"),
        {"sha256": wanted_sha256(), "names": created},
    )

"""Brings a database to the newest schema, from a checkout or an installed wheel.

Alembic migrates the tables; the views, functions and triggers are made again from their files where these changed
(``pipeline.db.schema_objects``). All of it is one transaction: it happens or it does not. It is refused while workers
run, because a worker writes the schema that its own code knows; one that starts while a migration runs finds the new
schema when it registers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from pipeline.db.revision import current_revision, migrations_folder, newest_revision
from pipeline.db.schema_lock import lock_schema
from pipeline.db.schema_objects import applied_sha256, create_objects, drop_objects, wanted_sha256
from pipeline.db.server_checks import creation_fault, require_usable
from pipeline.db.session import transaction
from pipeline.errors import ConfigurationError, MigrationRefused

LOCK_TIMEOUT = dt.timedelta(seconds=10)
"""So long a migration waits for a table that somebody uses. Meanwhile everybody else waits behind it."""


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; the connection, where given, is the one migrations run on."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.attributes["connection"] = connection
    return config


def upgrade(
    db_engine: Engine,
    revision: str = "head",
    *,
    lock_timeout: dt.timedelta = LOCK_TIMEOUT,
    on_wait: Callable[[str], None] = lambda what: None,
) -> str:
    """Migrate up in one transaction; returns the revision reached. Where nothing is due, nothing is locked.

    on_wait: told in a few words when another migration is waited for, for as long as it takes.

    Raises MigrationRefused, with nothing changed, where workers run or where a table stays in use for longer than
    lock_timeout; ConfigurationError for a database of a newer version, and for a server or a login that will not do.
    """
    wanted = newest_revision() if revision == "head" else revision
    require_usable(db_engine)
    with transaction(db_engine) as connection:
        is_due = _is_due(connection, wanted)
        fault = creation_fault(connection) if is_due else None
    if fault is not None:
        raise ConfigurationError(fault)
    if is_due:
        with _migrating(db_engine, wanted, lock_timeout, on_wait) as connection:
            grants = drop_objects(connection)
            command.upgrade(alembic_config(connection), wanted)
            if wanted == newest_revision():  # the files are written for its tables
                create_objects(connection, grants)
    return wanted


def downgrade(
    db_engine: Engine,
    revision: str,
    *,
    lock_timeout: dt.timedelta = LOCK_TIMEOUT,
    on_wait: Callable[[str], None] = lambda what: None,
) -> None:
    """Migrate down in one transaction; refused as upgrade is.

    The database has no views, functions and triggers then: the version that knows this revision migrates to its own.
    """
    with _migrating(db_engine, revision, lock_timeout, on_wait) as connection:
        drop_objects(connection)
        command.downgrade(alembic_config(connection), revision)


def _is_due(connection: Connection, wanted: str) -> bool:
    """Whether the database has other tables than the wanted revision, or other objects than the newest one."""
    if current_revision(connection) != wanted:
        return True
    return wanted == newest_revision() and applied_sha256(connection) != wanted_sha256()


@contextmanager
def _migrating(
    db_engine: Engine, wanted: str, lock_timeout: dt.timedelta, on_wait: Callable[[str], None]
) -> Iterator[Connection]:
    """A transaction in which nobody else migrates and no worker runs, waiting for no table longer than lock_timeout."""
    with transaction(db_engine) as connection:
        lock_schema(connection, lambda: on_wait("waiting for another migration of this database to end"))
        mine = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        try:
            set_timeout = text("SELECT set_config('lock_timeout', :timeout, true)")
            connection.execute(set_timeout, {"timeout": f"{lock_timeout / dt.timedelta(milliseconds=1):.0f}ms"})
            _require_known(connection)
            _require_no_workers(connection, wanted)
            yield connection
        except OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise
            raise MigrationRefused(_in_use(db_engine, mine, lock_timeout)) from error


def _require_known(connection: Connection) -> None:
    found = current_revision(connection)
    try:
        if found is not None:
            ScriptDirectory.from_config(alembic_config()).get_revision(found)
    except CommandError as error:
        raise ConfigurationError(
            f"the database is at revision {found}, which this version does not know: a newer specthink migrated it, "
            "use that one"
        ) from error


# Leases run out while the database itself is down: until a time to live after its start, a silent worker may be alive.
# One that renewed at a time that is yet to come has not done so since the clock was set back.
_LIVE_WORKERS = text("""
    SELECT w.id, w.kind, w.model, w.host, w.pid, w.alive_until - clock_timestamp() AS left
    FROM (
        SELECT *, greatest(expires_at, pg_postmaster_start_time() + (expires_at - renewed_at)) AS alive_until
        FROM workers WHERE ended_at IS NULL
    ) w
    WHERE w.alive_until > clock_timestamp() AND w.renewed_at <= clock_timestamp() ORDER BY w.id
""")
_LAPSE_THE_REST = text("""
    UPDATE workers SET ended_at = clock_timestamp(), end_reason = 'lapsed' WHERE ended_at IS NULL
""")
_MAX_LISTED = 10


def _require_no_workers(connection: Connection, wanted: str) -> None:
    """Raise MigrationRefused where a worker lives; where none does, none can register before this transaction ends."""
    found = current_revision(connection)
    if found is None or not _is_due(connection, wanted):
        return
    workers = connection.execute(_LIVE_WORKERS).all()
    if not workers:
        connection.execute(text("LOCK TABLE workers IN SHARE ROW EXCLUSIVE MODE"))
        workers = connection.execute(_LIVE_WORKERS).all()
    if not workers:  # one that was frozen for longer than its lease must register again, and finds the new schema
        connection.execute(_LAPSE_THE_REST)
    if workers:
        listed = [
            f"  worker {row.id}, {row.kind}{f' {row.model}' if row.model else ''}, process {row.pid} on {row.host}"
            for row in workers[:_MAX_LISTED]
        ]
        more = [f"  and {len(workers) - _MAX_LISTED} more"] if len(workers) > _MAX_LISTED else []
        seconds = max(row.left for row in workers).total_seconds()
        step = f"from revision {found} to {wanted}" if found != wanted else "to this version's views and functions"
        raise MigrationRefused(
            "\n".join(
                [
                    f"the database was not migrated {step}: workers run on it",
                    *listed,
                    *more,
                    "stop them (they hand back what they write, and the jobs go on later), migrate, and start them "
                    f"again; one that is dead already counts as alive until its lease ends, in {seconds:.0f} s at most",
                ]
            )
        )


_USERS = text("""
    SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed') AS name, a.state,
           extract(epoch FROM clock_timestamp() - a.xact_start)::integer AS seconds
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_class c ON c.oid = l.relation
    WHERE l.granted AND c.relnamespace = 'public'::regnamespace AND a.datname = current_database()
      AND l.pid NOT IN (:mine, pg_backend_pid())
    ORDER BY a.pid
""")


def _in_use(db_engine: Engine, mine: int, lock_timeout: dt.timedelta) -> str:
    """Who uses the tables, told while the migration's own transaction still stands."""
    with transaction(db_engine) as connection:
        users = connection.execute(_USERS, {"mine": mine}).all()
    listed = [f"  {row.name}, backend {row.pid}, {row.state}, in a transaction for {row.seconds} s" for row in users]
    seconds = lock_timeout.total_seconds()
    return "\n".join(
        [
            f"the database was not migrated: its tables were in use for {seconds:g} s",
            *listed[:_MAX_LISTED],
            "let these end, or end them with SELECT pg_terminate_backend(…), and migrate again",
        ]
    )

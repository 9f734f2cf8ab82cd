"""What a server must be like: its encoding, the login's schema and rights, and no pooler that loses sessions."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from pipeline.db.session import session, transaction
from pipeline.errors import ConfigurationError

MIN_VERSION = 140_000
_TRIES = 3


def require_usable(db_engine: Engine) -> None:
    """Raise ConfigurationError, in one line with the remedy, where the server cannot be worked with as it is."""
    with transaction(db_engine) as connection:
        fault = server_fault(connection)
    fault = fault or pooler_fault(db_engine)
    if fault is not None:
        raise ConfigurationError(fault)


_PLACE = text("""
    SELECT current_setting('server_version_num')::integer AS version, current_setting('server_encoding') AS encoding,
           current_schema() AS schema, current_user AS login, current_database() AS database
""")


def server_fault(connection: Connection) -> str | None:
    """Why neither tables can be made nor read here; None where they can."""
    row = connection.execute(_PLACE).one()
    if row.version < MIN_VERSION:
        return "the server is older than PostgreSQL 14: use a newer one"
    if row.encoding != "UTF8":
        return (
            f"the database {row.database} has the encoding {row.encoding}, which cannot hold every text: create one by "
            "CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
        )
    if row.schema is None:
        return (
            f"{row.login} may not use schema public, or its search_path names no schema that there is: GRANT USAGE ON "
            f"SCHEMA public TO {row.login}; ALTER ROLE {row.login} SET search_path = public"
        )
    if row.schema != "public":
        return (
            f"the search_path of {row.login} leads to schema {row.schema}, and the tables live in public: ALTER ROLE "
            f"{row.login} IN DATABASE {row.database} SET search_path = public, or leave options out of the address"
        )
    return None


_MAY_CREATE = text("SELECT current_user AS login, has_schema_privilege(current_user, 'public', 'CREATE') AS may_create")


def creation_fault(connection: Connection) -> str | None:
    """Why no tables can be made here; None where they can."""
    row = connection.execute(_MAY_CREATE).one()
    if row.may_create:
        return None
    return (
        f"{row.login} may not create tables in schema public: GRANT CREATE ON SCHEMA public TO {row.login}, or make it "
        "the database's owner"
    )


def pooler_fault(db_engine: Engine) -> str | None:
    """That a pooler gives each transaction another session of the server; None where sessions are kept.

    Statements are prepared for a session, and upkeep leads by a lock of its session. A pooler shows by a process id
    that is not the one which the connection was opened with; one that keeps sessions does no harm.
    """
    with session(db_engine) as first:
        driver = first.connection.driver_connection
        own = _backend(first)
        if driver is None or driver.info.backend_pid == own:
            return None
        for _ in range(_TRIES):
            with transaction(db_engine) as second:
                if _backend(second) == own or _backend(first) != own:
                    return (
                        "a connection pooler in transaction mode is between here and Postgres, and specthink needs "
                        "sessions: set pool_mode = session for it, or name the server itself in SPECTHINK_DATABASE_URL"
                    )
    return None


def _backend(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

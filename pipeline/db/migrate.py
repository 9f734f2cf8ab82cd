"""Bringing a database to the newest schema with Alembic, from a checkout or an installed wheel."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from pipeline.db.session import transaction
from pipeline.errors import ConfigurationError

MIGRATION_LOCK = 7_300_001
"""Advisory lock key: two migrations at once wait for each other."""


def migrations_folder() -> Path:
    """Where the migration scripts are: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError(f"no migrations beside {package}; install specthink again")


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; the connection, where given, is the one migrations run on."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.attributes["connection"] = connection
    return config


def upgrade(db_engine: Engine, revision: str = "head") -> str:
    """Migrate up in one transaction; returns the revision reached."""
    with transaction(db_engine) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        command.upgrade(alembic_config(connection), revision)
        return current_revision(connection) or ""


def downgrade(db_engine: Engine, revision: str) -> None:
    """Migrate down in one transaction."""
    with transaction(db_engine) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        command.downgrade(alembic_config(connection), revision)


def current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    return ScriptDirectory.from_config(alembic_config()).get_current_head() or ""


def require_current(db_engine: Engine) -> None:
    """Raise ConfigurationError unless the database has the schema this code was written for."""
    with transaction(db_engine) as connection:
        found, wanted = current_revision(connection), newest_revision()
    if found != wanted:
        raise ConfigurationError(
            f"the database is at revision {found}, this version needs {wanted}: run specthink migrate"
        )

"""Which schema a database has, and which one this code was written for.

Without Alembic, which takes a tenth of a worker's start to load: that only migrating needs (``pipeline.db.migrate``).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from pipeline.db.schema_objects import applied_sha256, wanted_sha256
from pipeline.db.server_checks import require_usable
from pipeline.db.session import transaction
from pipeline.errors import ConfigurationError

_REVISION = re.compile(r'^(revision|down_revision) = "(\w+)"$', re.MULTILINE)


def migrations_folder() -> Path:
    """Where the migration scripts are: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError(f"no migrations beside {package}; install specthink again")


@cache
def newest_revision() -> str:
    """The one revision of the scripts that no other one follows."""
    named: dict[str, set[str]] = {"revision": set(), "down_revision": set()}
    for script in (migrations_folder() / "versions").glob("*.py"):
        for name, revision in _REVISION.findall(script.read_text(encoding="utf-8")):
            named[name].add(revision)
    [newest] = named["revision"] - named["down_revision"]
    return newest


def current_revision(connection: Connection) -> str | None:
    """Of the database; None: it was never migrated."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def schema_fault(connection: Connection) -> str | None:
    """Say how the database's schema differs from the one that this code needs; None: it does not."""
    found, wanted = current_revision(connection), newest_revision()
    if found != wanted:
        return f"the database is at revision {found}, this version needs {wanted}"
    if applied_sha256(connection) != wanted_sha256():
        return f"the database is at revision {found}, with views and functions of another version"
    return None


def require_current(db_engine: Engine) -> None:
    """Raise ConfigurationError unless the database can be used and has the schema this code was written for."""
    require_usable(db_engine)
    with transaction(db_engine) as connection:
        check_current(connection)


def check_current(connection: Connection) -> None:
    """Check the schema as require_current does, in a transaction that goes on.

    A worker that asks this after its row was inserted cannot slip past a migration: one of the two sees the other.
    """
    fault = schema_fault(connection)
    if fault is not None:
        raise ConfigurationError(f"{fault}: run specthink migrate")

"""Who may do what in the database. Granted again after each migration, to exactly what is written here.

Of the workers only graders can read a reference answer, or a column that no prompt shows. The reader can too: there a
person asks. A submitter writes both and reads neither; what it may do to a text or a score, it does by functions that
check it. Events need no grant: the triggers that write them have the rights of the schema's owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from pipeline.db.migrate import MIGRATION_LOCK
from pipeline.db.tables import GradeRow
from pipeline.errors import ConfigurationError
from pipeline.logins import SUPERUSER_SETTINGS, DatabaseRole, Login

if TYPE_CHECKING:
    import psycopg

_LEASE = (
    "renewed_at, expires_at, ended_at, end_reason, num_in_flight, num_slots, tokens_generated, tokens_committed, "
    "tokens_dropped, prompt_tokens, cached_tokens, refused_jobs"
)
_REGISTRATION = "kind, model, engine_id, host, pid, queue, max_in_flight, expires_at"
_WORKERS = {
    "workers": f"SELECT, INSERT ({_REGISTRATION}), UPDATE ({_LEASE})",
    **dict.fromkeys(("alembic_version", "schema_objects"), "SELECT"),
}
"""What every worker does: find the schema current, register, renew, end."""
_WRITTEN = (
    "state, epoch, holder_id, small_worker_id, large_worker_id, runnable_at, published_at, not_before, num_rescues, "
    "num_attempts, policy_state, next_role, next_request, num_segments, num_takeovers, tokens_small, tokens_large, "
    "tokens_inserted, discarded_small, discarded_large, num_asides, aside_small, aside_large, taken_small, "
    "taken_large, finish_reason, error_class, error, finished_at, ended_at"
)
"""What a claim, a commit, a release or a deferral changes of a sample."""
_GRADE_COLUMNS = ", ".join(
    column.name for column in GradeRow.__table__.columns if column.name not in ("predicted_answer", "detail")
)
"""Of a grade, what is no text: a grader that broke may quote the reference answer in its detail."""

_PROBLEM_SET = "name, content_sha256, num_problems, num_references, has_choices"
_PROBLEM = "id, problem_set_id, position, external_id, prompt, subject, level, shown"
_SUBMITTED = (
    "name, policy, problem_set_id, state, config, versions, small_model, large_model, first_role, think_start, "
    "think_end, think_opened, num_problems, num_samples, cloned_from"
)
"""What a submission says of a job; the samples are stored by ``add_samples``."""

GRANTS: Mapping[DatabaseRole, Mapping[str, str]] = {
    DatabaseRole.WRITER: {
        **_WORKERS,
        "engines": "SELECT, INSERT",
        "problems": "SELECT (id, problem_set_id, position, external_id, prompt, shown)",
        "jobs": "SELECT, UPDATE (think_start, think_end, think_opened, small_identity, large_identity)",
        "samples": f"SELECT, UPDATE ({_WRITTEN})",
        **dict.fromkeys(("segments", "asides"), "SELECT, INSERT"),
        **dict.fromkeys(("signals", "steps"), "INSERT"),
    },
    DatabaseRole.GRADER: {
        **_WORKERS,
        "reference_answers": "SELECT",
        "hidden_columns": "SELECT",
        "problems": "SELECT",
        "segments": "SELECT",
        "jobs": "SELECT, UPDATE (followed_at)",  # to lock a job's row against the count of its totals
        "job_totals": "SELECT (job_id), UPDATE (stale_at)",
        "samples": "SELECT, UPDATE (state, score, predicted_answer, ended_at)",
        "grades": "SELECT, INSERT, UPDATE",
    },
    DatabaseRole.UPKEEP: {
        **_WORKERS,
        **dict.fromkeys(("engines", "problem_sets", "problems", "segments", "asides", "steps", "events"), "SELECT"),
        "jobs": "SELECT, UPDATE",
        "job_totals": "SELECT, INSERT, UPDATE",
        "rollups": "SELECT, UPDATE",
        "length_counts": "SELECT, INSERT, UPDATE, DELETE",
        "workers": f"SELECT, INSERT ({_REGISTRATION}), UPDATE",
        "samples": "SELECT, UPDATE",
        "grades": f"SELECT ({_GRADE_COLUMNS}), UPDATE (status, graded_at, detail)",
    },
    DatabaseRole.SUBMITTER: {
        **dict.fromkeys(("alembic_version", "schema_objects"), "SELECT"),
        **dict.fromkeys(("engines", "workers", "segments", "asides", "signals", "steps", "events"), "SELECT"),
        **dict.fromkeys(("rollups", "length_counts"), "SELECT"),
        "problem_sets": f"SELECT, INSERT ({_PROBLEM_SET})",
        "problems": f"SELECT, INSERT ({_PROBLEM})",
        "SEQUENCE problems_id_seq": "USAGE",
        "reference_answers": "INSERT (problem_id, answer, also_accepted)",
        "hidden_columns": "INSERT (problem_id, columns)",
        "jobs": f"SELECT, INSERT ({_SUBMITTED}), UPDATE (state, priority, first_claimed_at, finished_at)",
        "job_totals": "SELECT, DELETE",  # of a job that runs again
        "samples": "SELECT, UPDATE (state, epoch, holder_id, runnable_at, published_at, ended_at)",
        "grades": f"SELECT ({_GRADE_COLUMNS})",
        **dict.fromkeys(
            (f"FUNCTION {name}" for name in ("add_samples", "retry_failed_samples", "retry_cut_samples")), "EXECUTE"
        ),
    },
    DatabaseRole.READER: {"ALL TABLES IN SCHEMA public": "SELECT"},
}
"""Privileges by role and table; upkeep and submitters read the views too."""
_READ_VIEWS = (DatabaseRole.UPKEEP, DatabaseRole.SUBMITTER)
_VIEWS = "SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace"
_NEVER: Mapping[DatabaseRole, tuple[tuple[str, str], ...]] = {
    DatabaseRole.WRITER: (
        ("reference_answers", "SELECT"),
        ("hidden_columns", "SELECT"),
        ("grades", "SELECT"),
        ("events", "INSERT"),
    ),
    DatabaseRole.GRADER: (("reference_answers", "UPDATE"), ("hidden_columns", "UPDATE"), ("events", "INSERT")),
    DatabaseRole.UPKEEP: (("reference_answers", "SELECT"), ("hidden_columns", "SELECT"), ("events", "INSERT")),
    DatabaseRole.SUBMITTER: (
        ("reference_answers", "SELECT"),
        ("hidden_columns", "SELECT"),
        ("segments", "INSERT"),
        ("grades", "UPDATE"),
        ("events", "INSERT"),
    ),
    DatabaseRole.READER: (("samples", "UPDATE"), ("reference_answers", "UPDATE")),
}
"""What a login must not be able to do by any other way."""


def grant_roles(connection: Connection, logins: Mapping[DatabaseRole, str]) -> None:
    """Let these logins do what their roles may in this database, and nothing else. Idempotent; the owner calls it.

    logins: role → name of a login that exists. Two calls at once wait for each other. Raises ConfigurationError for a
    login that can do more whatever is granted, as a superuser or the tables' owner can.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    quote = connection.dialect.identifier_preparer.quote
    database = quote(str(connection.execute(text("SELECT current_database()")).scalar_one()))
    connection.execute(text(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"))  # a reader could fill the disk
    connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))  # PostgreSQL 14 still grants it
    views = [quote(str(name)) for name in connection.execute(text(_VIEWS)).scalars()]
    for role, name in logins.items():
        login = quote(name)
        for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
            connection.execute(text(f"REVOKE ALL ON ALL {kind} IN SCHEMA public FROM {login}"))
        connection.execute(text(f"REVOKE ALL ON SCHEMA public FROM {login}"))
        connection.execute(text(f"GRANT CONNECT ON DATABASE {database} TO {login}"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {login}"))
        more = dict.fromkeys(views, "SELECT") if role in _READ_VIEWS else {}
        for table, privileges in {**GRANTS[role], **more}.items():
            connection.execute(text(f"GRANT {privileges} ON {table} TO {login}"))
        _require_no_more(connection, role, name)


def _require_no_more(connection: Connection, role: DatabaseRole, login: str) -> None:
    for table, privilege in _NEVER[role]:
        values = {"login": login, "table": table, "privilege": privilege}
        if connection.execute(text("SELECT has_any_column_privilege(:login, :table, :privilege)"), values).scalar_one():
            raise ConfigurationError(
                f"the login {login!r} has {privilege} on {table} whatever is granted: it is a superuser, the owner or "
                f"a member of such a role; use another login for the {role.value}'s role"
            )


_TELLING_LOGINS = text("""
    SELECT r.rolname FROM pg_roles r
    WHERE r.rolcanlogin AND NOT r.rolsuper AND has_any_column_privilege(r.oid, 'segments', 'INSERT')
      AND (has_any_column_privilege(r.oid, 'reference_answers', 'SELECT')
           OR has_any_column_privilege(r.oid, 'hidden_columns', 'SELECT'))
      AND r.oid <> (SELECT relowner FROM pg_class WHERE oid = 'reference_answers'::regclass)
    ORDER BY r.rolname
""")


def find_telling_logins(connection: Connection) -> list[str]:
    """Logins, but for the owner and superusers, that write segments and can read what is hidden from who writes."""
    return [str(name) for name in connection.execute(_TELLING_LOGINS).scalars()]


def create_logins(connection: Connection, logins: Iterable[Login]) -> None:
    """Create the logins that have a password here, or give those that exist this password.

    Raises ConfigurationError where this connection's role may not, with what its administrator should do.
    """
    import psycopg

    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    for login in logins:
        if login.password is None:
            continue
        try:
            with connection.begin_nested():
                ensure_login(driver, login.name, login.password.get_secret_value(), settings=login.settings)
        except psycopg.Error as error:
            raise ConfigurationError(
                f"the login {login.name!r} cannot be made or changed ({str(error).strip().splitlines()[0]}): give this "
                "database's owner CREATEROLE, or let an administrator create the login and name it without a password"
            ) from error


def ensure_login(connection: psycopg.Connection[Any], name: str, password: str, *, settings: Mapping[str, str]) -> None:
    """Create a role that may log in and do nothing else, or give it this password.

    settings: parameters that each of its sessions begins with; those that this connection's role may not set are left
    out. The password is sent as its SCRAM verifier, so that no log can hold it.
    """
    from psycopg import errors, sql

    role = sql.Identifier(name)
    verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
    verb = sql.SQL("ALTER" if exists else "CREATE")  # a new role has no right that is not given to it
    connection.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, role, sql.Literal(verifier)))
    for setting, value in settings.items():
        alter = sql.SQL("ALTER ROLE {} SET {} = {}").format(role, sql.Identifier(setting), sql.Literal(value))
        refusal = suppress(errors.InsufficientPrivilege) if setting in SUPERUSER_SETTINGS else nullcontext()
        with refusal, connection.transaction():
            connection.execute(alter)

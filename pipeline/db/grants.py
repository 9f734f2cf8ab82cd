"""Who may do what in the database. Granted again after each migration, to exactly what is written here.

Of the workers only graders can read a reference answer, or a column that no prompt shows; nor can anybody else learn it
from a sample that is right: writers read texts and no score, upkeep reads scores and no text. The reader can read all:
there a person asks. A submitter writes answers and hidden columns and reads neither; what it may do to a text or a
score, it does by functions that check it. So does the gateway, which also keeps the files that came in over HTTP.
Events need no grant: the triggers that write them have the rights of the schema's owner.

One exception is named: a person who may read answers can ask a judge whether texts are right, and a judge's prompts
show the answers to whoever reads prompts. ``problem_sets.tells_answers_of`` says of such a set whose answers it tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from pipeline.db.schema_lock import lock_schema
from pipeline.db.tables import AsideRow, GradeRow, SegmentRow, SignalRow, StepRow
from pipeline.errors import ConfigurationError
from pipeline.logins import SUPERUSER_SETTINGS, DatabaseRole, Login

if TYPE_CHECKING:
    import psycopg

_LEASE = (
    "renewed_at, expires_at, ended_at, end_reason, num_in_flight, num_slots, tokens_generated, tokens_committed, "
    "tokens_dropped, prompt_tokens, cached_tokens, num_drafts, draft_tokens, accepted_tokens, refused_jobs"
)
"""What a worker stores of its own life."""
_REGISTRATION = "id, kind, model, engine_id, host, pid, queue, max_in_flight, expires_at"
_LIFE = {"SEQUENCE workers_id_seq": "USAGE"}
"""To begin one."""
_SCHEMA = {"alembic_version": "SELECT (version_num)", "schema_objects": "SELECT (sha256)"}
"""To find the schema current."""

_WRITTEN = (
    "state, epoch, holder_id, small_worker_id, large_worker_id, judge_worker_id, runnable_at, not_before, num_rescues, "
    "num_attempts, part_tokens, policy_state, next_role, next_request, num_segments, num_takeovers, tokens_small, "
    "tokens_large, tokens_inserted, discarded_small, discarded_large, num_asides, aside_small, aside_large, "
    "aside_judge, taken_small, taken_large"
)
"""What a claim, a commit, a release or a deferral reads of a sample and changes."""
_ENDED = "published_at, trial_epoch, finish_reason, error_class, error, finished_at, ended_at"
"""What these change and never read."""
_ENGINE = "kind, version, model, model_fingerprint, vocabulary_sha256, settings, sha256, weights_sha256, revision"
_RESUMED = (
    "sample_id, segment_index, epoch, worker_id, engine_id, author, trigger, takes_over, finish, token_ids, text, "
    "token_lengths, tokens_generated, prompt_tokens, committed_at"
)
"""What a writer reads of the segments that it goes on from."""
_ASIDE = ", ".join(column.name for column in AsideRow.__table__.columns if column.name != "committed_at")
_SEGMENT = ", ".join(column.name for column in SegmentRow.__table__.columns if column.name != "committed_at")
_PART = "sample_id, segment_index, start_token, token_ids, epoch"
_STEP = ", ".join(column.name for column in StepRow.__table__.columns)
_SIGNAL = ", ".join(column.name for column in SignalRow.__table__.columns)

_COUNTED = (
    "id, job_id, problem_id, state, phase, epoch, holder_id, small_worker_id, large_worker_id, judge_worker_id, "
    "next_role, num_segments, num_takeovers, num_asides, num_rescues, trial_epoch, tokens_small, tokens_large, "
    "tokens_inserted, discarded_small, discarded_large, aside_small, aside_large, aside_judge, taken_small, "
    "taken_large, finish_reason, score, published_at, not_before, admitted_at, finished_at, ended_at"
)
"""What upkeep reads of a sample, for its duties and for job_progress: a score, and no text or answer beside it."""

_SUMMED = (
    "job_id, problem_id, state, phase, finish_reason, score, error_class, runnable_at, num_takeovers, "
    "tokens_small, tokens_large, tokens_inserted, discarded_small, discarded_large, aside_small, aside_large, "
    "aside_judge, taken_small, taken_large"
)
"""What a monitor counts of samples: a score, and no text, answer or id beside it."""
_TOTALED = (
    "pending, ready, drafting, awaiting_large, assisting, awaiting_judge, judging, finished, graded, failed, "
    "cancelled, num_length, num_context, num_repetition, takeovers, tokens_small, tokens_large, tokens_inserted, "
    "discarded_small, discarded_large, aside_small, aside_large, aside_judge, taken_small, taken_large"
)
_BATCH_MOMENTS = "id, in_progress_at, finalizing_at, completed_at, failed_at, expired_at, cancelling_at, cancelled_at"
_WORKER_METRICS = (
    "kind, model, queue, max_in_flight, num_slots, num_in_flight, ended_at, end_reason, expires_at, tokens_dropped, "
    "prompt_tokens, cached_tokens, num_drafts, draft_tokens, accepted_tokens"
)

_GRADE_COLUMNS = ", ".join(
    column.name for column in GradeRow.__table__.columns if column.name not in ("predicted_answer", "detail")
)
"""Of a grade, what is no text: a grader that broke may quote the reference answer in its detail."""

_PROBLEM_SET = "name, content_sha256, num_problems, num_references, has_choices, tells_answers_of, source"
_PROBLEM = "id, problem_set_id, position, external_id, prompt, subject, level, shown"
_SUBMITTED = (
    "name, policy, problem_set_id, state, config, versions, small_model, large_model, judge_model, first_role, "
    "think_start, think_end, think_opened, num_problems, num_samples, cloned_from, judged_job_id"
)
"""What a submission says of a job; the samples are stored by ``add_samples``."""

_BATCH = (
    "id, owner_id, input_file_id, answers_file_id, endpoint, completion_window, metadata, options, request_sha256, "
    "idempotency_key, expires_at, output_expires_s"
)
"""What a creation says of a batch."""
_BATCH_CHANGES = (
    "model, errors, num_lines, num_completed, num_failed, usage, output_bytes, error_bytes, num_retries, "
    "in_progress_at, expires_at, expiring_at, finalizing_at, completed_at, failed_at, expired_at, cancelling_at, "
    "cancelled_at, output_deleted_at, error_deleted_at"
)
_CHAT = "id, external_id, owner_id, request_sha256, job_id, model"

GRANTS: Mapping[DatabaseRole, Mapping[str, str]] = {
    DatabaseRole.WRITER: {
        **_SCHEMA,
        **_LIFE,
        "workers": (
            "SELECT (id, kind, model, engine_id, host, queue, renewed_at, expires_at, ended_at, tokens_committed, "
            "tokens_dropped), "
            f"INSERT ({_REGISTRATION}), UPDATE ({_LEASE})"
        ),
        "engines": (
            f"SELECT (id, sha256, model_fingerprint, vocabulary_sha256, weights_sha256, revision), INSERT ({_ENGINE})"
        ),
        "problems": "SELECT (id, external_id, prompt, shown)",
        "jobs": (
            "SELECT (id, state, config, small_model, large_model, judge_model, small_identity, large_identity, "
            "judge_identity, think_start, think_end, think_opened), UPDATE (small_identity, large_identity, "
            "judge_identity, think_start, think_end, think_opened)"
        ),
        "samples": (
            f"SELECT (id, job_id, problem_id, sample_index, max_tokens, phase, {_WRITTEN}), "
            f"UPDATE ({_WRITTEN}, {_ENDED})"
        ),
        "segments": f"SELECT ({_RESUMED}), INSERT ({_SEGMENT})",
        "segment_parts": f"SELECT ({_PART}), INSERT ({_PART}, worker_id), DELETE",
        "asides": f"SELECT ({_ASIDE}, committed_at), INSERT ({_ASIDE})",
        "signals": f"INSERT ({_SIGNAL})",
        "steps": f"INSERT ({_STEP})",
    },
    DatabaseRole.GRADER: {
        **_SCHEMA,
        **_LIFE,
        "workers": f"SELECT (id, renewed_at, ended_at), INSERT ({_REGISTRATION}), UPDATE ({_LEASE})",
        "reference_answers": "SELECT (problem_id, answer, also_accepted)",
        "problems": "SELECT (id, shown)",
        "segments": "SELECT (sample_id, segment_index, text)",
        "jobs": (  # an UPDATE to lock a job's row against the count of its totals
            "SELECT (id, config, think_start, think_end, think_opened), UPDATE (followed_at)"
        ),
        "job_totals": "SELECT (job_id), UPDATE (stale_at)",
        "samples": (
            "SELECT (id, job_id, problem_id, state, epoch, finish_reason, ended_at), "
            "UPDATE (state, score, predicted_answer, ended_at)"
        ),
        "grades": (
            "SELECT (sample_id, grader, grader_version, status, score, predicted_answer, started_at, num_tries), "
            "INSERT (sample_id, grader, grader_version, status, score, predicted_answer, detail, graded_at), "
            "UPDATE (status, score, predicted_answer, detail, started_at, num_tries, graded_at)"
        ),
    },
    DatabaseRole.UPKEEP: {
        **_SCHEMA,
        **_LIFE,
        "workers": (
            "SELECT (id, kind, model, engine_id, queue, max_in_flight, num_slots, renewed_at, expires_at, ended_at, "
            f"end_reason, settled_at), INSERT ({_REGISTRATION}), UPDATE ({_LEASE}, settled_at)"
        ),
        "engines": "SELECT (id, model_fingerprint, weights_sha256, revision)",
        "upkeep_leader": (
            "SELECT (is_single, worker_id, backend_pid, backend_start, since, seen_at, expires_at, can_publish), "
            "UPDATE (worker_id, backend_pid, backend_start, since, seen_at, expires_at, can_publish)"
        ),
        "jobs": (
            "SELECT (id, state, config, small_model, large_model, judge_model, small_identity, large_identity, "
            "judge_identity, first_role, "
            "priority, first_claimed_at, finished_at, followed_at, judged_job_id, verdicts_at), "
            "UPDATE (state, first_claimed_at, finished_at, followed_at)"
        ),
        "samples": (
            f"SELECT ({_COUNTED}), UPDATE (state, epoch, holder_id, runnable_at, published_at, not_before, "
            "num_rescues, error_class, error, admitted_at, ended_at)"
        ),
        "grades": "SELECT (sample_id, status, started_at, num_tries), UPDATE (status, detail, graded_at)",
        "events": "SELECT (job_id, to_state, at)",
        "job_totals": "SELECT (job_id, stale_at)",
        "rollups": (
            "SELECT (job_id, first_problem, last_problem, samples, refreshed_at, changed_at), UPDATE (changed_at)"
        ),
        "job_progress": "SELECT",
        **dict.fromkeys(
            (f"FUNCTION {name}" for name in ("refresh_rollup", "compact_lengths", "keep_totals", "carry_verdicts")),
            "EXECUTE",
        ),
    },
    DatabaseRole.SUBMITTER: {
        **dict.fromkeys(("alembic_version", "schema_objects"), "SELECT"),
        **dict.fromkeys(
            (
                "engines",
                "workers",
                "upkeep_leader",
                "segments",
                "segment_parts",
                "asides",
                "signals",
                "steps",
                "events",
            ),
            "SELECT",
        ),
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
        "judged_samples": "SELECT, INSERT (job_id, sample_id, epoch, problem_id)",
        "experiments": "SELECT, INSERT (name), UPDATE (changed_at)",
        "experiment_jobs": "SELECT, INSERT (experiment, row_name, job_id, control_of)",
        **dict.fromkeys(
            (
                f"FUNCTION {name}"
                for name in (
                    "add_samples",
                    "retry_failed_samples",
                    "retry_cut_samples",
                    "reopen_grades",
                    "carry_verdicts",
                )
            ),
            "EXECUTE",
        ),
    },
    DatabaseRole.MONITOR: {
        **_SCHEMA,
        "worker_demand": "SELECT",
        "jobs": "SELECT (id, state, policy, small_model, large_model, judge_model)",
        "samples": f"SELECT ({_SUMMED})",
        "rollups": "SELECT (job_id, first_problem, last_problem, samples, delegation, refreshed_at)",
        "job_totals": f"SELECT (job_id, stale_at, {_TOTALED})",
        "batches": f"SELECT ({_BATCH_MOMENTS})",
        "batch_jobs": "SELECT (batch_id, job_id)",
        "workers": f"SELECT ({_WORKER_METRICS})",
        "upkeep_leader": "SELECT (worker_id, seen_at)",
        "grades": "SELECT (status)",
    },
    DatabaseRole.GATEWAY: {
        **dict.fromkeys(
            (
                "alembic_version",
                "schema_objects",
                "engines",
                "workers",
                "upkeep_leader",
                "segments",
                "asides",
                "steps",
                "rollups",
                "length_counts",
            ),
            "SELECT",
        ),
        "problem_sets": f"SELECT, INSERT ({_PROBLEM_SET})",
        "problems": f"SELECT, INSERT ({_PROBLEM})",
        "SEQUENCE problems_id_seq": "USAGE",
        "reference_answers": "INSERT (problem_id, answer, also_accepted)",
        "hidden_columns": "INSERT (problem_id, columns)",
        "jobs": f"SELECT, INSERT ({_SUBMITTED}), UPDATE (state, priority, first_claimed_at, finished_at)",
        "job_totals": "SELECT, DELETE",
        "samples": "SELECT, UPDATE (state, epoch, holder_id, runnable_at, published_at, ended_at)",
        "events": "SELECT",
        "grades": f"SELECT ({_GRADE_COLUMNS})",
        **{f"FUNCTION {name}": "EXECUTE" for name in ("add_samples", "retry_failed_samples")},
        "api_keys": (
            "SELECT (id, name, sha256, role, requests_per_minute, max_file_bytes, last_used_at, revoked_at), "
            "UPDATE (last_used_at)"
        ),
        "model_aliases": "SELECT",
        "files": (
            "SELECT, INSERT (id, owner_id, purpose, filename, num_bytes, sha256, request_sha256, idempotency_key, "
            "expires_at), UPDATE (deleted_at)"
        ),
        "file_parts": "SELECT, INSERT, DELETE",
        "batches": f"SELECT, INSERT ({_BATCH}), UPDATE ({_BATCH_CHANGES})",
        "batch_jobs": "SELECT, INSERT",
        "chat_requests": f"SELECT, INSERT ({_CHAT}), UPDATE (waited_at, delivered_at)",
    },
    DatabaseRole.READER: {"ALL TABLES IN SCHEMA public": "SELECT"},
}
"""Privileges by role and table, view or function; submitters and the gateway read all views. Of a worker,
each is one that a statement of its needs (tests/integration/test_rights.py)."""
_READ_VIEWS = (DatabaseRole.SUBMITTER, DatabaseRole.GATEWAY)
_VIEWS = "SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace"
_NEVER: Mapping[DatabaseRole, tuple[tuple[str, str], ...]] = {
    DatabaseRole.WRITER: (
        ("reference_answers", "SELECT"),
        ("hidden_columns", "SELECT"),
        ("grades", "SELECT"),
        ("rollups", "SELECT"),
        ("events", "INSERT"),
    ),
    DatabaseRole.GRADER: (("reference_answers", "UPDATE"), ("hidden_columns", "UPDATE"), ("events", "INSERT")),
    DatabaseRole.UPKEEP: (
        ("reference_answers", "SELECT"),
        ("hidden_columns", "SELECT"),
        ("problems", "SELECT"),
        ("segments", "SELECT"),
        ("events", "INSERT"),
    ),
    DatabaseRole.SUBMITTER: (
        ("reference_answers", "SELECT"),
        ("hidden_columns", "SELECT"),
        ("segments", "INSERT"),
        ("grades", "UPDATE"),
        ("events", "INSERT"),
    ),
    DatabaseRole.MONITOR: (
        ("reference_answers", "SELECT"),
        ("hidden_columns", "SELECT"),
        ("problems", "SELECT"),
        ("segments", "SELECT"),
        ("samples", "UPDATE"),
    ),
    DatabaseRole.GATEWAY: (
        ("reference_answers", "SELECT"),
        ("hidden_columns", "SELECT"),
        ("segments", "INSERT"),
        ("grades", "UPDATE"),
        ("events", "INSERT"),
        ("api_keys", "INSERT"),
    ),
    DatabaseRole.READER: (("samples", "UPDATE"), ("reference_answers", "UPDATE")),
}
"""What a login must not be able to do by any other way."""


def grant_roles(connection: Connection, logins: Mapping[DatabaseRole, str]) -> None:
    """Let these logins do what their roles may in this database, and nothing else. Idempotent; the owner calls it.

    logins: role → name of a login that exists. Two calls at once wait for each other. Raises ConfigurationError for a
    login that can do more whatever is granted, as a superuser or the tables' owner can.
    """
    lock_schema(connection)
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

    lock_schema(connection)
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

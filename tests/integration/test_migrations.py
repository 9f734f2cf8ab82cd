"""Migrations on filled databases, down and up again; and beside everything that may run while somebody migrates."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, insert, make_url, text
from sqlalchemy.exc import DBAPIError

from pipeline.db import migrate, schema_objects
from pipeline.db.revision import newest_revision, require_current, schema_fault
from pipeline.db.schema_objects import applied_sha256, wanted_sha256
from pipeline.db.session import open_database, transaction
from pipeline.db.tables import METADATA, SampleRow
from pipeline.db.worker_leases import Registration, end_worker, register_worker
from pipeline.db.worker_leases import WorkerCounters as Counters
from pipeline.embedded import Connections
from pipeline.errors import ConfigurationError, MigrationRefused
from pipeline.jobs.config import JobState
from pipeline.samples import FINAL_STATES, WRITING_STATE, ErrorClass, SampleState
from pipeline.settings import LeaseSettings
from pipeline.workforce import WorkerEnd, WorkerKind
from tests.integration.rows import (
    add_aside,
    add_engine,
    add_job,
    add_problem_set,
    add_segment,
    add_signal,
    add_step,
    add_worker,
)
from workers.processes.lease import LeaseKeeper

SCRIPTS = list(ScriptDirectory.from_config(migrate.alembic_config()).walk_revisions())
REVISIONS = [script.revision for script in SCRIPTS]
"""Newest first."""

LOCK_SCHEMA = "LOCK TABLE alembic_version IN SHARE ROW EXCLUSIVE MODE"

RELEASED: Mapping[str, str] = {}
"""sha256 of the migrations that databases of users have behind them: none before the first release. Never change an
entry: write a new migration."""

NOW = dt.datetime.now(dt.UTC)
Rows = dict[str, list[dict[str, Any]]]


def fill(connection: Connection) -> None:
    """Rows in every table: jobs, samples and ends of workers of every kind there is."""
    problems = add_problem_set(connection)
    engine = add_engine(connection, "S")
    ended = [add_ended_worker(connection, reason, engine) for reason in WorkerEnd]
    for state in JobState:
        job = add_job(connection, problems, state="running", num_samples=20, seconds=60)
        finished_at = "NULL" if state in (JobState.RUNNING, JobState.PAUSED) else "now()"
        change = f"UPDATE jobs SET state = :state, finished_at = {finished_at}, think_end = '</think>' WHERE id = :job"
        connection.execute(text("ALTER TABLE jobs DISABLE TRIGGER log_changes"))
        connection.execute(text(change), {"state": state.value, "job": job})
        connection.execute(text("ALTER TABLE jobs ENABLE TRIGGER log_changes"))
        fill_job(connection, job, ended[0], engine)
    connection.execute(text("INSERT INTO events (job_id, from_state, to_state) SELECT id, 'running', state FROM jobs"))
    counted = "SELECT id, now(), count_samples.*, count_cost.* FROM jobs, count_samples(id), count_cost(id)"
    totals = [column.name for column in METADATA.tables["job_totals"].columns if column.name != "stale_at"]
    names = ", ".join(name for name in totals if name not in ("job_id", "counted_at"))
    counted = counted.replace("count_samples.*, count_cost.*", names)
    connection.execute(text(f"INSERT INTO job_totals ({', '.join(totals)}) {counted} WHERE finished_at IS NOT NULL"))
    connection.execute(text("SELECT create_rollups(id, 2) FROM jobs"))
    connection.execute(text("SELECT refresh_rollup(job_id, first_problem) FROM rollups"))
    length = "INSERT INTO length_counts (job_id, author, finish_reason, verdict, tokens, n, score)"
    connection.execute(text(f"{length} SELECT id, 'all', 'eos', 'right', 3, 1, 1 FROM jobs"))
    judges = "UPDATE jobs SET judged_job_id = (SELECT min(id) FROM jobs), verdicts_at = now() WHERE state = 'completed'"
    assert connection.execute(text(judges)).rowcount == 1
    connection.execute(text("INSERT INTO experiments (name) VALUES ('e')"))
    connection.execute(text("INSERT INTO experiment_jobs SELECT 'e', id::text, id, min(id) OVER () FROM jobs"))
    judged = "INSERT INTO judged_samples SELECT j.id, s.id, s.epoch, s.problem_id FROM jobs j JOIN samples s"
    connection.execute(text(f"{judged} ON s.job_id = j.judged_job_id AND s.state = 'graded'"))
    fill_gateway(connection)


def fill_gateway(connection: Connection) -> None:
    """A key, a saved name, a file, a batch of the first job, and a chat request of the second."""
    for statement in (
        "INSERT INTO api_keys (name, sha256, role) VALUES ('ann', 'abc', 'submit')",
        "INSERT INTO model_aliases (name, options) VALUES ('pair', '{\"small\": \"S\"}')",
        "INSERT INTO files (id, owner_id, purpose, filename, num_bytes, sha256, request_sha256) "
        "SELECT 'file-1', id, 'batch', 'r.jsonl', 2, 'abc', 'def' FROM api_keys",
        "INSERT INTO file_parts VALUES ('file-1', 0, '{}')",
        "INSERT INTO batches (id, owner_id, input_file_id, endpoint, completion_window, options, request_sha256) "
        "SELECT 'batch_1', owner_id, id, '/v1/chat/completions', '24h', '{}', 'abc' FROM files",
        "INSERT INTO batch_jobs SELECT 'batch_1', min(id), 'pair' FROM jobs",
        "INSERT INTO chat_requests (id, external_id, owner_id, request_sha256, job_id, model) "
        "SELECT 'chatcmpl-1', 'chatcmpl-1', k.id, 'abc', (SELECT max(id) FROM jobs), 'pair' FROM api_keys k",
    ):
        connection.exec_driver_sql(statement)


def add_ended_worker(connection: Connection, reason: WorkerEnd, engine: int) -> int:
    worker = add_worker(connection, "small", model="S", alive=False, engine_id=engine, tokens_committed=7)
    end_worker(connection, worker, Counters(tokens_generated=9, tokens_committed=7, tokens_dropped=2), reason=reason)
    return worker


def fill_job(connection: Connection, job: int, worker: int, engine: int) -> None:
    """A sample in each state, and a failed one of each class, with segments, steps, grades and events."""
    cases: list[tuple[SampleState, ErrorClass | None]]
    cases = [(state, None) for state in SampleState if state is not SampleState.FAILED]
    cases += [(SampleState.FAILED, error_class) for error_class in ErrorClass]
    problem = text(
        "SELECT p.id FROM problems p JOIN jobs j USING (problem_set_id) WHERE j.id = :job AND p.position = 0"
    )
    problem_id = connection.execute(problem, {"job": job}).scalar_one()
    for index, (state, error_class) in enumerate(cases):
        is_complete = state in (SampleState.FINISHED, SampleState.GRADED)
        row = {
            "job_id": job, "problem_id": problem_id, "sample_index": index, "state": state, "epoch": 3,
            "holder_id": worker if state in WRITING_STATE.values() else None, "small_worker_id": worker,
            "runnable_at": NOW, "published_at": NOW, "num_rescues": 1, "num_attempts": 2, "not_before": NOW,
            "max_tokens": 99, "policy_state": {"count": 1}, "next_request": {"kind": "generate", "max_tokens": 20},
            "next_role": "large" if state in (SampleState.AWAITING_LARGE, SampleState.ASSISTING) else "small",
            "num_segments": 1, "tokens_small": 3, "discarded_small": 2, "finish_reason": "eos" if is_complete else None,
            "score": 1.0 if state is SampleState.GRADED else None, "error_class": error_class,
            "error": "it broke" if error_class else None, "admitted_at": NOW,
            "ended_at": NOW if state in FINAL_STATES else None,
        }  # fmt: skip
        sample = int(connection.execute(insert(SampleRow).values(**row).returning(SampleRow.id)).scalar_one())
        add_segment(connection, sample, 0, "small", "abc", discarded="de", worker_id=worker, engine_id=engine)
        add_aside(connection, sample, 0, "large", "7", after_segment=1, worker_id=worker, engine_id=engine)
        add_signal(connection, sample, "segment", 0, "logprob", [-0.5, -0.25, -1.0, None, -0.125])
        add_step(connection, sample, 0, "small", "abc")
        part = "INSERT INTO segment_parts (sample_id, segment_index, start_token, token_ids, epoch, worker_id)"
        connection.execute(
            text(f"{part} VALUES (:sample, 1, 0, '{{5}}', 3, :worker)"), {"sample": sample, "worker": worker}
        )
        grade = "INSERT INTO grades (sample_id, grader, grader_version, status) VALUES (:sample, 'math', '1', 'done')"
        connection.execute(text(grade), {"sample": sample})
        event = "INSERT INTO events (job_id, sample_id, from_state, to_state, epoch) VALUES (:j, :s, 'ready', :to, 3)"
        connection.execute(text(event), {"j": job, "s": sample, "to": state.value})


def rows_of(db_engine: Engine) -> Rows:
    """All rows of all tables, as JSON."""
    with transaction(db_engine) as connection:
        tables = """
            SELECT tablename FROM pg_tables WHERE schemaname = 'public'
              AND tablename NOT IN ('alembic_version', 'schema_objects')  -- of the schema, no data
        """
        return {
            table: sorted(connection.execute(text(f"SELECT to_jsonb(t) FROM {table} t")).scalars(), key=json.dumps)
            for table in connection.execute(text(tables)).scalars()
        }


def surviving(rows: Rows, other: Rows) -> Rows:
    """The columns that both have."""
    kept: Rows = {}
    for table in rows.keys() & other.keys():
        assert rows[table]
        columns = rows[table][0].keys() & (other[table][0] if other[table] else {}).keys()
        kept[table] = [{column: row[column] for column in sorted(columns)} for row in rows[table]]
        kept[table].sort(key=json.dumps)
    return kept


_SCHEMA = """
    SELECT 'function ' || p.oid::regprocedure AS name, pg_get_functiondef(p.oid) AS definition FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace
    UNION ALL SELECT 'type ' || c.relname,
                     string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'c' GROUP BY c.relname
    UNION ALL SELECT 'view ' || viewname, definition FROM pg_views WHERE schemaname = 'public'
    UNION ALL SELECT 'trigger ' || t.tgname || ' of ' || t.tgrelid::regclass, pg_get_triggerdef(t.oid)
    FROM pg_trigger t WHERE NOT t.tgisinternal
    UNION ALL SELECT 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT 'constraint ' || c.conname || ' of ' || c.conrelid::regclass, pg_get_constraintdef(c.oid)
    FROM pg_constraint c WHERE c.connamespace = 'public'::regnamespace
    UNION ALL SELECT 'comment of ' || a.attrelid::regclass || '.' || a.attname, col_description(a.attrelid, a.attnum)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
"""


def schema_of(db_engine: Engine) -> dict[str, str]:
    with transaction(db_engine) as connection:
        return {row.name: row.definition for row in connection.execute(text(_SCHEMA))}


@pytest.mark.parametrize("revision", [*REVISIONS[1:], "base"])
def test_filled_database_goes_down_and_up_again_with_its_data(db_engine: Engine, revision: str) -> None:
    with transaction(db_engine) as connection:
        fill(connection)
    before, schema = rows_of(db_engine), schema_of(db_engine)
    assert all(before.values()), "every table has rows"

    migrate.downgrade(db_engine, revision)
    below = rows_of(db_engine)
    assert surviving(before, below) == surviving(below, before)

    assert migrate.upgrade(db_engine) == newest_revision()
    after = rows_of(db_engine)
    assert surviving(below, after) == surviving(after, below)
    assert schema_of(db_engine) == schema
    with transaction(db_engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


# -- views, functions and triggers -----------------------------------------------------------------------------------

_COMMENTS = """
    SELECT p.proname || '()' AS name, obj_description(p.oid, 'pg_proc') AS comment FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace
    UNION ALL SELECT c.relname, coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type'))
    FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'c')
      AND c.relname <> 'alembic_version'
    UNION ALL SELECT c.relname || '.' || a.attname, col_description(c.oid, a.attnum)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v') AND c.relname <> 'alembic_version'
"""


def test_every_table_view_column_type_and_function_has_a_comment(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        comments = {row.name: row.comment for row in connection.execute(text(_COMMENTS))}
    assert len(comments) > 400
    assert [name for name, comment in comments.items() if not comment] == []


def test_each_sql_file_says_who_reads_it_and_holds_its_own_view() -> None:
    for path in schema_objects.sql_files():
        sql = path.read_text(encoding="utf-8")
        assert re.match(r"(--.*\n)*-- Read by: \w", sql), path
        if path.parent.name == "views":
            assert schema_objects.created_objects(sql) == [f"VIEW {path.stem}"]
    assert {path.name for path in schema_objects.sql_files()} == {
        path.name for path in schema_objects.FOLDER.rglob("*.sql")
    }


def test_listed_objects_are_all_that_the_database_has(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        (names,) = connection.execute(text("SELECT names FROM schema_objects")).one()
    found = [name for name in schema_of(db_engine) if name.startswith(("function", "view", "type", "trigger"))]
    assert sorted(names) == sorted(
        re.sub(r"^(\w+)", lambda kind: kind[1].upper(), name.split("(")[0]).replace(" of ", " ON ") for name in found
    )


def test_totals_of_a_job_are_the_columns_that_keep_them(db_engine: Engine) -> None:
    """Names and types, of which count_samples and count_cost give the values."""
    attributes = text("""
        SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type FROM pg_attribute a
        WHERE a.attrelid = ANY(CAST(:relations AS regclass[])) AND a.attnum > 0 AND NOT a.attisdropped
    """)
    with transaction(db_engine) as connection:
        types = connection.execute(attributes, {"relations": ["sample_totals", "cost_totals"]}).all()
        columns = connection.execute(attributes, {"relations": ["job_totals"]}).all()
    beside = {"job_id", "counted_at", "stale_at"}
    assert sorted(types) == sorted(column for column in columns if column.name not in beside)


def change_sql(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, before: str, after: str) -> None:
    """Let the files be another version's, in which one of them says something else."""
    shutil.copytree(schema_objects.FOLDER, folder)
    path = folder / name
    sql = path.read_text(encoding="utf-8")
    assert before in sql
    path.write_text(sql.replace(before, after), encoding="utf-8")
    monkeypatch.setattr(schema_objects, "FOLDER", folder)


@pytest.fixture
def unread_files() -> Iterator[None]:
    """What was read of the files is forgotten, before and after."""
    for forget in (False, True):
        schema_objects.sql_files.cache_clear()
        schema_objects.wanted_sha256.cache_clear()
        if not forget:
            yield


@pytest.mark.usefixtures("unread_files")
def test_changed_sql_file_is_applied_by_the_next_migration(
    db_engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = schema_of(db_engine)
    with transaction(db_engine) as connection:
        fill(connection)
    rows = rows_of(db_engine)
    change_sql(monkeypatch, tmp_path / "sql", "views/errors.sql", "max(s.num_attempts + s.num_rescues)", "7")
    with transaction(db_engine) as connection:
        assert schema_fault(connection) == (
            f"the database is at revision {newest_revision()}, with views and functions of another version"
        )
    with pytest.raises(ConfigurationError, match="views and functions of another version: run specthink migrate"):
        require_current(db_engine)

    assert migrate.upgrade(db_engine) == newest_revision()
    require_current(db_engine)
    after = schema_of(db_engine)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"view errors"}
    assert rows_of(db_engine) == rows


@pytest.mark.usefixtures("unread_files")
def test_refused_sql_file_leaves_everything_as_it_was(
    db_engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, wanted = schema_of(db_engine), wanted_sha256()
    schema_objects.sql_files.cache_clear()
    schema_objects.wanted_sha256.cache_clear()
    change_sql(monkeypatch, tmp_path / "sql", "views/truncation.sql", "c.num_repetition,", "c.no_such_column,")
    with pytest.raises(DBAPIError, match="no_such_column") as refused:
        migrate.upgrade(db_engine)
    assert refused.value.__notes__ == [f"in {tmp_path}/sql/views/truncation.sql"]
    assert schema_of(db_engine) == before
    with transaction(db_engine) as connection:
        assert applied_sha256(connection) == wanted


def test_view_of_somebodys_own_on_top_of_ours_is_named_and_kept(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        connection.execute(text("CREATE VIEW mine AS SELECT job_id, accuracy FROM job_summary"))
    make_due(db_engine)
    with pytest.raises(MigrationRefused, match="view mine depends on view job_summary; drop what is yours, migrate"):
        migrate.upgrade(db_engine)
    assert is_due(db_engine)
    with transaction(db_engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM mine")).scalar_one() == 0
        connection.execute(text("DROP VIEW mine"))
    migrate.upgrade(db_engine)
    require_current(db_engine)


def test_grants_on_views_outlive_a_migration(connections: Connections, db_engine: Engine) -> None:
    role = make_url(connections.database_url.get_secret_value()).database
    acl = text("""
        SELECT c.relname, g.grantee, g.privilege_type FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) g
        WHERE c.relkind = 'v' AND c.relnamespace = 'public'::regnamespace ORDER BY 1, 2, 3
    """)
    with transaction(db_engine) as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT SELECT ON job_summary TO {role}; GRANT SELECT ON errors TO PUBLIC"))
        before = connection.execute(acl).all()
    try:
        make_due(db_engine)
        migrate.upgrade(db_engine)
        with transaction(db_engine) as connection:
            assert connection.execute(acl).all() == before
    finally:
        with transaction(db_engine) as connection:
            connection.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))


def test_released_migrations_are_never_changed() -> None:
    assert REVISIONS[::-1][: len(RELEASED)] == list(RELEASED), (
        "they come first, in order; add new ones at their release"
    )
    for script in SCRIPTS:
        if script.revision in RELEASED:
            found = hashlib.sha256(Path(script.path).read_bytes()).hexdigest()
            assert found == RELEASED[script.revision], f"{script.path}: write a new migration instead of changing it"


# -- beside others ---------------------------------------------------------------------------------------------------


def make_due(db_engine: Engine) -> None:
    """Let the database have the views and functions of another version."""
    with transaction(db_engine) as connection:
        connection.execute(text("UPDATE schema_objects SET sha256 = 'of another version'"))


def is_due(db_engine: Engine) -> bool:
    with transaction(db_engine) as connection:
        return applied_sha256(connection) == "of another version"


def soon(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def somebody(db_engine: Engine, statement: str) -> Iterator[None]:
    """Another session in a transaction in which it has done something."""
    other = open_database_as(db_engine, "a notebook")
    try:
        with transaction(other) as connection:
            connection.execute(text(statement))
            yield
    finally:
        other.dispose()


def open_database_as(db_engine: Engine, name: str) -> Engine:
    return open_database(SecretStr(db_engine.url.render_as_string(hide_password=False)), application_name=name)


def registration(ttl: dt.timedelta = dt.timedelta(minutes=5)) -> Registration:
    return Registration(
        kind=WorkerKind.SMALL, model="S", engine_id=None, host="gpu-7", pid=4711, queue="q", max_in_flight=8, ttl=ttl
    )


def test_migration_that_is_not_due_waits_for_nobody(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        register_worker(connection, registration())
    with somebody(db_engine, f"LOCK TABLE jobs, samples, workers; {LOCK_SCHEMA}"):
        assert migrate.upgrade(db_engine) == newest_revision()


def test_migration_is_refused_while_workers_run_and_says_which(db_engine: Engine) -> None:
    make_due(db_engine)
    with transaction(db_engine) as connection:
        worker = register_worker(connection, registration())
    for attempt in (lambda: migrate.upgrade(db_engine), lambda: migrate.downgrade(db_engine, "base")):
        with pytest.raises(MigrationRefused, match=f"worker {worker}, small S, process 4711 on gpu-7") as refused:
            attempt()
        assert "stop them" in str(refused.value)
        assert is_due(db_engine)
    with transaction(db_engine) as connection:
        end_worker(connection, worker, Counters())
    assert migrate.upgrade(db_engine) == newest_revision()


def test_worker_that_is_silent_for_longer_than_its_lease_loses_it_to_a_migration(db_engine: Engine) -> None:
    make_due(db_engine)
    with transaction(db_engine) as connection:
        worker = add_worker(connection, "small", model="S", alive=False)
    migrate.upgrade(db_engine)
    with transaction(db_engine) as connection:
        row = connection.execute(
            text("SELECT end_reason, settled_at FROM workers WHERE id = :id"), {"id": worker}
        ).one()
    assert row == ("lapsed", None), "it must register again, and upkeep settles what it held"


def test_leases_that_ran_out_while_the_database_was_down_count_as_alive(db_engine: Engine) -> None:
    make_due(db_engine)
    with transaction(db_engine) as connection:
        worker = register_worker(connection, registration(dt.timedelta(days=7)))
        outage = "UPDATE workers SET renewed_at = renewed_at - :by, expires_at = expires_at - :by WHERE id = :id"
        connection.execute(text(outage), {"by": dt.timedelta(days=7, seconds=1), "id": worker})
    with pytest.raises(MigrationRefused, match=f"worker {worker},"):
        migrate.upgrade(db_engine)


def test_first_migrations_at_once_wait_for_each_other(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(migrate.upgrade, db_engine) for _ in range(3)]
        assert [each.result(120) for each in done] == [newest_revision()] * 3


def test_second_migration_waits_for_the_first(db_engine: Engine) -> None:
    make_due(db_engine)
    told = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with somebody(db_engine, LOCK_SCHEMA):
            second = pool.submit(migrate.upgrade, db_engine, on_wait=lambda what: told.set())
            assert told.wait(60)
            assert not second.done()
            assert is_due(db_engine)
        assert second.result(60) == newest_revision()


def test_migration_gives_up_on_a_table_in_use_and_says_who_uses_it(db_engine: Engine) -> None:
    make_due(db_engine)
    with (
        somebody(db_engine, "SELECT count(*) FROM samples"),
        pytest.raises(MigrationRefused, match=r"a notebook, backend [0-9]+, idle in transaction"),
    ):
        migrate.upgrade(db_engine, lock_timeout=dt.timedelta(seconds=0.3))
    assert is_due(db_engine)
    assert migrate.upgrade(db_engine) == newest_revision()


def test_worker_that_registers_during_a_migration_finds_the_schema_changed(
    db_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The migration is a newer version's: what it leaves is not what this one needs."""
    monkeypatch.setattr(schema_objects, "wanted_sha256", lambda: "of a newer version")
    make_due(db_engine)
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = CAST(:table AS regclass)")

    def is_waited_for(table: str) -> bool:
        with transaction(db_engine) as connection:
            return bool(connection.execute(waiting, {"table": table}).scalar_one())

    def register() -> None:
        LeaseKeeper(db_engine, registration(), LeaseSettings())

    with ThreadPoolExecutor(2) as pool:
        with somebody(db_engine, "SELECT count(*) FROM samples"):
            migration = pool.submit(migrate.upgrade, db_engine, lock_timeout=dt.timedelta(minutes=2))
            soon(lambda: is_waited_for("samples"))
            worker = pool.submit(register)
            soon(lambda: is_waited_for("workers"))
        migration.result(60)
        with pytest.raises(ConfigurationError, match="specthink migrate"):
            worker.result(60)
    with transaction(db_engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM workers")).scalar_one() == 0


def test_database_of_a_newer_version_is_left_alone(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="revision 9999, which this version does not know"):
        migrate.upgrade(db_engine)


def test_command_migrate_is_refused_with_the_reason_and_goes_on_once_workers_are_gone(
    connections: Connections, db_engine: Engine
) -> None:
    environment = os.environ | {
        "SPECTHINK_DATABASE_URL": connections.database_url.get_secret_value(),
        "SPECTHINK_REDIS_URL": connections.redis_url.get_secret_value(),
    }

    def command() -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "pipeline.cli", "migrate", "--lock-timeout", "5"]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)

    make_due(db_engine)
    with transaction(db_engine) as connection:
        worker = register_worker(connection, registration())
    refused = command()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"worker {worker}, small S" in refused.stderr
    assert "Traceback" not in refused.stderr
    with transaction(db_engine) as connection:
        end_worker(connection, worker, Counters())
    done = command()
    assert (done.returncode, done.stdout) == (0, f"database at revision {newest_revision()}\n")

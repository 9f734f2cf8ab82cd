"""Hostile input through the whole of it: names stored word for word, questions that only read, formulas that hang."""

from __future__ import annotations

import datetime as dt
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, make_url, text

from pipeline import Client, Problem, ProblemSet
from pipeline.db.grants import grant_roles
from pipeline.db.session import open_database, transaction
from pipeline.embedded import Connections, stop
from pipeline.errors import ConfigurationError, PipelineError, ProblemSetError, QueryRefused
from pipeline.jobs.config import SamplingSpec
from pipeline.local import start_local
from pipeline.logins import DatabaseRole
from pipeline.policies import parse_policy
from pipeline.problems import content_sha256
from pipeline.results.exports import ExportFormat, write_results
from pipeline.settings import Settings
from tests.conftest import with_database
from tests.fuzzing import examples
from tests.integration.rows import add_engine, add_job, add_problem_set, add_samples, add_segment, add_worker, every

pytestmark = pytest.mark.integration


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    """Asks as the reader, as the command does."""
    with Client(connections.submitter_url, connections.reader_url) as client:
        yield client


# SQL in every name

SPLINTERS = [
    "'", "''", '"', ";", "--", "/*", "*/", "\\", "\\'", "%", "%s", "%(x)s", ":x", ":name", "$1", "$$", "{}",
    "{0}", "\n", "\t", "\r", "\x1b[31m", "\u202e", "é", "😀", "'; DROP TABLE samples; --", "' OR '1'='1",
    "Robert'); DELETE FROM jobs;--", "NULL", "<script>alert(1)</script>", "=cmd|' /C calc'!A0",
    "../../etc/passwd", "&amp;", "{{ 7*7 }}", "$x^2$", "\ufeff", "\ue000",
]  # fmt: skip
names = (
    st.lists(
        st.one_of(
            st.sampled_from(SPLINTERS), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
        ),
        min_size=1,
        max_size=4,
    )
    .map("".join)
    .filter(bool)
)


def some_problem(draw: Any) -> Problem:
    choices = draw(st.lists(names, min_size=1, max_size=3))
    return Problem(
        external_id=draw(names), prompt=draw(names), answer=draw(names), subject=draw(names), level=draw(names),
        metadata={draw(names): draw(names), "choices": choices},
    )  # fmt: skip


@examples(15)
@given(st.data())
def test_every_name_is_stored_and_shown_word_for_word(client: Client, data: st.DataObject) -> None:
    problem = some_problem(data.draw)
    job_name, small, large, set_name = (data.draw(names, label=what) for what in ("job", "small", "large", "set"))
    small, large = f"m{small}".replace("/", ""), f"m{large}".replace("/", "")
    problem_set = ProblemSet(name=set_name, content_sha256=content_sha256([problem]), problems=(problem,))
    before = {job.id for job in client.jobs(10_000)}
    job = client.submit(problem_set, small=small, large=large, name=job_name, grader="none")
    assert {found.id for found in client.jobs(10_000)} == before | {job.id}
    assert (job.name, job.small_model, job.large_model) == (job_name, small, large)
    (result,) = client.results(job)
    assert (result.problem, result.prompt, result.subject, result.level) == (
        problem.external_id, problem.prompt, problem.subject, problem.level,
    )  # fmt: skip
    (row,) = client.sql(f"""
        SELECT p.shown, h.columns, r.answer, j.config->'small'->>'name' FROM jobs j
        JOIN problems p USING (problem_set_id) JOIN reference_answers r ON r.problem_id = p.id
        LEFT JOIN hidden_columns h ON h.problem_id = p.id WHERE j.id = {job.id}
    """).rows
    shown = {"choices": problem.metadata["choices"]}
    hidden = {name: value for name, value in problem.metadata.items() if name not in shown}
    assert row == (shown, hidden or None, problem.answer, small)
    for format in ExportFormat:
        assert write_results(client.results(job), io.BytesIO(), format) == 1
    page = client.page(job)
    assert "<script>" not in page
    assert not {"\x1b", "\u202e"} & set(page)


@examples(30)
@given(names)
def test_names_that_must_be_known_are_refused_whatever_is_in_them(client: Client, name: str) -> None:
    for option in ("policy", "grader", "prompt_template", "recipe"):
        options: dict[str, Any] = {option: name}
        with pytest.raises(ConfigurationError):
            client.submit(one_problem(), small="S", large="L", **options)
    with pytest.raises(ConfigurationError):
        parse_policy(f"random,rate={name}x")


def one_problem(**changes: Any) -> ProblemSet:
    problem = Problem(**({"external_id": "1", "prompt": "1?"} | changes))
    return ProblemSet(name="one", content_sha256=content_sha256([problem]), problems=(problem,))


@pytest.mark.parametrize("option", ["name", "small", "large"])
@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_names_that_cannot_be_stored_are_refused_by_name(client: Client, option: str, bad: str) -> None:
    options: dict[str, Any] = {"small": "S", "large": "L"} | {option: bad}
    with pytest.raises(ConfigurationError, match=option):
        client.submit(one_problem(), **options)


@pytest.mark.parametrize(
    "changes",
    [
        {"external_id": "a\0b"}, {"prompt": "\ud800"}, {"external_id": "é" * 501}, {"metadata": {"k": {"deep": "\0"}}},
        {"metadata": {"n": float("nan")}}, {"metadata": {"o": object()}}, {"answer": "\0"}, {"metadata": {"\0": 1}},
    ],
)  # fmt: skip
def test_set_made_by_hand_that_cannot_be_stored_is_refused(client: Client, changes: dict[str, Any]) -> None:
    bad = Problem(**({"external_id": "1", "prompt": "1?"} | changes))
    problem_set = ProblemSet(name="one", content_sha256="", problems=(bad,))
    with pytest.raises(ProblemSetError, match="problem '"):
        client.submit(problem_set, small="S", large="L")


def test_longest_id_fits_into_the_index(client: Client) -> None:
    incompressible = "".join(chr(0x10000 + int.from_bytes(os.urandom(2))) for _ in range(500))
    job = client.submit(one_problem(external_id=incompressible), small="S", large="L", grader="none")
    assert next(client.results(job)).problem == incompressible


def test_file_of_an_odd_name_is_submitted_under_a_storable_one(client: Client, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9'; DROP TABLE jobs;--.jsonl"))
    path.write_bytes(b'{"problem": "1?"}')
    assert client.submit(path, small="S", large="L", grader="none").problem_set == "caf\\udce9'; DROP TABLE jobs;--"


# specthink sql

TABLES = ("jobs", "samples", "problems", "reference_answers", "events", "alembic_version")


def contents(db_engine: Engine) -> dict[str, int]:
    with transaction(db_engine) as connection:
        return {table: every(connection, f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in TABLES}


@pytest.fixture(scope="module")
def asked(servers: Connections) -> Iterator[tuple[Client, Engine]]:
    """A reader of a database that nobody else uses, with a job in it; and the owner's way in."""
    name = "asked_by_hostile_people"
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE specthink_template"))
    db_engine = open_database(with_database(servers.database_url, name))
    with transaction(db_engine) as connection:
        grant_roles(connection, {DatabaseRole.READER: "specthink_reader"})
        add_samples(connection, add_job(connection, add_problem_set(connection)), [{"state": "ready"}])
    assert servers.reader_url is not None
    reader_url = with_database(servers.reader_url, name)
    with Client(with_database(servers.database_url, name), reader_url) as client:
        yield client, db_engine
    db_engine.dispose()
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    owner.dispose()


WRITES = [
    "INSERT INTO problem_sets (name, content_sha256, num_problems, num_references, has_choices) "
    "VALUES ('x', 'x', 0, 0, false)",
    "UPDATE samples SET state = 'graded'",
    "DELETE FROM jobs",
    "TRUNCATE jobs CASCADE",
    "DROP TABLE jobs",
    "MERGE INTO jobs USING jobs j ON false WHEN NOT MATCHED THEN INSERT DEFAULT VALUES",
    "WITH gone AS (DELETE FROM jobs RETURNING id) SELECT * FROM gone",
    "EXPLAIN ANALYZE DELETE FROM jobs",
    "SELECT query_to_xml('DELETE FROM jobs', true, true, '')",
    "SELECT * FROM jobs FOR UPDATE",
    "SELECT * FROM jobs FOR KEY SHARE",
    "LOCK TABLE jobs IN EXCLUSIVE MODE",
    "SELECT nextval('jobs_id_seq')",
    "CREATE TABLE mine (i int)",
    "CREATE TEMP TABLE mine (i int)",
    "SELECT 1 AS i INTO mine",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE EXTENSION dblink",
    "SELECT dblink('dbname=specthink', 'DELETE FROM jobs')",
    "COPY jobs TO STDOUT",
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "COPY (SELECT 1) TO '/tmp/specthink-was-here'",
    "COPY problem_sets FROM PROGRAM 'id'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_binary_file('postgresql.conf')",
    "SELECT pg_ls_dir('/')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT lo_export(1, '/tmp/specthink-was-here')",
    "SELECT rolpassword FROM pg_authid",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "ALTER ROLE CURRENT_USER RESET ALL",
    "ALTER SYSTEM SET fsync = off",
    "SELECT pg_reload_conf()",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename <> current_user",
    "SET ROLE specthink",
    "SET SESSION AUTHORIZATION specthink",
    "SELECT set_config('role', 'specthink', false)",
    "SET default_transaction_read_only = off",
    "SET default_transaction_read_only = off; DELETE FROM jobs",
    "COMMIT; DELETE FROM jobs",
    "ROLLBACK; BEGIN READ WRITE; DELETE FROM jobs; COMMIT",
    "SELECT 1; SELECT 2",
    "BEGIN READ WRITE",
    "DO $$ BEGIN PERFORM set_config('transaction_read_only', 'off', true); DELETE FROM jobs; END $$",
    "DO $$ BEGIN COMMIT; SET TRANSACTION READ WRITE; DELETE FROM jobs; END $$",
    "PREPARE p AS DELETE FROM jobs",
    "VACUUM",
    "",
    "-- nothing",
    "SELECT 'a\0b'",
    "SELECT '\ud800'",
]


def test_reader_changes_nothing_whatever_it_asks(asked: tuple[Client, Engine]) -> None:
    client, db_engine = asked
    before = contents(db_engine)
    for statement in WRITES:
        with pytest.raises(QueryRefused):
            pytest.fail(f"{statement!r} gave {client.sql(statement)}")
    assert contents(db_engine) == before
    assert not Path("/tmp/specthink-was-here").exists()
    assert client.sql("SELECT current_setting('default_transaction_read_only'), current_user").rows == [
        ("on", "specthink_reader")
    ]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT pg_sleep(60)",
        "SELECT count(*) FROM jobs, generate_series(1, 100000) AS a, generate_series(1, 100000) AS b",
        "SELECT set_config('statement_timeout', '0', false), pg_sleep(60)",
        "DO $$ BEGIN PERFORM set_config('statement_timeout', '0', true); PERFORM pg_sleep(60); END $$",
        "WITH RECURSIVE forever AS (SELECT 1 UNION ALL SELECT 1 FROM forever) SELECT count(*) FROM forever",
    ],
)
def test_slow_question_ends_at_its_limit(asked: tuple[Client, Engine], query: str) -> None:
    started = time.monotonic()
    with pytest.raises(PipelineError, match=r"ran longer than 0\.3 s; narrow it, or give --timeout"):
        asked[0].sql(query, timeout_s=0.3)
    assert time.monotonic() - started < 20


def test_more_rows_than_memory_holds_are_cut(asked: tuple[Client, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = asked
    monkeypatch.setattr("pipeline.db.readonly_query.MAX_RESULT_BYTES", 2**20)
    found = client.sql("SELECT generate_series(1, 100000000) AS i", max_rows=1000)
    assert (found.columns, len(found.rows), found.rows[-1], found.is_cut) == (("i",), 1000, (1000,), True)
    wide = client.sql("SELECT repeat('x', 100000) FROM generate_series(1, 1000)")
    assert (len(wide.rows), wide.is_cut) == (11, True)
    exact = client.sql("SELECT i FROM generate_series(1, 1000) AS i", max_rows=1000)
    assert (len(exact.rows), exact.is_cut) == (1000, False)
    nothing = client.sql("SELECT id, name FROM jobs WHERE false")
    assert (nothing.columns, nothing.rows, nothing.is_cut) == (("id", "name"), [], False)


@pytest.mark.parametrize(
    "value",
    ["('1' || repeat('0', 5000))::jsonb", "(repeat('[', 3000) || repeat(']', 3000))::jsonb", "'infinity'::date"],
)
def test_value_that_python_cannot_read_is_told(asked: tuple[Client, Engine], value: str) -> None:
    with pytest.raises(QueryRefused, match=r"cast it to text|too large"):
        asked[0].sql(f"SELECT {value}")


def reader_of(connections: Connections) -> str:
    """NAME:PASSWORD."""
    assert connections.reader_url is not None
    url = make_url(connections.reader_url.get_secret_value())
    return f"{url.username}:{url.password}"


def test_login_that_may_run_programs_asks_nothing(connections: Connections, tmp_path: Path) -> None:
    written = tmp_path / "written"
    with Client(connections.database_url) as client:
        for query in (f"COPY (SELECT 1) TO PROGRAM 'touch {written}'", "SELECT 1"):
            with pytest.raises(ConfigurationError, match=r"'specthink' may run programs .* SPECTHINK_LOGINS__READER"):
                client.sql(query)
    assert not written.exists()


def test_reader_fills_no_disk(client: Client) -> None:
    assert client.sql("SELECT current_setting('temp_file_limit')").rows == [("1GB",)]


def test_command_prints_odd_values_and_says_what_it_left_out(connections: Connections) -> None:
    environment = {
        **os.environ,
        "SPECTHINK_DATABASE_URL": connections.database_url.get_secret_value(),
        "SPECTHINK_REDIS_URL": connections.redis_url.get_secret_value(),
        "SPECTHINK_LOGINS__READER": reader_of(connections),
    }
    odd = """'{"n": 123456789012345678901234567890}'::jsonb AS n, '12:00+01'::timetz AS t, E'\\x1b[31m' AS e, i"""
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "sql",
        f"SELECT {odd} FROM generate_series(1, 9) AS i",
        "--limit",
        "2",
    ]
    for option in ([], ["--json"]):
        done = subprocess.run([*command, *option], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "123456789012345678901234567890" in done.stdout
        assert "\x1b" not in done.stdout
        assert "only the first 2 rows" in done.stderr


# Formulas that hang

LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


def test_formula_that_hangs_costs_its_own_grade_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grader and upkeep as they run everywhere, but with a hard limit that comes before math-verify gives up."""
    monkeypatch.setenv("SPECTHINK_GRADING__TIME_LIMIT_S", "2")
    monkeypatch.setenv("SPECTHINK_UPKEEP__REPUBLISH_AFTER_S", "1")
    stack = start_local(Settings(state_dir=tmp_path / "state"), flower=False, die_with_parent=True)
    try:
        with Client(stack.state.connections.database_url, stack.state.connections.reader_url) as client:
            db_engine = open_database(stack.state.connections.database_url)
            with transaction(db_engine) as connection:
                worker, engine = add_worker(connection, "small", model="S"), add_engine(connection, "S")
                job = add_job(connection, add_problem_set(connection))
                answers = [r"\boxed{0}", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{2}"]
                samples = add_samples(
                    connection,
                    job,
                    [
                        {"problem": index, "state": "finished", "published_at": LONG_AGO}
                        for index in range(len(answers))
                    ],
                )
                for sample, answer in zip(samples, answers, strict=True):
                    add_segment(connection, sample, 0, "small", answer, worker_id=worker, engine_id=engine)
            db_engine.dispose()
            client.wait(job, timeout_s=150)
            graded = client.sql("SELECT status, score FROM grades ORDER BY sample_id").rows
            assert graded == [("done", 1.0), ("timeout", None), ("done", 1.0)]
            assert {row.state.value for row in client.results(job)} == {"graded"}
            assert "grade" in {worker.kind for worker in client.workers()}
    finally:
        stop(tmp_path / "state")


def test_limits_of_sampling_are_numbers() -> None:
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="temperature"):
            SamplingSpec(temperature=bad)

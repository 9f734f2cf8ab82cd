"""What each login of the database may do: refused by Postgres itself, whatever a worker's code asks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
import pytest
from celery import Celery
from pydantic import SecretStr
from sqlalchemy import Engine, make_url, text

from pipeline.chat.steps import Step
from pipeline.chat.translation import ThinkPhase
from pipeline.db import migrate
from pipeline.db.grants import GRANTS, create_logins, grant_roles
from pipeline.db.hops import defer_samples, fix_think_phase, get_job_config, held_epochs, release_samples
from pipeline.db.reports import select_progress
from pipeline.db.revision import require_current
from pipeline.db.rollups import Rollup, postpone_rollup
from pipeline.db.session import open_database, session, transaction
from pipeline.db.tables import METADATA
from pipeline.db.upkeep import mark_followed, try_to_lead
from pipeline.db.workforce import WorkerCounters, amend_books, close_books, end_worker, renew_worker
from pipeline.embedded import EMBEDDED_LOGINS, Connections
from pipeline.errors import ConfigurationError
from pipeline.logins import DatabaseRole, Login
from pipeline.policies.reading.cues import SentenceClass
from pipeline.samples import Author, SampleState
from pipeline.settings import Settings
from tests.conftest import TEMPLATE, with_database
from tests.integration.rows import add_job, add_problem_set, add_samples
from tests.integration.test_protocol import TTL, claim, commit, make_job, make_worker, written
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.grading.grader import grade_samples
from workers.upkeep.rollups import RollupRefresher
from workers.upkeep.rounds import Upkeep

Ask = Callable[[DatabaseRole, str], list[tuple[object, ...]]]
WORKERS = (DatabaseRole.WRITER, DatabaseRole.GRADER, DatabaseRole.UPKEEP)
SECRET = "ZQ-7f3a-the-answer"


def prepare(servers: Connections, url: SecretStr) -> Ask:
    """A database with one job whose reference answers are unmistakable; and how to run a statement there as a role."""
    db_engine = open_database(url)
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
        job = add_job(connection, add_problem_set(connection))
        add_samples(connection, job, [{"state": "ready"}])
        connection.execute(text("UPDATE reference_answers SET answer = :answer"), {"answer": SECRET})
    db_engine.dispose()
    name = make_url(url.get_secret_value()).database or ""
    urls = {**servers.role_urls, DatabaseRole.READER: servers.reader_url}

    def run(role: DatabaseRole, statement: str) -> list[tuple[object, ...]]:
        role_url = urls[role]
        assert role_url is not None
        with psycopg.connect(with_database(role_url, name).get_secret_value(), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def ask(servers: Connections, connections: Connections) -> Ask:
    """On a database of the test's own."""
    return prepare(servers, connections.database_url)


@pytest.fixture(scope="module")
def asked(servers: Connections) -> Iterator[Ask]:
    """On a database that nobody changes: what is asked there is refused, or only reads."""
    name = f"granted_{uuid.uuid4().hex[:8]}"
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    yield prepare(servers, with_database(servers.database_url, name))
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    owner.dispose()


@pytest.mark.parametrize("role", [DatabaseRole.WRITER, DatabaseRole.UPKEEP])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT answer FROM reference_answers",
        "SELECT count(*) FROM reference_answers",
        "SELECT 1 FROM problems p JOIN reference_answers r ON r.problem_id = p.id",
        "COPY reference_answers TO STDOUT",
        "UPDATE samples SET error = (SELECT answer FROM reference_answers LIMIT 1)",
        "SELECT detail FROM grades",
        "SELECT predicted_answer FROM grades",
        "CREATE VIEW public.peek AS SELECT 1",
        "CREATE TEMP TABLE peek (x int)",
        "SET ROLE specthink",
        "SET ROLE specthink_grader",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT rolpassword FROM pg_authid",
        "COPY (SELECT 1) TO PROGRAM 'true'",
    ],
)
def test_roles_that_generate_or_tidy_cannot_reach_an_answer(asked: Ask, role: DatabaseRole, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(role, statement)


def test_graders_and_people_read_answers(asked: Ask) -> None:
    for role in (DatabaseRole.GRADER, DatabaseRole.READER):
        assert set(asked(role, "SELECT answer FROM reference_answers")) == {(SECRET,)}


@pytest.mark.parametrize("role", WORKERS)
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO events (job_id, from_state, to_state) VALUES (1, 'a', 'b')",
        "DELETE FROM events",
        "TRUNCATE events",
        "UPDATE segments SET text = 'mine'",
        "DELETE FROM segments",
        "DELETE FROM samples",
        "DELETE FROM jobs",
        "UPDATE problems SET prompt = 'mine'",
        "INSERT INTO reference_answers SELECT id, '1' FROM problems",
        "UPDATE reference_answers SET answer = '1'",
        "UPDATE alembic_version SET version_num = '0001'",
        "ALTER TABLE samples DISABLE TRIGGER ALL",
        "DROP TABLE grades",
    ],
)
def test_workers_cannot_rewrite_what_is_stored(asked: Ask, role: DatabaseRole, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(role, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE samples SET score = 1",
        "UPDATE samples SET predicted_answer = '1'",
        "UPDATE samples SET problem_id = 1",
        "UPDATE jobs SET state = 'cancelled', finished_at = now()",
        "UPDATE jobs SET config = '{}'",
        "UPDATE workers SET settled_at = now()",
        "INSERT INTO grades (sample_id, grader, grader_version, status) SELECT id, 'g', '1', 'done' FROM samples",
    ],
)
def test_writers_cannot_grade_themselves_or_change_a_job(asked: Ask, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(DatabaseRole.WRITER, statement)


def test_events_of_restricted_roles_are_logged(ask: Ask, db_engine: Engine) -> None:
    ask(DatabaseRole.WRITER, "UPDATE samples SET state = 'failed', ended_at = now(), error = 'it broke'")
    ask(DatabaseRole.UPKEEP, "UPDATE jobs SET state = 'completed_with_errors', finished_at = now()")
    with transaction(db_engine) as connection:
        events = connection.execute(text("SELECT from_state, to_state FROM events ORDER BY id")).all()
    assert [tuple(event) for event in events] == [("ready", "failed"), ("running", "completed_with_errors")]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE samples SET score = 1",
        "DELETE FROM jobs",
        "CREATE TABLE mine (x int)",
        "CREATE TEMP TABLE mine (x int)",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT pg_ls_dir('.')",
        "SELECT lo_import('/etc/passwd')",
        "COPY jobs FROM PROGRAM 'true'",
        "COPY jobs TO '/dev/null'",
        "SELECT rolpassword FROM pg_authid",
        "SELECT pg_reload_conf()",
    ],
)
def test_reader_changes_nothing_and_sees_no_file(asked: Ask, statement: str) -> None:
    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
        asked(DatabaseRole.READER, statement)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):  # nor when it asks for more than its sessions begin with
        asked(DatabaseRole.READER, f"BEGIN READ WRITE; {statement}")


def test_reader_runs_under_a_time_limit(asked: Ask) -> None:
    assert asked(DatabaseRole.READER, "SHOW statement_timeout") == [("30s",)]
    with pytest.raises(psycopg.errors.QueryCanceled):
        asked(DatabaseRole.READER, "SET statement_timeout = 50; SELECT pg_sleep(60)")


def test_every_table_is_somebodys_and_every_grant_is_of_a_table() -> None:
    tables = set(METADATA.tables) | {"alembic_version"}
    granted = {table for role in WORKERS for table in GRANTS[role]}
    assert granted == tables


def test_granting_again_takes_away_what_was_granted_besides(ask: Ask, db_engine: Engine) -> None:
    writer = EMBEDDED_LOGINS[DatabaseRole.WRITER]
    with transaction(db_engine) as connection:
        connection.execute(text(f"GRANT SELECT ON reference_answers TO {writer}"))
        connection.execute(text(f"GRANT UPDATE (score) ON samples TO {writer}"))
    assert ask(DatabaseRole.WRITER, "SELECT count(*) FROM reference_answers") == [(4,)]
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
    for statement in ("SELECT count(*) FROM reference_answers", "UPDATE samples SET score = 1"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask(DatabaseRole.WRITER, statement)


def test_a_login_that_can_read_answers_anyhow_is_refused(db_engine: Engine) -> None:
    refused = pytest.raises(ConfigurationError, match="SELECT on reference_answers whatever is granted")
    with refused, transaction(db_engine) as connection:
        grant_roles(connection, {DatabaseRole.WRITER: "specthink"})
    with transaction(db_engine) as connection:
        connection.execute(text("GRANT SELECT ON reference_answers TO PUBLIC"))
    with refused, transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)


@pytest.fixture
def own_server(servers: Connections) -> Iterator[SecretStr]:
    """A database as on somebody's own server: its owner is no superuser, but may create roles."""
    name = f"own_{uuid.uuid4().hex[:8]}"
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'owner-password'"))
        connection.execute(text(f"CREATE DATABASE {name} OWNER {name}"))
    url = make_url(servers.database_url.get_secret_value())
    own = url.set(username=name, password="owner-password", database=name).render_as_string(hide_password=False)
    yield SecretStr(own)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        for role in (f"{name}_writer", f"{name}_reader", name):
            connection.execute(text(f"DROP ROLE IF EXISTS {role}"))
    owner.dispose()


def test_owner_without_superuser_makes_and_changes_the_logins(own_server: SecretStr) -> None:
    name = make_url(own_server.get_secret_value()).database
    db_engine = open_database(own_server)
    migrate.upgrade(db_engine)
    for password in ("first", "second: with %41 and 'quotes'"):
        logins = {
            DatabaseRole.WRITER: Login(name=f"{name}_writer", password=SecretStr(password)),
            DatabaseRole.READER: Login(
                name=f"{name}_reader", password=SecretStr(password), settings={"statement_timeout": "7s"}
            ),
        }
        with transaction(db_engine) as connection:
            create_logins(connection, logins.values())
            grant_roles(connection, {role: login.name for role, login in logins.items()})
    db_engine.dispose()
    url = make_url(own_server.get_secret_value())
    for role, allowed in ((DatabaseRole.WRITER, False), (DatabaseRole.READER, True)):
        login = open_database(
            SecretStr(
                url.set(username=logins[role].name, password="second: with %41 and 'quotes'").render_as_string(
                    hide_password=False
                )
            )
        )
        with login.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM problems")).scalar_one() == 0
            found = connection.execute(text("SELECT has_table_privilege('reference_answers', 'SELECT')")).scalar_one()
            assert found is allowed
            assert connection.execute(text("SHOW statement_timeout")).scalar_one() == ("7s" if allowed else "0")
        login.dispose()


def test_login_that_cannot_be_made_has_its_remedy(own_server: SecretStr, servers: Connections) -> None:
    name = make_url(own_server.get_secret_value()).username
    owner = open_database(servers.database_url)
    with transaction(owner) as connection:
        connection.execute(text(f"ALTER ROLE {name} NOCREATEROLE"))
    owner.dispose()
    db_engine = open_database(own_server)
    secret = Login(name=f"{name}_writer", password=SecretStr("never-shown-7"))
    refusal = pytest.raises(ConfigurationError, match="CREATEROLE, or let an administrator")
    with refusal as refused, transaction(db_engine) as connection:
        create_logins(connection, [secret])
    db_engine.dispose()
    assert "never-shown-7" not in str(refused.value)


def test_each_worker_does_its_work_with_the_rights_of_its_role_alone(
    servers: Connections, connections: Connections, db_engine: Engine
) -> None:
    """Every statement once: a new one that needs more fails here, and not in a worker that says so in its log only."""
    name = make_url(connections.database_url.get_secret_value()).database or ""
    logins = {role: open_database(with_database(servers.role_urls[role], name)) for role in WORKERS}
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
        job = make_job(connection, num_problems=4)
    publisher = Publisher(Celery("grants", broker="memory://", set_as_current=False))
    upkeep = Upkeep(logins[DatabaseRole.UPKEEP], publisher, Settings())
    refresher = RollupRefresher(logins[DatabaseRole.UPKEEP])
    with transaction(logins[DatabaseRole.WRITER]) as connection:
        worker = make_worker(connection)
    with session(logins[DatabaseRole.UPKEEP]) as connection:
        assert try_to_lead(connection)
        upkeep.round()

    with transaction(logins[DatabaseRole.WRITER]) as connection:
        require_current(logins[DatabaseRole.WRITER])
        waiting = connection.execute(text("SELECT id, epoch FROM samples WHERE state = 'ready'")).all()
        claimed = claim(connection, worker, {row.id: row.epoch for row in waiting})
        assert len(claimed) == 4
        get_job_config(connection, job)
        fix_think_phase(connection, job, ThinkPhase(end="", opened=False))
        first, second, third, fourth = claimed
        step = Step(
            step_index=0, text="one two", tokens_small=2, tokens_large=0, tokens_inserted=0, author=Author.SMALL,
            sentence_class=SentenceClass.STATEMENT, trigger=None, start_token=0, end_token=2,
        )  # fmt: skip
        assert commit(
            connection, worker, replace(written(first, SampleState.FINISHED), steps=(step,)),
            written(second, SampleState.READY),
        )  # fmt: skip
        assert claim(connection, worker, {second.sample_id: second.epoch})[0].context
        release_samples(connection, worker_id=worker, epochs={third.sample_id: third.epoch})
        defer_samples(
            connection, worker_id=worker, epochs={fourth.sample_id: fourth.epoch}, error="busy", max_attempts=1
        )
        assert len(held_epochs(connection, worker)) == 1
        renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters())
        close_books(connection, worker, WorkerCounters())
        amend_books(connection, worker, tokens=1)
        end_worker(connection, worker, WorkerCounters())

    for grader_version in ("1", "2"):  # the second one changes a grade of a sample that is graded
        with transaction(db_engine) as connection:
            connection.execute(text("UPDATE grades SET grader_version = :version"), {"version": grader_version})
        message = SamplesMessage(job_id=job, samples=[(first.sample_id, first.epoch)])
        assert grade_samples(logins[DatabaseRole.GRADER], message, time_limit_s=20) == "1 of 1 graded"

    with transaction(db_engine) as connection:  # all the duties have something to do
        connection.execute(text("UPDATE grades SET status = 'running', started_at = '2001-01-01', num_tries = 99"))
        connection.execute(text("UPDATE samples SET published_at = '2001-01-01' WHERE state = 'ready'"))
    upkeep.round()
    with transaction(logins[DatabaseRole.UPKEEP]) as connection:
        mark_followed(connection, job)
        assert select_progress(connection, [job])[0].failed == 1
    with transaction(db_engine) as connection:
        connection.execute(text("UPDATE jobs SET state = 'cancelled', finished_at = clock_timestamp()"))
    upkeep.round()  # ends the samples of a cancel whose client died
    assert refresher.count_jobs() == 1
    with transaction(db_engine) as connection:
        connection.execute(text("UPDATE rollups SET changed_at = '2001-01-01'"))
    assert refresher.refresh_rollups() == 1
    with transaction(logins[DatabaseRole.UPKEEP]) as connection:
        postpone_rollup(connection, Rollup(job, 0), by=TTL)
    with transaction(db_engine) as connection:
        states = set(connection.execute(text("SELECT state FROM samples")).scalars())
        assert states == {"graded", "failed", "cancelled"}
        assert connection.execute(text("SELECT count(*) FROM job_totals")).scalar_one() == 1
    for login in logins.values():
        login.dispose()

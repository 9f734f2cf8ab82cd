"""What each login of the database may do: refused by Postgres itself, whatever a worker's code asks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, make_url, text

from pipeline import Client, Problem, ProblemSet
from pipeline.db import migrate
from pipeline.db.grants import GRANTS, create_logins, find_telling_logins, grant_roles
from pipeline.db.session import open_database, transaction
from pipeline.db.tables import METADATA
from pipeline.embedded import EMBEDDED_LOGINS, Connections
from pipeline.errors import ConfigurationError, QueryRefused
from pipeline.logins import DatabaseRole, Login
from pipeline.problems import content_sha256
from tests.conftest import TEMPLATE, with_database
from tests.integration.rows import add_job, add_problem_set, add_samples

Ask = Callable[[DatabaseRole, str], list[tuple[object, ...]]]
WORKERS = (DatabaseRole.WRITER, DatabaseRole.GRADER, DatabaseRole.UPKEEP)
SECRET = "ZQ-7f3a-the-answer"


def prepare(servers: Connections, url: SecretStr) -> Ask:
    """A database with one job whose reference answers are unmistakable; and how to run a statement there as a role."""
    db_engine = open_database(url)
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
        job = add_job(connection, add_problem_set(connection))
        (sample,) = add_samples(connection, job, [{"state": "ready"}])
        connection.execute(
            text("INSERT INTO grades (sample_id, grader, grader_version, status, detail, graded_at) "
                 "VALUES (:id, 'own', '1', 'error', :secret, now())"),
            {"id": sample, "secret": SECRET},
        )  # fmt: skip
        connection.execute(text("UPDATE reference_answers SET answer = :answer"), {"answer": SECRET})
        connection.execute(
            text("UPDATE hidden_columns SET columns = jsonb_build_object('rationale', CAST(:secret AS text))"),
            {"secret": SECRET},
        )
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


@pytest.mark.parametrize(
    "role", [DatabaseRole.WRITER, DatabaseRole.UPKEEP, DatabaseRole.SUBMITTER, DatabaseRole.GATEWAY]
)
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT answer FROM reference_answers",
        "SELECT count(*) FROM reference_answers",
        "SELECT 1 FROM problems p JOIN reference_answers r ON r.problem_id = p.id",
        "COPY reference_answers TO STDOUT",
        "SELECT columns FROM hidden_columns",
        "SELECT count(*) FROM hidden_columns",
        "SELECT p.prompt, h.columns->>'rationale' FROM problems p JOIN hidden_columns h ON h.problem_id = p.id",
        "COPY hidden_columns TO STDOUT",
        "UPDATE samples SET state = (SELECT answer FROM reference_answers LIMIT 1)",
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
def test_roles_that_generate_tidy_or_submit_cannot_reach_an_answer(
    asked: Ask, role: DatabaseRole, statement: str
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(role, statement)


@pytest.mark.parametrize("role", [*WORKERS, DatabaseRole.SUBMITTER])
@pytest.mark.parametrize("table", ["api_keys", "files", "file_parts", "batches", "chat_requests"])
def test_what_came_over_http_is_the_gateways_alone(asked: Ask, role: DatabaseRole, table: str) -> None:
    """A file may hold reference answers, and a key's hash is nobody's business."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(role, f"SELECT * FROM {table}")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO api_keys (name, sha256, role) VALUES ('me', 'x', 'admin')",
        "UPDATE api_keys SET revoked_at = NULL",
        "UPDATE api_keys SET role = 'admin'",
        "UPDATE files SET owner_id = NULL",
        "UPDATE file_parts SET data = 'x'",
        "UPDATE batches SET owner_id = NULL",
        "INSERT INTO model_aliases (name, options) VALUES ('x', '{}')",
        "DELETE FROM batches",
    ],
)
def test_gateway_makes_no_keys_and_gives_nothing_to_others(asked: Ask, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(DatabaseRole.GATEWAY, statement)


def test_graders_and_people_read_answers(asked: Ask) -> None:
    for role in (DatabaseRole.GRADER, DatabaseRole.READER):
        assert set(asked(role, "SELECT answer FROM reference_answers")) == {(SECRET,)}
    assert set(asked(DatabaseRole.READER, "SELECT columns->>'rationale' FROM hidden_columns")) == {(SECRET,)}


def test_what_a_grader_said_is_for_those_who_may_read_answers(asked: Ask) -> None:
    statement = "SELECT grade_detail FROM results"
    assert asked(DatabaseRole.READER, statement) == [(SECRET,)]
    assert asked(DatabaseRole.SUBMITTER, statement) == [(None,)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(DatabaseRole.UPKEEP, statement)


def test_writers_read_of_a_problem_what_a_prompt_may_show_alone(asked: Ask) -> None:
    assert asked(DatabaseRole.WRITER, "SELECT prompt, shown FROM problems ORDER BY id LIMIT 1") == [("What is 0?", {})]
    for column in ("subject", "level", "position", "*"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            asked(DatabaseRole.WRITER, f"SELECT {column} FROM problems")


@pytest.mark.parametrize("role", [*WORKERS, DatabaseRole.SUBMITTER, DatabaseRole.GATEWAY])
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
        "UPDATE reference_answers SET answer = '1'",
        "UPDATE alembic_version SET version_num = '0001'",
        "ALTER TABLE samples DISABLE TRIGGER ALL",
        "DROP TABLE grades",
    ],
)
def test_nobody_rewrites_what_is_stored(asked: Ask, role: DatabaseRole, statement: str) -> None:
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


@pytest.mark.parametrize("role", WORKERS)
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO reference_answers SELECT id, '1' FROM problems",
        "INSERT INTO problem_sets (name, content_sha256, num_problems, num_references, has_choices) "
        "VALUES ('n', 's', 1, 0, false)",
        "SELECT add_samples('{1}')",
        "SELECT withdraw_texts('{1}')",
        "SELECT retry_failed_samples(1, '{1}')",
        "SELECT retry_cut_samples(1, '{1}', 1000000)",
    ],
)
def test_workers_cannot_submit_or_retry(asked: Ask, role: DatabaseRole, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(role, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE samples SET score = 1",
        "UPDATE samples SET predicted_answer = '1'",
        "UPDATE samples SET policy_state = '{}'",
        "UPDATE samples SET num_segments = 1, tokens_small = 5",
        "UPDATE samples SET problem_id = 1",
        "INSERT INTO samples (job_id, problem_id, sample_index) SELECT job_id, problem_id, 99 FROM samples",
        "INSERT INTO segments SELECT * FROM segments",
        "INSERT INTO steps SELECT * FROM steps",
        "INSERT INTO grades (sample_id, grader, grader_version, status) SELECT id, 'g', '1', 'done' FROM samples",
        "UPDATE grades SET status = 'done'",
        "DELETE FROM grades",
        "SELECT * FROM grades",
        "UPDATE jobs SET config = '{}'",
        "UPDATE jobs SET think_end = '</think>'",
        "UPDATE workers SET settled_at = now()",
        "INSERT INTO workers (kind, host, pid, queue, max_in_flight) VALUES ('small', 'h', 1, 'q', 1)",
        "SELECT withdraw_texts('{1}')",
        "CREATE TABLE mine (x int)",
    ],
)
def test_submitters_write_no_text_score_or_grade(asked: Ask, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(DatabaseRole.SUBMITTER, statement)


def test_submitters_retry_only_what_failed_or_was_cut(ask: Ask, db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        add_samples(connection, 1, [{"problem": 1, "state": "graded", "score": 1.0, "tokens_small": 3}])
    before = ask(DatabaseRole.SUBMITTER, "SELECT * FROM samples")
    whatever = "array(SELECT id FROM samples)"
    for call in (f"retry_failed_samples(1, {whatever})", f"retry_cut_samples(1, {whatever}, 1000000)"):
        assert ask(DatabaseRole.SUBMITTER, f"SELECT {call}") == [(0,)]
    with pytest.raises(psycopg.errors.UniqueViolation, match="has its samples already"):
        ask(DatabaseRole.SUBMITTER, "SELECT add_samples('{1}')")
    assert ask(DatabaseRole.SUBMITTER, "SELECT * FROM samples") == before


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
    assert asked(DatabaseRole.READER, "SHOW idle_in_transaction_session_timeout") == [("10min",)]
    assert asked(DatabaseRole.READER, "SHOW idle_session_timeout") == [("1h",)]
    with pytest.raises(psycopg.errors.QueryCanceled):
        asked(DatabaseRole.READER, "SET statement_timeout = 50; SELECT pg_sleep(60)")


def test_writers_plan_once(asked: Ask) -> None:
    assert asked(DatabaseRole.WRITER, "SHOW plan_cache_mode") == [("force_generic_plan",)]
    assert asked(DatabaseRole.UPKEEP, "SHOW plan_cache_mode") == [("auto",)]


def test_every_table_is_somebodys_and_every_grant_is_of_a_table() -> None:
    tables = set(METADATA.tables) | {"alembic_version"}
    roles = (*WORKERS, DatabaseRole.SUBMITTER, DatabaseRole.GATEWAY)
    granted = {name for role in roles for name in GRANTS[role] if " " not in name}
    assert granted == tables | {"job_progress"}


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


@pytest.mark.parametrize("table", ["reference_answers (answer)", "hidden_columns (columns)"])
def test_one_column_that_everybody_may_read_is_refused_and_found_by_doctor(db_engine: Engine, table: str) -> None:
    name, column = table.split()
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
        assert find_telling_logins(connection) == []
        connection.execute(text(f"GRANT SELECT {column} ON {name} TO PUBLIC"))
        assert EMBEDDED_LOGINS[DatabaseRole.WRITER] in find_telling_logins(connection)
    with pytest.raises(ConfigurationError, match=f"SELECT on {name} whatever"), transaction(db_engine) as connection:
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
        for role in (f"{name}_writer", f"{name}_submitter", f"{name}_reader", name):
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
            assert connection.execute(text("SELECT count(prompt) FROM problems")).scalar_one() == 0
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


def test_submitter_of_a_plain_owners_database_submits_and_follows(own_server: SecretStr) -> None:
    """The functions that have the owner's rights work where the owner is no superuser, too."""
    url = make_url(own_server.get_secret_value())
    login = Login(name=f"{url.username}_submitter", password=SecretStr("word"))
    db_engine = open_database(own_server)
    migrate.upgrade(db_engine)
    with transaction(db_engine) as connection:
        create_logins(connection, [login])
        grant_roles(connection, {DatabaseRole.SUBMITTER: login.name})
    db_engine.dispose()
    problems = (Problem(external_id="a", prompt="1?", answer="1"), Problem(external_id="b", prompt="2?", answer="2"))
    problem_set = ProblemSet(name="two", content_sha256=content_sha256(problems), problems=problems)
    own = url.set(username=login.name, password="word").render_as_string(hide_password=False)
    with Client.connect(database_url=own) as client:
        job = client.submit(problem_set, small="S", large="L", num_samples=3)
        assert client.progress(job)[0].samples_total == 6
        assert client.submit(job.problem_set_id, small="S", policy="small-only").problem_set_id == job.problem_set_id
        assert client.clone(job, {"seed": 1}).cloned_from == job.id
        assert client.pause(job).is_new
        assert client.resume(job).is_new
        assert client.set_priority(job, 3).is_new
        assert client.cancel(job).num_samples == 6
        with pytest.raises(QueryRefused, match="permission denied for table reference_answers"):
            client.sql("SELECT answer FROM reference_answers")


def test_login_without_its_rights_is_told_how_it_gets_them(own_server: SecretStr) -> None:
    url = make_url(own_server.get_secret_value())
    login = Login(name=f"{url.username}_submitter", password=SecretStr("word"))
    db_engine = open_database(own_server)
    migrate.upgrade(db_engine)
    with transaction(db_engine) as connection:
        create_logins(connection, [login])
    db_engine.dispose()
    own = url.set(username=login.name, password="word").render_as_string(hide_password=False)
    with pytest.raises(ConfigurationError, match=r"may not do this: permission denied .*specthink migrate"):
        Client.connect(database_url=own)

"""What a submission stores, whether by the owner of the schema, here a superuser, or by a submitter's login."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from pipeline.db.submissions import insert_job, put_problem_set
from pipeline.embedded import EMBEDDED_LOGINS
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.logins import DatabaseRole
from pipeline.policies import parse_policy
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.samples import ModelRole
from tests.integration.rows import every, one

pytestmark = pytest.mark.integration


@pytest.fixture
def connection(db_engine: Engine) -> Iterator[Connection]:
    """A transaction that is never committed."""
    with db_engine.connect() as connection:
        yield connection


@pytest.fixture(params=["specthink", EMBEDDED_LOGINS[DatabaseRole.SUBMITTER]])
def login(request: pytest.FixtureRequest) -> str:
    """Whose rights a submission has."""
    return str(request.param)


def submit(connection: Connection, login: str, num_problems: int, num_samples: int) -> int:
    problems = tuple(
        Problem(
            external_id=f"p{number}", prompt=f'"{number}"\tand\\n', answer=str(number) if number % 2 else None,
            metadata={"source": "a\tb\\c", "number": number} if number else {},
            hidden={"proof": number} if number else {},
        )
        for number in range(num_problems)
    )  # fmt: skip
    config = JobConfig(small=ModelSpec(name="S"), policy=parse_policy("small-only"), num_samples=num_samples)
    problem_set = ProblemSet(name="quoted", content_sha256=content_sha256(problems), problems=problems)
    connection.execute(text(f"SET LOCAL ROLE {login}"))
    job = insert_job(
        connection, name="n", policy="small-only", problem_set_id=put_problem_set(connection, problem_set),
        num_problems=num_problems, config=config, first_role=ModelRole.SMALL, versions={},
    )  # fmt: skip
    connection.execute(text("RESET ROLE"))
    return job


def test_problems_and_samples_are_stored_in_order_with_their_answers(connection: Connection, login: str) -> None:
    job = submit(connection, login, num_problems=5, num_samples=2)
    rows = every(
        connection,
        "SELECT p.position, p.external_id, p.prompt, p.shown, h.columns, r.answer, s.sample_index FROM samples s "
        "JOIN problems p ON p.id = s.problem_id LEFT JOIN hidden_columns h ON h.problem_id = p.id "
        "LEFT JOIN reference_answers r ON r.problem_id = p.id "
        "WHERE s.job_id = :job ORDER BY s.id",
        job=job,
    )
    assert rows == [
        {
            "position": number, "external_id": f"p{number}", "prompt": f'"{number}"\tand\\n', "sample_index": index,
            "shown": {"source": "a\tb\\c", "number": number} if number else {},
            "columns": {"proof": number} if number else None,
            "answer": str(number) if number % 2 else None,
        }
        for number in range(5) for index in range(2)
    ]  # fmt: skip
    ids = every(connection, "SELECT id FROM problems ORDER BY position")
    assert ids == sorted(ids, key=lambda row: row["id"])
    assert one(connection, "SELECT count(*) AS n, min(first_problem) AS first FROM rollups") == {"n": 1, "first": 0}


@pytest.mark.parametrize("num_problems", [1, 101])
def test_references_are_checked_again_after_a_submission(connection: Connection, login: str, num_problems: int) -> None:
    job = submit(connection, login, num_problems=num_problems, num_samples=1)
    assert one(connection, "SHOW session_replication_role") == {"session_replication_role": "origin"}
    statement = "INSERT INTO samples (job_id, problem_id, sample_index) VALUES (:job, 4711, 0)"
    with pytest.raises(IntegrityError, match="fk_samples_problem_id_problems"):
        connection.execute(text(statement), {"job": job})

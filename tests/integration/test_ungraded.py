"""How a job ends of which something, or nothing, could be graded; and what several accepted answers are worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.cli.jobs import _exit_code
from pipeline.db.grades import select_ungraded
from pipeline.db.report_queries import select_progress
from pipeline.db.session import transaction
from pipeline.db.upkeep_statements import close_jobs
from pipeline.grading import grade_any, make_grader
from pipeline.jobs.config import JobState
from tests.integration.rows import add_job, add_problem_set, add_samples


@pytest.fixture
def connection(db_engine: Engine) -> Iterator[Connection]:
    with transaction(db_engine) as connection:
        yield connection


@pytest.mark.parametrize(
    ("samples", "grader", "ended", "exit_code"),
    [
        ([{"score": None}, {"problem": 1, "score": None}], "math", JobState.COMPLETED_WITH_ERRORS, 1),
        ([{"score": None}, {"problem": 1, "score": 0.0}], "math", JobState.COMPLETED, 0),
        ([{"score": None}, {"problem": 1, "score": None}], "none", JobState.COMPLETED, 0),
        ([{"score": 1.0}, {"problem": 1, "state": "failed"}], "math", JobState.COMPLETED_WITH_ERRORS, 1),
    ],
)
def test_job_of_which_nothing_was_scored_ends_with_errors(
    connection: Connection, samples: list[dict[str, Any]], grader: str, ended: JobState, exit_code: int
) -> None:
    job = add_job(connection, add_problem_set(connection))
    change = "UPDATE jobs SET config = jsonb_set(config, '{grader}', to_jsonb(CAST(:grader AS text))) WHERE id = :job"
    connection.execute(text(change), {"grader": grader, "job": job})
    add_samples(connection, job, samples)
    assert close_jobs(connection) == {job: ended}
    assert _exit_code(select_progress(connection, [job])) == exit_code


def test_each_accepted_answer_is_right(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    ids = add_samples(connection, job, [{"state": "finished"}])
    connection.execute(text("UPDATE reference_answers SET answer = '4', also_accepted = '{7,x + 1}'"))
    (sample,) = select_ungraded(connection, ids, job_id=job)
    references = (sample.reference, *sample.also_accepted)
    assert references == ("4", "7", "x + 1")
    scores = [grade_any(make_grader("math"), rf"\boxed{{{answer}}}", references).score for answer in ("7", "1+x", "5")]
    assert scores == [1.0, 1.0, 0.0]

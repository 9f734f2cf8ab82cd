"""The statements of a submission: one transaction stores problem set, job and all of its samples, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, text
from sqlalchemy.dialects.postgresql import insert as insert_or

from pipeline.db.tables import JobRow, ProblemRow, ProblemSetRow, ReferenceAnswerRow
from pipeline.hand_over import ThinkPhase
from pipeline.jobs import JobConfig, JobState
from pipeline.problems import Problem, ProblemSet
from pipeline.samples import ModelRole

_BATCH = 5_000


def put_problem_set(connection: Connection, problem_set: ProblemSet) -> int:
    """The id of the set with just this content, stored now if it is new."""
    values = {
        "name": problem_set.name,
        "content_sha256": problem_set.content_sha256,
        "num_problems": len(problem_set.problems),
    }
    statement = insert_or(ProblemSetRow).values(**values).on_conflict_do_nothing().returning(ProblemSetRow.id)
    new_id = connection.execute(statement).scalar()
    if new_id is None:
        found = text("SELECT id FROM problem_sets WHERE content_sha256 = :content_sha256")
        return int(connection.execute(found, values).scalar_one())
    for start in range(0, len(problem_set.problems), _BATCH):
        _insert_problems(connection, new_id, start, problem_set.problems[start : start + _BATCH])
    return int(new_id)


def _insert_problems(connection: Connection, problem_set_id: int, start: int, problems: Sequence[Problem]) -> None:
    rows = [
        {
            "problem_set_id": problem_set_id,
            "position": position,
            "external_id": problem.external_id,
            "prompt": problem.prompt,
            "subject": problem.subject,
            "level": problem.level,
            "extra": dict(problem.metadata),
        }
        for position, problem in enumerate(problems, start)
    ]
    ids = connection.execute(insert(ProblemRow).returning(ProblemRow.id, sort_by_parameter_order=True), rows).scalars()
    answers = [
        {"problem_id": problem_id, "answer": problem.answer}
        for problem_id, problem in zip(ids, problems, strict=True)
        if problem.answer is not None
    ]
    if answers:
        connection.execute(insert(ReferenceAnswerRow), answers)


_INSERT_SAMPLES = text("""
    INSERT INTO samples (job_id, problem_id, sample_index)
    SELECT :job, p.id, i FROM problems p CROSS JOIN generate_series(0, :num_samples - 1) AS i
    WHERE p.problem_set_id = :problem_set AND p.position < :num_problems
    ORDER BY p.position, i
""")


_MAKE_LOTS = text("SELECT make_lots(:job)")  # with the job: nobody has changed a sample before there are lots


def insert_job(
    connection: Connection,
    *,
    name: str,
    policy: str,
    problem_set_id: int,
    num_problems: int,
    config: JobConfig,
    first_role: ModelRole,
    versions: dict[str, Any],
    think: ThinkPhase | None = None,
    cloned_from: int | None = None,
) -> int:
    """Store a job and its pending samples; returns its id.

    num_problems: the first so many of the set are used. think: None leaves it to the first worker. cloned_from: the job
    that it is like.
    """
    statement = insert(JobRow).values(
        name=name,
        policy=policy,
        problem_set_id=problem_set_id,
        state=JobState.RUNNING,
        config=config.model_dump(mode="json"),
        versions=versions,
        small_model=config.small.name if config.small else None,
        large_model=config.large.name if config.large else None,
        first_role=first_role,
        think_end=think.end if think else None,
        think_opened=think.opened if think else None,
        num_problems=num_problems,
        num_samples=config.num_samples,
        cloned_from=cloned_from,
    )
    job_id = int(connection.execute(statement.returning(JobRow.id)).scalar_one())
    connection.execute(
        _INSERT_SAMPLES,
        {
            "job": job_id,
            "problem_set": problem_set_id,
            "num_problems": num_problems,
            "num_samples": config.num_samples,
        },
    )
    connection.execute(_MAKE_LOTS, {"job": job_id})
    return job_id

"""The statements of a submission: one transaction stores problem set, job and all of its samples, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, text

from pipeline.chat.translation import ThinkPhase
from pipeline.db.readable import read_config, reading
from pipeline.db.session import copy_rows, references_trusted
from pipeline.errors import NotFound
from pipeline.jobs.config import JobConfig, JobState
from pipeline.jobs.readiness import ReadyJob
from pipeline.jobs.references import StoredSet
from pipeline.jobs.submission import SourceJob
from pipeline.problems import Problem, ProblemSet
from pipeline.samples import ModelRole

_PUT_PROBLEM_SET = text("""
    INSERT INTO problem_sets (name, content_sha256, num_problems, num_references, has_choices, tells_answers_of, source)
    VALUES (:name, :content_sha256, :num_problems, :num_references, :has_choices, :tells_answers_of,
            CAST(:source AS jsonb))
    ON CONFLICT DO NOTHING RETURNING id
""")


def put_problem_set(connection: Connection, problem_set: ProblemSet, *, tells_answers_of: int | None = None) -> int:
    """The id of the set with just this content, stored now if it is new.

    tells_answers_of: the stored set whose reference answers a judge's prompts show; None: these show none.
    """
    values = {
        "name": problem_set.name,
        "content_sha256": problem_set.content_sha256,
        "num_problems": len(problem_set.problems),
        "num_references": problem_set.num_references,
        "has_choices": problem_set.has_choices,
        "tells_answers_of": tells_answers_of,
        "source": json.dumps(problem_set.origin) if problem_set.origin else None,
    }
    new_id = connection.execute(_PUT_PROBLEM_SET, values).scalar()
    if new_id is None:
        found = text("SELECT id FROM problem_sets WHERE content_sha256 = :content_sha256")
        return int(connection.execute(found, values).scalar_one())
    ids = connection.execute(_RESERVE_IDS, {"num": len(problem_set.problems)}).scalars().all()
    problems = list(zip(ids, problem_set.problems, strict=True))
    with references_trusted(connection):
        copy_rows(connection, _COPY_PROBLEMS, _problem_rows(new_id, ids, problem_set.problems))
        copy_rows(connection, _COPY_ANSWERS, _answer_rows(problems))
        copy_rows(connection, _COPY_HIDDEN, ((i, json.dumps(each.hidden)) for i, each in problems if each.hidden))
    return int(new_id)


_RESERVE_IDS = text("SELECT nextval(pg_get_serial_sequence('problems', 'id')) FROM generate_series(1, :num) ORDER BY 1")
_COPY_PROBLEMS = """
    COPY problems (id, problem_set_id, position, external_id, prompt, subject, level, shown) FROM STDIN
"""
_COPY_ANSWERS = "COPY reference_answers (problem_id, answer, also_accepted) FROM STDIN"
_COPY_HIDDEN = "COPY hidden_columns (problem_id, columns) FROM STDIN"


def _problem_rows(
    problem_set_id: int, ids: Sequence[int], problems: Sequence[Problem]
) -> Iterator[tuple[int | str | None, ...]]:
    for position, (problem_id, problem) in enumerate(zip(ids, problems, strict=True)):
        yield (
            problem_id, problem_set_id, position, problem.external_id, problem.prompt, problem.subject, problem.level,
            json.dumps(problem.metadata) if problem.metadata else "{}",
        )  # fmt: skip


def _answer_rows(problems: Iterable[tuple[int, Problem]]) -> Iterator[tuple[int, str, list[str]]]:
    for problem_id, problem in problems:
        if problem.answer is not None:
            yield problem_id, problem.answer, list(problem.also_accepted)


_ADD_SAMPLES = text("SELECT add_samples(:job)")
_INSERT_JOB = text("""
    INSERT INTO jobs (name, policy, problem_set_id, state, config, versions, small_model, large_model, first_role,
                      think_start, think_end, think_opened, num_problems, num_samples, cloned_from, judged_job_id)
    VALUES (:name, :policy, :problem_set_id, :state, CAST(:config AS jsonb), CAST(:versions AS jsonb), :small_model,
            :large_model, :first_role, :think_start, :think_end, :think_opened, :num_problems, :num_samples,
            :cloned_from, :judged_job_id)
    RETURNING id
""")


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
    judged_job_id: int | None = None,
) -> int:
    """Store a job and its pending samples; returns its id.

    num_problems: the first so many of the set are used. think: None leaves it to the first worker. cloned_from: the job
    that it is like. judged_job_id: the job that it is the judge of.
    """
    job = {
        "name": name,
        "policy": policy,
        "problem_set_id": problem_set_id,
        "state": JobState.RUNNING.value,
        "config": config.model_dump_json(),
        "versions": orjson.dumps(versions).decode(),
        "small_model": config.small.name if config.small else None,
        "large_model": config.large.name if config.large else None,
        "first_role": first_role.value,
        "think_start": think.start if think else None,
        "think_end": think.end if think else None,
        "think_opened": think.opened if think else None,
        "num_problems": num_problems,
        "num_samples": config.num_samples,
        "cloned_from": cloned_from,
        "judged_job_id": judged_job_id,
    }
    job_id = int(connection.execute(_INSERT_JOB, job).scalar_one())
    connection.execute(_ADD_SAMPLES, {"job": job_id})
    return job_id


def insert_ready(
    connection: Connection, job: ReadyJob, *, judged_job_id: int | None = None, tells_answers_of: int | None = None
) -> int:
    """Store a job that passed its checks, and its problem set where it is new; returns the job's id.

    judged_job_id: of a judge, the job that it judges. tells_answers_of: the set whose reference answers its prompts
    show.
    """
    if isinstance(job.problems, StoredSet):
        problem_set_id = job.problems.id
    else:
        problem_set_id = put_problem_set(connection, job.problems, tells_answers_of=tells_answers_of)
    return insert_job(
        connection,
        name=job.name,
        policy=job.policy,
        problem_set_id=problem_set_id,
        num_problems=job.num_problems,
        config=job.config,
        first_role=job.first_role,
        versions=job.versions,
        think=job.think,
        cloned_from=job.cloned_from,
        judged_job_id=judged_job_id,
    )


# What a submission reads


class ProblemSetSize(NamedTuple):
    """A stored problem set as it is called, and how many problems it has."""

    name: str
    num_problems: int
    num_references: int
    has_choices: bool


_SELECT_PROBLEM_SET = text(
    "SELECT name, num_problems, num_references, has_choices FROM problem_sets WHERE id = :problem_set"
)
_SELECT_PROBLEMS = text("""
    SELECT external_id, prompt, subject, level, shown AS metadata FROM problems
    WHERE problem_set_id = :problem_set AND position < :limit ORDER BY position
""")
_SELECT_SOURCE = text("""
    SELECT id, name, policy, problem_set_id, config, think_start, think_end, think_opened FROM jobs WHERE id = :job
""")


def get_problem_set(connection: Connection, problem_set_id: int) -> ProblemSetSize:
    """Raises NotFound."""
    row = connection.execute(_SELECT_PROBLEM_SET, {"problem_set": problem_set_id}).first()
    if row is None:
        raise NotFound(f"there is no problem set {problem_set_id}; SELECT id, name FROM problem_sets lists them")
    return ProblemSetSize(*row)


def select_problems(connection: Connection, problem_set_id: int, *, limit: int) -> tuple[Problem, ...]:
    """The first problems of a stored set, without their reference answers."""
    rows = connection.execute(_SELECT_PROBLEMS, {"problem_set": problem_set_id, "limit": limit}).mappings()
    return tuple(Problem(**row) for row in rows)


def get_source_job(connection: Connection, job_id: int) -> SourceJob:
    """A stored job as a clone is made from it. Raises NotFound and DamagedRow."""
    row = connection.execute(_SELECT_SOURCE, {"job": job_id}).first()
    if row is None:
        raise NotFound.job(job_id)
    config = read_config(job_id, row.config)
    with reading(f"job {job_id}: how its texts mark the think phase"):
        if row.think_end is not None and None in (row.think_start, row.think_opened):
            raise ValueError("a part of it is missing")
    return SourceJob(
        id=row.id,
        name=row.name,
        policy=row.policy,
        problem_set_id=row.problem_set_id,
        config=config,
        think=None
        if row.think_end is None
        else ThinkPhase(start=row.think_start, end=row.think_end, opened=row.think_opened),
    )

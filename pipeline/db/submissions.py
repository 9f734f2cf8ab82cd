"""The statements of a submission: one transaction stores problem set, job and all of its samples, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from sqlalchemy import Connection, text

from pipeline.chat.translation import ThinkPhase
from pipeline.db.session import copy_rows
from pipeline.jobs.config import JobConfig, JobState
from pipeline.problems import Problem, ProblemSet
from pipeline.samples import ModelRole

_PUT_PROBLEM_SET = text("""
    INSERT INTO problem_sets (name, content_sha256, num_problems) VALUES (:name, :content_sha256, :num_problems)
    ON CONFLICT DO NOTHING RETURNING id
""")


def put_problem_set(connection: Connection, problem_set: ProblemSet) -> int:
    """The id of the set with just this content, stored now if it is new."""
    values = {
        "name": problem_set.name,
        "content_sha256": problem_set.content_sha256,
        "num_problems": len(problem_set.problems),
    }
    new_id = connection.execute(_PUT_PROBLEM_SET, values).scalar()
    if new_id is None:
        found = text("SELECT id FROM problem_sets WHERE content_sha256 = :content_sha256")
        return int(connection.execute(found, values).scalar_one())
    ids = connection.execute(_RESERVE_IDS, {"num": len(problem_set.problems)}).scalars().all()
    answers = zip(ids, problem_set.problems, strict=True)
    with _references_trusted(connection):
        copy_rows(connection, _COPY_PROBLEMS, _problem_rows(new_id, ids, problem_set.problems))
        copy_rows(connection, _COPY_ANSWERS, ((i, each.answer) for i, each in answers if each.answer is not None))
    return int(new_id)


_RESERVE_IDS = text("SELECT nextval(pg_get_serial_sequence('problems', 'id')) FROM generate_series(1, :num) ORDER BY 1")
_COPY_PROBLEMS = """
    COPY problems (id, problem_set_id, position, external_id, prompt, subject, level, extra) FROM STDIN
"""
_COPY_ANSWERS = "COPY reference_answers (problem_id, answer) FROM STDIN"


def _problem_rows(
    problem_set_id: int, ids: Sequence[int], problems: Sequence[Problem]
) -> Iterator[tuple[int | str | None, ...]]:
    for position, (problem_id, problem) in enumerate(zip(ids, problems, strict=True)):
        yield (
            problem_id, problem_set_id, position, problem.external_id, problem.prompt, problem.subject, problem.level,
            json.dumps(problem.metadata) if problem.metadata else "{}",
        )  # fmt: skip


_TRUST = text("""
    SELECT set_config('session_replication_role', 'replica', true) FROM pg_roles
    WHERE rolname = current_user AND rolsuper
""")
_TRUST_NO_MORE = text("SELECT set_config('session_replication_role', 'origin', true)")


@contextmanager
def _references_trusted(connection: Connection) -> Iterator[None]:
    """Insert without a look at each referenced row, for rows that refer to what this transaction has just read or made.

    Only a superuser may; for others every row is checked. Measured: the checks take three fifths of the time in which
    samples are inserted. No trigger but theirs is on INSERT. An error ends the transaction, and this with it.
    """
    is_trusted = connection.execute(_TRUST).first() is not None
    yield
    if is_trusted:
        connection.execute(_TRUST_NO_MORE)


_INSERT_SAMPLES = text("""
    INSERT INTO samples (job_id, problem_id, sample_index)
    SELECT :job, p.id, i FROM problems p CROSS JOIN generate_series(0, :num_samples - 1) AS i
    WHERE p.problem_set_id = :problem_set AND p.position < :num_problems
    ORDER BY p.position, i
""")


_CREATE_ROLLUPS = text("SELECT create_rollups(:job)")  # with the job: nobody has changed a sample before there are any


_INSERT_JOB = text("""
    INSERT INTO jobs (name, policy, problem_set_id, state, config, versions, small_model, large_model, first_role,
                      think_end, think_opened, num_problems, num_samples, cloned_from)
    VALUES (:name, :policy, :problem_set_id, :state, CAST(:config AS jsonb), CAST(:versions AS jsonb), :small_model,
            :large_model, :first_role, :think_end, :think_opened, :num_problems, :num_samples, :cloned_from)
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
) -> int:
    """Store a job and its pending samples; returns its id.

    num_problems: the first so many of the set are used. think: None leaves it to the first worker. cloned_from: the job
    that it is like.
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
        "think_end": think.end if think else None,
        "think_opened": think.opened if think else None,
        "num_problems": num_problems,
        "num_samples": config.num_samples,
        "cloned_from": cloned_from,
    }
    job_id = int(connection.execute(_INSERT_JOB, job).scalar_one())
    values = {
        "job": job_id, "problem_set": problem_set_id, "num_problems": num_problems, "num_samples": config.num_samples,
    }  # fmt: skip
    with _references_trusted(connection):
        connection.execute(_INSERT_SAMPLES, values)
    connection.execute(_CREATE_ROLLUPS, {"job": job_id})
    return job_id

"""The statements of a submission: one transaction stores problem set, job and all of its samples, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict, Unpack

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

_PUT_PROBLEM_SETS = text("""
    INSERT INTO problem_sets (name, content_sha256, num_problems, num_references, has_choices, tells_answers_of, source)
    SELECT name, content_sha256, num_problems, num_references, has_choices, tells_answers_of, source
    FROM jsonb_to_recordset(CAST(:sets AS jsonb)) AS s (
        name text, content_sha256 text, num_problems integer, num_references integer, has_choices boolean,
        tells_answers_of bigint, source jsonb
    )
    ORDER BY content_sha256  -- so that no two submissions wait in a circle
    ON CONFLICT DO NOTHING RETURNING content_sha256, id
""")
_FIND_PROBLEM_SETS = text("SELECT content_sha256, id FROM problem_sets WHERE content_sha256 = ANY(:contents)")


def put_problem_set(connection: Connection, problem_set: ProblemSet, *, tells_answers_of: int | None = None) -> int:
    """The id of the set with just this content, stored now if it is new.

    tells_answers_of: the stored set whose reference answers a judge's prompts show; None: these show none.
    """
    return put_problem_sets(connection, [problem_set], tells_answers_of=tells_answers_of)[0]


def put_problem_sets(
    connection: Connection, problem_sets: Sequence[ProblemSet], *, tells_answers_of: int | None = None
) -> list[int]:
    """The ids of some sets, as ``put_problem_set`` gives each, by as many statements as for one."""
    if not problem_sets:
        return []
    contents = {each.content_sha256: each for each in problem_sets}
    sets = [_set_row(each, tells_answers_of) for each in contents.values()]
    new = {row.content_sha256: row.id for row in connection.execute(_PUT_PROBLEM_SETS, {"sets": _json(sets)})}
    ids = dict(new)
    if len(new) < len(contents):
        found = connection.execute(_FIND_PROBLEM_SETS, {"contents": list(contents.keys() - new.keys())})
        ids |= {row.content_sha256: row.id for row in found}
    _copy_problems(connection, {new_id: contents[content].problems for content, new_id in new.items()})
    return [int(ids[each.content_sha256]) for each in problem_sets]


def _set_row(problem_set: ProblemSet, tells_answers_of: int | None) -> dict[str, Any]:
    return {
        "name": problem_set.name,
        "content_sha256": problem_set.content_sha256,
        "num_problems": len(problem_set.problems),
        "num_references": problem_set.num_references,
        "has_choices": problem_set.has_choices,
        "tells_answers_of": tells_answers_of,
        "source": problem_set.origin or None,
    }


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return orjson.dumps(rows).decode()


def _copy_problems(connection: Connection, sets: Mapping[int, Sequence[Problem]]) -> None:
    """Store the problems of new sets, by the sets' ids."""
    placed = [
        (set_id, position, problem) for set_id, problems in sets.items() for position, problem in enumerate(problems)
    ]
    if not placed:
        return
    ids = connection.execute(_RESERVE_IDS, {"num": len(placed)}).scalars().all()
    problems = [(problem_id, problem) for problem_id, (_, _, problem) in zip(ids, placed, strict=True)]
    with references_trusted(connection, len(placed)):
        copy_rows(connection, _COPY_PROBLEMS, map(_problem_row, ids, placed))
        if any(problem.answer is not None for _, problem in problems):
            copy_rows(connection, _COPY_ANSWERS, _answer_rows(problems))
        if any(problem.hidden for _, problem in problems):
            copy_rows(connection, _COPY_HIDDEN, ((i, json.dumps(each.hidden)) for i, each in problems if each.hidden))


_RESERVE_IDS = text("SELECT nextval(pg_get_serial_sequence('problems', 'id')) FROM generate_series(1, :num) ORDER BY 1")
_COPY_PROBLEMS = """
    COPY problems (id, problem_set_id, position, external_id, prompt, subject, level, shown) FROM STDIN
"""
_COPY_ANSWERS = "COPY reference_answers (problem_id, answer, also_accepted) FROM STDIN"
_COPY_HIDDEN = "COPY hidden_columns (problem_id, columns) FROM STDIN"


def _problem_row(problem_id: int, placed: tuple[int, int, Problem]) -> tuple[int | str | None, ...]:
    set_id, position, problem = placed
    return (
        problem_id, set_id, position, problem.external_id, problem.prompt, problem.subject, problem.level,
        json.dumps(problem.metadata) if problem.metadata else "{}",
    )  # fmt: skip


def _answer_rows(problems: Iterable[tuple[int, Problem]]) -> Iterator[tuple[int, str, list[str]]]:
    for problem_id, problem in problems:
        if problem.answer is not None:
            yield problem_id, problem.answer, list(problem.also_accepted)


_ADD_SAMPLES = text("SELECT add_samples(:jobs)")
# Ids are drawn behind the sort: the lowest is the first job's.
_INSERT_JOBS = text("""
    INSERT INTO jobs (name, policy, problem_set_id, state, config, versions, small_model, large_model, judge_model,
                      first_role, think_start, think_end, think_opened, num_problems, num_samples, cloned_from,
                      judged_job_id)
    SELECT name, policy, problem_set_id, state, config, versions, small_model, large_model, judge_model, first_role,
           think_start, think_end, think_opened, num_problems, num_samples, cloned_from, judged_job_id
    FROM ROWS FROM (jsonb_to_recordset(CAST(:jobs AS jsonb)) AS (
        name text, policy text, problem_set_id bigint, state text, config jsonb, versions jsonb, small_model text,
        large_model text, judge_model text, first_role text, think_start text, think_end text, think_opened boolean,
        num_problems integer, num_samples integer, cloned_from bigint, judged_job_id bigint
    )) WITH ORDINALITY
    ORDER BY ordinality RETURNING id
""")


class NewJob(TypedDict):
    """A job as it is stored, with its pending samples.

    num_problems: the first so many of the set are used. think: None leaves it to the first worker. cloned_from: the job
    that it is like. judged_job_id: the job that it is the judge of.
    """

    name: str
    policy: str
    problem_set_id: int
    num_problems: int
    config: JobConfig
    first_role: ModelRole
    versions: Mapping[str, Any]
    think: NotRequired[ThinkPhase | None]
    cloned_from: NotRequired[int | None]
    judged_job_id: NotRequired[int | None]


def insert_job(connection: Connection, **job: Unpack[NewJob]) -> int:
    """Store a job; returns its id."""
    return insert_jobs(connection, [job])[0]


def insert_jobs(connection: Connection, jobs: Sequence[NewJob]) -> list[int]:
    """Store some jobs, by as many statements as one; returns their ids, in order."""
    ids = sorted(connection.execute(_INSERT_JOBS, {"jobs": _json([_job_row(job) for job in jobs])}).scalars())
    connection.execute(_ADD_SAMPLES, {"jobs": ids})
    return ids


def _job_row(job: NewJob) -> dict[str, Any]:
    config, think = job["config"], job.get("think")
    return {
        "name": job["name"],
        "policy": job["policy"],
        "problem_set_id": job["problem_set_id"],
        "state": JobState.RUNNING.value,
        "config": orjson.Fragment(config.model_dump_json()),
        "versions": job["versions"],
        "small_model": config.small.name if config.small else None,
        "large_model": config.large.name if config.large else None,
        "judge_model": config.judge.name if config.judge else None,
        "first_role": job["first_role"].value,
        "think_start": think.start if think else None,
        "think_end": think.end if think else None,
        "think_opened": think.opened if think else None,
        "num_problems": job["num_problems"],
        "num_samples": config.num_samples,
        "cloned_from": job.get("cloned_from"),
        "judged_job_id": job.get("judged_job_id"),
    }


def insert_ready(
    connection: Connection,
    jobs: Sequence[ReadyJob],
    *,
    judged_job_id: int | None = None,
    tells_answers_of: int | None = None,
) -> list[int]:
    """Store jobs that passed their checks, and their problem sets where they are new; returns their ids, in order.

    judged_job_id: of a judge, the job that it judges. tells_answers_of: the set whose reference answers its prompts
    show.
    """
    new = [job.problems for job in jobs if not isinstance(job.problems, StoredSet)]
    new_ids = iter(put_problem_sets(connection, new, tells_answers_of=tells_answers_of))
    set_ids = [job.problems.id if isinstance(job.problems, StoredSet) else next(new_ids) for job in jobs]
    return insert_jobs(
        connection, [_new_job(job, set_id, judged_job_id) for job, set_id in zip(jobs, set_ids, strict=True)]
    )


def _new_job(job: ReadyJob, problem_set_id: int, judged_job_id: int | None) -> NewJob:
    return {
        "name": job.name,
        "policy": job.policy,
        "problem_set_id": problem_set_id,
        "num_problems": job.num_problems,
        "config": job.config,
        "first_role": job.first_role,
        "versions": job.versions,
        "think": job.think,
        "cloned_from": job.cloned_from,
        "judged_job_id": judged_job_id,
    }


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

"""The statements of judging: read the complete samples of a job, store its judge, say where answers are told.

A judge's prompts show reference answers. So they are read by a login that may read these, and the set of these prompts
says whose answers it tells: nothing else that those who generate can read has any in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, RowMapping, text

from pipeline.db.readable import read_config
from pipeline.db.session import copy_rows
from pipeline.db.states import COMPLETE
from pipeline.db.submissions import insert_ready
from pipeline.errors import ConfigurationError, JobError, NotFound
from pipeline.grading import Ending
from pipeline.jobs.config import FINAL_JOB_STATES, JobConfig
from pipeline.jobs.readiness import ReadyJob
from pipeline.judging.problems import CompleteSample, Place
from pipeline.problems import Problem, ProblemSet
from pipeline.samples import FinishReason


class JudgedJob(NamedTuple):
    """A job that can be judged."""

    id: int
    problem_set_id: int
    config: JobConfig


_SELECT_JUDGED = text("SELECT id, state, problem_set_id, config FROM jobs WHERE id = :job")


def get_judged_job(connection: Connection, job_id: int) -> JudgedJob:
    """Raises NotFound, and JobError for a job that still runs or is a judge itself."""
    row = connection.execute(_SELECT_JUDGED, {"job": job_id}).first()
    if row is None:
        raise NotFound.job(job_id)
    if row.state not in FINAL_JOB_STATES:
        raise JobError(job_id, f"it is {row.state}; judge it once it has ended: specthink watch {job_id}")
    config = read_config(job_id, row.config)
    if config.judging is not None:
        raise JobError(job_id, f"it is the judge of job {config.judging.job}; only answers to problems are judged")
    return JudgedJob(id=row.id, problem_set_id=row.problem_set_id, config=config)


_MAY_READ_ANSWERS = text("SELECT has_table_privilege('reference_answers', 'SELECT')")


def require_answers_readable(connection: Connection) -> None:
    """Raises ConfigurationError where this login may not read reference answers."""
    if not connection.execute(_MAY_READ_ANSWERS).scalar_one():
        raise ConfigurationError(
            "this login may not read the reference answers that a judge is shown: set SPECTHINK_LOGINS__READER to one "
            "that may, or judge without {{reference}} in --judge-template"
        )


_SAMPLES = f"""
    SELECT s.id, s.epoch, s.problem_id, s.finish_reason, s.predicted_answer, p.external_id, p.prompt, p.subject,
           p.level, p.shown, j.think_start, j.think_end, coalesce(j.think_opened, false) AS think_opened,
           coalesce((SELECT string_agg(g.text, '' ORDER BY g.segment_index) FROM segments g WHERE g.sample_id = s.id),
                    '') AS output,
           {{answers}}
    FROM samples s JOIN jobs j ON j.id = s.job_id JOIN problems p ON p.id = s.problem_id {{more}}
    WHERE s.job_id = :job AND s.state IN {COMPLETE} ORDER BY s.problem_id, s.sample_index
"""
_WITH_ANSWERS = text(
    _SAMPLES.format(
        answers="r.answer, coalesce(r.also_accepted, '{}') AS also_accepted",
        more="LEFT JOIN reference_answers r ON r.problem_id = p.id",
    )
)
_WITHOUT_ANSWERS = text(_SAMPLES.format(answers="NULL AS answer, CAST('{}' AS varchar[]) AS also_accepted", more=""))
_BATCH = 200


def stream_complete_samples(connection: Connection, job_id: int, *, with_answers: bool) -> Iterator[CompleteSample]:
    """The complete samples of a job in the order of the problems, from a server-side cursor."""
    query = _WITH_ANSWERS if with_answers else _WITHOUT_ANSWERS
    rows = connection.execution_options(yield_per=_BATCH).execute(query, {"job": job_id}).mappings()
    yield from map(_complete_sample, rows)


def _complete_sample(row: RowMapping) -> CompleteSample:
    problem = Problem(
        external_id=row["external_id"],
        prompt=row["prompt"],
        answer=row["answer"],
        also_accepted=tuple(row["also_accepted"]),
        subject=row["subject"],
        level=row["level"],
        metadata=row["shown"],
    )
    ending = Ending(
        finish_reason=FinishReason(row["finish_reason"]) if row["finish_reason"] else None,
        think_start=row["think_start"],
        think_end=row["think_end"],
        think_opened=row["think_opened"],
    )
    return CompleteSample(
        sample_id=row["id"],
        epoch=row["epoch"],
        problem_id=row["problem_id"],
        problem=problem,
        output=row["output"],
        ending=ending,
        predicted_answer=row["predicted_answer"],
    )


# The same question in another version of a set has the same answer.
_OPEN_JOBS = text("""
    SELECT j.id FROM jobs j
    WHERE j.state IN ('running', 'paused') AND j.config->>'judging' IS NULL
      AND (j.problem_set_id = :problem_set OR EXISTS (
          SELECT FROM problems p JOIN problems q ON q.prompt = p.prompt
          WHERE p.problem_set_id = j.problem_set_id AND q.problem_set_id = :problem_set))
    ORDER BY j.id
""")


def open_jobs_on(connection: Connection, problem_set_id: int) -> list[int]:
    """The jobs, judges left out, that run or are paused and ask a question of a set."""
    return list(connection.execute(_OPEN_JOBS, {"problem_set": problem_set_id}).scalars())


_SELECT_IDS = text("""
    SELECT p.external_id, p.id FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id WHERE j.id = :job
""")
_COPY_PLACES = "COPY judged_samples (job_id, sample_id, epoch, problem_id) FROM STDIN"


def insert_judge(
    connection: Connection, ready: ReadyJob, judged: JudgedJob, places: Sequence[Place], *, tells_answers: bool
) -> int:
    """Store the judge of a job, with where each sample is judged; returns its number.

    tells_answers: whether its prompts show reference answers.
    """
    assert isinstance(ready.problems, ProblemSet)
    (job_id,) = insert_ready(
        connection,
        [ready],
        judged_job_id=judged.id,
        tells_answers_of=judged.problem_set_id if tells_answers else None,
    )
    ids = {row.external_id: row.id for row in connection.execute(_SELECT_IDS, {"job": job_id})}
    copy_rows(
        connection,
        _COPY_PLACES,
        ((job_id, place.sample_id, place.epoch, place.asked_as and ids[place.asked_as]) for place in places),
    )
    return job_id


class ToldAnswers(NamedTuple):
    """The judges in whose prompts the reference answers of a set can be read."""

    problem_set_id: int
    judges: list[int]


_TOLD = """
    SELECT p.tells_answers_of AS problem_set_id, array_agg(j.id ORDER BY j.id) AS judges
    FROM problem_sets p JOIN jobs j ON j.problem_set_id = p.id
    WHERE p.tells_answers_of {of_these} GROUP BY 1 ORDER BY 1
"""
_ALL_TOLD = text(_TOLD.format(of_these="IS NOT NULL"))
_SOME_TOLD = text(_TOLD.format(of_these="= ANY(:problem_sets)"))


def told_answers(connection: Connection, problem_set_ids: Sequence[int] | None = None) -> list[ToldAnswers]:
    """The sets whose reference answers stand in judges' prompts, where those who generate can read them.

    problem_set_ids: of these; None: of all.
    """
    if problem_set_ids is None:
        rows = connection.execute(_ALL_TOLD)
    else:
        rows = connection.execute(_SOME_TOLD, {"problem_sets": [*problem_set_ids]})
    return [ToldAnswers(*row) for row in rows]

"""The statements of grading. A grade is written once per (sample, grader, version); writing it again changes nothing.

A grader that needs time marks a sample before it starts, so that one that is killed at its time limit leaves a trace
that upkeep turns into a grade of status "timeout".
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, RowMapping, text

from pipeline.db.readable import FAULTS, reading, why_unreadable
from pipeline.db.states import COMPLETE
from pipeline.db.totals import lock_graded_job, mark_stale
from pipeline.plugins import Origin
from pipeline.samples import CutSamples, FinishReason, GradeStatus

GRADING_TRIES = 2
"""A grading that does not come back is begun once more: its grader may have been killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ungraded:
    """A complete sample with all that a grader needs."""

    sample_id: int
    epoch: int
    """Of this text: a sample that is drawn again gets another one, and a grade of the old text is refused."""
    job_id: int
    grader: str
    grader_origin: Origin | None
    """The package that the job had its grader from; None: this program."""
    output: str
    reference: str | None
    also_accepted: tuple[str, ...] = ()
    """Further answers, each as right as the reference."""
    finish_reason: FinishReason | None = None
    cut_samples: CutSamples | None = None
    """How the job counts samples that were cut before they stated an answer; None: as wrong."""
    think_start: str | None = None
    think_end: str | None = None
    """How the job's texts mark the think phase; None where nobody has settled it."""
    think_opened: bool = False
    choices: tuple[str, ...] = ()
    """Texts of a multiple choice's choices."""
    fault: str | None = None
    """Why its row cannot be read; it is graded as one on which the grader broke."""


_SELECT_UNGRADED = text(f"""
    SELECT s.id AS sample_id, s.epoch, s.job_id, j.config->>'grader' AS grader,
           j.config->'plugins'->'grader' AS grader_origin, r.answer AS reference,
           coalesce(r.also_accepted, '{{}}') AS also_accepted,
           s.finish_reason, j.config->>'cut_samples' AS cut_samples,
           j.think_start, j.think_end, coalesce(j.think_opened, false) AS think_opened,
           p.shown->'choices' AS choices,
           (SELECT string_agg(g.text, '' ORDER BY g.segment_index) FROM segments g WHERE g.sample_id = s.id) AS output
    FROM samples s JOIN jobs j ON j.id = s.job_id JOIN problems p ON p.id = s.problem_id
    LEFT JOIN reference_answers r ON r.problem_id = s.problem_id
    WHERE s.id = ANY(:ids) AND s.job_id = :job AND s.state IN {COMPLETE} ORDER BY s.id
""")


def select_ungraded(connection: Connection, sample_ids: Sequence[int], *, job_id: int) -> list[Ungraded]:
    """The complete ones among some samples of a job. Graded ones are there too: they may be graded again.

    Raises DamagedRow where the job does not say by what it is graded.
    """
    rows = connection.execute(_SELECT_UNGRADED, {"ids": list(sample_ids), "job": job_id}).mappings()
    return [_ungraded(row) for row in rows]


def _ungraded(row: RowMapping) -> Ungraded:
    with reading(f"job {row['job_id']}: its grader"):
        origin = None if row["grader_origin"] is None else Origin.model_validate(row["grader_origin"])
        if not isinstance(row["grader"], str):
            raise ValueError("it is missing")
    known = {name: row[name] for name in ("sample_id", "epoch", "job_id", "grader")} | {"grader_origin": origin}
    try:
        return Ungraded(
            **{
                **row,
                **known,
                "output": row["output"] or "",
                "also_accepted": tuple(row["also_accepted"]),
                "choices": tuple(map(str, row["choices"] or ())),
                "cut_samples": row["cut_samples"] and CutSamples(row["cut_samples"]),
                "finish_reason": FinishReason(row["finish_reason"]) if row["finish_reason"] else None,
            }
        )
    except FAULTS as error:
        return Ungraded(**known, output="", reference=None, fault=why_unreadable(error))


_BEGIN = text("""
    INSERT INTO grades (sample_id, grader, grader_version, status)
    SELECT id, :grader, :version, 'running' FROM samples WHERE id = :sample AND epoch = :epoch FOR KEY SHARE
    ON CONFLICT (sample_id, grader, grader_version)
    DO UPDATE SET status = 'running', started_at = clock_timestamp(), num_tries = grades.num_tries + 1
    WHERE grades.status = 'running'
      AND (grades.started_at <= clock_timestamp() - :patience OR grades.started_at > clock_timestamp())
      AND (CAST(:tries AS int) IS NULL OR grades.num_tries < :tries)
       OR grades.status IN ('timeout', 'error') AND grades.num_tries = 0
    RETURNING sample_id
""")


def begin_grade(
    connection: Connection,
    *,
    sample_id: int,
    epoch: int,
    grader: str,
    version: str,
    patience: dt.timedelta = dt.timedelta(0),
    tries: int | None = None,
) -> bool:
    """Mark that this grader starts on this text of a sample; False where its grade is there, or the text gone.

    patience: False, too, where somebody began so short a time ago and may still be at it. A time that is yet to come is
    of before the clock was set back. tries: and where it was begun so often; else a formula that kills its grader would
    be begun again each time before it is found to be late.
    """
    values = {
        "sample": sample_id, "epoch": epoch, "grader": grader, "version": version, "patience": patience, "tries": tries,
    }  # fmt: skip
    return connection.execute(_BEGIN, values).first() is not None


_LOCK_TEXT = text(f"""
    SELECT id FROM samples WHERE id = :sample AND epoch = :epoch AND state IN {COMPLETE} FOR NO KEY UPDATE
""")
_END = text("""
    UPDATE grades SET status = :status, score = :score, predicted_answer = :predicted, detail = :detail,
                      graded_at = clock_timestamp()
    WHERE sample_id = :sample AND grader = :grader AND grader_version = :version AND status = 'running'
""")
_MARK_GRADED = text("""
    UPDATE samples SET state = 'graded', score = :score, predicted_answer = :predicted,
                       ended_at = coalesce(ended_at, clock_timestamp())
    WHERE id = :sample
""")


def end_grade(
    connection: Connection,
    *,
    sample_id: int,
    epoch: int,
    grader: str,
    version: str,
    status: GradeStatus,
    score: float | None,
    predicted_answer: str | None,
    detail: str | None,
) -> bool:
    """Store a grade and take it over into the sample; False where it is there already, or the text gone.

    Locks in the order of everybody who has to do with both: the job, the sample, its grade.
    """
    values = {
        "sample": sample_id,
        "grader": grader,
        "version": version,
        "status": status.value,
        "score": score,
        "predicted": predicted_answer,
        "detail": detail,
    }
    graded_job = lock_graded_job(connection, sample_id)
    if connection.execute(_LOCK_TEXT, {"sample": sample_id, "epoch": epoch}).first() is None:
        return False
    if connection.execute(_END, values).rowcount == 0:
        return False
    if graded_job is not None:
        mark_stale(connection, graded_job)
    connection.execute(_MARK_GRADED, values)
    return True


class TextGrade(NamedTuple):
    """What a grader found of a sample's text; epoch: of this text."""

    sample_id: int
    epoch: int
    status: GradeStatus
    score: float | None
    predicted_answer: str | None
    detail: str | None


_STORE = text("""
    WITH given AS (
        SELECT * FROM unnest(
            CAST(:ids AS bigint[]), CAST(:epochs AS integer[]), CAST(:statuses AS text[]), CAST(:scores AS float8[]),
            CAST(:predicted AS text[]), CAST(:details AS text[])
        ) AS g(id, epoch, status, score, predicted_answer, detail)
    ),
    mine AS (
        SELECT g.* FROM samples s JOIN given g ON g.id = s.id AND g.epoch = s.epoch WHERE s.state = 'finished'
        ORDER BY s.id FOR NO KEY UPDATE OF s
    ),
    stored AS (
        INSERT INTO grades (sample_id, grader, grader_version, status, score, predicted_answer, detail, graded_at)
        SELECT id, :grader, :version, status, score, predicted_answer, detail, clock_timestamp() FROM mine
        ON CONFLICT (sample_id, grader, grader_version) DO NOTHING
        RETURNING sample_id, score, predicted_answer
    )
    UPDATE samples s SET state = 'graded', score = stored.score, predicted_answer = stored.predicted_answer,
                         ended_at = coalesce(s.ended_at, clock_timestamp())
    FROM stored WHERE s.id = stored.sample_id
    RETURNING s.id
""")


def store_grades(connection: Connection, grades: Sequence[TextGrade], *, grader: str, version: str) -> set[int]:
    """Store grades that took no time, at once and without a mark before; returns the ids of the samples graded so.

    Left out are samples that are graded already, those whose grading somebody began, and those with another text by
    now. No job is locked, unlike in end_grade: one with a sample that is not graded is not counted.
    """
    values = {
        "ids": [grade.sample_id for grade in grades],
        "epochs": [grade.epoch for grade in grades],
        "statuses": [grade.status.value for grade in grades],
        "scores": [grade.score for grade in grades],
        "predicted": [grade.predicted_answer for grade in grades],
        "details": [grade.detail for grade in grades],
        "grader": grader,
        "version": version,
    }
    return set(connection.execute(_STORE, values).scalars())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningGrade:
    """A grading that was begun and has not come back."""

    sample_id: int
    started_at: dt.datetime


_RUNNING = text("SELECT sample_id, started_at FROM grades WHERE status = 'running' AND num_tries >= :tries")


def running_grades(connection: Connection, *, tries: int) -> list[RunningGrade]:
    """Those that were begun so often; a first one may have been lost with its grader. Index: ix_grades_running."""
    return [RunningGrade(**row) for row in connection.execute(_RUNNING, {"tries": tries}).mappings()]


# The samples are locked before their grades, as in end_grade; one that is being graded just now is passed over.
_TIME_OUT = text("""
    WITH seen AS (
        SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:started AS timestamptz[])) AS g(sample_id, started_at)
    ),
    due AS (
        SELECT s.id FROM samples s WHERE s.id = ANY(:ids) ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
    ),
    late AS (
        UPDATE grades g SET status = 'timeout', graded_at = clock_timestamp(), detail = 'ran past the time limit'
        FROM due, seen WHERE g.sample_id = due.id AND g.status = 'running'
          AND seen.sample_id = g.sample_id AND seen.started_at = g.started_at
        RETURNING g.sample_id
    )
    UPDATE samples s SET state = 'graded', ended_at = coalesce(s.ended_at, clock_timestamp())
    FROM late WHERE s.id = late.sample_id AND s.state = 'finished'
    RETURNING s.id
""")


def time_out_grades(connection: Connection, *, late: Sequence[RunningGrade]) -> list[int]:
    """Turn gradings that ran too long, as somebody saw, into grades of status timeout; their samples stay unscored.

    Those that ended meanwhile or were begun again are left out.
    """
    if not late:
        return []
    values = {"ids": [grade.sample_id for grade in late], "started": [grade.started_at for grade in late]}
    return list(connection.execute(_TIME_OUT, values).scalars())


_COMPLETE = text(f"""
    SELECT s.id, EXISTS (
        SELECT FROM grades g WHERE g.sample_id = s.id AND g.grader = :grader AND g.grader_version = :version
                               AND g.status <> 'running' AND g.num_tries > 0) AS is_graded
    FROM samples s WHERE s.job_id = :job AND s.state IN {COMPLETE} ORDER BY s.id
""")


_REOPEN = text("SELECT reopen_grades(:job, :grader, :version)")


def reopen_grades(connection: Connection, job_id: int, *, grader: str, version: str) -> int:
    """Let gradings of a job that timed out or broke be tried again; returns how many. Their grades stay until then."""
    return int(connection.execute(_REOPEN, {"job": job_id, "grader": grader, "version": version}).scalar_one())


class Gradable(NamedTuple):
    """A job's complete samples: ids of those without a grade by a grader's version, and how many have one."""

    sample_ids: list[int]
    num_graded: int


def gradable_samples(connection: Connection, job_id: int, *, grader: str, version: str) -> Gradable:
    rows = connection.execute(_COMPLETE, {"job": job_id, "grader": grader, "version": version}).all()
    without = [row.id for row in rows if not row.is_graded]
    return Gradable(sample_ids=without, num_graded=len(rows) - len(without))

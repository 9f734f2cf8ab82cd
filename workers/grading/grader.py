"""Grading in prefork processes that Celery kills at the hard time limit."""

from __future__ import annotations

import datetime as dt
import time
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as DbEngine

from pipeline.db.grades import (
    GRADING_TRIES,
    TextGrade,
    Ungraded,
    begin_grade,
    end_grade,
    select_ungraded,
    store_grades,
)
from pipeline.db.session import transaction
from pipeline.errors import GradingError, ServiceUnavailable
from pipeline.grading import Ending, Grade, Grader, grade_output, make_grader
from pipeline.plugins import Origin, PluginGroup, check_same_version, origin_of
from pipeline.samples import CutSamples, GradeStatus
from workers.broker.messages import SamplesMessage

log = structlog.get_logger()


@cache
def _grader(name: str, origin: Origin | None) -> Grader:
    """A job's grader. Raises ConfigurationError where its package or file is not what the job was submitted with."""
    if origin is not None:
        check_same_version(origin, origin_of(PluginGroup.GRADERS, name))
    return make_grader(name)


class SampleGrader:
    """Grades samples, one at a time, in one process.

    A grade that Postgres does not take (its disk is full, say) is kept, and stored before the next sample is begun.
    Otherwise the same sample would be begun again, and be taken for one that kills its grader.
    """

    def __init__(self, db_engine: DbEngine, *, time_limit_s: float) -> None:
        """time_limit_s: of a message; a grading that began a shorter time ago is another process's."""
        self._db_engine = db_engine
        self._time_limit_s = time_limit_s
        self._kept: tuple[Grader, TextGrade] | None = None

    def grade(self, message: SamplesMessage) -> str:
        """Grade the complete samples that a message names; those already graded by this grader's version are left
        alone.

        Once a quarter of the time limit is used up, the rest is left to be published again: a slow answer must not cost
        those behind it a try. Raises ServiceUnavailable where Postgres does not take a grade.
        """
        stop_at = time.monotonic() + self._time_limit_s / 4
        self._store_kept()
        with transaction(self._db_engine) as connection:
            ungraded = select_ungraded(connection, list(message.epochs), job_id=message.job_id)
            done = _grade_instantly(connection, ungraded)
        graded = len(done)
        for sample in ungraded:
            if sample.sample_id in done:
                continue
            graded += self._grade_one(sample)
            if time.monotonic() > stop_at:
                break
        return f"{graded} of {len(message.samples)} graded"

    def _grade_one(self, sample: Ungraded) -> bool:
        grader = _grader(sample.grader, sample.grader_origin)
        with transaction(self._db_engine) as connection:
            if not begin_grade(
                connection,
                sample_id=sample.sample_id,
                epoch=sample.epoch,
                grader=grader.name,
                version=grader.version,
                patience=dt.timedelta(seconds=self._time_limit_s),
                tries=GRADING_TRIES,
            ):
                return False
        self._kept = grader, _run(grader, sample)
        return self._store_kept()

    def _store_kept(self) -> bool:
        """Whether there is a grade to store, and Postgres had none of that text."""
        if self._kept is None:
            return False
        (grader, grade), self._kept = self._kept, None
        try:
            with transaction(self._db_engine) as connection:
                return end_grade(connection, **grade._asdict(), grader=grader.name, version=grader.version)
        except ServiceUnavailable:
            self._kept = grader, grade
            raise


def _grade_instantly(connection: Connection, ungraded: Sequence[Ungraded]) -> set[int]:
    """Grade those samples of a job that nobody has graded or begun to, where its grader needs no time; their ids."""
    if not ungraded or not (grader := _grader(ungraded[0].grader, ungraded[0].grader_origin)).is_instant:
        return set()
    grades = [_run(grader, sample) for sample in ungraded]
    return store_grades(connection, grades, grader=grader.name, version=grader.version)


def _grade(grader: Grader, sample: Ungraded) -> Grade:
    if sample.fault is not None:
        raise GradingError(f"what is stored of it cannot be read: {sample.fault}")
    ending = Ending(
        finish_reason=sample.finish_reason,
        think_start=sample.think_start,
        think_end=sample.think_end,
        think_opened=sample.think_opened,
    )
    return grade_output(
        grader,
        sample.output,
        (sample.reference, *sample.also_accepted),
        ending=ending,
        cut_samples=sample.cut_samples or CutSamples.WRONG,
        choices=sample.choices,
    )


def _run(grader: Grader, sample: Ungraded) -> TextGrade:
    """A grader that breaks leaves its sample unscored, which is not wrong.

    Of an error that is not ours only the class and the place are told: its text may hold the reference answer.
    """
    try:
        status, grade = GradeStatus.DONE, _grade(grader, sample)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        detail = str(error) if isinstance(error, GradingError) else f"{type(error).__name__} at {where}"
        log.error("grader broke", sample_id=sample.sample_id, grader=grader.name, where=where, reason=detail)
        status, grade = GradeStatus.ERROR, Grade(score=None, predicted_answer=None, detail=detail)
    return TextGrade(
        sample_id=sample.sample_id,
        epoch=sample.epoch,
        status=status,
        score=grade.score,
        predicted_answer=grade.predicted_answer,
        detail=grade.detail,
    )

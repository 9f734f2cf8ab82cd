"""Grading again: a sample whose grader was killed in it gets its grade after all, by a command."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery import Celery
from sqlalchemy import Engine, text

from pipeline.db.grades import GRADING_TRIES, begin_grade
from pipeline.db.invariants import check_job
from pipeline.db.session import transaction
from pipeline.errors import ServiceUnavailable
from pipeline.grading import make_grader
from tests.integration.lapses import time_out_late
from tests.integration.rows import (
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_worker,
    refuse_rows,
)
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.grading.grader import SampleGrader
from workers.grading.regrade import grade_again

NO_TIME = dt.timedelta(0)


def send_again(db_engine: Engine, job: int) -> str:
    app = Celery("again", broker="memory://", set_as_current=False)
    return grade_again(db_engine, Publisher(app), job)


def begin_in_vain(db_engine: Engine, message: SamplesMessage) -> None:
    """A grader begins, as often as it is let, and never comes back."""
    grader = make_grader("math")
    ((sample, epoch),) = message.samples
    with transaction(db_engine) as connection:
        for _ in range(GRADING_TRIES):
            assert begin_grade(
                connection, sample_id=sample, epoch=epoch, grader=grader.name, version=grader.version,
                tries=GRADING_TRIES,
            )  # fmt: skip
    with transaction(db_engine) as connection:
        time_out_late(connection, age=NO_TIME, tries=GRADING_TRIES)


def a_right_sample(db_engine: Engine) -> SamplesMessage:
    """The message of a complete sample in a job of its own."""
    with transaction(db_engine) as connection:
        job = add_job(connection, add_problem_set(connection, 1))
        (sample,) = add_samples(connection, job, [{"state": "finished", "finish_reason": "eos"}])
        worker, engine = add_worker(connection, "small"), add_engine(connection, "S")
        add_segment(connection, sample, 0, "small", "it is \\boxed{0}", worker_id=worker, engine_id=engine)
        epoch = connection.execute(text("SELECT epoch FROM samples WHERE id = :id"), {"id": sample}).scalar_one()
    return SamplesMessage(job_id=job, samples=[(sample, epoch)])


def a_sample_that_killed_its_grader(db_engine: Engine) -> SamplesMessage:
    """The same, and its grading timed out."""
    message = a_right_sample(db_engine)
    begin_in_vain(db_engine, message)
    return message


def grades(db_engine: Engine) -> list[tuple[object, ...]]:
    with transaction(db_engine) as connection:
        query = "SELECT g.status, s.state, s.score FROM grades g JOIN samples s ON s.id = g.sample_id"
        return [tuple(row) for row in connection.execute(text(query))]


def violations(db_engine: Engine, job: int) -> set[str]:
    with transaction(db_engine) as connection:
        return {violation.what for violation in check_job(connection, job)}


def test_sample_whose_grading_timed_out_is_graded_by_a_command(db_engine: Engine) -> None:
    message = a_sample_that_killed_its_grader(db_engine)
    before = violations(db_engine, message.job_id)
    assert grades(db_engine) == [("timeout", "graded", None)]
    grader = SampleGrader(db_engine, time_limit_s=20)
    assert grader.grade(message) == "0 of 1 graded", "not by itself: it would kill again"
    assert send_again(db_engine, message.job_id).startswith("1 samples sent to the graders")
    assert grades(db_engine) == [("timeout", "graded", None)], "until it is graded"
    assert grader.grade(message) == "1 of 1 graded"
    assert grades(db_engine) == [("done", "graded", 1.0)]
    assert violations(db_engine, message.job_id) == before
    assert send_again(db_engine, message.job_id).startswith("0 samples sent"), "once"


def test_sample_that_kills_its_grader_again_times_out_again(db_engine: Engine) -> None:
    message = a_sample_that_killed_its_grader(db_engine)
    assert send_again(db_engine, message.job_id).startswith("1 samples sent")
    begin_in_vain(db_engine, message)
    assert grades(db_engine) == [("timeout", "graded", None)]
    assert SampleGrader(db_engine, time_limit_s=20).grade(message) == "0 of 1 graded"


@contextmanager
def no_room_for_ends(db_engine: Engine) -> Iterator[None]:
    """A disk that has room for the beginning of a grading, and none for its end."""
    with transaction(db_engine) as connection:
        when, message = "new.status = 'done'", "could not extend file"
        refuse_rows(connection, "UPDATE ON grades", when=when, condition="disk_full", message=message)
    yield
    with transaction(db_engine) as connection:
        connection.execute(text("DROP FUNCTION refuse_rows CASCADE"))


def test_grade_that_postgres_does_not_take_is_kept_and_costs_no_try(db_engine: Engine) -> None:
    message, grader = a_right_sample(db_engine), SampleGrader(db_engine, time_limit_s=0)
    with no_room_for_ends(db_engine):
        for _ in range(GRADING_TRIES + 2):  # upkeep publishes it again and again
            with pytest.raises(ServiceUnavailable, match="could not extend file"):
                grader.grade(message)
        with transaction(db_engine) as connection:
            assert not time_out_late(connection, age=NO_TIME, tries=GRADING_TRIES)
        assert grades(db_engine) == [("running", "finished", None)]
    grader.grade(message)
    assert grades(db_engine) == [("done", "graded", 1.0)]


def test_kept_grade_is_stored_before_another_sample_is_begun(db_engine: Engine) -> None:
    first, second = a_right_sample(db_engine), a_right_sample(db_engine)
    grader = SampleGrader(db_engine, time_limit_s=20)
    with no_room_for_ends(db_engine):
        for message in (first, second):
            with pytest.raises(ServiceUnavailable):
                grader.grade(message)
        assert grades(db_engine) == [("running", "finished", None)], "the second is not begun"
    assert grader.grade(second) == "1 of 1 graded"
    assert grades(db_engine) == [("done", "graded", 1.0)] * 2

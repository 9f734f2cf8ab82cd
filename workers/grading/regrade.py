"""Grading again: no generation, only messages to the graders."""

from __future__ import annotations

from sqlalchemy import Engine as DbEngine

from pipeline.db.grades import gradable_samples, reopen_grades
from pipeline.db.job_configs import get_job_config
from pipeline.db.report_queries import select_progress
from pipeline.db.runnable import select_runnable
from pipeline.db.session import transaction
from pipeline.errors import NotFound, ServiceUnavailable
from pipeline.grading import make_grader
from workers.broker.publish import Publisher


def grade_again(db_engine: DbEngine, publisher: Publisher, job_id: int) -> str:
    """Send the complete samples of a job that have no grade by the present version of its grader to the graders, and
    those whose grading timed out or broke.

    A message that Redis loses, or a grader that dies, leaves its samples with their former grades: called again, this
    finds them. Raises NotFound where the job has no complete sample; ServiceUnavailable where Redis does not take them.
    """
    with transaction(db_engine) as connection:
        select_progress(connection, [job_id])  # raises where there is no such job
        grader = make_grader(get_job_config(connection, job_id).grader)
        reopen_grades(connection, job_id, grader=grader.name, version=grader.version)
        gradable = gradable_samples(connection, job_id, grader=grader.name, version=grader.version)
        samples = select_runnable(connection, gradable.sample_ids)
    if not samples and not gradable.num_graded:
        raise NotFound(f"job {job_id} has no complete samples to grade")
    sent = publisher.publish_grading(job_id, samples)
    if sent < len(samples):
        raise ServiceUnavailable(f"Redis took {sent} of {len(samples)} samples; the same command sends the rest")
    graded = f"{gradable.num_graded} have a grade by {grader.name} {grader.version} already"
    return f"{sent} samples sent to the graders, {graded}"

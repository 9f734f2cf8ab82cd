"""Grading again: no generation, only messages to the graders."""

from __future__ import annotations

from pipeline.db.grading import gradable_samples
from pipeline.db.hops import select_runnable
from pipeline.db.session import transaction
from pipeline.errors import NotFound
from pipeline.settings import Settings
from workers.boot import open_base


def grade_again(settings: Settings, job_id: int) -> str:
    """Send every complete sample of a job to the graders. Raises NotFound where there is none."""
    base = open_base(settings)
    with transaction(base.db_engine) as connection:
        ids = gradable_samples(connection, job_id)
        samples = select_runnable(connection, ids)
    if not samples:
        raise NotFound(f"job {job_id} has no complete samples to grade")
    base.publisher.publish_grading(job_id, samples)
    return f"{len(samples)} samples sent to the graders"

"""The Celery tasks: thin. Each checks its message and calls the part of this process that does the work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
import structlog
from celery import Celery, Task
from pydantic import BaseModel, ValidationError
from sqlalchemy import Engine as DbEngine

from pipeline.db.report_queries import select_progress
from pipeline.db.session import transaction
from pipeline.db.upkeep_statements import MOST_FOLLOWED, mark_followed
from pipeline.errors import NotFound, ServiceUnavailable
from pipeline.results.reports import JobProgress
from workers.broker.forms import accept
from workers.broker.messages import JobMessage, SamplesMessage
from workers.broker.publish import FOLLOW

log = structlog.get_logger()

PROGRESS_INTERVAL_S = 1.0
"""Between two signs of a job's progress in Flower."""

Message = TypeVar("Message", bound=BaseModel)


def _checked(kind: type[Message], message: object, *, task: str) -> Message | None:
    """The message, or None where it is not one: it is logged and dropped, and the worker goes on."""
    try:
        return kind.model_validate_json(orjson.dumps(message))  # JSON mode: strict, and lists may be tuples
    except (ValidationError, orjson.JSONEncodeError) as error:
        log.warning("message refused", task=task, reason=type(error).__name__)
        return None


def add_samples_task(app: Celery, name: str, handle: Callable[[SamplesMessage], str], **options: Any) -> None:
    """Add a task that hands the samples of its message to a part of this process; no other app gets it (shared)."""
    accept(name, SamplesMessage)

    @app.task(name=name, shared=False, **options)
    def run(message: object) -> str:
        checked = _checked(SamplesMessage, message, task=name)
        if checked is None:
            return "refused"
        try:
            return handle(checked)
        except ServiceUnavailable as error:  # upkeep publishes the samples again
            log.warning("message put off", task=name, reason=str(error))
            return "Postgres is away"


def add_follow_task(app: Celery, db_engine: DbEngine, stop: threading.Event) -> None:
    """Add the task that lives as long as a job and shows its progress in Flower."""
    accept(FOLLOW, JobMessage)

    @app.task(name=FOLLOW, bind=True, shared=False)
    def follow(self: Task, message: object) -> str:
        checked = _checked(JobMessage, message, task=FOLLOW)
        return _follow(self, db_engine, checked.job_id, stop) if checked else "refused"


def _follow(task: Task, db_engine: DbEngine, job_id: int, stop: threading.Event) -> str:
    """Show progress until the job or this process ends, or newer jobs are shown; nothing while Postgres is away."""
    line, is_away, is_shown = "", False, True
    while True:
        progress: JobProgress | None = None
        try:
            progress, is_shown = _progress(db_engine, job_id)
        except NotFound as error:
            return str(error)
        except ServiceUnavailable as error:
            if not is_away:
                log.warning("progress not read", job_id=job_id, reason=str(error))
        is_away = progress is None
        line = progress_line(progress) if progress else line
        if (progress and progress.is_final) or stop.wait(PROGRESS_INTERVAL_S):
            return line
        if not is_shown:
            return f"{line}; no longer shown, since {MOST_FOLLOWED} newer jobs run: specthink watch {job_id}"
        if progress:
            task.send_event("task-progress", done=progress.samples_done, total=progress.samples_total, result=line)


def _progress(db_engine: DbEngine, job_id: int) -> tuple[JobProgress, bool]:
    """A job's progress, and whether it is one of those that are shown."""
    with transaction(db_engine) as connection:
        is_shown = mark_followed(connection, job_id)
        [progress] = select_progress(connection, [job_id])
    return progress, is_shown


def progress_line(progress: JobProgress) -> str:
    """A job's progress for people, as Flower's result column shows it."""
    share = 100 * progress.samples_done // progress.samples_total if progress.samples_total else 100
    parts = [
        f"{progress.state.value}: {progress.samples_done}/{progress.samples_total} samples ({share} %)",
        f"{progress.takeovers} takeovers",
    ]
    parts += [f"{progress.failed} failed"] if progress.failed else []
    parts += [progress.waiting_for] if progress.waiting_for else []
    return ", ".join(parts)

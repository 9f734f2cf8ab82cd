"""Tasks while Postgres is away: one line each, no traceback, and nothing is lost: upkeep publishes again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from celery import Celery
from pydantic import SecretStr
from sqlalchemy import Engine
from structlog.testing import capture_logs

from pipeline.db.session import open_database
from workers.broker.app import make_app
from workers.broker.publish import FOLLOW, GRADE
from workers.broker.tasks import add_follow_task, add_samples_task
from workers.grading.grader import SampleGrader


@pytest.fixture
def nowhere() -> Iterator[Engine]:
    engine = open_database(SecretStr("postgresql://nobody@127.0.0.1:1/nothing"))
    yield engine
    engine.dispose()


@pytest.fixture
def app() -> Celery:
    return make_app(SecretStr("redis://127.0.0.1:1/0"))


def test_grading_is_put_off(app: Celery, nowhere: Engine) -> None:
    add_samples_task(app, GRADE, lambda message: SampleGrader(nowhere, time_limit_s=1.0).grade(message))
    with capture_logs() as logs:
        assert app.tasks[GRADE].run({"version": 1, "job_id": 1, "samples": [[1, 1]]}) == "Postgres is away"
    [line] = logs
    assert (line["event"], line["log_level"], line["task"]) == ("message put off", "warning", GRADE)
    assert "Postgres cannot be reached" in line["reason"]
    assert "exc_info" not in line


def test_following_waits_and_warns_once(app: Celery, nowhere: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.broker.tasks.PROGRESS_INTERVAL_S", 0.01)
    stop = threading.Event()
    add_follow_task(app, nowhere, stop)
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    with capture_logs() as logs:
        app.tasks[FOLLOW].run({"version": 1, "job_id": 7})
    timer.join()
    [line] = logs
    assert (line["event"], line["log_level"], line["job_id"]) == ("progress not read", "warning", 7)

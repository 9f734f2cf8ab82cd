"""A database clock that was set back hides nothing: times that are yet to come are times of before.

Here all that is stored is moved into the time to come instead. That a clock that really jumps costs nobody a lease is
seen in the matrix of faults (``make chaos``), and with a clock of their own in the tests of upkeep's rounds.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.db import migrate
from pipeline.db.claims import defer_samples
from pipeline.db.rollups import RETRY_AFTER, Rollup, postpone_rollup, refreshable_rollups
from pipeline.db.session import transaction
from pipeline.db.totals import mark_stale, uncounted_jobs
from pipeline.db.upkeep_statements import overdue_samples, suspects_to_try, unfollowed_jobs
from pipeline.db.worker_leases import WorkerCounters, renew_worker
from tests.integration.rows import add_job, add_problem_set, add_samples, add_worker, count_ended
from tests.integration.test_migrations import is_due, make_due
from tests.integration.test_protocol import (
    TTL,
    admit_all,
    begin,
    claim,
    finish_one,
    make_job,
    make_worker,
)
from tests.integration.test_rollups import make_job as make_counted_job

pytestmark = pytest.mark.integration

AGE = dt.timedelta(seconds=10)
STEP = dt.timedelta(hours=1)
TIMES = (
    "UPDATE samples SET published_at = published_at + :step, not_before = not_before + :step",
    "UPDATE grades SET started_at = started_at + :step",
    "UPDATE workers SET renewed_at = renewed_at + :step, expires_at = expires_at + :step",
    "UPDATE rollups SET changed_at = changed_at + :step",
    "UPDATE job_totals SET stale_at = stale_at + :step",
    "UPDATE jobs SET followed_at = followed_at + :step",
)


@pytest.fixture
def connection(db_engine: Engine) -> Iterator[Connection]:
    with transaction(db_engine) as connection:
        yield connection


def set_clock_back(connection: Connection) -> None:
    for statement in TIMES:
        connection.execute(text(statement), {"step": STEP})


def test_sample_whose_message_was_lost_is_published_again(connection: Connection) -> None:
    make_job(connection)
    make_worker(connection)
    admitted = admit_all(connection)
    assert overdue_samples(connection, age=AGE) == [], "its message may yet arrive"
    set_clock_back(connection)
    assert {sample.sample_id for sample in overdue_samples(connection, age=AGE)} == set(admitted)
    assert overdue_samples(connection, age=AGE) == [], "its message may yet arrive"


def test_sample_that_was_delayed_can_be_claimed_as_soon_as_it_is_published(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    worker = make_worker(connection)
    [sample] = claim(connection, worker, admit_all(connection))
    defer_samples(connection, worker_id=worker, epochs={sample.sample_id: sample.epoch}, error="full", max_attempts=99)
    delayed = text("UPDATE samples SET not_before = clock_timestamp() + interval '1 min'")
    connection.execute(delayed)
    assert overdue_samples(connection, age=AGE) == []
    set_clock_back(connection)
    [published] = overdue_samples(connection, age=AGE)
    assert len(claim(connection, worker, {published.sample_id: published.epoch})) == 1


def test_suspect_is_tried(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    make_worker(connection)
    admit_all(connection)
    connection.execute(text("UPDATE samples SET num_rescues = 2"))
    assert suspects_to_try(connection, age=AGE) == []
    set_clock_back(connection)
    assert len(suspects_to_try(connection, age=AGE)) == 1
    assert suspects_to_try(connection, age=AGE) == []


def test_grading_that_was_lost_is_begun_again(connection: Connection) -> None:
    ungraded = finish_one(connection)
    assert begin(connection, ungraded, TTL)
    set_clock_back(connection)
    assert begin(connection, ungraded, TTL)
    assert not begin(connection, ungraded, TTL), "somebody may be at it"


def test_life_goes_on_under_the_lease_that_was_renewed_before(connection: Connection) -> None:
    worker = make_worker(connection)
    before = renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters())
    set_clock_back(connection)
    after = renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters(), since=before + STEP)
    renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters(), since=after)


def test_worker_that_has_not_renewed_since_keeps_nobody_from_migrating(db_engine: Engine) -> None:
    make_due(db_engine)
    with transaction(db_engine) as connection:
        add_worker(connection, "small", model="S")
        set_clock_back(connection)
    migrate.upgrade(db_engine)
    assert not is_due(db_engine)


def test_count_that_was_postponed_is_tried(db_engine: Engine) -> None:
    with db_engine.connect() as connection:
        job, _ = make_counted_job(connection, seed=1, states=("graded",))
        postponed = Rollup(job, 0)
        postpone_rollup(connection, postponed, by=RETRY_AFTER)
        assert postponed not in refreshable_rollups(connection, quiet=AGE, limit=100)
        set_clock_back(connection)
        assert postponed in refreshable_rollups(connection, quiet=AGE, limit=100)


def test_ended_job_whose_grades_changed_is_counted(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection, 1), state="completed")
    add_samples(connection, job, [{"state": "graded"}])
    assert count_ended(connection) == [job]
    mark_stale(connection, job)
    assert uncounted_jobs(connection, quiet=AGE, limit=10) == []
    set_clock_back(connection)
    assert uncounted_jobs(connection, quiet=AGE, limit=10) == [job]


def test_job_is_shown(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection, 1))
    assert unfollowed_jobs(connection, age=AGE) == [job]
    assert unfollowed_jobs(connection, age=AGE) == []
    set_clock_back(connection)
    assert unfollowed_jobs(connection, age=AGE) == [job]

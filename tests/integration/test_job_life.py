"""The commands of a job's life on a real database: what each changes, leaves, refuses, and what is counted then."""

from __future__ import annotations

import datetime as dt
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text

from pipeline import Client, Problem, ProblemSet
from pipeline.cli import main
from pipeline.db import job_control as control
from pipeline.db.claims import ClaimedSample
from pipeline.db.removal import remove_job
from pipeline.db.session import open_database, transaction
from pipeline.db.tables import METADATA
from pipeline.db.upkeep_statements import (
    MOST_FOLLOWED,
    admit_samples,
    close_jobs,
    mark_first_claims,
    mark_followed,
    overdue_samples,
    unfollowed_jobs,
)
from pipeline.db.worker_leases import WorkerCounters, renew_worker
from pipeline.embedded import Connections
from pipeline.errors import ConfigurationError, JobError, NotFound, ServiceUnavailable
from pipeline.jobs.config import JobState
from pipeline.logins import DatabaseRole
from pipeline.problems import content_sha256
from pipeline.samples import SampleState
from tests.conftest import TEMPLATE, with_database
from tests.integration.rows import (
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_step,
    add_worker,
    count_ended,
    every,
    one,
)
from tests.integration.test_protocol import admit_all, claim, commit, make_job, make_worker, written
from tests.integration.waiting import await_blocked
from workers.broker.tasks import progress_line

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def life_engine(servers: Connections) -> Iterator[Engine]:
    """One migrated database for all tests here."""
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE life TEMPLATE {TEMPLATE}"))
    owner.dispose()
    db_engine = open_database(with_database(servers.database_url, "life"))
    yield db_engine
    db_engine.dispose()


def submitter_url(servers: Connections) -> str:
    """The database for people who submit and control jobs."""
    return with_database(servers.role_urls[DatabaseRole.SUBMITTER], "life").get_secret_value()


@pytest.fixture(scope="module")
def client(servers: Connections, life_engine: Engine) -> Iterator[Client]:
    with Client.connect(database_url=submitter_url(servers)) as client:
        yield client


@pytest.fixture(autouse=True)
def connection(life_engine: Engine) -> Iterator[Connection]:
    """Commits each statement at once, so that the client sees it; the database is empty when the test begins."""
    with life_engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        tables = ", ".join(METADATA.tables.keys() - {"schema_objects"})  # that one is of the schema, no data
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
        yield connection


def states(connection: Connection, job: int) -> dict[str, int]:
    rows = every(connection, "SELECT state, count(*) AS n FROM samples WHERE job_id = :job GROUP BY state", job=job)
    return {row["state"]: row["n"] for row in rows}


def waiting_for(connection: Connection, job: int) -> str | None:
    row = one(connection, "SELECT waiting_for FROM job_progress WHERE job_id = :job", job=job)
    return row["waiting_for"]


# The first claim


def first_claim(connection: Connection, job: int) -> tuple[dt.datetime | None, dt.datetime | None]:
    """As the job says it, and as the events do."""
    row = one(
        connection,
        """SELECT j.first_claimed_at,
                  (SELECT min(at) FROM events WHERE job_id = j.id AND to_state IN ('drafting', 'assisting')) AS at
           FROM jobs j WHERE j.id = :job""",
        job=job,
    )
    return row["first_claimed_at"], row["at"]


def test_first_claim_is_marked_even_where_the_jobs_row_was_locked_meanwhile(
    life_engine: Engine, connection: Connection
) -> None:
    job, worker = make_job(connection), make_worker(connection)
    published = admit_all(connection)
    with transaction(life_engine) as follower:
        follower.execute(text("SELECT 1 FROM jobs WHERE id = :job FOR UPDATE"), {"job": job})
        assert claim(connection, worker, published)  # does not wait
        mark_first_claims(connection)  # nor does upkeep
        assert first_claim(connection, job)[0] is None
    mark_first_claims(connection)
    marked, at = first_claim(connection, job)
    assert marked is not None
    assert marked == at


def test_job_that_ends_before_upkeep_looks_has_its_first_claim(client: Client, connection: Connection) -> None:
    job, worker = make_job(connection, num_problems=2), make_worker(connection)
    commit(
        connection,
        worker,
        *(written(s, SampleState.FINISHED) for s in claim(connection, worker, admit_all(connection))),
    )
    graded = text("UPDATE samples SET state = 'graded', score = 1, ended_at = now() WHERE job_id = :job")
    connection.execute(graded, {"job": job})
    assert close_jobs(connection) == {job: JobState.COMPLETED}
    cancelled = drafted(connection)[0]
    client.cancel(cancelled)
    unclaimed = make_job(connection)
    client.cancel(unclaimed)
    for ended in (job, cancelled):
        marked, at = first_claim(connection, ended)
        assert marked is not None
        assert marked == at
    assert first_claim(connection, unclaimed) == (None, None)


# Pause and resume


def drafted(connection: Connection, *, num_problems: int = 2) -> tuple[int, int, list[ClaimedSample]]:
    """A job of which a worker writes all samples, each with a segment before."""
    job, worker = make_job(connection, num_problems=num_problems), make_worker(connection)
    first = claim(connection, worker, admit_all(connection))
    commit(connection, worker, *(written(sample, SampleState.READY) for sample in first))
    return job, worker, claim(connection, worker, {sample.sample_id: sample.epoch for sample in first})


def test_paused_job_is_neither_stored_nor_claimed_nor_admitted_nor_published(
    client: Client, connection: Connection
) -> None:
    job, worker, samples = drafted(connection, num_problems=3)
    add_samples(connection, job, [{"state": "pending"}])
    assert len(samples) == 3
    change = client.pause(job)
    assert (change.state, change.is_new, change.num_samples) == (JobState.PAUSED, True, 3)
    assert commit(connection, worker, *(written(sample, SampleState.FINISHED) for sample in samples)) == []
    assert states(connection, job) == {"ready": 3, "pending": 1}
    now = {row["id"]: row["epoch"] for row in every(connection, "SELECT id, epoch FROM samples")}
    assert claim(connection, worker, now) == []
    assert admit_samples(connection, ahead=10.0) == []
    assert overdue_samples(connection, age=dt.timedelta(0)) == []
    assert one(connection, "SELECT sum(num_segments) AS n FROM samples") == {"n": 3}


def test_resumed_job_is_published_at_once_and_goes_on_behind_its_last_segment(
    client: Client, connection: Connection
) -> None:
    job, worker, samples = drafted(connection)
    client.pause(job)
    late = {row["id"]: row["epoch"] for row in every(connection, "SELECT id, epoch FROM samples")}
    change = client.resume(job)
    assert (change.state, change.is_new, change.num_samples) == (JobState.RUNNING, True, 2)
    assert claim(connection, worker, late) == []  # a message of before the pause comes too late
    published = overdue_samples(connection, age=dt.timedelta(hours=1))
    assert [sample.sample_id for sample in published] == [sample.sample_id for sample in samples]
    again = claim(connection, worker, {sample.sample_id: sample.epoch for sample in published})
    assert [(len(sample.context.segments), sample.next_request["trigger"]) for sample in again] == [
        (1, "reflection")
    ] * 2


def test_claim_that_takes_a_paused_job_for_running_holds_nothing_in_the_end(
    client: Client, life_engine: Engine, connection: Connection
) -> None:
    """The claim's statement began before the pause, and gets its row only after the job is paused."""
    make_worker(connection)
    job, worker = make_job(connection, num_problems=1), make_worker(connection)
    [(sample_id, epoch)] = admit_all(connection).items()

    def claim_late() -> None:
        with transaction(life_engine) as own:
            claim(own, worker, {sample_id: epoch})

    with life_engine.connect() as blocker:
        blocker.execute(text("SELECT FROM samples WHERE id = :id FOR UPDATE"), {"id": sample_id})
        threads = [threading.Thread(target=claim_late), threading.Thread(target=client.pause, args=[job])]
        for number, thread in enumerate(threads, 1):
            thread.start()
            await_blocked(life_engine, number)
        blocker.rollback()
    for thread in threads:
        thread.join(timeout=30)
    assert one(connection, "SELECT state, holder_id FROM samples") == {"state": "ready", "holder_id": None}
    assert one(connection, "SELECT state FROM jobs") == {"state": "paused"}


# What is refused, and what is idempotent

COMMANDS: dict[str, Callable[[Client, int], Any]] = {
    "pause": lambda client, job: client.pause(job),
    "resume": lambda client, job: client.resume(job),
    "cancel": lambda client, job: client.cancel(job),
    "retry": lambda client, job: client.retry(job),
    "priority": lambda client, job: client.set_priority(job, 7),
}
ALLOWED = {
    "running": {"pause", "resume", "cancel", "retry", "priority"},
    "paused": {"pause", "resume", "cancel", "retry", "priority"},
    "cancelled": {"cancel"},
    "completed": {"retry"},
    "completed_with_errors": {"retry"},
}


@pytest.mark.parametrize("state", ALLOWED)
def test_every_command_can_be_given_twice_or_is_refused_with_the_state(
    client: Client, connection: Connection, state: str
) -> None:
    problems = add_problem_set(connection)
    for name, command in COMMANDS.items():
        job = add_job(connection, problems, state=state)
        if name in ALLOWED[state]:
            add_samples(connection, job, [{"state": "failed"}])
            first, again = command(client, job), command(client, job)
            assert (again.is_new, again.state) == (False, first.state)
        else:
            with pytest.raises(JobError, match=rf"job {job}: it is {state}"):
                command(client, job)
    for command in COMMANDS.values():
        with pytest.raises(NotFound, match="no job 4711"):
            command(client, 4711)


def test_all_changes_of_a_jobs_state_are_in_the_event_log(client: Client, connection: Connection) -> None:
    job = make_job(connection)
    for command in (client.pause, client.resume, client.pause, client.cancel):
        command(job)
    events = every(connection, "SELECT from_state, to_state FROM events WHERE sample_id IS NULL ORDER BY id")
    assert [(event["from_state"], event["to_state"]) for event in events] == [
        ("running", "paused"), ("paused", "running"), ("running", "paused"), ("paused", "cancelled"),
    ]  # fmt: skip


# Cancel


def test_cancel_keeps_what_is_finished_and_ends_what_is_written_before_what_waits(
    client: Client, connection: Connection
) -> None:
    job, worker, samples = drafted(connection)
    add_samples(connection, job, [{"state": "pending"}, {"state": "finished"}, {"score": 1.0}, {"state": "failed"}])
    assert control.cancel_job(connection, job)
    assert control.cancel_samples(connection, job, limit=2) == 2
    assert states(connection, job) == {"cancelled": 2, "pending": 1, "finished": 1, "graded": 1, "failed": 1}
    assert commit(connection, worker, *(written(sample, SampleState.FINISHED) for sample in samples)) == []
    change = client.cancel(job)
    assert (change.is_new, change.num_samples) == (False, 4)
    assert states(connection, job) == {"cancelled": 4, "graded": 1, "failed": 1}


def test_cancel_that_has_no_time_left_ends_what_is_at_work_and_leaves_the_rest_to_upkeep(
    client: Client, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _, samples = drafted(connection)
    add_samples(connection, job, [{"state": "pending"}] * 3)
    monkeypatch.setattr("pipeline.client.CANCEL_FOR_S", 0.0)
    monkeypatch.setattr(control, "cancel_samples", partial(control.cancel_samples, limit=1))
    change = client.cancel(job)
    assert (change.is_new, change.num_samples) == (True, len(samples) + 3)
    assert states(connection, job) == {"cancelled": len(samples), "pending": 3}
    monkeypatch.undo()
    assert control.cancel_leftovers(connection) == 3


def test_client_that_freezes_in_a_change_holds_nobody_up(
    client: Client, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, *_ = drafted(connection)
    connection.commit()
    monkeypatch.setattr("pipeline.client.FROZEN_AFTER_S", 1)
    lock = text("SELECT id FROM samples WHERE job_id = :job FOR UPDATE"), {"job": job}

    waited: list[float] = []

    def freeze() -> None:
        with client._change() as frozen:
            frozen.execute(*lock)
            began = time.monotonic()
            connection.execute(*lock)
            connection.rollback()
            waited.append(time.monotonic() - began)
            frozen.execute(text("SELECT 1"))

    with pytest.raises(ServiceUnavailable):
        freeze()
    assert waited[0] < 10


def test_cancel_whose_client_died_is_ended_by_upkeep_and_counted_only_then(connection: Connection) -> None:
    job = make_job(connection, num_problems=3)
    control.cancel_job(connection, job)
    assert count_ended(connection) == []
    assert control.cancel_leftovers(connection) == 3
    assert control.cancel_leftovers(connection) == 0
    assert count_ended(connection) == [job]
    assert every(connection, "SELECT cancelled FROM job_totals") == [{"cancelled": 3}]


# Retry


def ended_job(connection: Connection, samples: list[dict[str, Any]], **options: Any) -> tuple[int, list[int]]:
    """An ended job whose totals are counted."""
    job = add_job(connection, add_problem_set(connection), state="completed_with_errors", **options)
    ids = add_samples(connection, job, samples)
    assert count_ended(connection) == [job]
    return job, ids


def test_failed_samples_are_tried_again_from_their_last_segment_and_the_job_runs_again(
    client: Client, connection: Connection
) -> None:
    failed = {
        "state": "failed", "error_class": "engine_died", "num_rescues": 2, "num_attempts": 3, "epoch": 5,
        "num_segments": 1, "next_role": "large", "next_request": '{"trigger": "verify"}', "policy_state": "{}",
    }  # fmt: skip
    job, [sample, _, _] = ended_job(connection, [failed, {"problem": 1, "score": 1.0}, {"problem": 2, "score": 0.0}])
    change = client.retry(job)
    assert (change.state, change.is_new, change.num_samples) == (JobState.RUNNING, True, 1)
    row = one(connection, "SELECT * FROM samples WHERE id = :id", id=sample)
    assert (row["state"], row["epoch"], row["error"], row["error_class"], row["ended_at"]) == (
        "pending", 6, None, None, None,
    )  # fmt: skip
    assert (row["num_rescues"], row["num_attempts"], row["num_segments"]) == (0, 0, 1)
    assert client.job(job).finished_at is None
    assert (client.progress(job)[0].samples_done, client.summary(job)[0].samples_failed) == (2, 0)
    add_worker(connection, "small", model="S")
    [admitted] = admit_samples(connection, ahead=1.0)
    assert (admitted.sample_id, admitted.state) == (sample, SampleState.AWAITING_LARGE)


def test_retry_can_be_of_some_error_classes(client: Client, connection: Connection) -> None:
    classes = ["engine_died", "timed_out", "internal"]
    job, ids = ended_job(
        connection, [{"problem": p, "state": "failed", "error_class": c} for p, c in enumerate(classes)]
    )
    assert client.retry(job, classes=["bad_input"]).is_new is False
    assert client.job(job).state is JobState.COMPLETED_WITH_ERRORS  # nothing to do, nothing done
    assert client.retry(job, classes=["timed_out", "engine_died"]).num_samples == 2
    assert [row["id"] for row in every(connection, "SELECT id FROM samples WHERE state = 'failed'")] == [ids[2]]
    with pytest.raises(ConfigurationError, match=r"no error class 'odd'; there are bad_input, .*internal"):
        client.retry(job, classes=["odd"])


def test_retried_job_is_not_closed_while_its_samples_wait_and_is_after(client: Client, connection: Connection) -> None:
    job, _ = ended_job(connection, [{"state": "failed"}])
    client.retry(job)
    assert close_jobs(connection) == {}
    connection.execute(text("UPDATE samples SET state = 'cancelled', ended_at = now()"))
    assert close_jobs(connection) == {job: JobState.COMPLETED}


def test_retry_while_paused_waits_for_the_resume(client: Client, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), state="paused")
    add_samples(connection, job, [{"state": "failed"}])
    add_worker(connection, "small", model="S")
    assert client.retry(job).state is JobState.PAUSED
    assert admit_samples(connection, ahead=1.0) == []
    client.resume(job)
    assert len(admit_samples(connection, ahead=1.0)) == 1


def written_sample(connection: Connection, job: int, **columns: Any) -> tuple[int, list[int]]:
    """A sample with a segment of each of two workers, a step and a grade; returns it and the workers."""
    [sample] = add_samples(
        connection, job,
        [{"num_segments": 2, "num_takeovers": 1, "tokens_small": 3, "discarded_small": 2, "tokens_large": 4} | columns],
    )  # fmt: skip
    workers = [add_worker(connection, kind, tokens_generated=100, tokens_committed=50) for kind in ("small", "large")]
    engine = add_engine(connection, "S")
    add_segment(connection, sample, 0, "small", "abc", discarded="de", worker_id=workers[0], engine_id=engine)
    add_segment(connection, sample, 1, "large", "fghi", worker_id=workers[1], engine_id=engine)
    add_step(connection, sample, 0, "small", "abc")
    connection.execute(
        text("INSERT INTO grades (sample_id, grader, grader_version, status) VALUES (:id, 'math', '1', 'done')"),
        {"id": sample},
    )
    return sample, workers


def require_begins_anew(connection: Connection, sample: int, workers: list[int]) -> None:
    """Nothing of what was written is left, and those who wrote it count its tokens."""
    for table in ("segments", "steps", "grades"):
        assert every(connection, f"SELECT * FROM {table} WHERE sample_id = :id", id=sample) == []
    row = one(connection, "SELECT * FROM samples WHERE id = :id", id=sample)
    zero = ["num_segments", "num_takeovers", "tokens_small", "tokens_large", "tokens_inserted", "discarded_small"]
    gone = ["policy_state", "next_role", "next_request", "finish_reason", "score", "ended_at", "finished_at", "error"]
    assert [row[name] for name in zero] == [0] * len(zero)
    assert [row[name] for name in gone] == [None] * len(gone)
    assert row["state"] == "pending"
    booked = every(connection, "SELECT tokens_withdrawn FROM workers WHERE id = ANY(:ids) ORDER BY id", ids=workers)
    assert [row["tokens_withdrawn"] for row in booked] == [5, 4]


def test_sample_cut_by_its_budget_is_drawn_again_with_a_larger_one(client: Client, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), state="completed")
    sample, workers = written_sample(connection, job, finish_reason="length", score=0.0, epoch=4)
    others: list[dict[str, Any]] = [
        {"problem": 1, "score": 1.0},
        {"problem": 2, "finish_reason": "context"},
        {"problem": 3, "finish_reason": "length", "max_tokens": 70_000},
    ]
    add_samples(connection, job, others)
    change = client.retry(job, cut=True, max_tokens=65_536)
    assert (change.state, change.num_samples) == (JobState.RUNNING, 1)
    require_begins_anew(connection, sample, workers)
    row = one(connection, "SELECT max_tokens, epoch FROM samples WHERE id = :id", id=sample)
    assert row == {"max_tokens": 65_536, "epoch": 5}
    assert states(connection, job) == {"pending": 1, "graded": 3}
    assert client.retry(job, cut=True, max_tokens=65_536).is_new is False
    assert client.retry(job, cut=True, max_tokens=70_001).num_samples == 1


def test_sample_that_failed_before_it_was_stored_who_goes_on_begins_anew(
    client: Client, connection: Connection
) -> None:
    job = add_job(connection, add_problem_set(connection), state="completed_with_errors")
    sample, workers = written_sample(connection, job, state="failed", error_class="internal")
    assert client.retry(job).num_samples == 1
    require_begins_anew(connection, sample, workers)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cut": True}, "either error classes, or cut with max_tokens"),
        ({"max_tokens": 10}, "either error classes"),
        ({"cut": True, "max_tokens": 99_999, "classes": ["internal"]}, "either error classes"),
        ({"cut": True, "max_tokens": 32_768}, "has 32768; give a larger budget"),
    ],
)
def test_retry_options_that_do_not_fit_are_refused(
    client: Client, connection: Connection, options: dict[str, Any], told: str
) -> None:
    job = add_job(connection, add_problem_set(connection), state="completed")
    with pytest.raises(ConfigurationError, match=told):
        client.retry(job, **options)


# Priority


def test_job_of_higher_priority_is_admitted_first(client: Client, connection: Connection) -> None:
    problems = add_problem_set(connection)
    jobs = [add_job(connection, problems) for _ in range(3)]
    for job in jobs:
        add_samples(connection, job, [{"problem": p, "state": "pending"} for p in range(4)])
    make_worker(connection)  # with four slots
    client.set_priority(jobs[2], 5)
    client.set_priority(jobs[0], -1000)
    assert {sample.job_id for sample in admit_samples(connection, ahead=1.0)} == {jobs[2]}
    assert {sample.job_id for sample in admit_samples(connection, ahead=2.0)} == {jobs[1]}
    assert [client.job(job).priority for job in jobs] == [-1000, 0, 5]
    with pytest.raises(ConfigurationError, match="from -1000 to 1000"):
        client.set_priority(jobs[0], 1001)


# Clone


def few(*prompts: str) -> ProblemSet:
    problems = tuple(Problem(external_id=str(i), prompt=prompt, answer="1") for i, prompt in enumerate(prompts))
    return ProblemSet(name="few", content_sha256=content_sha256(problems), problems=problems)


def test_clone_is_the_same_job_but_for_what_is_set(client: Client, connection: Connection) -> None:
    first = client.submit(few("1?", "2?", "3?"), small="S", large="L", seed=7, limit=2, max_tokens=99)
    changes = {"sampling.temperature": "0.9", "num_samples": 3, "policy.n1": "30", "policy.cues.verify": ["aha"]}
    clone = client.clone(first, changes)
    assert (clone.cloned_from, clone.problem_set_id, clone.state) == (first.id, first.problem_set_id, JobState.RUNNING)
    assert (clone.num_problems, clone.num_samples, states(connection, clone.id)) == (2, 3, {"pending": 6})
    assert (
        clone.name
        == f"{first.name} · sampling.temperature=0.9, num_samples=3, policy.n1=30, policy.cues.verify=['aha']"
    )
    assert (clone.config.sampling.temperature, clone.config.policy.n1) == (0.9, 30)  # type: ignore[attr-defined]
    same = client.clone(first, {"limit": None}, name="mine")
    assert (same.num_problems, same.name, same.config) == (3, "mine", first.config.model_copy(update={"limit": None}))
    assert one(connection, "SELECT count(*) AS n FROM problems") == {"n": 3}


def test_clone_can_have_another_policy_and_other_models(client: Client) -> None:
    first = client.submit(few("1?"), small="S", large="L")
    code = client.clone(first, {"policy": "code", "policy.n1": 21})
    assert (code.policy, code.config.policy.name, code.config.policy.n1) == (  # type: ignore[attr-defined]
        "speculative-thinking:code", "speculative-thinking", 21,
    )  # fmt: skip
    alone = client.clone(first, {"policy": "large-only", "large": "org/other"})
    assert (alone.small_model, alone.large_model) == (None, "org/other")
    with pytest.raises(ConfigurationError, match=r"needs a small model, and the job has none; give --set small=MODEL"):
        client.clone(alone, {"policy": "speculative-thinking"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"temperature": 1}, r"no 'temperature' to set; it has: .*sampling.temperature"),
        ({"policy.first": 1}, r"no 'policy.first' to set; it has: .*policy.n1"),
        ({"version": 2}, "no 'version' to set"),
        ({"policy.name": "random"}, "no 'policy.name' to set"),
        ({"sampling.temperature": "hot"}, "temperature"),
        ({"num_samples": 0}, "num_samples"),
        ({"policy": "magic"}, "there is no policy 'magic'"),
        ({"policy": "small-only", "policy.n1": 3}, "no 'policy.n1' to set"),
        ({"grader": "guess"}, "no grader 'guess'"),
        ({"small": "./nowhere"}, "there is no such folder"),
        ({"small": "S\0"}, "the small model has .* which cannot be stored"),
        ({"small.name": "T"}, "no 'small.name' to set"),
        ({"prompt_template": "poem"}, "no prompt template 'poem'"),
    ],
)
def test_clone_that_would_not_be_submitted_is_refused_and_nothing_is_stored(
    client: Client, connection: Connection, changes: dict[str, Any], told: str
) -> None:
    problems = (Problem(external_id="0", prompt="1?", answer="1"),)
    few = ProblemSet(name="few", content_sha256=content_sha256(problems), problems=problems)
    first = client.submit(few, small="S", large="L")
    with pytest.raises(ConfigurationError, match=told):
        client.clone(first, changes)
    assert [job.id for job in client.jobs()] == [first.id]


# Totals


@pytest.mark.parametrize("way", ["running", "paused", "cancelled", "reopened"])
def test_totals_are_right_in_every_state(client: Client, connection: Connection, way: str) -> None:
    problems = add_problem_set(connection)
    state = "completed_with_errors" if way == "reopened" else "running"
    job = add_job(connection, problems, state=state, num_samples=2, seconds=10)
    worker = add_worker(connection, "small", model="S")
    done: list[dict[str, Any]] = [
        {"problem": 0, "score": 1.0, "tokens_small": 10, "tokens_large": 5, "num_takeovers": 1},
        {"problem": 1, "score": 0.0, "tokens_small": 20, "discarded_small": 3, "finish_reason": "length"},
        {"problem": 2, "state": "failed", "tokens_small": 7},
    ]
    open_ones: list[dict[str, Any]] = [
        {"problem": 0, "state": "pending"},
        {"problem": 1, "state": "ready", "tokens_small": 2},
        {"problem": 2, "state": "drafting", "holder_id": worker, "tokens_small": 4},
        {"problem": 3, "state": "assisting", "holder_id": worker, "tokens_small": 6, "tokens_large": 1},
        {"problem": 3, "state": "finished", "tokens_small": 8},
    ]
    add_samples(connection, job, done if way == "reopened" else done + open_ones)
    count_ended(connection)
    {
        "running": lambda: None,
        "paused": lambda: client.pause(job),
        "cancelled": lambda: client.cancel(job),
        "reopened": lambda: client.retry(job),
    }[way]()
    for _ in range(2):  # as it is counted, and as it was kept
        summary, progress = client.summary(job)[0], client.progress(job)[0]
        by_hand: dict[str, int] = dict.fromkeys([state.value for state in SampleState], 0) | states(connection, job)
        assert {name: getattr(progress, name) for name in by_hand} == by_hand
        final = by_hand["graded"] + by_hand["failed"] + by_hand["cancelled"]
        assert progress.samples_done == final - by_hand["cancelled"]  # cancelled is not done
        assert summary.samples_open == progress.samples_total - final
        assert (summary.num_scored, summary.accuracy, summary.takeovers) == (2, 0.5, 1)
        tokens = one(connection, "SELECT sum(tokens_small) AS small, sum(tokens_large) AS large FROM samples")
        assert (summary.tokens_small, summary.tokens_large) == (tokens["small"], tokens["large"])
        assert progress.written_small == tokens["small"] + 3
        listed = list(client.results(job))
        assert len(listed) == progress.samples_total
        assert len(list(client.results(job, only_final=True))) == final
        assert sum(row.output_tokens for row in listed) == tokens["small"] + tokens["large"]
        close_jobs(connection)
        count_ended(connection)
    expected = {"cancelled": 1}.get(way, 0)
    assert one(connection, "SELECT count(*) AS n FROM job_totals") == {"n": expected}


# Why a job waits


@pytest.fixture
def crewed(connection: Connection) -> int:
    """A running job with a live worker of each kind, of eight slots each."""
    for kind, model in (("upkeep", None), ("small", "S"), ("large", "L"), ("grade", None)):
        add_worker(connection, kind, model=model)
    return add_job(connection, add_problem_set(connection))


def fill_slots(connection: Connection, kind: str) -> int:
    """Another job, older or not, whose samples take all slots of a kind of worker."""
    other = add_job(connection, add_problem_set(connection))
    worker = one(connection, "SELECT id FROM workers WHERE kind = :kind", kind=kind)["id"]
    state = "drafting" if kind == "small" else "assisting"
    add_samples(connection, other, [{"problem": i % 4, "state": state, "holder_id": worker} for i in range(8)])
    return other


def test_missing_workers_are_named_all_at_once_with_the_commands_that_start_them(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    add_samples(connection, job, [{"state": "ready"}, {"state": "awaiting_large"}, {"state": "finished"}])
    assert waiting_for(connection, job) == "no live upkeep worker: specthink worker upkeep starts one"
    add_worker(connection, "upkeep")
    assert waiting_for(connection, job) == (
        "no live small worker serves S: specthink worker small --model S starts one; "
        "no live large worker serves L: specthink worker large --model L starts one; "
        "no live grade worker: specthink worker grade starts one"
    )


def test_job_that_can_go_on_waits_for_nothing(connection: Connection, crewed: int) -> None:
    add_samples(connection, crewed, [{"state": state} for state in ("pending", "ready", "awaiting_large", "finished")])
    assert waiting_for(connection, crewed) is None


def test_paused_job_waits_to_be_resumed(client: Client, connection: Connection, crewed: int) -> None:
    add_samples(connection, crewed, [{"state": "pending"}])
    client.pause(crewed)
    assert waiting_for(connection, crewed) == f"paused: specthink resume {crewed} lets it go on"


def test_job_behind_others_says_how_many_samples_are_ahead(client: Client, connection: Connection, crewed: int) -> None:
    problems = add_problem_set(connection)
    newer, paused = (add_job(connection, problems) for _ in range(2))
    for job, count in ((crewed, 3), (newer, 2), (paused, 4)):
        add_samples(connection, job, [{"problem": p % 4, "state": "pending"} for p in range(count)])
    client.pause(paused)
    assert waiting_for(connection, newer) == "samples of older or higher-ranking jobs ahead: 3"
    assert waiting_for(connection, crewed) is None
    client.set_priority(newer, 1)
    assert waiting_for(connection, newer) is None
    assert waiting_for(connection, crewed) == "samples of older or higher-ranking jobs ahead: 2"


def test_saturated_large_pool_is_told_with_its_numbers(connection: Connection, crewed: int) -> None:
    add_samples(connection, crewed, [{"state": "awaiting_large"}, {"state": "awaiting_large"}])
    fill_slots(connection, "large")
    told = "large pool saturated: samples there: 8 for 8 slots, of this job waiting: 2"
    assert waiting_for(connection, crewed) == told
    connection.execute(
        text("UPDATE samples SET state = 'awaiting_large', holder_id = NULL WHERE id = (SELECT max(id) FROM samples)")
    )
    assert waiting_for(connection, crewed) is None


def test_busy_small_workers_are_told_only_to_a_job_that_has_none(connection: Connection, crewed: int) -> None:
    add_samples(connection, crewed, [{"state": "ready"}, {"state": "pending"}])
    other = fill_slots(connection, "small")
    assert waiting_for(connection, crewed) == "small pool taken by other jobs: samples there: 8 for 8 slots"
    add_samples(connection, other, [{"state": "ready"}])
    assert waiting_for(connection, other) is None


def test_busy_large_workers_are_told_to_a_job_that_they_open(connection: Connection, crewed: int) -> None:
    job = add_job(connection, add_problem_set(connection), policy="large-only")
    add_samples(connection, job, [{"state": "pending"}])
    fill_slots(connection, "large")
    assert waiting_for(connection, job) == "large pool taken by other jobs: samples there: 8 for 8 slots"


def test_delay_after_a_refusal_is_told(connection: Connection, crewed: int) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1000)
    add_samples(connection, crewed, [{"state": "ready", "not_before": later}, {"state": "pending"}])
    told = waiting_for(connection, crewed) or ""
    assert told.startswith("samples waiting to be tried again because an engine refused them: 1, the next in ")
    assert 900 < int(told.split()[-2]) <= 1000


def test_suspects_are_told_while_nothing_else_is_written(connection: Connection, crewed: int) -> None:
    add_samples(connection, crewed, [{"state": "ready", "num_rescues": 2}, {"state": "ready", "num_rescues": 1}])
    assert waiting_for(connection, crewed) == "samples tried one by one because their workers died with them: 1"


def test_workers_that_refuse_a_job_are_told_with_a_reason(connection: Connection, crewed: int) -> None:
    add_samples(connection, crewed, [{"state": "ready"}])
    [(worker, host)] = connection.execute(text("SELECT id, host FROM workers WHERE kind = 'small'")).all()
    reasons = {crewed: "another\ud800 version\x00", crewed + 1: "not this job"}
    renew_worker(connection, worker, ttl=dt.timedelta(minutes=5), counters=WorkerCounters(refused_jobs=reasons))
    assert waiting_for(connection, crewed) == (
        f"workers that refuse this job: 1, e.g. worker {worker} on {host}: another? version\ufffd"
    )
    renew_worker(connection, worker, ttl=dt.timedelta(minutes=5), counters=WorkerCounters())
    assert waiting_for(connection, crewed) is None


def test_job_that_waits_for_grades_only_says_so(connection: Connection, crewed: int) -> None:
    add_samples(connection, crewed, [{"state": "finished"}, {"score": 1.0}])
    assert waiting_for(connection, crewed) == "complete samples waiting for their grade: 1"


# Errors, replay, size


def test_errors_are_told_by_class_with_their_tries(client: Client, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    add_samples(
        connection,
        job,
        [
            {"state": "failed", "error_class": "engine_refused", "num_attempts": 8, "error": "no memory"},
            {"state": "failed", "error_class": "engine_refused", "num_attempts": 1},
            {"state": "failed", "error_class": "engine_died", "num_rescues": 3},
        ],
    )
    found = client.errors(job)
    assert [(row.error_class, row.num_samples, row.most_tries, row.example) for row in found] == [
        ("engine_refused", 2, 8, "no memory"), ("engine_died", 1, 3, "it broke"),
    ]  # fmt: skip
    with pytest.raises(NotFound):
        client.errors(4711)


def test_ten_thousand_samples_change_their_state_in_one_statement_without_a_wait(
    client: Client, connection: Connection
) -> None:
    """The trigger that logs each change is linear: it once took 26 s for these."""
    job = add_job(connection, add_problem_set(connection, 10_000))
    connection.execute(
        text("INSERT INTO samples (job_id, problem_id, sample_index) SELECT :job, id, 0 FROM problems"), {"job": job}
    )
    with transaction(client._db_engine) as own:  # a plan that was made for few rows is kept for many
        own.execute(text("UPDATE samples SET state = 'ready' WHERE id = (SELECT min(id) FROM samples)"))
        control.cancel_job(own, job)
        assert control.cancel_samples(own, job) == 1
        start = time.monotonic()
        assert control.cancel_samples(own, job, limit=10_000) == 9_999
        assert time.monotonic() - start < 8
    assert one(connection, "SELECT count(*) AS n FROM events WHERE to_state = 'cancelled'") == {"n": 10_001}


# The command line

Specthink = Callable[..., str]


@pytest.fixture
def specthink(
    servers: Connections, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Specthink:
    """Runs a command in this process; returns what it printed where it ended as it should (exit_code)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPECTHINK_")}
    addresses = {
        "SPECTHINK_DATABASE_URL": submitter_url(servers),
        "SPECTHINK_REDIS_URL": servers.redis_url.get_secret_value(),
        "SPECTHINK_STATE_DIR": str(tmp_path / "state"),
    }
    monkeypatch.setattr(os, "environ", kept | addresses)

    def run(*arguments: str, exit_code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["specthink", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == exit_code, printed.err
        return printed.out if exit_code == 0 else printed.err

    return run


def test_commands_say_what_they_did_and_are_done_twice_without_an_error(
    specthink: Specthink, client: Client, connection: Connection
) -> None:
    job = client.submit(few("1?", "2?"), small="S", large="L")
    assert job.id == 1
    told = [
        specthink(*command.split())
        for command in (
            "pause 1", "pause 1", "resume 1", "resume 1", "priority 1 -5", "priority 1 -5", "retry 1",
            "clone 1 --set sampling.temperature=0.9 --set limit=null --name mine", "cancel 1", "cancel 1",
        )
    ]  # fmt: skip
    assert [line.strip() for line in told] == [
        "job 1 paused, 0 samples taken back; specthink resume 1",
        "job 1 is paused already",
        "job 1 resumed, 0 samples at once and the rest as room allows",
        "job 1 runs already",
        "job 1 has priority -5",
        "job 1 has priority -5 already",
        "job 1: no sample is failed; nothing to try again",
        "2",
        "job 1 cancelled, 2 samples were still open",
        "job 1 is cancelled already",
    ]
    assert (client.job(2).name, client.job(2).config.sampling.temperature) == ("mine", 0.9)
    assert "it is cancelled; only a running job can be paused" in specthink("pause", "1", exit_code=1)
    assert "specthink clone 1 makes a new job like it" in specthink("retry", "1", exit_code=1)


def test_retry_commands_name_what_they_try_again(specthink: Specthink, client: Client, connection: Connection) -> None:
    job, _ = ended_job(
        connection,
        [
            {"state": "failed", "error_class": "engine_died", "num_rescues": 2},
            {"problem": 1, "state": "failed"},
            {"problem": 2, "finish_reason": "length"},
        ],
    )
    assert "engine_died" in specthink("errors", str(job))
    told = [
        specthink("retry", str(job), *options.split())
        for options in ("--class engine_died --class timed_out", "--cut --max-tokens 40000", "")
    ]
    assert [line.strip() for line in told] == [
        f"job {job}: 1 sample failed with engine_died or timed_out, tried again; the job is running",
        f"job {job}: 1 sample cut by a budget below 40000, tried again; the job is running",
        f"job {job}: 1 sample failed, tried again; the job is running",
    ]
    assert specthink("errors", str(job)).strip() == f"nothing went wrong in job {job}"
    for wrong in ("--cut", "--max-tokens 9", "--cut --max-tokens 9 --class internal", "--class odd"):
        specthink("retry", str(job), *wrong.split(), exit_code=2)
    for wrong in ("temperature", "num_samples=", 'policy.cues.verify=["'):
        specthink("clone", str(job), "--set", wrong, exit_code=2)


def test_status_shows_priority_and_why_a_job_waits(specthink: Specthink, client: Client) -> None:
    job = client.submit(few("1?"), small="S", large="L")
    client.set_priority(job, 12)
    client.pause(job)
    shown = specthink("status")
    assert "paused: specthink resume 1 lets it go on" in shown
    assert " 12 " in shown
    assert "paused: specthink resume 1 lets it go on" in progress_line(client.progress(job)[0])  # in Flower
    assert '"priority": 12' in specthink("status", "1", "--json")


# Removal


@pytest.fixture
def owner_command(specthink: Specthink, servers: Connections) -> Specthink:
    """Runs a command as the schema's owner."""
    os.environ["SPECTHINK_DATABASE_URL"] = with_database(servers.database_url, "life").get_secret_value()
    return specthink


def rows_of(connection: Connection, job: int) -> dict[str, int]:
    """Rows by table that name the job or a sample of it."""
    named = {
        name: "job_id = :job"
        if "job_id" in table.columns
        else "sample_id IN (SELECT id FROM samples WHERE job_id = :job)"
        for name, table in METADATA.tables.items()
        if {"job_id", "sample_id"} & {*table.columns.keys()}
    }
    return {
        name: one(connection, f"SELECT count(*) AS n FROM {name} WHERE {condition}", job=job)["n"]
        for name, condition in named.items()
    }


def test_removed_job_leaves_nothing_and_the_books_of_others_hold(
    owner_command: Specthink, connection: Connection
) -> None:
    job, worker = make_job(connection, num_problems=2), make_worker(connection)
    other = make_job(connection, num_problems=2)
    claimed = claim(connection, worker, admit_all(connection))
    commit(connection, worker, *(written(sample, SampleState.FINISHED) for sample in claimed))
    connection.execute(text("UPDATE samples SET state = 'graded', ended_at = now()"))
    assert "only a job that has ended can be removed or archived" in owner_command("rm", str(job), "--yes", exit_code=1)
    close_jobs(connection)
    before, kept = rows_of(connection, job), rows_of(connection, other)
    assert before["segments"] == before["samples"] == 2
    assert before["events"] > 0
    booked = one(connection, "SELECT tokens_withdrawn AS n FROM workers WHERE id = :id", id=worker)["n"]
    tokens = one(
        connection,
        "SELECT sum(tokens_generated) AS n FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job",
        job=job,
    )["n"]
    assert f"job {job} removed" in owner_command("rm", str(job), "--yes")
    assert set(rows_of(connection, job).values()) == {0}
    assert rows_of(connection, other) == kept
    withdrawn = one(connection, "SELECT tokens_withdrawn AS n FROM workers WHERE id = :id", id=worker)["n"]
    assert withdrawn == booked + tokens > booked
    assert "there is no job" in owner_command("rm", str(job), "--yes", exit_code=3)


def test_prune_removes_what_ended_long_ago(owner_command: Specthink, connection: Connection) -> None:
    problem_set = add_problem_set(connection)
    old, new = (add_job(connection, problem_set, state="completed") for _ in range(2))
    running = add_job(connection, problem_set)
    connection.execute(text("UPDATE jobs SET finished_at = now() - interval '31 days' WHERE id = :job"), {"job": old})
    connection.execute(text("UPDATE jobs SET cloned_from = :old WHERE id = :new"), {"old": old, "new": new})
    assert "nothing was removed" in owner_command("prune", "--older-than", "30d", "--dry-run")
    assert "there is nobody to ask" in owner_command("prune", "--older-than", "30d", exit_code=2)
    assert f"job {old} removed" in owner_command("prune", "--older-than", "30d", "--yes")
    assert [row["id"] for row in every(connection, "SELECT id FROM jobs ORDER BY id")] == [new, running]
    assert "write 12h, 30d or 4w" in owner_command("prune", "--older-than", "soon", exit_code=2)
    assert "--events-older-than" in owner_command("prune", exit_code=2)


def test_prune_removes_sets_workers_and_engines_that_nobody_uses(
    owner_command: Specthink, connection: Connection
) -> None:
    used, unused, young = (add_problem_set(connection, name=name) for name in ("used", "unused", "young"))
    [sample] = add_samples(connection, add_job(connection, used, state="completed"), [{}])
    engines = [add_engine(connection, model) for model in ("wrote", "idle", "alive", "claimed")]
    wrote, idle, _, claimed = (
        add_worker(connection, "small", model="S", engine_id=engine, started_at="2020-01-01") for engine in engines
    )
    add_segment(connection, sample, 0, "small", "text", worker_id=wrote, engine_id=engines[0])
    connection.execute(text("UPDATE samples SET small_worker_id = :worker"), {"worker": claimed})
    ended = text("""UPDATE workers SET ended_at = now() - interval '40 days', end_reason = 'stopped', settled_at = now()
                    WHERE id = ANY(:ids)""")
    connection.execute(ended, {"ids": [wrote, idle, claimed]})
    old = text("UPDATE problem_sets SET created_at = now() - interval '40 days' WHERE id <> :young")
    connection.execute(old, {"young": young})

    def left(table: str) -> set[int]:
        return {row["id"] for row in every(connection, f"SELECT id FROM {table}")}

    before = {table: left(table) for table in ("problem_sets", "workers", "engines", "problems")}
    said = owner_command("prune", "--older-than", "30d", "--dry-run")
    assert "nothing was removed of what nobody uses: 1 problem set, 1 kB, 1 worker and 1 engine" in said
    assert {table: left(table) for table in before} == before
    said = owner_command("prune", "--older-than", "30d", "--yes")
    assert f"problem set {unused} removed" in said
    assert "1 worker and 1 engine removed" in said
    assert before["problem_sets"] - left("problem_sets") == {unused}
    assert before["workers"] - left("workers") == {idle}
    assert before["engines"] - left("engines") == {engines[1]}
    assert one(connection, "SELECT count(*) AS n FROM problems WHERE problem_set_id = :id", id=unused)["n"] == 0
    assert "nothing unused to remove" in owner_command("prune", "--older-than", "30d", "--yes")


def test_pruned_events_are_missed_by_no_view_and_no_retry(owner_command: Specthink, connection: Connection) -> None:
    job, worker = make_job(connection, num_problems=2), make_worker(connection)
    claimed = claim(connection, worker, admit_all(connection))
    commit(connection, worker, *(written(sample, SampleState.FINISHED) for sample in claimed))
    connection.execute(text("UPDATE samples SET state = 'failed', error = 'it broke', ended_at = now()"))
    close_jobs(connection)
    shown = [
        every(connection, f"SELECT * FROM {view}") for view in ("job_summary", "job_cost", "results", "throughput")
    ]
    of_samples = one(connection, "SELECT count(*) AS n FROM events WHERE sample_id IS NOT NULL")["n"]
    assert "no events to remove" in owner_command("prune", "--events-older-than", "1h", "--yes")
    connection.execute(text("UPDATE jobs SET finished_at = now() - interval '2 hours'"))
    shown[0] = every(connection, "SELECT * FROM job_summary")
    assert "nothing was removed of the events of 1 job" in owner_command(
        "prune", "--events-older-than", "1h", "--dry-run"
    )
    assert f"{of_samples} events of job {job} removed" in owner_command("prune", "--events-older-than", "1h", "--yes")
    assert every(connection, "SELECT DISTINCT job_id, sample_id FROM events") == [{"job_id": job, "sample_id": None}]
    assert shown == [
        every(connection, f"SELECT * FROM {view}") for view in ("job_summary", "job_cost", "results", "throughput")
    ]
    control.retry_failed(connection, job, control.select_failed(connection, job))
    assert one(connection, "SELECT first_claimed_at IS NOT NULL AS known FROM jobs") == {"known": True}


def test_submitter_may_remove_nothing(client: Client, servers: Connections, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), state="completed")
    submitter = open_database(SecretStr(submitter_url(servers)))
    with pytest.raises(ConfigurationError, match="permission denied"), transaction(submitter) as own:
        remove_job(own, job)
    submitter.dispose()


# What Flower shows


def test_newest_jobs_are_followed_whatever_their_number(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        problems = add_problem_set(connection)
        jobs = [add_job(connection, problems) for _ in range(MOST_FOLLOWED + 3)]
        ended = add_job(connection, problems, state="completed")
        age = dt.timedelta(minutes=1)
        assert sorted(unfollowed_jobs(connection, age=age)) == jobs[3:]
        assert unfollowed_jobs(connection, age=age) == []
        assert [mark_followed(connection, job) for job in (jobs[0], jobs[2], jobs[3], jobs[-1], ended)] == [
            False, False, True, True, False,
        ]  # fmt: skip
        cancel = text("UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE id = :job")
        connection.execute(cancel, {"job": jobs[-1]})
        assert unfollowed_jobs(connection, age=age) == [jobs[2]]

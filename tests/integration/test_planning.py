"""Plans from jobs in a real database, by the client and by the command."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine
from typer.testing import CliRunner

from pipeline import Client
from pipeline.cli.app import app
from pipeline.db.planning import get_measured_job
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.errors import ConfigurationError, JobError, NotFound
from pipeline.planning.pools import Piece
from pipeline.samples import WRITING_ROLES, ModelRole
from tests.integration.rows import add_aside, add_engine, add_job, add_problem_set, add_samples, add_segment, add_worker

pytestmark = pytest.mark.integration

NUM_SAMPLES = 60
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SMALL_PACE_S, LARGE_PACE_S = 0.01, 0.04
"""Per token of a sample that is alone."""


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client.connect(database_url=connections.database_url.get_secret_value()) as client:
        yield client


@pytest.fixture
def job(db_engine: Engine) -> int:
    """Samples one after the other: 40 to 99 tokens by the small model, a fifth by the large one, as many again."""
    with transaction(db_engine) as connection:
        return add_measured_job(connection)


def add_measured_job(connection: Connection) -> int:
    engine_id = add_engine(connection, "S")
    workers = {kind: add_worker(connection, kind, model="S", engine_id=engine_id) for kind in ("small", "large")}
    job = add_job(connection, add_problem_set(connection, NUM_SAMPLES), state="completed", seconds=100)
    samples = add_samples(
        connection, job, [{"problem": number, "num_segments": 3} for number in range(NUM_SAMPLES)]
    )  # fmt: skip
    clock = START
    for number, sample_id in enumerate(samples):
        tokens = 40 + number
        for index, (author, count, pace) in enumerate([
            ("small", tokens, SMALL_PACE_S), ("large", tokens // 5, LARGE_PACE_S), ("small", tokens, SMALL_PACE_S),
        ]):  # fmt: skip
            seconds = count * pace
            clock += dt.timedelta(seconds=seconds)
            add_segment(
                connection, sample_id, index, author, "x" * count, worker_id=workers[author], engine_id=engine_id,
                wait_seconds=0.02, queue_seconds=0.5, first_token_seconds=0.6, write_seconds=0.5 + seconds,
                committed_at=clock, prompt_tokens=30, cached_tokens=20, epoch=index,
            )  # fmt: skip
    return job


def add_judged_job(connection: Connection) -> int:
    """Of each sample: small drafts two pieces under one claim, a judge says a word, small's draft becomes the text."""
    engine_id = add_engine(connection, "S")
    workers = {kind: add_worker(connection, kind, model="S", engine_id=engine_id) for kind in ("small", "judge")}
    job = add_job(connection, add_problem_set(connection, NUM_SAMPLES), state="completed", seconds=100)
    samples = add_samples(
        connection, job, [{"problem": each, "num_segments": 1, "num_asides": 3} for each in range(NUM_SAMPLES)]
    )
    clock = START
    for number, sample_id in enumerate(samples):
        asides = (("small", 40 + number, 1), ("small", 20, 1), ("judge", 1, 2))
        for index, (author, count, epoch) in enumerate(asides):
            clock += dt.timedelta(seconds=count * 0.01)
            add_aside(
                connection, sample_id, index, author, "x" * count, after_segment=0, worker_id=workers[author],
                engine_id=engine_id, epoch=epoch, wait_seconds=0.02, write_seconds=count * 0.01, committed_at=clock,
                prompt_tokens=90, cached_tokens=20,
            )  # fmt: skip
        add_segment(
            connection, sample_id, 0, "small", "x" * 60, taken_from=1, tokens_generated=0,
            worker_id=workers["small"], engine_id=engine_id, epoch=3, committed_at=clock,
        )  # fmt: skip
    return job


def test_asides_and_their_judge_are_a_part_of_the_plan(client: Client, db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        job = add_judged_job(connection)
        measured = get_measured_job(connection, job)
    shortest = min(measured.trajectories, key=lambda trajectory: trajectory[0].tokens)
    assert shortest == (
        Piece(role=ModelRole.SMALL, tokens=40, computed_tokens=70),
        Piece(role=ModelRole.SMALL, tokens=20, computed_tokens=70, stays=True),
        Piece(role=ModelRole.JUDGE, tokens=1, computed_tokens=70),
    ), "what a segment takes of an aside is written once"
    assert len(measured.requests) == 3 * NUM_SAMPLES
    found = client.plan(job, slots=1)
    assert {pool.role: pool.num_workers for pool in found.pools} == {ModelRole.SMALL: 1, ModelRole.JUDGE: 1}
    assert found.hand_overs_per_s == pytest.approx(2 * found.samples_per_s)
    slow = client.plan(job, slots=1, judge_speedup=0.001)
    assert (slow.short, found.short) == ("judge", "small")
    more = client.plan(job, slots=1, judge_speedup=0.001, judge_workers=8)
    assert more.wall_s < 0.7 * slow.wall_s, (
        "as many samples as are admitted beside each other: two for small's one slot"
    )
    for said in ({"large_workers": 2}, {"large_speedup": 2.0}):
        with pytest.raises(ConfigurationError, match="need no large workers"):
            client.plan(job, **said)


def test_what_was_measured_is_read_without_texts(db_engine: Engine, job: int) -> None:
    with transaction(db_engine) as connection:
        measured = get_measured_job(connection, job)
    assert (measured.job_id, measured.num_samples, len(measured.trajectories)) == (job, NUM_SAMPLES, NUM_SAMPLES)
    shortest = min(measured.trajectories, key=lambda trajectory: trajectory[0].tokens)
    assert shortest == (
        Piece(role=ModelRole.SMALL, tokens=40, computed_tokens=10),
        Piece(role=ModelRole.LARGE, tokens=8, computed_tokens=10),
        Piece(role=ModelRole.SMALL, tokens=40, computed_tokens=10),
    )
    assert len(measured.requests) == 3 * NUM_SAMPLES
    assert {worker.role for worker in measured.workers.values()} == set(WRITING_ROLES)
    first = measured.requests[0]
    assert (first.tokens, first.wait_s) == (40, 0.02)
    assert first.engine_s == pytest.approx(40 * SMALL_PACE_S)
    assert first.ended_at == pytest.approx(START.timestamp() + 40 * SMALL_PACE_S)


def test_what_is_neither_wait_nor_writing_between_two_commits_is_the_wait_for_the_second(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        engine_id = add_engine(connection, "S")
        worker_id = add_worker(connection, "small", model="S", engine_id=engine_id)
        job = add_job(connection, add_problem_set(connection, 1))
        [sample_id] = add_samples(connection, job, [{"problem": 0, "num_segments": 3}])
        for index, seconds in enumerate((0, 3, 33)):
            add_segment(
                connection, sample_id, index, "small", "x", worker_id=worker_id, engine_id=engine_id, wait_seconds=0.5,
                queue_seconds=0.5, write_seconds=2.25, committed_at=START + dt.timedelta(seconds=seconds), epoch=index,
            )  # fmt: skip
        measured = get_measured_job(connection, job)
    assert [(request.held_s, request.engine_s) for request in measured.requests] == [
        (None, 1.75),
        (0.25, 1.75),
        (None, 1.75),
    ], "a first one, and one that was published again after 10 s, have none"


def test_inserted_text_and_samples_that_are_not_complete_are_no_courses(db_engine: Engine, job: int) -> None:
    with transaction(db_engine) as connection:
        worker_id = add_worker(connection, "small", model="S")
        engine_id = add_engine(connection, "S")
        (failed,) = add_samples(connection, job, [{"problem": 0, "state": "failed"}])
        add_segment(connection, failed, 0, "small", "x", worker_id=worker_id, engine_id=engine_id)
        (spliced,) = add_samples(connection, job, [{"problem": 0}])
        add_segment(connection, spliced, 0, "inserted", "Wait", worker_id=worker_id, engine_id=engine_id)
        add_segment(connection, spliced, 1, "small", "abc", worker_id=worker_id, engine_id=engine_id)
        measured = get_measured_job(connection, job)
    assert len(measured.trajectories) == NUM_SAMPLES + 1
    assert (Piece(role=ModelRole.SMALL, tokens=3, computed_tokens=10),) in measured.trajectories


def test_plan_of_the_same_pools_takes_what_the_engines_took(client: Client, job: int) -> None:
    found = client.plan(job, slots=1)
    one_sample_s = (2 * SMALL_PACE_S + LARGE_PACE_S / 5) * (40 + 99) / 2
    assert found.num_samples == NUM_SAMPLES
    # One slot each: the small engine, with most of the work, is what the job takes; the large one writes meanwhile.
    small_s = NUM_SAMPLES * 2 * SMALL_PACE_S * (40 + 99) / 2
    assert small_s <= found.wall_s <= 1.05 * (small_s + one_sample_s)
    assert found.short == "small"


def test_plan_with_more_of_the_short_pool_is_faster_and_meets_its_deadline(client: Client, job: int) -> None:
    alone = client.plan(job, slots=1, num_samples=300)
    found = client.plan(
        job, small_workers=4, slots=1, num_samples=300, deadline=dt.timedelta(seconds=alone.wall_s / 3)
    )  # fmt: skip
    assert found.wall_s < alone.wall_s / 2
    assert found.deadline is not None
    assert found.deadline.workers is not None
    assert found.deadline.workers[ModelRole.SMALL] >= 3
    assert found.deadline.wall_s is not None
    assert found.deadline.wall_s <= 1.02 * alone.wall_s / 3


def test_engines_on_one_core_take_longer_than_on_one_each(client: Client, job: int) -> None:
    apart = client.plan(job, small_workers=3, large_workers=3, slots=1)
    shared = client.plan(job, small_workers=3, large_workers=3, slots=1, shared_cores=1)
    assert shared.wall_s > 1.5 * apart.wall_s


def test_jobs_that_cannot_be_planned_from_say_so(client: Client, db_engine: Engine, job: int) -> None:
    with transaction(db_engine) as connection:
        empty = add_job(connection, add_problem_set(connection))
    with pytest.raises(JobError, match="no complete sample"):
        client.plan(empty)
    with pytest.raises(JobError, match="no complete sample"):
        client.plan(empty, shared_cores=2)
    with pytest.raises(NotFound):
        client.plan(10**9)
    with pytest.raises(ConfigurationError, match="--large-workers"):
        client.plan(job, large_workers=0)


def test_command_prints_the_plan_and_gives_it_as_json(connections: Connections, job: int) -> None:
    environment = {
        "SPECTHINK_DATABASE_URL": connections.database_url.get_secret_value(),
        "SPECTHINK_REDIS_URL": connections.redis_url.get_secret_value(),
    }

    def run(*options: str) -> str:
        done = CliRunner().invoke(app, ["plan", "--job", str(job), *options], env=environment)
        assert done.exit_code == 0, done.output
        return done.output

    printed = run("--samples", "4", "--deadline", "1m30s")
    for said in ("240 samples", "short: small", "within 1 min 30 s:", "breaks first:", "Postgres", "Redis"):
        assert said in printed
    many = ("--small-workers", "600", "--large-workers", "400", "--problems", "2000", "--samples", "16")
    found = json.loads(run(*many, "--json"))
    assert found["num_samples"] == 32_000
    assert found["one_in"] > 1
    assert {pool["role"]: pool["num_workers"] for pool in found["pools"]} == {"small": 600, "large": 400}
    assert {part["part"] for part in found["parts"]} == {"Postgres", "Redis", "a worker's process"}


@pytest.mark.parametrize("given", ["2 hours", "h", "0s", "90"])
def test_deadline_that_is_no_time_is_refused(given: str) -> None:
    done = CliRunner().invoke(app, ["plan", "--job", "1", "--deadline", given])
    assert done.exit_code == 2
    assert "--deadline" in done.output

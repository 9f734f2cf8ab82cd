"""The protocol of a hop on a real Postgres: claim, commit, lease, rescue; what is late, doubled or dead is refused."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from pipeline.db import claims, migrate, upkeep_statements
from pipeline.db.claims import (
    ClaimedSample,
    begin_trial,
    claim_samples,
    defer_samples,
    held_epochs,
    release_samples,
)
from pipeline.db.commits import SampleCommit, StoredRow, are_undone, commit_samples
from pipeline.db.context_cache import EMPTY, Context, ContextCache
from pipeline.db.grades import (
    Gradable,
    TextGrade,
    Ungraded,
    begin_grade,
    end_grade,
    gradable_samples,
    select_ungraded,
    store_grades,
)
from pipeline.db.job_control import cancel_job, cancel_samples, pause_job, release_job_samples, resume_job
from pipeline.db.revision import newest_revision
from pipeline.db.session import transaction
from pipeline.db.submissions import insert_job, put_problem_set
from pipeline.db.tables import METADATA
from pipeline.db.upkeep_statements import (
    Settled,
    admit_samples,
    close_jobs,
    halt_paused_jobs,
    overdue_samples,
    suspects_to_try,
)
from pipeline.db.worker_leases import (
    Registration,
    WorkerCounters,
    end_worker,
    finalize_counters,
    put_engine,
    register_worker,
    renew_worker,
)
from pipeline.errors import LeaseLost
from pipeline.jobs.config import JobConfig, JobState, ModelSpec
from pipeline.policies import parse_policy
from pipeline.policies.requests import Generate, request_from_json
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.samples import (
    ALONE_AFTER,
    GUILTY_AFTER_LAPSES,
    TRANSITIONS,
    Author,
    ErrorClass,
    FinishReason,
    GradeStatus,
    ModelRole,
    Piece,
    SampleState,
    SegmentFinish,
)
from pipeline.segments import WrittenSegment
from pipeline.workforce import WorkerEnd, WorkerKind
from tests.integration.lapses import settle_lapsed, time_out_late
from tests.integration.waiting import await_blocked
from tests.pieces import stored

T = TypeVar("T")
TTL = dt.timedelta(minutes=5)


@pytest.fixture
def connection(db_engine: Engine) -> Iterator[Connection]:
    with transaction(db_engine) as connection:
        yield connection


def make_job(connection: Connection, *, num_problems: int = 2, num_samples: int = 1) -> int:
    problems = tuple(
        Problem(external_id=str(i), prompt=f"What is {i}+1?", answer=str(i + 1)) for i in range(num_problems)
    )
    problem_set = ProblemSet(name="sums", content_sha256=content_sha256(problems), problems=problems)
    config = JobConfig(
        small=ModelSpec(name="S"),
        large=ModelSpec(name="L"),
        policy=parse_policy("speculative-thinking:improved"),
        num_samples=num_samples,
    )
    return insert_job(
        connection,
        name="a job",
        policy="speculative-thinking:improved",
        problem_set_id=put_problem_set(connection, problem_set),
        num_problems=num_problems,
        config=config,
        first_role=ModelRole.SMALL,
        versions={},
    )


def make_worker(connection: Connection, role: ModelRole = ModelRole.SMALL, *, ttl: dt.timedelta = TTL) -> int:
    return register_worker(
        connection,
        Registration(
            kind=WorkerKind(role.value),
            model="S" if role is ModelRole.SMALL else "L",
            engine_id=make_engine(connection),
            host="here",
            pid=1,
            queue=f"{role.value}.own",
            max_in_flight=4,
            ttl=ttl,
        ),
    )


def make_engine(connection: Connection) -> int:
    return put_engine(
        connection, kind="scripted", version="1", model="S", model_fingerprint="f", vocabulary_sha256="v", settings={}
    )


def admit_all(connection: Connection) -> dict[int, int]:
    return {sample.sample_id: sample.epoch for sample in admit_samples(connection, ahead=1.0)}


def claim(
    connection: Connection, worker: int, epochs: dict[int, int], role: ModelRole = ModelRole.SMALL
) -> list[ClaimedSample]:
    return claim_samples(connection, worker_id=worker, role=role, epochs=epochs)


NEXT = Generate(role=ModelRole.LARGE, max_tokens=20, trigger="reflection", takes_over=True)


def written(sample: ClaimedSample, to_state: SampleState, *, kept: int = 2) -> SampleCommit:
    piece = Piece(token_ids=(5, 6, 7), texts=("one", " two", " three"))
    return SampleCommit(
        sample_id=sample.sample_id,
        epoch=sample.epoch,
        to_state=to_state,
        segments=(
            WrittenSegment(
                author=Author.SMALL,
                trigger="start",
                piece=piece,
                num_kept=kept,
                finish=SegmentFinish.WATCH,
                tokens_generated=3,
                vocabulary_sha256="v",
            ),
        ),
        num_segments_before=len(sample.context.segments),
        policy_state={"count": 1},
        next_request=NEXT,
        finish_reason=FinishReason.EOS if to_state is SampleState.FINISHED else None,
    )


def commit(connection: Connection, worker: int, *commits: SampleCommit) -> list[int]:
    return [
        s.sample_id
        for s in commit_samples(
            connection, worker_id=worker, engine_id=make_engine(connection), commits=commits
        ).samples
    ]


def state_of(connection: Connection, sample_id: int) -> str:
    return connection.execute(text("SELECT state FROM samples WHERE id = :id"), {"id": sample_id}).scalar_one()


def test_models_and_migrations_describe_the_same_database(connection: Connection) -> None:
    assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_migrations_go_down_and_up_again(db_engine: Engine) -> None:
    migrate.downgrade(db_engine, "base")
    with transaction(db_engine) as connection:
        tables = connection.execute(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")).scalar_one()
    assert tables == 1, "only Alembic's own table is left"
    assert migrate.upgrade(db_engine) == newest_revision()


def test_database_refuses_every_transition_that_the_state_machine_has_not(connection: Connection) -> None:
    job = make_job(connection, num_problems=1)
    columns = {
        "holder_id": "CASE WHEN CAST(:to AS text) IN ('drafting', 'assisting', 'judging') "
        "THEN CAST(:worker AS bigint) END",
        "finish_reason": "CASE WHEN CAST(:to AS text) IN ('finished', 'graded') THEN 'eos' END",
        "error": "CASE WHEN CAST(:to AS text) = 'failed' THEN 'broken' END",
        "ended_at": "CASE WHEN CAST(:to AS text) IN ('graded', 'failed', 'cancelled') THEN now() END",
    }
    others = ", ".join(f"{column} = {value}" for column, value in columns.items())
    move = text(f"UPDATE samples SET state = CAST(:to AS text), {others} WHERE job_id = :job")
    worker = make_worker(connection)
    for start in SampleState:
        for end in SampleState:
            if start is end:
                continue
            with connection.begin_nested() as nested:
                connection.execute(text("ALTER TABLE samples DISABLE TRIGGER log_changes"))
                connection.execute(move, {"to": start.value, "job": job, "worker": worker})
                connection.execute(text("ALTER TABLE samples ENABLE TRIGGER log_changes"))
                if (start, end) in TRANSITIONS:
                    connection.execute(move, {"to": end.value, "job": job, "worker": worker})
                else:
                    with pytest.raises(IntegrityError, match="no transition"), connection.begin_nested():
                        connection.execute(move, {"to": end.value, "job": job, "worker": worker})
                nested.rollback()


def test_admission_stops_at_the_slots_of_live_workers(connection: Connection) -> None:
    make_job(connection, num_problems=10)
    assert admit_samples(connection, ahead=1.5) == [], "nobody could write them"
    make_worker(connection)
    assert len(admit_samples(connection, ahead=1.5)) == 6
    assert admit_samples(connection, ahead=1.5) == [], "the room is used"


def test_second_delivery_of_a_message_claims_nothing(connection: Connection) -> None:
    make_job(connection)
    worker, other = make_worker(connection), make_worker(connection)
    epochs = admit_all(connection)
    assert len(claim(connection, worker, epochs)) == 2
    assert claim(connection, worker, epochs) == []
    assert claim(connection, other, epochs) == []


def test_claim_alone_does_not_wait_for_the_disk(db_engine: Engine) -> None:
    def waits(connection: Connection) -> str:
        return str(connection.execute(text("SHOW synchronous_commit")).scalar_one())

    with transaction(db_engine) as connection:
        make_job(connection)
        worker = make_worker(connection)
        epochs = admit_all(connection)
        assert waits(connection) == "on"
    with transaction(db_engine) as connection:
        assert len(claim(connection, worker, epochs)) == 2
        assert waits(connection) == "off"
    with transaction(db_engine) as connection:
        assert waits(connection) == "on", "what comes next on the same connection waits"


def test_message_of_another_epoch_claims_nothing(connection: Connection) -> None:
    make_job(connection)
    worker = make_worker(connection)
    epochs = {sample_id: epoch + 1 for sample_id, epoch in admit_all(connection).items()}
    assert claim(connection, worker, epochs) == []


def test_worker_of_another_model_or_role_claims_nothing(connection: Connection) -> None:
    make_job(connection)
    make_worker(connection)
    large = make_worker(connection, ModelRole.LARGE)
    epochs = admit_all(connection)
    assert claim(connection, large, epochs) == []
    assert claim(connection, large, epochs, ModelRole.LARGE) == []


def test_resumed_sample_brings_its_context(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    small, large = make_worker(connection), make_worker(connection, ModelRole.LARGE)
    [sample] = claim(connection, small, admit_all(connection))
    [runnable] = commit_samples(
        connection,
        worker_id=small,
        engine_id=make_engine(connection),
        commits=[written(sample, SampleState.AWAITING_LARGE)],
    ).samples
    assert (runnable.state, runnable.model, runnable.resumed) == (SampleState.AWAITING_LARGE, "L", True)
    [resumed] = claim(connection, large, {runnable.sample_id: runnable.epoch}, ModelRole.LARGE)
    assert [segment.kept for segment in resumed.context.segments] == [Piece(token_ids=(5, 6), texts=("one", " two"))]
    assert (resumed.policy_state, request_from_json(resumed.next_request)) == ({"count": 1}, NEXT)


def hop_over(
    connection: Connection, worker: int, epochs: dict[int, int], to_state: SampleState, cache: ContextCache
) -> tuple[ClaimedSample, dict[int, int]]:
    """Claim one sample, write a segment and commit it; what was claimed, and sample id → epoch for who goes on."""
    role = ModelRole.SMALL if to_state is SampleState.AWAITING_LARGE else ModelRole.LARGE
    [claimed] = claim_samples(connection, worker_id=worker, role=role, epochs=epochs, cache=cache)
    commit(connection, worker, written(claimed, to_state))
    return claimed, {claimed.sample_id: claimed.epoch}


def test_claim_reads_only_the_segments_that_came_after_what_is_remembered(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    small, large = make_worker(connection), make_worker(connection, ModelRole.LARGE)
    epochs, cache, others = admit_all(connection), ContextCache(), ContextCache()
    for _ in range(3):
        _, epochs = hop_over(connection, small, epochs, SampleState.AWAITING_LARGE, cache)
        _, epochs = hop_over(connection, large, epochs, SampleState.READY, others)
    connection.execute(text("UPDATE segments SET text = 'new text' WHERE segment_index = 0"))
    [cached] = claim_samples(connection, worker_id=small, role=ModelRole.SMALL, epochs=epochs, cache=cache)
    assert [segment.kept.text for segment in cached.context.segments] == ["one two"] * 6
    assert cache.recall(cached.sample_id) == cached.context
    release_samples(connection, worker_id=small, epochs={cached.sample_id: cached.epoch})
    epochs = {cached.sample_id: cached.epoch + 1}
    [read] = claim_samples(connection, worker_id=small, role=ModelRole.SMALL, epochs=epochs)
    assert [segment.kept.text for segment in read.context.segments] == ["new tex"] + ["one two"] * 5


@pytest.mark.parametrize("num_new", [1, 3, 4])
def test_what_is_remembered_of_a_sample_that_was_begun_anew_is_not_used(connection: Connection, num_new: int) -> None:
    make_job(connection, num_problems=1)
    ways = [
        (make_worker(connection), SampleState.AWAITING_LARGE),
        (make_worker(connection, ModelRole.LARGE), SampleState.READY),
    ] * 2
    epochs, cache = admit_all(connection), ContextCache()
    for worker, to_state in ways:
        claimed, epochs = hop_over(connection, worker, epochs, to_state, cache)
    assert len(cache.recall(claimed.sample_id).segments) == 3
    connection.execute(text("DELETE FROM segments"))
    connection.execute(text("UPDATE samples SET num_segments = 0"))
    for worker, to_state in ways[:num_new]:
        _, epochs = hop_over(connection, worker, epochs, to_state, ContextCache())
    connection.execute(text("UPDATE segments SET text = 'begun anew'"))
    worker, to_state = ways[num_new % 2]
    role = ModelRole.SMALL if to_state is SampleState.AWAITING_LARGE else ModelRole.LARGE
    [again] = claim_samples(connection, worker_id=worker, role=role, epochs=epochs, cache=cache)
    assert [segment.kept.text for segment in again.context.segments] == ["begun a"] * num_new


def test_cache_of_contexts_is_bounded_and_drops_what_was_not_used_for_longest() -> None:
    cache, context = ContextCache(max_tokens=25), context_of(tokens=9)
    cache.keep(1, context)
    cache.keep(2, context)
    cache.keep(1, context)
    cache.keep(3, context)
    assert [cache.recall(i) for i in (1, 2, 3)] == [context, EMPTY, context]
    cache.forget(3)
    cache.keep(4, context)
    assert [cache.recall(i) for i in (1, 3, 4)] == [context, EMPTY, context]


def test_cache_of_contexts_has_a_bound_for_samples_too() -> None:
    cache, context = ContextCache(max_samples=2), context_of(tokens=1)
    for sample_id in (1, 2, 3):
        cache.keep(sample_id, context)
    assert [cache.recall(i) for i in (1, 2, 3)] == [EMPTY, context, context]


def context_of(*, tokens: int) -> Context:
    return Context(segments=(stored(Author.SMALL, ["x"] * tokens),))


def test_sample_goes_home_to_the_worker_that_has_its_context_cached(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    small, large = make_worker(connection), make_worker(connection, ModelRole.LARGE)
    [sample] = claim(connection, small, admit_all(connection))
    commit(connection, small, written(sample, SampleState.AWAITING_LARGE))
    [taken] = claim(connection, large, {sample.sample_id: sample.epoch}, ModelRole.LARGE)
    [back] = commit_samples(
        connection, worker_id=large, engine_id=make_engine(connection), commits=[written(taken, SampleState.READY)]
    ).samples
    assert back.home_queue == "small.own"
    end_worker(connection, small, WorkerCounters())
    settled = settle_lapsed(connection)
    assert settled is not None
    assert [(s.sample_id, s.home_queue) for s in settled.samples] == [(sample.sample_id, None)]


def test_worker_that_comes_back_from_the_dead_can_write_nothing(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    zombie = make_worker(connection, ttl=dt.timedelta(milliseconds=1))
    connection.execute(text("UPDATE workers SET expires_at = clock_timestamp() + interval '1 hour'"))
    [sample] = claim(connection, zombie, admit_all(connection))
    connection.execute(text("UPDATE workers SET expires_at = clock_timestamp() - interval '1 second'"))
    settled = settle_lapsed(connection)
    assert settled is not None
    assert settled.rescued == 1
    assert commit(connection, zombie, written(sample, SampleState.FINISHED)) == []
    assert state_of(connection, sample.sample_id) == "ready"
    assert connection.execute(text("SELECT count(*) FROM segments")).scalar_one() == 0
    with pytest.raises(LeaseLost):
        renew_worker(connection, zombie, ttl=TTL, counters=WorkerCounters())
    assert claim(connection, zombie, {s.sample_id: s.epoch for s in settled.samples}) == []


def test_fewer_are_admitted_where_a_worker_says_it_has_less_room(connection: Connection) -> None:
    make_job(connection, num_problems=10)
    worker = make_worker(connection)
    renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters(num_slots=2))
    assert len(admit_all(connection)) == 2
    renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters(num_slots=1))
    assert admit_all(connection) == {}
    renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters(num_slots=3))
    assert len(admit_all(connection)) == 1
    renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters())
    assert len(admit_all(connection)) == 1, "one that says nothing has room for all that it works on"
    assert connection.execute(text("SELECT max_in_flight FROM workers")).scalar_one() == 4, "and that stays"


def test_a_job_is_admitted_in_each_round_however_slow_the_server_is(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first answer may come when the time for admitting is over."""
    monkeypatch.setattr(upkeep_statements, "ADMITTING_S", -1.0)
    first, second = make_job(connection, num_problems=1), make_job(connection, num_problems=1)
    make_worker(connection)
    assert [sample.job_id for sample in admit_samples(connection, ahead=1.0)] == [first]
    assert [sample.job_id for sample in admit_samples(connection, ahead=1.0)] == [second]


PUT_BACK = text("UPDATE samples SET published_at = published_at - :time, runnable_at = runnable_at - :time")
MINUTE = dt.timedelta(minutes=1)


def waited(connection: Connection, worker: int, sample_id: int) -> float:
    """Seconds that a sample's claim says it waited."""
    [sample] = claim(connection, worker, epochs_of(connection, sample_id))
    assert sample.wait_seconds is not None
    return sample.wait_seconds


def test_wait_begins_when_a_sample_can_be_claimed_however_often_it_is_published(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    worker = make_worker(connection)
    [sample] = admit_all(connection)
    connection.execute(PUT_BACK, {"time": MINUTE})
    assert len(overdue_samples(connection, age=dt.timedelta(seconds=10))) == 1
    assert 60 <= waited(connection, worker, sample) < 120


def test_wait_of_a_rescued_sample_begins_with_the_rescue(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    [sample] = [s.sample_id for s in claim(connection, make_worker(connection), admit_all(connection))]
    connection.execute(PUT_BACK, {"time": MINUTE})
    for worker in connection.execute(text("SELECT id FROM workers")).scalars().all():
        die_with(connection, worker)
    assert waited(connection, make_worker(connection), sample) < 30


def test_wait_leaves_out_pauses_and_delays(connection: Connection) -> None:
    job = make_job(connection, num_problems=1)
    worker = make_worker(connection)
    [sample] = admit_all(connection)
    pause_job(connection, job)
    release_job_samples(connection, job)
    connection.execute(PUT_BACK, {"time": MINUTE})
    resume_job(connection, job)
    assert waited(connection, worker, sample) < 30
    defer_samples(connection, worker_id=worker, epochs=epochs_of(connection, sample), error="busy", max_attempts=9)
    row = connection.execute(text("SELECT runnable_at, not_before FROM samples")).one()
    assert row.runnable_at == row.not_before


def claim_for_trial(connection: Connection, worker: int, epochs: dict[int, int]) -> list[ClaimedSample]:
    """Claim one sample, which has the worker to itself from then on."""
    [sample] = claim(connection, worker, epochs)
    assert begin_trial(connection, worker_id=worker, claim=(sample.sample_id, sample.epoch))
    return [sample]


def die_with(connection: Connection, worker: int, reason: WorkerEnd = WorkerEnd.ENGINE_DIED) -> Settled:
    end_worker(connection, worker, WorkerCounters(), reason=reason)
    settled = settle_lapsed(connection)
    assert settled is not None
    return settled


def epochs_of(connection: Connection, *sample_ids: int) -> dict[int, int]:
    rows = connection.execute(text("SELECT id, epoch FROM samples WHERE id = ANY(:ids)"), {"ids": list(sample_ids)})
    return {row.id: row.epoch for row in rows}


@pytest.mark.parametrize(
    ("reason", "error_class"),
    [
        (WorkerEnd.ENGINE_DIED, "engine_died"),
        (WorkerEnd.ENGINE_STALLED, "timed_out"),
        (WorkerEnd.WRITER_FAILED, "internal"),
    ],
)
def test_suspect_that_kills_its_worker_again_is_set_aside(
    connection: Connection, reason: WorkerEnd, error_class: str
) -> None:
    job = make_job(connection, num_problems=1)
    worker = make_worker(connection)
    [sample] = claim(connection, worker, admit_all(connection))
    assert die_with(connection, worker, reason).failed == 0
    for why in ("it was no suspect when it was claimed", "others may have been beside it"):
        worker = make_worker(connection)
        [sample] = claim(connection, worker, epochs_of(connection, sample.sample_id))
        assert not sample.must_be_alone
        assert die_with(connection, worker, reason).failed == 0, why
    worker = make_worker(connection)
    [sample] = claim(connection, worker, epochs_of(connection, sample.sample_id))
    assert sample.must_be_alone
    assert die_with(connection, worker, reason).failed == 0, "its trial has not begun"
    worker = make_worker(connection)
    [sample] = claim_for_trial(connection, worker, epochs_of(connection, sample.sample_id))
    assert die_with(connection, worker, reason).failed == 1
    row = connection.execute(text("SELECT state, error_class, error, num_rescues FROM samples")).one()
    assert (row.state, row.error_class, row.num_rescues) == ("failed", error_class, 5)
    assert f"worker {worker}" in row.error
    assert close_jobs(connection) == {job: JobState.COMPLETED_WITH_ERRORS}


def test_sample_that_becomes_the_only_suspect_by_a_death_is_not_blamed_for_it(connection: Connection) -> None:
    """It was beside one that died once before; the other, which is fresh, may have killed the worker."""
    make_job(connection, num_problems=2)
    worker = make_worker(connection)
    epochs = admit_all(connection)
    bystander, fresh = sorted(epochs)
    claim(connection, worker, {bystander: epochs[bystander]})
    die_with(connection, worker)
    worker = make_worker(connection)
    claim(connection, worker, epochs_of(connection, bystander, fresh))
    settled = die_with(connection, worker)
    assert (settled.rescued, settled.failed) == (2, 0)
    assert state_of(connection, bystander) == "ready"
    worker = make_worker(connection)
    [suspect] = suspects_to_try(connection, age=dt.timedelta(seconds=10))
    assert suspect.sample_id == bystander
    [sample] = claim(connection, worker, {bystander: suspect.epoch})
    commit(connection, worker, written(sample, SampleState.READY))
    assert connection.execute(text("SELECT sum(num_rescues) FROM samples")).scalar_one() == 1, "the commit clears it"


def test_suspect_whose_workers_vanish_is_blamed_after_five_losses_and_not_before(connection: Connection) -> None:
    """A long segment on hosts that are taken away is none that kills."""
    make_job(connection, num_problems=1)
    epochs: dict[int, int] = {}
    failed = []
    for _ in range(GUILTY_AFTER_LAPSES):
        worker = make_worker(connection)
        [sample] = claim_for_trial(connection, worker, epochs or admit_all(connection))
        failed.append(vanish_with(connection, worker).failed)
        epochs = epochs_of(connection, sample.sample_id)
    assert failed == [0, 0, 0, 0, 1]
    assert state_of(connection, sample.sample_id) == "failed"


def test_one_death_of_the_engine_convicts_a_suspect_whose_workers_vanished(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    epochs: dict[int, int] = {}
    for _ in range(3):
        worker = make_worker(connection)
        [sample] = claim(connection, worker, epochs or admit_all(connection))
        assert vanish_with(connection, worker).failed == 0
        epochs = epochs_of(connection, sample.sample_id)
    worker = make_worker(connection)
    claim_for_trial(connection, worker, epochs)
    assert die_with(connection, worker).failed == 1


def test_trial_needs_a_worker_that_holds_nothing_else_and_ends_with_its_claim(connection: Connection) -> None:
    make_job(connection, num_problems=2)
    worker = make_worker(connection)
    epochs = admit_all(connection)
    first, second = claim(connection, worker, epochs)
    trial = first.sample_id, first.epoch
    assert not begin_trial(connection, worker_id=worker, claim=trial)
    release_samples(connection, worker_id=worker, epochs={second.sample_id: second.epoch})
    assert begin_trial(connection, worker_id=worker, claim=trial)
    release_samples(connection, worker_id=worker, epochs=dict([trial]))
    with pytest.raises(LeaseLost):
        begin_trial(connection, worker_id=worker, claim=trial)


def accuse(connection: Connection, sample_id: int) -> None:
    """Three workers died with it, the last time as a suspect."""
    accused = text("UPDATE samples SET num_rescues = :deaths, published_at = '-infinity' WHERE id = :id")
    connection.execute(accused, {"deaths": ALONE_AFTER, "id": sample_id})


def test_death_of_a_worker_that_claimed_beside_a_trial_convicts_nobody(connection: Connection) -> None:
    make_job(connection, num_problems=2)
    worker = make_worker(connection)
    accused, other = sorted(admit_all(connection))
    accuse(connection, accused)
    claim_for_trial(connection, worker, epochs_of(connection, accused))
    claim(connection, worker, epochs_of(connection, other))
    assert die_with(connection, worker).failed == 0


def test_samples_that_must_be_alone_are_tried_one_after_another_and_first(connection: Connection) -> None:
    make_job(connection, num_problems=4)
    workers = [make_worker(connection) for _ in range(3)]
    suspect, *accused = sorted(admit_all(connection))[:3]
    for one in accused:
        accuse(connection, one)
    twice = text("UPDATE samples SET num_rescues = 2, published_at = '-infinity' WHERE id = :id")
    connection.execute(twice, {"id": suspect})
    age = dt.timedelta(seconds=10)
    tried = {one.sample_id for one in suspects_to_try(connection, age=age)}
    assert tried == {suspect, accused[0]}, "one alone, on one of three workers"
    [sample] = claim_for_trial(connection, workers[0], epochs_of(connection, accused[0]))
    assert claim(connection, workers[0], epochs_of(connection, suspect)) == [], "no suspect beside another"
    assert suspects_to_try(connection, age=age) == []
    commit(connection, workers[0], written(sample, SampleState.READY))
    assert [each.sample_id for each in suspects_to_try(connection, age=age)] == accused[1:]


def vanish_with(connection: Connection, worker: int) -> Settled:
    """Its lease runs out, and nobody knows why."""
    connection.execute(
        text("UPDATE workers SET renewed_at = renewed_at - :time, expires_at = expires_at - :time WHERE id = :id"),
        {"time": 2 * TTL, "id": worker},
    )
    settled = settle_lapsed(connection)
    assert settled is not None
    return settled


def test_worker_that_stops_in_order_blames_nobody(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    for _ in range(3):
        worker = make_worker(connection)
        [sample] = claim(connection, worker, admit_all(connection) or epochs_of(connection, 1))
        assert die_with(connection, worker, WorkerEnd.STOPPED).failed == 0
    assert state_of(connection, sample.sample_id) == "ready"


def test_suspects_are_tried_alone_until_the_guilty_one_is_found(connection: Connection) -> None:
    make_job(connection, num_problems=3)
    worker = make_worker(connection)
    samples = claim(connection, worker, admit_all(connection))
    die_with(connection, worker)
    worker = make_worker(connection)
    claim(connection, worker, epochs_of(connection, *(sample.sample_id for sample in samples)))
    settled = die_with(connection, worker)
    assert (settled.rescued, settled.failed) == (3, 0), "any of the three may have done it"
    assert all(sample.is_suspect for sample in settled.samples)
    age = dt.timedelta(seconds=10)
    assert overdue_samples(connection, age=age) == [], "no suspect is published with others"
    assert suspects_to_try(connection, age=age) == [], "nobody lives who could write it"
    worker = make_worker(connection)
    [first] = suspects_to_try(connection, age=age)
    assert suspects_to_try(connection, age=age) == [], "one at a time"
    [sample] = claim(connection, worker, {first.sample_id: first.epoch})
    assert suspects_to_try(connection, age=age) == [], "one at a time"
    commit(connection, worker, written(sample, SampleState.READY))
    assert connection.execute(text("SELECT count(*) FROM samples WHERE num_rescues > 0")).scalar_one() == 2
    [second] = suspects_to_try(connection, age=age)
    assert second.sample_id != first.sample_id
    claim(connection, worker, {second.sample_id: second.epoch})
    assert die_with(connection, worker).failed == 0, "others that nobody suspects may have been beside it"
    worker = make_worker(connection)
    [accused] = suspects_to_try(connection, age=age)
    assert accused.sample_id == second.sample_id
    claim_for_trial(connection, worker, {accused.sample_id: accused.epoch})
    assert die_with(connection, worker).failed == 1
    assert state_of(connection, second.sample_id) == "failed"
    make_worker(connection)
    [third] = suspects_to_try(connection, age=age)
    assert third.sample_id not in (first.sample_id, second.sample_id)


def test_worker_takes_one_suspect_at_a_time_whatever_messages_it_gets(connection: Connection) -> None:
    """Two that are tried at once, for two workers, may reach the same one, again and again, and it dies with both."""
    make_job(connection, num_problems=3)
    worker = make_worker(connection)
    epochs = admit_all(connection)
    innocent, *suspects = sorted(epochs)
    connection.execute(text("UPDATE samples SET num_rescues = 2 WHERE id = ANY(:ids)"), {"ids": suspects})
    claimed = claim(connection, worker, epochs)
    assert sorted(sample.sample_id for sample in claimed) == [innocent, suspects[0]]
    assert claim(connection, worker, {suspects[1]: epochs[suspects[1]]}) == []
    [other] = claim(connection, make_worker(connection), {suspects[1]: epochs[suspects[1]]})
    assert other.sample_id == suspects[1]
    [suspect] = [sample for sample in claimed if sample.sample_id == suspects[0]]
    commit(connection, worker, written(suspect, SampleState.READY))
    assert len(claim(connection, worker, epochs_of(connection, suspects[0]))) == 1, "a commit clears it"


def test_lease_is_not_taken_by_an_upkeep_that_was_away_itself(connection: Connection) -> None:
    worker = make_worker(connection, ttl=dt.timedelta(seconds=5))
    connection.execute(
        text("UPDATE workers SET renewed_at = renewed_at - interval '9 s', expires_at = expires_at - interval '9 s'")
    )
    assert settle_lapsed(connection, awake_for=dt.timedelta(seconds=4)) is None
    renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters())
    assert settle_lapsed(connection, awake_for=dt.timedelta(hours=1)) is None


def test_engine_that_refuses_for_the_moment_delays_a_sample_and_fails_it_in_the_end(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    worker = make_worker(connection)
    epochs = admit_all(connection)
    for attempt in range(3):
        [sample] = claim(connection, worker, epochs)
        defer_samples(
            connection,
            worker_id=worker,
            epochs={sample.sample_id: sample.epoch},
            error="out of memory\x00",
            max_attempts=3,
        )
        row = connection.execute(
            text("SELECT state, num_attempts, error_class, error, not_before - now() AS delay FROM samples")
        ).one()
        assert row.num_attempts == attempt + 1
        if attempt < 2:
            assert (row.state, row.error) == ("ready", None)
            assert 2**attempt - 0.5 < row.delay.total_seconds() < 2**attempt + 5
            epochs = epochs_of(connection, sample.sample_id)
            assert claim(connection, worker, epochs) == [], "before its delay is over"
            assert overdue_samples(connection, age=TTL) == []
            connection.execute(text("UPDATE samples SET not_before = clock_timestamp()"))
            assert [due.epoch for due in overdue_samples(connection, age=TTL)] == [*epochs.values()]
    assert (row.state, row.error_class, row.error) == ("failed", "engine_refused", "out of memory\ufffd")


def test_message_of_another_job_claims_nothing(connection: Connection) -> None:
    job = make_job(connection)
    worker = make_worker(connection)
    epochs = admit_all(connection)
    assert claim_samples(connection, worker_id=worker, role=ModelRole.SMALL, epochs=epochs, job_id=job + 1) == []
    assert len(claim_samples(connection, worker_id=worker, role=ModelRole.SMALL, epochs=epochs, job_id=job)) == 2


def test_claim_and_the_end_of_its_worker_never_pass_each_other(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        make_job(connection)
        worker = make_worker(connection)
        first, second = admit_all(connection).items()
    with ThreadPoolExecutor() as pool:
        with transaction(db_engine) as connection:
            claim(connection, worker, dict([first]))
            settling = pool.submit(in_transaction, db_engine, lambda other: die_with(other, worker))
            await_blocked(db_engine)
        assert settling.result(timeout=20).rescued == 1, "the settling saw the claim"
    with transaction(db_engine) as connection:
        worker = make_worker(connection)
    with ThreadPoolExecutor() as pool:
        with transaction(db_engine) as connection:
            die_with(connection, worker)
            claiming = pool.submit(in_transaction, db_engine, lambda other: claim(other, worker, dict([second])))
            await_blocked(db_engine)
        assert claiming.result(timeout=20) == [], "the claim saw the settling"


def in_transaction(db_engine: Engine, action: Callable[[Connection], T]) -> T:
    with transaction(db_engine) as connection:
        return action(connection)


def test_paused_job_is_taken_from_its_workers_and_given_to_nobody(connection: Connection) -> None:
    job = make_job(connection)
    worker = make_worker(connection)
    epochs = admit_all(connection)
    [sample] = claim(connection, worker, dict([epochs.popitem()]))
    connection.execute(text("UPDATE jobs SET state = 'paused' WHERE id = :job"), {"job": job})
    assert halt_paused_jobs(connection) == 1
    assert commit(connection, worker, written(sample, SampleState.FINISHED)) == []
    assert claim(connection, worker, epochs) == []
    assert overdue_samples(connection, age=dt.timedelta(0)) == []
    assert close_jobs(connection) == {}
    connection.execute(text("UPDATE jobs SET state = 'running' WHERE id = :job"), {"job": job})
    assert halt_paused_jobs(connection) == 0
    assert len(claim(connection, worker, epochs)) == 1


def test_job_of_a_higher_priority_is_admitted_first(connection: Connection) -> None:
    first, second = make_job(connection, num_samples=4), make_job(connection, num_samples=4)
    connection.execute(text("UPDATE jobs SET priority = 1 WHERE id = :job"), {"job": second})
    make_worker(connection)
    assert {sample.job_id for sample in admit_samples(connection, ahead=1.0)} == {second}
    assert first != second


def test_failed_sample_keeps_what_a_retry_needs(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    small, large = make_worker(connection), make_worker(connection, ModelRole.LARGE)
    [sample] = claim(connection, small, admit_all(connection))
    commit(connection, small, written(sample, SampleState.AWAITING_LARGE))
    [taken] = claim(connection, large, epochs_of(connection, sample.sample_id), ModelRole.LARGE)
    failing = SampleCommit(
        sample_id=taken.sample_id,
        epoch=taken.epoch,
        to_state=SampleState.FAILED,
        error_class=ErrorClass.INTERNAL,
        error="broke",
    )
    commit(connection, large, failing)
    connection.execute(
        text(
            "UPDATE samples SET state = 'pending', error = NULL, error_class = NULL, ended_at = NULL, epoch = epoch + 1"
        )
    )
    [again] = admit_samples(connection, ahead=1.0)
    assert again.state is SampleState.AWAITING_LARGE
    [resumed] = claim(connection, large, {again.sample_id: again.epoch}, ModelRole.LARGE)
    assert (resumed.policy_state, request_from_json(resumed.next_request)) == ({"count": 1}, NEXT)


def test_released_sample_is_runnable_under_a_new_epoch(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    worker = make_worker(connection)
    [sample] = claim(connection, worker, admit_all(connection))
    assert held_epochs(connection, worker) == {sample.sample_id: sample.epoch}
    assert release_samples(connection, worker_id=worker, epochs={sample.sample_id: sample.epoch - 1}) == []
    [released] = release_samples(connection, worker_id=worker, epochs={sample.sample_id: sample.epoch})
    assert (released.state, released.epoch) == (SampleState.READY, sample.epoch + 1)
    assert commit(connection, worker, written(sample, SampleState.FINISHED)) == []


def test_cancelled_job_refuses_what_is_still_being_written(connection: Connection) -> None:
    job = make_job(connection)
    worker = make_worker(connection)
    samples = claim(connection, worker, admit_all(connection))
    assert cancel_job(connection, job)
    assert not cancel_job(connection, job)
    assert cancel_samples(connection, job) == 2
    assert commit(connection, worker, *(written(sample, SampleState.FINISHED) for sample in samples)) == []
    assert held_epochs(connection, worker) == {}
    assert {state_of(connection, sample.sample_id) for sample in samples} == {"cancelled"}


def test_tokens_of_a_sample_are_the_sum_of_its_segments(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    small, large = make_worker(connection), make_worker(connection, ModelRole.LARGE)
    [sample] = claim(connection, small, admit_all(connection))
    commit(connection, small, written(sample, SampleState.AWAITING_LARGE, kept=1))
    [taken] = claim(connection, large, {sample.sample_id: sample.epoch}, ModelRole.LARGE)
    commit(connection, large, written(taken, SampleState.FINISHED, kept=3))
    row = connection.execute(text("SELECT * FROM samples")).mappings().one()
    assert (row["tokens_small"], row["discarded_small"], row["num_segments"]) == (4, 2, 2)
    rows = connection.execute(text("SELECT token_ids, discarded_ids, text FROM segments ORDER BY segment_index")).all()
    assert rows == [([5], [6, 7], "one"), ([5, 6, 7], [], "one two three")]


def test_every_change_of_state_is_in_the_event_log(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    worker = make_worker(connection)
    [sample] = claim(connection, worker, admit_all(connection))
    commit(connection, worker, written(sample, SampleState.FINISHED))
    events = connection.execute(text("SELECT from_state, to_state, worker_id FROM events ORDER BY id")).all()
    assert events == [("pending", "ready", None), ("ready", "drafting", worker), ("drafting", "finished", worker)]
    with pytest.raises(IntegrityError, match="append-only"), connection.begin_nested():
        connection.execute(text("DELETE FROM events"))


def test_sample_whose_message_was_lost_is_found_again_once(connection: Connection) -> None:
    make_job(connection, num_problems=1)
    make_worker(connection)
    [sample_id] = admit_all(connection)
    age = dt.timedelta(seconds=10)
    assert overdue_samples(connection, age=age) == []
    connection.execute(text("UPDATE samples SET published_at = clock_timestamp() - interval '11 seconds'"))
    assert [sample.sample_id for sample in overdue_samples(connection, age=age)] == [sample_id]
    assert overdue_samples(connection, age=age) == [], "it counts as published now"


def test_claim_finds_samples_by_their_ids_whatever_jobs_there_are(connection: Connection) -> None:
    """Planned as workers' sessions do it: once, for any values. Beside a large job are thousands of one sample each."""
    job = make_job(connection, num_problems=200, num_samples=100)
    columns = ", ".join(column.name for column in METADATA.tables["jobs"].columns if column.name != "id")
    connection.execute(
        text(f"""
            WITH copies AS (
                INSERT INTO jobs ({columns}) SELECT {columns} FROM jobs, generate_series(1, 3000) WHERE id = :job
                RETURNING id
            )
            INSERT INTO samples (job_id, problem_id, sample_index)
            SELECT copies.id, (SELECT min(id) FROM problems), 0 FROM copies
        """),
        {"job": job},
    )
    connection.execute(text("ANALYZE jobs, samples"))
    statement = claims._CLAIM.compile(connection).string
    for place, name in enumerate(("ids", "epochs", "worker", "role", "job", "runnable", "writing"), 1):
        statement = re.sub(rf"%\({name}\)s(::\w+)?", f"${place}", statement)
    cursor = connection.connection.cursor()
    cursor.execute(f"EXPLAIN (GENERIC_PLAN) {statement}".encode())
    lines = [line for (line,) in cursor.fetchall()]
    found = {line.strip() for line in lines if re.search(r" on samples s(_\d+)?  ", line) and "Scan" in line}
    assert found
    assert all("using pk_samples" in line for line in found), "\n".join(lines)
    assert not [line for line in lines if "Seq Scan on jobs" in line], "\n".join(lines)


def finish_one(connection: Connection) -> Ungraded:
    job = make_job(connection, num_problems=1)
    worker = make_worker(connection)
    [sample] = claim(connection, worker, admit_all(connection))
    commit(connection, worker, written(sample, SampleState.FINISHED))
    [ungraded] = select_ungraded(connection, [sample.sample_id], job_id=job)
    return ungraded


def begin(connection: Connection, ungraded: Ungraded, patience: dt.timedelta) -> bool:
    return begin_grade(
        connection, sample_id=ungraded.sample_id, epoch=ungraded.epoch, grader="math", version="1", patience=patience
    )


def test_grading_whose_grader_was_killed_is_begun_once_more_before_it_counts_as_timed_out(
    connection: Connection,
) -> None:
    ungraded = finish_one(connection)
    hour, none = dt.timedelta(hours=1), dt.timedelta(0)
    assert begin(connection, ungraded, hour)
    assert not begin(connection, ungraded, hour), "somebody may still be at it"
    assert time_out_late(connection, age=none, tries=2) == []
    assert begin(connection, ungraded, none)
    assert time_out_late(connection, age=hour, tries=2) == []
    assert time_out_late(connection, age=none, tries=2) == [ungraded.sample_id]
    row = connection.execute(text("SELECT s.state, s.score, g.status FROM samples s JOIN grades g ON true")).one()
    assert row == ("graded", None, "timeout")


def test_samples_without_a_grade_by_the_present_version_can_be_graded_again(connection: Connection) -> None:
    ungraded = finish_one(connection)
    waiting, done = Gradable([ungraded.sample_id], 0), Gradable([], 1)

    def gradable(version: str) -> Gradable:
        return gradable_samples(connection, ungraded.job_id, grader="math", version=version)

    assert gradable("1") == waiting
    assert begin(connection, ungraded, dt.timedelta(0))
    assert gradable("1") == waiting, "its grader may have died"
    assert end_grade(
        connection, sample_id=ungraded.sample_id, epoch=ungraded.epoch, grader="math", version="1",
        status=GradeStatus.DONE, score=1.0, predicted_answer="2", detail=None,
    )  # fmt: skip
    assert gradable("1") == done
    assert gradable("2") == waiting


def store(connection: Connection, ungraded: Ungraded, *, epoch: int | None = None) -> set[int]:
    grade = TextGrade(
        sample_id=ungraded.sample_id,
        epoch=ungraded.epoch if epoch is None else epoch,
        status=GradeStatus.DONE,
        score=1.0,
        predicted_answer="2",
        detail=None,
    )
    return store_grades(connection, [grade], grader="math", version="1")


def test_grades_that_take_no_time_are_stored_once_and_only_where_nobody_began(connection: Connection) -> None:
    ungraded = finish_one(connection)
    assert store(connection, ungraded, epoch=ungraded.epoch - 1) == set()
    assert store(connection, ungraded) == {ungraded.sample_id}
    assert store(connection, ungraded) == set()
    row = connection.execute(text("SELECT s.state, s.score, g.status FROM samples s JOIN grades g ON true")).one()
    assert row == ("graded", 1.0, "done")
    other = finish_one(connection)
    assert begin(connection, other, dt.timedelta(0))
    assert store(connection, other) == set()
    assert state_of(connection, other.sample_id) == "finished"


def test_grade_of_a_text_that_was_drawn_again_is_refused(connection: Connection) -> None:
    ungraded = finish_one(connection)
    assert begin(connection, ungraded, dt.timedelta(0))
    connection.execute(text("UPDATE samples SET epoch = epoch + 1"))
    assert not end_grade(
        connection,
        sample_id=ungraded.sample_id,
        epoch=ungraded.epoch,
        grader="math",
        version="1",
        status=GradeStatus.DONE,
        score=1.0,
        predicted_answer="2",
        detail=None,
    )
    assert state_of(connection, ungraded.sample_id) == "finished"
    assert not begin(connection, ungraded, dt.timedelta(0))


# A restore to an earlier moment, while workers live


@contextmanager
def lost_history(connection: Connection) -> Iterator[None]:
    """What happens inside is undone, and the sequences go back: as by a restore to the moment of the beginning."""
    last = connection.execute(text("SELECT last_value FROM workers_id_seq")).scalar_one()
    undone = connection.begin_nested()
    yield
    undone.rollback()
    connection.execute(text("SELECT setval('workers_id_seq', :last)"), {"last": last})


def test_life_that_a_restore_has_undone_is_nobodys(connection: Connection) -> None:
    make_job(connection)
    make_worker(connection)
    waiting = admit_all(connection)
    with lost_history(connection):
        lost = make_worker(connection)
    again = make_worker(connection)
    assert again != lost
    with pytest.raises(LeaseLost):
        renew_worker(connection, lost, ttl=TTL, counters=WorkerCounters())
    assert claim(connection, lost, waiting) == []
    assert len(claim(connection, again, waiting)) == 2
    assert held_epochs(connection, lost) == {}
    end_worker(connection, lost, WorkerCounters())
    renew_worker(connection, again, ttl=TTL, counters=WorkerCounters())


def test_life_that_a_restore_has_set_back_is_over(connection: Connection) -> None:
    worker = make_worker(connection)
    counters = WorkerCounters(tokens_generated=5, tokens_committed=5)
    first = renew_worker(connection, worker, ttl=TTL, counters=counters)
    with lost_history(connection):
        second = renew_worker(connection, worker, ttl=TTL, counters=counters, since=first)
    with pytest.raises(LeaseLost):
        renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters(tokens_committed=9), since=second)
    finalize_counters(connection, worker, WorkerCounters(tokens_committed=9))
    assert connection.execute(text("SELECT tokens_committed FROM workers")).scalar_one() == 5
    third = renew_worker(connection, worker, ttl=TTL, counters=counters, since=first)  # whose answer is lost
    assert renew_worker(connection, worker, ttl=TTL, counters=counters, since=first) > third


def test_commit_that_is_not_there_after_a_restart_of_the_server_is_found(connection: Connection) -> None:
    make_job(connection)
    worker = make_worker(connection)
    first, second = claim(connection, worker, admit_all(connection))
    commits = [written(sample, SampleState.AWAITING_LARGE) for sample in (first, second)]
    engine = make_engine(connection)
    (row,) = commit_samples(connection, worker_id=worker, engine_id=engine, commits=commits).rows
    committed_at = connection.execute(text("SELECT DISTINCT committed_at FROM segments")).scalar_one()
    assert row == StoredRow(worker, first.sample_id, committed_at)
    assert commit_samples(connection, worker_id=worker, engine_id=engine, commits=commits).rows == ()
    lost = row._replace(sample_id=0)
    assert not are_undone(connection, [row, lost]), "stored since the server started"
    began = "UPDATE segments SET committed_at = pg_postmaster_start_time() - interval '1 s' RETURNING committed_at"
    before = connection.execute(text(began)).scalars().all()[0]
    row, lost = (each._replace(committed_at=before) for each in (row, lost))
    assert not are_undone(connection, [row])
    assert are_undone(connection, [row, lost])
    assert are_undone(connection, [row._replace(worker_id=worker + 1)]), "another life's"


def test_commit_of_a_lost_history_is_refused(connection: Connection) -> None:
    """Its worker lives on in the restored database, and holds the sample at the same epoch, with fewer segments."""
    job = make_job(connection, num_problems=1)
    worker = make_worker(connection)
    waiting = admit_all(connection)
    with lost_history(connection):
        commit(connection, worker, written(claim(connection, worker, waiting)[0], SampleState.READY))
        late = written(claim(connection, worker, runnable_epochs(connection, job))[0], SampleState.AWAITING_LARGE)
        assert (late.epoch, late.num_segments_before) == (2, 1)
    first = claim(connection, worker, waiting)
    release_samples(connection, worker_id=worker, epochs={sample.sample_id: sample.epoch for sample in first})
    connection.execute(text("UPDATE samples SET epoch = 1"))  # to meet the lost claim's
    (held,) = claim(connection, worker, runnable_epochs(connection, job))
    assert held.epoch == late.epoch
    assert commit(connection, worker, late) == []
    assert commit(connection, worker, written(held, SampleState.READY)) == [held.sample_id]
    indexes = connection.execute(text("SELECT segment_index FROM segments ORDER BY 1")).scalars().all()
    assert indexes == [0]


def test_cached_text_of_a_lost_history_is_read_anew(connection: Connection) -> None:
    job = make_job(connection, num_problems=1)
    worker = make_worker(connection)
    waiting = admit_all(connection)
    cache = ContextCache()
    with lost_history(connection):
        commit(connection, worker, written(claim(connection, worker, waiting)[0], SampleState.READY))
        epochs = runnable_epochs(connection, job)
        claim_samples(connection, worker_id=worker, role=ModelRole.SMALL, epochs=epochs, cache=cache)
    commit(connection, worker, written(claim(connection, worker, waiting)[0], SampleState.READY, kept=1))
    connection.execute(text("UPDATE segments SET committed_at = committed_at + interval '1 s'"))  # a later transaction
    epochs = runnable_epochs(connection, job)
    (sample,) = claim_samples(connection, worker_id=worker, role=ModelRole.SMALL, epochs=epochs, cache=cache)
    assert [segment.text for segment in sample.context.segments] == ["one"]


def runnable_epochs(connection: Connection, job: int) -> dict[int, int]:
    rows = connection.execute(text("SELECT id, epoch FROM samples WHERE job_id = :job"), {"job": job})
    return {row.id: row.epoch for row in rows}

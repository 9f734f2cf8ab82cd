"""A writer on a real Postgres, with an engine that answers from a script: what happens at its edges."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pydantic import SecretStr
from sqlalchemy import Connection, make_url, text
from sqlalchemy import Engine as DbEngine
from sqlalchemy.exc import DBAPIError

from pipeline.chat.model import ChatModel
from pipeline.db.claims import ClaimedSample, claim_samples, held_epochs
from pipeline.db.commits import Committed, SampleCommit, commit_samples
from pipeline.db.job_configs import fix_identity
from pipeline.db.job_control import cancel_job, cancel_samples
from pipeline.db.runnable import Runnable
from pipeline.db.session import open_database, transaction
from pipeline.db.submissions import insert_job, put_problem_set
from pipeline.db.upkeep_statements import admit_samples, overdue_samples
from pipeline.db.worker_leases import Registration, finalize_counters, put_engine, register_worker
from pipeline.errors import EngineUnavailable
from pipeline.jobs.config import JobConfig, ModelSpec, SamplingSpec
from pipeline.policies import parse_policy
from pipeline.policies.requests import Generate
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.samples import ALONE_AFTER, ModelRole, SampleState
from pipeline.workforce import WorkerEnd, WorkerKind
from tests.integration.lapses import settle_lapsed
from tests.integration.rows import refuse_rows
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.engine.base import Done, GenerateRequest, Sampling
from workers.engine.scripted import ScriptedEngine
from workers.writing.endings import EndedClaim
from workers.writing.latch import Latch
from workers.writing.store import Identity
from workers.writing.writer import Writer

DEMO_SMALL = Path(__file__).parents[2] / "examples" / "models" / "demo-small"
CHAT = ChatModel.load(DEMO_SMALL)
ANSWER = CHAT.encode_text("First add.\n\nThen stop.</think>\n\n")


@dataclass
class WriterRig:
    """A writer with a job of two samples, admitted and not yet claimed."""

    writer: Writer
    engine: ScriptedEngine
    db_engine: DbEngine
    job_id: int
    worker_id: int
    message: SamplesMessage
    ends: list[WorkerEnd]
    """Why the worker would have ended."""

    def write_in_background(self) -> threading.Thread:
        thread = threading.Thread(target=self.writer.write, args=(self.message,))
        thread.start()
        return thread

    def one(self, query: str) -> tuple[object, ...]:
        with transaction(self.db_engine) as connection:
            return tuple(connection.execute(text(query)).one())


def soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class BusyEngine(ScriptedEngine):
    """Refuses every request for the moment."""

    def _prepare(self, request: GenerateRequest) -> GenerateRequest:
        raise EngineUnavailable("S", "out of memory")


class GreedyEngine(ScriptedEngine):
    """Draws no tokens, as one with drafts on a CPU."""

    def why_not(self, sampling: Sampling) -> str | None:
        return f"not at {sampling.temperature:g}" if sampling.temperature else None


def register_other(connection: Connection, registration: Registration, fingerprint: str) -> None:
    """A worker beside this one, which serves another model under its name."""
    engine_id = put_engine(
        connection, kind="scripted", version="1", model="S", model_fingerprint=fingerprint, vocabulary_sha256="v",
        settings={},
    )  # fmt: skip
    register_worker(connection, replace(registration, engine_id=engine_id, queue="small.S.right"))


def make_rig(
    db_engine: DbEngine,
    *,
    step_s: float = 0.0,
    max_tokens: int = 100,
    prompt: str = "1+1?",
    fingerprint: str | None = None,
    weights: str | None = None,
    engine_type: type[ScriptedEngine] = ScriptedEngine,
) -> WriterRig:
    """fingerprint: of the model that the job was submitted with, and that another worker serves; None: of any. weights:
    of the worker's model."""
    problems = tuple(Problem(external_id=str(i), prompt=prompt, answer="2") for i in range(2))
    problem_set = ProblemSet(name="sums", content_sha256=content_sha256(problems), problems=problems)
    config = JobConfig(
        small=ModelSpec(name="S", fingerprint=fingerprint),
        policy=parse_policy("small-only"),
        sampling=SamplingSpec(max_tokens=max_tokens),
    )
    with transaction(db_engine) as connection:
        engine_id = put_engine(
            connection,
            kind="scripted",
            version="1",
            model="S",
            model_fingerprint=CHAT.fingerprint,
            vocabulary_sha256=CHAT.vocabulary_sha256,
            weights_sha256=weights,
            settings={},
        )
        registration = Registration(
            kind=WorkerKind.SMALL,
            model="S",
            engine_id=engine_id,
            host="here",
            pid=1,
            queue="small.S.own",
            max_in_flight=8,
            ttl=dt.timedelta(minutes=5),
        )
        worker_id = register_worker(connection, registration)
        if fingerprint is not None:
            register_other(connection, registration, fingerprint)
        job_id = insert_job(
            connection,
            name="job",
            policy="small-only",
            problem_set_id=put_problem_set(connection, problem_set),
            num_problems=2,
            config=config,
            first_role=ModelRole.SMALL,
            versions={},
        )
        admitted = admit_samples(connection, ahead=1.0)
    engine = engine_type(lambda request: ANSWER, CHAT.decode_stream, step_s=step_s, max_model_len=512, max_in_flight=8)
    ends: list[WorkerEnd] = []
    writer = Writer(
        role=ModelRole.SMALL,
        engine=engine,
        chat=CHAT,
        db_engine=db_engine,
        publisher=Publisher(Celery("test", broker="memory://", set_as_current=False)),
        identity=Identity(worker_id=worker_id, engine_id=engine_id),
        on_failure=ends.append,
        max_attempts=2,
        weights=weights,
    )
    message = SamplesMessage(job_id=job_id, samples=[(sample.sample_id, sample.epoch) for sample in admitted])
    return WriterRig(writer, engine, db_engine, job_id, worker_id, message, ends)


@pytest.fixture
def rig(db_engine: DbEngine) -> Iterator[WriterRig]:
    rig = make_rig(db_engine)
    yield rig
    rig.writer.close()
    rig.engine.close()


@pytest.fixture
def slow_desk(db_engine: DbEngine) -> Iterator[WriterRig]:
    """Its engine needs seconds for a sample."""
    rig = make_rig(db_engine, step_s=0.5)
    yield rig
    rig.writer.close()
    rig.engine.close()


def test_writes_what_a_message_names_and_drops_its_second_delivery(rig: WriterRig) -> None:
    assert rig.writer.write(rig.message) == "2 of 2 written"
    assert rig.writer.write(rig.message) == "0 of 2 written"
    count, ids, finish = rig.one("SELECT count(*), min(token_ids), min(finish) FROM segments")
    assert (count, ids, finish) == (2, ANSWER, "eos")
    assert rig.one("SELECT count(*) FROM steps WHERE sample_id = (SELECT min(id) FROM samples)")[0] == 2
    counters = rig.writer.counters()
    assert counters.tokens_committed == counters.tokens_generated == 2 * (len(ANSWER) + 1)
    assert (counters.tokens_dropped, counters.num_in_flight) == (0, 0)


def test_worker_with_another_tokenizer_refuses_the_job_and_harms_no_sample(
    db_engine: DbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(db_engine, fingerprint="of another model")
    told: list[Runnable] = []
    monkeypatch.setattr(Publisher, "publish", lambda _, samples, **__: told.extend(samples))
    try:
        reason = rig.writer.write(rig.message)
        assert reason.startswith("this worker's model has another tokenizer")
        states = "SELECT count(*), min(epoch), max(epoch), max(num_rescues), max(num_attempts) FROM samples"
        assert rig.one(f"{states} WHERE state = 'ready'") == (2, 0, 0, 0, 0), "it never had them"
        assert {sample.sample_id for sample in told} == set(rig.message.epochs)
        assert {sample.home_queue for sample in told} == {"small.S.right"}, "to the worker that serves the right model"
        told.clear()
        with transaction(db_engine) as connection:
            connection.execute(text("UPDATE workers SET expires_at = clock_timestamp() WHERE queue = 'small.S.right'"))
        assert rig.writer.write(rig.message) == reason
        assert rig.one(f"{states} WHERE state = 'ready'") == (2, 0, 0, 0, 0), "it does not claim for that job again"
        assert told == [], "nobody is there to go on with them: upkeep sends them again"
        assert rig.writer.counters().refused_jobs == {rig.job_id: reason}
        assert rig.ends == []
    finally:
        rig.writer.close()
        rig.engine.close()


def test_worker_whose_engine_does_not_draw_like_that_refuses_the_job_and_harms_no_sample(db_engine: DbEngine) -> None:
    rig = make_rig(db_engine, engine_type=GreedyEngine)
    try:
        for _ in range(2):
            assert rig.writer.write(rig.message) == "ConfigurationError: not at 0.6"
        states = "SELECT count(*), max(num_rescues), max(num_attempts), max(num_segments) FROM samples"
        assert rig.one(f"{states} WHERE state = 'ready'") == (2, 0, 0, 0)
        assert rig.one("SELECT small_identity FROM jobs") == (None,), "another model may still write it"
        assert rig.writer.counters().refused_jobs == {rig.job_id: "ConfigurationError: not at 0.6"}
    finally:
        rig.writer.close()
        rig.engine.close()


def test_the_first_worker_fixes_which_model_writes_a_job(db_engine: DbEngine) -> None:
    rig = make_rig(db_engine, weights="w")
    try:
        assert rig.writer.write(rig.message) == "2 of 2 written"
        fixed = {"fingerprint": CHAT.fingerprint, "weights": "w", "revision": None}
        assert rig.one("SELECT small_identity, large_identity FROM jobs") == (fixed, None)
    finally:
        rig.writer.close()
        rig.engine.close()


@pytest.mark.parametrize(("weights", "is_refused"), [("w", False), ("x", True), (None, False)])
def test_a_later_worker_with_other_weights_is_refused(
    db_engine: DbEngine, weights: str | None, is_refused: bool
) -> None:
    rig = make_rig(db_engine, weights=weights)
    first = ModelSpec(name="S", fingerprint=CHAT.fingerprint, weights="w", revision="main")
    with transaction(db_engine) as connection:
        assert fix_identity(connection, rig.job_id, ModelRole.SMALL, first) == first.model_copy(
            update={"revision": None}
        ), "weights decide, whatever they were asked for by"
    try:
        answer = rig.writer.write(rig.message)
        assert answer == ("this worker's model has other weights than the job's" if is_refused else "2 of 2 written")
    finally:
        rig.writer.close()
        rig.engine.close()


def test_cancelled_samples_are_aborted_and_their_tokens_booked_as_dropped(slow_desk: WriterRig) -> None:
    thread = slow_desk.write_in_background()
    soon(lambda: slow_desk.engine.stats().num_generated_tokens > 0)
    with transaction(slow_desk.db_engine) as connection:
        cancel_job(connection, slow_desk.job_id)
        cancel_samples(connection, slow_desk.job_id)
    before = slow_desk.writer.in_flight()
    with transaction(slow_desk.db_engine) as connection:
        held = held_epochs(connection, slow_desk.worker_id)
    assert slow_desk.writer.abandon_lost(before, held) == 2
    thread.join(timeout=20)
    assert not thread.is_alive()
    counters = slow_desk.writer.counters()
    assert counters.tokens_committed == 0
    assert counters.tokens_dropped == counters.tokens_generated > 0
    assert slow_desk.one("SELECT count(*) FROM segments") == (0,)


def test_drain_hands_back_what_does_not_end_in_time(slow_desk: WriterRig) -> None:
    thread = slow_desk.write_in_background()
    soon(lambda: len(slow_desk.writer.in_flight()) == 2)
    slow_desk.writer.drain(timeout_s=0.0)
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert slow_desk.one("SELECT count(*), min(epoch), max(num_rescues) FROM samples WHERE state = 'ready'") == (
        2,
        2,
        0,
    )
    assert slow_desk.writer.write(slow_desk.message) == "stopping"


def test_drain_hands_back_what_was_being_claimed(slow_desk: WriterRig, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, begun, go_on = slow_desk.writer._store.claim, threading.Event(), threading.Event()

    def claim_slowly(*args: Any) -> list[ClaimedSample]:
        begun.set()
        assert go_on.wait(20)
        return claim(*args)

    monkeypatch.setattr(slow_desk.writer._store, "claim", claim_slowly)
    thread = slow_desk.write_in_background()
    assert begun.wait(20)
    slow_desk.writer.drain(timeout_s=0.0)
    go_on.set()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert slow_desk.one("SELECT count(*), min(epoch) FROM samples WHERE state = 'ready'") == (2, 2)
    assert slow_desk.engine.stats().num_generated_tokens == 0


def test_drain_waits_for_what_ends_in_time(rig: WriterRig) -> None:
    thread = rig.write_in_background()
    thread.join(timeout=20)
    rig.writer.drain(timeout_s=10.0)
    assert rig.one("SELECT count(*) FROM samples WHERE state = 'finished'") == (2,)


def test_dead_engine_is_reported_and_its_samples_are_rescued(slow_desk: WriterRig) -> None:
    thread = slow_desk.write_in_background()
    soon(lambda: len(slow_desk.writer.in_flight()) == 2)
    slow_desk.engine.close()
    thread.join(timeout=20)
    assert slow_desk.ends[0] is WorkerEnd.ENGINE_DIED
    with transaction(slow_desk.db_engine) as connection:
        connection.execute(text("UPDATE workers SET expires_at = clock_timestamp() - interval '1 s'"))
        settled = settle_lapsed(connection)
    assert settled is not None
    assert settled.rescued == 2


def test_prompt_that_fills_the_context_fails_its_sample_alone(db_engine: DbEngine) -> None:
    rig = make_rig(db_engine, prompt="1+1? " * 400)
    try:
        rig.writer.write(rig.message)
        rows = rig.one("SELECT count(*), min(error_class), min(error) FROM samples WHERE state = 'failed'")
        assert rows[:2] == (2, "budget")
        assert "leave no room in a context of 512" in str(rows[2])
    finally:
        rig.writer.close()
        rig.engine.close()


def test_budget_ends_a_sample(db_engine: DbEngine) -> None:
    rig = make_rig(db_engine, max_tokens=5)
    try:
        rig.writer.write(rig.message)
        assert rig.one("SELECT min(finish_reason), max(tokens_small), min(tokens_small) FROM samples") == (
            "length",
            5,
            5,
        )
    finally:
        rig.writer.close()
        rig.engine.close()


def test_commit_waits_for_a_postgres_that_is_away(slow_desk: WriterRig) -> None:
    thread = slow_desk.write_in_background()
    soon(lambda: len(slow_desk.writer.in_flight()) == 2)
    name = slow_desk.db_engine.url.database
    with transaction(slow_desk.db_engine) as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :db AND pid <> pg_backend_pid()"
            ),
            {"db": name},
        )
    thread.join(timeout=60)
    assert slow_desk.one("SELECT count(*) FROM samples WHERE state = 'finished'") == (2,)


def test_engine_that_is_busy_delays_its_samples_and_fails_them_in_the_end(db_engine: DbEngine) -> None:
    rig = make_rig(db_engine, engine_type=BusyEngine)
    try:
        assert rig.writer.write(rig.message) == "2 of 2 written"
        assert rig.one("SELECT min(state), max(num_attempts), min(not_before) > now() FROM samples") == (
            "ready",
            1,
            True,
        )
        with transaction(db_engine) as connection:
            connection.execute(text("UPDATE samples SET not_before = NULL"))
            due = overdue_samples(connection, age=dt.timedelta(0))
        rig.writer.write(SamplesMessage(job_id=rig.job_id, samples=[(s.sample_id, s.epoch) for s in due]))
        assert rig.one("SELECT min(state), min(error_class), min(error) FROM samples") == (
            "failed",
            "engine_refused",
            "EngineUnavailable: S: out of memory",
        )
        assert rig.ends == []
    finally:
        rig.writer.close()
        rig.engine.close()


def test_worker_that_cannot_store_any_more_ends(rig: WriterRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.writing.store.commit_samples", lambda *_, **__: 1 / 0)
    threading.Thread(target=rig.writer.write, args=(rig.message,), daemon=True).start()
    soon(lambda: rig.ends == [WorkerEnd.WRITER_FAILED])
    assert rig.one("SELECT count(*) FROM samples WHERE state = 'drafting'") == (2,), "nothing is given up silently"


SERVER_FAULTS = {
    "shutting down": "57P01", "disk full": "53100", "no memory": "53200", "lock not free": "55P03", "deadlock": "40P01",
    "connection lost": "08006", "read only": "25006",
}  # fmt: skip
LASTING_FAULTS = {"no such column": "42703", "value too large": "54000", "bad value": "22P02", "damaged": "XX001"}


def fault_of(sqlstate: str) -> Callable[[Connection], int]:
    """A statement that Postgres ends once with this SQLSTATE, and then carries out."""
    raised: list[str] = []

    def statement(connection: Connection) -> int:
        if not raised:
            raised.append(sqlstate)
            connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'a fault' USING ERRCODE = '{sqlstate}'; END $$"))
        return int(connection.execute(text("SELECT 7")).scalar_one())

    return statement


@pytest.mark.parametrize("sqlstate", SERVER_FAULTS.values(), ids=SERVER_FAULTS)
def test_what_passes_is_tried_again(rig: WriterRig, sqlstate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.writing.store.RETRY_PAUSE_S", 0.0)
    assert rig.writer._store.patiently(fault_of(sqlstate)) == 7


@pytest.mark.parametrize("sqlstate", LASTING_FAULTS.values(), ids=LASTING_FAULTS)
def test_what_stays_wrong_is_raised_at_once(rig: WriterRig, sqlstate: str) -> None:
    with pytest.raises(DBAPIError, match="a fault"):
        rig.writer._store.patiently(fault_of(sqlstate))


def test_commit_that_postgres_finds_too_large_fails_its_sample_alone(rig: WriterRig) -> None:
    large = min(rig.message.epochs)
    with transaction(rig.db_engine) as connection:
        when, condition = f"new.sample_id = {large}", "program_limit_exceeded"
        refuse_rows(connection, "INSERT ON segments", when=when, condition=condition, message="too large")
    rig.writer.write(rig.message)
    assert rig.one(f"SELECT state, error_class FROM samples WHERE id = {large}") == ("failed", "internal")
    assert rig.one(f"SELECT state FROM samples WHERE id <> {large}") == ("finished",)
    assert rig.ends == []


def test_claim_that_postgres_refuses_ends_no_worker(rig: WriterRig, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = fault_of("22003")
    monkeypatch.setattr("workers.writing.store.claim_samples", lambda connection, **_: fault(connection))
    assert rig.writer.write(rig.message) == "Postgres refuses the claim"
    monkeypatch.undo()
    assert rig.writer.write(rig.message) == "2 of 2 written"
    assert rig.ends == []


def test_message_that_comes_while_postgres_is_away_is_left_to_upkeep(rig: WriterRig) -> None:
    url = make_url(str(rig.db_engine.url)).set(host="127.0.0.1", port=1)
    away = open_database(SecretStr(url.render_as_string(hide_password=False)))
    rig.writer._store.db_engine = away
    assert rig.writer.write(rig.message) == "Postgres is away"
    assert rig.one("SELECT count(*) FROM samples WHERE state = 'ready'") == (2,)


def test_claim_whose_answer_was_lost_is_handed_back_by_the_second_heartbeat(rig: WriterRig) -> None:
    with transaction(rig.db_engine) as connection:
        claimed = claim_samples(
            connection, worker_id=rig.worker_id, role=ModelRole.SMALL, epochs=rig.message.epochs, job_id=rig.job_id
        )
    held = {sample.sample_id: sample.epoch for sample in claimed}
    rig.writer.release_orphaned([], held)
    assert rig.one("SELECT count(*) FROM samples WHERE state = 'drafting'") == (2,), "it may be a claim under way"
    rig.writer.release_orphaned([], held)
    assert rig.one("SELECT count(*), min(epoch) FROM samples WHERE state = 'ready'") == (2, 2)


def test_what_is_being_written_is_no_stray(slow_desk: WriterRig) -> None:
    thread = slow_desk.write_in_background()
    soon(lambda: len(slow_desk.writer.in_flight()) == 2)
    held = dict(active.claim for active in slow_desk.writer.in_flight())
    for _ in range(3):
        slow_desk.writer.release_orphaned([], held)
    assert slow_desk.one("SELECT count(*) FROM samples WHERE state = 'drafting'") == (2,)
    thread.join(timeout=60)


def test_policy_state_with_a_character_that_postgres_cannot_store_is_stored_without_it(rig: WriterRig) -> None:
    with transaction(rig.db_engine) as connection:
        claimed, *_ = claim_samples(
            connection, worker_id=rig.worker_id, role=ModelRole.SMALL, epochs=rig.message.epochs, job_id=rig.job_id
        )
        commit = SampleCommit(
            sample_id=claimed.sample_id,
            epoch=claimed.epoch,
            to_state=SampleState.READY,
            policy_state={"tail": ["a\x00b"]},
            next_request=Generate(role=ModelRole.SMALL, max_tokens=1, trigger="c\x00d"),
        )
        commit_samples(
            connection, worker_id=rig.worker_id, engine_id=rig.writer._store.identity.engine_id, commits=[commit]
        )
    stored = rig.one("SELECT policy_state, next_request->>'trigger' FROM samples WHERE policy_state IS NOT NULL")
    assert stored == ({"tail": ["a\ufffdb"]}, "c\ufffdd")


def test_commit_whose_answer_comes_after_the_lease_was_lost_is_booked_in_the_life_it_was_made_in(
    rig: WriterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_and_lose_the_lease(connection: Connection, **values: Any) -> Committed:
        committed = commit_samples(connection, **values)
        rig.writer.lease_lost()
        with transaction(rig.db_engine) as other:
            other.execute(text("UPDATE workers SET ended_at = now(), end_reason = 'lapsed'"))
            finalize_counters(other, rig.worker_id, rig.writer.counters().closed())
        return committed

    monkeypatch.setattr("workers.writing.store.commit_samples", commit_and_lose_the_lease)
    one_sample = SamplesMessage(job_id=rig.message.job_id, samples=rig.message.samples[:1])  # two may be two commits
    rig.writer.write(one_sample)
    rig.writer.reconcile(rig.worker_id)
    rig.writer.reconcile(rig.worker_id)  # once, not twice
    num_tokens = len(ANSWER) + 1
    books = rig.one("SELECT tokens_generated, tokens_committed, tokens_dropped FROM workers")
    assert books == (num_tokens, num_tokens, 0)
    counters = rig.writer.counters()
    assert (counters.tokens_committed, counters.tokens_dropped) == (0, num_tokens), "the next life counts none of it"


BESIDE = text("""
    INSERT INTO workers (id, kind, model, engine_id, host, pid, queue, max_in_flight, expires_at)
    SELECT 7, kind, model, engine_id, host, 2, 'small.S.beside', 8, expires_at FROM workers
""")
"""Another worker of the same model."""


def test_what_a_life_that_is_over_has_written_is_not_stored_as_the_next_ones(rig: WriterRig) -> None:
    """As after a restore: the next life holds the sample at the same epoch, since the same moment."""
    sample_id, epoch = rig.message.samples[0]
    with transaction(rig.db_engine) as connection:
        [claimed] = claim_samples(
            connection, worker_id=rig.worker_id, role=ModelRole.SMALL, epochs={sample_id: epoch}, job_id=rig.job_id
        )
        connection.execute(BESIDE)
        connection.execute(text("UPDATE samples SET holder_id = 7 WHERE id = :id"), {"id": sample_id})
    commit = SampleCommit(
        sample_id=sample_id, epoch=claimed.epoch, to_state=SampleState.READY, runnable_at=claimed.runnable_at
    )
    rig.writer.lease_lost()
    rig.writer.lease_renewed_as(Identity(worker_id=7, engine_id=rig.writer._store.identity.engine_id))
    latch = Latch(1)
    rig.writer._recorder.put(EndedClaim(claimed.worker_id, (sample_id, claimed.epoch), latch, 0, commit))
    latch.wait()
    held = "SELECT state, holder_id FROM samples WHERE id = (SELECT min(id) FROM samples)"
    assert rig.one(held) == ("drafting", 7)
    latch = Latch(1)
    rig.writer._recorder.put(EndedClaim(7, (sample_id, claimed.epoch), latch, 0, commit))
    latch.wait()
    assert rig.one(held) == ("ready", None), "only the holder stores"


# A sample that must be alone.

DEATHS = text("UPDATE samples SET num_rescues = :deaths WHERE id = :id")


def accuse(rig: WriterRig) -> tuple[SamplesMessage, SamplesMessage]:
    """A message about the first sample, with which three workers died, and one about the other."""
    (accused, epoch), other = rig.message.samples
    with transaction(rig.db_engine) as connection:
        connection.execute(DEATHS, {"deaths": ALONE_AFTER, "id": accused})
    return (
        SamplesMessage(job_id=rig.job_id, samples=[(accused, epoch)]),
        SamplesMessage(job_id=rig.job_id, samples=[other]),
    )


def in_background(rig: WriterRig, message: SamplesMessage, answers: list[str]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(rig.writer.write(message)))
    thread.start()
    return thread


def test_accused_sample_is_written_once_the_engine_has_nothing_else(
    slow_desk: WriterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, other = accuse(slow_desk)
    beside: list[tuple[int, list[str]]] = []
    submit = slow_desk.engine.submit

    def watched(request: GenerateRequest, done: Done) -> None:
        running = list(slow_desk.engine._core_ids)
        beside.append((int(request.request_id.partition("-")[0]), running))
        submit(request, done)

    monkeypatch.setattr(slow_desk.engine, "submit", watched)
    threads = [in_background(slow_desk, other, [])]
    soon(lambda: len(slow_desk.writer.in_flight()) == 1)
    threads.append(in_background(slow_desk, alone, []))
    soon(lambda: slow_desk.writer._trial.is_open)
    assert slow_desk.one("SELECT count(*) FROM samples WHERE trial_epoch IS NOT NULL") == (0,)
    for thread in threads:
        thread.join()
    assert [sample for sample, _ in beside] == [other.samples[0][0], alone.samples[0][0]]
    assert beside[1][1] == [], "nothing else was in the engine"
    query = "SELECT state, trial_epoch IS NOT NULL, num_rescues FROM samples ORDER BY id LIMIT 1"
    assert slow_desk.one(query) == ("finished", True, 0), "its commit clears it"
    assert not slow_desk.writer._trial.is_open


def test_messages_wait_for_a_trial_where_nobody_else_can_take_them(slow_desk: WriterRig) -> None:
    alone, other = accuse(slow_desk)
    answers: list[str] = []
    first = in_background(slow_desk, alone, answers)
    soon(lambda: len(slow_desk.writer.in_flight()) == 1)
    second = in_background(slow_desk, other, answers)
    first.join()
    assert slow_desk.one("SELECT state FROM samples ORDER BY id DESC LIMIT 1") in {("ready",), ("drafting",)}
    second.join()
    assert answers == ["1 of 1 written"] * 2
    assert slow_desk.one("SELECT count(*) FROM samples WHERE state = 'finished'") == (2,)


def test_messages_go_to_another_worker_while_a_sample_is_tried_alone(
    slow_desk: WriterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Runnable] = []
    monkeypatch.setattr(Publisher, "publish", lambda _, samples, **__: told.extend(samples))
    alone, other = accuse(slow_desk)
    with transaction(slow_desk.db_engine) as connection:
        connection.execute(BESIDE)
    first = in_background(slow_desk, alone, [])
    soon(lambda: len(slow_desk.writer.in_flight()) == 1)
    assert slow_desk.writer.write(other) == "passed on: a sample is tried alone here"
    assert [(sample.sample_id, sample.home_queue) for sample in told] == [(other.samples[0][0], "small.S.beside")]
    first.join()


def test_what_does_not_end_in_time_goes_back_before_a_trial(
    slow_desk: WriterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.writing.trial.TRIAL_DRAIN_S", 0.0)
    alone, other = accuse(slow_desk)
    threads = [in_background(slow_desk, other, [])]
    soon(lambda: len(slow_desk.writer.in_flight()) == 1)
    threads.append(in_background(slow_desk, alone, []))
    soon(lambda: slow_desk.writer._trial.is_open)
    slow_desk.writer.reconcile(slow_desk.worker_id)
    for thread in threads:
        thread.join()
    states = slow_desk.one("SELECT min(state) FILTER (WHERE id = 1), min(state) FILTER (WHERE id = 2) FROM samples")
    assert states == ("finished", "ready")


def test_worker_that_stops_hands_back_what_waits_for_its_trial(slow_desk: WriterRig) -> None:
    alone, other = accuse(slow_desk)
    threads = [in_background(slow_desk, other, [])]
    soon(lambda: len(slow_desk.writer.in_flight()) == 1)
    threads.append(in_background(slow_desk, alone, []))
    soon(lambda: slow_desk.writer._trial.is_open)
    slow_desk.writer.drain(0.0)
    for thread in threads:
        thread.join()
    assert slow_desk.one("SELECT count(*), max(num_rescues) FROM samples WHERE state = 'ready'") == (2, ALONE_AFTER)


def test_sample_that_is_taken_away_before_its_trial_is_left_alone(slow_desk: WriterRig) -> None:
    alone, other = accuse(slow_desk)
    threads = [in_background(slow_desk, other, [])]
    soon(lambda: len(slow_desk.writer.in_flight()) == 1)
    threads.append(in_background(slow_desk, alone, []))
    soon(lambda: slow_desk.writer._trial.is_open)
    with transaction(slow_desk.db_engine) as connection:
        connection.execute(
            text("UPDATE samples SET state = 'ready', epoch = epoch + 1, holder_id = NULL WHERE id = :id"),
            {"id": alone.samples[0][0]},
        )
    for thread in threads:
        thread.join()
    assert slow_desk.one("SELECT state, trial_epoch FROM samples ORDER BY id LIMIT 1") == ("ready", None)
    assert not slow_desk.writer._trial.is_open

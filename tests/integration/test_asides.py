"""Asides and signals on a real Postgres, with engines that answer from a script: asked, taken, stored, replayed."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import Engine as DbEngine
from sqlalchemy import text

from pipeline.db.invariants import check_job, snapshot
from pipeline.db.replays import get_stored_sample
from pipeline.db.session import transaction
from pipeline.db.worker_leases import renew_worker
from pipeline.jobs.config import JobConfig
from pipeline.policies.protocol import PolicyState, Reading, SampleContext, Transition, Watcher
from pipeline.policies.requests import Answered, Ask, Event, Finish, Generate, Insert, Take, Trigger, Written
from pipeline.results.replay import Replay, replay
from pipeline.results.stored import StoredSample
from pipeline.samples import RUNNABLE_STATE, WRITING_ROLES, Author, FinishReason, ModelRole, SampleState, SegmentFinish
from pipeline.signals import Readings, Signal
from tests.integration.lapses import settle_lapsed
from tests.integration.test_invariants import CHAT, Member, hire, submit, waiting
from workers.engine.base import GenerateRequest
from workers.engine.scripted import Drawn, Script

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
NUM_SAMPLES = 6
DRAFT, TRY, REST = "First add", " 3, 4 So the result", " is.</think>"
QUESTION = " So"
JUDGEMENTS = ("3", "4")


class _AtComma:
    """Ends the try at its first comma."""

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        return text == ","


class TryAndJudge:
    """Small drafts, tries on, large judges what was tried, and what it likes is taken into the text."""

    asks = (
        Ask(role=SMALL, purpose="try", greedy=False, max_tokens=9),
        Ask(role=LARGE, purpose="judge", question=QUESTION, after=((0, 2),), labels=JUDGEMENTS),
    )
    roles = frozenset(WRITING_ROLES)

    def start(self, context: SampleContext) -> Transition:
        signals = frozenset({Signal.LOGPROB, Signal.FIRST_ENTROPY})
        return Transition(
            state={"at": "draft"},
            then=Generate(role=SMALL, max_tokens=2, trigger=Trigger.START, signals=signals),
        )

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        return _AtComma() if state["at"] == "try" else None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        match state["at"], event:
            case "draft", Written():
                lowest = min(value for value in event.signals[Signal.LOGPROB] if value is not None)
                reading = Reading(value=lowest, threshold=-1.0, outcome="try")
                return Transition(state={"at": "try"}, keep=len(event.piece), then=self.asks[0], reading=reading)
            case "try", Answered():
                return Transition(state={"at": "judge"}, then=self.asks[1])
            case "judge", Answered():
                return self._judged(context, event)
            case "rest", Written():
                finish = Finish(reason=FinishReason.EOS)
                return Transition(state={}, keep=len(event.piece), then=finish)
        raise AssertionError(f"{event} at {state}")

    def _judged(self, context: SampleContext, event: Answered) -> Transition:
        liked = event.labels["3"] or -99.0
        return Transition(
            state={"at": "rest"},
            insert=(Take(index=0, num_tokens=2), Insert(text=",", trigger="comma")),
            then=Generate(role=SMALL, max_tokens=50, trigger=Trigger.RESUME),
            reading=Reading(value=liked, threshold=-2.0, outcome="take"),
        )


def drawn(token_id: int, logprob: float) -> Drawn:
    labels = [CHAT.encode_text(text)[0] for text in JUDGEMENTS]
    others = {label: logprob - 1.5 for label in labels if label != token_id}
    return Drawn(token_id, logprob, {token_id: logprob} | others)


def script(request: GenerateRequest) -> Iterable[int | Drawn]:
    """Each kind of request has its text; the draft's last token is improbable."""
    if request.labels:
        return [drawn(CHAT.encode_text("3")[0], -0.25)]
    if request.reads_top:
        return [drawn(token_id, -0.1) for token_id in CHAT.encode_text(TRY)]
    if request.signals:
        first, last = CHAT.encode_text(DRAFT)
        return [drawn(first, -0.5), drawn(last, -3.0)]
    return CHAT.encode_text(REST)


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> TryAndJudge:
    made = TryAndJudge()
    monkeypatch.setattr(JobConfig, "build_policy", lambda config: made)
    return made


@dataclass(frozen=True)
class Done:
    """A job that two workers wrote."""

    db_engine: DbEngine
    job: int
    small: Member
    large: Member

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with transaction(self.db_engine) as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def stored(self) -> StoredSample:
        with transaction(self.db_engine) as connection:
            sample_id = connection.execute(text("SELECT min(id) FROM samples")).scalar_one()
            return get_stored_sample(connection, sample_id)


def write_all(db_engine: DbEngine, *members: Member) -> None:
    """members: of small, of large, and of a judge where there is one."""
    while messages := waiting(db_engine):
        messages.pop(SampleState.FINISHED, None)
        if not messages:
            return
        for state, member in zip(RUNNABLE_STATE.values(), members, strict=False):
            for message in messages.get(state, []):
                member.writer.write(message)


@pytest.fixture
def done(db_engine: DbEngine, policy: TryAndJudge) -> Iterator[Done]:
    small, large = hire(db_engine, SMALL, script=script), hire(db_engine, LARGE, script=script)
    job = submit(db_engine)
    write_all(db_engine, small, large)
    yield Done(db_engine, job, small, large)
    for member in (small, large):
        member.writer.close()
        member.engine.close()


def test_asides_are_stored_beside_the_text_and_replayed(done: Done) -> None:
    sample = done.stored()
    assert [(g.author, g.text, g.taken_from) for g in sample.segments] == [
        (Author.SMALL, DRAFT, None),
        (Author.SMALL, " 3", 0),
        (Author.INSERTED, ",", None),
        (Author.SMALL, REST, None),
    ]
    tried, judged = sample.asides
    assert (tried.author, tried.purpose, tried.after_segment, tried.text) == (Author.SMALL, "try", 1, " 3,")
    assert (tried.finish, tried.seed is not None) == (SegmentFinish.WATCH, True)
    assert (judged.author, judged.purpose, judged.after_segment, judged.question) == (LARGE.value, "judge", 1, QUESTION)
    assert (judged.labels, judged.top[0]) == ({"3": -0.25, "4": -1.75}, -0.25)
    assert (judged.value, judged.threshold, judged.outcome) == (-0.25, -2.0, "take")
    draft = sample.segments[0]
    assert draft.signals[Signal.LOGPROB] == (-0.5, -3.0)
    entropy, nothing = draft.signals[Signal.FIRST_ENTROPY]
    assert entropy is not None
    assert nothing is None, "the second token follows no break"
    assert (draft.value, draft.threshold, draft.outcome) == (-3.0, -1.0, "try")
    found = replay(sample)
    assert (found.divergence, found.num_asides) == (None, 2)
    assert "4 segments, 2 asides and" in str(found)


def test_tokens_of_a_sample_with_asides_add_up(done: Done) -> None:
    counted = done.rows("""
        SELECT DISTINCT num_segments, num_asides, num_takeovers, tokens_small, tokens_large, tokens_inserted,
               discarded_small, aside_small, aside_large, taken_small, taken_large FROM samples
    """)
    rest = len(CHAT.encode_text(REST))
    assert counted == [(4, 2, 0, 4 + rest, 0, 1, 0, 3, 1, 2, 0)]
    for member in (done.small, done.large):
        [(booked,)] = done.rows(f"""
            SELECT coalesce((SELECT sum(tokens_generated) FROM segments WHERE worker_id = {member.worker_id}), 0)
                 + coalesce((SELECT sum(tokens_generated) FROM asides WHERE worker_id = {member.worker_id}), 0)
        """)
        counters = member.writer.counters()
        assert booked == counters.tokens_committed == counters.tokens_generated
        assert counters.tokens_dropped == 0


def test_a_job_with_asides_keeps_every_invariant(done: Done) -> None:
    for member in (done.small, done.large):
        member.say_goodbye(done.db_engine)
    with snapshot(done.db_engine) as connection:
        assert check_job(connection, done.job) == []


def test_an_ask_of_the_same_role_is_no_hand_over(done: Done) -> None:
    moves = done.rows(
        "SELECT DISTINCT array_agg(to_state ORDER BY id) FROM events WHERE sample_id > 0 GROUP BY sample_id"
    )
    assert moves == [(["ready", "drafting", "awaiting_large", "assisting", "ready", "drafting", "finished"],)]
    epochs = done.rows("SELECT DISTINCT purpose, epoch FROM asides ORDER BY epoch")
    assert epochs == [("try", 1), ("judge", 2)]
    taken = done.rows("""
        SELECT DISTINCT g.epoch, w.kind, e.model FROM segments g JOIN workers w ON w.id = g.worker_id
        JOIN engines e ON e.id = g.engine_id WHERE g.taken_from IS NOT NULL
    """)
    assert taken == [(2, "large", "small")], "large's worker stored what small's engine wrote"


def with_aside(sample: StoredSample, index: int, *, rehashed: bool = True, **changes: Any) -> StoredSample:
    asides = list(sample.asides)
    changed = replace(asides[index], **changes)
    asides[index] = replace(changed, content_sha256=changed.sha256) if rehashed else changed
    return replace(sample, asides=tuple(asides))


def with_segment(sample: StoredSample, index: int, *, rehashed: bool = True, **changes: Any) -> StoredSample:
    segments = list(sample.segments)
    changed = replace(segments[index], **changes)
    segments[index] = replace(changed, content_sha256=changed.sha256) if rehashed else changed
    return replace(sample, segments=tuple(segments))


def test_replay_finds_each_kind_of_corruption_of_asides_and_signals(done: Done) -> None:
    sample = done.stored()
    tried = sample.asides[0]
    signals = dict(sample.segments[0].signals)
    other_signals = signals | {Signal.LOGPROB: (-0.5, -2.0)}
    corrupted = {
        "purpose": with_aside(sample, 0, purpose="guess"),
        "question": with_aside(sample, 1, question=" Is"),
        "author": with_aside(sample, 1, author=Author.SMALL),
        "after asides": with_aside(sample, 1, after_asides=[[0, 1]]),
        "is greedy": with_aside(sample, 0, seed=None),
        "after segment": with_aside(sample, 0, after_segment=0),
        "tokens generated": with_aside(sample, 0, tokens_generated=2),
        "ended by the watcher": with_aside(sample, 0, finish=SegmentFinish.LENGTH),
        "value": with_aside(sample, 1, labels={"3": -0.5, "4": -1.75}),
        "threshold": with_aside(sample, 1, threshold=-1.0),
        "outcome": with_aside(sample, 1, outcome="leave"),
        "hash of what was written": with_aside(sample, 0, rehashed=False, top=[-0.2]),
        "taken tokens": with_aside(sample, 0, token_ids=[tried.token_ids[0] + 1, *tried.token_ids[1:]]),
        "taken from": with_segment(sample, 1, taken_from=None),
        "takeover": with_segment(sample, 0, takes_over=True),
        "signals": with_segment(sample, 0, signals={}),
        "number of asides": replace(sample, num_asides=1),
        "aside small": replace(sample, aside_small=0),
        "taken small": replace(sample, taken_small=0),
        "aside": replace(sample, asides=sample.asides[:1]),
        "place": replace(sample, asides=sample.asides[1:]),
    }
    for what, changed in corrupted.items():
        found = replay(changed).divergence
        assert found is not None, what
        assert what in str(found), f"{what}: {found}"
    found = replay(with_segment(sample, 0, signals=other_signals)).divergence
    assert found is not None
    assert (found.what, found.stored, found.replayed) == ("value", -3.0, -2.0), (
        "it would have decided by another number"
    )
    found = replay(
        with_segment(sample, 0, rehashed=False, signals=signals | {Signal.FIRST_ENTROPY: (9.0, None)})
    ).divergence
    assert found is not None
    assert found.what == "hash of what was written"
    assert str(replay(corrupted["purpose"])).endswith("diverges at aside 0: purpose: stored 'guess', replayed 'try'")


def test_a_job_whose_model_cannot_be_asked_says_so(
    db_engine: DbEngine, policy: TryAndJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Ask(role=SMALL, purpose="rate", labels=("undecided",))
    monkeypatch.setattr(policy, "asks", (ask,), raising=False)
    small = hire(db_engine, SMALL, script=script)
    submit(db_engine)
    told = "no token of its own for the label 'undecided'"
    for message in waiting(db_engine)[SampleState.READY]:
        assert told in small.writer.write(message)
    with transaction(db_engine) as connection:
        renew_worker(connection, small.worker_id, ttl=dt.timedelta(minutes=5), counters=small.writer.counters())
        states = connection.execute(text("SELECT DISTINCT state, error_class FROM samples")).all()
        reasons = (
            connection.execute(text("SELECT j.value FROM workers, jsonb_each_text(refused_jobs) j")).scalars().all()
        )
    small.writer.close()
    small.engine.close()
    assert states == [("ready", None)], "another worker's model may be one that can be asked"
    [reason] = reasons
    assert told in reason


def test_a_damaged_request_fails_its_sample_alone(db_engine: DbEngine, policy: TryAndJudge) -> None:
    small, large = hire(db_engine, SMALL, script=script), hire(db_engine, LARGE, script=script)
    submit(db_engine)
    for message in waiting(db_engine)[SampleState.READY]:
        small.writer.write(message)
    with transaction(db_engine) as connection:
        damage = 'UPDATE samples SET next_request = next_request || \'{"max_tokens": -1, "more": 1}\' WHERE id = 2'
        connection.execute(text(damage))
    write_all(db_engine, small, large)
    with transaction(db_engine) as connection:
        states = connection.execute(text("SELECT state, error_class, count(*) FROM samples GROUP BY 1, 2 ORDER BY 1"))
        assert [tuple(row) for row in states] == [("failed", "internal", 1), ("finished", None, NUM_SAMPLES - 1)]
        error = connection.execute(text("SELECT error FROM samples WHERE state = 'failed'")).scalar_one()
    assert error.startswith("DamagedRow: ")
    for member in (small, large):
        member.writer.close()
        member.engine.close()


def endlessly(started: threading.Event) -> Script:
    """What small tries never comes to its comma: a claim stays in it with what it gathered before."""

    def stuck(request: GenerateRequest) -> Iterator[int | Drawn]:
        if not request.reads_top:
            yield from script(request)
            return
        started.set()
        while True:
            time.sleep(0.01)
            yield drawn(CHAT.encode_text(" So")[0], -0.1)

    return stuck


def test_what_a_stay_gathered_is_stored_where_the_worker_stops(
    db_engine: DbEngine, policy: TryAndJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()
    small = hire(db_engine, SMALL, script=endlessly(started))
    job = submit(db_engine)
    message = waiting(db_engine)[SampleState.READY][0]
    thread = threading.Thread(target=small.writer.write, args=(message,))
    with monkeypatch.context() as patch:
        patch.setattr(policy, "asks", (replace(policy.asks[0], max_tokens=1500), policy.asks[1]), raising=False)
        thread.start()
        assert started.wait(20)
        small.writer.drain(timeout_s=0.0)
        thread.join(20)
    assert not thread.is_alive()
    counters = small.writer.counters()
    assert counters.tokens_committed == 2
    assert counters.tokens_dropped == counters.tokens_generated - 2
    small.say_goodbye(db_engine)
    with transaction(db_engine) as connection:
        stored = connection.execute(text("SELECT text, tokens_generated FROM segments")).one()
        handed_back = text("SELECT state, next_request->>'purpose' FROM samples WHERE num_segments > 0")
        assert tuple(connection.execute(handed_back).one()) == ("ready", "try")
        # The longer try that was asked for then is what the sample goes on with.
        connection.execute(text("UPDATE samples SET next_request = next_request || '{\"max_tokens\": 9}'"))
    assert tuple(stored) == (DRAFT, 2)
    small, large = hire(db_engine, SMALL, script=script), hire(db_engine, LARGE, script=script)
    write_all(db_engine, small, large)
    done = Done(db_engine, job, small, large)
    assert done.rows("SELECT DISTINCT state FROM samples") == [("finished",)]
    assert [one.divergence for one in replays(done)] == [None] * NUM_SAMPLES
    small.say_goodbye(db_engine)
    large.say_goodbye(db_engine)


def test_a_crash_in_a_stay_costs_what_was_not_committed_and_the_texts_stay(
    db_engine: DbEngine, policy: TryAndJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()
    lost = hire(db_engine, SMALL, script=endlessly(started))
    job = submit(db_engine)
    message = waiting(db_engine)[SampleState.READY][0]
    thread = threading.Thread(target=lost.writer.write, args=(message,))
    with monkeypatch.context() as patch:
        patch.setattr(policy, "asks", (replace(policy.asks[0], max_tokens=1500), policy.asks[1]), raising=False)
        thread.start()
        assert started.wait(20)
    with transaction(db_engine) as connection:
        lapsed = text("UPDATE workers SET expires_at = clock_timestamp() - interval '1 s' WHERE id = :worker")
        connection.execute(lapsed, {"worker": lost.worker_id})
        settled = settle_lapsed(connection)
        assert settled is not None
        assert settled.rescued == 1
        assert connection.execute(text("SELECT count(*) FROM segments")).scalar_one() == 0
    lost.writer.lease_lost()
    thread.join(20)
    counters = lost.writer.counters()
    assert counters.tokens_committed == 0
    assert counters.tokens_dropped == counters.tokens_generated > 2, (
        "the draft was gathered, and is dropped with the try"
    )
    lost.writer.close()
    lost.engine.close()
    small, large = hire(db_engine, SMALL, script=script), hire(db_engine, LARGE, script=script)
    write_all(db_engine, small, large)
    done = Done(db_engine, job, small, large)
    texts = done.rows("""
        SELECT DISTINCT array_agg(text ORDER BY segment_index), array_agg(tokens_generated ORDER BY segment_index)
        FROM segments GROUP BY sample_id
    """)
    assert texts == [([DRAFT, " 3", ",", REST], [2, 0, 0, len(CHAT.encode_text(REST)) + 1])]
    assert done.rows(f"SELECT count(*) FROM segments WHERE worker_id = {lost.worker_id}") == [(0,)]
    assert [one.divergence for one in replays(done)] == [None] * NUM_SAMPLES
    small.say_goodbye(db_engine)
    large.say_goodbye(db_engine)


def replays(done: Done) -> Iterator[Replay]:
    with transaction(done.db_engine) as connection:
        for sample_id in connection.execute(text("SELECT id FROM samples ORDER BY id")).scalars().all():
            yield replay(get_stored_sample(connection, sample_id))

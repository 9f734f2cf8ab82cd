"""The rounds of upkeep without servers: who leads, what is published, what is done again."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from sqlalchemy import Connection
from sqlalchemy import Engine as DbEngine

from pipeline.db.grades import RunningGrade
from pipeline.db.runnable import Runnable
from pipeline.db.upkeep_statements import Lease, Settled
from pipeline.jobs.config import JobState
from pipeline.samples import SampleState
from pipeline.settings import Settings
from workers.broker.publish import Publisher
from workers.upkeep import rounds
from workers.upkeep.rounds import FRESH_PER_MESSAGE, MAX_DEPTH, Superseded, Upkeep

NOTHING: dict[str, Any] = {
    "current_leases": [], "settle_workers": None, "halt_paused_jobs": 0, "cancel_leftovers": 0, "overdue_samples": [],
    "suspects_to_try": [], "running_grades": [], "time_out_grades": [], "mark_first_claims": None, "close_jobs": {},
    "admit_samples": [], "unfollowed_jobs": [],
}  # fmt: skip
"""What each statement answers where nothing is to be done."""


class Store:
    """The statements of upkeep, each with an answer to give; a connection that knows whether a transaction is open."""

    def __init__(self) -> None:
        self.answers = dict(NOTHING)
        self.asked: list[str] = []
        self.values: dict[str, dict[str, Any]] = {}
        self.is_open = False

    def answer(self, statement: str, values: dict[str, Any]) -> Any:
        assert self.is_open, f"{statement} is asked outside a transaction"
        self.asked.append(statement)
        self.values[statement] = values
        return self.answers[statement]

    @contextmanager
    def begin(self) -> Iterator[None]:
        assert not self.is_open, "each duty has a transaction of its own"
        self.is_open = True
        yield
        self.is_open = False


class Post:
    """Takes down what is published; ``is_away``: the broker is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.sent: list[tuple[list[int], dict[str, Any]]] = []
        self.homes: list[str | None] = []
        self.alone: list[int] = []
        self.followed: list[int] = []
        self.dropped: list[str] = []
        self.is_away = False

    @property
    def is_silent(self) -> bool:
        return self.is_away

    def reaches_broker(self) -> bool:
        return not self.is_away

    def publish(self, samples: Sequence[Runnable], **how: Any) -> None:
        assert not self._store.is_open, "nothing is published before the commit"
        if samples:
            self.sent.append(([sample.sample_id for sample in samples], how))
            self.homes += [sample.home_queue for sample in samples]

    def publish_alone(self, suspects: Sequence[Runnable]) -> None:
        self.alone += [sample.sample_id for sample in suspects]

    def publish_follow(self, job_id: int) -> None:
        self.followed.append(job_id)

    def drop_queue(self, queue: str) -> bool:
        if not self.is_away:
            self.dropped.append(queue)
        return not self.is_away


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()

    def asks(statement: str) -> Any:
        return lambda connection, **values: store.answer(statement, values)

    for statement in NOTHING:
        monkeypatch.setattr(rounds, statement, asks(statement))

    @contextmanager
    def connected(_: DbEngine) -> Iterator[Store]:
        yield store

    monkeypatch.setattr(rounds, "connected", connected)
    return store


@pytest.fixture
def post(store: Store) -> Post:
    return Post(store)


@pytest.fixture
def upkeep(store: Store, post: Post, monkeypatch: pytest.MonkeyPatch) -> Upkeep:
    upkeep = Upkeep(cast(DbEngine, None), cast(Publisher, post), Settings(), worker_id=lambda: 5)
    monkeypatch.setattr(upkeep._rollups, "start", lambda: store.asked.append("rollups begin"))
    monkeypatch.setattr(upkeep._rollups, "stop", lambda: store.asked.append("rollups end"))
    return upkeep


def waiting(sample_id: int, home_queue: str | None = "small.m.own") -> Runnable:
    return Runnable(
        sample_id=sample_id, job_id=1, epoch=1, state=SampleState.READY, model="m", home_queue=home_queue, resumed=True,
        is_suspect=False,
    )  # fmt: skip


def settled(*samples: Runnable) -> Settled:
    return Settled(worker_ids=[3], queues=["small.m.gone"], rescued=len(samples), failed=0, samples=list(samples))


def do_round(upkeep: Upkeep) -> None:
    upkeep._renewed_at = math.inf
    upkeep.round(cast(Connection, None))


def test_round_does_each_duty_once_and_rescues_first(store: Store, post: Post, upkeep: Upkeep) -> None:
    do_round(upkeep)
    assert sorted(store.asked) == sorted(NOTHING)
    assert store.asked[:2] == ["current_leases", "settle_workers"]
    assert store.asked.index("close_jobs") < store.asked.index("admit_samples"), "what ends makes room"
    assert (post.sent, post.alone, post.followed, post.dropped) == ([], [], [], [])


def test_what_the_duties_return_is_published_as_each_wants_it(store: Store, post: Post, upkeep: Upkeep) -> None:
    store.answers |= {
        "settle_workers": settled(waiting(1)), "overdue_samples": [waiting(2)], "suspects_to_try": [waiting(3)],
        "admit_samples": [waiting(4, None)], "unfollowed_jobs": [7], "close_jobs": {8: JobState.COMPLETED},
    }  # fmt: skip
    do_round(upkeep)
    assert post.sent == [([1], {}), ([2], {"max_depth": MAX_DEPTH}), ([4], {"max_shared": FRESH_PER_MESSAGE})]
    assert post.homes == ["small.m.own", None, None], "what waits too long goes to any worker: its own may be deaf"
    assert (post.alone, post.followed, post.dropped) == ([3], [7], ["small.m.gone"])


def test_queue_that_cannot_be_deleted_is_tried_in_later_rounds(store: Store, post: Post, upkeep: Upkeep) -> None:
    store.answers["settle_workers"], post.is_away = settled(), True
    do_round(upkeep)
    store.answers["settle_workers"] = None
    do_round(upkeep)
    assert post.dropped == []
    post.is_away = False
    do_round(upkeep)
    do_round(upkeep)
    assert post.dropped == ["small.m.gone"], "once"


def test_leftovers_of_cancels_are_ended_in_one_round_until_its_time_is_over(
    store: Store, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.answers["cancel_leftovers"] = 5
    monkeypatch.setattr(rounds, "CANCELLING_S", 0.0)
    do_round(upkeep)
    assert store.asked.count("cancel_leftovers") == 1
    monkeypatch.setattr(rounds, "CANCELLING_S", 60.0)
    ends = iter([5, 5, 0])
    monkeypatch.setattr(rounds, "cancel_leftovers", lambda connection: next(ends))
    do_round(upkeep)
    assert next(ends, None) is None


# Leading.


@dataclass
class Leadership:
    """Says who leads, and notes what is said. leads: what the row answers."""

    leads: Callable[[], bool] = lambda: True
    said: list[bool] = field(default_factory=list)
    """Each time that the worker said that it leads: whether it can publish."""
    resigned: bool = False

    def lead(self, _: Connection, worker_id: int, *, ttl: dt.timedelta, can_publish: bool) -> bool:
        assert (worker_id, ttl) == (5, dt.timedelta(seconds=30))
        self.said.append(can_publish)
        return self.leads()

    def resign(self, _: Connection, worker_id: int) -> None:
        self.resigned = True


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Leadership:
    row = Leadership()
    monkeypatch.setattr(rounds, "lead", row.lead)
    monkeypatch.setattr(rounds, "resign", row.resign)
    return row


def lead(upkeep: Upkeep) -> None:
    upkeep._lead(cast(Connection, None))


def test_standby_that_is_stopped_does_no_duty(store: Store, upkeep: Upkeep, row: Leadership) -> None:
    def told_to_stop_meanwhile() -> bool:
        upkeep._stop.set()
        return False

    row.leads = told_to_stop_meanwhile
    lead(upkeep)
    assert (store.asked, row.resigned) == ([], False)


def test_leader_keeps_rollups_while_it_leads_and_resigns_when_it_is_stopped(
    store: Store, upkeep: Upkeep, row: Leadership, monkeypatch: pytest.MonkeyPatch
) -> None:
    def round_of(_: Connection) -> None:
        store.asked.append("round")
        upkeep._stop.set()

    monkeypatch.setattr(upkeep, "round", round_of)
    lead(upkeep)
    assert store.asked == ["rollups begin", "round", "rollups end"]
    assert row.resigned


def test_leader_that_lost_its_session_keeps_no_rollups(
    store: Store, upkeep: Upkeep, row: Leadership, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_session(_: Connection) -> None:
        raise ConnectionError("the session is gone")

    monkeypatch.setattr(upkeep, "round", lose_the_session)
    with pytest.raises(ConnectionError):
        lead(upkeep)
    assert store.asked == ["rollups begin", "rollups end"]


def test_leader_says_so_between_two_duties_of_a_long_round_and_stops_where_another_leads(
    store: Store, upkeep: Upkeep, row: Leadership, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("workers.upkeep.rounds.time.monotonic", lambda: clock[0])
    upkeep._renewed_at = clock[0]

    def slow(statement: str, values: dict[str, Any]) -> Any:
        store.asked.append(statement)
        clock[0] += 0.6
        return NOTHING[statement]

    monkeypatch.setattr(store, "answer", slow)
    answers = iter([True, True, False])
    row.leads = lambda: next(answers)
    with pytest.raises(Superseded):
        upkeep.round(cast(Connection, None))
    assert row.said == [True, True, True]
    assert 0 < len(store.asked) < len(NOTHING)


def test_leader_that_cannot_publish_says_so(post: Post, upkeep: Upkeep, row: Leadership) -> None:
    post.is_away = True
    upkeep.round(cast(Connection, None))
    assert row.said == [False]


NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclass
class Clock:
    """A clock that only this test moves."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of everything in this process."""
    clock = Clock()
    monkeypatch.setattr("workers.upkeep.stillness.time.monotonic", clock)
    return clock


@dataclass
class Worker:
    """The row of a worker that renews its lease whenever it is told to."""

    store: Store
    ttl: dt.timedelta = dt.timedelta(seconds=Settings().lease.ttl_s)

    def renew(self, at: dt.datetime) -> None:
        self.store.answers["current_leases"] = [Lease(worker_id=3, renewed_at=at, ttl=self.ttl)]

    def is_silent(self) -> bool:
        """What upkeep took it for in its last round."""
        return bool(self.store.values["settle_workers"]["silent"])


def test_lease_is_taken_once_it_was_not_renewed_for_its_time_whatever_time_the_database_tells(
    store: Store, clock: Clock, upkeep: Upkeep
) -> None:
    worker = Worker(store)
    for told in (NOW, NOW + dt.timedelta(hours=1), NOW - dt.timedelta(days=1)):
        worker.renew(told)
        since = clock.now_s + 0.25
        while clock.now_s < since + worker.ttl.total_seconds():
            clock.now_s += 0.25
            do_round(upkeep)
            assert worker.is_silent() is (clock.now_s >= since + worker.ttl.total_seconds())


def test_leader_that_was_away_itself_takes_no_lease_that_ran_out_meanwhile(
    store: Store, clock: Clock, upkeep: Upkeep
) -> None:
    worker = Worker(store)
    worker.renew(NOW)
    do_round(upkeep)
    clock.now_s += 3600
    do_round(upkeep)
    assert not worker.is_silent()
    worker.renew(NOW + dt.timedelta(hours=1))
    clock.now_s += 3600
    do_round(upkeep)
    assert not worker.is_silent()


def test_rounds_that_take_longer_than_a_lease_find_silent_workers_all_the_same(
    store: Store, clock: Clock, upkeep: Upkeep
) -> None:
    worker = Worker(store)
    worker.renew(NOW)
    for _ in range(3):
        do_round(upkeep)
        clock.now_s += 3600
    assert worker.is_silent()


def test_grading_is_late_once_it_was_seen_for_its_time(store: Store, clock: Clock, upkeep: Upkeep) -> None:
    grading = RunningGrade(sample_id=1, started_at=NOW - dt.timedelta(days=1))
    store.answers["running_grades"] = [grading]
    limit_s = Settings().grading.time_limit_s + 5
    do_round(upkeep)
    since = clock.now_s
    while clock.now_s < since + limit_s:
        assert store.values["time_out_grades"]["late"] == []
        clock.now_s += 1
        do_round(upkeep)
    assert store.values["time_out_grades"]["late"] == [grading]

"""The rounds of upkeep without servers: who leads, what is published, what is done again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
from sqlalchemy import Connection
from sqlalchemy import Engine as DbEngine

from pipeline.db.runnable import Runnable
from pipeline.db.upkeep_statements import Settled
from pipeline.jobs.config import JobState
from pipeline.samples import SampleState
from pipeline.settings import Settings
from workers.broker.publish import Publisher
from workers.upkeep import rounds
from workers.upkeep.rounds import FRESH_PER_MESSAGE, MAX_DEPTH, Upkeep

NOTHING: dict[str, Any] = {
    "settle_workers": None, "halt_paused_jobs": 0, "cancel_leftovers": 0, "overdue_samples": [], "suspects_to_try": [],
    "time_out_grades": [], "mark_first_claims": None, "close_jobs": {}, "admit_samples": [], "unfollowed_jobs": [],
}  # fmt: skip
"""What each statement answers where nothing is to be done."""


class Store:
    """The statements of upkeep, each with an answer to give; a connection that knows whether a transaction is open."""

    def __init__(self) -> None:
        self.answers = dict(NOTHING)
        self.asked: list[str] = []
        self.values: dict[str, dict[str, Any]] = {}
        self.is_open = False
        self.num_looks = 0

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

    def execute(self, *_: Any) -> None:
        self.num_looks += 1


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
    upkeep = Upkeep(cast(DbEngine, None), cast(Publisher, post), Settings())
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


def test_round_does_each_duty_once_and_rescues_first(store: Store, post: Post, upkeep: Upkeep) -> None:
    upkeep.round()
    assert sorted(store.asked) == sorted(NOTHING)
    assert store.asked[0] == "settle_workers"
    assert store.asked.index("close_jobs") < store.asked.index("admit_samples"), "what ends makes room"
    assert (post.sent, post.alone, post.followed, post.dropped) == ([], [], [], [])


def test_what_the_duties_return_is_published_as_each_wants_it(store: Store, post: Post, upkeep: Upkeep) -> None:
    store.answers |= {
        "settle_workers": settled(waiting(1)), "overdue_samples": [waiting(2)], "suspects_to_try": [waiting(3)],
        "admit_samples": [waiting(4, None)], "unfollowed_jobs": [7], "close_jobs": {8: JobState.COMPLETED},
    }  # fmt: skip
    upkeep.round()
    assert post.sent == [([1], {}), ([2], {"max_depth": MAX_DEPTH}), ([4], {"max_shared": FRESH_PER_MESSAGE})]
    assert post.homes == ["small.m.own", None, None], "what waits too long goes to any worker: its own may be deaf"
    assert (post.alone, post.followed, post.dropped) == ([3], [7], ["small.m.gone"])


def test_queue_that_cannot_be_deleted_is_tried_in_later_rounds(store: Store, post: Post, upkeep: Upkeep) -> None:
    store.answers["settle_workers"], post.is_away = settled(), True
    upkeep.round()
    store.answers["settle_workers"] = None
    upkeep.round()
    assert post.dropped == []
    post.is_away = False
    upkeep.round()
    upkeep.round()
    assert post.dropped == ["small.m.gone"], "once"


def test_leftovers_of_cancels_are_ended_in_one_round_until_its_time_is_over(
    store: Store, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.answers["cancel_leftovers"] = 5
    monkeypatch.setattr(rounds, "CANCELLING_S", 0.0)
    upkeep.round()
    assert store.asked.count("cancel_leftovers") == 1
    monkeypatch.setattr(rounds, "CANCELLING_S", 60.0)
    ends = iter([5, 5, 0])
    monkeypatch.setattr(rounds, "cancel_leftovers", lambda connection: next(ends))
    upkeep.round()
    assert next(ends, None) is None


# Leading.


def lead(upkeep: Upkeep, store: Store) -> None:
    upkeep._lead(cast(Connection, store))


def test_standby_that_is_stopped_does_nothing_that_needs_the_lock(
    store: Store, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_to_stop_meanwhile(_: Connection) -> bool:
        upkeep._stop.set()
        return False

    monkeypatch.setattr(rounds, "try_to_lead", told_to_stop_meanwhile)
    lead(upkeep, store)
    assert store.asked == []


def test_leader_keeps_rollups_while_it_leads_and_no_longer(
    store: Store, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_lock() -> None:
        store.asked.append("round")
        raise ConnectionError("the lock's connection is gone")

    monkeypatch.setattr(rounds, "try_to_lead", lambda _: True)
    monkeypatch.setattr(upkeep, "round", lose_the_lock)
    with pytest.raises(ConnectionError):
        lead(upkeep, store)
    assert store.asked == ["rollups begin", "round", "rollups end"]
    assert store.num_looks == 2, "the lock's own connection is asked before a round"


def test_leader_that_was_away_itself_takes_no_lease_that_ran_out_meanwhile(
    store: Store, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    awake: list[dt.timedelta] = []
    monkeypatch.setattr("workers.upkeep.rounds.time.monotonic", lambda: clock[0])

    def wait(_: float) -> bool:
        clock[0] += 0.25 if len(awake) != 2 else upkeep._ttl_s
        return len(awake) == 4

    def note(statement: str, values: dict[str, Any]) -> Any:
        if statement == "settle_workers":
            awake.append(values["awake_for"])
        return NOTHING[statement]

    monkeypatch.setattr(upkeep._stop, "wait", wait)
    monkeypatch.setattr(store, "answer", note)
    upkeep._do_rounds(cast(Connection, store))
    assert [time.total_seconds() for time in awake] == [0.25, 0.5, 0.0, 0.25]

"""A worker's lease without a database: what its keeper tells its holder, and what it stores of each life."""

from __future__ import annotations

import datetime as dt
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
from sqlalchemy import Engine as DbEngine

from pipeline.db.commits import StoredRow
from pipeline.db.worker_leases import Registration, WorkerCounters
from pipeline.errors import ConfigurationError, LeaseLost, ServiceUnavailable
from pipeline.settings import LeaseSettings
from pipeline.workforce import WorkerEnd, WorkerKind
from workers.processes import lease
from workers.processes.lease import LeaseKeeper

REGISTRATION = Registration(
    kind=WorkerKind.SMALL, model="m", engine_id=1, host="here", pid=1, queue="small.m.own", max_in_flight=8,
    ttl=dt.timedelta(seconds=15),
)  # fmt: skip


class Workforce:
    """The rows of workers; it may be away, or have taken a life."""

    def __init__(self) -> None:
        self.lives: dict[int, WorkerCounters] = {}
        self.ends: dict[int, WorkerEnd] = {}
        self.renewed: dict[int, dt.datetime] = {}
        self.looked_for: list[Sequence[StoredRow]] = []
        self.undone: set[StoredRow] = set()
        self.is_away = False
        self.is_migrated = False

    @contextmanager
    def transaction(self, _: DbEngine) -> Iterator[None]:
        if self.is_away:
            raise ServiceUnavailable("Postgres cannot be reached")
        yield

    def check_current(self, _: None) -> None:
        if self.is_migrated:
            raise ConfigurationError("the tables are another version's")

    def register_worker(self, _: None, registration: Registration) -> int:
        assert registration == REGISTRATION
        self.lives[len(self.lives) + 1] = WorkerCounters()
        return len(self.lives)

    def renew_worker(
        self, _: None, worker_id: int, *, ttl: dt.timedelta, counters: WorkerCounters, since: dt.datetime | None
    ) -> dt.datetime:
        if worker_id in self.ends:
            raise LeaseLost(worker_id)
        assert since == self.renewed.get(worker_id), "each heartbeat names what the last one of this life returned"
        self.lives[worker_id] = counters
        self.renewed[worker_id] = dt.datetime.now(dt.UTC)
        return self.renewed[worker_id]

    def are_undone(self, _: None, rows: Sequence[StoredRow]) -> bool:
        self.looked_for.append(rows)
        return any(row in self.undone for row in rows)

    def finalize_counters(self, _: None, worker_id: int, counters: WorkerCounters) -> None:
        self.lives[worker_id] = counters

    def end_worker(self, _: None, worker_id: int, counters: WorkerCounters, *, reason: WorkerEnd) -> None:
        self.lives[worker_id], self.ends[worker_id] = counters, reason


class Holder:
    """Counts tokens through all lives; notes what it is told."""

    def __init__(self) -> None:
        self.now = WorkerCounters()
        self.stored: list[StoredRow] = []
        self.told: list[tuple[str, int | None]] = []

    def counters(self) -> WorkerCounters:
        return self.now

    def take_stored(self) -> list[StoredRow]:
        taken, self.stored = self.stored, []
        return taken

    def lease_renewed(self, worker_id: int) -> None:
        self.told.append(("renewed", worker_id))

    def lease_lost(self) -> None:
        self.told.append(("lost", None))

    def lease_renewed_as(self, worker_id: int) -> None:
        self.told.append(("renewed as", worker_id))


@pytest.fixture
def workforce(monkeypatch: pytest.MonkeyPatch) -> Workforce:
    workforce = Workforce()
    for name in (
        *("transaction", "check_current", "register_worker", "renew_worker", "finalize_counters", "end_worker"),
        "are_undone",
    ):
        monkeypatch.setattr(lease, name, getattr(workforce, name))
    return workforce


@pytest.fixture
def holder() -> Holder:
    return Holder()


@pytest.fixture
def keeper(workforce: Workforce, holder: Holder) -> LeaseKeeper:
    """Renewed by hand: its thread is not started."""
    keeper = LeaseKeeper(cast(DbEngine, None), REGISTRATION, LeaseSettings())
    keeper._holder = holder
    return keeper


def tokens(generated: int, committed: int = 0, **more: Any) -> WorkerCounters:
    return WorkerCounters(tokens_generated=generated, tokens_committed=committed, **more)


def test_heartbeat_stores_the_counters_and_tells_the_holder(
    workforce: Workforce, holder: Holder, keeper: LeaseKeeper
) -> None:
    holder.now = tokens(30, 20, num_in_flight=4, num_slots=6, refused_jobs={7: "another tokenizer"})
    keeper._renew()
    assert workforce.lives == {1: holder.now}
    assert holder.told == [("renewed", 1)]


def test_worker_that_lost_its_lease_begins_a_life_of_its_own_counters(
    workforce: Workforce, holder: Holder, keeper: LeaseKeeper
) -> None:
    workforce.ends[1] = WorkerEnd.LAPSED
    holder.now = tokens(30, 20, num_in_flight=4, refused_jobs={7: "another tokenizer"})
    keeper._renew()
    assert holder.told == [("lost", None), ("renewed as", 2)], "first it is to abandon what it writes"
    closed = tokens(30, 20, tokens_dropped=10, refused_jobs={7: "another tokenizer"})
    assert workforce.lives[1] == closed, "what was not committed by then is dropped"
    holder.now = tokens(35, 25, tokens_dropped=10, num_in_flight=1, refused_jobs={7: "another tokenizer"})
    keeper._renew()
    assert workforce.lives[2] == tokens(5, 5, num_in_flight=1, refused_jobs={7: "another tokenizer"})
    assert workforce.lives[1] == closed


def test_postgres_that_is_away_is_waited_for_and_no_lapse(
    workforce: Workforce, holder: Holder, keeper: LeaseKeeper
) -> None:
    workforce.is_away = True
    with pytest.raises(ServiceUnavailable):
        keeper._renew()
    workforce.is_away = False
    keeper._renew()
    assert holder.told == [("renewed", 1)]


ROWS = [StoredRow(1, sample, dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) for sample in range(4)]


def test_life_ends_whose_commits_since_the_last_heartbeat_are_undone(
    workforce: Workforce, holder: Holder, keeper: LeaseKeeper
) -> None:
    holder.stored = [ROWS[0]]
    keeper._renew()
    assert holder.told == [("renewed", 1)]
    holder.stored = [ROWS[1], ROWS[2]._replace(worker_id=9)]
    workforce.undone = {ROWS[1]}
    holder.now = tokens(30, 20)
    keeper._renew()
    assert workforce.looked_for == [[ROWS[0]], [ROWS[1]]], "each once, and none of an earlier life's"
    assert holder.told[1:] == [("lost", None), ("renewed as", 2)]
    holder.now = tokens(35, 25, tokens_dropped=10)
    keeper._renew()
    assert workforce.lives[2] == tokens(5, 5), "what was undone is not counted with the next life"


def test_commits_are_looked_for_until_a_heartbeat_was_answered(
    workforce: Workforce, holder: Holder, keeper: LeaseKeeper
) -> None:
    holder.stored = [ROWS[0]]
    workforce.is_away = True
    with pytest.raises(ServiceUnavailable):
        keeper._renew()
    holder.stored = [ROWS[1]]
    workforce.is_away, workforce.undone = False, {ROWS[0]}
    keeper._renew()
    assert workforce.looked_for == [ROWS[:2]]
    assert holder.told == [("lost", None), ("renewed as", 2)]


def test_heartbeats_go_on_whatever_happens_in_one(workforce: Workforce, holder: Holder) -> None:
    renewed = threading.Event()
    errors: list[Exception] = [ServiceUnavailable("away"), ValueError("nobody foresaw it")]

    def counters() -> WorkerCounters:
        if errors:
            raise errors.pop()
        renewed.set()
        return WorkerCounters()

    holder.counters = counters  # type: ignore[method-assign]
    keeper = LeaseKeeper(cast(DbEngine, None), REGISTRATION, LeaseSettings(ttl_s=1, renew_interval_s=0.01))
    keeper.start(holder)
    assert renewed.wait(10)
    keeper.stop()
    assert workforce.ends == {1: WorkerEnd.STOPPED}


def test_worker_ends_where_the_schema_changed_while_its_lease_was_lost(
    workforce: Workforce, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    monkeypatch.setattr("workers.processes.lease.os.kill", lambda pid, number: signals.append(number))
    keeper = LeaseKeeper(cast(DbEngine, None), REGISTRATION, LeaseSettings(ttl_s=1, renew_interval_s=0.01))
    workforce.ends[1], workforce.is_migrated = WorkerEnd.LAPSED, True
    keeper.start(holder)
    keeper._thread.join(10)
    assert not keeper._thread.is_alive()
    assert signals == [signal.SIGTERM]
    assert holder.told == [("lost", None)]


@pytest.mark.parametrize("reason", [WorkerEnd.STOPPED, WorkerEnd.WRITER_FAILED])
def test_lease_is_given_up_with_its_reason(
    workforce: Workforce, holder: Holder, keeper: LeaseKeeper, reason: WorkerEnd
) -> None:
    holder.now = tokens(30, 20, num_in_flight=4)
    keeper.stop(reason)
    assert workforce.ends == {1: reason}
    assert workforce.lives[1] == tokens(30, 20, tokens_dropped=10)


def test_lease_that_cannot_be_given_up_lapses(workforce: Workforce, keeper: LeaseKeeper) -> None:
    workforce.is_away = True
    keeper.stop()
    assert workforce.ends == {}

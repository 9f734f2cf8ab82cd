"""A worker's lease on a real Postgres: what its keeper believes is what the database says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.db.session import transaction
from pipeline.db.worker_leases import Registration
from pipeline.errors import ServiceUnavailable
from pipeline.settings import LeaseSettings
from pipeline.workforce import WorkerKind
from workers.processes.lease import HoldsNothing, LeaseKeeper

pytestmark = pytest.mark.integration


class Noting(HoldsNothing):
    """Notes the ids of later registrations."""

    def __init__(self) -> None:
        self.renewed_as: list[int] = []

    def lease_renewed_as(self, worker_id: int) -> None:
        self.renewed_as.append(worker_id)


def test_life_whose_registration_was_answered_to_nobody_is_not_taken_for_its_own(
    db_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LeaseSettings(ttl_s=600, renew_interval_s=200)  # renewed by hand
    holder = Noting()
    keeper = LeaseKeeper(db_engine, registration(settings), settings)
    keeper.start(holder)
    first = keeper.worker_id
    with transaction(db_engine) as connection:
        connection.execute(
            text("UPDATE workers SET ended_at = clock_timestamp(), end_reason = 'lapsed' WHERE id = :id"), {"id": first}
        )
    commits = 0

    @contextmanager
    def lose_the_second_answer(engine: Engine) -> Iterator[Connection]:
        nonlocal commits
        with transaction(engine) as connection:
            yield connection
        commits += 1
        if commits == 1:  # the renewal before it raises LeaseLost and commits nothing
            raise ServiceUnavailable("Postgres cannot be reached: killed while it answered")

    monkeypatch.setattr("workers.processes.lease.transaction", lose_the_second_answer)
    with pytest.raises(ServiceUnavailable):
        keeper._renew()
    assert (keeper.worker_id, holder.renewed_as) == (first, [])
    keeper._renew()
    assert holder.renewed_as == [keeper.worker_id]
    assert keeper.worker_id != first
    keeper.stop()


def registration(settings: LeaseSettings) -> Registration:
    return Registration(
        kind=WorkerKind.UPKEEP, model=None, engine_id=None, host="here", pid=1, queue="upkeep", max_in_flight=0,
        ttl=dt.timedelta(seconds=settings.ttl_s),
    )  # fmt: skip

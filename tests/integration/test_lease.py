"""A worker's lease on a real Postgres: what its keeper believes is what the database says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.db.session import transaction
from pipeline.db.workforce import Registration
from pipeline.errors import ServiceUnavailable
from pipeline.settings import LeaseSettings
from pipeline.workforce import WorkerKind
from workers.processes.lease import LeaseKeeper

pytestmark = pytest.mark.integration


def test_life_whose_registration_was_answered_to_nobody_is_not_taken_for_its_own(
    db_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LeaseSettings()
    lives: list[int] = []
    keeper = LeaseKeeper(db_engine, registration(settings), settings, on_new_life=lives.append)
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
    assert (keeper.worker_id, lives) == (first, [])
    keeper._renew()
    assert lives == [keeper.worker_id]
    assert keeper.worker_id != first


def registration(settings: LeaseSettings) -> Registration:
    return Registration(
        kind=WorkerKind.UPKEEP, model=None, engine_id=None, host="here", pid=1, queue="upkeep", max_in_flight=0,
        ttl=dt.timedelta(seconds=settings.ttl_s),
    )  # fmt: skip

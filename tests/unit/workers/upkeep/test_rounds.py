"""The rounds of upkeep, without a database: who leads, and what a leader does."""

from __future__ import annotations

from typing import Any, cast

import pytest
from sqlalchemy import Connection
from sqlalchemy import Engine as DbEngine

from pipeline.settings import Settings
from workers.broker.publish import Publisher
from workers.upkeep import rounds
from workers.upkeep.rounds import Upkeep


class Session:
    """The session that would hold the leader's lock; counts what is asked."""

    def __init__(self) -> None:
        self.num_statements = 0

    def execute(self, *_: Any) -> None:
        self.num_statements += 1


def make_upkeep() -> Upkeep:
    return Upkeep(cast(DbEngine, None), cast(Publisher, None), Settings())


def test_standby_that_is_stopped_does_nothing_that_needs_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    upkeep = make_upkeep()
    done: list[str] = []

    def told_to_stop_meanwhile(_: Connection) -> bool:
        upkeep._stop.set()
        return False

    monkeypatch.setattr(rounds, "try_to_lead", told_to_stop_meanwhile)
    monkeypatch.setattr(upkeep._rollups, "start", lambda: done.append("rollups"))
    monkeypatch.setattr(upkeep, "round", lambda: done.append("round"))
    upkeep._lead(cast(Connection, Session()))
    assert done == []

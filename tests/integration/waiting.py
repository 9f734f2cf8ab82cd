"""Waits for a session of the test's database that waits for a lock of another."""

from __future__ import annotations

import time

from sqlalchemy import Engine, text

from pipeline.db.session import transaction

_WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


def await_blocked(db_engine: Engine, sessions: int = 1) -> None:
    """Return once so many sessions wait for a lock; fails after a minute."""
    deadline = time.monotonic() + 60
    while True:
        with transaction(db_engine) as connection:
            waiting = connection.execute(_WAITING).scalar_one()
        if waiting >= sessions:
            return
        assert time.monotonic() < deadline, f"{waiting} of {sessions} sessions wait for a lock"
        time.sleep(0.01)

"""Refreshes rollups in a thread of its own, so that an expensive count never delays a rescue.

Two things are counted, each in a transaction of its own: ended jobs as a whole, and parts of those that run (rollups).
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from functools import partial

import structlog
from sqlalchemy import Connection, text
from sqlalchemy import Engine as DbEngine
from sqlalchemy.exc import DBAPIError

from pipeline.db.rollups import (
    RETRY_AFTER,
    Rollup,
    compact_lengths,
    postpone_rollup,
    refresh_rollup,
    refreshable_rollups,
)
from pipeline.db.session import transaction
from pipeline.db.totals import count_job, uncounted_jobs
from pipeline.errors import ServiceUnavailable

log = structlog.get_logger()

GRADES_QUIET = dt.timedelta(seconds=5)
"""How long the grades of an ended job must stay unchanged before it is counted: it may be graded again."""
ROLLUP_QUIET = dt.timedelta(seconds=2)
"""How long the samples of a part must stay settled, and their grades unchanged, before the part is counted."""
POLL_INTERVAL_S = 1.0
"""Between two looks for something to count, while there is nothing."""
BATCH_SIZE = 4
"""Jobs, and parts, that are looked up at a time."""
LIMIT_S = 20.0
"""A count is given up after this time: until it is tried again, views read the samples themselves."""


class RollupRefresher:
    """A thread that counts whatever has settled, from ``start`` to ``stop``."""

    def __init__(self, db_engine: DbEngine) -> None:
        self._db_engine = db_engine
        self._stop = threading.Event()
        self._not_before: dict[int, float] = {}
        """Jobs that could not be counted: when to try again, by the monotonic clock."""

    def start(self) -> None:
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(self._stop,), name="rollups", daemon=True).start()

    def stop(self) -> None:
        """End the thread after its present count. A second thread that is started before that does no harm."""
        self._stop.set()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(POLL_INTERVAL_S):
            try:
                while self.count_jobs() + self.refresh_rollups() and not stop.is_set():
                    pass
            except ServiceUnavailable as error:
                log.warning("rollups wait for Postgres", reason=str(error))
            except Exception:
                log.exception("rollups not refreshed")

    def count_jobs(self) -> int:
        """Count a few ended jobs; returns how many were counted."""
        now = time.monotonic()
        self._not_before = {job: due for job, due in self._not_before.items() if due > now}
        with transaction(self._db_engine) as connection:
            jobs = uncounted_jobs(connection, quiet=GRADES_QUIET, limit=BATCH_SIZE, but=list(self._not_before))
        num_counted = 0
        for job_id in jobs:
            counted = self._try(partial(count_job, job_id=job_id, quiet=GRADES_QUIET), job_id)
            num_counted += bool(counted)
            if counted is None:
                self._not_before[job_id] = time.monotonic() + RETRY_AFTER.total_seconds()
        return num_counted

    def refresh_rollups(self) -> int:
        """Count a few parts of running jobs, and compact what they add up to; returns how many were counted."""
        with transaction(self._db_engine) as connection:
            rollups = refreshable_rollups(connection, quiet=ROLLUP_QUIET, limit=BATCH_SIZE)
        refreshed = [rollup for rollup in rollups if self._refresh(rollup)]
        for job_id in {rollup.job_id for rollup in refreshed}:
            with transaction(self._db_engine) as connection:
                compact_lengths(connection, job_id)
        return len(refreshed)

    def _refresh(self, rollup: Rollup) -> bool:
        refreshed = self._try(lambda connection: refresh_rollup(connection, rollup), rollup.job_id)
        if refreshed is None:
            with transaction(self._db_engine) as connection:
                postpone_rollup(connection, rollup, by=RETRY_AFTER)
        return bool(refreshed)

    def _try(self, count: Callable[[Connection], bool], job_id: int) -> bool | None:
        """Whether it was counted; None where that failed or took too long."""
        started_at = time.monotonic()
        try:
            with transaction(self._db_engine) as connection:
                connection.execute(text(f"SET LOCAL statement_timeout = '{LIMIT_S:.0f}s'"))
                return count(connection)
        except (DBAPIError, ServiceUnavailable) as error:
            seconds = round(time.monotonic() - started_at, 1)
            log.warning("not counted", job_id=job_id, seconds=seconds, reason=str(error))
        return None

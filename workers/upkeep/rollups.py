"""Counting what samples at rest add up to, beside upkeep's rounds: a dear count must hold no rescue up.

Two things are counted, each in a transaction of its own: ended jobs as a whole, and lots of those that run.
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

from pipeline.db.session import transaction
from pipeline.db.totals import Lot, count_job, count_lot, fold_lengths, postpone_lot, resting_lots, uncounted_jobs
from pipeline.errors import ServiceUnavailable

log = structlog.get_logger()

GRADES_QUIET = dt.timedelta(seconds=5)
"""A job that is graded again is counted once its grades have not changed for so long."""
LOT_QUIET = dt.timedelta(seconds=2)
"""A lot is counted once none of its samples has stopped to rest, or was graded again, for so long."""
TICK_S = 1.0
AT_ONCE = 4
"""Lots, and jobs, of one look."""
LIMIT_S = 20.0
"""A count that takes longer is left to the views for a while, which then look at the samples each time."""
POSTPONED = dt.timedelta(minutes=10)
"""What could not be counted is tried again after so long."""


class Counter:
    """A thread that counts while there is something to count, and looks every second, from ``start`` to ``stop``."""

    def __init__(self, db_engine: DbEngine) -> None:
        self._db_engine = db_engine
        self._stop = threading.Event()
        self._not_before: dict[int, float] = {}
        """Jobs that could not be counted, and when to try again, by the monotonic clock."""

    def start(self) -> None:
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(self._stop,), name="counter", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread after what it is at; two that overlap do no harm."""
        self._stop.set()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(TICK_S):
            try:
                while self.count_jobs() + self.count_lots() and not stop.is_set():
                    pass
            except ServiceUnavailable as error:
                log.warning("counting waits for Postgres", reason=str(error))
            except Exception:
                log.exception("counting failed")

    def count_jobs(self) -> int:
        """Count a few ended jobs; returns how many were counted."""
        now = time.monotonic()
        self._not_before = {job: due for job, due in self._not_before.items() if due > now}
        with transaction(self._db_engine) as connection:
            jobs = uncounted_jobs(connection, quiet=GRADES_QUIET, limit=AT_ONCE, but=list(self._not_before))
        num_counted = 0
        for job_id in jobs:
            counted = self._try(partial(count_job, job_id=job_id, quiet=GRADES_QUIET), job_id)
            num_counted += bool(counted)
            if counted is None:
                self._not_before[job_id] = time.monotonic() + POSTPONED.total_seconds()
        return num_counted

    def count_lots(self) -> int:
        """Count a few lots, and fold what they add; returns how many were counted."""
        with transaction(self._db_engine) as connection:
            lots = resting_lots(connection, quiet=LOT_QUIET, limit=AT_ONCE)
        counted = [lot for lot in lots if self._count_lot(lot)]
        for job_id in {lot.job_id for lot in counted}:
            with transaction(self._db_engine) as connection:
                fold_lengths(connection, job_id)
        return len(counted)

    def _count_lot(self, lot: Lot) -> bool:
        counted = self._try(lambda connection: count_lot(connection, lot), lot.job_id)
        if counted is None:
            with transaction(self._db_engine) as connection:
                postpone_lot(connection, lot, by=POSTPONED)
        return bool(counted)

    def _try(self, count: Callable[[Connection], bool], job_id: int) -> bool | None:
        """What it says; None where it failed or took too long."""
        started_at = time.monotonic()
        try:
            with transaction(self._db_engine) as connection:
                connection.execute(text(f"SET LOCAL statement_timeout = '{LIMIT_S:.0f}s'"))
                return count(connection)
        except (DBAPIError, ServiceUnavailable) as error:
            seconds = round(time.monotonic() - started_at, 1)
            log.warning("not counted", job_id=job_id, seconds=seconds, reason=str(error))
        return None

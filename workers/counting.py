"""Counting what the resting samples of jobs add up to, beside upkeep's rounds: a dear count must hold no rescue up."""

from __future__ import annotations

import datetime as dt
import threading
import time

import structlog
from sqlalchemy import Engine as DbEngine
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pipeline.db.session import transaction
from pipeline.db.totals import Lot, count_lot, fold_lengths, postpone_lot, resting_lots
from pipeline.errors import ServiceUnavailable

log = structlog.get_logger()

LOT_QUIET = dt.timedelta(seconds=2)
"""A lot is counted once none of its samples has stopped to rest, or was graded again, for so long."""
TICK_S = 1.0
LOTS_AT_ONCE = 4
LOT_LIMIT_S = 20.0
"""A lot that takes longer is left to the views for a while, which then look at its samples each time."""
POSTPONED = dt.timedelta(minutes=10)
"""A lot that could not be counted is tried again after so long."""


class Counter:
    """A thread that counts lots while there are any, and looks for some every second, from ``start`` to ``stop``."""

    def __init__(self, db_engine: DbEngine) -> None:
        self._db_engine = db_engine
        self._stop = threading.Event()

    def start(self) -> None:
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(self._stop,), name="counter", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread after the lot that it is at; two that overlap do no harm."""
        self._stop.set()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(TICK_S):
            try:
                while self.count() and not stop.is_set():
                    pass
            except ServiceUnavailable as error:
                log.warning("counting waits for Postgres", reason=str(error))
            except Exception:
                log.exception("counting failed")

    def count(self) -> int:
        """Count a few lots, a transaction each, and fold what they add; returns how many were counted."""
        with transaction(self._db_engine) as connection:
            lots = resting_lots(connection, quiet=LOT_QUIET, limit=LOTS_AT_ONCE)
        counted = [lot for lot in lots if self._count_lot(lot)]
        for job_id in {lot.job_id for lot in counted}:
            with transaction(self._db_engine) as connection:
                fold_lengths(connection, job_id)
        return len(counted)

    def _count_lot(self, lot: Lot) -> bool:
        started_at = time.monotonic()
        try:
            with transaction(self._db_engine) as connection:
                connection.execute(text(f"SET LOCAL statement_timeout = '{LOT_LIMIT_S:.0f}s'"))
                return count_lot(connection, lot)
        except (DBAPIError, ServiceUnavailable) as error:
            seconds = round(time.monotonic() - started_at, 1)
            log.warning("lot not counted", job_id=lot.job_id, seconds=seconds, reason=str(error))
        with transaction(self._db_engine) as connection:
            postpone_lot(connection, lot, by=POSTPONED)
        return False

"""Refreshes rollups in a thread of its own, so that an expensive count never delays a rescue.

Two things are counted, each in a transaction of its own: ended jobs as a whole, and parts of those that run (rollups).
What else may take long is done here too: the verdicts of a judge that has ended become grades, all in one transaction.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
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
from pipeline.db.verdicts import carry_verdicts, uncarried_judges
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
VERDICTS_LIMIT_S = 600.0
"""So long the verdicts of one judge may take: nobody waits for them but a count of the judged job."""


class RollupRefresher:
    """A thread that counts whatever has settled, from ``start`` to ``stop``."""

    def __init__(self, db_engine: DbEngine) -> None:
        self._db_engine = db_engine
        self._stop = threading.Event()
        self._not_before: dict[int, float] = {}
        """Jobs that could not be counted, or carried over: when to try again, by the monotonic clock."""

    def start(self) -> None:
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(self._stop,), name="rollups", daemon=True).start()

    def stop(self) -> None:
        """End the thread after its present count. A second thread that is started before that does no harm."""
        self._stop.set()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(POLL_INTERVAL_S):
            try:
                while self.carry_verdicts() + self.count_jobs() + self.refresh_rollups() and not stop.is_set():
                    pass
            except ServiceUnavailable as error:
                log.warning("rollups wait for Postgres", reason=str(error))
            except Exception:
                log.exception("rollups not refreshed")

    def carry_verdicts(self) -> int:
        """Make the verdicts of a few judges that have ended grades; returns of how many."""
        self._forget_due()
        with transaction(self._db_engine) as connection:
            judges = uncarried_judges(connection, limit=BATCH_SIZE, but=list(self._not_before))
        return sum(self._carry(judge_id) for judge_id in judges)

    def _carry(self, judge_id: int) -> bool:
        try:
            with transaction(self._db_engine) as connection:
                connection.execute(text(f"SET LOCAL statement_timeout = '{VERDICTS_LIMIT_S:.0f}s'"))
                verdicts = carry_verdicts(connection, judge_id)
        except (DBAPIError, ServiceUnavailable) as error:
            log.warning("verdicts not carried over", job_id=judge_id, reason=str(error))
            self._not_before[judge_id] = time.monotonic() + RETRY_AFTER.total_seconds()
            return False
        counts = {name: count for name, count in asdict(verdicts).items() if name != "judge_id"}
        log.info("verdicts became grades", job_id=judge_id, **counts)
        return True

    def _forget_due(self) -> None:
        now = time.monotonic()
        self._not_before = {job: due for job, due in self._not_before.items() if due > now}

    def count_jobs(self) -> int:
        """Count a few ended jobs; returns how many were counted."""
        self._forget_due()
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

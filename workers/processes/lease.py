"""A worker's lease: registered at start, renewed by a thread, given up at the end.

Authority is the database and its clock. A worker whose lease ran out (it was stopped, or could not reach Postgres)
claims nothing. Once upkeep has ended its row it owns nothing any more: it abandons what it was writing and registers as
a new worker. So it does where its row, or what it stored since, is not as it left it: the database was restored to an
earlier moment.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import threading
from collections.abc import Sequence
from typing import Protocol

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as DbEngine

from pipeline.db.commits import StoredRow, are_undone
from pipeline.db.revision import check_current
from pipeline.db.session import transaction
from pipeline.db.worker_leases import (
    Registration,
    WorkerCounters,
    end_worker,
    finalize_counters,
    register_worker,
    renew_worker,
)
from pipeline.errors import ConfigurationError, LeaseLost, ServiceUnavailable
from pipeline.settings import LeaseSettings
from pipeline.workforce import WorkerEnd

log = structlog.get_logger()


class LeaseHolder(Protocol):
    """Who works under a lease. Called from the lease's thread."""

    def counters(self) -> WorkerCounters:
        """Totals since the process began: each heartbeat stores them."""
        ...

    def take_stored(self) -> Sequence[StoredRow]:
        """A row of each commit since the last call."""
        ...

    def lease_renewed(self, worker_id: int) -> None:
        """After each heartbeat."""
        ...

    def lease_lost(self) -> None:
        """As soon as a lapse is noticed."""
        ...

    def lease_renewed_as(self, worker_id: int) -> None:
        """After a lapse, once the process is registered again under another id."""
        ...


class HoldsNothing:
    """A process that claims no samples: nothing to count, nothing to abandon."""

    def counters(self) -> WorkerCounters:
        return WorkerCounters()

    def take_stored(self) -> Sequence[StoredRow]:
        return ()

    def lease_renewed(self, worker_id: int) -> None: ...

    def lease_lost(self) -> None: ...

    def lease_renewed_as(self, worker_id: int) -> None: ...


class LeaseKeeper:
    """Keeps one worker process registered: under ``worker_id`` once it is made, renewed from ``start`` to ``stop``."""

    def __init__(self, db_engine: DbEngine, registration: Registration, settings: LeaseSettings) -> None:
        self._db_engine = db_engine
        self._registration = registration
        self._ttl = dt.timedelta(seconds=settings.ttl_s)
        self._interval_s = settings.renew_interval_s
        self._holder: LeaseHolder = HoldsNothing()
        self._stop = threading.Event()
        self._renewed_at: dt.datetime | None = None
        self._stored: list[StoredRow] = []
        """Rows of the commits since the last heartbeat."""
        self._before = WorkerCounters()
        """The counters when this registration began: they run on through all of a process's, each stores its own."""
        self._thread = threading.Thread(target=self._renew_forever, name="lease", daemon=True)
        self.worker_id = self._register()

    def _register(self) -> int:
        with transaction(self._db_engine) as connection:
            worker_id = register_worker(connection, self._registration)
            check_current(connection)
        log.info("worker registered", worker_id=worker_id, kind=self._registration.kind.value)
        return worker_id

    def start(self, holder: LeaseHolder | None = None) -> None:
        """Begin to renew. holder: None for a process that claims no samples."""
        self._holder = holder or self._holder
        self._thread.start()

    def _renew_forever(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._renew()
            except ServiceUnavailable as error:
                log.warning("lease not renewed", worker_id=self.worker_id, reason=str(error))
            except ConfigurationError as error:  # migrated while its lease was lost: this code knows another schema
                log.error("worker ends", worker_id=self.worker_id, reason=str(error))
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except Exception:
                log.exception("heartbeat failed", worker_id=self.worker_id)

    def _renew(self) -> None:
        self._stored += self._holder.take_stored()
        try:
            with transaction(self._db_engine) as connection:
                self._require_commits(connection)
                counters = self._holder.counters().since(self._before)
                renewed_at = renew_worker(
                    connection, self.worker_id, ttl=self._ttl, counters=counters, since=self._renewed_at
                )
        except LeaseLost:
            log.warning("lease lost", worker_id=self.worker_id)
            self._holder.lease_lost()
            self._register_again()
            self._holder.lease_renewed_as(self.worker_id)
            self._stored = []
        else:
            self._stored = []
            self._renewed_at = renewed_at
            self._holder.lease_renewed(self.worker_id)

    def _require_commits(self, connection: Connection) -> None:
        """Raises LeaseLost where the database has lost commits that came after the last heartbeat: that one alone would
        not tell, and what they stored would be counted."""
        rows = [row for row in self._stored if row.worker_id == self.worker_id]
        if rows and are_undone(connection, rows):
            raise LeaseLost(self.worker_id)

    def _register_again(self) -> None:
        """Finalize the counters of the registration that lapsed, and begin a new one."""
        total = self._holder.counters().closed()
        with transaction(self._db_engine) as connection:
            finalize_counters(connection, self.worker_id, total.since(self._before))
            worker_id = register_worker(connection, self._registration)
            check_current(connection)
        # Not before the commit's answer: where that is lost, a registration that nobody knows of lapses; this repeats.
        self.worker_id, self._before, self._renewed_at = worker_id, total, None
        log.info("worker registered", worker_id=self.worker_id, kind=self._registration.kind.value)

    def stop(self, reason: WorkerEnd = WorkerEnd.STOPPED) -> None:
        """Give the lease up; upkeep settles what is left under it. Quiet when Postgres is away: it lapses then."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)
        try:
            with transaction(self._db_engine) as connection:
                counters = self._holder.counters().since(self._before).closed()
                end_worker(connection, self.worker_id, counters, reason=reason)
        except ServiceUnavailable as error:
            log.warning("lease not given up", worker_id=self.worker_id, reason=str(error))

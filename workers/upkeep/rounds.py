"""The duties that keep the pipeline moving, done in rounds by one upkeep process at a time, the leader.

- settler: ends the registrations of workers whose lease lapsed and gives back the samples they held (the rescue)
- prober: tries samples whose workers died with them one at a time, to find the one that kills
- halter: takes the samples of paused jobs from their workers, and ends the samples of jobs that are half cancelled
- admitter: lets in as many new samples as the live workers have room for
- republisher: sends messages again for samples that wait too long, unless their queue is long
- grade reaper: turns gradings that never came back into grades of status "timeout"
- first-claim marker: notes when a worker first took a sample of a job
- closer: ends jobs that have no open sample left
- rollup refresher: counts what the settled samples of jobs add up to, in a thread of its own
- follower: makes sure that each running job is shown in Flower
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from dataclasses import replace

import structlog
from sqlalchemy import Connection, text
from sqlalchemy import Engine as DbEngine

from pipeline.db.grades import GRADING_TRIES, time_out_grades
from pipeline.db.job_control import cancel_leftovers
from pipeline.db.session import connected, session
from pipeline.db.upkeep_statements import (
    admit_samples,
    close_jobs,
    halt_paused_jobs,
    mark_first_claims,
    overdue_samples,
    settle_workers,
    suspects_to_try,
    try_to_lead,
    unfollowed_jobs,
)
from pipeline.errors import ServiceUnavailable
from pipeline.settings import Settings
from workers.broker.publish import Publisher
from workers.upkeep.rollup_refresher import RollupRefresher

log = structlog.get_logger()

FOLLOW_AGAIN = dt.timedelta(seconds=15)
"""A job whose progress task was silent for this time gets a new one."""
FRESH_PER_MESSAGE = 8
"""Fresh samples in one message: small enough that several workers share a small job."""

CANCELLING_S = 0.5
"""Most time that one round spends on ending the samples of cancelled jobs."""

MAX_DEPTH = 64
"""Messages in a queue above which none is sent again: either none was lost, or nobody reads it."""


class Upkeep:
    """Does the duties every tick, as long as it leads."""

    def __init__(self, db_engine: DbEngine, publisher: Publisher, settings: Settings) -> None:
        self._db_engine = db_engine
        self._publisher = publisher
        self._settings = settings.upkeep
        self._ttl_s = settings.lease.ttl_s
        self._silence_s = max(1.0, settings.lease.answer_within_s)
        """The server ends a leader's session that is silent for this time: a leader that hangs stops leading."""
        self._awake_since = time.monotonic()
        """When the present run of rounds without a gap began: a leader that did not look cannot say who was silent."""
        self._to_drop: list[str] = []
        """Queues of workers that were settled, until they are deleted."""
        self._rollups = RollupRefresher(db_engine)
        self._grade_age = dt.timedelta(seconds=settings.grading.time_limit_s + 5)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with session(self._db_engine) as lock:
                    try:
                        self._lead(lock)
                    finally:
                        lock.invalidate()  # a pooled connection would keep the lock, and lend it to nobody
            except ServiceUnavailable as error:
                log.warning("upkeep waits for Postgres", reason=str(error))
            except Exception:
                log.exception("upkeep round failed")
            self._stop.wait(1.0)

    def _lead(self, lock: Connection) -> None:
        """Do rounds while this session holds the leader's lock; a lost connection loses it and ends the rounds."""
        end_when_silent = text("SELECT set_config('idle_session_timeout', :timeout, false)")
        lock.execute(end_when_silent, {"timeout": f"{self._silence_s:.0f}s"})
        while not try_to_lead(lock):
            if self._stop.wait(1.0):
                return
        log.info("upkeep leads")
        self._rollups.start()
        try:
            self._do_rounds(lock)
        finally:
            self._rollups.stop()

    def _do_rounds(self, lock: Connection) -> None:
        self._awake_since = last = time.monotonic()
        while not self._stop.wait(self._settings.tick_s):
            lock.execute(text("SELECT 1"))  # raises when the connection, and with it the lock, is gone
            if time.monotonic() - last > self._ttl_s / 2:
                self._awake_since = time.monotonic()
            self.round()
            last = time.monotonic()

    def round(self) -> None:
        """Each duty once, each in a transaction of its own."""
        with connected(self._db_engine) as connection:
            self._settle(connection)
            self._halt(connection)
            self._republish(connection)
            self._probe(connection)
            self._reap_grades(connection)
            self._close(connection)
            self._admit(connection)
            self._follow(connection)
        self._drop_queues()

    def _settle(self, connection: Connection) -> None:
        with connection.begin():
            settled = settle_workers(connection, awake_for=dt.timedelta(seconds=time.monotonic() - self._awake_since))
        if settled is None:
            return
        log.warning(
            "workers settled",
            workers=settled.worker_ids,
            rescued=settled.rescued,
            failed=settled.failed,
        )
        self._publisher.publish(settled.samples)
        self._to_drop.extend(settled.queues)

    def _drop_queues(self) -> None:
        self._to_drop = [queue for queue in self._to_drop if not self._publisher.drop_queue(queue)]

    def _admit(self, connection: Connection) -> None:
        with connection.begin():
            admitted = admit_samples(connection, ahead=self._settings.admit_ahead)
        self._publisher.publish(admitted, max_shared=FRESH_PER_MESSAGE)

    def _republish(self, connection: Connection) -> None:
        age = dt.timedelta(seconds=self._settings.republish_after_s)
        with connection.begin():
            overdue = overdue_samples(connection, age=age)
        if overdue:
            log.info("samples published again", samples=len(overdue))
            # to the model's queue, not the worker's own: that worker may be alive and deaf
            anywhere = [replace(sample, home_queue=None) for sample in overdue]
            self._publisher.publish(anywhere, max_depth=MAX_DEPTH)

    def _halt(self, connection: Connection) -> None:
        with connection.begin():
            halted = halt_paused_jobs(connection)
        if halted:
            log.info("samples of paused jobs taken back", samples=halted)
        deadline = time.monotonic() + CANCELLING_S
        cancelled = newly = self._cancel(connection)
        while newly and time.monotonic() < deadline:
            newly = self._cancel(connection)
            cancelled += newly
        if cancelled:
            log.info("samples of cancelled jobs ended", samples=cancelled)

    def _cancel(self, connection: Connection) -> int:
        with connection.begin():
            return cancel_leftovers(connection)

    def _probe(self, connection: Connection) -> None:
        age = dt.timedelta(seconds=self._settings.republish_after_s)
        with connection.begin():
            suspects = suspects_to_try(connection, age=age)
        if suspects:
            log.warning("suspects tried alone", samples=[sample.sample_id for sample in suspects])
            self._publisher.publish_alone(suspects)

    def _reap_grades(self, connection: Connection) -> None:
        with connection.begin():
            late = time_out_grades(connection, age=self._grade_age, tries=GRADING_TRIES)
        if late:
            log.warning("gradings timed out", samples=late)

    def _close(self, connection: Connection) -> None:
        with connection.begin():
            mark_first_claims(connection)
        with connection.begin():
            closed = close_jobs(connection)
        for job_id, state in closed.items():
            log.info("job ended", job_id=job_id, state=state.value)

    def _follow(self, connection: Connection) -> None:
        with connection.begin():
            jobs = unfollowed_jobs(connection, age=FOLLOW_AGAIN)
        for job_id in jobs:
            self._publisher.publish_follow(job_id)

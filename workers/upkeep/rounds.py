"""The duties that keep the pipeline moving, done in rounds by one upkeep process at a time, the leader.

Who leads is a row of the database (``pipeline.db.leadership``); the leader renews its leadership between duties.

- settler: ends the registrations of workers whose lease lapsed and gives back the samples they held (the rescue)
- prober: tries samples whose workers died with them one at a time, to find the one that kills
- halter: takes the samples of paused jobs from their workers, and ends the samples of jobs that are half cancelled
- admitter: lets in as many new samples as the live workers have room for
- republisher: sends messages again for samples that wait too long, unless their queue is long
- grade reaper: turns gradings that never came back into grades of status "timeout"
- first-claim marker: notes when a worker first took a sample of a job
- closer: ends jobs that have no open sample left
- rollup refresher: counts what the idle samples of jobs add up to, in a thread of its own; there the verdicts of judges
  that have ended become grades, too
- follower: makes sure that each running job is shown in Flower
"""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as DbEngine

from pipeline.db.grades import GRADING_TRIES, RunningGrade, running_grades, time_out_grades
from pipeline.db.job_control import cancel_leftovers
from pipeline.db.leadership import lead, resign
from pipeline.db.session import connected, session
from pipeline.db.upkeep_statements import (
    MOST_OVERDUE,
    Lease,
    admit_samples,
    close_jobs,
    current_leases,
    halt_paused_jobs,
    mark_first_claims,
    overdue_samples,
    settle_workers,
    suspects_to_try,
    unfollowed_jobs,
)
from pipeline.errors import ServiceUnavailable
from pipeline.settings import Settings
from workers.broker.publish import Publisher
from workers.upkeep.meter import UpkeepMeter
from workers.upkeep.rollup_refresher import RollupRefresher
from workers.upkeep.stillness import Stillness

log = structlog.get_logger()

FOLLOW_AGAIN = dt.timedelta(seconds=15)
"""A job whose progress task was silent for this time gets a new one."""
FRESH_PER_MESSAGE = 8
"""Fresh samples in one message: small enough that several workers share a small job."""

CANCELLING_S = 0.5
"""Most time that one round spends on ending the samples of cancelled jobs."""

REPUBLISHING_S = 0.3
"""Most time that one round spends on sending messages again, a few at a time."""

RENEW_LEADERSHIP_S = 1.0
"""Least time between two renewals of the leadership."""

MAX_DEPTH = 64
"""Overdue samples are not published to a queue that holds this many messages: none was lost, or nobody reads it."""


class Superseded(Exception):
    """Another worker leads now."""


class Upkeep:
    """Does the duties every tick, as long as it leads."""

    def __init__(
        self, db_engine: DbEngine, publisher: Publisher, settings: Settings, *, worker_id: Callable[[], int]
    ) -> None:
        """worker_id: under which this process is registered now."""
        self._worker_id = worker_id
        self._db_engine = db_engine
        self._publisher = publisher
        self._settings = settings.upkeep
        self._leases = Stillness[Lease](longest_gap_s=settings.lease.ttl_s / 2)
        self._leader_ttl = dt.timedelta(seconds=max(1.0, settings.lease.answer_within_s))
        """Another may lead this long after the last renewal: the leader hangs."""
        self._renewed_at = -math.inf
        """When it last renewed its leadership, or asked for it."""
        self.meter = UpkeepMeter()
        self._to_drop: list[str] = []
        """Queues of workers that were settled, until they are deleted."""
        self._rollups = RollupRefresher(db_engine)
        self._grade_limit_s = settings.grading.time_limit_s + 5
        self._gradings = Stillness[RunningGrade](longest_gap_s=self._grade_limit_s / 2)
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
                with session(self._db_engine) as own:
                    try:
                        self._lead(own)
                    finally:
                        own.invalidate()  # a session that stays open looks like one that leads
            except Superseded:
                log.warning("upkeep leads no more: another worker does")
            except ServiceUnavailable as error:
                log.warning("upkeep waits for Postgres", reason=str(error))
            except Exception:
                log.exception("upkeep round failed")
            self._stop.wait(1.0)

    def _lead(self, own: Connection) -> None:
        """Do rounds while this worker leads, by a session of its own: where that is lost, another may lead at once."""
        while not self._may_lead(own, can_publish=self._publisher.reaches_broker()):
            if self._stop.wait(1.0):
                return
        log.info("upkeep leads", worker_id=self._worker_id())
        self._rollups.start()
        try:
            self._do_rounds(own)
        finally:
            self._rollups.stop()
        resign(own, self._worker_id())

    def _may_lead(self, own: Connection, *, can_publish: bool) -> bool:
        self._renewed_at = time.monotonic()
        return lead(own, self._worker_id(), ttl=self._leader_ttl, can_publish=can_publish)

    def _do_rounds(self, own: Connection) -> None:
        while not self._stop.wait(self._settings.tick_s):
            self.round(own)

    def round(self, own: Connection) -> None:
        """Each duty once, each in a transaction of its own, as long as this worker leads. Raises Superseded."""
        duties = (
            self._settle, self._halt, self._republish, self._probe, self._reap_grades, self._close, self._admit,
            self._follow,
        )  # fmt: skip
        with self.meter.measure_round(), connected(self._db_engine) as connection:
            for duty in duties:
                self._renew_leadership(own)
                self._do(duty, connection)
        self._drop_queues()

    def _do(self, duty: Callable[[Connection], None], connection: Connection) -> None:
        """One duty; what breaks in it, as a row that nobody can read, keeps no other from being done."""
        try:
            duty(connection)
        except ServiceUnavailable:
            raise
        except Exception:
            log.exception("duty failed", duty=duty.__name__.strip("_"))
            self.meter.duty_failed()

    def _renew_leadership(self, own: Connection) -> None:
        if time.monotonic() - self._renewed_at < RENEW_LEADERSHIP_S:
            return
        if not self._may_lead(own, can_publish=not self._publisher.is_silent):
            raise Superseded

    def _settle(self, connection: Connection) -> None:
        with connection.begin():
            seen_s = self._leases.look(current_leases(connection))
            silent = [lease for lease, seconds in seen_s.items() if seconds >= lease.ttl.total_seconds()]
            settled = settle_workers(connection, silent=silent)
        if settled is None:
            return
        log.warning(
            "workers settled",
            workers=settled.worker_ids,
            rescued=settled.rescued,
            failed=settled.failed,
        )
        self.meter.settled(rescued=settled.rescued, failed=settled.failed)
        self._publisher.publish(settled.samples)
        self._to_drop.extend(settled.queues)

    def _drop_queues(self) -> None:
        self._to_drop = [queue for queue in self._to_drop if not self._publisher.drop_queue(queue)]

    def _admit(self, connection: Connection) -> None:
        with connection.begin():
            admitted = admit_samples(connection, ahead=self._settings.admit_ahead)
        self._publisher.publish(admitted, max_shared=FRESH_PER_MESSAGE)

    def _republish(self, connection: Connection) -> None:
        deadline = time.monotonic() + REPUBLISHING_S
        published = newly = self._publish_overdue(connection)
        while newly >= MOST_OVERDUE and time.monotonic() < deadline:
            newly = self._publish_overdue(connection)
            published += newly
        self.meter.republished(published)
        if published:
            log.info("samples published again", samples=published)

    def _publish_overdue(self, connection: Connection) -> int:
        """How many samples were overdue, MOST_OVERDUE of a kind at most."""
        age = dt.timedelta(seconds=self._settings.republish_after_s)
        with connection.begin():
            overdue = overdue_samples(connection, age=age)
        if overdue:  # to the model's queue, not the worker's own: that worker may be alive and deaf
            self._publisher.publish([replace(sample, home_queue=None) for sample in overdue], max_depth=MAX_DEPTH)
        return len(overdue)

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
            seen_s = self._gradings.look(running_grades(connection, tries=GRADING_TRIES))
            late = time_out_grades(
                connection, late=[grade for grade, seconds in seen_s.items() if seconds >= self._grade_limit_s]
            )
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

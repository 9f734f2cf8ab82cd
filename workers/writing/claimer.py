"""The claimer: a thread of a small or large worker that claims what messages name.

Task threads hand their messages in and wait. Messages of one job that came together are claimed in one transaction.
What is claimed is begun at once by the writer; a claim that cannot be begun ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy.exc import DBAPIError

from pipeline.db.claims import ClaimedSample
from pipeline.db.faults import describe
from pipeline.errors import ServiceUnavailable
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.writing.batching import Batcher
from workers.writing.endings import EndedClaim, Release
from workers.writing.in_flight import InFlight
from workers.writing.job_setup import JobSetup
from workers.writing.jobs import Jobs
from workers.writing.latch import Latch
from workers.writing.meter import Meter
from workers.writing.store import Store
from workers.writing.trial import Trial, Waiting

log = structlog.get_logger()

MAX_MESSAGES = 16
"""Most messages in one claim, of up to 28 samples each: bounds its transaction too."""
CLAIM_EVERY_S = 0.01
"""Least time between two claims of several messages."""


@dataclass(slots=True, eq=False)
class Call:
    """A message that a task waits on. under_way: the claim, and each sample that it got."""

    message: SamplesMessage
    under_way: Latch = field(default_factory=lambda: Latch(1))
    num_claimed: int = 0
    answer: str = ""

    def end_claim(self, reason: str | None = None) -> None:
        """Nothing more is claimed for it. reason: why nothing was."""
        self.answer = reason or f"{self.num_claimed} of {len(self.message.samples)} written"
        self.under_way.count_down()


class Claimer:
    """Claims what messages name, on a thread of its own. Task threads call ``claim``."""

    def __init__(
        self,
        *,
        store: Store,
        jobs: Jobs,
        in_flight: InFlight,
        trial: Trial[Call],
        publisher: Publisher,
        meter: Meter,
        begin: Callable[[ClaimedSample, JobSetup, Latch], None],
        end: Callable[[EndedClaim], None],
        look_at_trial: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        """begin: hands a claimed sample to the engine. end: a claim that was not begun. look_at_trial: a sample waits
        to be alone. on_failure: told when the thread ends by a fault."""
        self._store, self._jobs, self._in_flight, self._trial = store, jobs, in_flight, trial
        self._publisher, self._meter = publisher, meter
        self._begin, self._end, self._look_at_trial = begin, end, look_at_trial
        self._lock = threading.Lock()
        self._num_unclaimed = 0
        self._calls: Batcher[Call, Call] = Batcher(
            "claimer",
            self._claim_for,
            prepare=lambda call: call,
            most=MAX_MESSAGES,
            pause_s=CLAIM_EVERY_S,
            on_failure=on_failure,
        )

    def claim(self, message: SamplesMessage) -> str:
        """Claim what a message names, and return when all of it is stored or dropped: what became of it."""
        call = Call(message)
        self._count(len(message.samples))
        self._calls.put(call)
        call.under_way.wait()
        return call.answer

    @property
    def num_unclaimed(self) -> int:
        """Samples named by messages that are still to be claimed."""
        return self._num_unclaimed

    def again(self, calls: Sequence[Call]) -> None:
        """Hand in once more what was put aside during a trial."""
        for call in calls:
            self._calls.put(call)

    def close(self, timeout_s: float) -> None:
        """End the thread once all that was handed in is claimed."""
        self._calls.close(timeout_s)

    def _claim_for(self, calls: Sequence[Call]) -> None:
        """Claim what some messages name and begin to write it; messages of one job in one transaction."""
        by_job: dict[int, list[Call]] = {}
        for call in calls:
            by_job.setdefault(call.message.job_id, []).append(call)
        for job_id, group in by_job.items():
            if self._trial.is_open and not self._in_flight.is_stopping and self._turn_away(job_id, group):
                continue
            reason: str | None = "stopping"
            if self._in_flight.begin_claiming():
                reason = self._claim_of_job(job_id, group)
                self._in_flight.end_claiming()
            for call in group:
                self._end_call(call, reason)

    def _end_call(self, call: Call, reason: str | None) -> None:
        self._count(-len(call.message.samples))
        call.end_claim(reason)

    def _count(self, num_samples: int) -> None:
        with self._lock:
            self._num_unclaimed += num_samples

    def _turn_away(self, job_id: int, calls: Sequence[Call]) -> bool:
        """A sample is to be alone here: another worker is told, or the messages wait. False: it is over by now."""
        if not self._pass_on(job_id, calls):
            return self._trial.put_aside(calls)
        for call in calls:
            self._end_call(call, "passed on: a sample is tried alone here")
        return True

    def _claim_of_job(self, job_id: int, calls: Sequence[Call]) -> str | None:
        """None, or why nothing was claimed, or none of it written: upkeep finds the samples again."""
        if self._jobs.is_misfit(job_id):
            self._pass_on(job_id, calls)
        refusal = self._jobs.refusal(job_id)
        if refusal is not None:
            return refusal
        named: dict[int, tuple[int, Call]] = {}
        for call in calls:
            for sample_id, epoch in call.message.samples:
                if sample_id not in named or epoch > named[sample_id][0]:  # of two epochs only the later can be its own
                    named[sample_id] = epoch, call
        try:
            claimed = self._store.claim(job_id, {sample_id: epoch for sample_id, (epoch, _) in named.items()})
            if not claimed and self._jobs.find_misfit(job_id):
                self._pass_on(job_id, calls)
                return self._jobs.refusal(job_id)
        except ServiceUnavailable as error:
            log.warning("nothing claimed", reason=str(error))
            return "Postgres is away"
        except DBAPIError as error:  # it may be the message's fault, and none may end a worker
            log.error("claim refused", job_id=job_id, reason=describe(error))
            return "Postgres refuses the claim"
        except Exception:  # a damaged row may break it in any way
            log.exception("claim failed", job_id=job_id)
            return "the claim failed"
        self._in_flight.claimed((sample.sample_id, sample.epoch) for sample in claimed)
        setup = self._jobs.set_up(job_id) if claimed else None
        for sample in claimed:
            self._meter.claimed(sample.wait_seconds)
            _, call = named[sample.sample_id]
            call.num_claimed += setup is not None
            call.under_way.add()
            if setup is None:
                claim = sample.sample_id, sample.epoch
                self._end(EndedClaim(sample.worker_id, claim, call.under_way, 0, Release()))
            elif sample.must_be_alone:
                self._trial.open(Waiting(sample=sample, setup=setup, latch=call.under_way))
                self._look_at_trial()
            else:
                self._begin(sample, setup, call.under_way)
        return self._jobs.refusal(job_id)

    def _pass_on(self, job_id: int, calls: Sequence[Call]) -> bool:
        """Tell a worker that may claim now of samples whose message came here; False: nobody could be told."""
        sample_ids = {sample_id for call in calls for sample_id, _ in call.message.samples}
        try:
            samples = self._store.for_another_worker(job_id, sorted(sample_ids))
        except ServiceUnavailable:
            return False  # upkeep finds them again
        self._publisher.publish(samples)
        return bool(samples)

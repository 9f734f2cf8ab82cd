"""The part of a small or large worker that writes: claim → load → generate → conclude → record → publish.

Task threads hand their messages in and wait; one claimer thread claims what they name; the engine's thread hands
results over; one recorder thread stores them. Both do many samples in one transaction: while one is under way the next
ones gather. Nothing here decides what is written (the policy does) or who may write (the epoch does).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as DbEngine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from pipeline.chat.model import ChatModel
from pipeline.chat.translation import settle_think_phase
from pipeline.db.hops import (
    ClaimedSample,
    Committed,
    ContextMemory,
    Hop,
    claim_samples,
    commit_hops,
    defer_samples,
    fix_think_phase,
    get_job_config,
    held_epochs,
    release_samples,
)
from pipeline.db.session import transaction
from pipeline.db.workforce import WorkerCounters, amend_books
from pipeline.errors import (
    EngineDied,
    EngineRefused,
    EngineUnavailable,
    ServiceUnavailable,
)
from pipeline.samples import RUNNABLE_STATE, ModelRole
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.engine.base import Engine, GenerateResult
from workers.writing.batching import Gatherer
from workers.writing.cache_room import CacheRoom
from workers.writing.turn import Countdown, JobSetup, Work, conclude, failed, prepare, set_aside

log = structlog.get_logger()

_T = TypeVar("_T")

MAX_GROUP = 256
"""Most samples in one commit: keeps a transaction in the tens of milliseconds."""
MAX_MESSAGES = 16
"""Most messages in one claim, likewise: of up to 28 samples each."""
COMMIT_EVERY_S = 0.25
"""Time between two commits of several samples, where FULL_GROUP do not wait before. A commit and the message after it
cost some 10 ms of CPU however many samples they have, and of more than a hundred in flight a few can wait: on two cores
this is worth a third of a job's speed over 0.05 s. A sample that is alone does not wait."""
FULL_GROUP = 20
"""Samples that make a commit worth its cost."""
CLAIM_EVERY_S = 0.01
"""Least time between two claims of several messages."""
REMEMBERED = 16
"""Samples whose contexts a writer remembers, for each one that it can have in flight."""
RETRY_PAUSE_S = 0.5
"""Between two tries to reach Postgres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who writes, by the books."""

    worker_id: int
    engine_id: int


class Outcome(NamedTuple):
    work: Work
    result: GenerateResult | Exception


@dataclass(slots=True, eq=False)
class _Call:
    """A message that a task waits on. under_way: the claim, and each sample that it got."""

    message: SamplesMessage
    under_way: Countdown = field(default_factory=lambda: Countdown(1))
    num_claimed: int = 0
    answer: str = ""

    def end_claim(self, reason: str | None = None) -> None:
        """Nothing more is claimed for it. reason: why nothing was."""
        self.answer = reason or f"{self.num_claimed} of {len(self.message.samples)} written"
        self.under_way.tick()


class Writer:
    """Writes samples with one engine. Task threads call ``write``; the lease keeper calls the rest."""

    def __init__(
        self,
        *,
        role: ModelRole,
        engine: Engine,
        chat: ChatModel,
        db_engine: DbEngine,
        publisher: Publisher,
        identity: Identity,
        on_engine_death: Callable[[], None],
        max_attempts: int = 8,
        admit_ahead: float = 1.0,
    ) -> None:
        """max_attempts: so often a sample is handed to an engine that refuses it for the moment. admit_ahead: samples
        that upkeep admits per slot."""
        self.role = role
        self.engine = engine
        self._chat = chat
        self._db_engine = db_engine
        self._publisher = publisher
        self._identity = identity
        self._on_engine_death = on_engine_death
        self._max_attempts = max_attempts
        self._lock = threading.Lock()
        self._in_flight: dict[int, Work] = {}
        self._beginning: dict[int, int] = {}
        """Claimed and not yet in flight: sample id → epoch."""
        self._strays: dict[int, int] = {}
        """Held by the last heartbeat, and neither beginning nor in flight."""
        self._life = 0
        """Counts the times that the lease was lost."""
        self._late_tokens: Counter[int] = Counter()
        """Committed by a life whose lease was lost before the answer came: worker id → tokens to amend its books by."""
        self._committed_tokens = 0
        self._dropped_tokens = 0
        self._cache_room = CacheRoom(max_in_flight=engine.max_in_flight, ahead=admit_ahead)
        self._stopping = False
        """Nothing more is claimed."""
        self._num_claiming = 0
        """Claims under way."""
        self._drained = False
        """Nothing more is handed to the engine."""
        self._setup = lru_cache(maxsize=64)(self._load_setup)
        self._memory = ContextMemory(max_samples=REMEMBERED * engine.max_in_flight)
        self._recorder = Gatherer(
            "recorder",
            self._record,
            most=MAX_GROUP,
            pause_s=COMMIT_EVERY_S,
            enough=FULL_GROUP,
            on_failure=on_engine_death,
        )
        self._claimer = Gatherer(
            "claimer", self._claim_for, most=MAX_MESSAGES, pause_s=CLAIM_EVERY_S, on_failure=on_engine_death
        )

    # -- task threads ------------------------------------------------------------------------------------------------

    def write(self, message: SamplesMessage) -> str:
        """Claim what a message names, write one segment of each, and return when all are stored or dropped."""
        call = _Call(message)
        self._claimer.put(call)
        call.under_way.wait()
        return call.answer

    # -- the claimer's thread ----------------------------------------------------------------------------------------

    def _claim_for(self, calls: Sequence[_Call]) -> None:
        """Claim what some messages name and begin to write it; messages of one job in one transaction."""
        by_job: dict[int, list[_Call]] = {}
        for call in calls:
            by_job.setdefault(call.message.job_id, []).append(call)
        for job_id, group in by_job.items():
            with self._lock:
                stopping = self._stopping
                self._num_claiming += not stopping
            reason: str | None = "stopping"
            if not stopping:
                reason = self._claim_of_job(job_id, group)
                with self._lock:
                    self._num_claiming -= 1
            for call in group:
                call.end_claim(reason)

    def _claim_of_job(self, job_id: int, calls: Sequence[_Call]) -> str | None:
        """None, or why nothing was claimed: upkeep finds the samples again."""
        named: dict[int, tuple[int, _Call]] = {}
        for call in calls:
            for sample_id, epoch in call.message.samples:
                if sample_id not in named or epoch > named[sample_id][0]:  # of two epochs only the later can be its own
                    named[sample_id] = epoch, call
        try:
            claimed = self._claim(job_id, {sample_id: epoch for sample_id, (epoch, _) in named.items()})
        except (ServiceUnavailable, DBAPIError) as error:
            log.warning("nothing claimed", reason=str(error))
            return "Postgres is away"
        with self._lock:
            self._beginning.update({sample.sample_id: sample.epoch for sample in claimed})
        for sample in claimed:
            _, call = named[sample.sample_id]
            call.num_claimed += 1
            call.under_way.add()
            self._begin(sample, call.under_way)
        return None

    def _claim(self, job_id: int, epochs: Mapping[int, int]) -> list[ClaimedSample]:
        with transaction(self._db_engine) as connection:
            return claim_samples(
                connection,
                worker_id=self._identity.worker_id,
                role=self.role,
                epochs=epochs,
                job_id=job_id,
                memory=self._memory,
            )

    def _begin(self, sample: ClaimedSample, countdown: Countdown) -> None:
        """Hand a sample to the engine; whatever goes wrong with this one sample ends this one sample."""
        try:
            setup = self._setup(sample.job_id)
            work = prepare(
                sample,
                setup,
                role=self.role,
                chat=self._chat,
                countdown=countdown,
                max_model_len=self.engine.max_model_len,
            )
        except Exception as error:
            log.exception("sample not prepared", sample_id=sample.sample_id)
            work = failed(sample, error)
        if isinstance(work, Hop):
            self._store_at_once(work)
            countdown.tick()
        with self._lock:
            if self._beginning.get(sample.sample_id) == sample.epoch:
                del self._beginning[sample.sample_id]
            if isinstance(work, Hop):
                return
            if not self._drained:
                self._in_flight[sample.sample_id] = work
            is_late = self._drained
        if is_late:
            self._give_back({sample.sample_id: sample.epoch})
            countdown.tick()
            return
        self.engine.submit(work.request, lambda result: self._recorder.put(Outcome(work, result)))

    def _load_setup(self, job_id: int) -> JobSetup:
        config = self._patiently(lambda connection: get_job_config(connection, job_id))
        wanted = config.model(self.role)
        if wanted and wanted.fingerprint not in (None, self._chat.fingerprint):
            raise EngineRefused(
                wanted.name,
                "this worker's model has another tokenizer or chat template than the job was submitted with",
            )
        phase = settle_think_phase(self._chat)
        think = self._patiently(lambda connection: fix_think_phase(connection, job_id, phase))
        return JobSetup.of(config, think, self._chat)

    def _store_at_once(self, hop: Hop) -> None:
        self._publisher.publish(self._commit([hop]).samples)

    # -- the recorder's thread ---------------------------------------------------------------------------------------

    def _record(self, group: Sequence[Outcome]) -> None:
        """Store a group of outcomes, tell who goes on, and let the waiting tasks end."""
        concluded = [(outcome.result, self._conclude(outcome)) for outcome in group]
        hops = [hop for _, hop in concluded if hop is not None]
        identity, life = self._identity, self._life
        committed = self._commit(hops)
        self._book(concluded, committed.claims, identity, life)
        with self._lock:
            for work, _ in group:
                if self._in_flight.get(work.sample.sample_id) is work:
                    del self._in_flight[work.sample.sample_id]
        self._publisher.publish(committed.samples)
        for work, _ in group:
            work.countdown.tick()
        for hop in hops:
            if hop.to_state not in RUNNABLE_STATE.values():
                self._memory.forget(hop.sample_id)

    def _conclude(self, outcome: Outcome) -> Hop | None:
        """The hop to commit; None where there is nothing to store: the sample was taken away or goes back."""
        work, result = outcome
        if work.abandoned:
            return None
        work.committing = True
        if isinstance(result, EngineDied):
            self._on_engine_death()
            return None
        if isinstance(result, EngineUnavailable):
            self._defer(work, result)
            return None
        if isinstance(result, Exception):
            return failed(work.sample, result)
        try:
            return conclude(work, result, self._chat)
        except Exception as error:
            log.exception("sample not concluded", sample_id=work.sample.sample_id)
            return failed(work.sample, error)

    def _commit(self, hops: Sequence[Hop]) -> Committed:
        """Store hops. One that Postgres refuses for its content is set aside with the reason, and no other with it."""
        if not hops:
            return Committed(claims=frozenset(), samples=[])
        try:
            return self._commit_together(hops)
        except (DataError, IntegrityError) as error:
            if len(hops) == 1:
                return self._set_aside(hops[0], error.orig or error)
        one_by_one = [self._commit([hop]) for hop in hops]
        return Committed(
            claims=frozenset(claim for committed in one_by_one for claim in committed.claims),
            samples=[sample for committed in one_by_one for sample in committed.samples],
        )

    def _set_aside(self, hop: Hop, error: BaseException) -> Committed:
        log.error("hop not stored", sample_id=hop.sample_id, reason=str(error))
        return replace(self._commit_together([set_aside(hop, error)]), claims=frozenset())

    def _commit_together(self, hops: Sequence[Hop]) -> Committed:
        identity = self._identity
        return self._patiently(
            lambda connection: commit_hops(
                connection,
                worker_id=identity.worker_id,
                engine_id=identity.engine_id,
                hops=hops,
            )
        )

    def _give_back(self, epochs: Mapping[int, int]) -> None:
        worker_id = self._identity.worker_id
        released = self._patiently(lambda connection: release_samples(connection, worker_id=worker_id, epochs=epochs))
        self._publisher.publish(released)

    def _defer(self, work: Work, error: EngineUnavailable) -> None:
        worker_id = self._identity.worker_id
        log.warning("sample deferred", sample_id=work.sample.sample_id, reason=str(error))
        self._patiently(
            lambda connection: defer_samples(
                connection,
                worker_id=worker_id,
                epochs={work.sample.sample_id: work.sample.epoch},
                error=f"{type(error).__name__}: {error}",
                max_attempts=self._max_attempts,
            )
        )

    def _patiently(self, statement: Callable[[Connection], _T]) -> _T:
        """Try again for as long as Postgres is away or in trouble of its own (a full disk, a standby, a lock): what was
        written stays in memory until it is stored, or refused for its content."""
        while True:
            try:
                with transaction(self._db_engine) as connection:
                    return statement(connection)
            except (DataError, IntegrityError):
                raise
            except (ServiceUnavailable, DBAPIError) as error:
                log.warning("writer waits for Postgres", reason=str(error))
                time.sleep(RETRY_PAUSE_S)

    def _book(
        self,
        concluded: Sequence[tuple[GenerateResult | Exception, Hop | None]],
        stored: Set[tuple[int, int]],
        identity: Identity,
        life: int,
    ) -> None:
        """Every token is committed, in a segment that was stored, or dropped. stored: claims; life: when it was sent.

        Where the lease was lost before the commit's answer came, the books of that life are closed with all these
        tokens as dropped, sooner or later: what was committed after all is added there after that, by the lease keeper.
        """
        generated = committed = 0
        for result, hop in concluded:
            generated += result.num_generated_tokens if isinstance(result, GenerateResult) else 0
            if hop is not None and (hop.sample_id, hop.epoch) in stored:
                committed += sum(segment.tokens_generated for segment in hop.segments)
        with self._lock:
            for result, _ in concluded:
                if isinstance(result, GenerateResult):
                    self._cache_room.ended(result)
            is_late = self._life != life
            self._committed_tokens += 0 if is_late else committed
            self._dropped_tokens += generated if is_late else generated - committed
            if is_late and committed:
                self._late_tokens[identity.worker_id] += committed

    # -- the lease keeper's thread -----------------------------------------------------------------------------------

    def counters(self) -> WorkerCounters:
        """Totals for the heartbeat."""
        with self._lock:
            committed, dropped = self._committed_tokens, self._dropped_tokens
        stats = self.engine.stats()
        with self._lock:
            num_slots = self._cache_room.num_slots(stats)
        return WorkerCounters(
            num_in_flight=len(self._in_flight),
            num_slots=num_slots,
            tokens_generated=stats.num_generated_tokens,
            tokens_committed=committed,
            tokens_dropped=dropped + stats.num_lost_tokens,
            prompt_tokens=stats.num_prompt_tokens,
            cached_tokens=stats.num_cached_tokens,
        )

    def retire(self) -> None:
        """The lease was lost: what was in flight is abandoned, and what is stored under it from now on is amended."""
        with self._lock:
            self._life += 1
        self._abandon(self.in_flight())

    def adopt(self, identity: Identity) -> None:
        """Go on under a new identity after the lease was lost."""
        self._abandon(self.in_flight())
        self._identity = identity

    def in_flight(self) -> list[Work]:
        """What is being written now."""
        with self._lock:
            return list(self._in_flight.values())

    def reconcile(self, worker_id: int) -> None:
        """After a heartbeat under this id: compare what the database says this worker holds with what is written."""
        before = self.in_flight()
        with transaction(self._db_engine) as connection:
            held = held_epochs(connection, worker_id)
        lost = self.abandon_lost(before, held)
        if lost:
            log.info("samples abandoned", samples=lost)
        self.release_strays(before, held)
        self._amend_books()

    def _amend_books(self) -> None:
        """Once a later life has renewed its lease, the books of the earlier ones are closed."""
        with self._lock:
            late = self._late_tokens.copy()
        if not late:
            return
        with transaction(self._db_engine) as connection:
            for worker_id, tokens in late.items():
                amend_books(connection, worker_id, tokens=tokens)
        with self._lock:
            self._late_tokens -= late  # a zero does not stay

    def abandon_lost(self, before: Sequence[Work], held: dict[int, int]) -> int:
        """Abort what the database no longer gives to this worker (cancelled, rescued); returns how many.

        before: ``in_flight`` taken before held (sample id → epoch) was read, so that a claim made between the two is
        not taken for lost.
        """
        lost = [work for work in before if held.get(work.sample.sample_id) != work.sample.epoch and not work.committing]
        self._abandon(lost)
        return len(lost)

    def release_strays(self, before: Sequence[Work], held: Mapping[int, int]) -> None:
        """Hand back what the database says this worker holds and nobody here writes: a claim whose answer was lost.

        before, held: as for ``abandon_lost``. Two looks in a row, so that a claim under way is not taken for one.
        """
        with self._lock:
            known = {work.sample.sample_id: work.sample.epoch for work in before} | self._beginning
            now_held = {work.sample.sample_id: work.sample.epoch for work in self._in_flight.values()} | known
        strays = {sample_id: epoch for sample_id, epoch in held.items() if now_held.get(sample_id) != epoch}
        lost = {sample_id: epoch for sample_id, epoch in strays.items() if self._strays.get(sample_id) == epoch}
        self._strays = strays
        if lost:
            log.warning("stray samples handed back", samples=list(lost))
            self._give_back(lost)

    def _abandon(self, works: Sequence[Work]) -> None:
        for work in works:
            work.abandoned = True
            self.engine.abort(work.request.request_id)

    # -- stopping ----------------------------------------------------------------------------------------------------

    def drain(self, timeout_s: float) -> None:
        """Take nothing new; let requests run on for so long, then hand the rest back and drop their tokens."""
        with self._lock:
            self._stopping = True
        deadline = time.monotonic() + timeout_s
        while (self._in_flight or self._num_claiming) and time.monotonic() < deadline:
            time.sleep(0.05)
        with self._lock:
            self._drained = True
        rest = self.in_flight()
        if rest:
            self._abandon(rest)
            self._give_back({work.sample.sample_id: work.sample.epoch for work in rest})
            log.info("samples handed back", samples=len(rest))

    def close(self) -> None:
        """End once all that was claimed is stored."""
        self._claimer.close(timeout_s=30)
        self._recorder.close(timeout_s=30)
        with suppress(ServiceUnavailable):
            self._amend_books()

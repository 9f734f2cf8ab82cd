"""The part of a small or large worker that writes: claim → load → generate → advance → commit → publish.

Task threads hand their messages in and wait; the claimer claims what they name; the engine's thread hands results over;
the advancer asks the policies what comes next, and what the same role does next goes to the engine again; the recorder
stores what was gathered. Claimer and recorder do many samples in one transaction: while one is under way the next ones
gather. Nothing here decides what is written (the policy does) or who may write (the epoch does).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple, TypeAlias, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as DbEngine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from pipeline.chat.model import ChatModel
from pipeline.chat.translation import settle_think_phase
from pipeline.db.claims import ClaimedSample, claim_samples, defer_samples, held_epochs, release_samples
from pipeline.db.commits import Committed, SampleCommit, commit_samples
from pipeline.db.context_cache import ContextCache
from pipeline.db.job_configs import fix_think_phase, get_job_config
from pipeline.db.session import transaction
from pipeline.db.workforce import WorkerCounters, settle_late_tokens
from pipeline.errors import EngineDied, EngineRefused, EngineUnavailable, ServiceUnavailable
from pipeline.policies.requests import Generate
from pipeline.samples import RUNNABLE_STATE, ModelRole
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.engine.base import Engine, GenerateRequest, GenerateResult
from workers.writing.active import ActiveSample
from workers.writing.batching import Batcher
from workers.writing.cache_room import CacheRoom
from workers.writing.in_flight import InFlight
from workers.writing.job_setup import JobSetup
from workers.writing.latch import Latch
from workers.writing.token_ledger import TokenLedger
from workers.writing.turn import Step, apply_result, begin, commit_gathered, failed

log = structlog.get_logger()

_T = TypeVar("_T")

MAX_GROUP = 256
"""Most samples in one commit: keeps a transaction in the tens of milliseconds."""
MAX_MESSAGES = 16
"""Most messages in one claim, likewise: of up to 28 samples each."""
COMMIT_EVERY_S = 0.25
"""Time between two commits of several samples, where FULL_GROUP do not wait before. A commit and the message after it
cost some 10 ms of CPU however many samples they have, and of more than a hundred in flight a few can wait: on two cores
this is worth a third of a job's speed over 0.05 s. A sample that is alone does not wait, nor does one that stays."""
FULL_GROUP = 20
"""Samples that make a commit worth its cost."""
CLAIM_EVERY_S = 0.01
"""Least time between two claims of several messages."""
CACHED = 16
"""Samples whose contexts a writer caches, for each one that it can have in flight."""
RETRY_PAUSE_S = 0.5
"""Between two tries to reach Postgres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who writes, by the books."""

    worker_id: int
    engine_id: int


class Outcome(NamedTuple):
    """What the engine made of a sample's request."""

    active: ActiveSample
    result: GenerateResult | Exception


@dataclass(frozen=True, slots=True)
class Release:
    """The sample goes back to its last commit."""


@dataclass(frozen=True, slots=True)
class Deferral:
    """So does it, for later: the engine refuses it for the moment."""

    error: EngineUnavailable


Ending: TypeAlias = SampleCommit | Release | Deferral | None
"""How a claim ends here; None: nothing is to be done, somebody else has the sample."""


class Ended(NamedTuple):
    """A claim that ends. num_tokens: generated under it."""

    claim: tuple[int, int]
    latch: Latch
    num_tokens: int
    ending: Ending


@dataclass(slots=True, eq=False)
class _Call:
    """A message that a task waits on. under_way: the claim, and each sample that it got."""

    message: SamplesMessage
    under_way: Latch = field(default_factory=lambda: Latch(1))
    num_claimed: int = 0
    answer: str = ""

    def end_claim(self, reason: str | None = None) -> None:
        """Nothing more is claimed for it. reason: why nothing was."""
        self.answer = reason or f"{self.num_claimed} of {len(self.message.samples)} written"
        self.under_way.count_down()


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
        self._in_flight = InFlight()
        self._ledger = TokenLedger()
        self._cache_room = CacheRoom(max_in_flight=engine.max_in_flight, ahead=admit_ahead)
        self._room_lock = threading.Lock()
        self._setup = lru_cache(maxsize=64)(self._load_setup)
        self._cache = ContextCache(max_samples=CACHED * engine.max_in_flight)
        self._recorder = Batcher(
            "recorder",
            self._record,
            most=MAX_GROUP,
            pause_s=COMMIT_EVERY_S,
            enough=FULL_GROUP,
            on_failure=on_engine_death,
        )
        self._advancer = Batcher("advancer", self._advance, most=MAX_GROUP, pause_s=0.0, on_failure=on_engine_death)
        self._claimer = Batcher(
            "claimer", self._claim_for, most=MAX_MESSAGES, pause_s=CLAIM_EVERY_S, on_failure=on_engine_death
        )

    # Task threads.

    def write(self, message: SamplesMessage) -> str:
        """Claim what a message names, write each sample as far as this role does, and return when all of it is stored
        or dropped."""
        call = _Call(message)
        self._claimer.put(call)
        call.under_way.wait()
        return call.answer

    # The claimer's thread.

    def _claim_for(self, calls: Sequence[_Call]) -> None:
        """Claim what some messages name and begin to write it; messages of one job in one transaction."""
        by_job: dict[int, list[_Call]] = {}
        for call in calls:
            by_job.setdefault(call.message.job_id, []).append(call)
        for job_id, group in by_job.items():
            reason: str | None = "stopping"
            if self._in_flight.begin_claiming():
                reason = self._claim_of_job(job_id, group)
                self._in_flight.end_claiming()
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
        self._in_flight.claimed((sample.sample_id, sample.epoch) for sample in claimed)
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
                cache=self._cache,
            )

    def _begin(self, sample: ClaimedSample, latch: Latch) -> None:
        """Hand a sample to the engine; whatever goes wrong with this one sample ends this one sample."""
        claim = sample.sample_id, sample.epoch
        ending: Ending
        try:
            active, step = begin(sample, self._setup(sample.job_id), latch)
        except Exception as error:
            log.exception("sample not begun", sample_id=sample.sample_id)
            ending = failed(claim, error)
        else:
            if isinstance(step, GenerateRequest):
                if self._in_flight.started(active):
                    self._submit(active, step)
                    return
                ending = Release()
            else:
                ending = step
        self._recorder.put(Ended(claim, latch, 0, ending))

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
        return JobSetup.of(config, think, self._chat, role=self.role, max_model_len=self.engine.max_model_len)

    def _submit(self, active: ActiveSample, request: GenerateRequest) -> None:
        self.engine.submit(request, lambda result: self._advancer.put(Outcome(active, result)))
        if active.abandoned or active.handed_back:  # since it was looked at: whoever said so found nothing to abort
            self.engine.abort(request.request_id)

    # The advancer's thread.

    def _advance(self, group: Sequence[Outcome]) -> None:
        """Carry samples on by what the engine made of their requests."""
        for active, result in group:
            if isinstance(result, GenerateResult):
                self._ledger.receive(result.num_generated_tokens)
                if isinstance(active.request, Generate):
                    with self._room_lock:
                        self._cache_room.ended(result)
            step = self._next_step(active, result)
            if isinstance(step, GenerateRequest):
                self._submit(active, step)
            else:
                active.committing = True
                self._recorder.put(Ended(active.claim, active.latch, active.num_tokens, step))

    def _next_step(self, active: ActiveSample, result: GenerateResult | Exception) -> Step | Ending:
        if active.abandoned or active.handed_back:
            active.num_tokens += result.num_generated_tokens if isinstance(result, GenerateResult) else 0
            return None if active.abandoned else commit_gathered(active) or Release()
        if isinstance(result, EngineDied):
            self._on_engine_death()
            return None
        if isinstance(result, EngineUnavailable):
            return commit_gathered(active) or Deferral(result)
        if isinstance(result, Exception):
            return failed(active.claim, result)
        try:
            may_stay = not self._in_flight.is_stopping
            return apply_result(active, result, may_stay=may_stay, ended_at=time.monotonic())
        except Exception as error:
            log.exception("sample not carried on", sample_id=active.sample.sample_id)
            return failed(active.claim, error)

    # The recorder's thread.

    def _record(self, group: Sequence[Ended]) -> None:
        """Store how a group of claims ended, tell who goes on, and let the waiting tasks end."""
        commits = [ended.ending for ended in group if isinstance(ended.ending, SampleCommit)]
        generation, identity = self._ledger.generation, self._identity
        committed = self._commit(commits)
        stored = sum(commit.tokens_generated for commit in commits if commit.claim in committed.claims)
        self._ledger.settle(
            received=sum(ended.num_tokens for ended in group),
            committed=stored,
            generation=generation,
            worker_id=identity.worker_id,
        )
        self._give_back(dict(ended.claim for ended in group if isinstance(ended.ending, Release)))
        for ended in group:
            if isinstance(ended.ending, Deferral):
                self._defer(ended.claim, ended.ending.error)
        self._in_flight.ended(ended.claim for ended in group)
        self._publisher.publish(committed.samples)
        for ended in group:
            ended.latch.count_down()
        for commit in commits:
            if commit.to_state not in RUNNABLE_STATE.values():
                self._cache.forget(commit.sample_id)

    def _commit(self, commits: Sequence[SampleCommit]) -> Committed:
        """Store commits. One that Postgres refuses for its content is set aside with the reason, no other with it."""
        if not commits:
            return Committed(claims=frozenset(), samples=[])
        try:
            return self._commit_together(commits)
        except (DataError, IntegrityError) as error:
            if len(commits) == 1:
                return self._set_aside(commits[0], error.orig or error)
        one_by_one = [self._commit([commit]) for commit in commits]
        return Committed(
            claims=frozenset(claim for committed in one_by_one for claim in committed.claims),
            samples=[sample for committed in one_by_one for sample in committed.samples],
        )

    def _set_aside(self, commit: SampleCommit, error: BaseException) -> Committed:
        log.error("commit refused", sample_id=commit.sample_id, reason=str(error))
        return replace(self._commit_together([failed(commit.claim, error)]), claims=frozenset())

    def _commit_together(self, commits: Sequence[SampleCommit]) -> Committed:
        identity = self._identity
        return self._patiently(
            lambda connection: commit_samples(
                connection,
                worker_id=identity.worker_id,
                engine_id=identity.engine_id,
                commits=commits,
            )
        )

    def _give_back(self, epochs: Mapping[int, int]) -> None:
        """epochs: sample id → epoch."""
        if not epochs:
            return
        worker_id = self._identity.worker_id
        released = self._patiently(lambda connection: release_samples(connection, worker_id=worker_id, epochs=epochs))
        self._publisher.publish(released)

    def _defer(self, claim: tuple[int, int], error: EngineUnavailable) -> None:
        worker_id = self._identity.worker_id
        log.warning("sample deferred", sample_id=claim[0], reason=str(error))
        self._patiently(
            lambda connection: defer_samples(
                connection,
                worker_id=worker_id,
                epochs=dict([claim]),
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

    # The lease keeper's thread.

    def counters(self) -> WorkerCounters:
        """Totals for the heartbeat. The accounts are read first: the engine has counted what is in them."""
        accounts = self._ledger.accounts()
        stats = self.engine.stats()
        with self._room_lock:
            num_slots = self._cache_room.num_slots(stats)
        return WorkerCounters(
            num_in_flight=len(self._in_flight),
            num_slots=num_slots,
            tokens_generated=stats.num_generated_tokens,
            tokens_committed=accounts.committed,
            tokens_dropped=accounts.dropped + stats.num_lost_tokens,
            prompt_tokens=stats.num_prompt_tokens,
            cached_tokens=stats.num_cached_tokens,
        )

    def lease_lost(self) -> None:
        """What was in flight is abandoned; what a commit stored whose answer comes after this is late."""
        self._ledger.lease_lost()
        self._abandon(self.in_flight())

    def lease_renewed_as(self, identity: Identity) -> None:
        """Go on under a new identity after the lease was lost."""
        self._abandon(self.in_flight())
        self._identity = identity

    def in_flight(self) -> list[ActiveSample]:
        """What is being written now."""
        return self._in_flight.samples()

    def reconcile(self, worker_id: int) -> None:
        """After a heartbeat under this id: compare what the database says this worker holds with what is written."""
        before = self.in_flight()
        with transaction(self._db_engine) as connection:
            held = held_epochs(connection, worker_id)
        lost = self.abandon_lost(before, held)
        if lost:
            log.info("samples abandoned", samples=lost)
        self.release_orphaned(before, held)
        self._settle_late_tokens()

    def _settle_late_tokens(self) -> None:
        """Once a later generation has renewed its lease, the rows of the earlier ones are closed and can be mended."""
        late = self._ledger.late_tokens()
        if not late:
            return
        with transaction(self._db_engine) as connection:
            for worker_id, tokens in late.items():
                settle_late_tokens(connection, worker_id, tokens=tokens)
        self._ledger.late_settled(late)

    def abandon_lost(self, before: Sequence[ActiveSample], held: Mapping[int, int]) -> int:
        """Abort what the database no longer gives to this worker; returns how many. See ``InFlight.find_lost``."""
        lost = self._in_flight.find_lost(before, held)
        self._abandon(lost)
        return len(lost)

    def release_orphaned(self, before: Sequence[ActiveSample], held: Mapping[int, int]) -> None:
        """Hand back claims whose answer was lost. See ``InFlight.find_orphaned``."""
        orphaned = self._in_flight.find_orphaned(before, held)
        if orphaned:
            log.warning("orphaned claims handed back", samples=list(orphaned))
            self._give_back(orphaned)

    def _abandon(self, samples: Sequence[ActiveSample]) -> None:
        for active in samples:
            active.abandoned = True
            self.engine.abort(active.request_id)

    # Stopping.

    def drain(self, timeout_s: float) -> None:
        """Take nothing new; let requests run on for so long, then hand the rest back: what is gathered is stored, what
        is being written is dropped."""
        self._in_flight.stop()
        deadline = time.monotonic() + timeout_s
        while not self._in_flight.is_idle and time.monotonic() < deadline:
            time.sleep(0.05)
        rest = self._in_flight.drain()
        for active in rest:
            active.handed_back = True
            self.engine.abort(active.request_id)
        if rest:
            log.info("samples handed back", samples=len(rest))

    def close(self) -> None:
        """End once all that was claimed is stored."""
        for batcher in (self._claimer, self._advancer, self._recorder):
            batcher.close(timeout_s=30)
        with suppress(ServiceUnavailable):
            self._settle_late_tokens()

"""The part of a small or large worker that writes: claim → load → generate → advance → commit → publish.

The claimer claims what messages name and hands it to the engine. The engine's thread hands results over. The recorder
asks the policies what comes next: what the same role does next goes to the engine at once, what was gathered is stored
together with other samples'. One thread does both, since each further one that waits for the interpreter costs all
others time. Nothing here decides what is written (the policy does) or who may write (the epoch does).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import structlog
from sqlalchemy import Engine as DbEngine

from pipeline.chat.model import ChatModel
from pipeline.db.claims import ClaimedSample
from pipeline.db.commits import SampleCommit, StoredRow
from pipeline.db.parts import Part
from pipeline.db.runnable import Runnable
from pipeline.db.worker_leases import WorkerCounters
from pipeline.errors import EngineAway, EngineDied, EngineUnavailable, LeaseLost, ServiceUnavailable
from pipeline.policies.requests import Generate
from pipeline.samples import ModelRole
from pipeline.workforce import WorkerEnd
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.engine.base import Engine, GenerateRequest, GenerateResult
from workers.engine.cache_first import CacheFirst
from workers.writing.active import ActiveSample
from workers.writing.batching import Batcher
from workers.writing.cache_room import CacheRoom
from workers.writing.claimer import Call, Claimer
from workers.writing.endings import ClaimEnd, Deferral, EndedClaim, Release
from workers.writing.in_flight import InFlight
from workers.writing.job_setup import JobSetup
from workers.writing.jobs import Jobs
from workers.writing.latch import Latch
from workers.writing.meter import Meter
from workers.writing.parts import last_part, running_part
from workers.writing.store import Identity, Store
from workers.writing.token_ledger import TokenLedger
from workers.writing.trial import Trial, Waiting
from workers.writing.turn import Step, apply_result, begin, commit_gathered, failed

log = structlog.get_logger()

MAX_GROUP = 256
"""Most samples in one commit: keeps a transaction in the tens of milliseconds."""
COMMIT_EVERY_S = 0.05
"""Time between two commits of several samples, unless FULL_GROUP samples wait already. A commit and the message after
it cost some 10 ms of CPU however many samples they have. A sample that is alone does not wait, nor does one that
stays."""
COMMIT_BESIDE_ENGINE_EVERY_S = 0.25
"""The same where the engine computes on the worker's cores, which commits then take from it: on two cores a job on the
demo pair is a third faster than with 0.05 s. Engines with a device of their own would have a tenth less to do by it
(bench/paced)."""
FULL_GROUP = 40
"""Samples that make a commit worth its cost."""


class Outcome(NamedTuple):
    """What the engine made of a sample's request."""

    active: ActiveSample
    result: GenerateResult | Exception


@dataclass(frozen=True, slots=True)
class LookAtTrial:
    """Go on with the trial, if its sample can be alone now."""


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
        on_failure: Callable[[WorkerEnd], None],
        max_attempts: int = 8,
        admit_ahead: float = 1.0,
        store_every_s: float = 0.0,
        weights: str | None = None,
        revision: str | None = None,
    ) -> None:
        """on_failure: told why the worker cannot go on. max_attempts: so often a sample is handed to an
        engine that refuses it for the moment. admit_ahead: samples that upkeep admits per slot. store_every_s: how
        often what a request has written is stored while it runs; 0: never."""
        self.role = role
        self._store_every_s = store_every_s
        self.engine: Engine = CacheFirst(engine)
        self._publisher = publisher
        self._on_failure = on_failure
        on_fault = partial(on_failure, WorkerEnd.WRITER_FAILED)
        self._store = Store(
            db_engine, identity, role=role, max_in_flight=engine.max_in_flight, max_attempts=max_attempts
        )
        self._in_flight = InFlight()
        self._ledger = TokenLedger()
        self._cache_room = CacheRoom(max_in_flight=engine.max_in_flight, ahead=admit_ahead)
        self._room_lock = threading.Lock()
        self.num_places = math.ceil(engine.max_in_flight * admit_ahead)
        """Samples that are taken in: beyond them only those that come back."""
        self._jobs = Jobs(self._store, chat, engine, role=role, weights=weights, revision=revision)
        self._trial: Trial[Call] = Trial()
        self.meter = Meter(role.value)
        self._recorder: Batcher[Outcome | EndedClaim | LookAtTrial, EndedClaim] = Batcher(
            "recorder",
            self._record,
            prepare=self._advance,
            most=MAX_GROUP,
            pause_s=COMMIT_EVERY_S if engine.info.has_own_device else COMMIT_BESIDE_ENGINE_EVERY_S,
            enough=FULL_GROUP,
            on_failure=on_fault,
        )
        self._claimer = Claimer(
            store=self._store,
            jobs=self._jobs,
            in_flight=self._in_flight,
            trial=self._trial,
            publisher=publisher,
            meter=self.meter,
            begin=self._begin,
            end=self._recorder.put,
            look_at_trial=lambda: self._recorder.put(LookAtTrial()),
            on_failure=on_fault,
        )

    # Task threads.

    def write(self, message: SamplesMessage) -> str:
        """Claim what a message names, write each sample as far as this role does, and return when all of it is stored
        or dropped."""
        return self._claimer.claim(message)

    # The consumer's thread.

    def takes_more(self) -> bool:
        """Whether it has room for samples that are new to it."""
        return self._in_flight.num_claimed + self._claimer.num_unclaimed < self.num_places

    # The claimer's thread.

    def _begin(self, sample: ClaimedSample, setup: JobSetup, latch: Latch) -> None:
        """Hand a sample to the engine; whatever goes wrong with this one sample ends this one sample."""
        claim = sample.sample_id, sample.epoch
        ending: ClaimEnd
        try:
            active, step = begin(sample, setup, latch)
        except EngineUnavailable as error:
            ending = Deferral(error)
        except Exception as error:
            log.exception("sample not begun", sample_id=sample.sample_id)
            ending = failed(sample, error)
        else:
            if isinstance(step, GenerateRequest):
                if self._in_flight.started(active):
                    self._submit(active, step)
                    return
                ending = Release()
            else:
                ending = step
        self._recorder.put(EndedClaim(sample.worker_id, claim, latch, 0, ending))

    def _submit(self, active: ActiveSample, request: GenerateRequest) -> None:
        active.submitted_at, active.part_tokens = time.monotonic(), 0
        self.engine.submit(request, lambda result: self._recorder.put(Outcome(active, result)))
        if active.abandoned or active.handed_back:  # since it was looked at: whoever said so found nothing to abort
            self.engine.abort(request.request_id)

    # The recorder's thread.

    def _advance(self, item: Outcome | EndedClaim | LookAtTrial) -> EndedClaim | None:
        """Carry a sample on by what the engine made of its request. None: the engine has its next one."""
        if isinstance(item, EndedClaim):
            return item
        if isinstance(item, LookAtTrial):
            self._look_at_trial()
            return None
        active, result = item
        if isinstance(result, GenerateResult):
            self._ledger.receive(result.num_generated_tokens)
            self.meter.wrote(result.total_seconds)
            if isinstance(active.request, Generate):
                with self._room_lock:
                    self._cache_room.ended(result)
        step = self._next_step(active, result)
        if isinstance(step, GenerateRequest):
            self._submit(active, step)
            return None
        active.committing = True
        return EndedClaim(active.sample.worker_id, active.claim, active.latch, active.num_tokens, step)

    def _next_step(self, active: ActiveSample, result: GenerateResult | Exception) -> Step | ClaimEnd:
        if active.abandoned or active.handed_back:
            active.num_tokens += result.num_generated_tokens if isinstance(result, GenerateResult) else 0
            return None if active.abandoned else commit_gathered(active) or self._given_back(active, result)
        if isinstance(result, EngineDied):
            self._on_failure(WorkerEnd.ENGINE_DIED)
            return None
        if isinstance(result, EngineAway):
            return commit_gathered(active) or self._given_back(active, result)
        if isinstance(result, EngineUnavailable):
            return commit_gathered(active) or Deferral(result)
        if isinstance(result, Exception):
            return failed(active.sample, result)
        try:
            may_stay = not self._in_flight.is_stopping
            return apply_result(active, result, may_stay=may_stay, ended_at=time.monotonic())
        except Exception as error:
            log.exception("sample not carried on", sample_id=active.sample.sample_id)
            return failed(active.sample, error)

    def _given_back(self, active: ActiveSample, result: GenerateResult | Exception) -> Release:
        """The sample goes back to its last commit, or to what its request wrote until now where that took long."""
        if isinstance(result, GenerateResult | EngineAway):
            token_ids = result.token_ids if isinstance(result, EngineAway) else result.piece.token_ids
            part = last_part(active, token_ids, every_s=self._store_every_s)
            if part is not None:
                self._store_parts({active: part})
        return Release(anywhere=isinstance(result, EngineAway))

    def _store_parts(self, parts: Mapping[ActiveSample, Part]) -> None:
        """Store what was written of running requests. A sample that has come so far need not be alone any more."""
        try:
            stored = {
                sample_id
                for worker_id in {active.sample.worker_id for active in parts}
                for sample_id in self._store.parts(
                    [part for active, part in parts.items() if active.sample.worker_id == worker_id],
                    worker_id=worker_id,
                )
            }
        except ServiceUnavailable as error:
            log.warning("parts not stored", reason=str(error))
            return
        now = time.monotonic()
        for active, part in parts.items():
            active.submitted_at = now
            if part.sample_id in stored:
                active.part_tokens = part.start_token + len(part.token_ids)
                self._claimer.again(self._trial.end(part.claim))

    def _record(self, group: Sequence[EndedClaim]) -> None:
        """Store how a group of claims ended, tell who goes on, and let the waiting tasks end."""
        told: list[Runnable] = []
        for worker_id in {ended.worker_id: None for ended in group}:  # one, but for what an earlier life has claimed
            told += self._store_ended([ended for ended in group if ended.worker_id == worker_id], worker_id)
        self._in_flight.ended(ended.claim for ended in group)
        self._publisher.publish(told)
        for ended in group:
            ended.latch.count_down()
        for ended in group if self._trial.is_open else ():
            self._claimer.again(self._trial.end(ended.claim))
        self._look_at_trial()

    def _store_ended(self, group: Sequence[EndedClaim], worker_id: int) -> list[Runnable]:
        """Store how claims of one worker ended; the samples that others go on with."""
        commits = [ended.how for ended in group if isinstance(ended.how, SampleCommit)]
        committed = self._store.commit(commits, worker_id=worker_id)
        stored = sum(commit.tokens_generated for commit in commits if commit.claim in committed.claims)
        self._ledger.settle(
            received=sum(ended.num_tokens for ended in group),
            committed=stored,
            worker_id=worker_id,
        )
        to_release = dict(ended.claim for ended in group if isinstance(ended.how, Release))
        anywhere = {ended.claim[0] for ended in group if isinstance(ended.how, Release) and ended.how.anywhere}
        released = self._store.release(to_release, worker_id=worker_id)
        for ended in group:
            if isinstance(ended.how, Deferral):
                log.warning("sample deferred", sample_id=ended.claim[0], reason=str(ended.how.error))
                self._store.defer(ended.claim, ended.how.error, worker_id=worker_id)
        freed = [replace(one, home_queue=None) if one.sample_id in anywhere else self._sent_on(one) for one in released]
        return [*committed.samples, *freed]

    def _look_at_trial(self) -> None:
        """Begin with the sample that must be alone once nothing else is here; see that this comes soon."""
        waiting = self._trial.waiting
        if waiting is None:
            return
        if self._in_flight.is_stopping:
            self._end_trial(waiting, Release())
        elif not self._in_flight.holds_only(waiting.claim):
            if self._trial.has_waited_long:
                self._hand_back(self.in_flight())
        else:
            self._try(waiting)

    def _try(self, waiting: Waiting) -> None:
        try:
            if not self._store.begin_trial(waiting.claim, worker_id=waiting.sample.worker_id):
                return  # a claim that nobody here knows of: the next heartbeat hands it back
        except LeaseLost:
            self._end_trial(waiting, None)
            return
        log.warning("sample tried alone", sample_id=waiting.sample.sample_id)
        self._trial.begin()
        self._begin(waiting.sample, waiting.setup, waiting.latch)

    def _end_trial(self, waiting: Waiting, how: ClaimEnd) -> None:
        """The sample goes back, or is somebody else's."""
        self._trial.begin()
        self._recorder.put(EndedClaim(waiting.sample.worker_id, waiting.claim, waiting.latch, 0, how))

    def _sent_on(self, sample: Runnable) -> Runnable:
        """A sample that cannot be claimed here now, to whoever serves its model: here its message would end."""
        is_claimed_here = self._jobs.refusal(sample.job_id) is None and not self._trial.is_open
        return sample if is_claimed_here else replace(sample, home_queue=None)

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
            num_drafts=stats.num_drafts,
            draft_tokens=stats.num_draft_tokens,
            accepted_tokens=stats.num_accepted_tokens,
            refused_jobs=self._jobs.last_refusals(),
        )

    def take_stored(self) -> list[StoredRow]:
        """A row of each commit since the last call."""
        return self._store.take_stored()

    def lease_lost(self) -> None:
        """What was in flight is abandoned; what a commit stored whose answer comes after this is late."""
        self._ledger.lease_lost(self._store.identity.worker_id)
        self._abandon(self.in_flight())

    def lease_renewed_as(self, identity: Identity) -> None:
        """Go on under a new identity after the lease was lost."""
        self._abandon(self.in_flight())
        self._store.identity = identity

    def in_flight(self) -> list[ActiveSample]:
        """What is being written now."""
        return self._in_flight.samples()

    def reconcile(self, worker_id: int) -> None:
        """After a heartbeat under this id: compare what the database says this worker holds with what is written."""
        before = self.in_flight()
        held = self._store.held(worker_id)
        lost = self.abandon_lost(before, held)
        if lost:
            log.info("samples abandoned", samples=lost)
        self.release_orphaned(before, held)
        self._settle_late_tokens()
        if self._trial.waiting is not None:
            self._recorder.put(LookAtTrial())
        self._store_what_takes_long()

    def _store_what_takes_long(self) -> None:
        """What long requests have written so far."""
        if not self._store_every_s:
            return
        parts: dict[ActiveSample, Part] = {}
        for active in self.in_flight():
            part = running_part(active, self.engine, every_s=self._store_every_s)
            if part is not None and not (active.abandoned or active.handed_back or active.committing):
                parts[active] = part
        if parts:
            self._store_parts(parts)

    def _settle_late_tokens(self) -> None:
        """Once a later generation has renewed its lease, the rows of the earlier ones are closed and can be mended."""
        late = self._ledger.late_tokens()
        if not late:
            return
        self._store.settle_late_tokens(late)
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
            self._publisher.publish(self._store.release(orphaned, worker_id=self._store.identity.worker_id))

    def _abandon(self, samples: Sequence[ActiveSample]) -> None:
        for active in samples:
            active.abandoned = True
            self.engine.abort(active.request_id)

    # Stopping.

    def drain(self, timeout_s: float) -> None:
        """Take nothing new; let requests run on for so long, then hand the rest back: what is gathered is stored, what
        is being written is dropped."""
        self._in_flight.stop()
        self._claimer.again(self._trial.take_aside())
        self._recorder.put(LookAtTrial())
        deadline = time.monotonic() + timeout_s
        while not self._in_flight.is_idle and time.monotonic() < deadline:
            time.sleep(0.05)
        self._hand_back(self._in_flight.drain())

    def _hand_back(self, samples: Sequence[ActiveSample]) -> None:
        """What is gathered of them is stored, what is being written is dropped."""
        to_hand_back = [active for active in samples if not active.handed_back]
        for active in to_hand_back:
            active.handed_back = True
            self.engine.abort(active.request_id)
        if to_hand_back:
            log.info("samples handed back", samples=len(to_hand_back))

    def close(self) -> None:
        """End once all that was claimed is stored."""
        self._claimer.close(timeout_s=30)
        self._recorder.close(timeout_s=30)
        with suppress(ServiceUnavailable):
            self._settle_late_tokens()

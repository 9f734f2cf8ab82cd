"""A small, large or judge worker: engine, writer, lease and Celery worker, tied together.

The model is loaded before Celery starts: a model that cannot be loaded ends the process with a clear error, which a
Celery signal would swallow.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Sequence

import structlog
from prometheus_client import CollectorRegistry

from pipeline.chat.files import find_folder, refuse_pooling, served_name
from pipeline.chat.model import ChatModel
from pipeline.chat.weights import weights_sha256
from pipeline.db.commits import StoredRow
from pipeline.db.session import transaction
from pipeline.db.worker_leases import WorkerCounters, put_engine, refuse_second_identity
from pipeline.devices.sizes import refuse_unusable
from pipeline.samples import ModelRole
from pipeline.settings import EngineKind, Settings
from pipeline.workforce import WorkerEnd, WorkerKind
from workers.broker import queues
from workers.broker.publish import ASSIST, DRAFT, JUDGE
from workers.broker.tasks import add_samples_task
from workers.engine.base import Engine, EngineStats
from workers.engine.loading import load_engine
from workers.processes.base import Base, on_shutdown, open_base, registration, run_celery
from workers.processes.lease import LeaseKeeper
from workers.processes.metrics import WriterCollector, serve_worker_metrics
from workers.processes.shutdown import EarlySignals
from workers.writing.store import Identity
from workers.writing.writer import Writer

log = structlog.get_logger()

_SWITCH_INTERVAL_S = 0.0001
"""How long one thread may keep the interpreter from the others. The engine's thread lets go of it at each small
operation of vLLM's, and with Python's own number, 5 ms, it often waits that long to go on: a quarter of a job's speed
on two cores."""

_SLOWER_THAN_ALONE = 3.0
"""How much longer a prompt may take than by the engine's trial: others may work on the same cores now."""

_THREADS_PER_PLACE = 2
"""Task threads, each of which waits for the samples of a message: as many as samples are taken in, and as many again
for those that come back."""
_SPARE_THREADS = 8

_TASKS = {ModelRole.SMALL: DRAFT, ModelRole.LARGE: ASSIST, ModelRole.JUDGE: JUDGE}


def run_writer(
    role: ModelRole,
    model: str,
    settings: Settings,
    *,
    name: str | None = None,
    revision: str | None = None,
) -> int:
    """A worker of this role, until it is told to stop. Raises ConfigurationError when the model cannot be loaded."""
    base = open_base(settings, WorkerKind(role.value))
    metrics = serve_worker_metrics(settings.metrics)
    is_here = settings.engine.kind is not EngineKind.SERVER  # a server's weights cannot be seen, whatever lies here
    folder = find_folder(model, revision) if is_here else None
    if folder is not None:
        refuse_unusable(model, folder)
        if role is ModelRole.JUDGE:
            refuse_pooling(model, folder)
    chat = ChatModel.load(model, revision=revision, may_lack_template=role is ModelRole.JUDGE)
    served = name or served_name(model)
    folder = folder or (find_folder(model, revision) if is_here else None)
    weights = weights_sha256(folder) if folder else None
    with transaction(base.db_engine) as connection:  # before a GPU works for nothing
        refuse_second_identity(connection, model=served, model_fingerprint=chat.fingerprint, weights_sha256=weights)
    engine = load_engine(chat, revision=revision, role=role, settings=settings.engine)
    return WriterProcess(base, role, engine, chat, served, weights=weights, revision=revision, metrics=metrics).run()


def end_reason(stats: EngineStats, *, stall_after_s: float) -> WorkerEnd | None:
    """Why a worker must end because of its engine; None while it can go on."""
    if stats.is_dead:
        return WorkerEnd.ENGINE_DIED
    allowed_s = stall_after_s + _SLOWER_THAN_ALONE * stats.prefill_s
    return WorkerEnd.ENGINE_STALLED if stats.last_token_age_s > allowed_s else None


class WriterProcess:
    """One small, large or judge worker; the holder of its lease."""

    def __init__(
        self,
        base: Base,
        role: ModelRole,
        engine: Engine,
        chat: ChatModel,
        model: str,
        *,
        weights: str | None = None,
        revision: str | None = None,
        metrics: CollectorRegistry | None = None,
    ) -> None:
        """model: the name that jobs use. weights: their hash, None where it is not known. metrics: takes in what the
        worker tells of itself."""
        self._metrics = metrics or CollectorRegistry()
        self._weights = weights
        self._revision = revision
        self._model = model
        self._base = base
        self._role = role
        self._engine = engine
        self._queues = (queues.own_queue(role, model), queues.model_queue(role, model))
        self._early = EarlySignals()
        self._engine_id = self._put_engine(chat, model)
        self._lease = LeaseKeeper(
            base.db_engine,
            registration(
                WorkerKind(role.value),
                base.settings,
                queue=self._queues[0],
                max_in_flight=engine.max_in_flight,
                model=model,
                engine_id=self._engine_id,
            ),
            base.settings.lease,
        )
        self._writer = Writer(
            role=role,
            engine=engine,
            chat=chat,
            db_engine=base.db_engine,
            publisher=base.publisher,
            identity=self._identity(self._lease.worker_id),
            on_failure=self._die,
            max_attempts=base.settings.engine.max_attempts,
            admit_ahead=base.settings.upkeep.admit_ahead,
            store_every_s=base.settings.engine.store_every_s,
            weights=weights,
            revision=revision,
        )

    def _put_engine(self, chat: ChatModel, model: str) -> int:
        info = self._engine.info
        with transaction(self._base.db_engine) as connection:
            return put_engine(
                connection,
                kind=info.kind,
                version=info.version,
                model=model,
                model_fingerprint=chat.fingerprint,
                vocabulary_sha256=chat.vocabulary_sha256,
                settings=dict(info.settings),
                weights_sha256=self._weights,
                revision=self._revision,
            )

    def _identity(self, worker_id: int) -> Identity:
        return Identity(worker_id=worker_id, engine_id=self._engine_id)

    def run(self) -> int:
        """Run until told to stop; then drain, hand the rest back and give up the lease."""
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        gc.freeze()  # what the model and the imports left stays to the end: no collection need look at it again
        add_samples_task(self._base.app, _TASKS[self._role], self._writer.write)
        on_shutdown(lambda: self._writer.drain(self._base.settings.lease.drain_s))
        self._metrics.register(
            WriterCollector(self._role.value, self._model, self._writer.engine.stats, self._writer.counters)
        )
        self._metrics.register(self._writer.meter)
        self._lease.start(self)
        try:
            return run_celery(
                self._base.app,
                name=self._queues[0],
                pool="threads",
                concurrency=_THREADS_PER_PLACE * self._writer.num_places + _SPARE_THREADS,
                read=self._queues,
                takes_more=self._writer.takes_more,
                early=self._early,
            )
        finally:
            self._writer.close()
            self._lease.stop()
            self._engine.close()

    # As the holder of a lease

    def counters(self) -> WorkerCounters:
        return self._writer.counters()

    def take_stored(self) -> Sequence[StoredRow]:
        return self._writer.take_stored()

    def lease_renewed(self, worker_id: int) -> None:
        """Take stock, and watch the engine: one that dies idle has no request to say so."""
        self._writer.reconcile(worker_id)
        reason = end_reason(self._engine.stats(), stall_after_s=self._base.settings.engine.stall_after_s)
        if reason is not None:
            self._die(reason)

    def lease_lost(self) -> None:
        self._writer.lease_lost()

    def lease_renewed_as(self, worker_id: int) -> None:
        self._writer.lease_renewed_as(self._identity(worker_id))

    def _die(self, reason: WorkerEnd) -> None:
        """The engine is gone, or the writer: give the lease up, so that the samples go back at once, and end for the
        supervisor."""
        log.error("worker ends by itself", worker_id=self._lease.worker_id, reason=reason.value)
        try:
            self._lease.stop(reason)
        finally:  # whatever Postgres says: without an engine this process must not go on
            for process in multiprocessing.active_children():  # an engine beside it that hangs hears nothing else
                process.kill()
            os._exit(1)

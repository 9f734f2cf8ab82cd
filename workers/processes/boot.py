"""Starting and ending worker processes.

The model is loaded before Celery starts: a model that cannot be loaded ends the process with a clear error, which a
Celery signal would swallow.
"""

from __future__ import annotations

import datetime as dt
import gc
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from celery import Celery, signals
from sqlalchemy import Engine as DbEngine

from pipeline.chat.model import ChatModel, served_name
from pipeline.db.revision import require_current
from pipeline.db.session import open_database, transaction
from pipeline.db.workforce import Registration, put_engine
from pipeline.embedded import resolve_connections
from pipeline.grading import limit_memory, make_grader
from pipeline.samples import ModelRole
from pipeline.settings import Settings
from pipeline.workforce import WorkerEnd, WorkerKind
from workers.broker import queues
from workers.broker.app import make_app
from workers.broker.publish import ASSIST, DRAFT, GRADE, MAX_FOLLOWED, Publisher
from workers.broker.tasks import add_follow_task, add_samples_task
from workers.engine.base import Engine
from workers.engine.loading import load_engine
from workers.grading.grader import grade_samples
from workers.processes.lease import LeaseKeeper
from workers.processes.shutdown import EarlySignals
from workers.upkeep.rounds import Upkeep
from workers.writing.writer import Identity, Writer

log = structlog.get_logger()

MAX_CHILD_KIB = 2**20
"""A grading process that took more memory than this is replaced: a hostile formula leaves it scattered."""

_SWITCH_INTERVAL_S = 0.0001
"""How long one thread may keep the interpreter from the others. The engine's thread lets go of it at each small
operation of vLLM's, and with Python's own number, 5 ms, it often waits that long to go on: a quarter of a job's speed
on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What every worker process has."""

    settings: Settings
    db_engine: DbEngine
    app: Celery
    publisher: Publisher


def open_base(settings: Settings, kind: WorkerKind | None = None) -> Base:
    """Connect, and refuse to start on a database with another schema.

    kind: of the worker, which then has its role's rights alone; None: a person's command, with the owner's.
    """
    connections = resolve_connections(settings)
    url = connections.worker_url(kind) if kind else connections.database_url
    db_engine = open_database(url, answer_within_s=settings.lease.answer_within_s if kind else None)
    require_current(db_engine)
    app = make_app(connections.redis_url)
    return Base(settings=settings, db_engine=db_engine, app=app, publisher=Publisher(app))


def _open_as(kind: WorkerKind, settings: Settings, *, pool_size: int = 4) -> DbEngine:
    """Connections beside the base's, with the rights of a kind of worker."""
    url = resolve_connections(settings).worker_url(kind)
    return open_database(url, pool_size=pool_size, answer_within_s=settings.lease.answer_within_s)


def registration(
    kind: WorkerKind,
    settings: Settings,
    *,
    queue: str,
    max_in_flight: int,
    model: str | None = None,
    engine_id: int | None = None,
) -> Registration:
    return Registration(
        kind=kind,
        model=model,
        engine_id=engine_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        queue=queue,
        max_in_flight=max_in_flight,
        ttl=dt.timedelta(seconds=settings.lease.ttl_s),
    )


def run_celery(
    app: Celery,
    *,
    name: str,
    pool: str,
    concurrency: int,
    read: list[str],
    early: EarlySignals,
    **options: Any,
) -> int:
    """Run a Celery worker in this process until it is told to stop, also by early signals; returns its exit code."""

    class ListeningWorker(app.Worker):  # type: ignore[misc]  # Celery makes this class for each app
        def install_platform_tweaks(self, worker: Any) -> None:
            super().install_platform_tweaks(worker)
            early.deliver()

    worker = ListeningWorker(
        hostname=f"{name}@{socket.gethostname()}",
        pool=pool,
        concurrency=concurrency,
        queues=read,
        loglevel="WARNING",
        without_mingle=True,
        without_gossip=True,
        quiet=True,
        **options,
    )
    # What is loaded by now (600,000 objects, most of them vLLM's) stays: going through it takes 0.3 s, in which no
    # token is written.
    gc.collect()
    gc.freeze()
    gc.enable()
    worker.start()
    return int(worker.exitcode or 0)


def run_writer(
    role: ModelRole,
    model: str,
    settings: Settings,
    *,
    name: str | None = None,
    revision: str | None = None,
) -> int:
    """A small or large worker, until it is told to stop. Raises ConfigurationError when the model cannot be loaded."""
    base = open_base(settings, WorkerKind(role.value))
    chat = ChatModel.load(model, revision=revision)
    engine = load_engine(chat, revision=revision, role=role, settings=settings.engine)
    return WriterProcess(base, role, engine, chat, name or served_name(model)).run()


class WriterProcess:
    """One small or large worker: engine, writer, lease and Celery worker, tied together."""

    def __init__(self, base: Base, role: ModelRole, engine: Engine, chat: ChatModel, model: str) -> None:
        self._base = base
        self._role = role
        self._engine = engine
        self._queues = [queues.own_queue(role, model), queues.model_queue(role, model)]
        self._early = EarlySignals()
        with transaction(base.db_engine) as connection:
            self._engine_id = put_engine(
                connection,
                kind=engine.info.kind,
                version=engine.info.version,
                model=model,
                model_fingerprint=chat.fingerprint,
                vocabulary_sha256=chat.vocabulary_sha256,
                settings=dict(engine.info.settings),
            )
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
            counters=lambda: self._writer.counters(),
            on_renewed=self._on_renewed,
            on_lost=lambda: self._writer.retire(),
            on_new_life=lambda worker_id: self._writer.adopt(self._identity(worker_id)),
        )
        self._writer = Writer(
            role=role,
            engine=engine,
            chat=chat,
            db_engine=base.db_engine,
            publisher=base.publisher,
            identity=self._identity(self._lease.worker_id),
            on_engine_death=self._die,
            max_attempts=base.settings.engine.max_attempts,
            admit_ahead=base.settings.upkeep.admit_ahead,
        )

    def _identity(self, worker_id: int) -> Identity:
        return Identity(worker_id=worker_id, engine_id=self._engine_id)

    def _on_renewed(self, worker_id: int) -> None:
        """After each heartbeat: take stock, and watch the engine: one that dies idle has no request to say so."""
        self._writer.reconcile(worker_id)
        stats = self._engine.stats()
        if stats.is_dead:
            self._die()
        if stats.last_token_age_s > self._base.settings.engine.stall_after_s:
            log.error("engine stalled", seconds=self._base.settings.engine.stall_after_s)
            self._die(WorkerEnd.ENGINE_STALLED)

    def _die(self, reason: WorkerEnd = WorkerEnd.ENGINE_DIED) -> None:
        """The engine is gone: give the lease up, so that the samples go back at once, and end for the supervisor."""
        log.error("worker ends because of its engine", worker_id=self._lease.worker_id, reason=reason.value)
        try:
            self._lease.stop(reason)
        finally:  # whatever Postgres says: without an engine this process must not go on
            for process in multiprocessing.active_children():  # an engine beside it that hangs hears nothing else
                process.kill()
            os._exit(1)

    def run(self) -> int:
        """Until told to stop: drains, hands back, says goodbye."""
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        task = DRAFT if self._role is ModelRole.SMALL else ASSIST
        add_samples_task(self._base.app, task, self._writer.write)
        on_shutdown(lambda: self._writer.drain(self._base.settings.lease.drain_s))
        self._lease.start()
        threads = math.ceil(self._engine.max_in_flight * self._base.settings.upkeep.admit_ahead) + 8
        try:
            return run_celery(
                self._base.app,
                name=self._queues[0],
                pool="threads",
                concurrency=threads,
                read=self._queues,
                early=self._early,
            )
        finally:
            self._writer.close()
            self._lease.stop()
            self._engine.close()


def on_shutdown(action: Callable[[], None]) -> None:
    """Run an action in a thread of its own as soon as Celery is told to stop, while it waits for its tasks."""

    def begin(**_: Any) -> None:
        threading.Thread(target=action, name="drain").start()

    signals.worker_shutting_down.connect(begin, weak=False)


def run_grader(settings: Settings) -> int:
    """A grading worker: prefork processes, each with its own connections, killed at the hard limit."""
    base = open_base(settings, WorkerKind.GRADE)
    concurrency = settings.grading.concurrency
    child: dict[str, DbEngine] = {}

    def open_child(**_: Any) -> None:
        limit_memory()
        child["db"] = _open_as(WorkerKind.GRADE, settings, pool_size=1)

    signals.worker_process_init.connect(open_child, weak=False)
    make_grader("math").grade(r"\boxed{1}", "2")  # imports sympy before the fork: seconds for each child otherwise
    add_samples_task(
        base.app,
        GRADE,
        lambda message: grade_samples(child["db"], message, time_limit_s=settings.grading.time_limit_s),
        time_limit=settings.grading.time_limit_s,
    )
    early = EarlySignals()
    kept: list[LeaseKeeper] = []
    failures: list[Exception] = []

    def register(**_: Any) -> None:
        """Once the children are forked: no thread and no connection is there before that."""
        try:
            kept.append(
                LeaseKeeper(
                    base.db_engine,
                    registration(WorkerKind.GRADE, settings, queue=queues.GRADE, max_in_flight=concurrency),
                    settings.lease,
                )
            )
            kept[0].start()
        except Exception as error:  # Celery would log it and go on
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    signals.worker_ready.connect(register, weak=False)
    base.db_engine.dispose()
    try:
        code = run_celery(
            base.app,
            name="grade",
            pool="prefork",
            concurrency=concurrency,
            read=[queues.GRADE],
            early=early,
            max_memory_per_child=MAX_CHILD_KIB,
        )
    finally:
        for lease in kept:
            lease.stop()
    if failures:
        raise failures[0]
    return code


def run_upkeep(settings: Settings) -> int:
    """The upkeep worker: the duties in a thread, the progress of running jobs as tasks."""
    base = open_base(settings, WorkerKind.UPKEEP)
    stop = threading.Event()
    followers = _open_as(WorkerKind.UPKEEP, settings)  # dozens: they take no connection from the rounds and the lease
    add_follow_task(base.app, followers, stop)
    upkeep = Upkeep(base.db_engine, base.publisher, settings)
    early = EarlySignals()
    lease = LeaseKeeper(
        base.db_engine,
        registration(WorkerKind.UPKEEP, settings, queue=queues.UPKEEP, max_in_flight=0),
        settings.lease,
    )
    on_shutdown(stop.set)
    lease.start()
    upkeep.start()
    try:
        return run_celery(
            base.app,
            name="upkeep",
            pool="threads",
            concurrency=MAX_FOLLOWED,
            read=[queues.UPKEEP],
            early=early,
        )
    finally:
        upkeep.stop()
        lease.stop()

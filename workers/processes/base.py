"""What every worker process has: connections, a registration, and a Celery worker that runs until told to stop."""

from __future__ import annotations

import datetime as dt
import gc
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery, signals
from sqlalchemy import Engine as DbEngine

from pipeline.db.revision import require_current
from pipeline.db.session import open_database
from pipeline.db.worker_leases import Registration
from pipeline.embedded import resolve_connections
from pipeline.redis_checks import require_broker
from pipeline.settings import Settings
from pipeline.workforce import WorkerKind
from workers.broker.app import make_app
from workers.broker.publish import Publisher
from workers.broker.reading import read_own_queue_first
from workers.processes.shutdown import EarlySignals


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
    require_broker(connections.redis_url)
    app = make_app(connections.redis_url)
    return Base(settings=settings, db_engine=db_engine, app=app, publisher=Publisher(app))


def open_beside(kind: WorkerKind, settings: Settings, *, pool_size: int = 4) -> DbEngine:
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
    """What this process says of itself."""
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
    read: Sequence[str],
    early: EarlySignals,
    takes_more: Callable[[], bool] | None = None,
    **options: Any,
) -> int:
    """Run a Celery worker in this process until it is told to stop, also by early signals; returns its exit code.

    read: the queues that it takes messages from. takes_more: whether it reads others than the first of them now.
    """
    if takes_more is not None:
        order = read_own_queue_first(read[0], takes_more)
        app.conf.broker_transport_options = app.conf.broker_transport_options | order

    class ListeningWorker(app.Worker):  # type: ignore[misc]  # Celery makes this class for each app
        def install_platform_tweaks(self, worker: Any) -> None:
            super().install_platform_tweaks(worker)
            early.deliver()

    worker = ListeningWorker(
        hostname=f"{name}@{socket.gethostname()}",
        pool=pool,
        concurrency=concurrency,
        queues=list(read),
        loglevel="WARNING",
        without_mingle=True,
        without_gossip=True,
        quiet=True,
        **options,
    )
    _keep_what_is_loaded()
    worker.start()
    return int(worker.exitcode or 0)


def _keep_what_is_loaded() -> None:
    """Never look for garbage in what is loaded by now (600,000 objects, most of them vLLM's): going through it takes
    0.3 s, in which no token is written."""
    gc.collect()
    gc.freeze()
    gc.enable()


def on_shutdown(action: Callable[[], None]) -> None:
    """Run an action in a thread of its own as soon as Celery is told to stop, while it waits for its tasks."""

    def begin(**_: Any) -> None:
        threading.Thread(target=action, name="drain").start()

    signals.worker_shutting_down.connect(begin, weak=False)

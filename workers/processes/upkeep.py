"""The upkeep worker: the duties in a thread, the progress of running jobs as tasks."""

from __future__ import annotations

import threading

from pipeline.settings import Settings
from pipeline.workforce import WorkerKind
from workers.broker import queues
from workers.broker.publish import MAX_FOLLOWED
from workers.broker.tasks import add_follow_task
from workers.processes.base import on_shutdown, open_base, open_beside, registration, run_celery
from workers.processes.lease import LeaseKeeper
from workers.processes.metrics import serve_worker_metrics
from workers.processes.shutdown import EarlySignals
from workers.upkeep.certificates import CertificateKeeper
from workers.upkeep.rounds import Upkeep


def run_upkeep(settings: Settings) -> int:
    """The upkeep worker, until it is told to stop."""
    base = open_base(settings, WorkerKind.UPKEEP)
    metrics = serve_worker_metrics(settings.metrics)
    stop = threading.Event()
    followers = open_beside(WorkerKind.UPKEEP, settings)  # dozens: they take no connection from rounds and lease
    add_follow_task(base.app, followers, stop)
    on_shutdown(stop.set)
    early = EarlySignals()
    lease = LeaseKeeper(
        base.db_engine,
        registration(WorkerKind.UPKEEP, settings, queue=queues.UPKEEP, max_in_flight=0),
        settings.lease,
    )
    upkeep = Upkeep(base.db_engine, base.publisher, settings, worker_id=lambda: lease.worker_id)
    metrics.register(upkeep.meter)
    certificate = CertificateKeeper(settings.state_dir)
    lease.start()
    upkeep.start()
    if settings.database_url is None:  # the servers are embedded
        certificate.start()
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
        certificate.stop()
        upkeep.stop()
        lease.stop()

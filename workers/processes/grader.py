"""A grading worker: prefork processes, each with its own connections, killed at the hard limit."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import signals

from pipeline.grading import limit_memory, make_grader
from pipeline.settings import Settings
from pipeline.workforce import WorkerKind
from workers.broker import queues
from workers.broker.messages import SamplesMessage
from workers.broker.publish import GRADE
from workers.broker.tasks import add_samples_task
from workers.grading.grader import SampleGrader
from workers.processes.base import open_base, open_beside, registration, run_celery
from workers.processes.lease import LeaseKeeper
from workers.processes.shutdown import EarlySignals

MAX_CHILD_KIB = 2**20
"""A grading process that took more memory than this is replaced: a hostile formula leaves it scattered."""


def run_grader(settings: Settings) -> int:
    """A grading worker, until it is told to stop."""
    return GraderProcess(settings).run()


class GraderProcess:
    """The parent of the grading processes, and what each of them has of it after the fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._base = open_base(settings, WorkerKind.GRADE)
        self._early = EarlySignals()
        self._lease: LeaseKeeper | None = None
        self._failure: Exception | None = None
        self._child: SampleGrader | None = None

    def run(self) -> int:
        """Until told to stop. Raises what went wrong with the registration."""
        signals.worker_process_init.connect(self._open_child, weak=False)
        signals.worker_ready.connect(self._register, weak=False)
        make_grader("math").grade(r"\boxed{x}", "x+1")  # imports sympy before the fork, not in each child
        time_limit_s = self._settings.grading.time_limit_s
        add_samples_task(self._base.app, GRADE, self._grade, time_limit=time_limit_s)
        self._base.db_engine.dispose()
        try:
            code = run_celery(
                self._base.app,
                name="grade",
                pool="prefork",
                concurrency=self._settings.grading.concurrency,
                read=[queues.GRADE],
                early=self._early,
                max_memory_per_child=MAX_CHILD_KIB,
            )
        finally:
            if self._lease is not None:
                self._lease.stop()
        if self._failure is not None:
            raise self._failure
        return code

    def _register(self, **_: Any) -> None:
        """Once the children are forked: no thread and no connection is there before that."""
        try:
            self._lease = LeaseKeeper(
                self._base.db_engine,
                registration(
                    WorkerKind.GRADE,
                    self._settings,
                    queue=queues.GRADE,
                    max_in_flight=self._settings.grading.concurrency,
                ),
                self._settings.lease,
            )
            self._lease.start()
        except Exception as error:  # Celery would log it and go on
            self._failure = error
            os.kill(os.getpid(), signal.SIGTERM)

    # In a grading process

    def _open_child(self, **_: Any) -> None:
        limit_memory()
        db_engine = open_beside(WorkerKind.GRADE, self._settings, pool_size=1)
        self._child = SampleGrader(db_engine, time_limit_s=self._settings.grading.time_limit_s)

    def _grade(self, message: SamplesMessage) -> str:
        assert self._child is not None  # opened before the first task
        return self._child.grade(message)

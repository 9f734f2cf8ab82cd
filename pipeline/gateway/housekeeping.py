"""What a gateway does beside its requests: it reads new batches, and sees to those that end, expire or are forgotten.

Any number of gateways may do so at the same time: each step is one that only one of them can take.
"""

from __future__ import annotations

import logging
import threading

from sqlalchemy import Engine

from pipeline.client import Client
from pipeline.db.gateway import batches, chats, files
from pipeline.db.session import transaction
from pipeline.errors import PipelineError
from pipeline.gateway.outputs import measure
from pipeline.gateway.preparing import Limits, Preparer

log = logging.getLogger(__name__)

TICK_S = 0.5


class Housekeeper:
    """Two threads: one reads batches, which takes seconds for a long file, the other does all that is short."""

    def __init__(self, db_engine: Engine, client: Client, limits: Limits, woken: threading.Event) -> None:
        self._db_engine = db_engine
        self._client = client
        self._preparer = Preparer(db_engine, limits)
        self._woken = woken
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._read_batches, name="gateway reads batches", daemon=True),
            threading.Thread(target=self._keep_house, name="gateway keeps house", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._woken.set()
        for thread in self._threads:
            thread.join(timeout=10)

    def _read_batches(self) -> None:
        while not self._stopped.is_set():
            self._woken.clear()
            if not self._attempt(self._prepare_all):
                self._stopped.wait(5)
            self._woken.wait(TICK_S)

    def _prepare_all(self) -> None:
        while not self._stopped.is_set() and self._preparer.prepare_one() is not None:
            pass

    def _keep_house(self) -> None:
        while not self._stopped.wait(TICK_S):
            if not self._attempt(self.tidy):
                self._stopped.wait(5)

    def tidy(self) -> None:
        """One round of all short duties."""
        with transaction(self._db_engine) as connection:
            batches.reopen_retried(connection)
            batches.mark_overdue(connection)
            to_cancel = [*batches.jobs_to_cancel(connection), *chats.forgotten_jobs(connection)]
            files.delete_expired(connection)
        for job_id in to_cancel:
            self._cancel(job_id)
        with transaction(self._db_engine) as connection:
            at_work = batches.open_batches(connection)
        for batch in at_work:
            with transaction(self._db_engine) as connection:
                batches.settle(connection, batch)
        while not self._stopped.is_set() and self._measure_one():
            pass

    def _cancel(self, job_id: int) -> None:
        try:
            self._client.cancel(job_id)
        except PipelineError as error:  # it has just ended
            log.info("gateway: job %s was not cancelled: %s", job_id, error)

    def _measure_one(self) -> bool:
        """Whether there was a batch whose answers were still to be counted."""
        with transaction(self._db_engine) as connection:
            batch = batches.find_unmeasured(connection)
            if batch is None:
                return False
            measures = measure(connection, batch)
        with transaction(self._db_engine) as connection:
            batches.store_measures(
                connection,
                batch,
                usage=measures.usage(),
                output_bytes=measures.bytes[True],
                error_bytes=measures.bytes[False],
            )
        return True

    def _attempt(self, work: object) -> bool:
        """Whether it was done; an error is logged, and it is tried again: nothing may end these threads."""
        assert callable(work)
        try:
            work()
        except PipelineError as error:
            log.warning("gateway: %s", error)
            return False
        except Exception:
            log.exception("gateway: a duty broke")
            return False
        return True

"""Operations on the database that run against each other, one statement of one or the other at a time.

Each has a thread and a connection, and waits for leave before each statement and before its commit. One that waits for
a lock is passed over; when all do, Postgres says that it is a deadlock.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event, text

from pipeline.errors import JobError, LeaseLost
from tests.integration.protocol_model import LOST, REFUSED, Model


@dataclass(frozen=True)
class Op:
    """One operation of somebody: one transaction."""

    what: str
    run: Callable[[Connection], Any]
    predict: Callable[[Model], Any]
    learn: Callable[[Any], None] = lambda answer: None
    """What who did it does with the answer; not called where the answer is lost."""
    see: Callable[[Any], Any] = lambda answer: answer
    """The part of the answer that the model predicts."""
    job: int | None = None
    """The job whose row it locks."""


def perform(op: Op, connection: Connection) -> Any:
    """Its answer, or the refusal that the model calls by name."""
    try:
        return op.run(connection)
    except JobError:
        return REFUSED
    except LeaseLost:
        return LOST


def seen(op: Op, answer: Any) -> Any:
    return answer if answer in (REFUSED, LOST) else op.see(answer)


class Actor(threading.Thread):
    """Does an operation in a transaction of its own, and waits for leave before each statement and the commit."""

    def __init__(self, op: Op, db_engine: Engine) -> None:
        super().__init__(daemon=True)
        self.op = op
        self.answer: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        self.num_advances = 0
        self._db_engine = db_engine
        self._pid = 0
        self._leave = threading.Semaphore(0)
        self._at_gate = threading.Event()

    def run(self) -> None:
        try:
            with self._db_engine.connect() as connection:
                self._pid = backend_pid(connection)
                event.listen(connection, "before_cursor_execute", self._wait_for_leave)
                try:
                    with connection.begin():
                        self.answer = perform(self.op, connection)
                        self._wait_for_leave()
                finally:
                    event.remove(connection, "before_cursor_execute", self._wait_for_leave)
        except BaseException as error:
            self.error = error
        self.is_done = True
        self._at_gate.set()

    def _wait_for_leave(self, *_: object) -> None:
        self._at_gate.set()
        self._leave.acquire()

    @property
    def is_able(self) -> bool:
        return self._at_gate.is_set() and not self.is_done

    def advance(self) -> None:
        """Let it do what it is about to do."""
        self.num_advances += 1
        self._at_gate.clear()
        self._leave.release()

    def watch(self, monitor: Connection) -> None:
        """Return once it waits for leave again, has ended, or waits for a lock."""
        while not self._at_gate.wait(0.004):
            if monitor.execute(text("SELECT pg_blocking_pids(:pid) <> '{}'"), {"pid": self._pid}).scalar_one():
                return


def backend_pid(connection: Connection) -> int:
    driver = connection.connection.dbapi_connection
    assert driver is not None
    return int(driver.info.backend_pid)


def run_against_each_other(ops: Sequence[Op], schedule: Sequence[int], db_engine: Engine) -> list[Actor]:
    """Step operations statement by statement; schedule: who is next. One that waits for a lock is passed over."""
    actors = [Actor(op, db_engine) for op in ops]
    turns = itertools.chain(schedule, itertools.cycle(range(len(actors))))
    with db_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as monitor:
        for actor in actors:
            actor.start()
            actor.watch(monitor)
        while not all(actor.is_done for actor in actors):
            able = [actor for actor in actors if actor.is_able]
            if not able:  # the last one that was advanced has freed the other, or Postgres sees a deadlock soon
                time.sleep(0.001)
                continue
            chosen = actors[next(turns)]
            chosen = chosen if chosen in able else able[0]
            chosen.advance()
            chosen.watch(monitor)
    for actor in actors:
        actor.join()
    return actors

"""A psycopg connection with a deadline for each answer.

TCP's own timers do not find every dead connection: a balancer or a frozen machine in between goes on acknowledging what
nobody reads, and a worker would wait for ever. Nor does the server find a client that is lost in this way: what it
keeps for it (locks, the leader's above all) it keeps for hours unless it is told otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

_T = TypeVar("_T")

_END_ME_WHEN_SILENT = """
    SELECT set_config('idle_in_transaction_session_timeout', %(seconds)s || 's', false),
           set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '3', false),
           set_config('tcp_keepalives_count', '3', false)
"""


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection on which no statement may take longer than answer_within_s.

    Raises psycopg.OperationalError when one does, with the connection closed: what the server did is unknown then.
    """

    answer_within_s: float

    @classmethod
    def open(cls, answer_within_s: float, *args: Any, **options: Any) -> DeadlineConnection:
        """Connect; the arguments are psycopg's. The server is told to end a transaction in which nothing is said for
        answer_within_s."""
        connection = cls.connect(*args, **options)
        connection.answer_within_s = answer_within_s
        connection.execute(_END_ME_WHEN_SILENT, {"seconds": max(1, round(answer_within_s))})
        connection.commit()
        return connection

    def wait(self, gen: PQGen[_T], *args: Any, **options: Any) -> _T:
        return super().wait(self._until_deadline(gen), *args, **options)

    def _until_deadline(self, gen: PQGen[_T]) -> Generator[Any, Any, _T]:
        """The same exchange, with a deadline. psycopg resumes it every tenth of a second, ready or not."""
        deadline = time.monotonic() + self.answer_within_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer within {self.answer_within_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: _T = end.value
            return result

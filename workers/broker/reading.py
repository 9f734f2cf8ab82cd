"""Which of its queues a small, large or judge worker reads.

Samples whose context it has cached come by its own queue, which it always reads. Those that are new to it come by the
queue that all workers of its model read, and wait there while it has enough: each would take the place of a context
that is needed again, and another worker may have room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from kombu.utils.scheduling import priority_cycle


class OwnQueueFirst(priority_cycle):
    """The order in which kombu reads a worker's queues.

    kombu makes it by its name and without arguments, and Celery sends all options of a connection to whoever asks what
    a worker does: so what it goes by is the process's.
    """

    own: ClassVar[str] = ""
    takes_more: ClassVar[Callable[[], bool]]

    def consume(self, n: int) -> list[str]:
        queues: list[str] = super().consume(n)  # type: ignore[no-untyped-call]
        return queues if OwnQueueFirst.takes_more() else [queue for queue in queues if queue == self.own]


def read_own_queue_first(own: str, takes_more: Callable[[], bool]) -> dict[str, str]:
    """From now on this process reads the other queues only while it takes more; the option of its connections.

    own: the worker's own queue. takes_more: asked before each message in kombu's thread; must be quick.
    """
    OwnQueueFirst.own, OwnQueueFirst.takes_more = own, staticmethod(takes_more)
    return {"queue_order_strategy": f"{OwnQueueFirst.__module__}:{OwnQueueFirst.__qualname__}"}

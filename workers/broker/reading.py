"""Which of its queues a small, large or judge worker reads.

Samples whose context it has cached come by its own queue, which it always reads. Those that are new to it come by the
queue that all workers of its model read, and wait there while it has enough: each would take the place of a context
that is needed again, and another worker may have room.
"""

from __future__ import annotations

from collections.abc import Callable

from kombu.utils.scheduling import priority_cycle


def own_queue_first(own: str, takes_more: Callable[[], bool]) -> type[priority_cycle]:
    """The order in which kombu reads a worker's queues: one of the kinds that its ``queue_order_strategy`` names.

    own: the worker's own queue. takes_more: asked before each message in kombu's thread; must be quick.
    """

    class OwnQueueFirst(priority_cycle):
        def consume(self, n: int) -> list[str]:
            queues: list[str] = super().consume(n)  # type: ignore[no-untyped-call]
            return queues if takes_more() else [queue for queue in queues if queue == own]

    return OwnQueueFirst

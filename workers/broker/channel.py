"""kombu's Redis channel, mended in three places. It overrides private methods, so kombu is pinned beside Celery."""

from __future__ import annotations

from typing import Any

import redis
from kombu.transport import redis as redis_transport

LOOK_AGAIN_S = 0.05
"""How long a worker waits at some of its queues before it looks whether it may read the others."""


class MendedChannel(redis_transport.Channel):
    """A channel that finds a lost connection out, makes one client instead of one per message, and waits at some of
    its queues for a moment only (workers.broker.reading)."""

    _pooled_client: Any = None

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """A channel that is used once more after its connection was given up has lost it: kombu ends in an
        AttributeError there, which ends the worker; at this error Celery connects again."""
        if self.connection.client is None:
            raise redis.exceptions.ConnectionError("the connection was given up")
        parameters: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[no-untyped-call]
        return parameters

    def _create_client(self, asynchronous: bool = False) -> Any:
        """kombu makes a client for each message that it sends or acknowledges, which takes longer than the call: as
        they all use one pool, one client does."""
        if asynchronous:
            return self._new_client(asynchronous=True)
        if self._pooled_client is None or self._pooled_client.connection_pool is not self.pool:
            self._pooled_client = self._new_client()
        return self._pooled_client

    def _new_client(self, *, asynchronous: bool = False) -> Any:
        return super()._create_client(asynchronous)  # type: ignore[no-untyped-call]

    def _brpop_start(self, timeout: float | None = None) -> None:
        num_queues = len(self.active_queues)
        if timeout is None and len(self._queue_cycle.consume(num_queues)) < num_queues:
            timeout = LOOK_AGAIN_S
        super()._brpop_start(timeout)  # type: ignore[no-untyped-call]

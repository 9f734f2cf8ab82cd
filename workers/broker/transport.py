"""kombu's Redis transport, which here hands out only messages that pass ``workers.broker.checking``."""

from __future__ import annotations

from typing import Any

from kombu import transport as kombu_transports
from kombu.transport import redis as redis_transport

from workers.broker.channel import MendedChannel
from workers.broker.checking import check_broadcast, check_other, check_task, check_unacknowledged, is_taken

_REPLIES = ".reply.celery.pidbox"


class GuardedQoS(redis_transport.QoS):
    """Messages that were taken and not yet acknowledged lie in Redis too, where others can change them."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        with self.channel.conn_or_acquire(client) as connection:
            raw = connection.hget(self.unacked_key, tag)
        if raw is not None and not is_taken(check_unacknowledged, raw, queue=str(self.unacked_key)):
            with self.pipe_or_acquire(client=client) as pipe:
                self._remove_from_indices(tag, pipe).execute()  # type: ignore[no-untyped-call]
            return
        super().restore_by_tag(tag, client=client, leftmost=leftmost)  # type: ignore[no-untyped-call]


class GuardedChannel(MendedChannel):
    """A channel that hands out only what passes."""

    QoS = GuardedQoS

    def _new_client(self, *, asynchronous: bool = False) -> Any:
        client = super()._new_client(asynchronous=asynchronous)
        parse_response = client.parse_response

        def checked(connection: Any, command_name: str, **options: Any) -> Any:
            response = parse_response(connection, command_name, **options)
            if command_name != "BRPOP" or not response:
                return response
            key, raw = response
            queue = bytes(key).decode(errors="replace").split(self.sep)[0]
            check = check_other if queue.endswith(_REPLIES) else check_task
            return response if is_taken(check, raw, queue=queue) else None  # None: as if nothing had come

        client.parse_response = checked
        return client

    def _handle_message(self, client: Any, r: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._handle_message(client, r)  # type: ignore[no-untyped-call]
        if bytes(payload["type"]).endswith(b"message"):
            topic = bytes(payload["channel"]).decode(errors="replace")
            check = check_broadcast if topic.endswith("celery.pidbox") else check_other
            if not is_taken(check, payload["data"], queue=topic):
                payload["data"] = None  # kombu passes over a message without data
        return payload


class GuardedTransport(redis_transport.Transport):
    """kombu's Redis transport with such channels."""

    Channel = GuardedChannel


class GuardedSentinelChannel(GuardedChannel, redis_transport.SentinelChannel):
    """The same, of a server that Sentinels name."""


class GuardedSentinelTransport(redis_transport.SentinelTransport):
    """kombu's transport by way of Sentinels with such channels."""

    Channel = GuardedSentinelChannel


_TRANSPORTS = {"redis": GuardedTransport, "rediss": GuardedTransport, "sentinel": GuardedSentinelTransport}


def guard_redis() -> None:
    """From now on every address of a Redis in this process means a guarded transport."""
    for scheme, transport in _TRANSPORTS.items():
        kombu_transports.TRANSPORT_ALIASES[scheme] = f"{transport.__module__}:{transport.__name__}"
        kombu_transports._transport_cache.pop(scheme, None)

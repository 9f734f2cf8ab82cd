"""What may come out of the broker: every message is checked here, before Celery or kombu parse any part of it.

Whoever can write to Redis can put anything on a queue, and kombu and Celery trust it: text that is no JSON, a missing
field or deep nesting ends the worker's loop, a header may name a compression (a bomb), a time to run in a year, or
tasks to send on, and what Celery refuses by itself it logs in full. So the Redis transport is replaced by one that
takes messages of a known form only, and drops any other with a line that has its queue, size and reason, never its
content.

Broadcasts are checked likewise: a worker answers the questions that Flower asks, and takes no orders (shutdown, revoke,
time limits, other queues) from anybody.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import orjson
import redis
import structlog
from kombu import transport as kombu_transports
from kombu.transport import redis as redis_transport
from kombu.utils.json import loads as kombu_loads
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

log = structlog.get_logger()

MAX_TASK_BYTES = 16_384
"""Ours have at most 4,000."""
MAX_OTHER_BYTES = 1_048_576
"""Events and answers to Flower; also what Redis is told to take at most (proto-max-bulk-len)."""
MAX_DEPTH = 32
_REPLIES = ".reply.celery.pidbox"

_T = TypeVar("_T")
_ACCEPTED: dict[str, TypeAdapter[Any]] = {}
"""What the body of a message is, by the name of its task."""

Text = Annotated[str, Field(max_length=MAX_TASK_BYTES)]
Name = Annotated[str, Field(max_length=1_000)]


class Refused(Exception):
    """A message that is not taken; the text says why, in words of our own."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Delivery(_Part):
    exchange: Name
    routing_key: Name
    redelivered: bool | None = None


class _Properties(_Part):
    correlation_id: Name
    reply_to: Name | None
    delivery_mode: Literal[1, 2]
    delivery_info: _Delivery
    priority: Annotated[int, Field(ge=0, le=9)]
    body_encoding: Literal["base64"]
    delivery_tag: Name
    argsrepr: Text | None = None
    kwargsrepr: Text | None = None


class _TaskHeaders(_Part):
    """Those of a task that runs once, now, and sends nothing on."""

    lang: Literal["py"]
    task: Name
    id: Name
    root_id: Name
    parent_id: Name | None
    origin: Name
    argsrepr: Text
    kwargsrepr: Text
    redelivered: bool | None = None
    shadow: None
    eta: None
    expires: None
    group: None
    group_index: None
    retries: Literal[0]
    timelimit: tuple[None, None]
    ignore_result: bool | None
    replaced_task_nesting: Literal[0]
    stamped_headers: None
    stamps: Annotated[dict[str, None], Field(max_length=0)]


class _TaskEnvelope(_Part):
    body: Text
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    content_type: Literal["application/json"] = Field(alias="content-type")
    headers: _TaskHeaders
    properties: _Properties


class _Embed(_Part):
    callbacks: None
    errbacks: None
    chain: None
    chord: None


def accept(task: str, payload: type[BaseModel]) -> None:
    """Let messages for this task through, with this payload as their only argument."""
    arguments = create_model("_Arguments", __base__=_Part, message=(payload, ...))
    _ACCEPTED[task] = TypeAdapter(tuple[Annotated[list[None], Field(max_length=0)], arguments, _Embed])


class _Asked(_Part):
    """What the questions of Celery's inspection may say beside their names."""

    safe: bool | None = None
    with_defaults: bool | None = None
    taskinfoitems: Annotated[list[str], Field(max_length=0)] | None = None


class _Question(BaseModel):
    """A broadcast to all workers, or to some by their names."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    method: Literal[
        "ping", "stats", "active_queues", "registered", "scheduled", "active", "reserved", "revoked", "conf",
        "enable_events",
    ]  # fmt: skip
    arguments: _Asked | None = None
    pattern: None = None
    matcher: None = None


_ENVELOPE, _QUESTION = TypeAdapter(_TaskEnvelope), TypeAdapter(_Question)


def check_task(raw: bytes) -> None:
    """Raise Refused unless this is a message of ours for a task of this process."""
    _require_size(raw, MAX_TASK_BYTES)
    envelope: _TaskEnvelope = _validated(_ENVELOPE, raw)
    body = _ACCEPTED.get(envelope.headers.task)
    if body is None:
        raise Refused("no task of this worker")
    _validated(body, _decoded(envelope.body))


def check_unacknowledged(raw: bytes) -> None:
    """Raise Refused unless this is a message of ours with the exchange and the routing key that it came by."""
    _require_size(raw, 2 * MAX_TASK_BYTES)
    parts = _parsed(raw, kinds=(list,))
    if len(parts) != 3 or not all(isinstance(name, str) for name in parts[1:]):
        raise Refused("no message with its place")
    check_task(orjson.dumps(parts[0]))


def check_other(raw: bytes) -> None:
    """Raise Refused unless this is an envelope that kombu can unpack: an event, or an answer to an inspection."""
    _require_size(raw, MAX_OTHER_BYTES)
    envelope = _parsed(raw)
    headers, properties = envelope.get("headers"), envelope.get("properties")
    if not isinstance(headers, dict) or headers.get("compression") or not isinstance(properties, dict):
        raise Refused("headers or properties")
    info = properties.get("delivery_info")
    if not isinstance(properties.get("delivery_tag"), str) or not isinstance(info, dict):
        raise Refused("delivery")
    if envelope.get("content-type") != "application/json" or properties.get("body_encoding") != "base64":
        raise Refused("content type")
    body = envelope.get("body")
    if not isinstance(body, str):
        raise Refused("body")
    _parsed(_decoded(body), kinds=(dict, list))


def check_broadcast(raw: bytes) -> None:
    """Raise Refused unless this is a question that a worker answers."""
    check_other(raw)
    _validated(_QUESTION, _decoded(orjson.loads(raw)["body"]))


def _require_size(raw: bytes, most: int) -> None:
    if len(raw) > most:
        raise Refused(f"over {most} bytes")


def _decoded(body: str) -> bytes:
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("body is no base64") from error


def _validated(kind: TypeAdapter[_T], raw: bytes) -> _T:
    try:
        return kind.validate_json(raw)
    except ValidationError as error:
        raise Refused(_reason(error)) from error


def _reason(error: ValidationError) -> str:
    """The first fault without anything of the message in it: a name that is not ours is left out."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    known = fault["loc"][:-1] if fault["type"] == "extra_forbidden" else fault["loc"]
    return " ".join([*(str(part) for part in known if isinstance(part, str)), fault["type"]])


def _parsed(raw: bytes, *, kinds: tuple[type, ...] = (dict,)) -> Any:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refused("no JSON") from error
    if not isinstance(value, kinds):
        raise Refused("no object")
    if _is_deeper(value, MAX_DEPTH):
        raise Refused(f"nested over {MAX_DEPTH} deep")
    try:
        kombu_loads(raw)  # type: ignore[no-untyped-call]  # makes dates and the like of marked objects, and may break
    except Exception as error:
        raise Refused("marked objects") from error
    return value


def _is_deeper(value: object, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            part
            for item in level
            if isinstance(item, dict | list)
            for part in (item.values() if isinstance(item, dict) else item)
        ]
    return bool(level)


def is_taken(check: Callable[[bytes], None], raw: object, *, queue: str) -> bool:
    """Whether a message passes; one that does not is logged by its queue, size and reason."""
    size = len(raw) if isinstance(raw, bytes) else None
    try:
        if not isinstance(raw, bytes):
            raise Refused("no bytes")
        check(raw)
    except Exception as error:  # whatever a message does to its check, it must not end the worker
        reason = str(error) if isinstance(error, Refused) else type(error).__name__
        log.warning("message refused", queue=queue, bytes=size, reason=reason)
        return False
    return True


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


class GuardedChannel(redis_transport.Channel):
    """A channel that hands out only what passes."""

    QoS = GuardedQoS
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
            return self._checking(super()._create_client(asynchronous))  # type: ignore[no-untyped-call]
        if self._pooled_client is None or self._pooled_client.connection_pool is not self.pool:
            self._pooled_client = self._checking(super()._create_client())  # type: ignore[no-untyped-call]
        return self._pooled_client

    def _checking(self, client: Any) -> Any:
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


def guard_redis() -> None:
    """From now on every redis:// address of this process means the guarded transport."""
    for scheme in ("redis", "rediss"):
        kombu_transports.TRANSPORT_ALIASES[scheme] = "workers.broker.transport:GuardedTransport"
        kombu_transports._transport_cache.pop(scheme, None)

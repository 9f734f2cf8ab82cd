"""Checks every message before Celery or kombu parse any part of it.

A process that can write to Redis can put anything on a queue, and kombu and Celery trust it: text that is no JSON, a
missing field or deep nesting ends the worker's loop, a header may name a compression (a bomb), a time to run in a year,
or tasks to send on, and what Celery refuses by itself it logs in full. So a message of any other form than ours is
dropped with a line that has its queue, size and reason, never its content.

Broadcasts are checked too: a worker answers the questions that Flower asks, and takes no orders (shutdown, revoke, time
limits, other queues).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
import structlog
from kombu.utils.json import loads as kombu_loads
from pydantic import TypeAdapter, ValidationError

from workers.broker.forms import ENVELOPE, MAX_TASK_BYTES, QUESTION, TaskEnvelope, body_form

log = structlog.get_logger()

MAX_OTHER_BYTES = 1_048_576
"""Most bytes of an event, or of an answer to Flower; the same as Redis's own limit here (proto-max-bulk-len)."""
MAX_DEPTH = 32

_T = TypeVar("_T")


class Refused(Exception):
    """A message that is not taken; the text says why, in words of our own."""


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


def check_task(raw: bytes) -> None:
    """Raise Refused unless this is a message of ours for a task of this process."""
    _require_size(raw, MAX_TASK_BYTES)
    envelope: TaskEnvelope = _validated(ENVELOPE, raw)
    body = body_form(envelope.headers.task)
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
    _validated(QUESTION, _decoded(orjson.loads(raw)["body"]))


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

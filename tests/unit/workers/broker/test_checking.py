"""Which messages pass: those that Celery makes of ours, and no other form."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from celery import Celery
from structlog.testing import capture_logs

from workers.broker.checking import (
    MAX_DEPTH,
    MAX_OTHER_BYTES,
    Refused,
    check_broadcast,
    check_other,
    check_task,
    check_unacknowledged,
    is_taken,
)
from workers.broker.forms import MAX_TASK_BYTES, accept
from workers.broker.messages import SamplesMessage

TASK = "write something"
PAYLOAD = {"version": 1, "job_id": 3, "samples": [[5, 0]]}


@pytest.fixture(scope="module", autouse=True)
def accepted() -> None:
    accept(TASK, SamplesMessage)


@pytest.fixture
def message() -> dict[str, Any]:
    """As Celery publishes it; through memory, whose envelope is that of Redis."""
    app = Celery("test", broker="memory://", set_as_current=False)
    app.conf.task_ignore_result = True
    app.send_task(TASK, kwargs={"message": PAYLOAD}, queue="small.x", priority=0, argsrepr="", kwargsrepr="job 3")
    with app.connection_for_read() as connection:
        sent = connection.default_channel._get("small.x")
        connection.default_channel._purge("small.x")
    return dict(sent)


def packed(body: object) -> str:
    return base64.b64encode(orjson.dumps(body)).decode()


def test_message_of_ours_passes(message: dict[str, Any]) -> None:
    check_task(orjson.dumps(message))
    check_unacknowledged(orjson.dumps([message, "exchange", "routing key"]))


def change(message: dict[str, Any], *path: str, to: object) -> None:
    *parents, last = path
    for name in parents:
        message = message[name]
    message[last] = to


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("headers", "task"), "another task", "no task of this worker"),
        (("headers", "compression"), "gzip", "headers extra_forbidden"),
        (("headers", "eta"), "2030-01-01T00:00:00", "headers eta none_required"),
        (("headers", "retries"), 3, "headers retries literal_error"),
        (("headers", "timelimit"), [1, 1], "headers timelimit none_required"),
        (("headers", "group"), "g", "headers group none_required"),
        (("headers", "stamps"), {"a": None}, "headers stamps too_long"),
        (("content-type",), "application/x-python-serialize", "content-type literal_error"),
        (("properties", "body_encoding"), None, "properties body_encoding literal_error"),
        (("surprise",), "secret", "extra_forbidden"),
        (("body",), "no base64!", "body is no base64"),
        (("body",), packed([[], {"message": PAYLOAD | {"job_id": 0}}, {}]), "message job_id greater_than"),
        (("body",), packed([["argument"], {"message": PAYLOAD}, {}]), "too_long"),
    ],
)
def test_message_of_another_form_is_refused_for_its_first_fault(
    message: dict[str, Any], path: tuple[str, ...], value: object, reason: str
) -> None:
    change(message, *path, to=value)
    with pytest.raises(Refused) as refusal:
        check_task(orjson.dumps(message))
    assert str(refusal.value) == reason


def test_message_that_sends_tasks_on_is_refused(message: dict[str, Any]) -> None:
    body = orjson.loads(base64.b64decode(message["body"]))
    message["body"] = packed([*body[:2], body[2] | {"callbacks": [{"task": "steal"}]}])
    with pytest.raises(Refused, match="callbacks"):
        check_task(orjson.dumps(message))


@pytest.mark.parametrize("field", ["body", "headers", "properties", "content-type"])
def test_message_with_a_missing_part_is_refused(message: dict[str, Any], field: str) -> None:
    del message[field]
    with pytest.raises(Refused, match="missing"):
        check_task(orjson.dumps(message))


def other(content: object = None, **changes: object) -> bytes:
    envelope = {
        "body": packed({} if content is None else content),
        "content-type": "application/json",
        "headers": {},
        "properties": {"body_encoding": "base64", "delivery_tag": "t", "delivery_info": {}},
    }
    return orjson.dumps(envelope | changes)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "no JSON"),
        (b"[]", "no object"),
        (other(headers=None), "headers or properties"),
        (other(headers={"compression": "zlib"}), "headers or properties"),
        (other(properties={"delivery_tag": 1, "delivery_info": {}}), "delivery"),
        (other(**{"content-type": "application/x-yaml"}), "content type"),
        (other(body=7), "body"),
        (other("text"), "no object"),
        (orjson.dumps({"a": "x" * MAX_OTHER_BYTES}), f"over {MAX_OTHER_BYTES} bytes"),
    ],
)
def test_envelope_that_kombu_cannot_unpack_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        check_other(raw)


def test_deep_nesting_is_refused() -> None:
    def nested(depth: int) -> list[Any]:
        return [nested(depth - 1)] if depth else []

    check_other(other(nested(MAX_DEPTH - 1)))
    with pytest.raises(Refused, match="nested"):
        check_other(other(nested(MAX_DEPTH)))


@pytest.mark.parametrize("method", ["ping", "active_queues", "stats"])
def test_questions_of_flower_pass(method: str) -> None:
    check_broadcast(other({"method": method, "arguments": {}, "destination": None}))


@pytest.mark.parametrize("method", ["shutdown", "revoke", "time_limit", "add_consumer", "rate_limit"])
def test_orders_to_workers_are_refused(method: str) -> None:
    with pytest.raises(Refused, match="method"):
        check_broadcast(other({"method": method, "arguments": {}}))


def fails(error: Exception) -> Callable[[bytes], None]:
    def check(raw: bytes) -> None:
        raise error

    return check


@pytest.mark.parametrize(
    ("check", "raw", "reason"),
    [
        (fails(Refused("too old")), b"secret", "too old"),
        (fails(RuntimeError("secret")), b"secret", "RuntimeError"),
        (check_task, "secret", "no bytes"),
        (check_task, b"secret" * MAX_TASK_BYTES, f"over {MAX_TASK_BYTES} bytes"),
    ],
)
def test_refused_message_is_logged_without_its_content(
    check: Callable[[bytes], None], raw: object, reason: str
) -> None:
    with capture_logs() as logs:
        assert not is_taken(check, raw, queue="q")
    [line] = logs
    assert (line["event"], line["queue"], line["reason"]) == ("message refused", "q", reason)
    assert "secret" not in str(line)


def test_message_that_passes_is_taken_in_silence(message: dict[str, Any]) -> None:
    with capture_logs() as logs:
        assert is_taken(check_task, orjson.dumps(message), queue="q")
    assert logs == []

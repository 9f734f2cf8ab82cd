"""The forms of messages in the broker: of a task, and of a question to the workers.

Strict, and closed to every field that is not ours: a header that names a compression, a time to run or tasks to send on
has no place in them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

MAX_TASK_BYTES = 16_384
"""Ours have at most 4,000."""

Text = Annotated[str, Field(max_length=MAX_TASK_BYTES)]
Name = Annotated[str, Field(max_length=1_000)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Delivery(Part):
    exchange: Name
    routing_key: Name
    redelivered: bool | None = None


class Properties(Part):
    correlation_id: Name
    reply_to: Name | None
    delivery_mode: Literal[1, 2]
    delivery_info: Delivery
    priority: Annotated[int, Field(ge=0, le=9)]
    body_encoding: Literal["base64"]
    delivery_tag: Name
    argsrepr: Text | None = None
    kwargsrepr: Text | None = None


class TaskHeaders(Part):
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


class TaskEnvelope(Part):
    body: Text
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    content_type: Literal["application/json"] = Field(alias="content-type")
    headers: TaskHeaders
    properties: Properties


class Embed(Part):
    callbacks: None
    errbacks: None
    chain: None
    chord: None


class Asked(Part):
    """What the questions of Celery's inspection may say beside their names."""

    safe: bool | None = None
    with_defaults: bool | None = None
    taskinfoitems: Annotated[list[str], Field(max_length=0)] | None = None


class Question(BaseModel):
    """A broadcast to all workers, or to some by their names."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    method: Literal[
        "ping", "stats", "active_queues", "registered", "scheduled", "active", "reserved", "revoked", "conf",
        "enable_events",
    ]  # fmt: skip
    arguments: Asked | None = None
    pattern: None = None
    matcher: None = None


ENVELOPE, QUESTION = TypeAdapter(TaskEnvelope), TypeAdapter(Question)

_BODIES: dict[str, TypeAdapter[Any]] = {}
"""What the body of a message is, by the name of its task."""


def accept(task: str, payload: type[BaseModel]) -> None:
    """Let messages for this task through, with this payload as their only argument."""
    arguments = create_model("_Arguments", __base__=Part, message=(payload, ...))
    _BODIES[task] = TypeAdapter(tuple[Annotated[list[None], Field(max_length=0)], arguments, Embed])


def body_form(task: str) -> TypeAdapter[Any] | None:
    """The form of a task's body; None for a task that is not this process's."""
    return _BODIES.get(task)

"""The objects of OpenAI's API. Every key is always there, null where it is empty: clients index into them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline.batches import PRIVATE_PURPOSES, BatchStatus, StoredBatch, StoredFile

T = TypeVar("T")


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileObject(_Object):
    """A file: uploaded, or made of a batch's answers."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def of(cls, file: StoredFile) -> FileObject:
        return cls(
            id=file.id,
            bytes=file.num_bytes or 0,
            created_at=int(file.created_at.timestamp()),
            expires_at=_seconds(file.expires_at),
            filename=file.filename,
            # Strict clients know no other word for a file that is neither a batch's input nor its output.
            purpose="user_data" if file.purpose in PRIVATE_PURPOSES else file.purpose,
        )


class DeletedFile(_Object):
    """What a deletion says."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class ListOf(_Object, Generic[T]):
    """One page. has_more: whether another follows the last one."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchFault(_Object):
    """Something wrong in the input. line: 1-based; null: of the file as a whole."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchFaults(_Object):
    object: Literal["list"] = "list"
    data: list[BatchFault]


class RequestCounts(_Object):
    total: int
    completed: int
    failed: int


class InputDetails(_Object):
    cached_tokens: int


class OutputDetails(_Object):
    reasoning_tokens: int


class BatchUsage(_Object):
    """Tokens of all answers of a batch."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchProgress(_Object):
    """Samples by where they are."""

    pending: int
    ready: int
    drafting: int
    awaiting_large: int
    assisting: int
    finished: int
    graded: int
    failed: int
    cancelled: int


class BatchDetails(_Object):
    """What is ours. state: of its jobs; waiting_for: why it does not go on; both null before it has jobs."""

    job_ids: list[int]
    state: str | None
    waiting_for: str | None
    priority: int | None
    progress: BatchProgress | None


class BatchObject(_Object):
    """A batch, with the moments of its life in seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None
    specthink: BatchDetails


_MOMENTS = (
    "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at",
    "cancelling_at", "cancelled_at",
)  # fmt: skip


def batch_object(
    batch: StoredBatch, *, status: BatchStatus, counts: tuple[int, int], details: BatchDetails
) -> BatchObject:
    """counts: lines with their answer, and lines with an error."""
    faults = None
    if batch.errors is not None:
        faults = BatchFaults(data=[BatchFault.model_validate(fault) for fault in batch.errors])
    moments: dict[str, Any] = {name: _seconds(getattr(batch, name)) for name in _MOMENTS}
    total = 0 if status is BatchStatus.VALIDATING else batch.num_lines
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=faults,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        request_counts=RequestCounts(total=total, completed=counts[0], failed=counts[1]),
        usage=None if batch.usage is None else BatchUsage.model_validate(batch.usage),
        metadata=batch.metadata,
        specthink=details,
        **moments,
    )


class ModelObject(_Object):
    """A name that requests may give as their model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["specthink"] = "specthink"
    root: str
    parent: None = None
    max_model_len: int | None


class ModelList(_Object):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(_Object):
    """The process is there."""

    status: Literal["ok"] = "ok"


class OutputExpiry(_Object):
    """When the files of a batch go."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


def _seconds(at: dt.datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def page_of(rows: Sequence[Any], objects: Sequence[T], *, limit: int) -> dict[str, Any]:
    """The first ``limit`` of them as a list. rows: one more than that where another page follows."""
    shown = list(objects[:limit])
    ids = [row.id for row in rows[:limit]]
    return {
        "object": "list",
        "data": shown,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": len(rows) > limit,
    }

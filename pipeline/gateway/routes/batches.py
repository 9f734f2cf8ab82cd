"""Batches: create, look, cancel; and what OpenAI's API has not: results while they run, retry, pause, resume."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator
from sqlalchemy import Connection

from pipeline.batches import FINAL_STATUSES, BatchJob, BatchStatus, Caller, FilePurpose, StoredBatch
from pipeline.client import MAX_PRIORITY
from pipeline.db.gateway import batches, files
from pipeline.db.report_queries import select_progress
from pipeline.db.session import transaction
from pipeline.gateway.answers_files import known_graders
from pipeline.gateway.errors import bad, missing, responses
from pipeline.gateway.lines import ENDPOINTS
from pipeline.gateway.objects import (
    BatchDetails,
    BatchObject,
    BatchProgress,
    ListOf,
    OutputExpiry,
    batch_object,
    page_of,
)
from pipeline.gateway.outputs import stream_output
from pipeline.gateway.requests import PolicyOptions, Text, body_sha256
from pipeline.gateway.routes.files import IdempotencyKey, Retries, is_retry, repeated
from pipeline.gateway.state import Gateway, TheCaller, TheGateway
from pipeline.jobs.config import FINAL_JOB_STATES, JobState
from pipeline.problems.values import check_text
from pipeline.results.reports import JobProgress
from pipeline.samples import ErrorClass

router = APIRouter(prefix="/v1/batches", tags=["batches"])

BACKGROUND = "background"
"""The completion window of a batch without a deadline."""
_WINDOW = re.compile(r"([1-9][0-9]{0,3})(h|d)")
MAX_WINDOW_S = 30 * 86_400
MAX_PAIRS = 16

Word = Annotated[Text, Field(min_length=1, max_length=200)]


class BatchOptions(BaseModel):
    """What is ours, under ``specthink``."""

    model_config = ConfigDict(extra="forbid")

    policy_options: PolicyOptions = {}
    """Numbers of the policy that differ from its preset."""
    priority: Annotated[StrictInt, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    """Jobs with a higher one are admitted first."""
    require_workers: StrictBool = False
    """Have it fail where no live worker serves a model of it."""
    include: Annotated[list[Literal["segments", "discarded_text"]], Field(max_length=2)] = ["segments"]
    """What answers say of themselves."""
    answers_file_id: Word | None = None
    """A file of reference answers, uploaded for evals."""
    grader: Word | None = None
    """What compares answers with them."""


class NewBatch(BaseModel):
    """What a batch is created from."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: Word
    endpoint: Word
    completion_window: Word
    metadata: (
        Annotated[dict[str, Annotated[str, Field(strict=True, max_length=512)]], Field(max_length=MAX_PAIRS)] | None
    ) = None
    output_expires_after: OutputExpiry | None = None
    specthink: BatchOptions | None = None

    @field_validator("metadata")
    @classmethod
    def _can_be_stored(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        for name, value in (metadata or {}).items():
            if not 0 < len(name) <= 64:
                raise ValueError("each key must have 1 to 64 characters")
            for part in (name, value):
                check_text(part)
        return metadata


@router.post("", responses=responses())
def create_batch(
    new: NewBatch,
    gateway: TheGateway,
    caller: TheCaller,
    retries: Retries = None,
    idempotency_key: IdempotencyKey = None,
) -> BatchObject:
    """Store a batch; its lines are read after the answer. The same request sent again makes no second one."""
    ours = new.specthink or BatchOptions()
    window_s = window_seconds(new.completion_window)
    if new.endpoint not in ENDPOINTS:
        raise bad(
            f"'{new.endpoint}' is no endpoint for batches here; there is {', '.join(ENDPOINTS)}.",
            code="unsupported_endpoint", param="endpoint",
        )  # fmt: skip
    _check_grading(ours)
    request_sha256 = body_sha256(new.model_dump(mode="json"))
    with gateway.transaction() as connection:
        made = repeated(
            connection, "batches", caller, idempotency_key=idempotency_key, request_sha256=request_sha256,
            is_retry=is_retry(retries),
        )  # fmt: skip
        if made is None:
            _require_file(connection, caller, new.input_file_id, (FilePurpose.BATCH,), "input_file_id")
            if ours.answers_file_id is not None:
                private = (FilePurpose.EVALS, FilePurpose.USER_DATA)
                _require_file(connection, caller, ours.answers_file_id, private, "specthink.answers_file_id")
            made = f"batch_{secrets.token_hex(12)}"
            batches.insert_batch(
                connection,
                batch_id=made,
                owner=caller,
                input_file=new.input_file_id,
                answers_file=ours.answers_file_id,
                endpoint=new.endpoint,
                window=new.completion_window,
                window_s=window_s,
                metadata=new.metadata,
                options=ours.model_dump(mode="json"),
                request_sha256=request_sha256,
                idempotency_key=idempotency_key,
                output_expires_s=new.output_expires_after.seconds if new.output_expires_after else None,
            )
        shown = show_batch(connection, _find(connection, caller, made))
    gateway.woken.set()
    return shown


def window_seconds(window: str) -> float | None:
    """Seconds of a completion window; None: no deadline. Raises ApiError."""
    if window == BACKGROUND:
        return None
    match = _WINDOW.fullmatch(window)
    seconds = int(match[1]) * {"h": 3600, "d": 86_400}[match[2]] if match else 0
    if not 0 < seconds <= MAX_WINDOW_S:
        raise bad(
            f"'{window}' is no completion window: write 24h or 7d, of 30d at most, or {BACKGROUND}.",
            code="invalid_value", param="completion_window",
        )  # fmt: skip
    return seconds


def _check_grading(ours: BatchOptions) -> None:
    if (ours.grader is None) != (ours.answers_file_id is None):
        raise bad("Give 'grader' and 'answers_file_id' together.", param="specthink.grader")
    if ours.grader is not None and ours.grader not in known_graders():
        told = ", ".join(known_graders())
        raise bad(f"There is no grader '{ours.grader}' here; there are {told}.", param="specthink.grader")


def _require_file(
    connection: Connection, caller: Caller, file_id: str, purposes: tuple[FilePurpose, ...], param: str
) -> None:
    found = files.find_file(connection, caller, file_id)
    if found is None:
        raise bad(f"No file found with id '{file_id}'.", code="file_not_found", param=param)
    if found.purpose not in purposes:
        raise bad(
            f"The file '{file_id}' was uploaded for '{found.purpose}', not for '{purposes[0].value}'.",
            code="invalid_purpose", param=param,
        )  # fmt: skip


def _find(connection: Connection, caller: Caller, batch_id: str) -> StoredBatch:
    found = batches.find_batch(connection, caller, batch_id)
    if found is None:
        raise missing("batch", batch_id)
    return found


def show_batch(connection: Connection, batch: StoredBatch) -> BatchObject:
    """A batch as it is now."""
    batch, jobs, status = batches.settle(connection, batch)
    if batch.num_completed is not None and batch.num_failed is not None:
        counts = (batch.num_completed, batch.num_failed)
    elif status is BatchStatus.FAILED or not jobs:
        counts = (0, 0)
    else:
        counts = batches.count_lines(connection, jobs)
    return batch_object(batch, status=status, counts=counts, details=_details(connection, jobs, status))


def _details(connection: Connection, jobs: list[BatchJob], status: BatchStatus) -> BatchDetails:
    ids = [job.job_id for job in jobs]
    if not jobs:
        return BatchDetails(job_ids=[], state=None, waiting_for=None, priority=None, progress=None)
    progress = select_progress(connection, ids)
    waits = None if status in FINAL_STATUSES else next((job.waiting_for for job in progress if job.waiting_for), None)
    return BatchDetails(
        job_ids=ids,
        state=_state(jobs),
        waiting_for=waits,
        priority=max(job.priority for job in progress),
        progress=_sums(progress),
    )


def _state(jobs: list[BatchJob]) -> str:
    """Of all jobs: the state of one that has not ended, where there is one."""
    open_states = [job.state for job in jobs if job.state not in FINAL_JOB_STATES]
    return str((open_states or [jobs[0].state])[0])


def _sums(progress: list[JobProgress]) -> BatchProgress:
    names = BatchProgress.model_fields
    return BatchProgress(**{name: sum(getattr(job, name) for job in progress) for name in names})


@router.get("", responses=responses())
def list_batches(
    gateway: TheGateway,
    caller: TheCaller,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
) -> ListOf[BatchObject]:
    """The caller's batches, newest first."""
    with gateway.transaction() as connection:
        last = None
        if after is not None:
            last = batches.find_batch(connection, caller, after)
            if last is None:
                raise bad(f"There is no batch '{after}' to go on from.", param="after")
        rows = batches.page_of_batches(connection, caller, after=last, limit=limit + 1) if limit else []
        shown = [show_batch(connection, row) for row in rows[:limit]]
    return ListOf[BatchObject](**page_of(rows, shown, limit=limit))


@router.get("/{batch_id}", responses=responses())
def get_batch(batch_id: str, gateway: TheGateway, caller: TheCaller) -> BatchObject:
    with gateway.transaction() as connection:
        return show_batch(connection, _find(connection, caller, batch_id))


@router.post("/{batch_id}/cancel", responses=responses())
def cancel_batch(batch_id: str, gateway: TheGateway, caller: TheCaller) -> BatchObject:
    """End a batch: what is done stays. One that is being cancelled, or was, is shown as it is."""
    with gateway.transaction() as connection:
        batch, _, status = batches.settle(connection, _find(connection, caller, batch_id))
        if status in FINAL_STATUSES and status is not BatchStatus.CANCELLED:
            raise bad(f"Cannot cancel a batch with status '{status.value}'.", code="batch_has_ended")
        if status is not BatchStatus.CANCELLED:
            batches.mark_cancelling(connection, batch.id)
        jobs = batches.select_jobs(connection, batch.id)
    for job in jobs:
        if job.state in (JobState.RUNNING, JobState.PAUSED):
            gateway.client.cancel(job.job_id)
    return get_batch(batch_id, gateway, caller)


class Retry(BaseModel):
    """Which failed lines are tried again; without a word: all."""

    model_config = ConfigDict(extra="forbid")

    classes: list[ErrorClass] = []


@router.post("/{batch_id}/retry", responses=responses())
def retry_batch(batch_id: str, gateway: TheGateway, caller: TheCaller, which: Retry | None = None) -> BatchObject:
    """Try failed lines again, from where they were; a batch that has completed goes on for them."""
    jobs = _jobs_to_change(
        gateway,
        caller,
        batch_id,
        "retried",
        allowed=(BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.COMPLETED),
    )
    changed = [
        gateway.client.retry(job.job_id, classes=which.classes if which else ()).is_new
        for job in jobs if job.num_failed
    ]  # fmt: skip
    if any(changed):
        with gateway.transaction() as connection:
            batch = batches.lock_batch(connection, batch_id)
            if batch.completed_at is not None:
                batches.reopen_batch(connection, batch_id)
    return get_batch(batch_id, gateway, caller)


@router.post("/{batch_id}/pause", responses=responses())
def pause_batch(batch_id: str, gateway: TheGateway, caller: TheCaller) -> BatchObject:
    """Let nothing of a batch be written until it is resumed."""
    for job in _jobs_to_change(gateway, caller, batch_id, "paused"):
        if job.state is JobState.RUNNING:
            gateway.client.pause(job.job_id)
    return get_batch(batch_id, gateway, caller)


@router.post("/{batch_id}/resume", responses=responses())
def resume_batch(batch_id: str, gateway: TheGateway, caller: TheCaller) -> BatchObject:
    """Let a paused batch go on where it was."""
    for job in _jobs_to_change(gateway, caller, batch_id, "resumed"):
        if job.state is JobState.PAUSED:
            gateway.client.resume(job.job_id)
    return get_batch(batch_id, gateway, caller)


def _jobs_to_change(
    gateway: Gateway, caller: Caller, batch_id: str, verb: str,
    allowed: tuple[BatchStatus, ...] = (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING),
) -> list[BatchJob]:  # fmt: skip
    """The jobs of a batch. Raises ApiError for one whose status does not allow it."""
    with gateway.transaction() as connection:
        _, jobs, status = batches.settle(connection, _find(connection, caller, batch_id))
    if status not in allowed:
        raise bad(f"A batch with status '{status.value}' cannot be {verb}.", code="wrong_status")
    return jobs


@router.get(
    "/{batch_id}/results",
    responses={**responses(), 200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
    response_class=StreamingResponse,
)
def results(
    batch_id: str,
    gateway: TheGateway,
    caller: TheCaller,
    limit: Annotated[int | None, Query(ge=1, le=10_000_000)] = None,
    skip: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> StreamingResponse:
    """The lines that have ended so far, those with an error too, in the order of the input.

    The header X-Incomplete says whether more will come; X-Last-Line, how many lines are skipped and given.
    """
    with gateway.transaction() as connection:
        batch, jobs, status = batches.settle(connection, _find(connection, caller, batch_id))
        ended = sum(batches.count_lines(connection, jobs))
    last = max(skip, min(ended, ended if limit is None else skip + limit))
    headers = {"x-incomplete": str(status not in FINAL_STATUSES).lower(), "x-last-line": str(last)}
    pieces = _results(gateway, batch, skip, last)
    return StreamingResponse(pieces, media_type="application/x-ndjson", headers=headers)


def _results(gateway: Gateway, batch: StoredBatch, skip: int, last: int) -> Iterator[bytes]:
    with (
        transaction(gateway.downloads) as connection,
        closing(stream_output(connection, batch, errors=None, only_ended=True)) as lines,
    ):
        for _, _, rendered in islice(lines, skip, last):
            yield rendered

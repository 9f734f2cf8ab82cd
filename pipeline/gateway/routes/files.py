"""Files: what a client uploads, and what a batch has given."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, File, Form, Header, Query, UploadFile
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from pipeline.batches import PRIVATE_PURPOSES, Caller, StoredFile
from pipeline.db.gateway import batches, files
from pipeline.db.session import transaction
from pipeline.gateway.errors import ApiError, bad, missing, responses
from pipeline.gateway.gate import too_large
from pipeline.gateway.objects import DeletedFile, FileObject, ListOf, page_of
from pipeline.gateway.outputs import measure, stream_file
from pipeline.gateway.requests import body_sha256
from pipeline.gateway.state import Gateway, TheCaller, TheGateway
from pipeline.key_roles import KeyRole
from pipeline.problems.values import check_text
from pipeline.texts import printable

router = APIRouter(prefix="/v1/files", tags=["files"])

MAX_NAME_CHARS = 255
MAX_EXPIRY_S = 2_592_000
_PIECE = 2**20

Retries = Annotated[str | None, Header(alias="x-stainless-retry-count", include_in_schema=False)]
IdempotencyKey = Annotated[str | None, Header(alias="idempotency-key", max_length=200)]


def is_retry(count: str | None) -> bool:
    """Whether the official client says that it sends a request again."""
    return count is not None and count.isdigit() and int(count[:9]) > 0


@router.post("", responses=responses())
def upload(
    gateway: TheGateway,
    caller: TheCaller,
    file: Annotated[UploadFile, File(description="JSON Lines.")],
    purpose: Annotated[Literal["batch", "evals", "user_data"], Form()],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=3600, le=MAX_EXPIRY_S)] = None,
    retries: Retries = None,
    idempotency_key: IdempotencyKey = None,
) -> FileObject:
    """Store a file: requests (batch), or reference answers (evals)."""
    if (anchor is None) != (seconds is None):
        raise bad("Give 'expires_after' both its anchor and its seconds.", param="expires_after")
    name = _checked_name(file.filename)
    size, sha256 = _measure(file.file)
    most = min(gateway.settings.max_file_bytes, caller.max_file_bytes or gateway.settings.max_file_bytes)
    if size > most:
        raise too_large(most)
    if size == 0:
        raise bad("The file is empty.", code="empty_file", param="file")
    request_sha256 = body_sha256(name, purpose, seconds, sha256)
    with gateway.transaction() as connection:
        found = repeated_file(
            connection, caller, idempotency_key=idempotency_key, request_sha256=request_sha256,
            is_retry=is_retry(retries),
        )  # fmt: skip
        if found is not None:
            return FileObject.of(found)
        file.file.seek(0)
        stored = files.insert_file(
            connection,
            file.file,
            file_id=f"file-{secrets.token_hex(12)}",
            owner=caller,
            purpose=purpose,
            filename=name,
            num_bytes=size,
            sha256=sha256,
            request_sha256=request_sha256,
            idempotency_key=idempotency_key,
            expires_after_s=seconds,
        )
    return FileObject.of(stored)


def _checked_name(name: str | None) -> str:
    """The last part of the file's name. Raises ApiError for one that is no .jsonl."""
    base = os.path.basename((name or "").replace("\\", "/"))
    try:
        check_text(base)
    except ValueError as error:
        raise bad(f"The file's name has {error}.", param="file") from error
    if not base.lower().endswith(".jsonl"):
        raise bad("Invalid file format for Batch API. Must be .jsonl", code="invalid_file_format", param="file")
    if len(base) > MAX_NAME_CHARS:
        raise bad(f"The file's name has more than {MAX_NAME_CHARS} characters.", param="file")
    return printable(base)


def _measure(content: IO[bytes]) -> tuple[int, str]:
    """How many bytes there are, and their sha256; a piece at a time is in memory."""
    digest, size = hashlib.sha256(), 0
    for data in iter(lambda: content.read(_PIECE), b""):
        digest.update(data)
        size += len(data)
    return size, digest.hexdigest()


def repeated_file(
    connection: Connection, caller: Caller, *, idempotency_key: str | None, request_sha256: str, is_retry: bool
) -> StoredFile | None:
    """The file that an earlier sending of this request has made. Raises ApiError for a key of another request."""
    file_id = repeated(
        connection, "files", caller, idempotency_key=idempotency_key, request_sha256=request_sha256, is_retry=is_retry
    )
    return None if file_id is None else files.find_file(connection, caller, file_id)


def repeated(
    connection: Connection, table: str, caller: Caller, *, idempotency_key: str | None, request_sha256: str,
    is_retry: bool,
) -> str | None:  # fmt: skip
    """What an earlier sending of this request has made. Raises ApiError for an idempotency key of another request."""
    found = files.find_repeated(
        connection, table, caller, idempotency_key=idempotency_key, request_sha256=request_sha256, is_retry=is_retry
    )
    if found is None:
        return None
    made, is_same = found
    if not is_same:
        raise bad("This Idempotency-Key was sent with another request.", code="idempotency_key_reused")
    return made


@router.get("", responses=responses())
def list_files(
    gateway: TheGateway,
    caller: TheCaller,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=0, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=50)] = None,
) -> ListOf[FileObject]:
    """The caller's files, newest first."""
    with gateway.transaction() as connection:
        last = None if after is None else files.find_file(connection, caller, after)
        if after is not None and last is None:
            raise bad(f"There is no file '{after}' to go on from.", param="after")
        rows = files.page_of_files(connection, caller, after=last, limit=limit + 1, order=order, purpose=purpose)
    rows = rows if limit else []
    shown = [FileObject.of(_measured(gateway, row)) for row in rows[:limit]]
    return ListOf[FileObject](**page_of(rows, shown, limit=limit))


@router.get("/{file_id}", responses=responses())
def get_file(file_id: str, gateway: TheGateway, caller: TheCaller) -> FileObject:
    return FileObject.of(_measured(gateway, _find(gateway, caller, file_id)))


def _find(gateway: Gateway, caller: Caller, file_id: str) -> StoredFile:
    with gateway.transaction() as connection:
        found = files.find_file(connection, caller, file_id)
    if found is None:
        raise missing("file", file_id)
    return found


def _measured(gateway: Gateway, file: StoredFile) -> StoredFile:
    """A batch's file with its size, which is counted now where nobody has counted it yet."""
    if file.num_bytes is not None or file.batch_id is None:
        return file
    with transaction(gateway.downloads) as connection:
        batch = batches.find_batch(connection, ANYBODYS, file.batch_id)
        if batch is None:
            return file
        measures = measure(connection, batch)
    return replace(file, num_bytes=measures.bytes[not file.is_errors])


@router.delete("/{file_id}", responses=responses())
def delete_file(file_id: str, gateway: TheGateway, caller: TheCaller) -> DeletedFile:
    """Delete a file. One that an open batch needs stays."""
    found = _find(gateway, caller, file_id)
    with gateway.transaction() as connection:
        batch = files.delete_file(connection, found)
    if batch is not None:
        raise bad(f"The file is in use by {batch}, which has not ended.", code="file_in_use")
    return DeletedFile(id=found.id)


@router.get(
    "/{file_id}/content",
    responses={**responses(), 200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}},
    response_class=StreamingResponse,
)
def content(file_id: str, gateway: TheGateway, caller: TheCaller) -> StreamingResponse:
    """The bytes of a file; of a batch's own, made while they are sent. Reference answers are given to nobody."""
    found = _find(gateway, caller, file_id)
    if found.purpose in PRIVATE_PURPOSES:
        raise ApiError(403, "A file of reference answers is not given back.", code="private_file")
    return StreamingResponse(_pieces(gateway, found), media_type="application/jsonl", headers=_headers(found))


def _headers(file: StoredFile) -> dict[str, str]:
    name = quote(file.filename, safe="")
    etag = f'"{file.sha256}"' if file.sha256 else f'W/"{file.id}-{int(file.created_at.timestamp())}"'
    headers = {"content-disposition": f"attachment; filename*=UTF-8''{name}", "etag": etag}
    return headers | ({"content-length": str(file.num_bytes)} if file.sha256 else {})


def _pieces(gateway: Gateway, file: StoredFile) -> Iterator[bytes]:
    """On a connection of its own kind: a slow reader holds it until the end."""
    with transaction(gateway.downloads) as connection:
        if file.batch_id is None:
            yield from files.stream_parts(connection, file.id)
            return
        batch = batches.find_batch(connection, ANYBODYS, file.batch_id)
        if batch is not None:
            yield from stream_file(connection, batch, errors=file.is_errors)


ANYBODYS = Caller(role=KeyRole.ADMIN)
"""For what was found to be the caller's already."""

"""Chat completions online: the request is stored, answered by the workers as any other, and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from pipeline.db.gateway import answers, keys
from pipeline.db.gateway.answers import AnsweringJob, Line
from pipeline.errors import PipelineError
from pipeline.gateway.completions import completion
from pipeline.gateway.desk import Waiting, make_waiting
from pipeline.gateway.errors import ApiError, responses, translated
from pipeline.gateway.outputs import failure_of
from pipeline.gateway.requests import Asked, ChatRequest, chat_sha256, read_request
from pipeline.gateway.routes.files import Retries, is_retry
from pipeline.gateway.served import require_served
from pipeline.gateway.state import Gateway, TheCaller, TheGateway
from pipeline.gateway.streaming import DONE, KEEP_AWAKE, ChunkStream, event

router = APIRouter(prefix="/v1/chat", tags=["chat"])

AWAKE_S = 15.0
"""So often a stream says that it is there, where it has nothing to say."""
LOOK_S = 1.0
"""So often it is looked whether the client is still there."""


@router.post("/completions", responses=responses())
async def chat_completions(
    body: ChatRequest, request: Request, gateway: TheGateway, caller: TheCaller, retries: Retries = None
) -> Response:
    """Answer a conversation. With stream, what each segment adds is sent when the segment is stored.

    A client that asks again after it went away gets the answer that it has waited for.
    """
    asked = read_request(body, external_id="chat")
    if asked.require_workers is not False:
        await run_in_threadpool(_require_workers, gateway, asked)
    waiting = make_waiting(asked, caller, chat_sha256(body), is_retry=is_retry(retries))
    gateway.desk.put(waiting)
    if not await _stored(request, gateway, waiting):
        return Response(status_code=499)
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return StreamingResponse(_events(gateway, waiting, with_usage=with_usage), media_type="text/event-stream")
    return await _whole(request, gateway, waiting)


def _require_workers(gateway: Gateway, asked: Asked) -> None:
    with gateway.transaction() as connection:
        require_served(connection, asked.model, keys.find_alias(connection, asked.model))


async def _news(request: Request, waiting: Waiting) -> bool:
    """Wait for something new; False: the client has gone."""
    while not waiting.changed.is_set():
        try:
            await asyncio.wait_for(waiting.changed.wait(), LOOK_S)
        except TimeoutError:
            if await request.is_disconnected():
                return False
    waiting.changed.clear()
    return True


async def _stored(request: Request, gateway: Gateway, waiting: Waiting) -> bool:
    """Wait until it is stored; False: the client has gone. Raises what speaks against it."""
    while waiting.chat is None:
        if not await _news(request, waiting):
            gateway.desk.leave(waiting)
            return False
        if waiting.error is not None:
            raise waiting.error
    return True


async def _whole(request: Request, gateway: Gateway, waiting: Waiting) -> Response:
    while not waiting.is_done:
        if not await _news(request, waiting):
            gateway.desk.leave(waiting)
            return Response(status_code=499)  # nobody reads it
    assert waiting.chat is not None
    job, line = await run_in_threadpool(_read, gateway, waiting)
    await run_in_threadpool(gateway.desk.deliver, waiting)
    error = _error_of(line)
    if error is not None:
        raise error
    return JSONResponse(
        completion(
            job,
            line.samples,
            completion_id=waiting.chat.id,
            include=waiting.asked.include,
            ignored=waiting.asked.ignored,
        )
    )


def _read(gateway: Gateway, waiting: Waiting) -> tuple[AnsweringJob, Line]:
    """What is written so far."""
    assert waiting.chat is not None
    with_discarded = "discarded_text" in waiting.asked.include
    with gateway.transaction() as connection:
        job = answers.get_answering_job(connection, waiting.chat.job_id, waiting.chat.model)
        (line,) = answers.select_lines(
            connection, waiting.chat.job_id, [waiting.chat.external_id], with_discarded=with_discarded
        )
    return job, line


def _error_of(line: Line) -> ApiError | None:
    """Why there is no answer; None: there is one."""
    failed = next((sample for sample in line.samples if sample.state == "failed"), None)
    if failed is not None:
        status, code, message = failure_of(failed)
        return ApiError(status, message, code=code)
    if any(sample.state == "cancelled" for sample in line.samples):
        return ApiError(503, "The job that was to answer this was cancelled.", code="request_cancelled")
    return None


async def _events(gateway: Gateway, waiting: Waiting, *, with_usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events. Whoever stops reading leaves the answer to the next one who asks the same."""
    assert waiting.chat is not None
    stream = ChunkStream(completion_id=waiting.chat.id, include_usage=with_usage)
    is_delivered = False
    try:
        while not is_delivered:
            try:
                await asyncio.wait_for(waiting.changed.wait(), AWAKE_S)
            except TimeoutError:
                yield KEEP_AWAKE
                continue
            waiting.changed.clear()
            is_last = waiting.is_done
            job, line = await run_in_threadpool(_read, gateway, waiting)
            for chunk in stream.chunks(job, line):
                yield event(chunk)
            if is_last:
                for last in _ending(stream, job, line, with_usage=with_usage):
                    yield last
                await run_in_threadpool(gateway.desk.deliver, waiting)
                is_delivered = True
    except PipelineError as error:
        yield event(translated(error).body())
    finally:
        if not is_delivered:
            gateway.desk.leave(waiting)


def _ending(stream: ChunkStream, job: AnsweringJob, line: Line, *, with_usage: bool) -> list[bytes]:
    error = _error_of(line)
    if error is not None:
        return [event(error.body())]
    return [*([event(stream.usage_chunk(job, line))] if with_usage else []), DONE]

"""Results as the bytes of a file, piece by piece, in constant memory: whoever reads slowly holds up whoever writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pipeline.results.exports import ExportFormat, write_results

if TYPE_CHECKING:
    from pipeline.results.samples import Result

_PIECE = 2**16


def pieces_of(results: Iterable[Result], format: ExportFormat) -> Generator[bytes, None, None]:
    """What ``write_results`` writes. Raises what it raises; closing the iterator ends it."""
    reading, writing = os.pipe()
    failures: list[Exception] = []

    def write() -> None:
        try:
            with suppress(BrokenPipeError), os.fdopen(writing, "wb") as output:
                write_results(results, output, format)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=write, name="gateway writes results")
    thread.start()
    try:
        with os.fdopen(reading, "rb", buffering=0) as source:
            while piece := source.read(_PIECE):
                yield piece
    finally:
        thread.join()
    if failures:
        raise failures[0]


class Download(StreamingResponse):
    """Sends what a generator makes, and closes it when the reader goes: what it holds is not left to chance."""

    def __init__(self, content: Generator[bytes, None, None], **options: Any) -> None:
        super().__init__(content, **options)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(self._content.close)

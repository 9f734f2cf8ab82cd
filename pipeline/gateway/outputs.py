"""The output and error files of a batch, made of its samples line by line whenever somebody reads them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import orjson
from sqlalchemy import Connection

from pipeline.batches import StoredBatch
from pipeline.db.gateway import answers, batches
from pipeline.db.gateway.answers import AnsweringJob, Line, WrittenSample
from pipeline.gateway.completions import completion, split_text, usage_of
from pipeline.gateway.errors import error_body
from pipeline.texts import printable

_STATUS = {
    "bad_input": (400, "bad_input"),
    "budget": (400, "context_length_exceeded"),
    "engine_refused": (503, "engine_refused"),
    "engine_died": (500, "engine_died"),
    "timed_out": (504, "timed_out"),
    "internal": (500, "internal_error"),
}
"""HTTP's status and OpenAI's code for each class of error of a sample."""
_NEVER_RAN = {
    True: ("batch_expired", "This request could not be executed before the completion window expired."),
    False: ("batch_cancelled", "This request was cancelled with its batch."),
}


def render_line(batch: StoredBatch, job: AnsweringJob, line: Line) -> dict[str, Any]:
    """A line of the output file, or of the error file where it has no answer."""
    first = line.samples[0]
    told: dict[str, Any] = {"id": f"batch_req_{first.id}", "custom_id": line.custom_id, "response": None, "error": None}
    request_id = f"req_{first.id}"
    if line.is_complete:
        body = completion(
            job, line.samples, completion_id=f"chatcmpl-{first.id}", include=batch.options.get("include", ["segments"])
        )
        return told | {"response": {"status_code": 200, "request_id": request_id, "body": body}}
    failed = next((sample for sample in line.samples if sample.state == "failed"), None)
    if failed is not None:
        return told | {"response": _failure(failed, request_id)}
    code, message = _NEVER_RAN[batch.expiring_at is not None and batch.cancelling_at is None]
    return told | {"error": {"code": code, "message": message}}


def failure_of(sample: WrittenSample) -> tuple[int, str, str]:
    """HTTP's status, OpenAI's code, and the message of a failed sample."""
    status, code = _STATUS.get(sample.error_class or "", (500, "internal_error"))
    return status, code, printable(sample.error or "It failed.", most=1_000)


def _failure(sample: WrittenSample, request_id: str) -> dict[str, Any]:
    status, code, message = failure_of(sample)
    return {
        "status_code": status,
        "request_id": request_id,
        "body": error_body(status, message, code=code),
    }


def stream_output(
    connection: Connection, batch: StoredBatch, *, errors: bool | None, only_ended: bool = False
) -> Generator[tuple[Line, AnsweringJob, bytes]]:
    """The lines of a batch with what is told of each, in the order of the input, job by job.

    errors: those with an error, or those with an answer; None: both. only_ended: of a batch that is at work.
    """
    for batch_job in batches.select_jobs(connection, batch.id):
        job = answers.get_answering_job(connection, batch_job.job_id, batch_job.model)
        with_discarded = "discarded_text" in batch.options.get("include", ())
        for line in answers.stream_lines(connection, job, only_ended=only_ended, with_discarded=with_discarded):
            if errors is None or errors != line.is_complete:
                yield line, job, orjson.dumps(render_line(batch, job, line), option=orjson.OPT_APPEND_NEWLINE)


def stream_file(connection: Connection, batch: StoredBatch, *, errors: bool) -> Iterator[bytes]:
    """The output file, or the error file, in pieces."""
    piece = bytearray()
    for _, _, line in stream_output(connection, batch, errors=errors):
        piece += line
        if len(piece) > _PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


_PIECE = 2**16


class Measures:
    """What the answers of a batch come to."""

    def __init__(self) -> None:
        self.bytes = {True: 0, False: 0}
        self._input = self._cached = self._output = self._reasoning = 0

    def add(self, line: Line, job: AnsweringJob, rendered: bytes) -> None:
        """A line with an error counts too: its tokens were written."""
        self.bytes[line.is_complete] += len(rendered)
        used = usage_of(line.samples, [split_text(sample.output, job) for sample in line.samples])
        self._input += used["prompt_tokens"]
        self._cached += used["prompt_tokens_details"]["cached_tokens"]
        self._output += used["completion_tokens"]
        self._reasoning += used["completion_tokens_details"]["reasoning_tokens"]

    def usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self._input,
            "input_tokens_details": {"cached_tokens": self._cached},
            "output_tokens": self._output,
            "output_tokens_details": {"reasoning_tokens": self._reasoning},
            "total_tokens": self._input + self._output,
        }


def measure(connection: Connection, batch: StoredBatch) -> Measures:
    """Read all answers of a batch that has ended."""
    measures = Measures()
    for line, job, rendered in stream_output(connection, batch, errors=None):
        measures.add(line, job, rendered)
    return measures

"""What a client is told that cannot be served: OpenAI's error object, and nothing of the inside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.types import Scope

from pipeline.errors import ConfigurationError, JobError, NotFound, PipelineError, ServiceUnavailable
from pipeline.texts import printable

log = logging.getLogger(__name__)

MAX_MESSAGE = 1_000


class ErrorBody(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="forbid")

    message: str
    """A sentence for a person."""
    type: str
    """invalid_request_error, authentication_error, permission_error, not_found_error, rate_limit_error or
    server_error."""
    param: str | None
    """The part of the request that is wrong."""
    code: str | None
    """A word for programs."""


class ErrorResponse(BaseModel):
    """The body of every answer that is no success."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorBody


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        super().__init__(message)

    @property
    def type(self) -> str:
        return type_of(self.status)

    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, code=self.code, param=self.param)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def type_of(status: int) -> str:
    """The type of error that a status has."""
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object. What a message quotes of the request commands no terminal."""
    told = printable(message, most=MAX_MESSAGE)
    shown = None if param is None else printable(param, most=200)
    return {"error": {"message": told, "type": type_of(status), "param": shown, "code": code}}


def bad(message: str, *, code: str | None = None, param: str | None = None) -> ApiError:
    """A request that will never be served: the official client does not repeat a 400."""
    return ApiError(400, message, code=code, param=param)


def missing(kind: str, asked: str) -> ApiError:
    """Something that is not there, or is somebody else's."""
    return ApiError(404, f"No {kind} found with id '{printable(asked, most=100)}'.", code="not_found")


def translated(error: PipelineError) -> ApiError:
    """An error of the pipeline as a client is told it."""
    match error:
        case ServiceUnavailable():
            return ApiError(503, "The database cannot be reached; try again.", code="service_unavailable")
        case NotFound():
            return ApiError(404, str(error), code="not_found")
        case JobError() | ConfigurationError():
            return bad(str(error), code="bad_input")
        case _:
            return bad(str(error))


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer besides its success, for its documentation."""
    return {status: {"model": ErrorResponse} for status in (*statuses, 400, 401, 403, 404, 413, 429, 500, 503)}


def install(app: FastAPI, respond: Callable[[Scope, ApiError], Response]) -> None:
    """Have every kind of failure answered in the one shape that respond makes."""

    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return respond(request.scope, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(request.scope, _no_json(request, error) or invalid(error.errors()))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(request.scope, _http_error(error))

    async def on_pipeline(request: Request, error: Exception) -> Response:
        assert isinstance(error, PipelineError)
        if isinstance(error, ServiceUnavailable):
            log.warning("gateway: %s", printable(str(error)))
        return respond(request.scope, translated(error))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(PipelineError, on_pipeline)


def _no_json(request: Request, error: RequestValidationError) -> ApiError | None:
    """A body that was read as plain bytes, as of ``curl -d`` without a header."""
    if not isinstance(error.body, bytes) or not error.body:
        return None
    sent = request.headers.get("content-type") or "none"
    return bad(
        f"The body must be JSON, sent with 'Content-Type: application/json'; the header was {sent}.",
        code="invalid_content_type",
    )


def _http_error(error: HTTPException) -> ApiError:
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            return ApiError(404, "There is nothing at this address.", code="unknown_url", headers=headers)
        case 405:
            return ApiError(405, "This address does not take this method.", code="wrong_method", headers=headers)
        case 413:
            return ApiError(413, str(error.detail), code="file_too_large", headers=headers)
        case status:
            return ApiError(status, str(error.detail), headers=headers)


UNSUPPORTED = frozenset({
    "logprobs", "top_logprobs", "logit_bias", "response_format", "tools", "tool_choice", "functions", "function_call",
    "modalities", "audio", "echo", "best_of", "suffix", "prompt_logprobs", "use_beam_search", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "prediction", "web_search_options",
    "include_reasoning", "service_tier",
})  # fmt: skip
"""Parameters that take a value only where it changes nothing."""
NOT_SUPPORTED = "not_supported"
"""The type of a fault that a validator finds in what no model here can do."""
NEUTRAL = "is not supported here, or only with a value that changes nothing"


def invalid(faults: Sequence[Any]) -> ApiError:
    """The first fault of a body, in OpenAI's words."""
    fault = _closest(faults)
    place = [str(part) for part in fault["loc"] if not _is_added(str(part))]
    param = ".".join(place) or None
    kind = str(fault["type"])
    if kind == "json_invalid":
        return bad("The body is not parseable as valid JSON.", code="invalid_json")
    if kind == NOT_SUPPORTED:
        return bad(f"'{param}' is not supported: {fault['msg']}.", code="unsupported_parameter", param=param)
    if kind == "extra_forbidden":
        return bad(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    if kind == "missing":
        return bad(f"Missing required parameter: '{param or 'body'}'.", code="missing_required_parameter", param=param)
    if place and place[0] in UNSUPPORTED:
        return bad(f"'{place[0]}' {NEUTRAL}.", code="unsupported_parameter", param=place[0])
    said = str(fault["msg"]).removeprefix("Value error, ")
    return bad(f"Invalid value for '{param or 'body'}': {said}.", code=_code(kind), param=param)


def _closest(faults: Sequence[Any]) -> Any:
    """The fault to tell: the first, but of a value that may have several types, that of the type that it has."""
    first = faults[0]
    *place, tried = first["loc"] or ("",)
    if first["type"] != "string_type" or tried not in ("str", "constrained-str", "function-after[_storable(), str]"):
        return first
    others = (fault for fault in faults[1:] if list(fault["loc"][: len(place)]) == place)
    return next((fault for fault in others if not fault["type"].endswith("list_type")), first)


_SOURCES = ("body", "query", "path", "header", "form")


def _is_added(part: str) -> bool:
    """Whether it is no name of the request's, but where pydantic looked, or which of several types it tried."""
    return part in (*_SOURCES, "str") or "[" in part.removeprefix("expires_after[") or part.startswith("constrained-")


def _code(kind: str) -> str:
    """As OpenAI calls the commonest faults."""
    match kind:
        case "less_than_equal" | "less_than":
            return "integer_above_max_value"
        case "greater_than_equal" | "greater_than":
            return "integer_below_min_value"
        case _ if kind.endswith(("_type", "_parsing")):
            return "invalid_type"
        case _:
            return "invalid_value"

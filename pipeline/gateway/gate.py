"""The gate before every request: an id for it, who asks, how often, and how much may be sent.

All of it is settled before the first byte of the body is read.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.batches import Caller
from pipeline.errors import PipelineError
from pipeline.gateway.browsers import cookie_key, is_open, is_page
from pipeline.gateway.errors import ApiError, translated
from pipeline.gateway.keys import Keys, Limiter, may_change
from pipeline.gateway.measures import Measures

log = logging.getLogger(__name__)

_OPEN = ("/health", "/ready", "/openapi.json", "/metrics")
"""Paths that need no key."""
_FORM_BYTES = 2**16
"""What a form has around the file in it."""
_SAFE = ("GET", "HEAD", "OPTIONS")


class Gate:
    """ASGI middleware. What it lets through finds its caller in ``request.state.caller``."""

    def __init__(
        self, app: ASGIApp, *, keys: Keys, measures: Measures, respond: Callable[[Scope, ApiError], ASGIApp],
        max_body_bytes: int, max_file_bytes: int, is_local: bool,
    ) -> None:  # fmt: skip
        """respond: makes the answer that says why there is no other."""
        self._app = app
        self._keys = keys
        self._measures = measures
        self._respond = respond
        self._limiter = Limiter()
        self._max_body_bytes = max_body_bytes
        self._max_file_bytes = max_file_bytes
        self._is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        answer = _Answer(send, request_id, scope["path"], self._measures)
        if scope["method"] == "HEAD" and scope["path"] in _OPEN:
            scope = {**scope, "method": "GET"}  # what watches a service asks so; the server sends no body
        try:
            _refuse_nul(scope)
            caller, key = await self._let_in(scope)
            scope.setdefault("state", {}).update(caller=caller, key=key, request_id=request_id)
            limit = self._limit(scope, caller)
            _refuse_announced(scope, limit)
        except ApiError as error:
            await self._respond(scope, error)(scope, receive, answer)
            return
        except PipelineError as error:
            await self._respond(scope, translated(error))(scope, receive, answer)
            return
        await self._run(scope, _counted(receive, limit), answer, request_id)

    async def _run(self, scope: Scope, receive: Receive, send: _Answer, request_id: str) -> None:
        """What breaks inside is logged with its traceback, and told without."""
        try:
            await self._app(scope, receive, send)
        except Exception:
            log.exception("gateway: request %s to %s broke", request_id, scope["path"][:200])
            if not send.has_begun:
                told = ApiError(500, f"The gateway broke on this; its log has {request_id}.", code="internal_error")
                await self._respond(scope, told)(scope, receive, send)

    async def _let_in(self, scope: Scope) -> tuple[Caller, str | None]:
        """Who asks, and with which key. Pages take it from a cookie, the API from its header alone: a request that a
        browser makes for another site has the cookie too."""
        if scope["path"] in _OPEN:
            return Caller(), None
        headers = _headers(scope)
        if self._is_local:
            _refuse_other_sites(headers)
        key = _bearer(headers.get("authorization"))
        if is_page(scope["path"]):
            key = key or cookie_key(headers.get("cookie"))
            if is_open(scope["path"]):
                return Caller(), key
        caller = await run_in_threadpool(self._keys.caller, key)
        if caller is None:
            told = await run_in_threadpool(self._why_not, key)
            raise ApiError(401, told, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        if scope["method"] not in _SAFE and not may_change(caller):
            raise ApiError(403, "This key may read, and nothing else.", code="read_only_key")
        wait_s = self._limiter.wait_s(caller)
        if wait_s:
            # Above 120 s the official client gives up at once.
            headers = {"retry-after": str(min(120, math.ceil(wait_s)))}
            raise ApiError(429, "Rate limit reached for this key.", code="rate_limit_exceeded", headers=headers)
        return caller, key

    def _why_not(self, key: str | None) -> str:
        if not self._keys.are_there():
            return "This gateway has no key yet, and lets nobody in without: `specthink key add NAME` makes one."
        return "Incorrect API key provided; `specthink key add NAME` makes one." if key else "You sent no API key."

    def _limit(self, scope: Scope, caller: Caller) -> int:
        if scope["path"].rstrip("/") != "/v1/files":
            return self._max_body_bytes
        return min(self._max_file_bytes, caller.max_file_bytes or self._max_file_bytes) + _FORM_BYTES


class _Answer:
    """Sends the answer with its request id, and knows whether it has begun."""

    def __init__(self, send: Send, request_id: str, path: str, measures: Measures) -> None:
        self._send = send
        self._request_id = request_id
        self._path = path
        self._measures = measures
        self._began = time.monotonic()
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self._measures.answered(self._path, message["status"], time.monotonic() - self._began)
            extra = [(b"x-request-id", self._request_id.encode()), (b"x-content-type-options", b"nosniff")]
            message["headers"] = [*message.get("headers", []), *extra]
        await self._send(message)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _bearer(header: str | None) -> str | None:
    kind, _, key = (header or "").partition(" ")
    return key.strip() if kind.lower() == "bearer" and key.strip() else None


def _refuse_other_sites(headers: dict[str, str]) -> None:
    """A page in this machine's browser may reach a loopback address; it cannot choose these headers."""
    if not is_loopback(_host(f"//{headers.get('host', '')}")):
        raise ApiError(403, "This gateway listens on loopback and answers to no other name.", code="wrong_host")
    origin = headers.get("origin")
    if origin is not None and not is_loopback(_host(origin)):
        raise ApiError(403, "Pages of other sites may not ask this gateway.", code="wrong_origin")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_nul(scope: Scope) -> None:
    """Postgres keeps no text with a NUL byte, so that nothing here has one in its name."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
        raise ApiError(400, "The address has a NUL byte in it.", code="invalid_value")


def _refuse_announced(scope: Scope, limit: int) -> None:
    announced = _headers(scope).get("content-length", "")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        raise too_large(limit)


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is larger than {limit:,} bytes.", code="file_too_large")


def _counted(receive: Receive, limit: int) -> Callable[[], Awaitable[Any]]:
    """The body, cut off where it is larger than allowed, whatever its headers said."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, too_large(limit).message)
        return message

    return counted

"""The lines of a batch's file: each is a request, and a fault in one of them is told with its line.

One line at a time is in memory; of those before it, what their ids hash to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from pipeline.gateway.errors import ApiError
from pipeline.gateway.requests import Asked, parse_request, read_request
from pipeline.problems.lines import Fault, UnreadableFile, read_lines
from pipeline.problems.sets import MAX_ID_CHARS
from pipeline.problems.values import check_text
from pipeline.texts import printable

CHAT = "/v1/chat/completions"
ENDPOINTS = (CHAT,)
"""What a batch may ask."""
MAX_FAULTS = 100
"""So many are listed; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFault:
    """Something wrong in a line; line: 1-based, None for the file as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def plain(self) -> dict[str, Any]:
        return {
            "code": self.code, "line": self.line, "message": printable(self.message, most=500),
            "param": None if self.param is None else printable(self.param, most=200),
        }  # fmt: skip


class BadLine(Exception):
    def __init__(self, fault: LineFault) -> None:
        self.fault = fault


def read_requests(file: IO[bytes], *, endpoint: str, max_line_bytes: int) -> Iterator[Asked | LineFault]:
    """Every request of a file, or what is wrong with it. Blank lines are skipped."""
    seen: set[bytes] = set()
    try:
        for number, line in read_lines(file, max_line_bytes):
            if isinstance(line, Fault):
                yield LineFault(code="invalid_json_line", message=line.reason, line=number)
            elif line.strip():
                yield _read_request(line, number, endpoint, seen)
    except UnreadableFile as error:
        yield LineFault(code="invalid_json_line", message=str(error), line=1)


def _read_request(line: str, number: int, endpoint: str, seen: set[bytes]) -> Asked | LineFault:
    try:
        values = _parse(line, number)
        custom_id = _custom_id(values, number, seen)
        _check_route(values, number, endpoint)
        return _asked(values, custom_id, number)
    except BadLine as bad:
        return bad.fault


def _parse(line: str, number: int) -> dict[str, Any]:
    values = parse_object(line)
    if values is None:
        told = "This line is not parseable as valid JSON."
        raise BadLine(LineFault(code="invalid_json_line", message=told, line=number))
    return values


def parse_object(line: str) -> dict[str, Any] | None:
    """A line's JSON object; None where it is none. What JSON does not know, as NaN, is none."""
    import orjson

    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return values if isinstance(values, dict) else None


def _custom_id(values: dict[str, Any], number: int, seen: set[bytes]) -> str:
    if "custom_id" not in values:
        raise _missing("custom_id", number)
    custom_id = values["custom_id"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_CHARS or not _is_storable(custom_id):
        told = f"'custom_id' must be a text of 1 to {MAX_ID_CHARS} characters."
        raise BadLine(LineFault(code="invalid_value", message=told, line=number, param="custom_id"))
    digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        told = f"The custom_id '{custom_id}' stands in an earlier line too."
        raise BadLine(LineFault(code="duplicate_custom_id", message=told, line=number, param="custom_id"))
    seen.add(digest)
    return custom_id


def _is_storable(text: str) -> bool:
    try:
        check_text(text)
    except ValueError:
        return False
    return True


def _check_route(values: dict[str, Any], number: int, endpoint: str) -> None:
    if values.get("method", "POST") != "POST":
        raise BadLine(LineFault(code="invalid_method", message="'method' must be POST.", line=number, param="method"))
    for name in ("url", "body"):
        if name not in values:
            raise _missing(name, number)
    if values["url"] != endpoint:
        told = f"'url' must be the batch's endpoint, {endpoint}."
        raise BadLine(LineFault(code="url_mismatch", message=told, line=number, param="url"))
    unknown = sorted(set(values) - {"custom_id", "method", "url", "body"})
    if unknown:
        told = f"Unknown parameter: '{unknown[0]}'."
        raise BadLine(LineFault(code="unknown_parameter", message=told, line=number, param=unknown[0]))


def _asked(values: dict[str, Any], custom_id: str, number: int) -> Asked:
    try:
        request = parse_request(values["body"])
        if request.stream:
            raise _not_in_a_batch("stream", number)
        if request.specthink and request.specthink.model_fields_set - {"policy_options"}:
            raise _not_in_a_batch("specthink", number)
        return read_request(request, external_id=custom_id)
    except ApiError as error:
        fault = LineFault(code=error.code or "invalid_value", message=error.message, line=number, param=error.param)
        raise BadLine(fault) from error


def _not_in_a_batch(name: str, number: int) -> BadLine:
    told = {
        "stream": "'stream' must not be true in a batch.",
        "specthink": "'specthink' of a line takes policy_options alone; the rest is given with the batch.",
    }
    return BadLine(LineFault(code="unsupported_parameter", message=told[name], line=number, param=name))


def _missing(name: str, number: int) -> BadLine:
    told = f"Missing required parameter: '{name}'."
    return BadLine(LineFault(code="missing_required_parameter", message=told, line=number, param=name))


class Faults:
    """The first faults of a file, and how many there are."""

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[LineFault] = []

    def add(self, fault: LineFault) -> None:
        self.count += 1
        if len(self._shown) < MAX_FAULTS:
            self._shown.append(fault)

    def plain(self) -> list[dict[str, Any]]:
        """As a batch tells them; where some are left out, the last one says how many."""
        told = [fault.plain() for fault in self._shown]
        if self.count > len(told):
            rest = f"{self.count - len(told)} more lines are bad and not listed."
            told.append(LineFault(code="more_errors", message=rest).plain())
        return told

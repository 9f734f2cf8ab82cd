"""Rows of JSON: one object a line, an array of objects, or an object that has one such array in it."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from pipeline.problems.columns import USUAL_COLUMNS
from pipeline.problems.lines import BadLine, Fault, Row, read_lines, refuse_wide
from pipeline.problems.values import MAKE_VALUES, parse_json, type_name

_CHUNK = 2**16
_SPACE = " \t\r\n"


def read_jsonl(file: IO[bytes], max_line_bytes: int) -> Iterator[Row | Fault]:
    for number, line in read_lines(file, max_line_bytes):
        if isinstance(line, Fault):
            yield line
        elif line.strip():
            yield _parse_row(number, line)


def _parse_row(number: int, line: str) -> Row | Fault:
    try:
        values = parse_json(line)
    except ValueError as error:
        return Fault(number=number, reason=str(error))
    return _make_row(number, values)


def _make_row(number: int, values: Any) -> Row | Fault:
    if not isinstance(values, dict):
        return Fault(number=number, reason=f"not a JSON object but {type_name(values)}")
    return Row(number=number, values=values)


def read_json(file: IO[bytes], max_row_bytes: int) -> Iterator[Row | Fault]:
    """Whichever of the three a .json file is: many are JSONL under that name."""
    start = file.read(max_row_bytes)
    first_line = start.lstrip(codecs.BOM_UTF8 + _SPACE.encode()).partition(b"\n")[0]
    rest = io.BufferedReader(_Joined(start, file))
    if first_line.startswith(b"{") and _is_row(first_line, is_all=len(start.split()) == len(first_line.split())):
        yield from read_jsonl(rest, max_row_bytes)
        return
    refuse_wide(start)
    document = _Document(rest, max_row_bytes)
    try:
        yield from document.rows()
    except BadLine as error:
        yield error.fault  # what comes after it cannot be told apart from the row that it broke


def _is_row(line: bytes, *, is_all: bool) -> bool:
    """Whether a line is a row. is_all: nothing follows it; then it may also be an object that has rows in it."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return False
    asks = any(name.lower().replace(" ", "_") in USUAL_COLUMNS["problem"] for name in values)
    return not is_all or asks or not any(_are_rows(value) for value in values.values())


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


class _Joined(io.RawIOBase):
    """What was read already, and what follows it."""

    def __init__(self, start: bytes, rest: IO[bytes]) -> None:
        self._start = io.BytesIO(start)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # all that BufferedReader passes
        piece = self._start.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class _Document:
    """One JSON value over many lines, read a row at a time."""

    def __init__(self, file: IO[bytes], max_row_bytes: int) -> None:
        self._file = file
        self._decoder = json.JSONDecoder(**MAKE_VALUES)
        self._text = codecs.getincrementaldecoder("utf-8-sig")()
        self._max_row_chars = max_row_bytes
        self._buffer = ""
        self._line = 1

    def rows(self) -> Iterator[Row | Fault]:
        match self._next():
            case "":
                return
            case "[":
                yield from self._array()
            case "{":
                yield from self._arrays_in_object()
            case _:
                raise BadLine(self._line, "not JSON: neither an array nor an object")
        if self._next():
            raise BadLine(self._line, "something follows the end of the JSON value")

    def _array(self) -> Iterator[Row | Fault]:
        self._take("[")
        while self._next() != "]":
            number = self._line
            yield _make_row(number, self._value())
            if self._next() != "]":
                self._take(",")
        self._take("]")

    def _arrays_in_object(self) -> Iterator[Row | Fault]:
        """The rows of the one array of objects that an object has; whatever else it says is passed over."""
        self._take("{")
        found: list[str] = []
        while self._next() != "}":
            name = self._value()
            self._take(":")
            if self._next() == "[" and self._begins_with_object():
                found.append(str(name))
                if len(found) > 1:
                    raise BadLine(self._line, f"it has two arrays of objects: {found[0]!r} and {found[1]!r}")
                yield from self._array()
            else:
                self._value()
            if self._next() != "}":
                self._take(",")
        self._take("}")
        if not found:
            raise BadLine(1, "a JSON object without an array of objects in it; write one problem a line, or an array")

    def _begins_with_object(self) -> bool:
        rest = self._buffer[1:].lstrip(_SPACE)
        while not rest and self._read():
            rest = self._buffer[1:].lstrip(_SPACE)
        return rest.startswith("{")

    def _next(self) -> str:
        """The next character that is no space; '' at the end."""
        while True:
            stripped = self._buffer.lstrip(_SPACE)
            self._line += self._buffer.count("\n", 0, len(self._buffer) - len(stripped))
            self._buffer = stripped
            if stripped or not self._read():
                return stripped[:1]

    def _take(self, wanted: str) -> None:
        found = self._next()
        if found != wanted:
            raise BadLine(self._line, f"broken JSON: {wanted!r} expected, not {found or 'the end'!r}")
        self._buffer = self._buffer[1:]

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer)
            except json.JSONDecodeError as error:
                if len(self._buffer) > self._max_row_chars:
                    raise BadLine(self._line, f"a row of more than {self._max_row_chars} bytes") from error
                if not self._read(at_least=len(self._buffer)):
                    line = self._line + error.lineno - 1
                    raise BadLine(line, f"broken JSON: {error.msg} at column {error.colno}") from error
                continue
            except RecursionError as error:
                raise BadLine(self._line, "broken JSON: nested too deeply") from error
            except ValueError as error:
                raise BadLine(self._line, str(error)) from error
            if end < len(self._buffer) or not self._read():  # a number may go on
                self._line += self._buffer.count("\n", 0, end)
                self._buffer = self._buffer[end:]
                return value

    def _read(self, at_least: int = 0) -> bool:
        """Whether there was more."""
        piece = self._file.read(max(_CHUNK, at_least))
        if b"\0" in piece:
            raise BadLine(self._line, "a NUL byte in the file")
        try:
            self._buffer += self._text.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise BadLine(self._line, f"not UTF-8: byte 0x{error.object[error.start]:02x}") from error
        return bool(piece)

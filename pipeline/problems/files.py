"""Reads the rows of a problem file, one at a time, and says for each broken one where it is and why.

Knows nothing of problems: a row is a dict of column names and plain values. Numbers keep the form they were written
in (``NumberText``), because a reference answer "1.0" is not "1".
"""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

MAX_LINE_BYTES = 16 * 2**20
"""Longest line of a JSONL file, and longest line or cell of a CSV file."""
MAX_DEPTH = 100
"""Deepest nesting of a value."""
_BOM = b"\xef\xbb\xbf"


class NumberText(str):
    """A number in the form in which the file has it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. number: its first line, or its row in a Parquet file; both 1-based.

    values: by column; None or '' (how CSV writes None) where the row has none.
    """

    number: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong in one line or row; number as in ``Row``, None for the file as a whole."""

    number: int | None
    reason: str


class UnreadableFile(Exception):
    """The file as a whole cannot be read; the message is the reason."""


class _BadLine(Exception):
    def __init__(self, number: int, reason: str) -> None:
        self.fault = Fault(number=number, reason=reason)


def unit_name(path: Path) -> str:
    """What a row's number counts in this file."""
    return "row" if path.suffix.lower() == ".parquet" else "line"


def read_rows(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Row | Fault]:
    """The rows of a file in order, with a Fault in place of each broken one. Raises UnreadableFile."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UnreadableFile(f"unknown ending {path.suffix!r}; it must be one of {', '.join(sorted(_READERS))}")
    with _open_regular(path) as file:
        yield from reader(file, max_line_bytes)


def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file. Never blocks: a FIFO or a device is refused before and after it is opened."""
    try:
        _refuse_irregular(os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise UnreadableFile(getattr(error, "strerror", None) or str(error)) from error
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode)
    except UnreadableFile:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _refuse_irregular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UnreadableFile("a folder, not a file")
    if not stat.S_ISREG(mode):
        raise UnreadableFile("not a regular file (a pipe, socket or device)")


def _read_lines(file: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, str | Fault]]:
    """1-based line numbers and the lines as text, line ends kept; never holds more than one line."""
    number = 0
    while line := file.readline(max_line_bytes + 1):
        number += 1
        if len(line) > max_line_bytes:
            _skip_line(file, line)
            yield number, Fault(number=number, reason=f"longer than {max_line_bytes} bytes")
            continue
        yield number, _decode_line(number, line.removeprefix(_BOM) if number == 1 else line)


def _skip_line(file: BinaryIO, start: bytes) -> None:
    part = start
    while part and not part.endswith(b"\n"):
        part = file.readline(2**16)


def _decode_line(number: int, line: bytes) -> str | Fault:
    if b"\0" in line:
        return Fault(number=number, reason=f"a NUL byte at byte {line.index(0) + 1} of the line")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
        return Fault(number=number, reason=reason)


def _read_jsonl(file: BinaryIO, max_line_bytes: int) -> Iterator[Row | Fault]:
    for number, line in _read_lines(file, max_line_bytes):
        if isinstance(line, Fault):
            yield line
        elif line.strip():
            yield _parse_json_row(number, line)


def _parse_json_row(number: int, line: str) -> Row | Fault:
    try:
        values = parse_json(line)
    except ValueError as error:
        return Fault(number=number, reason=str(error))
    if not isinstance(values, dict):
        return Fault(number=number, reason=f"not a JSON object but {type_name(values)}")
    return Row(number=number, values=values)


def parse_json(text: str) -> Any:
    """A JSON value with its numbers as NumberText. Raises ValueError with a reason that a person can act on."""
    try:
        return json.loads(
            text,
            parse_int=NumberText,
            parse_float=NumberText,
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_repeated_keys,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("broken JSON: nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"broken JSON: {name} is not a JSON number")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice in one object")
    return values


def _read_csv(file: BinaryIO, max_line_bytes: int) -> Iterator[Row | Fault]:
    csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))  # of the whole process; 128 KiB by default
    reader = csv.reader(_csv_lines(file, max_line_bytes), strict=True)
    number = 1
    header: list[str] | None = None
    try:
        for cells in reader:
            if header is None and cells:
                header = cells
                _check_header(number, header)
            elif header is not None and cells:
                yield _make_csv_row(number, header, cells)
            number = reader.line_num + 1
    except _BadLine as error:
        yield error.fault  # the rest of the file cannot be told apart from the row that this line broke
    except csv.Error as error:
        yield Fault(number=number, reason=f"broken CSV: {error}")


def _csv_lines(file: BinaryIO, max_line_bytes: int) -> Iterator[str]:
    for number, line in _read_lines(file, max_line_bytes):
        if isinstance(line, Fault):
            raise _BadLine(number, line.reason)
        yield line


def _check_header(number: int, header: list[str]) -> None:
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise _BadLine(number, f"the header has the column {repeated[0]!r} twice")


def _make_csv_row(number: int, header: list[str], cells: list[str]) -> Row | Fault:
    """A column without a name (the index that pandas writes) is dropped."""
    if len(cells) != len(header):
        return Fault(number=number, reason=f"{len(cells)} cells, but the header has {len(header)}")
    values: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=True) if name}
    if values.get("choices", "").lstrip().startswith("["):
        try:
            values["choices"] = parse_json(values["choices"])
        except ValueError as error:
            return Fault(number=number, reason=f"'choices' starts like a list: {error}")
    return Row(number=number, values=values)


def _read_parquet(file: BinaryIO, max_line_bytes: int) -> Iterator[Row | Fault]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UnreadableFile(f"it has the column {repeated[0]!r} twice")
        for batch in table.iter_batches(batch_size=256):
            for values in batch.to_pylist():
                number += 1
                yield _make_parquet_row(number, values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"broken Parquet after row {number}: {str(error).splitlines()[0]}") from error


def _make_parquet_row(number: int, values: dict[str, Any]) -> Row | Fault:
    try:
        plain = {name: _from_arrow(value) for name, value in values.items()}
    except TypeError as error:
        return Fault(number=number, reason=str(error))
    return Row(number=number, values=plain)


def _from_arrow(value: Any) -> Any:
    match value:
        case None | bool() | str():
            return value
        case float() if math.isnan(value):
            return None  # how tables write a missing number
        case int() | float() | decimal.Decimal():
            return NumberText(value)
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case list() | tuple():
            return [_from_arrow(item) for item in value]
        case dict():
            return {str(name): _from_arrow(item) for name, item in value.items()}
    raise TypeError(f"a value of type {type(value).__name__}, which a problem cannot have")


def to_plain(value: Any, *, depth: int = 0) -> Any:
    """The value with numbers as int and float, ready for a database. Raises ValueError where one cannot keep it."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    match value:
        case NumberText():
            return _to_number(value)
        case str():
            check_text(value)
            return value
        case list():
            return [to_plain(item, depth=depth + 1) for item in value]
        case dict():
            for name in value:
                check_text(name)
            return {name: to_plain(item, depth=depth + 1) for name, item in value.items()}
    return value


def _to_number(text: NumberText) -> int | float:
    if text.removeprefix("-").isdigit():
        return int(text)  # ValueError beyond Python's limit of digits
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


def check_text(text: str) -> None:
    """Raises ValueError for characters that cannot be stored: NUL, and halves of surrogate pairs."""
    if "\0" in text:
        raise ValueError("a NUL byte (written as \\u0000)")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair (\\u{ord(text[error.start]):04x})") from error


def type_name(value: Any) -> str:
    """What a person calls the type of a JSON value."""
    names = {NumberText: "a number", str: "text", bool: "true or false", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


_READERS: dict[str, Callable[[BinaryIO, int], Iterator[Row | Fault]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

"""Reads the rows of a problem file, one at a time, and says for each broken one where it is and why.

Knows nothing of problems: a row is a dict of column names and plain values. Numbers keep the form they were written
in (``NumberText``), because a reference answer "1.0" is not "1".

A file may be hostile: whatever its bytes are, reading ends, with rows and faults or with UnreadableFile, and holds no
more than one row and, for Parquet, what its decoder may take (``pipeline.problems.decode_parquet``).
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from pipeline.problems import decode_parquet

MAX_LINE_BYTES = 16 * 2**20
"""Longest row: a line of JSONL, a row of CSV with all of its lines, a row of Parquet as JSON."""
MAX_FILE_BYTES = 2**30
"""Largest file, because a set is kept in memory while it is submitted. Measured: 1,000 MiB of JSONL, 1.1 million
problems, take 2.4 GiB; a file of other contents that takes more than three times the limit is refused too."""
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


def read_rows(
    path: Path, *, max_file_bytes: int = MAX_FILE_BYTES, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Row | Fault]:
    """The rows of a file in order, with a Fault in place of each broken one. Raises UnreadableFile."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UnreadableFile(f"unknown ending {path.suffix!r}; it must be one of {', '.join(sorted(_READERS))}")
    with _open_regular(path, max_file_bytes) as file:
        before = os.fstat(file.fileno())
        try:
            yield from reader(file, max_line_bytes)
        except OSError as error:
            raise UnreadableFile(f"it cannot be read to its end: {error.strerror or error}") from error
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UnreadableFile("it changed while it was read; try again when it is complete")


def _open_regular(path: Path, max_file_bytes: int) -> BinaryIO:
    """Open a regular file. Never blocks: a FIFO or a device is refused before and after it is opened."""
    try:
        _refuse_irregular(os.stat(path), max_file_bytes)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise UnreadableFile(getattr(error, "strerror", None) or str(error)) from error
    try:
        _refuse_irregular(os.fstat(descriptor), max_file_bytes)
    except UnreadableFile:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _refuse_irregular(found: os.stat_result, max_file_bytes: int) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise UnreadableFile("a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFile("not a regular file (a pipe, socket or device)")
    if found.st_size == 0:  # as the kernel's files in /proc say of themselves, some of which never end
        raise UnreadableFile("empty: it holds no problem")
    if found.st_size > max_file_bytes:
        raise UnreadableFile(
            f"it has {found.st_size / 2**20:,.0f} MiB, and {max_file_bytes / 2**20:,.0f} MiB is the limit; split it, "
            "or leave out the columns that are not needed"
        )


def _read_lines(file: IO[bytes], max_line_bytes: int) -> Iterator[tuple[int, str | Fault]]:
    """1-based line numbers and the lines as text, line ends kept; never holds more than one line."""
    number = 0
    while line := file.readline(max_line_bytes + 1):
        number += 1
        if len(line) > max_line_bytes:
            _skip_line(file, line)
            yield number, Fault(number=number, reason=f"longer than {max_line_bytes} bytes")
            continue
        yield number, _decode_line(number, line.removeprefix(_BOM) if number == 1 else line)


def _skip_line(file: IO[bytes], start: bytes) -> None:
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
        raise ValueError(f"the key {_first_repeated(name for name, _ in pairs)!r} occurs twice in one object")
    return values


def _first_repeated(names: Iterable[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if name and times > 1), None)


def _read_csv(file: BinaryIO, max_line_bytes: int) -> Iterator[Row | Fault]:
    csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))  # of the whole process; 128 KiB by default
    lines = _CsvLines(file, max_line_bytes)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if header is None and cells:
                header = cells
                _check_header(lines.first, header)
            elif header is not None and cells:
                yield _make_csv_row(lines.first, header, cells)
            lines.begin_row()
    except _BadLine as error:
        yield error.fault  # the rest of the file cannot be told apart from the row that this line broke
    except csv.Error as error:
        yield Fault(number=lines.first, reason=f"broken CSV: {error}")


class _CsvLines:
    """A CSV file's lines, of which a row may have many. first: the number of the row's first line."""

    def __init__(self, file: BinaryIO, max_row_bytes: int) -> None:
        self._lines = _read_lines(file, max_row_bytes)
        self._max_row_chars = max_row_bytes
        self._row_chars = 0
        self._last = 0
        self.first = 1

    def begin_row(self) -> None:
        self.first = self._last + 1
        self._row_chars = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            if isinstance(line, Fault):
                raise _BadLine(number, line.reason)
            self._last = number
            self._row_chars += len(line)
            if self._row_chars > self._max_row_chars:
                raise _BadLine(self.first, f"a row of more than {self._max_row_chars} bytes; is a quote left open?")
            yield line


def _check_header(number: int, header: list[str]) -> None:
    repeated = _first_repeated(header)
    if repeated is not None:
        raise _BadLine(number, f"the header has the column {repeated!r} twice")


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
    command = [sys.executable, "-P", decode_parquet.__file__, str(decode_parquet.MAX_MEMORY)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # else numpy reserves memory for each core
    with subprocess.Popen(
        command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as decoder:
        assert decoder.stdout is not None
        try:
            number = 0
            for number, line in _read_lines(decoder.stdout, max_line_bytes):
                entry = line if isinstance(line, Fault) else _parse_decoded(number, line)
                if entry is None:
                    return
                yield entry
            raise UnreadableFile(f"broken Parquet after row {number}: {_ending(decoder.wait())}")
        finally:
            decoder.kill()


def _parse_decoded(number: int, line: str) -> Row | Fault | None:
    """None at the end of the file. Raises UnreadableFile where the decoder gave up."""
    try:
        message = parse_json(line)
    except ValueError as error:
        return Fault(number=number, reason=str(error))
    if "row" in message:
        return Row(number=number, values=message["row"])
    if "fault" in message:
        return Fault(number=number, reason=message["fault"])
    if "broken" in message:
        raise UnreadableFile(f"broken Parquet {message['broken']}")
    return None


def _ending(status: int) -> str:
    """How the decoder ended without a word."""
    if status == -signal.SIGXCPU:
        return f"it takes longer than {decode_parquet.MAX_CPU_S} s to decode"
    if status < 0:
        allowed = decode_parquet.MAX_MEMORY / 2**30
        return f"its decoder crashed ({signal.Signals(-status).name}): damaged, or more than {allowed:g} GiB to decode"
    return f"its decoder ended with status {status}"


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


def footprint(value: Any) -> int:
    """Bytes of memory that a row's values take."""
    total, rest = 0, [value]
    while rest:
        part = rest.pop()
        total += sys.getsizeof(part)
        if isinstance(part, dict):
            rest.extend(part)
            rest.extend(part.values())
        elif isinstance(part, list):
            rest.extend(part)
    return total


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

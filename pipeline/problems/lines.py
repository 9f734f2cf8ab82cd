"""Rows as readers give them, and the lines of text that most are made of.

A file may be hostile: no more than one line is held, and each fault says where it is.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

_BOM = codecs.BOM_UTF8


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. number: its first line, or its row in a Parquet file; both 1-based.

    values: by column; None or '' (how CSV writes None) where the row has none. binary: columns whose value has bytes in
    it, which no problem can have; they are not among the values. file: its name in a folder of several.
    """

    number: int
    values: dict[str, Any]
    binary: tuple[str, ...] = ()
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong in one line or row; number as in ``Row``, None for the file as a whole."""

    number: int | None
    reason: str
    file: str = ""


class UnreadableFile(Exception):
    """The file as a whole cannot be read; the message is the reason."""


class BadLine(Exception):
    def __init__(self, number: int, reason: str) -> None:
        self.fault = Fault(number=number, reason=reason)


def read_lines(file: IO[bytes], max_line_bytes: int) -> Iterator[tuple[int, str | Fault]]:
    """1-based line numbers and the lines as text, line ends kept; never holds more than one line.

    Raises UnreadableFile for a text in UTF-16 or UTF-32.
    """
    number = 0
    while line := file.readline(max_line_bytes + 1):
        number += 1
        if number == 1:
            refuse_wide(line)
        if len(line) > max_line_bytes:
            _skip_line(file, line)
            yield number, Fault(number=number, reason=f"longer than {max_line_bytes} bytes")
            continue
        yield number, _decode_line(number, line.removeprefix(_BOM) if number == 1 else line)


_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16: it begins with that mark
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def refuse_wide(start: bytes) -> None:
    """Raises UnreadableFile where a text begins as one in UTF-16 or UTF-32, with its mark or in ASCII without one."""
    found = next((name for mark, name in _WIDE.items() if start.startswith(mark)), None)
    if found is None and len(start) >= 4 and start[0:4].count(0) == 2 and (start[0] == 0) != (start[1] == 0):
        found = "UTF-16"
    if found:
        raise UnreadableFile(
            f"it is {found}, as Excel and Windows write it; save it as UTF-8: iconv -f {found} -t UTF-8"
        )


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

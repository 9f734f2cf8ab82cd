"""Rows of CSV: separated by commas, semicolons or tabs, a row over one line or many."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from typing import IO

from pipeline.problems.lines import BadLine, Fault, Row, read_lines
from pipeline.problems.values import first_repeated


def read_tsv(file: IO[bytes], max_line_bytes: int) -> Iterator[Row | Fault]:
    return read_csv(file, max_line_bytes, delimiter="\t")


def read_csv(file: IO[bytes], max_line_bytes: int, *, delimiter: str | None = None) -> Iterator[Row | Fault]:
    """delimiter: None takes the one that the header has."""
    csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))  # of the whole process; 128 KiB by default
    lines = _CsvLines(file, max_line_bytes)
    try:
        reader = csv.reader(lines, strict=True, delimiter=delimiter or find_delimiter(lines.peek()))
    except BadLine as error:
        yield error.fault
        return
    header: list[str] | None = None
    try:
        for cells in reader:
            if header is None and cells:
                header = [cell.strip() for cell in cells]
                _check_header(lines.first, header)
            elif header is not None and cells:
                yield _make_csv_row(lines.first, header, cells)
            lines.begin_row()
    except BadLine as error:
        yield error.fault  # the rest of the file cannot be told apart from the row that this line broke
    except csv.Error as error:
        yield Fault(number=lines.first, reason=f"broken CSV: {error}")


def find_delimiter(header: str) -> str:
    """The separator that a header has most often outside of quotes; a comma where it has none."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(",;\t", key=bare.count)


class _CsvLines:
    """A CSV file's lines, of which a row may have many. first: the number of the row's first line."""

    def __init__(self, file: IO[bytes], max_row_bytes: int) -> None:
        self._lines = read_lines(file, max_row_bytes)
        self._max_row_chars = max_row_bytes
        self._row_chars = 0
        self._last = 0
        self._peeked: list[tuple[int, str | Fault]] = []
        self.first = 1

    def peek(self) -> str:
        """The first line with something in it; raises BadLine where that is broken."""
        for number, line in self._lines:
            self._peeked.append((number, line))
            if isinstance(line, Fault):
                raise BadLine(number, line.reason)
            if line.strip():
                return line
        return ""

    def begin_row(self) -> None:
        self.first = self._last + 1
        self._row_chars = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in chain(self._peeked, self._lines):
            if isinstance(line, Fault):
                raise BadLine(number, line.reason)
            self._last = number
            self._row_chars += len(line)
            if self._row_chars > self._max_row_chars:
                raise BadLine(self.first, f"a row of more than {self._max_row_chars} bytes; is a quote left open?")
            yield line


def _check_header(number: int, header: list[str]) -> None:
    repeated = first_repeated(header)
    if repeated is not None:
        raise BadLine(number, f"the header has the column {repeated!r} twice")


def _make_csv_row(number: int, header: list[str], cells: list[str]) -> Row | Fault:
    """A column without a name (the index that pandas writes) is dropped."""
    if len(cells) != len(header):
        return Fault(number=number, reason=f"{len(cells)} cells, but the header has {len(header)}")
    return Row(number=number, values={name: cell for name, cell in zip(header, cells, strict=True) if name})

"""Loads a problem set from a file, a folder of files or standard input."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from os import PathLike
from pathlib import Path

from pipeline.errors import ProblemSetError
from pipeline.problems.columns import ColumnNames
from pipeline.problems.files import (
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    STANDARD_INPUT,
    as_file,
    ending_of,
    place_of,
    read_rows,
)
from pipeline.problems.lines import Fault, Row, UnreadableFile
from pipeline.problems.rows import MadeProblems, make_problems
from pipeline.problems.sets import ProblemSet, content_sha256
from pipeline.problems.values import footprint
from pipeline.texts import printable

_ROW_BYTES = 500
"""What a row takes besides its values, with the problem that it becomes and its place."""


def load_problem_set(
    path: str | PathLike[str],
    *,
    name: str | None = None,
    columns: ColumnNames | None = None,
    keep: Collection[str] = (),
    max_faults: int = 10,
    max_bytes: int = MAX_FILE_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> ProblemSet:
    """Read JSONL, a JSON array, CSV, TSV or Parquet, a folder of such files, or ``-`` for standard input.

    name: the file's base name where none is given. keep: columns that those who generate may read, besides the prompt
    and its choices; all others are hidden from them. A link to a regular file is followed. max_bytes: the largest
    file; its rows may take three times as much in memory. Raises ProblemSetError with the first max_faults faults: a
    file with any fault is refused whole.
    """
    source = Path(path)
    told = "standard input" if source == STANDARD_INPUT else printable(str(source))
    try:
        with as_file(source, max_bytes) as file:
            entries = read_rows(file, max_file_bytes=max_bytes, max_line_bytes=max_line_bytes)
            rows, faults = _collect(entries, max_faults, max_memory=3 * max_bytes)
    except UnreadableFile as error:
        raise ProblemSetError(told, [printable(str(error))]) from error
    made = MadeProblems()
    if rows:
        made = make_problems(rows, columns or ColumnNames(), keep, lambda row: place_of(row, file), max_faults)
    elif not faults:
        faults = [Fault(number=None, reason="empty: it holds no problem")]
    faults = sorted([*faults, *made.faults], key=lambda fault: (fault.file, fault.number or 0))
    if faults:
        raise ProblemSetError(told, [_describe(fault, file) for fault in faults[:max_faults]])
    return ProblemSet(
        name=name or ("stdin" if source == STANDARD_INPUT else _base_name(file)),
        content_sha256=content_sha256(made.problems),
        problems=made.problems,
        source=told,
        places=tuple(place_of(row, file) for row in made.rows),
        reading=made.reading,
    )


def _base_name(file: Path) -> str:
    """Without the endings that say how it is read."""
    ending = ending_of(file)
    stem = file.name[: file.name.lower().rindex(ending)] if ending and file.is_file() else file.resolve().name
    return printable(stem) or "problems"


def _collect(entries: Iterator[Row | Fault], max_faults: int, *, max_memory: int) -> tuple[list[Row], list[Fault]]:
    """All rows, or what came before the fault that is one too many. Raises UnreadableFile beyond max_memory bytes."""
    rows: list[Row] = []
    faults: list[Fault] = []
    memory = 0
    for entry in entries:
        if isinstance(entry, Row):
            rows.append(entry)
            memory += _ROW_BYTES + footprint(entry.values)
            if memory > max_memory:
                raise UnreadableFile(
                    f"its first {len(rows):,} rows take {max_memory / 2**20:,.0f} MiB of memory, which is the limit; "
                    "split it, or leave out the columns that are not needed"
                )
            continue
        faults.append(entry)
        if len(faults) == max_faults:
            break
    return rows, faults


def _describe(fault: Fault, file: Path) -> str:
    place, reason = place_of(fault, file), printable(fault.reason)
    return f"{place}: {reason}" if place else reason

"""Writing results to files, one at a time: memory stays the same however many there are."""

from __future__ import annotations

import csv
import io
import itertools
import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

if TYPE_CHECKING:
    import pyarrow

    from pipeline.results.samples import Result

_BATCH = 500
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
"""What a spreadsheet may take for a formula, whatever stands behind it; the wide characters in Japanese and Chinese."""


class ExportFormat(StrEnum):
    """How results are written."""

    JSONL = "jsonl"  # one JSON object a line
    CSV = "csv"  # for spreadsheets: texts that would start a formula get a ' in front
    PARQUET = "parquet"  # typed columns, compressed; for pandas, DuckDB and the like


def write_results(results: Iterable[Result], output: BinaryIO, format: ExportFormat) -> int:
    """Write them all; returns how many. The columns are the fields of Result, also where there are none."""
    return _WRITERS[format](results, output)


def _write_jsonl(results: Iterable[Result], output: BinaryIO) -> int:
    from pipeline.results.reports import plain

    count = 0
    for result in results:
        output.write(orjson.dumps(plain(result), option=orjson.OPT_APPEND_NEWLINE))
        count += 1
    return count


def _write_csv(results: Iterable[Result], output: BinaryIO) -> int:
    from pipeline.results.reports import plain
    from pipeline.results.samples import Result

    lines = io.TextIOWrapper(output, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(lines)
    writer.writerow([field.name for field in fields(Result)])
    count = 0
    for result in results:
        writer.writerow([csv_cell(value) for value in plain(result).values()])
        count += 1
    lines.detach()
    return count


def csv_cell(value: Any) -> Any:
    """What goes into a CSV cell. A text that a spreadsheet would take for a formula gets a ' in front: model output is
    not to be trusted. So does one that begins as such a text then would, so that ``csv_text`` can take it off again.
    Numbers, minus signs included, are no texts here."""
    value = _flat(value)
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return value


def _flat(value: Any) -> Any:
    """A choice as its text, a list or an object as JSON."""
    if isinstance(value, StrEnum):
        return value.value
    return orjson.dumps(value).decode() if isinstance(value, dict | list | tuple) else value


def csv_text(cell: str) -> str:
    """The text of a CSV cell that ``write_results`` wrote, without the ' that keeps it from being a formula."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _write_parquet(results: Iterable[Result], output: BinaryIO) -> int:
    from pyarrow import parquet

    count = 0
    with parquet.ParquetWriter(output, result_schema(), compression="zstd") as writer:
        for table in result_tables(results):
            writer.write_table(table)
            count += table.num_rows
    return count


def result_tables(results: Iterable[Result]) -> Iterator[pyarrow.Table]:
    """Results as tables of typed columns, a batch at a time."""
    import pyarrow

    schema = result_schema()
    for batch in _batches(results):
        yield pyarrow.Table.from_pylist(list(result_rows(batch)), schema=schema)


def result_rows(results: Iterable[Result]) -> Iterator[dict[str, Any]]:
    """Results as values of these columns."""
    from pipeline.results.reports import plain

    for result in results:
        yield {name: _flat(value) for name, value in plain(result).items()}


def _batches(results: Iterable[Result]) -> Iterator[list[Result]]:
    iterator = iter(results)
    while batch := list(itertools.islice(iterator, _BATCH)):
        yield batch


def result_schema() -> pyarrow.Schema:
    """The typed columns, from the types of Result's fields."""
    import pyarrow

    from pipeline.results.samples import Result

    by_type = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    columns = []
    for name, hint in typing.get_type_hints(Result).items():
        if typing.get_origin(hint) in (dict, tuple):
            columns.append(pyarrow.field(name, pyarrow.string()))  # JSON
            continue
        kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
        matches = [arrow for kind, arrow in by_type.items() if issubclass(kinds[0], kind)]
        columns.append(pyarrow.field(name, matches[0] if matches else pyarrow.timestamp("us", tz="UTC")))
    return pyarrow.schema(columns)


_WRITERS = {
    ExportFormat.JSONL: _write_jsonl,
    ExportFormat.CSV: _write_csv,
    ExportFormat.PARQUET: _write_parquet,
}

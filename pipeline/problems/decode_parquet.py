"""Decodes a Parquet file, as a script in a process of its own: ``python decode_parquet.py BYTES < FILE``.

Native code decodes Parquet, and a file of 700 bytes can ask it for 100 GB. Here a limit on memory and one on time hold,
and a crash takes nobody with it. ``pipeline.problems.files`` runs it and reads what it writes, one JSON object a line:
``{"row": {…}}`` or ``{"fault": reason}`` for each row, at the end ``{"end": true}`` or ``{"broken": reason}``. A number
stands there in the form that Python gives it. Columns whose value has bytes in it are left out of a row and named:
``{"row": {…}, "binary": ["image"]}``.

``python decode_parquet.py BYTES zstd < FILE`` unpacks Zstandard instead and writes what was packed; it ends with 1
where the file is broken.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from pipeline.limits import leave_no_core, limit_memory, limit_processor_time

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MAX_MEMORY = 3 * 2**30
"""BYTES, which decoding may take beyond what the libraries take: a file of 1 GiB in one row group needs less."""
MAX_CPU_S = 300
"""Seconds of processor time; a file of 1 GiB needs about 20."""
_BATCH = 64
"""Rows made at a time; with the longest rows that are read, 16 MiB each, they take 1 GiB."""


def main(max_memory: int) -> None:
    import pyarrow.parquet  # noqa: F401  (before the limits: what loading it takes depends on the machine)

    _limit_process(max_memory)
    with os.fdopen(0, "rb") as file, os.fdopen(1, "wb", 2**18) as output, contextlib.suppress(BrokenPipeError):
        for line in _lines(file):
            output.write(line)
        output.flush()


def _limit_process(max_memory: int) -> None:
    leave_no_core()
    limit_processor_time(MAX_CPU_S)
    limit_memory(max_memory)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    number = 0
    try:
        for batch in _batches(file):
            for values in batch.to_pylist():
                number += 1
                yield _line(values)
    except MemoryError:
        yield _dump(broken=f"after row {number}: it takes more memory to decode than it may")
    except Exception as error:  # on hostile bytes pyarrow raises whatever its parts raise
        reason = next(iter(str(error).splitlines()), "")
        yield _dump(broken=f"after row {number}: {reason or type(error).__name__}")
    else:
        yield _dump(end=True)


def _batches(file: BinaryIO) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
    names = Counter(table.schema_arrow.names)
    if len(names) < sum(names.values()):
        raise ValueError(f"it has the column {names.most_common(1)[0][0]!r} twice")
    for batch in table.iter_batches(batch_size=_BATCH, use_threads=False):
        yield _to_python(batch)


def _to_python(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Python's times have no nanoseconds, which pandas writes, and its numbers would show 0.1 as 0.10000000149."""
    import pyarrow

    for index, field in enumerate(batch.schema):
        if pyarrow.types.is_timestamp(field.type) and field.type.unit == "ns":
            coarse = pyarrow.timestamp("us", field.type.tz)
        elif field.type == pyarrow.time64("ns"):
            coarse = pyarrow.time64("us")
        elif field.type == pyarrow.float32():
            shortest = batch.column(index).cast(pyarrow.string()).cast(pyarrow.float64())
            batch = batch.set_column(index, field.with_type(pyarrow.float64()), shortest)
            continue
        else:
            continue
        batch = batch.set_column(index, field.with_type(coarse), batch.column(index).cast(coarse, safe=False))
    return batch


def _line(values: dict[str, Any]) -> bytes:
    row, binary = {}, []
    try:
        for name, value in values.items():
            try:
                row[name] = _plain(value)
            except _HasBytes:
                binary.append(name)
        return _dump(row=row, binary=binary) if binary else _dump(row=row)
    except (TypeError, RecursionError) as error:
        return _dump(fault=str(error))


def _dump(**message: Any) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)


class _HasBytes(Exception):
    """An image, a sound: nothing that a prompt can show."""


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | str():
            return value
        case bytes():
            raise _HasBytes
        case float() if math.isnan(value):
            return None  # how tables write a missing number
        case float() if math.isinf(value):
            return str(value)
        case int() | float() | decimal.Decimal():
            return orjson.Fragment(str(value))
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(name): _plain(item) for name, item in value.items()}
    raise TypeError(f"a value of type {type(value).__name__}, which a problem cannot have")


def unpack_zstd(max_memory: int) -> None:
    import pyarrow

    _limit_process(max_memory)
    with os.fdopen(0, "rb") as file, os.fdopen(1, "wb", 0) as output, contextlib.suppress(BrokenPipeError):
        try:
            unpacked = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
            while piece := unpacked.read(2**20):
                output.write(piece)
        except (pyarrow.ArrowException, MemoryError, OSError) as error:
            if not isinstance(error, BrokenPipeError):
                sys.exit(1)


if __name__ == "__main__":
    (unpack_zstd if sys.argv[2:] == ["zstd"] else main)(int(sys.argv[1]))

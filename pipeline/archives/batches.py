"""Rows as Arrow batches of bounded size, and a hash of what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

MAX_ROWS = 50_000
MAX_BYTES = 16 * 2**20
"""Of the values of a batch: what writing and reading keep in memory. One row larger than that is a batch of its own."""


def batches(rows: Iterable[tuple[Any, ...]], schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    """All rows, in order."""
    kept: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        kept.append(row)
        size += sum(map(_footprint, row))
        if size >= MAX_BYTES or len(kept) == MAX_ROWS:
            yield _batch(kept, schema)
            kept, size = [], 0
    if kept:
        yield _batch(kept, schema)


def _footprint(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return 8 * (1 + len(value)) if isinstance(value, list) else 8


def _batch(rows: list[tuple[Any, ...]], schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    import pyarrow

    columns = zip(*rows, strict=True)
    arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pyarrow.RecordBatch.from_arrays(arrays, schema=schema)


class ContentHash:
    """A hash of the values of batches, however Arrow holds them: equal where all values are, bit by bit."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: pyarrow.RecordBatch) -> None:
        for column in batch.columns:
            self._add(column)

    def _add(self, array: pyarrow.Array) -> None:
        import pyarrow
        from pyarrow import compute

        kind = array.type
        self._hash.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
        there = array.drop_null()
        if pyarrow.types.is_list(kind):
            self._hash.update(compute.list_value_length(there).to_numpy(zero_copy_only=False).tobytes())
            self._add(there.flatten())
        elif pyarrow.types.is_string(kind):
            self._hash.update(compute.binary_length(there).to_numpy(zero_copy_only=False).tobytes())
            self._hash.update("".join(there.to_pylist()).encode())
        else:
            if pyarrow.types.is_timestamp(kind):
                there = there.cast(pyarrow.int64())
            self._hash.update(there.to_numpy(zero_copy_only=False).tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

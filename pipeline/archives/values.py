"""Values of an archive's columns as COPY takes them: what comes back is what was there, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.archives.tables import INFINITE

if TYPE_CHECKING:
    import pyarrow


def copied_values(column: pyarrow.Array) -> list[Any]:
    """The values of a column as COPY takes them."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_timestamp(kind):
        return _instants(column)
    if pyarrow.types.is_list(kind) and not pyarrow.types.is_string(kind.value_type):
        return [None if values is None else _numbers(values) for values in column.to_pylist()]
    return list(column.to_pylist())


def _numbers(values: Sequence[float | None]) -> str:
    """An array of Postgres: repr gives all digits of a number."""
    return f"{{{','.join('NULL' if value is None else repr(value) for value in values)}}}"


def _instants(column: pyarrow.Array) -> list[str | None]:
    import pyarrow
    from pyarrow import compute

    microseconds = column.cast(pyarrow.int64())
    is_finite = compute.less(compute.abs(microseconds), INFINITE)
    finite = compute.if_else(is_finite, microseconds, pyarrow.scalar(None, pyarrow.int64()))
    texts: list[str | None] = finite.cast(column.type).cast(pyarrow.string()).to_pylist()
    for place, value in enumerate(microseconds.to_pylist()):
        if value is not None and abs(value) == INFINITE:
            texts[place] = "infinity" if value > 0 else "-infinity"
    return texts

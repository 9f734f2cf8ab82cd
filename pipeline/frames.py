"""Tables with typed columns for pandas, polars and DuckDB: of a query's result, and of a job's samples."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.errors import ConfigurationError, QueryRefused

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from pipeline.db.readonly_query import Table
    from pipeline.results.samples import Result

_SHOWN_ROWS = 10
_SHOWN_CHARS = 200


class Frame:
    """Rows with typed columns. A numeric of Postgres is a float here, JSON is text.

    ``duckdb.from_arrow(frame.to_arrow())`` takes it too, and so does whatever takes Arrow's stream interface.
    """

    def __init__(self, table: pyarrow.Table) -> None:
        self._table = table

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def to_arrow(self) -> pyarrow.Table:
        return self._table

    def to_pandas(self) -> pandas.DataFrame:
        """A column of integers in which some are missing is one of floats, as pandas has it."""
        _require("pandas")
        return self._table.to_pandas()

    def to_polars(self) -> Any:
        return _require("polars").from_arrow(self._table)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"<Frame of {len(self):,} rows: {', '.join(self.columns)}>"

    def _repr_html_(self) -> str:
        """Jupyter asks for it: the first rows, with long texts cut."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(_cut(value))}</td>" for value in row.values()) + "</tr>"
            for row in self._table.slice(0, _SHOWN_ROWS).to_pylist()
        )
        return f"<table><tr>{head}</tr>{rows}</table><p>{len(self):,} rows</p>"


def _cut(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _require(package: str) -> Any:
    """Raises ConfigurationError where it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigurationError(f"{package} is not installed beside specthink: pip install {package}") from error


def frame_of_results(results: Iterable[Result]) -> Frame:
    import pyarrow

    from pipeline.results.exports import result_schema, result_tables

    tables = list(result_tables(results))
    return Frame(pyarrow.concat_tables(tables) if tables else result_schema().empty_table())


def frame_of_table(found: Table) -> Frame:
    """Raises QueryRefused where the query has more rows than these."""
    import pyarrow

    if found.is_cut:
        raise QueryRefused(
            f"the query gives more than the first {len(found.rows):,} rows, and a frame is never a part: narrow it, "
            "add it up in SQL, or give max_rows"
        )
    columns = list(zip(*found.rows, strict=True)) or [()] * len(found.columns)
    arrays = [_array(kind, values) for kind, values in zip(found.types, columns, strict=True)]
    return Frame(pyarrow.Table.from_arrays(arrays, names=list(found.distinct_columns())))


def _array(kind: str, values: Sequence[Any]) -> pyarrow.Array:
    import pyarrow

    base = kind.removesuffix("[]")
    arrow, convert = _types().get(base, (pyarrow.string(), _as_text))
    if kind != base:
        arrow, convert = pyarrow.list_(arrow), _each(convert)
    try:
        return pyarrow.array([None if value is None else convert(value) for value in values], arrow)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, TypeError):  # an array of arrays
        return pyarrow.array([None if value is None else _as_text(value) for value in values], pyarrow.string())


def _types() -> dict[str, tuple[pyarrow.DataType, Callable[[Any], Any]]]:
    """Arrow's type of one of Postgres', and what makes a value fit it; all others become text."""
    import pyarrow

    return {
        "bool": (pyarrow.bool_(), bool),
        **dict.fromkeys(("int2", "int4", "int8", "oid"), (pyarrow.int64(), int)),
        **dict.fromkeys(("float4", "float8", "numeric"), (pyarrow.float64(), float)),
        "date": (pyarrow.date32(), _same),
        "timestamp": (pyarrow.timestamp("us"), _same),
        "timestamptz": (pyarrow.timestamp("us", tz="UTC"), lambda value: value.astimezone(dt.UTC)),
        "interval": (pyarrow.duration("us"), _same),
        **dict.fromkeys(("json", "jsonb"), (pyarrow.string(), lambda value: orjson.dumps(value).decode())),
    }


def _same(value: Any) -> Any:
    return value


def _each(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [None if value is None else convert(value) for value in values]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)

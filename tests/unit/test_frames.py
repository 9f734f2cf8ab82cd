"""Tables with typed columns: what becomes of Postgres' types, of missing values and of nothing at all."""

from __future__ import annotations

import datetime as dt
import sys
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow
import pytest

from pipeline.db.readonly_query import Table
from pipeline.errors import ConfigurationError, QueryRefused
from pipeline.frames import Frame, frame_of_results, frame_of_table

NOON = dt.datetime(2026, 11, 28, 13, tzinfo=dt.timezone(dt.timedelta(hours=1)))


def table(*rows: tuple[Any, ...], **types: str) -> Table:
    return Table(columns=tuple(types), rows=list(rows), types=tuple(types.values()))


@pytest.mark.parametrize(
    ("kind", "value", "arrow", "kept"),
    [
        ("int8", 2**62, pyarrow.int64(), 2**62),
        ("numeric", Decimal("0.25"), pyarrow.float64(), 0.25),
        ("float8", float("inf"), pyarrow.float64(), float("inf")),
        ("bool", True, pyarrow.bool_(), True),
        ("text", "é", pyarrow.string(), "é"),
        ("jsonb", {"a": [1, None]}, pyarrow.string(), '{"a":[1,null]}'),
        ("jsonb", "one", pyarrow.string(), '"one"'),
        ("timestamptz", NOON, pyarrow.timestamp("us", tz="UTC"), NOON),
        ("date", dt.date(2026, 1, 2), pyarrow.date32(), dt.date(2026, 1, 2)),
        ("interval", dt.timedelta(seconds=3), pyarrow.duration("us"), dt.timedelta(seconds=3)),
        ("int4[]", [1, None, 3], pyarrow.list_(pyarrow.int64()), [1, None, 3]),
        ("int4[]", [[1], [2]], pyarrow.string(), "[[1], [2]]"),
        ("", "of an enum", pyarrow.string(), "of an enum"),
    ],
)
def test_a_column_has_the_type_of_its_column_in_postgres(kind: str, value: Any, arrow: Any, kept: Any) -> None:
    frame = frame_of_table(table((value,), (None,), column=kind))
    found = frame.to_arrow().column("column")
    assert (found.type, found.to_pylist()) == (arrow, [kept, None])


def test_types_are_the_same_where_there_is_no_row() -> None:
    types = {"i": "int8", "t": "timestamptz", "j": "jsonb"}
    full = frame_of_table(table((1, NOON, {}), **types))
    assert frame_of_table(table(**types)).to_arrow().schema == full.to_arrow().schema
    assert frame_of_results([]).to_arrow().schema.field("score").type == pyarrow.float64()


def test_a_column_that_comes_again_has_a_number() -> None:
    frame = frame_of_table(Table(columns=("n", "n"), rows=[(1, 2)], types=("int8", "int8")))
    assert frame.columns == ("n", "n_2")


def test_pandas_and_duckdb_take_it() -> None:
    frame = frame_of_table(table((1, 0.5), (2, None), id="int8", score="float8"))
    read = frame.to_pandas()
    assert (read["id"].tolist(), read["score"].mean()) == ([1, 2], 0.5)
    relation = frame.to_arrow()
    found = duckdb.sql("SELECT sum(id), count(score) FROM relation")
    assert found is not None
    assert found.fetchall() == [(3, 1)]
    assert relation.equals(pyarrow.table(frame))


def test_a_part_of_what_was_asked_is_refused() -> None:
    with pytest.raises(QueryRefused, match=r"more than the first 1 rows.*max_rows"):
        frame_of_table(Table(columns=("n",), rows=[(1,)], types=("int8",), is_cut=True))


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=f"pip install {package}"):
        getattr(Frame(pyarrow.table({"n": [1]})), f"to_{package}")()


def test_a_notebook_shows_the_first_rows_and_no_markup_of_a_model() -> None:
    frame = frame_of_table(table(*[(f"<script>{n}" + "x" * 500,) for n in range(30)], output="text"))
    shown = frame._repr_html_()
    assert shown.count("<tr>") == 11
    assert "<script>" not in shown
    assert "&lt;script&gt;9" in shown
    assert "30 rows" in shown
    assert len(shown) < 5000

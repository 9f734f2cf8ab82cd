"""Batches, their hash, and the mapping of ids."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from pipeline.archives import batches
from pipeline.archives.batches import ContentHash
from pipeline.archives.ids import IdMap
from pipeline.archives.tables import EVENTS_OF_THE_JOB, TABLES
from pipeline.db.tables import METADATA

SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.int64()),
        ("text", pyarrow.string()),
        ("score", pyarrow.float64()),
        ("ids", pyarrow.list_(pyarrow.int32())),
        ("at", pyarrow.timestamp("us", tz="UTC")),
        ("done", pyarrow.bool_()),
    ]
)
ROW = (1, "text", 0.5, [1, 2], 10, True)


def hash_of(*rows: tuple[Any, ...]) -> str:
    content = ContentHash()
    for batch in batches.batches(rows, SCHEMA):
        content.add(batch)
    return content.hexdigest()


@pytest.mark.parametrize(
    ("place", "values"),
    [
        (0, (None, 0, 1, -1)),
        (1, (None, "", "a", "a\0", "é")),
        (2, (None, 0.0, -0.0, float("nan"), 1.0, 1.0000000000000002)),
        (3, (None, [], [0], [None], [1, 2], [2, 1])),
        (4, (None, 0, 1, -(2**63 - 1))),
        (5, (None, True, False)),
    ],
)
def test_hash_tells_every_two_values_apart(place: int, values: tuple[Any, ...]) -> None:
    rows = [(*ROW[:place], value, *ROW[place + 1 :]) for value in values]
    assert len({hash_of(row) for row in rows}) == len(values)


def test_hash_knows_where_a_text_or_list_ends() -> None:
    assert hash_of((1, "ab", 0.5, [1], 1, True), (1, "c", 0.5, [], 1, True)) != hash_of(
        (1, "a", 0.5, [], 1, True), (1, "bc", 0.5, [1], 1, True)
    )


def test_hash_is_the_same_after_parquet() -> None:
    rows = [ROW, (None,) * 6, (2, "", float("nan"), [], -(2**63 - 1), False)]
    [batch] = batches.batches(rows, SCHEMA)
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_batches([batch]), file)
    content = ContentHash()
    for read in parquet.read_table(file).to_batches():
        content.add(read)
    assert content.hexdigest() == hash_of(*rows)


def test_batch_ends_at_its_size_or_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_BYTES", 1000)
    monkeypatch.setattr(batches, "MAX_ROWS", 3)
    large = (1, "x" * 2000, 0.5, [1], 1, True)
    sizes = [batch.num_rows for batch in batches.batches([large, ROW, large, ROW, ROW, ROW, ROW], SCHEMA)]
    assert sizes == [1, 2, 3, 1]


def test_ids_are_mapped_and_strangers_are_named() -> None:
    mapped = IdMap(np.array([3, 5, 9], np.int64), np.array([30, 50, 90], np.int64))
    assert mapped.apply(pyarrow.array([9, None, 3, 3])).to_pylist() == [90, None, 30, 30]
    assert mapped.of_one(5) == 50
    for stranger in (4, 10, 0):
        with pytest.raises(KeyError, match=str(stranger)):
            mapped.apply(pyarrow.array([3, stranger]))


def test_every_table_that_names_a_job_or_sample_is_archived_or_derived() -> None:
    derived = {
        "job_totals",
        "rollups",
        "length_counts",
        "judged_samples",
        "batch_jobs",
        "chat_requests",
    }
    of_jobs = {name for name, table in METADATA.tables.items() if {"job_id", "sample_id"} & {*table.columns.keys()}}
    assert of_jobs - derived <= {table.name for table in TABLES}
    assert EVENTS_OF_THE_JOB.names == next(table.names for table in TABLES if table.name == "events")

"""What an archive holds: its tables, the rows of each that make a job whole, and their columns in Parquet.

Derived tables (job_totals, rollups, length_counts) are not in it: a restored job is counted anew. What a judge
was asked of a job (judged_samples) is the judge's, and judges are not archived. Of an experiment a job has its own
rows; the others come with their jobs. What came over HTTP, batches and chat requests, stays with its gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, BigInteger, Boolean, Column, DateTime, Float, Integer, String
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB

from pipeline.db.tables import METADATA

if TYPE_CHECKING:
    import pyarrow

_OF_SET = "t.problem_set_id = (SELECT j.problem_set_id FROM jobs j WHERE j.id = %(job)s)"
_OF_PROBLEMS = f"t.problem_id IN (SELECT t.id FROM problems t WHERE {_OF_SET})"
_OF_SAMPLES = "t.sample_id = ANY(%(samples)s)"
_DIALECT: Any = postgresql.dialect()  # type: ignore[no-untyped-call]
INFINITE = 2**63 - 1
"""Microseconds that stand for an infinite instant, negative for -infinity: as DuckDB reads them."""


@dataclass(frozen=True)
class ArchivedTable:
    """A table of an archive.

    name: in the database, and of its file. rows: the condition on its rows, as ``t``; it names the job, some of its
    samples, or the workers and engines that had to do with it. order: of the rows in the file. is_private: the file
    tells answers, and only its owner may read it.
    """

    name: str
    rows: str
    order: str
    is_private: bool = False

    @property
    def file_name(self) -> str:
        return f"{self.name}.parquet"

    @property
    def by_samples(self) -> bool:
        """Whether its rows are asked for some samples at a time."""
        return "%(samples)s" in self.rows

    @cached_property
    def columns(self) -> tuple[Column[Any], ...]:
        """Those that are stored: the database fills the others itself."""
        return tuple(column for column in METADATA.tables[self.name].columns if column.computed is None)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def schema(self) -> pyarrow.Schema:
        """Of its file; the comments of table and columns are in the metadata."""
        import pyarrow

        fields = [
            pyarrow.field(
                column.name,
                _arrow_type(column.type),
                metadata={"comment": column.comment or "", "postgres": postgres_type(column)},
            )
            for column in self.columns
        ]
        return pyarrow.schema(fields, metadata={"comment": METADATA.tables[self.name].comment or ""})

    @property
    def select(self) -> str:
        """Its rows in order, each value in the form that the file keeps."""
        values = ", ".join(_selected(column) for column in self.columns)
        return f"SELECT {values} FROM {self.name} t WHERE {self.rows} ORDER BY {self.order}"

    @property
    def count(self) -> str:
        return f"SELECT count(*) FROM {self.name} t WHERE {self.rows}"


TABLES: tuple[ArchivedTable, ...] = (
    ArchivedTable("jobs", "t.id = %(job)s", "t.id"),
    ArchivedTable("problem_sets", _OF_SET.replace("t.problem_set_id", "t.id"), "t.id"),
    ArchivedTable("problems", _OF_SET, "t.position"),
    ArchivedTable("reference_answers", _OF_PROBLEMS, "t.problem_id", is_private=True),
    ArchivedTable("hidden_columns", _OF_PROBLEMS, "t.problem_id", is_private=True),
    ArchivedTable("engines", "t.id = ANY(%(engines)s)", "t.id"),
    ArchivedTable("workers", "t.id = ANY(%(workers)s)", "t.id"),
    ArchivedTable("experiment_jobs", "t.job_id = %(job)s", "t.experiment, t.row_name"),
    ArchivedTable("samples", "t.id = ANY(%(samples)s)", "t.id"),
    ArchivedTable("segments", _OF_SAMPLES, "t.sample_id, t.segment_index"),
    ArchivedTable("segment_parts", _OF_SAMPLES, "t.sample_id, t.segment_index, t.start_token"),
    ArchivedTable("asides", _OF_SAMPLES, "t.sample_id, t.aside_index"),
    ArchivedTable("signals", _OF_SAMPLES, 't.sample_id, t.kind, t."index", t.name'),
    ArchivedTable("steps", _OF_SAMPLES, "t.sample_id, t.step_index"),
    ArchivedTable("grades", _OF_SAMPLES, "t.sample_id, t.grader, t.grader_version", is_private=True),
    ArchivedTable("events", f"t.job_id = %(job)s AND {_OF_SAMPLES}", "t.sample_id, t.id"),
)
"""In the order in which a job is restored. Of a grade the detail may quote the answer of which its grader broke."""
EVENTS_OF_THE_JOB = ArchivedTable("events", "t.job_id = %(job)s AND t.sample_id IS NULL", "t.id")
"""They follow those of its samples in the same file."""


def _selected(column: Column[Any]) -> str:
    name = f't."{column.name}"'
    if isinstance(column.type, JSONB):
        return f"{name}::text"  # numbers as they are stored: 1.0 stays 1.0, and the longest keep all digits
    if isinstance(column.type, DateTime):
        return (
            f"CASE WHEN isfinite({name}) THEN (extract(epoch FROM {name}) * 1000000)::bigint "
            f"WHEN {name} = 'infinity' THEN {INFINITE} WHEN {name} = '-infinity' THEN -{INFINITE} END"
        )
    return name


def _arrow_type(kind: Any) -> pyarrow.DataType:
    import pyarrow

    match kind:
        case ARRAY():
            return pyarrow.list_(_arrow_type(kind.item_type))
        case JSONB() | String():
            return pyarrow.string()
        case DateTime():
            return pyarrow.timestamp("us", tz="UTC")
        case Boolean():
            return pyarrow.bool_()
        case BigInteger():
            return pyarrow.int64()
        case Integer():
            return pyarrow.int32()
        case Float():
            return pyarrow.float64()
        case _:
            raise TypeError(f"no Parquet type for {kind!r}")


def postgres_type(column: Column[Any]) -> str:
    return str(column.type.compile(dialect=_DIALECT))

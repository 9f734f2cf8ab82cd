"""The tables. Every fact of the pipeline lives in one of them; comments are stored in the database too."""

from __future__ import annotations

from pipeline.db.base import Base
from pipeline.db.tables.gateway import (
    ApiKeyRow,
    BatchJobRow,
    BatchRow,
    ChatRequestRow,
    FilePartRow,
    FileRow,
    ModelAliasRow,
)
from pipeline.db.tables.jobs import (
    ExperimentJobRow,
    HiddenColumnsRow,
    JobRow,
    ProblemRow,
    ProblemSetRow,
    ReferenceAnswerRow,
)
from pipeline.db.tables.log import EventRow, SchemaObjectsRow
from pipeline.db.tables.samples import GradeRow, JudgedSampleRow, SampleRow
from pipeline.db.tables.segments import AsideRow, SegmentPartRow, SegmentRow, SignalRow, StepRow
from pipeline.db.tables.totals import JobTotalsRow, LengthCountRow, RollupRow
from pipeline.db.tables.workers import EngineRow, UpkeepLeaderRow, WorkerRow

__all__ = [
    "ApiKeyRow",
    "AsideRow",
    "BatchJobRow",
    "BatchRow",
    "ChatRequestRow",
    "EngineRow",
    "EventRow",
    "ExperimentJobRow",
    "FilePartRow",
    "FileRow",
    "GradeRow",
    "HiddenColumnsRow",
    "JobRow",
    "JobTotalsRow",
    "JudgedSampleRow",
    "LengthCountRow",
    "METADATA",
    "ModelAliasRow",
    "ProblemRow",
    "ProblemSetRow",
    "ReferenceAnswerRow",
    "RollupRow",
    "SampleRow",
    "SchemaObjectsRow",
    "SegmentPartRow",
    "SegmentRow",
    "SignalRow",
    "StepRow",
    "UpkeepLeaderRow",
    "WorkerRow",
]

METADATA = Base.metadata
"""All tables, for migrations; each with its class's first line as its comment."""
for _mapper in Base.registry.mappers:
    METADATA.tables[_mapper.class_.__tablename__].comment = (_mapper.class_.__doc__ or "").partition("\n")[0]

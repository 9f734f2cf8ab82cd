"""Loading samples for replay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, RowMapping, TextClause, text

from pipeline.db.context_cache import aside_columns, segment_columns, stored_aside, stored_segment
from pipeline.db.readable import FAULTS, REMEDY, read_config, require_values, why_unreadable
from pipeline.db.states import COMPLETE
from pipeline.errors import DamagedRow, NotFound
from pipeline.jobs.config import JobConfig
from pipeline.results.stored import StoredSample, StoredStep, UnreadableSample
from pipeline.samples import Author, FinishReason, SampleState
from pipeline.segments import StoredAside, StoredSegment, signal_values
from pipeline.signals import Signal, SignalValues

_BATCH = 100
_NOT_OF_THE_ROW = {
    "config",
    "think_start",
    "think_end",
    "think_opened",
    "problem",
    "sample_id",
    "segments",
    "asides",
    "steps",
}
_SAMPLE_COLUMNS = ", ".join(f"s.{each.name}" for each in fields(StoredSample) if each.name not in _NOT_OF_THE_ROW)
_STEP_COLUMNS = ", ".join(f"t.{each.name}" for each in fields(StoredStep))

_SELECT = text(f"""
    SELECT s.id AS sample_id, j.config, j.think_start, j.think_end, j.think_opened, p.external_id AS problem,
           {_SAMPLE_COLUMNS}
    FROM samples s JOIN jobs j ON j.id = s.job_id JOIN problems p ON p.id = s.problem_id
    WHERE s.id = ANY(:ids) ORDER BY s.id
""")
_SELECT_SEGMENTS = text(f"""
    SELECT g.sample_id, {segment_columns("g")} FROM segments g JOIN engines e ON e.id = g.engine_id
    WHERE g.sample_id = ANY(:ids) ORDER BY g.sample_id, g.segment_index
""")
_SELECT_ASIDES = text(f"""
    SELECT a.sample_id, {aside_columns("a")} FROM asides a JOIN engines e ON e.id = a.engine_id
    WHERE a.sample_id = ANY(:ids) ORDER BY a.sample_id, a.aside_index
""")
_SELECT_SIGNALS = text("""
    SELECT n.sample_id, n.kind, n.index, n.name, n.places, n.values FROM signals n WHERE n.sample_id = ANY(:ids)
""")
_SELECT_STEPS = text(f"""
    SELECT t.sample_id, {_STEP_COLUMNS} FROM steps t
    WHERE t.sample_id = ANY(:ids) ORDER BY t.sample_id, t.step_index
""")
_SELECT_COMPLETE = text(f"SELECT id FROM samples WHERE job_id = :job AND state IN {COMPLETE} ORDER BY id")


def get_stored_sample(connection: Connection, sample_id: int) -> StoredSample:
    """Raises NotFound and DamagedRow."""
    for found in _load(connection, [sample_id]):
        if isinstance(found, UnreadableSample):
            raise DamagedRow(f"sample {sample_id} cannot be read: {found.why}; {REMEDY}")
        return found
    raise NotFound(f"there is no sample {sample_id}; specthink results JOB lists those of a job")


def stream_complete_samples(connection: Connection, job_id: int) -> Iterator[StoredSample | UnreadableSample]:
    """A job's complete samples, one batch at a time in memory. Raises NotFound, and DamagedRow for a job whose
    configuration cannot be read."""
    job = connection.execute(text("SELECT config FROM jobs WHERE id = :job"), {"job": job_id}).first()
    if job is None:
        raise NotFound.job(job_id)
    read_config(job_id, job.config)
    yield from stream_samples(connection, connection.execute(_SELECT_COMPLETE, {"job": job_id}).scalars().all())


def stream_samples(connection: Connection, sample_ids: Sequence[int]) -> Iterator[StoredSample | UnreadableSample]:
    """Samples by their ids, one batch at a time in memory."""
    for start in range(0, len(sample_ids), _BATCH):
        yield from _load(connection, list(sample_ids[start : start + _BATCH]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """Rows of one sample."""

    segments: list[Row[Any]] = field(default_factory=list)
    asides: list[Row[Any]] = field(default_factory=list)
    steps: list[RowMapping] = field(default_factory=list)


def _load(connection: Connection, sample_ids: list[int]) -> Iterator[StoredSample | UnreadableSample]:
    signals = _load_signals(connection, sample_ids)
    pieces: dict[int, _Pieces] = defaultdict(_Pieces)
    for found in connection.execute(_SELECT_SEGMENTS, {"ids": sample_ids}):
        pieces[found.sample_id].segments.append(found)
    for found in connection.execute(_SELECT_ASIDES, {"ids": sample_ids}):
        pieces[found.sample_id].asides.append(found)
    for row in _rows(connection, _SELECT_STEPS, sample_ids):
        pieces[row["sample_id"]].steps.append(row)
    for row in _rows(connection, _SELECT, sample_ids):
        try:
            yield _stored_sample(row, pieces[row["sample_id"]], signals)
        except FAULTS as error:
            yield UnreadableSample(sample_id=row["sample_id"], job_id=row["job_id"], why=why_unreadable(error))


def _stored_sample(row: RowMapping, pieces: _Pieces, signals: _Signals) -> StoredSample:
    """Raises one of FAULTS where anything of it cannot be read."""
    values = {
        **row,
        "config": JobConfig.model_validate(row["config"]),
        "state": SampleState(row["state"]),
        "finish_reason": FinishReason(row["finish_reason"]) if row["finish_reason"] else None,
    }
    require_values(StoredSample, values)
    return StoredSample(
        **values,
        segments=tuple(_stored_segment(found, signals) for found in pieces.segments),
        asides=tuple(_stored_aside(found, signals) for found in pieces.asides),
        steps=tuple(_stored_step(found) for found in pieces.steps),
    )


def _stored_segment(found: Row[Any], signals: _Signals) -> StoredSegment:
    read = signals.get((found.sample_id, "segment", found.segment_index), {})
    return stored_segment(found, signals=_values(read, len(found.token_ids) + len(found.discarded_ids)))


def _stored_aside(found: Row[Any], signals: _Signals) -> StoredAside:
    read = signals.get((found.sample_id, "aside", found.aside_index), {})
    return stored_aside(found, signals=_values(read, len(found.token_ids)))


def _stored_step(row: RowMapping) -> StoredStep:
    values = {**row, "author": Author(row["author"])}
    values.pop("sample_id")
    return StoredStep(**values)


def _rows(connection: Connection, statement: TextClause, sample_ids: list[int]) -> Sequence[RowMapping]:
    return connection.execute(statement, {"ids": sample_ids}).mappings().all()


_Place: TypeAlias = tuple[int, str, int]
"""Sample, kind and index."""
_Signals: TypeAlias = Mapping[_Place, Mapping[str, RowMapping]]


def _load_signals(connection: Connection, sample_ids: list[int]) -> _Signals:
    """Rows of signals by what they are of, and by name."""
    found: dict[_Place, dict[str, RowMapping]] = defaultdict(dict)
    for row in _rows(connection, _SELECT_SIGNALS, sample_ids):
        found[row["sample_id"], row["kind"], row["index"]][row["name"]] = row
    return found


def _values(rows: Mapping[str, RowMapping], num_tokens: int) -> SignalValues:
    return {Signal(name): signal_values(row["places"], row["values"], num_tokens) for name, row in rows.items()}

"""The statements that store what a worker wrote, fenced by the sample's epoch.

A commit touches only rows that still have the epoch and the holder under which they were claimed, and the text that the
writer went on from: as many segments and asides, and runnable since the same moment. Rows are locked in the order of
their ids, so that two workers never wait for each other in a circle.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, text

from pipeline.chat.steps import Step
from pipeline.db.parts import delete_parts
from pipeline.db.runnable import RUNNABLE_COLUMNS, Runnable, runnable, select_runnable
from pipeline.db.states import role_of
from pipeline.policies.protocol import PolicyState
from pipeline.policies.requests import Request, request_to_json
from pipeline.samples import Author, FinishReason, SampleState
from pipeline.segments import (
    ASIDE_COLUMNS,
    SEGMENT_COLUMNS,
    WrittenAside,
    WrittenSegment,
    aside_row,
    segment_row,
    signal_rows,
    storable,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCommit:
    """What a worker commits for one sample: all that was written under one claim, and the state it leads to."""

    sample_id: int
    epoch: int
    to_state: SampleState
    segments: tuple[WrittenSegment, ...] = ()
    num_segments_before: int | None = None
    """Segments that it stands on, and ``num_asides_before`` asides: where the sample has others, the commit is of a
    history that a restore has undone. None: it stands on whatever there is, and writes nothing."""
    num_asides_before: int | None = None
    runnable_at: dt.datetime | None = None
    """Since when the sample waited as it was claimed, by the claim. Under the same epoch and as many segments two
    histories may have different texts; since the same moment, the same. None: since whenever."""
    asides: tuple[WrittenAside, ...] = ()
    policy_state: PolicyState | None = None
    next_request: Request | None = None
    finish_reason: FinishReason | None = None
    steps: tuple[Step, ...] = ()
    error_class: str | None = None
    error: str | None = None

    @property
    def numbered_segments(self) -> Iterator[tuple[int, WrittenSegment]]:
        """Its segments with their segment_index."""
        return enumerate(self.segments, self.num_segments_before or 0)

    @property
    def claim(self) -> tuple[int, int]:
        """sample id and epoch"""
        return self.sample_id, self.epoch

    @property
    def tokens_generated(self) -> int:
        """By the engine, in all that is stored."""
        return sum(record.tokens_generated for record in (*self.segments, *self.asides))


class StoredRow(NamedTuple):
    """A segment or an aside that a commit of a worker's has stored. It is there if the whole commit is."""

    worker_id: int
    sample_id: int
    committed_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What was stored: claims as (sample id, epoch), and the samples as whoever goes on with them must be told.

    rows: one of each transaction that stored any.
    """

    claims: frozenset[tuple[int, int]]
    samples: list[Runnable]
    rows: tuple[StoredRow, ...] = ()


_SAMPLE_COLUMNS = (
    "sample_id bigint, epoch integer, segments_before integer, asides_before integer, runnable_at timestamptz, "
    "to_state text, policy_state jsonb, next_request jsonb, num_segments integer, "
    "num_takeovers integer, num_asides integer, tokens_small integer, tokens_large integer, tokens_inserted integer, "
    "discarded_small integer, discarded_large integer, aside_small integer, aside_large integer, aside_judge integer, "
    "taken_small integer, taken_large integer, finish_reason text, error_class text, error text"
)
_COUNTED = (
    "num_segments", "num_takeovers", "num_asides", "tokens_small", "tokens_large", "tokens_inserted", "discarded_small",
    "discarded_large", "aside_small", "aside_large", "aside_judge", "taken_small", "taken_large",
)  # fmt: skip
"""Columns of samples that a commit adds to."""
_OF_CLAIM = ("epoch", "engine_id", "committed_at")
"""Columns that a statement fills itself."""
_SEGMENT_NAMES = [name for name in SEGMENT_COLUMNS if name not in _OF_CLAIM]
_ASIDE_NAMES = [name for name in ASIDE_COLUMNS if name not in _OF_CLAIM]
_STEP_COLUMNS = (
    "step_index integer, text text, author text, tokens_small integer, tokens_large integer, tokens_inserted integer, "
    "start_token integer, sentence_class text, trigger text"
)
_STEP_NAMES = [column.split()[0] for column in _STEP_COLUMNS.split(", ")]


def _names(names: Sequence[str], alias: str = "") -> str:
    return ", ".join(f"{alias}{name}" for name in names)


# One statement: the round trips of several, and what SQLAlchemy adds to each row of an INSERT, cost more than the work.
# The row type of segments says how JSON becomes its columns.
_COMMIT = text(f"""
    WITH written AS (
        SELECT * FROM jsonb_to_recordset(CAST(:samples AS jsonb)) AS r({_SAMPLE_COLUMNS})
    ),
    mine AS (
        SELECT s.id, written.epoch, s.part_tokens FROM samples s JOIN written ON written.sample_id = s.id
        WHERE s.epoch = written.epoch AND s.holder_id = :worker
          AND s.num_segments = coalesce(written.segments_before, s.num_segments)
          AND s.num_asides = coalesce(written.asides_before, s.num_asides)
          AND (written.runnable_at IS NULL OR written.runnable_at = s.runnable_at)
        ORDER BY s.id FOR UPDATE OF s
    ),
    moved AS (
        UPDATE samples s SET
            state = written.to_state, holder_id = NULL,
            runnable_at = clock_timestamp(), published_at = clock_timestamp(),
            num_rescues = CASE WHEN written.to_state = 'failed' THEN s.num_rescues ELSE 0 END,
            num_attempts = CASE WHEN written.to_state = 'failed' THEN s.num_attempts ELSE 0 END, not_before = NULL,
            part_tokens = CASE WHEN written.to_state = 'failed' THEN s.part_tokens ELSE 0 END,
            policy_state = CASE WHEN written.to_state = 'failed' THEN s.policy_state ELSE written.policy_state END,
            next_request = CASE WHEN written.to_state = 'failed' THEN s.next_request ELSE written.next_request END,
            next_role = CASE WHEN written.to_state = 'failed' THEN s.next_role ELSE {role_of("written.to_state")} END,
            {", ".join(f"{name} = s.{name} + written.{name}" for name in _COUNTED)},
            finish_reason = written.finish_reason, error_class = written.error_class, error = written.error,
            finished_at = CASE WHEN written.to_state = 'finished' THEN clock_timestamp() END,
            ended_at = CASE WHEN written.to_state = 'failed' THEN clock_timestamp() END
        FROM written JOIN mine ON mine.id = written.sample_id AND mine.epoch = written.epoch
        WHERE s.id = mine.id
        RETURNING {RUNNABLE_COLUMNS}
    ),
    new_segments AS (
        INSERT INTO segments (sample_id, epoch, worker_id, engine_id, {_names(_SEGMENT_NAMES)})
        SELECT r.sample_id, r.epoch, :worker, coalesce(r.engine_id, :engine), {_names(_SEGMENT_NAMES, "r.")}
        FROM jsonb_populate_recordset(NULL::segments, CAST(:segments AS jsonb)) AS r
        JOIN moved ON moved.sample_id = r.sample_id AND moved.epoch = r.epoch
    ),
    new_steps AS (
        INSERT INTO steps (sample_id, {_names(_STEP_NAMES)})
        SELECT r.sample_id, {_names(_STEP_NAMES, "r.")}
        FROM jsonb_to_recordset(CAST(:steps AS jsonb)) AS r(sample_id bigint, epoch integer, {_STEP_COLUMNS})
        JOIN moved ON moved.sample_id = r.sample_id AND moved.epoch = r.epoch
    )
    SELECT moved.*, mine.part_tokens, now() AS committed_at
    FROM moved JOIN mine ON mine.id = moved.sample_id ORDER BY sample_id
""")

# Few policies ask, and few jobs read signals: those of others do not pay for these.
_STORE_ASIDES = text(f"""
    INSERT INTO asides (sample_id, epoch, worker_id, engine_id, {_names(_ASIDE_NAMES)})
    SELECT r.sample_id, r.epoch, :worker, coalesce(r.engine_id, :engine), {_names(_ASIDE_NAMES, "r.")}
    FROM jsonb_populate_recordset(NULL::asides, CAST(:asides AS jsonb)) AS r
""")
_STORE_SIGNALS = text("""
    INSERT INTO signals (sample_id, kind, index, name, places, values)
    SELECT r.sample_id, r.kind, r.index, r.name, r.places, r.values
    FROM jsonb_populate_recordset(NULL::signals, CAST(:signals AS jsonb)) AS r
""")

_STORED_BEFORE = text("""
    WITH refused AS (
        SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:epochs AS integer[])) AS r(sample_id, epoch)
    )
    SELECT sample_id, epoch FROM refused
    WHERE EXISTS (SELECT FROM segments g WHERE g.sample_id = refused.sample_id AND g.epoch = refused.epoch
                  AND g.worker_id = :worker)
       OR EXISTS (SELECT FROM asides a WHERE a.sample_id = refused.sample_id AND a.epoch = refused.epoch
                  AND a.worker_id = :worker)
""")


def commit_samples(
    connection: Connection, *, worker_id: int, engine_id: int, commits: Sequence[SampleCommit]
) -> Committed:
    """Store what a worker wrote, for those samples it still holds, and move their states; the rest is dropped.

    Returns what is stored, with what this worker had stored before under the same claim: a
    commit whose answer was lost with the connection is sent again. A sample that fails stays as it was after its last
    segment, for a retry.
    """
    values = {
        "samples": _storable_json(map(_sample_row, commits)),
        "segments": _json(row for commit in commits for row in _segment_rows(commit)),
        "steps": _json(row for commit in commits for row in _step_rows(commit)),
        "worker": worker_id,
        "engine": engine_id,
    }
    rows = [dict(row) for row in connection.execute(_COMMIT, values).mappings()]
    in_parts = {row["sample_id"] for row in rows if row.pop("part_tokens")}
    committed_at = [row.pop("committed_at") for row in rows]
    moved = [runnable(row) for row in rows]
    claims = {(sample.sample_id, sample.epoch) for sample in moved}
    stored = [commit for commit in commits if commit.claim in claims]
    _store_more(connection, stored, worker_id, engine_id)
    delete_parts(
        connection, [s.sample_id for s in moved if s.sample_id in in_parts and s.state is not SampleState.FAILED]
    )
    refused = [commit for commit in commits if commit.claim not in claims]
    stored_before = _stored_before(connection, refused, worker_id)
    again = select_runnable(connection, sorted({sample_id for sample_id, _ in stored_before}))
    with_rows = [commit.sample_id for commit in stored if commit.segments or commit.asides][:1]
    return Committed(
        claims=frozenset(claims | stored_before),
        samples=[*moved, *again],
        rows=tuple(StoredRow(worker_id, sample_id, committed_at[0]) for sample_id in with_rows),
    )


_ARE_UNDONE = text("""
    SELECT EXISTS (
        SELECT FROM unnest(
            CAST(:workers AS bigint[]), CAST(:samples AS bigint[]), CAST(:moments AS timestamptz[])
        ) AS r(worker_id, sample_id, committed_at)
        WHERE r.committed_at < pg_postmaster_start_time()
          AND NOT EXISTS (SELECT FROM segments g WHERE g.sample_id = r.sample_id AND g.worker_id = r.worker_id
                          AND g.committed_at = r.committed_at)
          AND NOT EXISTS (SELECT FROM asides a WHERE a.sample_id = r.sample_id AND a.worker_id = r.worker_id
                          AND a.committed_at = r.committed_at)
    )
""")


def are_undone(connection: Connection, rows: Sequence[StoredRow]) -> bool:
    """Whether the server has come back without one of some commits: it was restored to an earlier moment, or
    another one took its place that had not heard of the last commits. rows: one of each commit."""
    values = {
        "workers": [row.worker_id for row in rows],
        "samples": [row.sample_id for row in rows],
        "moments": [row.committed_at for row in rows],
    }
    return bool(connection.execute(_ARE_UNDONE, values).scalar_one())


def _store_more(connection: Connection, stored: Sequence[SampleCommit], worker_id: int, engine_id: int) -> None:
    """The asides and signals of commits whose samples were moved."""
    now = time.monotonic()
    asides = [_of_claim(commit) | aside_row(aside, now=now) for commit in stored for aside in commit.asides]
    if asides:
        values = {"asides": _json(asides), "worker": worker_id, "engine": engine_id}
        connection.execute(_STORE_ASIDES, values)
    signals = [row for commit in stored for row in _signal_rows(commit)]
    if signals:
        connection.execute(_STORE_SIGNALS, {"signals": _json(signals)})


def _json(rows: Iterable[Mapping[str, Any]]) -> str:
    return orjson.dumps(list(rows)).decode()


def _storable_json(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows whose texts nobody has made storable: states and requests are the policy's, and rarely need it."""
    listed = list(rows)
    written = _json(listed)
    return _json(map(_storable_value, listed)) if r"\u0000" in written else written


def _stored_before(connection: Connection, refused: Sequence[SampleCommit], worker_id: int) -> set[tuple[int, int]]:
    """The claims under which this worker has stored something."""
    if not refused:
        return set()
    claims = {"ids": [commit.sample_id for commit in refused], "epochs": [commit.epoch for commit in refused]}
    rows = connection.execute(_STORED_BEFORE, claims | {"worker": worker_id})
    return {(row.sample_id, row.epoch) for row in rows}


def _sample_row(commit: SampleCommit) -> dict[str, Any]:
    return {
        "sample_id": commit.sample_id,
        "epoch": commit.epoch,
        "segments_before": commit.num_segments_before,
        "asides_before": commit.num_asides_before,
        "runnable_at": commit.runnable_at,
        "to_state": commit.to_state.value,
        "policy_state": commit.policy_state,
        "next_request": request_to_json(commit.next_request) if commit.next_request else None,
        "finish_reason": commit.finish_reason,
        "error_class": commit.error_class,
        "error": commit.error,
        **_counts(commit),
    }


def _counts(commit: SampleCommit) -> dict[str, int]:
    """What a commit adds to the counters of its sample, by column."""
    counts = dict.fromkeys(_COUNTED, 0)
    for segment in commit.segments:
        counts[f"tokens_{segment.author.value}"] += segment.num_kept
        if segment.author is not Author.INSERTED:
            counts[f"discarded_{segment.author.value}"] += len(segment.piece) - segment.num_kept
        if segment.taken_from is not None:
            counts[f"taken_{segment.author.value}"] += segment.num_kept
        counts["num_takeovers"] += segment.takes_over
    for aside in commit.asides:
        counts[f"aside_{aside.author.value}"] += len(aside.piece)
    return counts | {"num_segments": len(commit.segments), "num_asides": len(commit.asides)}


def _of_claim(commit: SampleCommit) -> dict[str, int]:
    return {"sample_id": commit.sample_id, "epoch": commit.epoch}


def _segment_rows(commit: SampleCommit) -> list[dict[str, Any]]:
    now = time.monotonic()
    return [_of_claim(commit) | segment_row(segment, index, now=now) for index, segment in commit.numbered_segments]


def _signal_rows(commit: SampleCommit) -> list[dict[str, Any]]:
    pieces = [("segment", index, segment.signals) for index, segment in commit.numbered_segments]
    pieces += [("aside", aside.aside_index, aside.signals) for aside in commit.asides]
    return [
        {"sample_id": commit.sample_id, "kind": kind, "index": index} | row
        for kind, index, signals in pieces
        for row in signal_rows(signals)
    ]


def _storable_value(value: Any) -> Any:
    """A JSON value with its texts as they are stored: a replay reads a policy's state so, too."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {name: _storable_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_storable_value(each) for each in value]
    return value


def _step_rows(commit: SampleCommit) -> list[dict[str, Any]]:
    return [
        _of_claim(commit) | {name: getattr(step, name) for name in _STEP_NAMES} | {"text": storable(step.text)}
        for step in commit.steps
    ]

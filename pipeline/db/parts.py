"""The statements about parts: what is written so far of a segment that takes long, stored while its request runs.

A part is fenced as a commit is: by the sample's epoch and holder. It counts from where the stored ones end, so that
nothing is written twice and no piece is left out. The commit of the segment holds the whole text and deletes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tokens of the segment that a claimed sample has not ended, behind those that are stored already."""

    sample_id: int
    epoch: int
    segment_index: int
    start_token: int
    """In the segment."""
    token_ids: Sequence[int]
    """As its engine wrote them: in its model's vocabulary."""

    @property
    def claim(self) -> tuple[int, int]:
        """sample id and epoch"""
        return self.sample_id, self.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSegment:
    """All that is stored of a segment that nobody has ended. resumed_at: tokens at which later claims went on."""

    token_ids: tuple[int, ...]
    resumed_at: tuple[int, ...] = ()


# It has written without killing its worker: as after a commit, what its workers died of before was not this.
_STORE = text("""
    WITH part AS (
        SELECT * FROM jsonb_to_recordset(CAST(:parts AS jsonb))
        AS r(sample_id bigint, epoch integer, segment_index integer, start_token integer, token_ids integer[])
    ),
    mine AS (
        SELECT s.id FROM samples s JOIN part ON part.sample_id = s.id
        WHERE s.epoch = part.epoch AND s.holder_id = :worker AND s.num_segments = part.segment_index
          AND s.part_tokens = part.start_token
        ORDER BY s.id FOR UPDATE OF s
    ),
    noted AS (
        UPDATE samples s SET part_tokens = part.start_token + cardinality(part.token_ids), num_rescues = 0
        FROM part JOIN mine ON mine.id = part.sample_id WHERE s.id = part.sample_id
        RETURNING s.id
    ),
    stored AS (
        INSERT INTO segment_parts (sample_id, segment_index, start_token, token_ids, epoch, worker_id)
        SELECT part.sample_id, part.segment_index, part.start_token, part.token_ids, part.epoch, :worker
        FROM part JOIN noted ON noted.id = part.sample_id
    )
    SELECT id FROM noted
""")


def store_parts(connection: Connection, *, worker_id: int, parts: Sequence[Part]) -> frozenset[int]:
    """Store what was written of running requests, of those samples that the worker still holds; their ids.

    A sample with a part is no suspect any more.
    """
    rows = [
        {
            "sample_id": part.sample_id,
            "epoch": part.epoch,
            "segment_index": part.segment_index,
            "start_token": part.start_token,
            "token_ids": list(part.token_ids),
        }
        for part in parts
    ]
    values = {"parts": orjson.dumps(rows).decode(), "worker": worker_id}
    return frozenset(connection.execute(_STORE, values).scalars())


_LOAD = text("""
    SELECT p.sample_id, p.epoch, p.start_token, p.token_ids
    FROM unnest(CAST(:ids AS bigint[]), CAST(:indexes AS integer[])) AS wanted(id, segment_index)
    JOIN segment_parts p ON p.sample_id = wanted.id AND p.segment_index = wanted.segment_index
    ORDER BY p.sample_id, p.start_token
""")


def load_open_segments(connection: Connection, indexes: Mapping[int, int]) -> dict[int, OpenSegment]:
    """What is stored of some samples' open segments. indexes: sample id → segment_index."""
    if not indexes:
        return {}
    found: dict[int, OpenSegment] = {}
    epochs: dict[int, int] = {}
    for row in connection.execute(_LOAD, {"ids": list(indexes), "indexes": list(indexes.values())}):
        before = found.get(row.sample_id, OpenSegment(token_ids=()))
        is_resumed = row.sample_id in epochs and epochs[row.sample_id] != row.epoch
        epochs[row.sample_id] = row.epoch
        found[row.sample_id] = OpenSegment(
            token_ids=(*before.token_ids, *row.token_ids),
            resumed_at=(*before.resumed_at, row.start_token) if is_resumed else before.resumed_at,
        )
    return found


_DELETE = text("DELETE FROM segment_parts WHERE sample_id = ANY(:ids)")


def delete_parts(connection: Connection, sample_ids: Iterable[int]) -> None:
    """Of segments that are stored whole."""
    ids = list(sample_ids)
    if ids:
        connection.execute(_DELETE, {"ids": ids})

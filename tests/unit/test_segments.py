"""Records of segments and asides: their columns, rows, hashes and signals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.db.tables import METADATA
from pipeline.samples import Author, Piece, SegmentFinish
from pipeline.segments import (
    ASIDE_COLUMNS,
    ASIDE_HASHED,
    SEGMENT_COLUMNS,
    SEGMENT_HASHED,
    WrittenAside,
    segment_row,
    signal_rows,
    signal_values,
    take_head,
)
from pipeline.signals import SPARSE_SIGNALS, Signal
from tests.pieces import written
from tests.turns import aside_again, stored_again, through_json

PIECE = Piece(token_ids=(5, 6, 7), texts=("one", " two", " three\x00"))
ASIDE = WrittenAside(
    author=Author.LARGE,
    aside_index=2,
    after_segment=1,
    purpose="rate",
    after_asides=((0, 3),),
    piece=PIECE,
    finish=SegmentFinish.LENGTH,
    top=(-0.0, -1.5),
    labels={"yes": -0.0, "no": None},
    vocabulary_sha256="v",
    signals={Signal.LOGPROB: (-0.5, -0.0, -2.0)},
)


@pytest.mark.parametrize(("table", "columns"), [("segments", SEGMENT_COLUMNS), ("asides", ASIDE_COLUMNS)])
def test_records_have_the_columns_of_their_tables(table: str, columns: tuple[str, ...]) -> None:
    filled_by_the_statement = {"sample_id", "worker_id", "committed_at"}
    assert set(columns) | filled_by_the_statement == {column.name for column in METADATA.tables[table].columns}


def test_the_hash_is_of_what_was_written_and_of_nothing_else() -> None:
    of_the_claim = {"epoch", "committed_at", "engine_id", "content_sha256"}
    costs = {name for name in SEGMENT_COLUMNS if name.endswith("_seconds")} | {"prompt_tokens", "cached_tokens"}
    assert set(SEGMENT_COLUMNS) - set(SEGMENT_HASHED) == of_the_claim | costs
    assert set(ASIDE_COLUMNS) - set(ASIDE_HASHED) == of_the_claim | costs


def test_a_stored_segment_is_what_was_written() -> None:
    segment = written(Author.SMALL, PIECE, num_kept=2, value=-0.0, threshold=0.5, outcome="x", cue="wait")
    stored = stored_again(segment, 4, epoch=3)
    assert (stored.kept, stored.texts) == (PIECE.head(2), ("one", " two", " three\ufffd"))
    assert (list(stored.discarded_ids), stored.discarded_text) == ([7], " three\ufffd")
    assert (stored.segment_index, stored.epoch, stored.sha256) == (4, 3, stored.content_sha256)
    assert segment.kept == stored.kept


def test_a_stored_aside_is_what_was_written() -> None:
    stored = aside_again(ASIDE, epoch=3)
    assert (stored.piece.token_ids, stored.sha256) == (PIECE.token_ids, stored.content_sha256)
    assert replace(stored, top=[-0.1, -1.5]).sha256 != stored.content_sha256
    assert replace(stored, labels={"yes": None, "no": None}).sha256 != stored.content_sha256
    assert replace(stored, signals={Signal.LOGPROB: (-0.5, -0.1, -2.0)}).sha256 != stored.content_sha256
    assert replace(stored, labels={"no": None, "yes": 0.0}).sha256 == stored.content_sha256, (
        "as a database gives it back"
    )


def test_a_piece_that_was_held_says_how_long() -> None:
    assert segment_row(written(Author.SMALL, PIECE, ended_at=10.0), 0, now=12.5)["held_seconds"] == 2.5
    assert segment_row(written(Author.INSERTED, PIECE), 0, now=12.5)["held_seconds"] is None


def test_a_head_is_its_authors_and_cost_nothing_again() -> None:
    head = take_head(aside_again(ASIDE, epoch=3), 2)
    assert (head.author, head.trigger, head.taken_from, head.kept) == (Author.LARGE, "rate", 2, PIECE.head(2))
    assert (head.tokens_generated, head.finish, head.engine_id) == (0, None, 1)


VALUES = st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), max_size=8)


@given(signal=st.sampled_from(Signal), values=VALUES)
def test_signals_come_back_as_they_were(signal: Signal, values: list[float | None]) -> None:
    [row] = through_json(signal_rows({signal: tuple(values)}))
    assert (row["places"] is None) == (signal not in SPARSE_SIGNALS)
    assert signal_values(row["places"], row["values"], len(values)) == tuple(values)

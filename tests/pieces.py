"""Segments as tests need them: made of texts or ids, with what the test is not about filled in."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from pipeline.samples import Author, Piece, SegmentFinish
from pipeline.segments import StoredSegment, WrittenSegment


def written(
    author: Author, piece: Piece | Sequence[str], *, num_kept: int | None = None, **more: Any
) -> WrittenSegment:
    """A segment of a piece, or of texts whose ids are their places; all of it is kept where num_kept is not given."""
    if not isinstance(piece, Piece):
        piece = Piece(token_ids=tuple(range(len(piece))), texts=tuple(piece))
    fields = {"trigger": "start", "finish": SegmentFinish.WATCH, "vocabulary_sha256": "v", **more}
    return WrittenSegment(author=author, piece=piece, num_kept=len(piece) if num_kept is None else num_kept, **fields)


def stored(author: Author, texts: Sequence[str], segment_index: int = 0, **more: Any) -> StoredSegment:
    """A stored segment of which all is kept."""
    fields = {
        "trigger": "start", "finish": SegmentFinish.WATCH, "discarded_ids": (), "discarded_text": "", "epoch": 1,
        "engine_id": 1, "vocabulary_sha256": "v", "content_sha256": None, "tokens_generated": len(texts), **more,
    }  # fmt: skip
    return StoredSegment(
        author=author,
        segment_index=segment_index,
        token_ids=tuple(range(len(texts))),
        text="".join(texts),
        token_lengths=[len(text) for text in texts],
        committed_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        **fields,
    )

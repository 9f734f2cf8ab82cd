"""Segments and asides: one piece of writing each, as a worker writes it and as the database stores it.

The fields of the stored records are the columns of the tables ``segments`` and ``asides``: statements and hashes take
their lists from here. A new column that a worker fills stands in the base class here, in the table's model and its
migration, and where ``workers/writing/turn.py`` gives it its value.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeAlias

import orjson

from pipeline.samples import Author, Piece, SegmentFinish
from pipeline.signals import SPARSE_SIGNALS, Signal, SignalValues

_NO_COLUMN = {"column": False}
_NOT_HASHED = {"hashed": False}
"""What says how a piece came about, not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What every piece of writing has.

    held_seconds: from its end to the commit; known when that is sent.
    value, threshold, outcome: the number that decided about it, where one did.
    """

    author: Author
    finish: SegmentFinish | None = None
    tokens_generated: int = 0
    prompt_tokens: int = field(default=0, metadata=_NOT_HASHED)
    cached_tokens: int = field(default=0, metadata=_NOT_HASHED)
    seed: int | None = None
    value: float | None = None
    threshold: float | None = None
    outcome: str | None = None
    wait_seconds: float | None = field(default=None, metadata=_NOT_HASHED)
    queue_seconds: float | None = field(default=None, metadata=_NOT_HASHED)
    first_token_seconds: float | None = field(default=None, metadata=_NOT_HASHED)
    write_seconds: float | None = field(default=None, metadata=_NOT_HASHED)
    held_seconds: float | None = field(default=None, metadata=_NOT_HASHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment(_Record):
    """trigger: why its author wrote here; of a taken one its purpose. taken_from: the aside that it is the head of.
    resumed_at: tokens at which a later claim went on behind what was stored of it; None: written in one go."""

    trigger: str
    cue: str = ""
    takes_over: bool = False
    taken_from: int | None = None
    resumed_at: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aside(_Record):
    """after_segment: segments that were there when it was asked for. The rest is as in ``policies.requests.Ask``."""

    aside_index: int
    after_segment: int
    purpose: str
    question: str = ""
    turn: bool = False
    opening: str = ""
    after_asides: Sequence[Sequence[int]] = ()
    top: Sequence[float] = ()
    labels: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSegment(_Segment):
    """A segment as it was written: the first num_kept tokens of the piece are kept, the rest is discarded.

    engine_id: of its author's engine where that is not the engine of the worker that stores it. ended_at: when its
    request ended, by ``time.monotonic``.
    """

    piece: Piece
    num_kept: int
    vocabulary_sha256: str
    engine_id: int | None = None
    ended_at: float | None = None
    signals: SignalValues = field(default_factory=dict)

    @property
    def kept(self) -> Piece:
        return self.piece if self.num_kept == len(self.piece) else self.piece.head(self.num_kept)

    @property
    def kept_ids(self) -> Sequence[int]:
        return self.piece.token_ids[: self.num_kept]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenAside(_Aside):
    """An aside as it was written. ended_at: as for a segment."""

    piece: Piece
    vocabulary_sha256: str
    ended_at: float | None = None
    signals: SignalValues = field(default_factory=dict)

    @property
    def engine_id(self) -> int | None:
        """None: the engine of the worker that stores it."""
        return None


@dataclass(frozen=True, kw_only=True)  # without slots: what is made of a row is made once
class ContextSegment:
    """Of a row of segments, what a worker needs that goes on from it."""

    author: Author
    finish: SegmentFinish | None
    trigger: str
    takes_over: bool
    token_ids: Sequence[int]
    text: str
    token_lengths: Sequence[int]
    tokens_generated: int
    prompt_tokens: int
    epoch: int = field(metadata=_NOT_HASHED)
    committed_at: dt.datetime = field(metadata=_NOT_HASHED)
    vocabulary_sha256: str = field(metadata=_NO_COLUMN)

    @property
    def num_kept(self) -> int:
        return len(self.token_ids)

    @property
    def kept_ids(self) -> Sequence[int]:
        return self.token_ids

    @cached_property
    def kept(self) -> Piece:
        """What is kept of it."""
        texts = _split(self.text, self.token_lengths[: self.num_kept])
        return Piece(token_ids=tuple(self.token_ids), texts=texts)


@dataclass(frozen=True, kw_only=True)
class StoredSegment(_Segment, ContextSegment):
    """A row of segments. ``content_sha256`` is of all columns that say what was written, and of its signals."""

    segment_index: int
    discarded_ids: Sequence[int]
    discarded_text: str
    content_sha256: str | None
    engine_id: int = field(metadata=_NOT_HASHED)
    signals: SignalValues = field(default_factory=dict, metadata=_NO_COLUMN)

    @property
    def sha256(self) -> str:
        """The hash that belongs to it as it is now."""
        return content_sha256(self, SEGMENT_HASHED)

    @property
    def texts(self) -> tuple[str, ...]:
        """What each token added, the discarded ones included."""
        return _split(self.text + self.discarded_text, self.token_lengths)


@dataclass(frozen=True, kw_only=True)
class StoredAside(_Aside):
    """A row of asides."""

    token_ids: Sequence[int]
    text: str
    token_lengths: Sequence[int]
    content_sha256: str | None
    epoch: int = field(metadata=_NOT_HASHED)
    committed_at: dt.datetime = field(metadata=_NOT_HASHED)
    engine_id: int = field(metadata=_NOT_HASHED)
    vocabulary_sha256: str = field(metadata=_NO_COLUMN)
    signals: SignalValues = field(default_factory=dict, metadata=_NO_COLUMN)

    @property
    def sha256(self) -> str:
        """The hash that belongs to it as it is now."""
        return content_sha256(self, ASIDE_HASHED)

    @cached_property
    def piece(self) -> Piece:
        return Piece(token_ids=tuple(self.token_ids), texts=_split(self.text, self.token_lengths))


Segment: TypeAlias = WrittenSegment | ContextSegment
"""A part of a sample's text, whether or not it is stored yet."""
Aside: TypeAlias = WrittenAside | StoredAside


def _columns(stored: type[ContextSegment] | type[StoredSegment] | type[StoredAside]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(stored) if each.metadata.get("column", True))


def _hashed(stored: type[StoredSegment] | type[StoredAside]) -> tuple[str, ...]:
    is_hashed = {each.name: each.metadata.get("hashed", True) for each in fields(stored)}
    return tuple(name for name in _columns(stored) if is_hashed[name] and name != "content_sha256")


SEGMENT_COLUMNS, ASIDE_COLUMNS = _columns(StoredSegment), _columns(StoredAside)
"""Columns of segments and asides, without sample and worker."""
CONTEXT_COLUMNS = _columns(ContextSegment)
"""Columns of segments that a claim reads."""
SEGMENT_HASHED, ASIDE_HASHED = _hashed(StoredSegment), _hashed(StoredAside)
"""Of these, what ``content_sha256`` is of, beside the signals."""


def take_head(aside: Aside, num_tokens: int, *, takes_over: bool = False) -> WrittenSegment:
    """The first num_tokens of an aside as a segment by its author."""
    return WrittenSegment(
        author=aside.author,
        trigger=aside.purpose,
        takes_over=takes_over,
        piece=aside.piece.head(num_tokens),
        num_kept=num_tokens,
        taken_from=aside.aside_index,
        vocabulary_sha256=aside.vocabulary_sha256,
        engine_id=aside.engine_id,
    )


# Rows, as JSON takes them.


def segment_row(segment: WrittenSegment, segment_index: int, *, now: float) -> dict[str, Any]:
    """What is stored of a segment: every column but those of its claim. now: by ``time.monotonic``."""
    ids, texts, num_kept = segment.piece.token_ids, segment.piece.texts, segment.num_kept
    return _with_hash(
        _carried(_Segment, segment)
        | {
            "segment_index": segment_index,
            "token_ids": list(ids[:num_kept]),
            "text": storable("".join(texts[:num_kept])),
            "discarded_ids": list(ids[num_kept:]),
            "discarded_text": storable("".join(texts[num_kept:])),
            "token_lengths": [len(each) for each in texts],
        },
        SEGMENT_HASHED,
        segment.signals,
    ) | _when_sent(segment, now)


def aside_row(aside: WrittenAside, *, now: float) -> dict[str, Any]:
    """What is stored of an aside: every column but those of its claim. now: as for a segment."""
    return _with_hash(
        _carried(_Aside, aside)
        | {
            "question": storable(aside.question),
            "opening": storable(aside.opening),
            "token_ids": list(aside.piece.token_ids),
            "text": storable(aside.piece.text),
            "token_lengths": [len(each) for each in aside.piece.texts],
        },
        ASIDE_HASHED,
        aside.signals,
    ) | _when_sent(aside, now)


def _when_sent(record: WrittenSegment | WrittenAside, now: float) -> dict[str, Any]:
    held_seconds = None if record.ended_at is None else now - record.ended_at
    return {"engine_id": record.engine_id, "held_seconds": held_seconds}


_CARRIED = {base: tuple(each.name for each in fields(base)) for base in (_Segment, _Aside)}
_VALUES = {base: attrgetter(*names) for base, names in _CARRIED.items()}


def _carried(base: type[_Segment] | type[_Aside], record: WrittenSegment | WrittenAside) -> dict[str, Any]:
    """The fields of the base class as JSON has them."""
    return dict(zip(_CARRIED[base], map(_plain, _VALUES[base](record)), strict=True))


def _with_hash(row: dict[str, Any], hashed: Sequence[str], signals: SignalValues) -> dict[str, Any]:
    return row | {"content_sha256": _sha256([row[name] for name in hashed], signals)}


def content_sha256(stored: StoredSegment | StoredAside, hashed: Sequence[str]) -> str:
    """The hash of what a row and its signals say was written."""
    return _sha256([_plain(getattr(stored, name)) for name in hashed], stored.signals)


def _sha256(values: Sequence[Any], signals: SignalValues) -> str:
    content = [values, [[row["name"], row["places"], row["values"]] for row in signal_rows(signals)]]
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _plain(value: Any) -> Any:
    """A value as it comes back from the database: there is one zero, and a list for every sequence."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value + 0.0
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def signal_rows(signals: SignalValues) -> list[dict[str, Any]]:
    """What is stored of a piece's signals: a value for each token, or those that are there with their places."""
    return [_signal_row(signal, signals[signal]) for signal in sorted(signals)]


def _signal_row(signal: Signal, values: Sequence[float | None]) -> dict[str, Any]:
    if signal not in SPARSE_SIGNALS:
        return {"name": signal.value, "places": None, "values": [_plain(value) for value in values]}
    found = [(place, value) for place, value in enumerate(values) if value is not None]
    return {
        "name": signal.value,
        "places": [place for place, _ in found],
        "values": [_plain(value) for _, value in found],
    }


def signal_values(
    places: Sequence[int] | None, values: Sequence[float | None], num_tokens: int
) -> tuple[float | None, ...]:
    """One entry per token again, from a stored row."""
    if places is None:
        return tuple(values)
    entries: list[float | None] = [None] * num_tokens
    for place, value in zip(places, values, strict=True):
        entries[place] = value
    return tuple(entries)


def storable(written: str) -> str:
    """The text as Postgres takes it: NUL cannot be stored and becomes the replacement character (same length)."""
    return written.replace("\x00", "\ufffd")


def _split(text: str, lengths: Sequence[int]) -> tuple[str, ...]:
    texts, start = [], 0
    for length in lengths:
        texts.append(text[start : start + length])
        start += length
    return tuple(texts)

"""What claimed samples have so far: their segments and asides, from this process's cache and from the database."""

from __future__ import annotations

import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, text

from pipeline.db.readable import FAULTS, why_unreadable
from pipeline.samples import Author, SegmentFinish
from pipeline.segments import (
    ASIDE_COLUMNS,
    CONTEXT_COLUMNS,
    SEGMENT_COLUMNS,
    ContextSegment,
    StoredAside,
    StoredSegment,
)

_Stored = TypeVar("_Stored", ContextSegment, StoredAside)


@dataclass(frozen=True, kw_only=True)  # without slots: what is counted is counted once
class Context:
    """Everything that is stored of what a sample's models wrote, each kind in order."""

    segments: tuple[ContextSegment, ...] = ()
    asides: tuple[StoredAside, ...] = ()
    fault: str | None = None
    """Why it cannot be read; it is empty then."""

    @cached_property
    def num_kept(self) -> int:
        """Tokens of its text."""
        return sum([len(segment.token_ids) for segment in self.segments])

    @property
    def num_tokens(self) -> int:
        """What it takes in memory, an empty record as one token."""
        in_asides = sum([1 + len(aside.token_ids) for aside in self.asides])
        return self.num_kept + len(self.segments) + in_asides


EMPTY = Context()


class ContextCache:
    """The contexts that this process has loaded, so that a claim reads only what came after. Thread-safe.

    A cache; claims revalidate it against the database. Entries of samples that another worker finished age out.
    max_tokens, max_samples: most that it holds (about 100 bytes per token); what was not used for longest goes first.
    """

    def __init__(self, max_tokens: int = 1_000_000, max_samples: int = 10_000) -> None:
        self._max_tokens = max_tokens
        self._max_samples = max_samples
        self._num_tokens = 0
        self._contexts: OrderedDict[int, tuple[Context, int]] = OrderedDict()
        """By sample id, each with its number of tokens."""
        self._lock = threading.Lock()

    def recall(self, sample_id: int) -> Context:
        """As it was last kept; an empty one where it was not."""
        with self._lock:
            return self._contexts.get(sample_id, (EMPTY, 0))[0]

    def keep(self, sample_id: int, context: Context) -> None:
        with self._lock:
            self._forget(sample_id)
            num_tokens = context.num_tokens
            self._contexts[sample_id] = context, num_tokens
            self._num_tokens += num_tokens
            while self._num_tokens > self._max_tokens or len(self._contexts) > self._max_samples:
                self._forget(next(iter(self._contexts)))

    def forget(self, sample_id: int) -> None:
        """Nobody will go on with this sample."""
        with self._lock:
            self._forget(sample_id)

    def _forget(self, sample_id: int) -> None:
        _, num_tokens = self._contexts.pop(sample_id, (EMPTY, 0))
        self._num_tokens -= num_tokens


def load_contexts(
    connection: Connection, sample_ids: Sequence[int], cache: ContextCache, *, with_asides: Collection[int] = ()
) -> dict[int, Context]:
    """The contexts of claimed samples: what is cached of each, and what was stored after it; they are cached now.

    with_asides: the samples that have any.
    The last record of each kind that is cached is read again. Its epoch and the time of its commit tell whether it,
    and all before it, are still those that are stored: a sample that was begun anew, or a database that was restored
    to an earlier moment, has others in their places.
    """
    cached = {sample_id: cache.recall(sample_id) for sample_id in sample_ids}
    contexts = _load(connection, cached, with_asides)
    stale = {sample_id: EMPTY for sample_id in sample_ids if sample_id not in contexts}
    contexts |= _load(connection, stale, with_asides)
    for sample_id, context in contexts.items():
        if context.fault is None:
            cache.keep(sample_id, context)
    return contexts


def _load(connection: Connection, cached: Mapping[int, Context], with_asides: Collection[int]) -> dict[int, Context]:
    """The contexts of those samples whose cached ones are still true."""
    segment_starts = {sample_id: len(context.segments) - 1 for sample_id, context in cached.items()}
    aside_starts = {
        sample_id: len(context.asides) - 1
        for sample_id, context in cached.items()
        if sample_id in with_asides or context.asides
    }
    faults: dict[int, str] = {}
    segments = _load_segments(connection, segment_starts, faults)
    asides = _load_asides(connection, aside_starts, faults)
    contexts = {sample_id: Context(fault=fault) for sample_id, fault in faults.items()}
    for sample_id, context in cached.items():
        if sample_id in faults:
            continue
        new_segments, new_asides = segments.get(sample_id, ()), asides.get(sample_id, ())
        if _begins_with(new_segments, context.segments) and _begins_with(new_asides, context.asides):
            contexts[sample_id] = Context(
                segments=context.segments[:-1] + new_segments, asides=context.asides[:-1] + new_asides
            )
    return contexts


def _begins_with(loaded: tuple[_Stored, ...], cached: tuple[_Stored, ...]) -> bool:
    return not cached or (bool(loaded) and _commit(loaded[0]) == _commit(cached[-1]))


def _commit(stored: ContextSegment | StoredAside) -> tuple[int, dt.datetime]:
    return stored.epoch, stored.committed_at


def segment_columns(alias: str) -> str:
    """What to select of segments AS alias, joined with their engines e, to make StoredSegments."""
    return _columns(SEGMENT_COLUMNS, alias)


def aside_columns(alias: str) -> str:
    """What to select of asides AS alias, joined with their engines e, to make StoredAsides."""
    return _columns(ASIDE_COLUMNS, alias)


def _columns(names: Sequence[str], alias: str) -> str:
    return ", ".join(f"{alias}.{name}" for name in names) + ", e.vocabulary_sha256"


_LOAD_SEGMENTS = text(f"""
    SELECT g.sample_id, {_columns(CONTEXT_COLUMNS, "g")}
    FROM unnest(CAST(:ids AS bigint[]), CAST(:starts AS integer[])) AS wanted(id, start)
    JOIN segments g ON g.sample_id = wanted.id AND g.segment_index >= wanted.start
    JOIN engines e ON e.id = g.engine_id
    ORDER BY g.sample_id, g.segment_index
""")
_LOAD_ASIDES = text(f"""
    SELECT a.sample_id, {aside_columns("a")}
    FROM unnest(CAST(:ids AS bigint[]), CAST(:starts AS integer[])) AS wanted(id, start)
    JOIN asides a ON a.sample_id = wanted.id AND a.aside_index >= wanted.start
    JOIN engines e ON e.id = a.engine_id
    ORDER BY a.sample_id, a.aside_index
""")


def _load_segments(
    connection: Connection, starts: Mapping[int, int], faults: dict[int, str]
) -> dict[int, tuple[ContextSegment, ...]]:
    """starts: sample id → the first segment_index of interest. faults: takes the samples that cannot be read."""
    if not starts:
        return {}
    rows = connection.execute(_LOAD_SEGMENTS, {"ids": list(starts), "starts": list(starts.values())}).all()
    return _make(rows, _context_segment, faults)


def _load_asides(
    connection: Connection, starts: Mapping[int, int], faults: dict[int, str]
) -> dict[int, tuple[StoredAside, ...]]:
    """As ``_load_segments``, by aside_index."""
    if not starts:
        return {}
    rows = connection.execute(_LOAD_ASIDES, {"ids": list(starts), "starts": list(starts.values())}).all()
    return _make(rows, stored_aside, faults)


def _make(
    rows: Iterable[Row[Any]], make: Callable[[Row[Any]], _Stored], faults: dict[int, str]
) -> dict[int, tuple[_Stored, ...]]:
    """The records of each sample; one that cannot be read costs its own sample alone."""
    made: dict[int, tuple[_Stored, ...]] = {}
    for sample_id, group in groupby(rows, lambda row: int(row.sample_id)):
        try:
            made[sample_id] = tuple(map(make, group))
        except FAULTS as error:
            faults[sample_id] = why_unreadable(error)
    return made


_CONTEXT_FIELDS, _SEGMENT_FIELDS, _ASIDE_FIELDS = (
    (*names, "vocabulary_sha256") for names in (CONTEXT_COLUMNS, SEGMENT_COLUMNS, ASIDE_COLUMNS)
)


def _context_segment(row: Row[Any]) -> ContextSegment:
    return ContextSegment(**_values(_CONTEXT_FIELDS, row))


def stored_segment(row: Row[Any], **more: Any) -> StoredSegment:
    """A row of sample_id and ``segment_columns``. more: fields that are no columns of it."""
    return StoredSegment(**_values(_SEGMENT_FIELDS, row), **more)


def stored_aside(row: Row[Any], **more: Any) -> StoredAside:
    """A row of sample_id and ``aside_columns``. more: fields that are no columns of it."""
    return StoredAside(**_values(_ASIDE_FIELDS, row), **more)


def _values(names: Sequence[str], row: Row[Any]) -> dict[str, Any]:
    # By their places: SQLAlchemy looks names up one by one.
    values: dict[str, Any] = dict(zip(names, row[1:], strict=True))
    values["author"] = Author(values["author"])
    values["finish"] = SegmentFinish(values["finish"]) if values["finish"] else None
    for name in ("token_ids", "text"):
        if values[name] is None:
            raise ValueError(f"{name} is missing")
    return values

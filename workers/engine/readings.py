"""Turns an engine's log-probabilities into readings: plain arithmetic on the most likely tokens, in nats.

Readings are rounded here, before anybody sees them: stop rule, policy, database and replay share one value. A value
that is not finite (an engine may report minus infinity) becomes None, like a value out of sight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, assert_never

from pipeline.breaks import BreakFinder
from pipeline.signals import DIGITS, SPARSE_SIGNALS, Readings, Signal, SignalValues


class Top(NamedTuple):
    """The most likely tokens at one place, greatest first, ``NUM_TOP`` at most."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]


class LogprobRows(Protocol):
    """What an engine reports of the tokens that one step drew for one request: a row for each, EOS included."""

    def drawn(self, row: int) -> float:
        """Log-probability of the token that was drawn."""
        ...

    def top(self, row: int) -> Top: ...


def rounded(value: float | None) -> float | None:
    """A reading as it is seen and stored."""
    return round(value, DIGITS) if value is not None and math.isfinite(value) else None


def entropy(logprobs: Sequence[float]) -> float:
    """Of the most likely tokens, renormalised over them. Source: GlimpRouter's released code (arXiv 2601.05110)."""
    weights = [math.exp(logprob) for logprob in logprobs]
    total = math.fsum(weights)
    if not total:
        return math.nan
    return math.log(total) - math.fsum(w * lp for w, lp in zip(weights, logprobs, strict=True) if w) / total


def margin(logprobs: Sequence[float]) -> float:
    """Probability of the most likely token less that of the second."""
    first, second = [*map(math.exp, logprobs[:2]), 0.0, 0.0][:2]
    return first - second


def first_margin(top: Top, token_id: int | None) -> float | None:
    """Log-probability of the most likely token less this one's; None where this one is out of sight."""
    found = _logprobs_of(top, () if token_id is None else (token_id,))
    return top.logprobs[0] - found[0] if found else None


def label_logprob(top: Top, token_ids: Sequence[int]) -> float | None:
    """Log-probability that one of these tokens comes, of those in sight; None where none is."""
    total = math.fsum(map(math.exp, _logprobs_of(top, token_ids)))
    return math.log(total) if total else None


def read_labels(top: Top | None, labels: Mapping[str, tuple[int, ...]]) -> dict[str, float | None]:
    """The log-probability of each label. top: of the first token, None where none came."""
    return {name: rounded(label_logprob(top, ids)) if top else None for name, ids in labels.items()}


def read_top(top: Top | None) -> tuple[float, ...]:
    """The log-probabilities of the most likely tokens."""
    values = map(rounded, top.logprobs) if top else ()
    return tuple(value for value in values if value is not None)


def _logprobs_of(top: Top, token_ids: Sequence[int]) -> list[float]:
    return [logprob for token_id, logprob in zip(*top, strict=True) if token_id in token_ids]


Read: TypeAlias = Callable[[LogprobRows, int], float | None]
"""Rows and the token's row → the value of one signal."""


def signal_read(signal: Signal, *, think_end_id: int | None = None) -> Read:
    """How a signal is read."""
    match signal:
        case Signal.LOGPROB:
            return lambda rows, row: rows.drawn(row)
        case Signal.MARGIN:
            return lambda rows, row: margin(rows.top(row).logprobs)
        case Signal.FIRST_ENTROPY:
            return lambda rows, row: entropy(rows.top(row).logprobs)
        case Signal.FIRST_MARGIN:
            return lambda rows, row: first_margin(rows.top(row), think_end_id)
        case _:
            assert_never(signal)


class _Series(NamedTuple):
    """One signal of one request, and its values so far."""

    signal: Signal
    is_sparse: bool
    read: Read
    values: list[float | None]


class SignalReader:
    """Reads the signals of one request, token by token.

    A sparse signal has a value at the request's first token, and at the first token after a run of newlines that is a
    break: a run that comes in several tokens is read once, after the last of them.
    """

    __slots__ = ("_breaks", "_has_sparse", "_is_first", "_series")

    def __init__(self, signals: frozenset[Signal], *, think_end_id: int | None = None, newlines: int = 0) -> None:
        """newlines: that the text before the request ends with."""
        self._series = [
            _Series(signal, signal in SPARSE_SIGNALS, signal_read(signal, think_end_id=think_end_id), [])
            for signal in sorted(signals)
        ]
        self._has_sparse = bool(signals & SPARSE_SIGNALS)
        self._breaks = BreakFinder(newlines)
        self._is_first = True

    def read(self, text: str, rows: LogprobRows, row: int) -> Readings:
        """The readings of the next token, which is in that row and adds that text."""
        starts_step = self._has_sparse and self._starts_step(text)
        readings = {}
        for signal, is_sparse, read, values in self._series:
            value = None if is_sparse and not starts_step else rounded(read(rows, row))
            readings[signal] = value
            values.append(value)
        return readings

    @property
    def values(self) -> SignalValues:
        """All that was read, one entry per token."""
        return {series.signal: tuple(series.values) for series in self._series}

    def _starts_step(self, text: str) -> bool:
        self._breaks.feed(text)
        starts, self._is_first = self._is_first or self._breaks.begins_step, False
        return starts

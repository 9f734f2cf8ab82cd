"""The record of one running request, and the running totals of an engine.

Neither class locks: an engine touches each from one thread at a time. Time is ``time.monotonic`` in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.breaks import BreakFinder
from pipeline.samples import Piece, SegmentFinish
from pipeline.signals import SPARSE_SIGNALS
from workers.engine.base import Done, EngineStats, GenerateRequest, GenerateResult
from workers.engine.readings import LogprobRows, SignalReader, Top, read_labels, read_top


class DecodeStream(Protocol):
    """Ids to text, for one request (pipeline.chat.tokens)."""

    def step(self, token_id: int) -> str:
        """What this token adds to the text; "" inside a character that spans tokens."""
        ...


class Running:
    """A request between submit and its result.

    Text is made only where a watcher or a signal needs it, else once at the end: a step of the engine brings a token
    for each of some hundred requests, and this is the code that runs per token.
    """

    __slots__ = (
        "_decoder",
        "_first",
        "_signals",
        "_texts",
        "_token_ids",
        "_watching",
        "done",
        "first_token_at",
        "num_cached_tokens",
        "num_generated_tokens",
        "reads_logprobs",
        "request",
        "scheduled_at",
        "submitted_at",
    )

    def __init__(self, request: GenerateRequest, done: Done, decoder: DecodeStream, *, newlines: int = 0) -> None:
        """newlines: that the text before it ends with."""
        self.request = request
        self.done = done
        self.submitted_at = time.monotonic()
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0
        """Ids that the engine made, EOS included."""
        self._decoder = decoder
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._watching = request.watcher is not None
        self.reads_logprobs = request.num_logprobs is not None
        self._first: Top | None = None
        self._signals = (
            SignalReader(request.signals, think_end_id=request.think_end_id, newlines=newlines)
            if request.signals
            else None
        )

    def go_on_from(self, written: Sequence[int]) -> bool:
        """Begin with what an earlier request wrote. True: the watcher ends the request."""
        self._token_ids += written
        return self._watching and self._read_along(written)

    @property
    def token_ids(self) -> Sequence[int]:
        """Written so far, without EOS."""
        return self._token_ids

    def take(self, token_ids: Sequence[int], rows: LogprobRows | None = None) -> bool:
        """Add what one step wrote, without EOS. True: the watcher ends the request.

        rows: of what the step drew, EOS included, where the request asks for log-probabilities and it drew anything.
        """
        self._token_ids += token_ids
        if self.reads_logprobs and (rows is not None or token_ids):
            return self._take_rows(token_ids, rows)
        return self._watching and self._read_along(token_ids)

    def result(self, finish: SegmentFinish) -> GenerateResult:
        now = time.monotonic()
        return GenerateResult(
            request_id=self.request.request_id,
            piece=self._piece(),
            finish=finish,
            num_generated_tokens=self.num_generated_tokens,
            num_prompt_tokens=len(self.request.prompt_ids),
            num_cached_tokens=min(self.num_cached_tokens, len(self.request.prompt_ids)),
            queue_seconds=(self.scheduled_at or self.first_token_at or now) - self.submitted_at,
            first_token_seconds=(self.first_token_at or now) - self.submitted_at,
            total_seconds=now - self.submitted_at,
            signals=self._signals.values if self._signals else {},
            labels=read_labels(self._first, self.request.labels),
            top=read_top(self._first) if self.request.reads_top else (),
        )

    def _read_along(self, token_ids: Sequence[int]) -> bool:
        watcher = self.request.watcher
        assert watcher is not None
        for token_id in token_ids:
            text = self._decoder.step(token_id)
            self._texts.append(text)
            if self._watching and watcher.feed(text):
                self._watching = False  # never asked again; the tokens after it still get their text
        return not self._watching

    def _take_rows(self, token_ids: Sequence[int], rows: LogprobRows | None) -> bool:
        if rows is None:
            raise LookupError("no log-probabilities came with its tokens")
        if self._first is None and self.request.reads_first:
            self._first = rows.top(0)
        if self._signals is None:
            return self._watching and self._read_along(token_ids)
        for row, token_id in enumerate(token_ids):
            self._read_signals(self._signals, token_id, rows, row)
        return self.request.watcher is not None and not self._watching

    def _read_signals(self, signals: SignalReader, token_id: int, rows: LogprobRows, row: int) -> None:
        """Each token gets its text and readings, those after the watcher's word too; it is not asked again."""
        text = self._decoder.step(token_id)
        self._texts.append(text)
        readings = signals.read(text, rows, row)
        watcher = self.request.watcher
        if self._watching and watcher is not None and watcher.feed(text, readings):
            self._watching = False

    def _piece(self) -> Piece:
        step = self._decoder.step
        texts = self._texts
        texts += [step(token_id) for token_id in self._token_ids[len(texts) :]]
        return Piece(token_ids=tuple(self._token_ids), texts=tuple(texts))


_BREAK_TOKENS = 8
"""Last tokens of a prompt that are read for a break: its newlines, and blanks in tokens of their own."""


def newlines_before(request: GenerateRequest, decode_stream: Callable[[Sequence[int]], DecodeStream]) -> int:
    """Newlines that a prompt ends with, as far as a break needs them; 0 where no signal asks for breaks."""
    if not request.signals & SPARSE_SIGNALS:
        return 0
    before, end = request.prompt_ids[:-_BREAK_TOKENS], request.prompt_ids[-_BREAK_TOKENS:]
    breaks, stream = BreakFinder(), decode_stream(before)
    for token_id in end:
        breaks.feed(stream.step(token_id))
    return breaks.newlines


class Tally:
    """Running totals since the engine's start.

    Generated tokens are counted as they come, prompt and cached tokens when their request ends with a result.
    """

    def __init__(self) -> None:
        self._num_generated_tokens = 0
        self._num_lost_tokens = 0
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._num_drafts = 0
        self._num_draft_tokens = 0
        self._num_accepted_tokens = 0
        self._progress_at = 0.0

    def wake(self) -> None:
        """A request came to an idle engine: silence counts from now."""
        self._progress_at = time.monotonic()

    def generated(self, num_tokens: int) -> None:
        if num_tokens:
            self._num_generated_tokens += num_tokens
            self._progress_at = time.monotonic()

    def drafted(self, num_drafts: int, num_tokens: int, num_accepted: int) -> None:
        self._num_drafts += num_drafts
        self._num_draft_tokens += num_tokens
        self._num_accepted_tokens += num_accepted

    def lost(self, num_tokens: int) -> None:
        self._num_lost_tokens += num_tokens

    def finished(self, result: GenerateResult) -> None:
        self._num_prompt_tokens += result.num_prompt_tokens
        self._num_cached_tokens += result.num_cached_tokens

    def stats(
        self,
        *,
        num_running: int,
        num_waiting: int,
        cache_usage: float,
        cache_tokens: int | None = None,
        prefill_s: float = 0.0,
        is_dead: bool = False,
    ) -> EngineStats:
        busy = num_running + num_waiting > 0
        return EngineStats(
            num_generated_tokens=self._num_generated_tokens,
            num_lost_tokens=self._num_lost_tokens,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_running=num_running,
            num_waiting=num_waiting,
            cache_usage=cache_usage if busy else 0.0,
            cache_tokens=cache_tokens,
            last_token_age_s=time.monotonic() - self._progress_at if busy else 0.0,
            prefill_s=prefill_s,
            num_drafts=self._num_drafts,
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_tokens=self._num_accepted_tokens,
            is_dead=is_dead,
        )

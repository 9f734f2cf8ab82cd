"""Reads the steps of a stored sample with what was read of their tokens.

A step of a model begins with the first token of the text, or with the first token after a break, and ends with the next
break, all in the think phase; a run of newlines is one break. It is read as policies read it, discarded tokens
included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pipeline.policies.protocol import SampleContext
from pipeline.policies.reading.beginning import read_beginning
from pipeline.policies.reading.reader import TextState
from pipeline.policies.step_delegation import text_reader
from pipeline.results.stored import StoredSample
from pipeline.samples import Author
from pipeline.segments import StoredSegment
from pipeline.signals import DIGITS, SPARSE_SIGNALS, Readings, Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRule:
    """How statistics over the tokens of a step are taken."""

    min_tokens: int = 5
    """Of a shorter step none is taken. Ours."""
    confident_below_perplexity: float = 1.05
    """Perplexity below which a token is a confident one. Source: TrigReason, arXiv 2604.14847."""


USUAL_RULE = StepRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step that a model began. values: by the statistic's name.

    num_tokens: None where it did not end with a break of that model.
    """

    author: Author
    values: Mapping[str, float]
    num_tokens: int | None


def read_steps(sample: StoredSample, rule: StepRule = USUAL_RULE) -> Iterator[Step]:
    """The steps of a sample in their order; of one without signals they have a length, and no values."""
    walk = _Walk(reading_context(sample), rule)
    for segment in sample.segments:
        yield from walk.read(segment)
    yield from walk.end()


def reading_context(sample: StoredSample) -> SampleContext:
    """What a policy knows of the text. A text without thoughts is read whole."""
    context = SampleContext(
        job_seed=0,
        problem_id=sample.problem,
        sample_index=sample.sample_index,
        max_tokens=sample.config.sampling.max_tokens,
        think_end=sample.think_end or "",
        num_prompt_tokens=0,
        think_start=sample.think_start or "",
        think_opened=sample.think_opened is not False,
    )
    if not context.think_end:
        return context
    written = "".join(segment.text for segment in sample.segments)
    _, has_thoughts = read_beginning(context, "", written)
    return replace(context, think_start="", think_end="") if has_thoughts is False else context


@dataclass(slots=True)
class _OpenStep:
    """A step whose end has not come."""

    author: Author
    first: Readings
    readings: list[Readings] = field(default_factory=list)
    is_mixed: bool = False
    """Whether another author wrote on in it."""
    is_told: bool = False
    """Whether it was given already: its end was discarded."""


class _Mark(NamedTuple):
    """Where the kept text ends, to go back to."""

    text: TextState
    is_open: bool
    step: _OpenStep | None
    num_readings: int
    is_mixed: bool


class _Walk:
    """Follows a text token by token. What is discarded is read, and forgotten where the kept text goes on."""

    def __init__(self, context: SampleContext, rule: StepRule) -> None:
        self._context = context
        self._rule = rule
        self._reader = text_reader(context, TextState())
        self._is_open = True
        self._step: _OpenStep | None = None

    def read(self, segment: StoredSegment) -> Iterator[Step]:
        kept = None
        for place, (text, readings) in enumerate(zip(segment.texts, _readings(segment), strict=True)):
            if place == segment.num_kept:
                kept = self._mark()
            yield from self._feed(text, readings, segment.author)
        if kept is not None:
            if self._step is not kept.step:
                yield from self.end()
            self._go_back(kept)

    def end(self) -> Iterator[Step]:
        """The text or its think phase ends: the step that is open has no end of its own."""
        if self._step is not None:
            yield from self._close(is_whole=False)

    def _mark(self) -> _Mark:
        step = self._step
        return _Mark(
            text=self._reader.state,
            is_open=self._is_open,
            step=step,
            num_readings=len(step.readings) if step else 0,
            is_mixed=step.is_mixed if step else False,
        )

    def _go_back(self, mark: _Mark) -> None:
        self._reader = text_reader(self._context, mark.text)
        self._is_open, self._step = mark.is_open, mark.step
        if self._step is not None:
            del self._step.readings[mark.num_readings :]
            self._step.is_mixed = mark.is_mixed

    def _feed(self, text: str, readings: Readings, author: Author) -> Iterator[Step]:
        if not self._reader.thinking:
            return
        self._reader.feed(text)
        if self._reader.lengthens_break:
            return
        if self._is_open:
            self._step = _OpenStep(author, readings)
            self._is_open = False
        if self._step is not None:
            self._step.is_mixed |= author is not self._step.author
            self._step.readings.append(readings)
        if not self._reader.thinking:
            yield from self.end()
        elif self._reader.at_break:
            yield from self._close(is_whole=True)
            self._is_open = True

    def _close(self, *, is_whole: bool) -> Iterator[Step]:
        step, self._step = self._step, None
        if step is None or step.is_told or step.author is Author.INSERTED:
            return
        step.is_told = True
        is_whole = is_whole and not step.is_mixed
        values = _first_values(step)
        if is_whole and len(step.readings) >= self._rule.min_tokens:
            values |= _dense_values(step, self._rule)
        yield Step(author=step.author, values=values, num_tokens=len(step.readings) if is_whole else None)


def _readings(segment: StoredSegment) -> Iterator[Readings]:
    names = tuple(segment.signals)
    for place in range(len(segment.token_lengths)):
        yield {name: segment.signals[name][place] for name in names}


def _first_values(step: _OpenStep) -> dict[str, float]:
    found = {signal.value: step.first.get(signal) for signal in SPARSE_SIGNALS}
    return {name: value for name, value in found.items() if value is not None}


def _dense_values(step: _OpenStep, rule: StepRule) -> dict[str, float]:
    """Statistics over all tokens of a step, rounded as readings are; none of a signal that is out of sight for one."""
    values: dict[str, float] = {}
    logprobs = [readings.get(Signal.LOGPROB) for readings in step.readings]
    known = [value for value in logprobs if value is not None]
    if len(known) == len(logprobs):
        values["min_logprob"] = min(known)
        values["mean_logprob"] = math.fsum(known) / len(known)
        least = -math.log(rule.confident_below_perplexity)
        values["confident_share"] = sum(value > least for value in known) / len(known)
    margins = [readings.get(Signal.MARGIN) for readings in step.readings]
    seen = [value for value in margins if value is not None]
    if len(seen) == len(margins):
        values["mean_margin"] = math.fsum(seen) / len(seen)
    return {name: round(value, DIGITS) for name, value in values.items()}

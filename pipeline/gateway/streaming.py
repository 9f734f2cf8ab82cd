"""A chat completion in pieces: whenever a segment is stored, what it adds to the thoughts or to the content."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from pipeline.db.gateway.answers import AnsweringJob, Line, WrittenSample, WrittenSegment
from pipeline.gateway.completions import fingerprint, finish_of, opening_of, split_text, usage_of

Kind = Literal["reasoning", "content"]
DONE = b"data: [DONE]\n\n"
KEEP_AWAKE = b": still at work\n\n"
"""A comment, for proxies that end what is silent."""


def event(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


class Splitter:
    """Divides a text that comes in pieces into its thoughts and the rest, as ``completions.split_text`` does a whole.

    What may be the beginning of a tag is held back until it is known whether it is one.
    """

    def __init__(self, job: AnsweringJob) -> None:
        self._job = job
        self._held = ""
        self._phase: Literal["start", "reasoning", "content"] = "start"
        if not job.think_end:
            self._phase = "content"
        elif job.is_opened:
            self._phase = "reasoning"

    def feed(self, text: str, *, is_last: bool = False) -> Iterator[tuple[Kind, str]]:
        """What is certain now; with is_last, all that is left."""
        self._held += text
        if self._phase == "start":
            self._begin(is_last=is_last)
        if self._phase == "reasoning":
            before, tag, after = self._held.partition(self._job.think_end)
            if tag:
                yield from _told("reasoning", before)
                self._held, self._phase = after, "content"
            else:
                kept = 0 if is_last else _possible_tag(self._held, self._job.think_end)
                cut = len(self._held) - kept
                yield from _told("reasoning", self._held[:cut])
                self._held = self._held[cut:]
        if self._phase == "content":
            yield from _told("content", self._held)
            self._held = ""

    def _begin(self, *, is_last: bool) -> None:
        tag = self._job.think_start
        start = opening_of(self._held, tag)
        if start is not None:
            self._held, self._phase = self._held[len(start) :], "reasoning"
        elif is_last or not tag.startswith(self._held.lstrip()):
            self._phase = "content"


def _told(kind: Kind, text: str) -> Iterator[tuple[Kind, str]]:
    if text:
        yield kind, text


def _possible_tag(text: str, tag: str) -> int:
    """The length of the longest end of the text that the tag begins with."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-size:])), 0)


@dataclass(kw_only=True)
class _Choice:
    splitter: Splitter
    num_segments: int = 0
    is_ended: bool = False


@dataclass(kw_only=True)
class ChunkStream:
    """The chunks of one answer. include_usage: the last one says what was used."""

    completion_id: str
    include_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))
    _choices: dict[int, _Choice] = field(default_factory=dict)

    def chunks(self, job: AnsweringJob, line: Line) -> Iterator[dict[str, Any]]:
        """What is new since the last call."""
        for sample in line.samples:
            choice = self._choices.get(sample.sample_index)
            if choice is None:
                if not sample.segments and not sample.has_text:
                    continue
                choice = self._choices[sample.sample_index] = _Choice(splitter=Splitter(job))
                yield self._chunk(job, line, sample, {"role": "assistant", "content": ""})
            yield from self._new(job, line, sample, choice)

    def _new(self, job: AnsweringJob, line: Line, sample: WrittenSample, choice: _Choice) -> Iterator[dict[str, Any]]:
        for segment in sample.segments[choice.num_segments :]:
            for kind, text in choice.splitter.feed(segment.text):
                yield self._chunk(job, line, sample, _delta(kind, text), about=_about(job, segment))
        choice.num_segments = len(sample.segments)
        if sample.has_text and not choice.is_ended:
            choice.is_ended = True
            for kind, text in choice.splitter.feed("", is_last=True):
                yield self._chunk(job, line, sample, _delta(kind, text))
            about = {"job_id": job.job_id, "sample_id": sample.id, "finish_reason": sample.finish_reason}
            yield self._chunk(job, line, sample, {}, finish=finish_of(sample), about=about)

    def usage_chunk(self, job: AnsweringJob, line: Line) -> dict[str, Any]:
        """The last one, which has no choice."""
        texts = [split_text(sample.output, job) for sample in line.samples]
        return self._frame(job, line) | {"choices": [], "usage": usage_of(line.samples, texts)}

    def _chunk(
        self, job: AnsweringJob, line: Line, sample: WrittenSample, delta: dict[str, Any], *,
        finish: str | None = None, about: dict[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        choice = {"index": sample.sample_index, "delta": delta, "finish_reason": finish, "logprobs": None}
        chunk = self._frame(job, line) | {"choices": [choice], "specthink": about}
        return chunk | ({"usage": None} if self.include_usage else {})

    def _frame(self, job: AnsweringJob, line: Line) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": job.model,
            "system_fingerprint": fingerprint(job, line.samples),
        }


def _delta(kind: Kind, text: str) -> dict[str, Any]:
    """Thoughts under both of their names: clients know one or the other."""
    return {"content": text} if kind == "content" else {"reasoning": text, "reasoning_content": text}


def _about(job: AnsweringJob, segment: WrittenSegment) -> dict[str, Any]:
    model = job.engines[segment.engine_id][1] if segment.author != "inserted" else None
    return {
        "segment": segment.index, "author": segment.author, "model": model, "trigger": segment.trigger,
        "cue": segment.cue, "takes_over": segment.takes_over,
    }  # fmt: skip

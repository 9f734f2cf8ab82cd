"""Samples with every piece of writing in the order in which it came: what logs for other tools are made of."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.grading.extract import answer_part, is_thinking
from pipeline.results.jobs import Job
from pipeline.results.reports import JobSummary, PassAtK, ProblemScore
from pipeline.results.samples import Result, StepReport
from pipeline.samples import Author


class PieceKind(StrEnum):
    """Where a piece stands."""

    SEGMENT = "segment"  # in the text
    ASIDE = "aside"  # on a side branch


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPiece:
    """A segment, or an aside.

    index: among the segments or the asides of its sample. reason: of a segment its trigger, of an aside its purpose.
    tokens, tokens_discarded: kept, and written behind these. is_taken: the head of an aside, for which nothing was
    generated. start_token: of a segment, in the output. seconds: from handing it to the engine to its end.
    """

    kind: PieceKind
    index: int
    author: Author
    reason: str
    cue: str
    takes_over: bool
    text: str
    discarded_text: str
    tokens: int
    tokens_discarded: int
    is_taken: bool
    start_token: int
    prompt_tokens: int
    cached_tokens: int
    finish: str | None
    value: float | None
    threshold: float | None
    outcome: str | None
    seed: int | None
    wait_seconds: float | None
    queue_seconds: float | None
    seconds: float | None
    worker_id: int
    model: str
    ended_at: dt.datetime

    @property
    def tokens_written(self) -> int:
        """What its engine wrote for it: added up over pieces they are written_small and written_large of a job."""
        return 0 if self.is_taken or self.author is Author.INSERTED else self.tokens + self.tokens_discarded

    @property
    def started_at(self) -> dt.datetime:
        return self.ended_at - dt.timedelta(seconds=self.seconds or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSample:
    """A sample, the pieces of its text in their order, each behind the asides that were asked for before it, and its
    steps, once its text is complete."""

    result: Result
    pieces: tuple[WrittenPiece, ...]
    steps: tuple[StepReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenJob:
    """What a log says of a job as a whole.

    source: where its problem set came from. problem_ids: of the problems that it asks, in their order. think_start,
    think_end, think_opened: how its texts mark the think phase, None where nobody has written yet.
    """

    job: Job
    summary: JobSummary
    pass_at_k: tuple[PassAtK, ...]
    problem_scores: tuple[ProblemScore, ...]
    content_sha256: str
    source: Mapping[str, Any] = field(default_factory=dict)
    problem_ids: tuple[str, ...]
    think_start: str | None
    think_end: str | None
    think_opened: bool | None
    tells_answers: bool
    """Whether the login that reads may read reference answers."""
    prompts_tell_answers: bool
    """Whether it is a judge whose prompts show them."""

    def parted(self, output: str) -> tuple[str, str]:
        """The thoughts of a text, without their tags, and its answer."""
        if not self.think_end:
            return "", output
        opened = bool(self.think_opened)
        if is_thinking(output, start=self.think_start, end=self.think_end, opened=opened):
            thoughts, answer = output, ""
        else:
            answer = answer_part(output, end=self.think_end)
            thoughts = output[: len(output) - len(answer)]
        return thoughts.removeprefix(self.think_start or "").removesuffix(self.think_end).strip("\n"), answer

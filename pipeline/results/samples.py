"""What read queries say of samples: a result, and one sample in full."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from pipeline.samples import Author, FinishReason, SampleState


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One sample with its text.

    problem: the problem's id in the submitted file. output: the kept text so far, complete in the states finished and
    graded. score: None is unscored, which is not wrong. rendered_prompt: what the job's prompt template makes of the
    problem, before the model's chat template; None where the template is not installed here. reference, also_accepted:
    the right answers, grade_detail: why the newest grade is what it is, and metadata: all other columns of the file;
    None, none, None, and what the prompt shows where the login may not read the rest. unreadable: what of its row
    cannot be read, and why; None where all of it can.
    """

    job_id: int
    sample_id: int
    problem: str
    sample_index: int
    state: SampleState
    prompt: str
    output: str
    predicted_answer: str | None
    score: float | None
    finish_reason: FinishReason | None
    output_tokens: int
    tokens_small: int
    tokens_large: int
    tokens_inserted: int
    discarded_small: int
    discarded_large: int
    num_takeovers: int
    num_segments: int
    subject: str | None
    level: str | None
    error_class: str | None
    error: str | None
    finished_at: dt.datetime | None
    policy: str = ""
    small_model: str | None = None
    large_model: str | None = None
    judge_model: str | None = None
    seed: int | None = None
    rendered_prompt: str | None = None
    reference: str | None = None
    also_accepted: tuple[str, ...] = ()
    grade_detail: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    unreadable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """A stored segment; see the comments on the columns of segments."""

    segment_index: int
    author: Author
    trigger: str
    cue: str
    takes_over: bool
    text: str
    discarded_text: str
    tokens: int
    tokens_discarded: int
    tokens_generated: int
    prompt_tokens: int
    cached_tokens: int
    finish: str | None
    wait_seconds: float | None
    queue_seconds: float | None
    first_token_seconds: float | None
    write_seconds: float | None
    worker_id: int
    model: str
    committed_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """A stored reasoning step; see the comments on the columns of steps."""

    step_index: int
    author: Author
    text: str
    tokens_small: int
    tokens_large: int
    tokens_inserted: int
    sentence_class: str
    trigger: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """One sample with every piece of writing and, once its text is complete, every step."""

    result: Result
    segments: tuple[SegmentReport, ...]
    steps: tuple[StepReport, ...]

"""A whole stored sample, as a replay reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.jobs.config import JobConfig
from pipeline.policies.protocol import PolicyState
from pipeline.samples import Author, FinishReason, SampleState
from pipeline.segments import StoredAside, StoredSegment


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStep:
    """A row of steps."""

    step_index: int
    text: str
    author: Author
    tokens_small: int
    tokens_large: int
    tokens_inserted: int
    start_token: int
    sentence_class: str
    trigger: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """A sample with its segments, asides and steps, in order, and what of its job decides."""

    sample_id: int
    job_id: int
    config: JobConfig
    think_start: str | None
    think_end: str | None
    think_opened: bool | None
    problem: str
    sample_index: int
    state: SampleState
    policy_state: PolicyState | None
    next_request: Any
    num_segments: int
    num_takeovers: int
    num_asides: int
    tokens_small: int
    tokens_large: int
    tokens_inserted: int
    discarded_small: int
    discarded_large: int
    aside_small: int
    aside_large: int
    aside_judge: int
    taken_small: int
    taken_large: int
    finish_reason: FinishReason | None
    segments: tuple[StoredSegment, ...]
    asides: tuple[StoredAside, ...]
    steps: tuple[StoredStep, ...]
    max_tokens: int | None = None
    """Its own budget, where that is larger than its job's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableSample:
    """A stored sample that this program cannot read. why: in one line."""

    sample_id: int
    job_id: int
    why: str

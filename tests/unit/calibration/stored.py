"""Stored samples made by hand: what a calibration reads."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.policies import parse_policy
from pipeline.results.stored import StoredSample
from pipeline.samples import Author, FinishReason, SampleState
from pipeline.segments import StoredAside, StoredSegment
from pipeline.signals import SignalValues

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def segment(
    index: int, author: str, texts: Sequence[str], signals: SignalValues | None = None, *, num_discarded: int = 0
) -> StoredSegment:
    kept = texts[: len(texts) - num_discarded]
    return StoredSegment(
        author=Author(author), finish=None, trigger="start", takes_over=False, token_ids=range(len(kept)),
        text="".join(kept), token_lengths=[len(text) for text in texts], tokens_generated=len(texts), prompt_tokens=1,
        epoch=1, committed_at=NOW, vocabulary_sha256="v", segment_index=index,
        discarded_ids=range(num_discarded), discarded_text="".join(texts[len(kept) :]), content_sha256=None,
        engine_id=1, signals=signals or {},
    )  # fmt: skip


def aside(index: int, purpose: str, value: float | None, outcome: str | None = None) -> StoredAside:
    return StoredAside(
        author=Author.LARGE, aside_index=index, after_segment=1, purpose=purpose, value=value, outcome=outcome,
        token_ids=(), text="", token_lengths=(), content_sha256=None, epoch=1, committed_at=NOW, engine_id=1,
        vocabulary_sha256="v",
    )  # fmt: skip


def sample(
    segments: Sequence[StoredSegment], *, asides: Sequence[StoredAside] = (), think_end: str | None = "</think>",
    think_opened: bool = True, problem: str = "p",
) -> StoredSample:  # fmt: skip
    zeros: Mapping[str, int] = dict.fromkeys(
        ("num_segments", "num_takeovers", "num_asides", "tokens_small", "tokens_large", "tokens_inserted",
         "discarded_small", "discarded_large", "aside_small", "aside_large", "aside_judge", "taken_small",
         "taken_large"), 0,
    )  # fmt: skip
    config = JobConfig(small=ModelSpec(name="S"), large=ModelSpec(name="L"), policy=parse_policy("small-only"))
    return StoredSample(
        sample_id=1, job_id=1, config=config, think_start="<think>", think_end=think_end, think_opened=think_opened,
        problem=problem, sample_index=0, state=SampleState.GRADED, policy_state={}, next_request=None,
        finish_reason=FinishReason.EOS, segments=tuple(segments), asides=tuple(asides), steps=(), **zeros,
    )  # fmt: skip

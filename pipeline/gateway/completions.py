"""A chat completion, made of the samples that were written for one request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pipeline.db.gateway.answers import AnsweringJob, WrittenSample, WrittenSegment

_FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length", "repetition": "length"}
"""A strict client knows no other words; the true one is in specthink."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitText:
    """A text in its thoughts and the rest.

    start, end: the tags around the thoughts, '' where there was none; white space before the first belongs to it.
    """

    start: str
    reasoning: str | None
    end: str
    content: str


def split_text(output: str, job: AnsweringJob) -> SplitText:
    """Untrimmed: all parts joined are the output. A text that was cut inside its thoughts has no content."""
    if not job.think_end:
        return SplitText(start="", reasoning=None, end="", content=output)
    start = "" if job.is_opened else opening_of(output, job.think_start)
    if start is None:
        return SplitText(start="", reasoning=None, end="", content=output)
    rest = output[len(start) :]
    reasoning, end, content = rest.partition(job.think_end)
    return SplitText(start=start, reasoning=reasoning, end=end, content=content)


def opening_of(text: str, tag: str) -> str | None:
    """The opening tag that a text begins with, and white space before it; None where it begins otherwise."""
    before = text[: len(text) - len(text.lstrip())]
    return before + tag if text.startswith(tag, len(before)) else None


def completion(
    job: AnsweringJob,
    samples: Sequence[WrittenSample],
    *,
    completion_id: str,
    include: Iterable[str] = ("segments",),
    ignored: Sequence[str] = (),
) -> dict[str, Any]:
    """The body of an answer. ignored: parameters that were asked for and change nothing."""
    wanted = frozenset(include)
    texts = [split_text(sample.output, job) for sample in samples]
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": max(sample.ended_at for sample in samples),
        "model": job.model,
        "system_fingerprint": fingerprint(job, samples),
        "choices": [_choice(job, *pair, wanted) for pair in zip(samples, texts, strict=True)],
        "usage": usage_of(samples, texts),
        "specthink": _about(job, samples, ignored),
    }


def _choice(job: AnsweringJob, sample: WrittenSample, text: SplitText, wanted: frozenset[str]) -> dict[str, Any]:
    return {
        "index": sample.sample_index,
        "message": {
            "role": "assistant",
            "content": text.content,
            "reasoning": text.reasoning,
            "reasoning_content": text.reasoning,
            "refusal": None,
        },
        "finish_reason": finish_of(sample),
        "logprobs": None,
        "specthink": _about_sample(job, sample, text, wanted),
    }


def finish_of(sample: WrittenSample) -> str:
    return _FINISH.get(sample.finish_reason or "", "stop")


def _about_sample(job: AnsweringJob, sample: WrittenSample, text: SplitText, wanted: frozenset[str]) -> dict[str, Any]:
    about: dict[str, Any] = {
        "job_id": job.job_id,
        "sample_id": sample.id,
        "sample_index": sample.sample_index,
        "policy": job.policy,
        "finish_reason": sample.finish_reason,
        "num_takeovers": sample.num_takeovers,
        "tokens": dict(sample.tokens),
        "think_start": text.start,
        "think_end": text.end,
        "predicted_answer": sample.predicted_answer,
        "score": sample.score,
    }
    if "segments" in wanted:
        ends = list(accumulate(len(segment.text) for segment in sample.segments))
        about["segments"] = [
            segment_of(job, segment, end=end, with_discarded="discarded_text" in wanted)
            for segment, end in zip(sample.segments, ends, strict=True)
        ]
    return about


def segment_of(job: AnsweringJob, segment: WrittenSegment, *, end: int, with_discarded: bool = False) -> dict[str, Any]:
    """Who wrote a piece, and where it is: offsets count characters of think_start + reasoning + think_end + content."""
    told: dict[str, Any] = {
        "index": segment.index,
        "author": segment.author,
        "model": job.engines[segment.engine_id][1] if segment.author != "inserted" else None,
        "trigger": segment.trigger,
        "cue": segment.cue,
        "takes_over": segment.takes_over,
        "start": end - len(segment.text),
        "end": end,
        "tokens": segment.tokens,
    }
    if with_discarded:
        told["discarded_text"] = segment.discarded_text or ""
    return told


def _about(job: AnsweringJob, samples: Sequence[WrittenSample], ignored: Sequence[str]) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "seed": job.config.seed,
        "small_model": job.config.small.name if job.config.small else None,
        "large_model": job.config.large.name if job.config.large else None,
        "engine_usage": _engine_usage(samples),
        "ignored": list(ignored),
    }


def _engine_usage(samples: Sequence[WrittenSample]) -> dict[str, dict[str, int]]:
    """What the engines really did: prompts that were given again, and tokens that were not kept."""
    used: dict[str, dict[str, int]] = {}
    for sample in samples:
        for segment in sample.segments:
            if segment.author == "inserted":
                continue
            role = used.setdefault(
                segment.author,
                {"prompt_tokens": 0, "cached_tokens": 0, "generated_tokens": 0, "discarded_tokens": 0},
            )
            role["prompt_tokens"] += segment.prompt_tokens
            role["cached_tokens"] += segment.cached_tokens
            role["generated_tokens"] += segment.tokens_generated
            role["discarded_tokens"] += segment.tokens_discarded
    return used


def usage_of(samples: Sequence[WrittenSample], texts: Sequence[SplitText]) -> dict[str, Any]:
    """Tokens as a client pays for them: the prompt once, and what was kept of all authors."""
    first = next((sample.segments[0] for sample in samples if sample.segments), None)
    prompt = first.prompt_tokens if first else 0
    cached = min(first.cached_tokens, prompt) if first else 0
    kept = sum(sum(sample.tokens[author] for author in ("small", "large", "inserted")) for sample in samples)
    thought = sum(reasoning_tokens(sample, text) for sample, text in zip(samples, texts, strict=True))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": kept,
        "total_tokens": prompt + kept,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def reasoning_tokens(sample: WrittenSample, text: SplitText) -> int:
    """Kept tokens before the closing think tag; all of them where there is none."""
    if text.reasoning is None:
        return 0
    if not text.end:
        return sum(segment.tokens for segment in sample.segments)
    left, count = len(text.start) + len(text.reasoning), 0
    for segment in sample.segments:
        if left >= len(segment.text):
            left -= len(segment.text)
            count += segment.tokens
            continue
        for length in segment.token_lengths or ():
            if left <= 0:
                break
            left -= length
            count += 1
        break
    return count


def fingerprint(job: AnsweringJob, samples: Sequence[WrittenSample]) -> str:
    """Of the engines that wrote: another one may draw other tokens with the same seed."""
    engines = {job.engines[segment.engine_id][0] for sample in samples for segment in sample.segments}
    return f"fp_{hashlib.sha256(' '.join(sorted(engines)).encode()).hexdigest()[:12]}"
